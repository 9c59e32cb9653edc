"""All reading of runs: tables by the contract's names, with filters pushed down to MLflow.

Tests: ``tests/tracking/test_runs.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
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
from wua_mlflow.tracking.store import (
    active,
    experiment_ids,
    open_client,
    or_none,
    pages,
    shown_uri,
    sqlite_file,
)
from wua_mlflow.verdict.text import methods_note

__all__ = [
    "best", "compare_runs", "controls_of", "count_looks", "find_control", "find_run", "is_slim",
    "look_of", "record_pair", "result_of", "runs", "seeds_judged_before", "show_run",
]


UNSET = ("", "None")
WHOLE = (Metric.FLOPS_FORWARD, Metric.FLOPS_INFERENCE, Metric.FLOPS_TRAINING,
         Metric.FLOPS_PTFLOPS_INFERENCE, Metric.FLOPS_PTFLOPS_TRAINING, Metric.PARAMS_TOTAL,
         Metric.PARAMS_ANALYZED, Metric.SIZE_BYTES, Metric.LOOKS,
         "epochs", "seed", "patience", "null_draws", "threads")
"""Metrics and params that are whole numbers."""
FRACTIONS = ("lr", "margin", "confidence")
"""Params that are other numbers. Widths, batch sizes and seeds stay text: not all are numbers."""
COLUMNS = ("run_id", "name", "status", "start_time")
ORDER = {name: place for place, name in enumerate(
    value for key, value in vars(Metric).items() if not key.startswith("_"))}
"""The contract's metrics, in its order."""


def runs(
    experiment: str | Sequence[str] | None = None,
    kind: str = Kind.VARIANT,
    where: str | None = None,
    *,
    order_by: str | Sequence[str] = (),
    limit: int | None = None,
) -> pd.DataFrame:
    """A row a run, newest first; columns are the contract's names of tags, params and metrics.

    One search of MLflow for every thousand runs, none by run.

    Args:
        experiment: name or names; every experiment, if None.
        kind: value of the tag ``wua.kind``: ``variant``, ``pipeline``, …
        where: MLflow's filter syntax, e.g. ``"metrics.`accuracy/test` > 0.9"``; added to the kind.
        order_by: MLflow's syntax, e.g. ``"metrics.`flops/forward` ASC"``; one, or several.
        limit: at most so many rows.

    Returns:
        ``run_id``, ``name``, ``status``, ``start_time`` (a param called like one of these is left
        out), then tags (``wua.…``), params and metrics; counts are whole numbers, times in UTC, and
        what a run lacks is NA. ``attrs["note"]`` says where the methods of the verdicts differ, or
        one is not known.

    Raises:
        ValueError: an experiment or a kind that does not exist, a limit below 1, or a filter that
            MLflow refuses.
    """
    if kind not in KINDS:
        raise ValueError(
            f"kind: expected one of {', '.join(KINDS)}, but got '{kind}'{did_you_mean(kind, KINDS)}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected a whole number of at least 1, but got {limit}")
    order = [order_by] if isinstance(order_by, str) else list(order_by)
    clause = f"tags.`{Tag.KIND}` = '{kind}'" + (f" AND {where}" if where else "")
    try:
        return _table(_search(experiment, clause, order, limit))
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        query = " ".join([where or "", *order]).strip()
        hint = "" if "`" in query or "/" not in query else \
            "; a name with / stands in backticks, as in metrics.`accuracy/test` > 0.9"
        raise ValueError(f"where, order_by: MLflow refuses {query!r}: "
                         f"{' '.join(error.message.split())}{hint}") from None


def best(
    experiment: str | Sequence[str] | None = None,
    *,
    where: str | None = None,
    by: str = Metric.FLOPS_FORWARD,
) -> pd.Series | None:
    """The smallest variant whose verdict is non-inferior; None where there is none.

    ``attrs["note"]`` says where the methods of the verdicts that it was chosen by differ.

    Args:
        experiment: name or names; every experiment, if None.
        where: MLflow's filter syntax, added.
        by: the metric that is smallest.

    Raises:
        ValueError: as ``runs``; or no such variant has the metric ``by``.
    """
    verdict = f"tags.`{Tag.VERDICT}` = '{Outcome.NON_INFERIOR}'"
    clause = f"{verdict} AND {where}" if where else verdict
    table = runs(experiment, where=clause, order_by=f"metrics.`{by}` ASC")
    if table.empty:
        return None
    if by not in table:  # MLflow puts the runs without it last, so none has it
        raise ValueError(f"by: expected a metric of the variants, but got '{by}'"
                         f"{did_you_mean(by, table.columns)}")
    smallest = table.iloc[0]
    smallest.attrs.update(table.attrs)
    return smallest


