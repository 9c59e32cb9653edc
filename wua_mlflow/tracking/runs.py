"""All reading of runs: tables by the contract's names, with filters pushed down to MLflow.

Tests: ``tests/tracking/test_runs.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from mlflow.entities import LifecycleStage, Run
from mlflow.tracking import MlflowClient

from wua_mlflow.config import ConfigError, table_text
from wua_mlflow.errors import did_you_mean
from wua_mlflow.old_settings import of_today
from wua_mlflow.tracking.names import (
    KINDS,
    Kind,
    Metric,
    Outcome,
    Tag,
    Variant,
    looks_tag,
    step_tag,
)
from wua_mlflow.tracking.run_table import HISTORIES, in_order, note_on, table_of
from wua_mlflow.tracking.search import (
    all_found,
    naming_the_filter,
    no_garbage,
    nothing_there,
    of_kind,
    opened,
    search_pages,
)
from wua_mlflow.tracking.store import (
    active,
    experiment_ids,
    open_client,
    or_none,
    shown_uri,
)

__all__ = [
    "best", "compare_runs", "controls_of", "count_looks", "find_control", "find_run", "history",
    "is_slim", "look_of", "record_pair", "result_of", "runs", "seeds_judged_before", "show_run",
]


SAMPLE = 16
"""So many runs tell about how small a metric gets."""
NAMED = 5
"""At most so many runs are looked for whose verdicts were made by another method."""


def runs(
    experiment: str | Sequence[str] | None = None,
    kind: str = Kind.VARIANT,
    where: str | None = None,
    *,
    columns: str | Sequence[str] | None = None,
    order_by: str | Sequence[str] = (),
    limit: int | None = None,
) -> pd.DataFrame:
    """A row a run, newest first; columns are the contract's names of tags, params and metrics.

    One search of MLflow for every 2,500 runs, none by run.

    Args:
        experiment: name or names; every experiment, if None.
        kind: value of the tag ``wua.kind``: ``variant``, ``pipeline``, …
        where: MLflow's filter syntax, e.g. ``"metrics.`accuracy/test` > 0.9"``; added to the kind.
        columns: the only ones, in this order; tags of MLflow's too (``mlflow.user``).
        order_by: MLflow's syntax, e.g. ``"metrics.`flops/forward` ASC"``; one, or several.
        limit: at most so many rows.

    Returns:
        ``run_id``, ``name``, ``status``, ``start_time`` (a param called like one of these is left
        out), then tags (``wua.…``), params and metrics; counts are whole numbers, times in UTC, and
        what a run lacks is NA. The score by seed, of which ``history`` has all points, is no
        column unless asked for. ``attrs["note"]`` says where the methods of the verdicts differ,
        or one is not known.

    Raises:
        ValueError: an experiment, a kind or a column that does not exist, a limit below 1, or a
            filter that MLflow refuses.
    """
    if kind not in KINDS:
        raise ValueError(
            f"kind: expected one of {', '.join(KINDS)}, but got '{kind}'{did_you_mean(kind, KINDS)}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected a whole number of at least 1, but got {limit}")
    order = [order_by] if isinstance(order_by, str) else list(order_by)
    wanted = [columns] if isinstance(columns, str) else list(dict.fromkeys(columns or ()))
    keys = _metrics_of(order) if limit is None else {}
    with naming_the_filter(where, order):
        found = search_pages(*opened(experiment), of_kind(kind, where), [] if keys else order,
                             limit)
        with no_garbage():
            return table_of(found, wanted, sort=keys)


_BY_METRIC = re.compile(r"metrics?\.(?:`([^`]+)`|(\w+))(?:\s+(asc|desc))?", re.IGNORECASE)


def _metrics_of(order: Sequence[str]) -> dict[str, bool]:
    """The metrics to sort by, and whether upwards; none where it is by something else, too.

    To sort all runs by a metric MLflow's SQL takes a time that grows with their square in SQLite.
    """
    parts = [_BY_METRIC.fullmatch(each.strip()) for each in order]
    keys = {part[1] or part[2]: (part[3] or "asc").lower() == "asc" for part in parts if part}
    return keys if len(keys) == len(order) else {}


def best(
    experiment: str | Sequence[str] | None = None,
    *,
    where: str | None = None,
    by: str = Metric.FLOPS_FORWARD,
) -> pd.Series | None:
    """The smallest variant whose verdict is non-inferior; None where there is none.

    A few searches, however many variants there are. ``attrs["note"]`` says where the methods of
    the verdicts that it was chosen by differ, by the newest five of them.

    Args:
        experiment: name or names; every experiment, if None.
        where: MLflow's filter syntax, added.
        by: the metric that is smallest; of several runs the newest.

    Raises:
        ValueError: as ``runs``; or no such variant has the metric ``by``.
    """
    verdict = f"tags.`{Tag.VERDICT}` = '{Outcome.NON_INFERIOR}'"
    if "`" in by:
        raise ValueError(f"by: expected the name of a metric, but got {by!r}")
    client, experiments = opened(experiment)

    def search(condition: str, limit: int, order: Sequence[str] = ()) -> list[Run]:
        clause = of_kind(Kind.VARIANT, verdict, where, condition)
        return [run for page in search_pages(client, experiments, clause, order, limit)
                for run in page]

    with naming_the_filter(where, ()):
        smallest = _least(search, by)
        if smallest is None:
            if others := search("", 1):
                raise ValueError(f"by: expected a metric of the variants, but got '{by}'"
                                 f"{did_you_mean(by, others[0].data.metrics)}")
            return None
        note = note_on([smallest, *_by_other_methods(search, smallest)])
    row = table_of([[smallest]]).iloc[0]
    row.attrs["note"] = note
    return row


Search = Callable[..., list[Run]]
"""Runs, by a further condition and a limit, and perhaps an order."""


def _least(search: Search, by: str) -> Run | None:
    """The run whose metric is least, the newest of several; None where none has it.

    MLflow's own order by a metric takes a time that grows with the square of the runs in SQLite.
    The ids are random: the least of some in their order is about the least of all, and few are
    less.
    """
    smallest, below = None, f"<= {_in_filter(sys.float_info.max)}"
    while found := search(f"metrics.`{by}` {below}", SAMPLE, ["attributes.run_id ASC"]):
        found.sort(key=lambda run: (run.data.metrics[by], -(run.info.start_time or 0)))
        smallest = found[0]
        if len(found) < SAMPLE:
            return smallest
        least = _in_filter(smallest.data.metrics[by])
        below = f"< {least}"
    newest = search(f"metrics.`{by}` = {least}", 1) if smallest else []
    return newest[0] if newest else smallest


def _in_filter(number: float) -> str:
    """As MLflow's filters take it: without a plus sign in the exponent."""
    return repr(number).replace("e+", "e")


