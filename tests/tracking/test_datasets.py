"""Data sets as a run's inputs, read back from a real store."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wua_mlflow.tracking.log import dataset_inputs
from wua_mlflow.tracking.store import connect, ended, new_run

DIGEST = "0123456789abcdef" * 4


def _held(parts, *, name="digits", source="sklearn.datasets.load_digits"):
    """The inputs of a run, by their context."""
    store = connect("data")
    run_id = new_run(store, "run", {})
    with ended(store, run_id):
        store.client.log_inputs(run_id, datasets=dataset_inputs(name, source, parts))
    held = store.client.get_run(run_id).inputs.dataset_inputs
    return {tag.value: entry.dataset for entry in held for tag in entry.tags
            if tag.key == "mlflow.data.context"}


def _part(context, rows, digest=DIGEST):
    return context, np.zeros((rows, 1, 8, 8), np.float32), np.zeros(rows, np.int64), digest


def test_three_parts_with_names_digests_and_shapes(store_uri):
    held = _held([_part("train", 6), _part("validation", 2, "f" * 64), _part("test", 3)])
    assert {context: data.name for context, data in held.items()} == {
        "train": "digits train", "validation": "digits validation", "test": "digits test"}
    assert held["train"].digest == "0123456789ab" and held["validation"].digest == "f" * 12
    schema = json.loads(held["train"].schema)["mlflow_tensorspec"]
    features, targets = json.loads(schema["features"]), json.loads(schema["targets"])
    assert features[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
    assert targets[0]["tensor-spec"] == {"dtype": "int64", "shape": [-1]}
    assert [json.loads(held[part].profile)["features_shape"][0] for part in held] == [6, 2, 3]


@pytest.mark.parametrize("source", ["sklearn.datasets.load_digits", "my_data:load", "x" * 5000])
def test_words_for_the_source_are_kept(store_uri, source):
    held = _held([_part("train", 3)], source=source)["train"]
    assert held.source_type == "code"
    assert json.loads(held.source) == {"tags": {"mlflow.source.name": source}}


def test_a_file_is_the_source(store_uri, tmp_path):
    file = tmp_path / "my data.csv"
    file.write_text("x,y\n1,2\n")
    held = _held([_part("train", 3)], name="my data", source=str(file))["train"]
    assert (held.source_type, json.loads(held.source)) == ("local", {"uri": str(file)})


def test_the_same_data_are_the_same_data_set(store_uri):
    first, second = (_held([_part("train", 3)])["train"] for _ in range(2))
    assert (first.name, first.digest) == (second.name, second.digest)
