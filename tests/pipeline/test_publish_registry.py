"""The registry at the end of slimming: only where the artifact's verdict allows it."""

from dataclasses import replace

import mlflow
import pytest
import torch

from tests.pipeline.slimming_cases import judging, settings_of, store_at, tags_of, with_exports
from wua_mlflow.pipeline import slim as slim_module
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.publish import link_models, registered
from wua_mlflow.pipeline.workflow import run_pipeline

NAME = "blobs"


@pytest.fixture(scope="module")
def ran(tmp_path_factory, migrated_database):
    """A pipeline to be registered from; its artifact's verdict is non_inferior."""
    with store_at(tmp_path_factory.mktemp("registering"), migrated_database) as store:
        with pytest.MonkeyPatch.context() as patch:
            with_exports(patch)
            patch.setattr(slim_module, "compare_variants", judging(["non_inferior"], []))
            outcome = run_pipeline(store, settings_of(slim_hidden="4", register=NAME))
        yield store, outcome


def test_a_slim_model_that_is_as_good_is_registered(ran):
    store, outcome = ran
    slim = outcome.variants[-1]
    assert outcome.registered == f"Registered as '{NAME}' version 1, alias slim."
    assert tags_of(store, slim.run_id)["wua.registered"] == outcome.registered
    assert tags_of(store, outcome.run_id)["wua.registered"] == outcome.registered
    version = store.client.get_model_version_by_alias(NAME, "slim")
    assert (str(version.version), version.run_id) == ("1", slim.run_id)
    assert version.tags["wua.verdict.artifact"] == "non_inferior"
    assert version.tags["wua.comparison"] == slim.run_id
    described = tags_of(store, slim.run_id)["mlflow.note.content"]
    assert version.description.strip() == described.strip()
    assert described.startswith(f"**{outcome.report.decision}**")
    assert "| FLOPs" in described.replace("*", "")
    assert tags_of(store, version.tags["wua.comparison"])["wua.verdict.artifact"]
    model = mlflow.pytorch.load_model(f"models:/{NAME}@slim")
    inputs = slim.recipe.split.test.inputs
    assert torch.allclose(model(inputs), slim.model(inputs), atol=1e-6)


def test_the_pipeline_has_the_data_as_inputs_and_the_models_as_outputs(ran):
    store, outcome = ran
    pipeline = store.client.get_run(outcome.run_id)
    variants = [store.client.get_run(variant.run_id) for variant in outcome.variants]
    data, of_variant = ({each.dataset.name for each in run.inputs.dataset_inputs}
                        for run in (pipeline, variants[0]))
    assert data == of_variant and len(data) == 3
    models = [output.model_id for run in variants for output in run.outputs.model_outputs]
    assert sorted(each.model_id for each in pipeline.outputs.model_outputs) == sorted(models)
    assert len(set(models)) == len(variants) == 2
    link_models(store, outcome.run_id, models)
    again = store.client.get_run(outcome.run_id).outputs.model_outputs
    assert sorted(each.model_id for each in again) == sorted(models), "each once"
    assert {model.source_run_id for model in map(store.client.get_logged_model, models)} == {
        run.info.run_id for run in variants}


def test_else_it_is_not_and_it_says_why(ran):
    """Also where the recipe's verdict would allow it: it is this model that would be served."""
    store, pipeline = ran
    comparison = pipeline.slimmed.result.comparison
    good = replace(comparison.artifact, kind="recipe", outcome="non_inferior")
    for outcome in ("inferior", "inconclusive"):
        result = replace(pipeline.slimmed.result, comparison=replace(
            comparison, recipe=good, artifact=replace(comparison.artifact, outcome=outcome)))
        judged = replace(pipeline.slimmed, rounds=(result,))
        line = registered(store, judged, settings_of(register="other"))
        assert line == (f"Not registered as 'other': its artifact verdict is {outcome}, not "
                        f"non_inferior.")
        assert tags_of(store, result.variant.run_id)["wua.registered"] == line
        assert tags_of(store, pipeline.run_id)["wua.registered"] == line
    assert registered(store, pipeline.slimmed, settings_of()) == ""
    assert tags_of(store, pipeline.variants[-1].run_id)["wua.registered"] == line
    nothing = replace(pipeline.slimmed, rounds=())
    assert registered(store, nothing, settings_of(register=NAME)) == (
        f"Not registered as '{NAME}': there is no slim model.")
    assert "other" not in [model.name for model in store.client.search_registered_models()]


def test_the_originals_alias_is_never_taken(ran):
    """Somebody's version has every alias there is; the slim one gets a version and none of them."""
    store, pipeline = ran
    original = pipeline.variants[0]
    (output,) = store.client.get_run(original.run_id).outputs.model_outputs
    store.client.create_registered_model("theirs")
    store.client.create_model_version("theirs", f"models:/{output.model_id}", original.run_id,
                                      model_id=output.model_id)
    for alias in ("champion", "slim"):
        store.client.set_registered_model_alias("theirs", alias, "1")
    assert registered(store, pipeline.slimmed, settings_of(register="theirs")) == (
        "Registered as 'theirs' version 2; the alias slim stays at version 1, which somebody else "
        "registered.")
    aliases = store.client.get_registered_model("theirs").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {
        "champion": "1", "slim": "1"}


def test_the_result_is_what_is_registered_not_the_last_round(ran, monkeypatch):
    store, pipeline = ran
    results = []
    first = pipeline.slimmed.result
    artifact = replace(first.comparison.artifact, outcome="inferior")
    worse = replace(first, comparison=replace(first.comparison, artifact=artifact))
    both = replace(pipeline.slimmed, rounds=(first, worse))
    monkeypatch.setattr(workflow, "registered",
                        lambda _, slimmed, __: results.append(slimmed.result) or "")
    monkeypatch.setattr(workflow, "slim_variant", lambda *_, **__: (both, pipeline.networks))
    run_pipeline(store, settings_of(slim_hidden="4", epochs=1))
    assert results == [first]
