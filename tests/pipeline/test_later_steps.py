"""Steps on runs that exist: what they refuse, what they leave as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.pipeline import analyze, workflow
from wua_mlflow.pipeline.analyze import measured
from wua_mlflow.tracking.store import connect

QUICK = {"seeds": 1, "null_draws": 1, "epochs": 2, "slim_epochs": 3}


@pytest.fixture
def done(store_uri: str) -> tuple:
    """A store and the outcome of a pipeline in the experiment ``first``."""
    store = connect("first")
    return store, workflow.run_pipeline(store, load_settings(None, QUICK))


def _given(**values: object) -> Settings:
    return load_settings(None, values)


def _run(store, run_id):
    return store.client.get_run(run_id)


def test_only_a_slim_variant_gets_a_verdict(done: tuple) -> None:
    store, outcome = done
    original, control, _ = outcome.variants
    for variant in (original, control):
        with pytest.raises(ValueError, match=f"expected the run of a slim variant, but "
                                             f"{variant.run_id} is {variant.name}"):
            workflow.compare_run(store, _given(run_id=variant.run_id))
        assert "wua.verdict" not in _run(store, variant.run_id).data.tags


def test_a_slim_variant_is_derived_from_an_original_alone(done: tuple) -> None:
    """Else margins would add up: each verdict is against the original."""
    store, outcome = done
    slim = outcome.variants[-1]
    with pytest.raises(ValueError, match="expected the run of an original"):
        workflow.slim_run(store, _given(run_id=slim.run_id, slim_hidden="3"))


def test_a_later_slim_variant_reuses_the_control_and_takes_over_the_pipeline(done: tuple) -> None:
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


def test_steps_stay_in_the_experiment_of_their_run(done: tuple) -> None:
    store, outcome = done
    elsewhere = connect("second")
    slim = workflow.slim_run(elsewhere, _given(
        run_id=outcome.variants[0].run_id, slim_hidden="4")).variants[-1]
    assert _run(store, slim.run_id).info.experiment_id == store.experiment_id


def test_another_criterion_needs_its_own_null(done: tuple) -> None:
    store, outcome = done
    run_id = outcome.variants[0].run_id
    with pytest.raises(ValueError, match="null_draws: expected at least 1"):
        workflow.analyze_run(store, _given(run_id=run_id, criterion="magnitude", null_draws=0))
    workflow.analyze_run(store, _given(run_id=run_id, criterion="magnitude", null_draws=1))
    assert _run(store, run_id).data.tags["wua.criterion"] == "magnitude"


def test_a_null_is_not_kept_beside_a_criterion_that_has_none(
    done: tuple, monkeypatch: pytest.MonkeyPatch
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
    done: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, outcome = done
    slim = outcome.variants[-1].run_id
    step = store.client.create_run(store.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", step)
    workflow.analyze_run(store, _given(run_id=slim[:12]))
    assert _run(store, step).data.tags["wua.target_run"] == slim


def test_early_stopping_is_said(store_uri: str) -> None:
    store = connect("first")
    outcome = workflow.run_pipeline(store, load_settings(None, {
        **QUICK, "epochs": 30, "slim_epochs": 40, "patience": 1, "lr": 0.5}))
    original, _, slim = outcome.variants
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
