"""Looks at a test set: verdicts on variants, and pairs that an experiment's tag keeps."""

from __future__ import annotations

import importlib

from mlflow.tracking import MlflowClient

from wua_mlflow.tracking.runs import count_looks, look_of, record_pair


def test_a_pair_is_a_look_once_and_another_margin_is_another(populated):
    client = MlflowClient()
    before = count_looks(client, "d1")
    first, second = (client.create_experiment(name) for name in ("one", "two"))
    for experiment in (first, first, second):
        record_pair(client, experiment, "d1", ("a", "b"), look_of(0.02, 0.95))
    assert count_looks(client, "d1") == before + 1
    record_pair(client, first, "d1", ("a", "b"), look_of(0.03, 0.95))
    record_pair(client, first, "d1", ("b", "a"), look_of(0.02, 0.95))
    assert count_looks(client, "d1") == before + 3
    assert count_looks(client, "d2") == 0


def test_more_than_a_tag_holds_are_not_kept(populated, monkeypatch):
    # the package has a function of that name, too
    monkeypatch.setattr(importlib.import_module("wua_mlflow.tracking.runs"), "_MOST", 3)
    client = MlflowClient()
    experiment = client.create_experiment("many")
    for number in range(5):
        record_pair(client, experiment, "d9", ("a", str(number)), "0.02 at 0.95")
    assert count_looks(client, "d9") == 3
