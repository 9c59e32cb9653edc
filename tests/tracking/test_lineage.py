"""Controls are found by tags, newest first; a result by the pipeline's own."""

from __future__ import annotations

from wua_mlflow.tracking.runs import controls_of, find_control, result_of
from wua_mlflow.tracking.store import connect, new_run


def _made(store, variant, *, epochs="5", train="done", **tags):
    run_id = new_run(store, variant, {"wua.kind": "variant", "wua.variant": variant,
                                      "wua.step.train": train,
                                      **{f"wua.{k}": v for k, v in tags.items()}})
    store.client.log_param(run_id, "epochs", epochs)
    store.client.set_terminated(run_id)
    return run_id


def test_a_control_has_the_same_original_the_same_budget_and_is_trained(store_uri):
    store = connect("lineage")
    control = "oversized-same-budget"
    _made(store, control, baseline="b", epochs="5")
    _made(store, control, baseline="a", epochs="6")
    _made(store, control, baseline="a", epochs="5", train="failed")
    _made(store, "slim", baseline="a", epochs="5")
    assert find_control(store.client, store.experiment_id, "a", 5) is None
    right = _made(store, control, baseline="a", epochs="5")
    assert find_control(store.client, store.experiment_id, "a", 5) == right


def test_the_controls_of_a_slim_one_are_those_that_it_notes(store_uri):
    store = connect("lineage")
    first, second = (_made(store, "oversized-same-budget", baseline="a") for _ in range(2))
    slim = _made(store, "slim", baseline="a", controls=f"{first},{second}")
    assert controls_of(store.client, store.experiment_id, slim) == [first, second]
    store.client.delete_run(first)
    assert controls_of(store.client, store.experiment_id, slim) == [second]
    gone = _made(store, "slim", baseline="a", controls=f"{'0' * 32},{second}")
    assert controls_of(store.client, store.experiment_id, gone) == [second]
    older = _made(store, "slim", baseline="a")
    assert controls_of(store.client, store.experiment_id, older) == [second]
    alone = _made(store, "slim", baseline="b")
    assert controls_of(store.client, store.experiment_id, alone) == []


def test_the_result_of_a_pipeline_is_what_its_own_run_says(store_uri):
    store = connect("lineage")
    pipeline = new_run(store, "pipeline", {"wua.kind": "pipeline"})
    assert result_of(store.client, pipeline) is None
    store.client.set_tag(pipeline, "wua.result", "r")
    assert result_of(store.client, pipeline) == "r"
    store.client.set_terminated(pipeline)