def _by_other_methods(search: Search, run: Run) -> list[Run]:
    """Some of the runs whose verdicts were made by another method than this one's, or by one that
    is not known."""
    method = run.data.tags.get(Tag.VERDICT_METHOD, "")
    quote = "'" if '"' in method else '"'
    return [*search(f"tags.`{Tag.VERDICT_METHOD}` != {quote}{method}{quote}", NAMED),
            *(other for other in search(f"tags.`{Tag.VERDICT_METHOD}` IS NULL", NAMED)
              if other.info.run_id != run.info.run_id)]


def find_run(run_id: str) -> Run:
    """The run with this id, or the one whose id begins with these (at least four) characters.

    Raises:
        ValueError: no such run, or several.
    """
    store = shown_uri()
    if nothing_there():
        raise ValueError(f"run: no run has the id '{run_id}': there is no {store}")
    client = open_client()
    if not re.fullmatch("[0-9a-f]{4,31}", run_id):
        run = or_none(client.get_run, run_id)
        if run is None:
            raise ValueError(f"run: no run has the id '{run_id}' in {store}; `wua runs` lists them")
        return run
    fitting = all_found(client, experiment_ids(client, None),
                        f"attributes.run_id LIKE '{run_id}%'", limit=3)
    if not fitting:
        raise ValueError(f"run: no run's id begins with '{run_id}' in {store}")
    if len(fitting) > 1:
        names = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in fitting)
        raise ValueError(f"run: expected an id, or enough of one, but '{run_id}' fits {names}")
    return fitting[0]


