"""Single steps: train, analyze, slim and compare on runs that exist; what they refuse and keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow.entities import Run
from torch.utils.data import DataLoader

from tests.pipeline.slimming_cases import store_at, without_pictures
from wua_mlflow.config import Settings, load_settings
from wua_mlflow.pipeline import analyze, workflow
from wua_mlflow.pipeline.analyze import measured
from wua_mlflow.pipeline.recipe import load_recipe, train_one
from wua_mlflow.pipeline.workflow import SlimmingResult
from wua_mlflow.tracking.runs import count_looks
from wua_mlflow.tracking.store import Store, connect

QUICK = {"seeds": 1, "null_draws": 1}
Done = tuple[Store, SlimmingResult]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Done]:
    """A short pipeline of the tutorial, and its store."""
    with store_at(tmp_path_factory.mktemp("steps"), migrated_database) as store:
        settings = load_settings(None, {**QUICK, "epochs": 2, "slim_epochs": 3})
        yield store, workflow.run_pipeline(store, settings)


def test_steps_days_apart_give_the_tutorials_figures(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``slim`` goes on from the random stream that ``train`` kept, whatever was drawn since."""
    without_pictures(monkeypatch)
    store = connect("steps")
    settings = load_settings(None, QUICK)
    original = workflow.train_run(store, settings)
    torch.manual_seed(0)
    torch.rand(1000)
    named = load_settings(None, {"run_id": original.run_id})
    found = workflow.analyze_run(store, named)
    assert found.run_id == original.run_id
    assert f"{found.usage.layers['fc1'].effective_weights:.4f}" == "15.7751"
    _, control, slim = workflow.slim_run(store, named).variants
    assert (control.variant, slim.name) == ("oversized-same-budget", "slim 7")
    assert f"{slim.metrics['accuracy/train']:.4f}" == "0.8730"
    old, new, comparison = workflow.compare_run(
        store, load_settings(None, {"run_id": slim.run_id, "margin": 0.05}))
    assert (old.run_id, new.run_id) == (original.run_id, slim.run_id)
    assert comparison.recipe is None
    run = store.client.get_run(slim.run_id)
    assert run.data.tags["wua.verdict"] == comparison.artifact.outcome
    assert run.data.metrics["compare/margin"] == 0.05
    before = comparison.looks
    for margin, more in ((0.05, 0), (0.2, 1), (0.2, 1)):  # another margin is another look
        comparison = workflow.compare_run(store, load_settings(
            None, {"run_id": slim.run_id, "margin": margin}))[2]
        assert comparison.looks == before + more
        assert count_looks(store.client, str(run.data.tags["wua.test_digest"])) == before + more
    assert run.data.tags["wua.baseline"] == original.run_id
    assert {run.info.status for run in store.client.search_runs([store.experiment_id])} == {
        "FINISHED"}


@pytest.mark.parametrize(("stray", "accuracy"), [
    (lambda: None, "0.8730"),
    (lambda: torch.randn(1), "0.9120"),
    (lambda: list(DataLoader([1, 2])), "0.9460"),
    (lambda: torch.manual_seed(42), "0.9220"),
], ids=["the tutorial's", "a stray draw", "a pass over a loader", "seeded again"])
def test_the_slim_accuracy_hangs_on_the_random_stream(
    stray: Callable[[], object], accuracy: str
) -> None:
    """The tutorial's 0.8730, and what anything between the two trainings makes of it."""
    recipe = load_recipe(load_settings(None, QUICK))
    original = train_one(recipe, (10,), 50, seed=42)
    with torch.random.fork_rng():
        torch.set_rng_state(original.stream["cpu"])
        stray()
        stream = {"cpu": torch.get_rng_state()}
    slim = train_one(recipe, (7,), 60, seed=42, stream=stream)
    found = recipe.evaluate(slim.model, recipe.split.train, slim.kind)
    assert f"{found.score:.4f}" == accuracy


def _given(**values: object) -> Settings:
    return load_settings(None, values)


def _run(store: Store, run_id: str | None) -> Run:
    return store.client.get_run(str(run_id))


def test_only_a_slim_variant_gets_a_verdict(done: Done) -> None:
    store, outcome = done
    original, control, _ = outcome.variants
    for variant in (original, control):
        with pytest.raises(ValueError, match=f"expected the run of a slim variant, but "
                                             f"{variant.run_id} is {variant.name}"):
            workflow.compare_run(store, _given(run_id=variant.run_id))
        assert "wua.verdict" not in _run(store, variant.run_id).data.tags


def test_a_slim_variant_is_derived_from_an_original_alone(done: Done) -> None:
    """Else margins would add up: each verdict is against the original."""
    store, outcome = done
    slim = outcome.variants[-1]
    with pytest.raises(ValueError, match="expected the run of an original"):
        workflow.slim_run(store, _given(run_id=slim.run_id, slim_hidden="3"))


