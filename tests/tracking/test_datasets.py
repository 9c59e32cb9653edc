"""Data sets as a run's inputs, read back from a real store."""

import json

import numpy as np

from wua_mlflow.tracking.log import dataset_inputs
from wua_mlflow.tracking.store import connect, ended, new_run


def _stored(source, **rows):
    """The inputs of a run, by their context; the digest tells how many rows there are."""
    parts = [(context, np.zeros((number, 1, 8, 8), np.float32), np.zeros(number, np.int64),
              f"{number}abcdef" * 9)
             for context, number in rows.items()]
    store = connect("data")
    with ended(store, new_run(store, "run", {})) as run_id:
        store.client.log_inputs(run_id, datasets=dataset_inputs("digits", source, parts))
    return {tag.value: entry.dataset
            for entry in store.client.get_run(run_id).inputs.dataset_inputs
            for tag in entry.tags if tag.key == "mlflow.data.context"}


def test_three_parts_with_names_digests_and_shapes_whose_source_is_words_or_a_file(
        store_uri, tmp_path):
    stored = _stored("sklearn.datasets.load_digits", train=6, validation=2, test=3)
    assert {context: data.name for context, data in stored.items()} == {
        "train": "digits train", "validation": "digits validation", "test": "digits test"}
    assert stored["train"].digest == "6abcdef6abcd"
    schema = json.loads(stored["train"].schema)["mlflow_tensorspec"]
    features, targets = json.loads(schema["features"]), json.loads(schema["targets"])
    assert features[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
    assert targets[0]["tensor-spec"] == {"dtype": "int64", "shape": [-1]}
    assert [json.loads(data.profile)["features_shape"][0] for data in stored.values()] == [6, 2, 3]
    for number, words in enumerate(("sklearn.datasets.load_digits", "my_data:load", "x" * 5000), 1):
        data = _stored(words, train=number)["train"]
        assert data.source_type == "code"
        assert json.loads(data.source) == {"tags": {"mlflow.source.name": words}}
    file = tmp_path / "my data.csv"
    file.write_text("x,y\n1,2\n")
    data = _stored(str(file), train=4)["train"]
    assert (data.source_type, json.loads(data.source)) == ("local", {"uri": str(file)})