def compare_runs(a: str | Run, b: str | Run) -> pd.DataFrame:
    """Two runs side by side: a row a metric, columns the runs' names, and their ratio a ÷ b.

    Args:
        a: its id, or the beginning of it.
        b: another one's.

    Returns:
        Index ``metric``, the contract's first and in its order; ``ratio`` is NA where a value is
        missing or not above 0. ``attrs["note"]`` says where the methods of their verdicts differ,
        or one is not known.

    Raises:
        ValueError: no such run, or twice the same.
    """
    pair = [run if isinstance(run, Run) else find_run(run) for run in (a, b)]
    if pair[0].info.run_id == pair[1].info.run_id:
        raise ValueError(f"b: expected another run than a, but both are {pair[0].info.run_id}")
    names = [str(run.info.run_name) for run in pair]
    if names[0] == names[1] or "ratio" in names:
        names = [f"{name} ({run.info.run_id[:8]})" for name, run in zip(names, pair, strict=True)]
    metrics = [run.data.metrics for run in pair]
    known = in_order({*metrics[0], *metrics[1]} - {*HISTORIES})
    table = pd.DataFrame({name: [values.get(key) for key in known]
                          for name, values in zip(names, metrics, strict=True)},
                         index=pd.Index(known, name="metric"), dtype="Float64")
    above = table.where(table > 0)
    table["ratio"] = above[names[0]] / above[names[1]]
    table.attrs["note"] = note_on(pair)
    return table


def show_run(run: str | Run) -> pd.DataFrame:
    """Everything that one run says: a row a name, column ``value``; in the order of ``runs``.

    Raises:
        ValueError: no such run.
    """
    table = table_of([[run if isinstance(run, Run) else find_run(run)]])
    values = pd.DataFrame({"value": table.astype(object).iloc[0]}).rename_axis("name")
    values.attrs.update(table.attrs)
    return values


def history(run_id: str, metric: str | Sequence[str]) -> pd.DataFrame:
    """All points of a metric of a run, by step: the loss by epoch, the score by seed.

    One call a metric for every 25,000 points.

    Args:
        run_id: of the run, or the beginning of it.
        metric: a name, or several.

    Returns:
        ``step``, ``value`` and ``timestamp`` (in UTC); of several metrics ``metric`` before them,
        in the order that they were asked for.

    Raises:
        ValueError: no such run, or it has no such metric.
    """
    found = find_run(run_id)
    names = [metric] if isinstance(metric, str) else list(dict.fromkeys(metric))
    for name in names:
        if name not in found.data.metrics:
            raise ValueError(f"metric: run {found.info.run_id} has none that is called '{name}'"
                             f"{did_you_mean(name, found.data.metrics)}")
    client = open_client()
    points = [(name, point.step, point.value, point.timestamp) for name in names
              for point in sorted(client.get_metric_history(found.info.run_id, name),
                                  key=lambda point: (point.step, point.timestamp))]
    table = pd.DataFrame(points, columns=["metric", "step", "value", "timestamp"])
    table["timestamp"] = pd.to_datetime(table["timestamp"], unit="ms", utc=True)
    return table.drop(columns="metric") if isinstance(metric, str) else table


def is_slim(variant: str) -> bool:
    """Whether a value of the tag ``wua.variant`` is a slim one's: ``slim``, ``slim-2``, …

    >>> is_slim("slim-2"), is_slim("oversized-same-budget")
    (True, False)
    """
    return variant == Variant.SLIM or variant.startswith(f"{Variant.SLIM}-")


def find_control(
    client: MlflowClient, experiment_id: str, original: str, epochs: int
) -> str | None:
    """The trained control of ``original`` with that budget, in one search; None where none is."""
    controls = client.search_runs(
        [experiment_id], order_by=["attributes.start_time DESC"],
        filter_string=f"tags.`{Tag.BASELINE}` = '{original}' AND "
                      f"tags.`{Tag.VARIANT}` = '{Variant.SAME_BUDGET}' AND "
                      f"tags.`{step_tag('train')}` = 'done'")
    return next((str(run.info.run_id) for run in controls
                 if run.data.params.get("epochs") == str(epochs)), None)


def controls_of(client: MlflowClient, experiment_id: str, slim: str) -> list[str]:
    """The runs of what was trained beside a slim variant, those that are still there.

    A variant of an older version, which does not note them, has the control of its epochs.
    """
    run = client.get_run(slim)
    noted = run.data.tags.get(Tag.CONTROLS)
    if noted is None:
        control = find_control(client, experiment_id, run.data.tags.get(Tag.BASELINE, ""),
                               int(run.data.params.get("epochs", 0)))
        return [control] if control else []
    controls = [or_none(client.get_run, run_id) for run_id in noted.split(",")]
    return [str(control.info.run_id) for control in controls
            if control and control.info.lifecycle_stage == LifecycleStage.ACTIVE]


def result_of(client: MlflowClient, pipeline: str) -> str | None:
    """The run of the slim variant that the pipeline's own run shows."""
    return client.get_run(pipeline).data.tags.get(Tag.RESULT)


_MOST = 500
"""Pairs that an experiment's tag has room for; further ones are not kept apart."""


