"""MLflow's model registry: a slim model goes in only where it was shown to be as good.

Tests: ``tests/tracking/test_registry.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from wua_mlflow import __version__
from wua_mlflow.tracking.names import Metric, Outcome, Tag, Variant
from wua_mlflow.tracking.store import or_none

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from wua_mlflow.verdict.compare import Verdict

__all__ = ["Registration", "check_name", "register"]


ALIAS = Variant.SLIM
LONGEST_NAME = 256
FORBIDDEN = "/:?"
"""The first two are MLflow's own; a name with ``?`` is taken, but no ``models:/`` URI finds it."""
ATTEMPTS = 5
"""To set an alias: of several processes that make it at once, the store refuses all but one."""


@dataclass(frozen=True)
class Registration:
    """What came of asking for a registration.

    Attributes:
        name: the registered model's.
        version: its version that is the slim model; None where it was not registered.
        alias: what that version can be called by: ``models:/name@alias``; None where it has none.
        sentence: all of this for a reader, and why not.
    """

    name: str
    version: str | None
    alias: str | None
    sentence: str


def check_name(name: str) -> None:
    """Whether MLflow's registry takes the name, and a ``models:/`` URI finds it.

    Raises:
        ValueError: it does not.

    >>> check_name("digits classifier")
    >>> check_name("team/digits")
    Traceback (most recent call last):
    ValueError: register: expected a name without any of / : ?, but got 'team/digits'
    """
    if not name.strip():
        expected = "the name of a registered model"
    elif any(character in name for character in FORBIDDEN):
        expected = f"a name without any of {' '.join(FORBIDDEN)}"
    elif name == "." or name.startswith("..") or not name.isprintable():
        expected = "a name in one line that is no path such as . or .."
    elif len(name) > LONGEST_NAME:
        raise ValueError(f"register: expected a name of at most {LONGEST_NAME} characters, but "
                         f"got {len(name)}")
    else:
        return
    raise ValueError(f"register: expected {expected}, but got {name!r}")


def register(
    client: MlflowClient, name: str, *, run_id: str, verdict: Verdict, comparison_run_id: str,
    description: str = "",
) -> Registration:
    """Register a slim variant's model, if its artifact verdict is ``non_inferior``.

    Its version gets the verdict and the comparison's run as tags, and the alias ``slim``, which
    moves only from a version that was registered here; no other alias is touched. Registering the
    same model again under that name renews the tags of its version. Safe in several processes at
    once: each gets a version, and the alias is with one of them.

    Args:
        client: MLflow's.
        name: of the registered model; made if absent.
        run_id: the slim variant's run.
        verdict: of these two models, not of the recipes.
        comparison_run_id: the run that holds the comparison.
        description: of the version, in markdown: its verdict and what it saves.

    Raises:
        ValueError: the name is refused, or is a prompt's, or the verdict is a recipe's.
    """
    check_name(name)
    if verdict.kind != "artifact":
        raise ValueError(f"verdict: expected the artifact's, since it is this model that is "
                         f"registered, but got the {verdict.kind}'s")
    if verdict.outcome != Outcome.NON_INFERIOR:
        return _refused(name, f"its artifact verdict is {verdict.outcome}, not "
                              f"{Outcome.NON_INFERIOR}")
    model = _saved_model(client, run_id)
    if model is None:
        why = client.get_run(run_id).data.tags.get(Tag.UNEXPORTED, "")
        return _refused(name, f"run {run_id} holds no model that MLflow can serve"
                              f"{why and f' ({why})'}")
    _make(client, name)
    version = _version(client, name, model, _tags(verdict, comparison_run_id), description)
    keeper = _move_alias(client, name, version)
    if keeper:
        return Registration(name, version, None, f"Registered as {name!r} version {version}; the "
                            f"alias {ALIAS} stays at version {keeper}, which somebody else "
                            f"registered.")
    return Registration(name, version, ALIAS,
                        f"Registered as {name!r} version {version}, alias {ALIAS}.")


def _refused(name: str, reason: str) -> Registration:
    return Registration(name, None, None, f"Not registered as {name!r}: {reason}.")


def _tags(verdict: Verdict, comparison_run_id: str) -> dict[str, str]:
    figures = {
        Metric.ARTIFACT_DELTA: verdict.delta,
        Metric.ARTIFACT_LOW: verdict.low,
        Metric.ARTIFACT_HIGH: verdict.high,
        Metric.MARGIN: verdict.margin,
        Tag.CONFIDENCE: verdict.confidence,
    }
    return {
        Tag.COMPARISON: comparison_run_id,
        Tag.VERDICT_ARTIFACT: verdict.outcome,
        Tag.SENTENCE: verdict.sentence,
        Tag.VERSION: __version__,
        **{key: repr(float(value)) for key, value in figures.items()},
    }


def _saved_model(client: MlflowClient, run_id: str) -> LoggedModel | None:
    """The model that the run gave last, if it is all there."""
    outputs = client.get_run(run_id).outputs
    if not outputs or not outputs.model_outputs:
        return None
    model = client.get_logged_model(outputs.model_outputs[-1].model_id)
    return model if model.status == LoggedModelStatus.READY else None


def _make(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
        if "prompt" in error.message:
            raise ValueError(f"register: expected the name of a registered model, but {name!r} "
                             f"is a prompt's") from None


def _version(
    client: MlflowClient, name: str, model: LoggedModel, tags: dict[str, str], description: str
) -> str:
    """The model's version under ``name``: that which it has already, or a new one."""
    for link in reversed(_links(model)):
        number = str(link["version"])
        if link["name"] == name and _is_ours(client, name, number):
            for key, value in tags.items():
                client.set_model_version_tag(name, number, key, value)
            client.update_model_version(name, number, description)
            return number
    version = client.create_model_version(name, f"models:/{model.model_id}", model.source_run_id,
                                          tags=tags, description=description,
                                          model_id=model.model_id, await_creation_for=0)
    number = str(version.version)
    links = _links(client.get_logged_model(model.model_id))
    if (name, number) not in [(link["name"], str(link["version"])) for link in links]:
        # a server has linked the two by itself; without one it falls to the client
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(
            [*links, {"name": name, "version": version.version}])})
    return number


def _links(model: LoggedModel) -> list[dict[str, Any]]:
    """The names and versions under which MLflow has registered the model."""
    links: list[dict[str, Any]] = json.loads(model.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
    return links


def _move_alias(client: MlflowClient, name: str, version: str) -> str | None:
    """Set the alias; or the version that keeps it, since it was not registered here."""
    for attempt in range(ATTEMPTS):
        holder = client.get_registered_model(name).aliases.get(ALIAS)
        if holder is not None and not _is_ours(client, name, str(holder)):
            return str(holder)
        try:
            client.set_registered_model_alias(name, ALIAS, version)
            return None
        except MlflowException as error:
            if attempt == ATTEMPTS - 1 or error.error_code != "BAD_REQUEST":
                raise
    return None


def _is_ours(client: MlflowClient, name: str, number: str) -> bool:
    version = or_none(partial(client.get_model_version, name), number)
    return version is not None and Tag.COMPARISON in version.tags
