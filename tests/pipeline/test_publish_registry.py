"""The registry at the end of slimming: only where the artifact's verdict allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from tests.pipeline.slimming_cases import judging, settings_of, store_at, tags_of, with_exports
from wua_mlflow.pipeline import slim as slim_module
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.publish import nothing_to_register, registered
from wua_mlflow.pipeline.workflow import SlimmingResult, run_pipeline
from wua_mlflow.results import Round
from wua_mlflow.tracking.store import Store
from wua_mlflow.verdict.compare import Verdict

NAME = "blobs"


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> Iterator[tuple[Store, SlimmingResult]]:
    """A pipeline to be registered from; its artifact's verdict is non_inferior."""
    with store_at(tmp_path_factory.mktemp("registering"), migrated_database) as found:
        with pytest.MonkeyPatch.context() as patch:
            with_exports(patch)
            patch.setattr(slim_module, "compare_variants", judging(["non_inferior"], []))
            outcome = run_pipeline(found, settings_of(slim_hidden="4", register=NAME))
        yield found, outcome


def judged(result: Round, change: Callable[[Verdict], Verdict]) -> Round:
    comparison = result.comparison
    return replace(result, comparison=replace(comparison, artifact=change(comparison.artifact)))


def test_a_slim_model_that_is_as_good_is_registered(ran: tuple[Store, SlimmingResult]) -> None:
    store, outcome = ran
    slim = outcome.variants[-1]
    assert outcome.registered == f"Registered as '{NAME}' version 1, alias slim."
    assert tags_of(store, slim.run_id)["wua.registered"] == outcome.registered
    assert tags_of(store, outcome.run_id)["wua.registered"] == outcome.registered
    version = store.client.get_model_version_by_alias(NAME, "slim")
    assert (str(version.version), version.run_id) == ("1", slim.run_id)
    assert version.tags["wua.verdict.artifact"] == "non_inferior"
    assert version.tags["wua.comparison"] == slim.run_id
    assert tags_of(store, version.tags["wua.comparison"])["wua.verdict.artifact"]
    model = mlflow.pytorch.load_model(f"models:/{NAME}@slim")
    inputs = slim.recipe.split.test.inputs
    assert torch.allclose(model(inputs), slim.model(inputs), atol=1e-6)


@pytest.mark.parametrize("outcome", ["inferior", "inconclusive"])
def test_else_it_is_not_and_it_says_why(ran: tuple[Store, SlimmingResult], outcome: str) -> None:
    """Also where the recipe's verdict would allow it: it is this model that would be served."""
    store, found = ran
    result = found.slimmed.result
    good = replace(result.comparison.artifact, kind="recipe", outcome="non_inferior")
    result = judged(result, lambda verdict: replace(verdict, outcome=outcome))
    result = replace(result, comparison=replace(result.comparison, recipe=good))
    line = registered(store, result, settings_of(register="other"))
    assert line == (f"Not registered as 'other': its artifact verdict is {outcome}, not "
                    f"non_inferior.")
    assert tags_of(store, result.variant.run_id)["wua.registered"] == line
    assert tags_of(store, found.run_id)["wua.registered"] == line
    assert "other" not in [one.name for one in store.client.search_registered_models()]


def test_the_originals_alias_is_never_taken(ran: tuple[Store, SlimmingResult]) -> None:
    """Somebody's version has every alias there is; the slim one gets a version and none of them."""
    store, found = ran
    original, result = found.variants[0], found.slimmed.result
    (output,) = store.client.get_run(original.run_id).outputs.model_outputs
    store.client.create_registered_model("theirs")
    store.client.create_model_version("theirs", f"models:/{output.model_id}", original.run_id,
                                      model_id=output.model_id)
    for alias in ("champion", "slim"):
        store.client.set_registered_model_alias("theirs", alias, "1")
    line = registered(store, result, settings_of(register="theirs"))
    assert line == ("Registered as 'theirs' version 2; the alias slim stays at version 1, which "
                    "somebody else registered.")
    aliases = store.client.get_registered_model("theirs").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {
        "champion": "1", "slim": "1"}


def test_where_there_is_no_slim_model_it_says_so() -> None:
    assert nothing_to_register(settings_of(register=NAME)) == (
        f"Not registered as '{NAME}': there is no slim model.")
    assert nothing_to_register(settings_of()) == ""


def test_nothing_is_registered_unasked(ran: tuple[Store, SlimmingResult]) -> None:
    store, found = ran
    before = tags_of(store, found.variants[-1].run_id)
    assert registered(store, found.slimmed.result, settings_of()) == ""
    assert tags_of(store, found.variants[-1].run_id) == before


def test_the_result_is_what_is_registered_not_the_last_round(
    ran: tuple[Store, SlimmingResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, found = ran
    asked = []
    first = found.slimmed.result
    worse = judged(first, lambda verdict: replace(verdict, outcome="inferior"))
    both = replace(found.slimmed, rounds=(first, worse))
    monkeypatch.setattr(workflow, "registered", lambda _, result, __: asked.append(result) or "")
    monkeypatch.setattr(workflow, "slim_variant", lambda *_, **__: (both, found.networks))
    run_pipeline(store, settings_of(slim_hidden="4", epochs=1))
    assert asked == [first]
