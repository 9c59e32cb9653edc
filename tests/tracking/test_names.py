"""The names on the way through a real store; their strings are in ``tests/contract.json``."""

import unicodedata

from mlflow.tracking import MlflowClient

from wua_mlflow.tracking.log import write
from wua_mlflow.tracking.names import (
    ArtifactPath,
    Metric,
    Tag,
    importance_plot,
    keys_of,
    layer_metric,
)
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import connect, ended, new_run

METRICS, TAGS, ARTIFACTS = (
    [value for key, value in vars(names).items() if not key.startswith("_")]
    for names in (Metric, Tag, ArtifactPath))


def test_no_name_is_given_twice_and_names_of_layers():
    for names in (METRICS, TAGS, ARTIFACTS):
        assert len(names) == len(set(names)) > 8
    assert layer_metric("encoder.layers.0.fc1", "units") == "layers/encoder.layers.0.fc1/units"
    assert layer_metric("", "entropy") == "layers/model/entropy"
    assert layer_metric("a+b/c", "entropy") == "layers/a_b_c/entropy"
    assert importance_plot("a+b/c") == "plots/importance_a_b_c.png"


ODD = ["x" * 300, "x" * 299 + "y", "X" * 300, "FC1", "fc1", "a/b", "a_b", "A?B", "../../etc", "..",
       ".", "", "model", "new\nline", " ", "tail ", "é" * 300, "e\u0301" * 300, "ﬁ", "fi", "ſ", "s",
       "\x00", "\ud800", "a:b|c*d", "`<img src=x>`", "CON", "$\\frac$", "%2F", "%2f"]


def test_odd_layers_have_names_of_their_own_that_every_store_and_disk_takes(store_uri, tmp_path):
    keys = keys_of([*ODD, *keys_of(ODD).values()])  # as if somebody had called layers like keys
    assert list(keys)[:len(ODD)] == ODD
    folded = {unicodedata.normalize("NFKC", key).casefold() for key in keys.values()}
    assert len(folded) == len(keys) >= len(ODD)
    store = connect("odd")
    metrics = {layer_metric(layer, "effective_weights", keys): 1.0 for layer in keys}
    files = {importance_plot(layer, keys): "text" for layer in keys}
    assert max(map(len, metrics)) <= 250
    assert max(len(path.rpartition("/")[2].encode()) for path in files) <= 255
    with ended(store, new_run(store, "odd", {})) as run_id:
        write(store.client, run_id, metrics=metrics, files=files)
    assert store.client.get_run(run_id).data.metrics == metrics
    listed = {file.path for file in store.client.list_artifacts(run_id, "plots")}
    assert listed == set(files)
    alike = keys_of(["FC1", "fc1"])
    assert keys_of(["fc1", "FC1"]) == alike and keys_of(["FC1", "a+b"])["FC1"] == "FC1"


def test_what_is_written_under_the_names_is_read_under_them(store_uri):
    store = connect("names")
    layers = [layer_metric(name, "entropy") for name in ("", "fc1", "a+b/c", "Größe 1")]
    metrics = {name: number + 0.5 for number, name in enumerate([*METRICS, *layers])}
    tags = {name: f"value of {name}" for name in TAGS} | {"wua.kind": "variant"}
    files = {*ARTIFACTS, importance_plot("a+b/c")}
    with ended(store, new_run(store, "all of them", {})) as run_id:
        write(store.client, run_id, metrics=metrics, tags=tags, files=dict.fromkeys(files, "text"))
    row = runs("names", columns=[*metrics, *TAGS]).iloc[0]
    assert {name: row[name] for name in metrics} == metrics
    assert {name: row[name] for name in TAGS} == tags
    client = MlflowClient(store_uri)
    assert {file.path for folder in {path.rpartition("/")[0] for path in files}
            for file in client.list_artifacts(run_id, folder) if not file.is_dir} == files