def look_of(margin: float, confidence: float) -> str:
    """What makes a verdict on the same two models another look."""
    return f"{margin:g} at {confidence:g}"


def count_looks(client: MlflowClient, digest: str, *, besides: str = "") -> int:
    """How many verdicts of the whole store are on the test set with this digest.

    Args:
        client: MLflow's.
        digest: of the test set.
        besides: the run of a slim variant whose verdicts are not counted.
    """
    clause = (f"tags.`{Tag.TEST_DIGEST}` = '{digest}' AND tags.`{Tag.VERDICT}` != '' "
              f"AND tags.`{Tag.KIND}` = '{Kind.VARIANT}'")
    experiments = active(client)
    judged = all_found(client, [entry.experiment_id for entry in experiments], clause)
    variants = sum(1 + run.data.tags.get(Tag.LOOKED, "").count(",") for run in judged
                   if run.info.run_id != besides)
    pairs = {pair for entry in experiments for pair in _pairs(entry.tags.get(looks_tag(digest)))}
    return variants + len(pairs)


_NO_RECIPE = ("seeds", "criterion", "device", "threads")
"""Params of a variant that do not say how it was trained."""


def seeds_judged_before(client: MlflowClient, run_id: str) -> int:
    """The most seeds of an earlier recipe verdict on the same two recipes; 0 of none.

    A verdict by the same plan (``seeds``) is the same one. Alike are runs of the
    same widths, params and test data, whose originals are one run, or alike themselves.

    Args:
        client: MLflow's.
        run_id: of a slim variant.
    """
    run = client.get_run(run_id)
    tags = run.data.tags
    clause = " AND ".join((
        *(f"tags.`{tag}` = '{tags.get(tag, '')}'" for tag in (
            Tag.KIND, Tag.VARIANT, Tag.TEST_DIGEST, Tag.WIDTHS)),
        f"tags.`{Tag.VERDICT_RECIPE}` != ''", f"attributes.start_time < {run.info.start_time}"))
    experiments = [entry.experiment_id for entry in active(client)]
    original = tags.get(Tag.BASELINE)
    earlier = [other for other in all_found(client, experiments, clause)
               if _recipe_of(other) == _recipe_of(run) and _plan_of(other) != _plan_of(run)
               and _same_recipe(client, other.data.tags.get(Tag.BASELINE), original)]
    return max(map(_seeds_of, earlier), default=0)


def _plan_of(run: Run) -> str | None:
    return _params_of(run).get("seeds")


def _params_of(run: Run) -> dict[str, Any]:
    """A run's params by today's names."""
    params = of_today(run.data.params)
    if "table" in params:
        with contextlib.suppress(ConfigError):
            params["table"] = table_text(params["table"])
    return params


def _recipe_of(run: Run) -> dict[str, str | None]:
    params = {name: value for name, value in _params_of(run).items() if name not in _NO_RECIPE}
    return {**params, **{tag: run.data.tags.get(tag) for tag in (
        Tag.WIDTHS, Tag.STRUCTURE, Tag.FOLDED, Tag.ADOPTED)}}


def _same_recipe(client: MlflowClient, one: str | None, other: str | None) -> bool:
    """Whether two originals are one run, or were made alike."""
    if one is None or other is None or one == other:
        return one == other
    recipes = [run and _recipe_of(run)
               for run in (or_none(client.get_run, run_id) for run_id in (one, other))]
    return None not in recipes and recipes[0] == recipes[1]


def _seeds_of(run: Run) -> int:
    """Of a run's recipe verdict; older runs have no tag of it, but a fixed number."""
    seeds = run.data.tags.get(Tag.VERDICT_SEEDS, run.data.params.get("seeds", ""))
    number = seeds.partition(",")[0]
    return int(number) if number.isdigit() else 0


def record_pair(
    client: MlflowClient, experiment_id: str, digest: str, pair: Sequence[str], look: str
) -> None:
    """Note a verdict on any two models in an experiment's tag; the same one once.

    Args:
        client: MLflow's.
        experiment_id: where it is kept.
        digest: of the test set.
        pair: how the two were named.
        look: as ``look_of`` gives it.
    """
    tag = looks_tag(digest)
    known = _pairs(client.get_experiment(experiment_id).tags.get(tag))
    key = hashlib.sha256("\n".join((*pair, look)).encode()).hexdigest()[:8]
    if key not in known and len(known) < _MOST:
        client.set_experiment_tag(experiment_id, tag, ",".join([*known, key]))


def _pairs(tag: str | None) -> list[str]:
    return tag.split(",") if tag else []