def _methods_note(listed: Iterable[Run]) -> str:
    """Where the verdicts of these runs were made by several methods, or by one not known."""
    return methods_note((str(run.info.run_name), run.data.tags.get(Tag.VERDICT_METHOD))
                        for run in listed if Tag.VERDICT in run.data.tags)


def find_run(run_id: str) -> Run:
    """The run with this id, or the one whose id begins with these (at least four) characters.

    Raises:
        ValueError: no such run, or several.
    """
    store = shown_uri()
    if _nothing_there():
        raise ValueError(f"run: no run has the id '{run_id}': there is no {store}")
    client = open_client()
    if not re.fullmatch("[0-9a-f]{4,31}", run_id):
        run = or_none(client.get_run, run_id)
        if run is None:
            raise ValueError(f"run: no run has the id '{run_id}' in {store}; `wua runs` lists them")
        return run
    fitting = pages(client, experiment_ids(client, None),
                    f"attributes.run_id LIKE '{run_id}%'", (), limit=3)
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
    known = _in_order({*metrics[0], *metrics[1]})
    table = pd.DataFrame({name: [values.get(key) for key in known]
                          for name, values in zip(names, metrics, strict=True)},
                         index=pd.Index(known, name="metric"), dtype="Float64")
    above = table.where(table > 0)
    table["ratio"] = above[names[0]] / above[names[1]]
    table.attrs["note"] = _methods_note(pair)
    return table


def show_run(run: str | Run) -> pd.DataFrame:
    """Everything that one run says: a row a name, column ``value``; in the order of ``runs``.

    Raises:
        ValueError: no such run.
    """
    table = _table([run if isinstance(run, Run) else find_run(run)])
    values = pd.DataFrame({"value": table.astype(object).iloc[0]}).rename_axis("name")
    values.attrs.update(table.attrs)
    return values


def _search(
    experiment: str | Sequence[str] | None,
    clause: str,
    order_by: Sequence[str],
    limit: int | None,
) -> list[Run]:
    if _nothing_there():
        if experiment is None:
            return []
        raise ValueError(f"experiment: expected the name of one, but got '{experiment}': there is "
                         f"no {shown_uri()}")
    client = open_client()
    return pages(client, experiment_ids(client, experiment), clause, order_by, limit)


def _nothing_there() -> bool:
    """Whether the store is a SQLite file that nobody has made yet; a search would make it."""
    file = sqlite_file(mlflow.get_tracking_uri())
    return file is not None and not file.exists()


def _table(listed: Sequence[Run]) -> pd.DataFrame:
    rows = [_row(run) for run in listed]
    names = {name for row in rows for name in row} - {*COLUMNS}
    metrics = names & {name for run in listed for name in run.data.metrics}
    tags = {name for name in names - metrics if name.startswith("wua.")}
    columns = [*COLUMNS, *sorted(tags), *sorted(names - metrics - tags), *_in_order(metrics)]
    table = pd.DataFrame(rows, columns=columns)
    for column in table.columns:
        if column in WHOLE or column.endswith(("/weights", "/units")):
            table[column] = _whole(table[column])
        elif column in FRACTIONS:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    table.attrs["note"] = _methods_note(listed)
    return table


def _whole(column: pd.Series) -> pd.Series:
    """As whole numbers, where all of them are; what is no number becomes NA."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    whole = (numbers.dropna() % 1 == 0) & (numbers.dropna().abs() < 2**63)
    return numbers.astype("Int64" if whole.all() else float)


def _row(run: Run) -> dict[str, object]:
    """What the run says; its own fields come last, since a param may be called ``run_id``."""
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("wua.")}
    params = {key: _unquoted(value) for key, value in run.data.params.items()}
    if params.get("hidden") is None and Tag.WIDTHS in tags:
        params["hidden"] = tags[Tag.WIDTHS]
    info = (run.info.run_id, run.info.run_name, run.info.status,
            pd.to_datetime(run.info.start_time, unit="ms", utc=True))
    return {**params, **tags, **run.data.metrics, **dict(zip(COLUMNS, info, strict=True))}


def _unquoted(value: str) -> str | None:
    """A param as it was given: ``mlflow run`` logs it quoted for the shell, and '' where empty."""
    if len(value) > 1 and value[0] == value[-1] == "'":
        value = value[1:-1].replace("'\"'\"'", "'")
    return None if value in UNSET else value


def _in_order(metrics: Iterable[str]) -> list[str]:
    return sorted(metrics, key=lambda name: (ORDER.get(name, len(ORDER)), name))


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
    judged = pages(client, [entry.experiment_id for entry in experiments], clause, (), None)
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
    earlier = [other for other in pages(client, experiments, clause, (), None)
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