def test_a_later_slim_variant_reuses_the_control_and_takes_over_the_pipeline(done: Done) -> None:
    store, outcome = done
    original, control, first = outcome.variants
    before = _run(store, original.run_id).data
    _, again, second = workflow.slim_run(
        store, _given(run_id=original.run_id, slim_hidden="5")).variants
    assert again.run_id == control.run_id
    assert second.name == "slim 5"
    workflow.compare_run(store, _given(run_id=second.run_id))
    pipeline = _run(store, outcome.run_id)
    assert pipeline.info.run_name == "usecase 10 → 5"
    note = pipeline.data.tags["mlflow.note.content"]
    assert control.name in note
    assert "Budgets differ: the original trained for 2 epochs, the slim one for 3 epochs." in note
    history = store.client.get_metric_history(original.run_id, "latency/p50_ms")
    assert [point.value for point in history] == [before.metrics["latency/p50_ms"]]
    workflow.compare_run(store, _given(run_id=first.run_id))
    assert _run(store, outcome.run_id).info.run_name == "usecase 10 → 5", "an older slim variant"


def test_steps_stay_in_the_experiment_of_their_run(done: Done) -> None:
    store, outcome = done
    elsewhere = connect("second")
    slim = workflow.slim_run(elsewhere, _given(
        run_id=outcome.variants[0].run_id, slim_hidden="4")).variants[-1]
    assert _run(store, slim.run_id).info.experiment_id == store.experiment_id


def test_another_criterion_needs_its_own_null(done: Done) -> None:
    store, outcome = done
    run_id = outcome.variants[0].run_id
    with pytest.raises(ValueError, match="null_draws: expected at least 1"):
        workflow.analyze_run(store, _given(run_id=run_id, criterion="magnitude", null_draws=0))
    workflow.analyze_run(store, _given(run_id=run_id, criterion="magnitude", null_draws=1))
    assert _run(store, run_id).data.tags["wua.criterion"] == "magnitude"


def test_a_null_is_not_kept_beside_a_criterion_that_has_none(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, outcome = done
    run_id = outcome.variants[0].run_id
    held = _run(store, run_id).data.tags["wua.criterion"]
    other = "magnitude" if held == "wanda" else "wanda"
    monkeypatch.setattr(analyze, "measured", lambda *args, **options: {
        name: replace(usage, null=None) for name, usage in measured(*args, **options).items()})
    with pytest.raises(ValueError, match=f"criterion: .* holds the null of {held} and has none "
                                         f"under {other}; "):
        workflow.analyze_run(store, _given(run_id=run_id, criterion=other, null_draws=1))
    assert _run(store, run_id).data.tags["wua.criterion"] == held


def test_a_step_points_to_the_whole_id_of_its_variant(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, outcome = done
    slim = outcome.variants[-1].run_id
    step = store.client.create_run(store.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", step)
    workflow.analyze_run(store, _given(run_id=slim[:12]))
    assert _run(store, step).data.tags["wua.target_run"] == slim


def test_equal_budgets_need_no_control_and_the_same_test_set_is_another_look(done: Done) -> None:
    store, outcome = done
    digest = str(_run(store, outcome.variants[0].run_id).data.tags["wua.test_digest"])
    before = count_looks(store.client, digest)
    equal = {**QUICK, "epochs": 1, "slim_epochs": 1, "null_draws": 0}
    again = workflow.run_pipeline(store, load_settings(None, equal))
    assert [variant.variant for variant in again.variants] == ["oversized", "slim"]
    assert again.report.comparison.looks == before + 1 >= 2
    assert "Budgets differ" not in again.report.comparison.budget
    note = _run(store, again.run_id).data.tags["mlflow.note.content"]
    assert "No recipe verdict: it needs at least 5 seeds" in note
    other = load_recipe(load_settings(None, {**equal, "seed": 7})).split.test.digest
    assert other != digest and count_looks(store.client, other) == 0


@pytest.mark.parametrize(("widths", "message"), [
    ("7,3", r"slim_hidden: expected 1 widths, as the original has \(10\), but got 2 \(7,3\)"),
    ("11", r"slim_hidden: expected widths of at most the original's \(10\), but got 11"),
    ("10", r"slim_hidden: expected at least one width below the original's \(10\), but got 10"),
])
def test_given_widths_are_checked_against_the_original(
    done: Done, widths: str, message: str
) -> None:
    store, outcome = done
    with pytest.raises(ValueError, match=f"^{message}$"):
        workflow.slim_run(store, _given(run_id=outcome.variants[0].run_id, slim_hidden=widths))


def test_a_step_keeps_the_runs_settings_unless_told_otherwise(done: Done) -> None:
    store, _ = done
    original = workflow.train_run(
        store, load_settings(None, {**QUICK, "epochs": 1, "criterion": "magnitude"}))
    assert workflow.analyze_run(
        store, _given(run_id=original.run_id)).usage.criterion == "magnitude"
    assert workflow.analyze_run(
        store, _given(run_id=original.run_id, criterion="output")).usage.criterion == "output"


def test_early_stopping_is_said(done: Done) -> None:
    store, _ = done
    settings = load_settings(None, {
        **QUICK, "epochs": 30, "slim_epochs": 40, "patience": 1, "lr": 0.5, "null_draws": 0})
    outcome = workflow.run_pipeline(store, settings)
    original, *_ = outcome.variants
    assert original.epochs_trained < 30
    metrics = _run(store, original.run_id).data
    assert len(store.client.get_metric_history(original.run_id, "loss/train")) \
        == original.epochs_trained
    assert metrics.tags["wua.epochs_trained"] == str(original.epochs_trained)
    assert f"at most 30 epochs (stopped after {original.epochs_trained})" in \
        outcome.report.comparison.budget
    forward, backward = 60, 80
    assert metrics.metrics["flops/training"] == \
        (forward + backward) * 1000 * original.epochs_trained
