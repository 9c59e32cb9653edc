"""What goes into the registry, and what does not: read back through the client of a real store.

Also with several processes at it, and through a server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import _validate_model_name
from torch import nn

from wua_mlflow.tracking.models import log_model
from wua_mlflow.tracking.registry import Registration, check_name, register
from wua_mlflow.tracking.store import Store, connect, ended, new_run
from wua_mlflow.verdict.compare import compare

GOOD = compare(np.ones(1000), np.where(np.arange(1000) < 5, 0, 1), margin=0.02)
COMPARISON = "c" * 32


@pytest.fixture
def store(store_uri):
    return connect("registry")


def saved_slim(store: Store, model: nn.Module | None = None, status: str = "READY") -> str:
    """A run with a saved model; without ``model`` an entry that has no files."""
    with ended(store, new_run(store, "slim", {"wua.variant": "slim"})) as run_id:
        if model:
            log_model(store.client, run_id, store.experiment_id, model, torch.rand(5, 3))
            return run_id
        entry = store.client.create_logged_model(store.experiment_id, name="model",
                                                 source_run_id=run_id)
        store.client.finalize_logged_model(entry.model_id, status)
        if status == "READY":
            store.client.log_outputs(run_id, [LoggedModelOutput(entry.model_id, step=0)])
    return run_id


def register_slim(store: Store, run_id: str, name: str = "digits", **changed) -> Registration:
    return register(store.client, name, run_id=run_id,
                    **{"verdict": GOOD, "comparison_run_id": COMPARISON, **changed})


def aliases_of(store: Store, name: str = "digits") -> dict[str, str]:
    aliases = store.client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in aliases.items()}


def links_of(store: Store, run_id: str) -> list[dict[str, str]]:
    """What the run's saved model says of its versions."""
    model_id = store.client.get_run(run_id).outputs.model_outputs[0].model_id
    links = json.loads(store.client.get_logged_model(model_id).tags["mlflow.modelVersions"])
    return [{key: str(value) for key, value in link.items()} for link in links]


def test_a_model_that_is_as_good_is_registered_with_its_verdict(store, capfd):
    model = nn.Linear(3, 2)
    run_id = saved_slim(store, model)
    assert (GOOD.kind, GOOD.outcome, GOOD.delta) == ("artifact", "non_inferior", -0.005)
    capfd.readouterr()
    assert register_slim(store, run_id) == Registration(
        "digits", "1", "slim", "Registered as 'digits' version 1, alias slim.")
    assert capfd.readouterr() == ("", "")
    version = store.client.get_model_version_by_alias("digits", "slim")
    assert (str(version.version), version.run_id, version.status) == ("1", run_id, "READY")
    sentence = version.tags.pop("wua.verdict.sentence")
    assert "within" in sentence and sentence == GOOD.sentence
    assert version.tags.pop("wua.version")
    figures = {"compare/artifact_delta": GOOD.delta, "compare/artifact_delta_low": GOOD.low,
               "compare/artifact_delta_high": GOOD.high, "compare/margin": 0.02,
               "wua.confidence": 0.95}
    assert {key: float(version.tags.pop(key)) for key in figures} == figures
    assert version.tags == {"wua.comparison": COMPARISON, "wua.verdict.artifact": "non_inferior"}
    inputs = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    answer = mlflow.pyfunc.load_model("models:/digits@slim").predict(inputs)
    np.testing.assert_allclose(answer, model(torch.from_numpy(inputs)).detach(), rtol=1e-6)


def test_the_saved_model_says_where_it_is_registered(store):
    """As MLflow's own ``register_model`` leaves it, for its page."""
    runs = {"digits": saved_slim(store), "theirs": saved_slim(store, nn.Linear(3, 2))}
    register_slim(store, runs["digits"])
    mlflow.register_model(f"runs:/{runs['theirs']}/model", "theirs")
    for name, run_id in runs.items():
        assert links_of(store, run_id) == [{"name": name, "version": "1"}]
        (version,) = store.client.search_model_versions(f"name = '{name}'")
        assert version.source.partition("m-")[0] == "models:/"
        assert version.run_id == run_id


def test_what_is_not_registered_and_why(store):
    run_id = saved_slim(store)
    for outcome in ("inferior", "inconclusive"):
        done = register_slim(store, run_id, verdict=replace(GOOD, outcome=outcome))
        assert done == Registration("digits", None, None, "Not registered as 'digits': its "
                                    f"artifact verdict is {outcome}, not non_inferior.")
    with pytest.raises(ValueError, match="^verdict: expected the artifact's, .* got the recipe's$"):
        register_slim(store, run_id, verdict=replace(GOOD, kind="recipe"))
    with ended(store, new_run(store, "no model", {})) as empty:
        pass
    for run_id in (empty, saved_slim(store, status="FAILED")):
        assert register_slim(store, run_id).sentence == (
            f"Not registered as 'digits': run {run_id} holds no model that MLflow can serve.")
    assert list(store.client.search_registered_models()) == []


def test_the_same_model_again_renews_its_version(store):
    first, second = saved_slim(store), saved_slim(store)
    register_slim(store, first)
    assert register_slim(store, second) == Registration(
        "digits", "2", "slim", "Registered as 'digits' version 2, alias slim.")
    assert aliases_of(store) == {"slim": "2"}
    again = register_slim(store, first, comparison_run_id="d" * 32,
                          verdict=replace(GOOD, margin=0.01))
    assert (again.version, again.alias) == ("1", "slim")
    assert register_slim(store, first, "other").version == "1"
    assert len(store.client.search_model_versions("name = 'digits'")) == 2
    tags = store.client.get_model_version("digits", "1").tags
    assert (tags["wua.comparison"], tags["compare/margin"]) == ("d" * 32, "0.01")
    store.client.delete_model_version("digits", "1")
    assert register_slim(store, first).version == "3"


def test_an_alias_of_somebody_elses_version_and_every_other_alias_stay(store):
    run_id = saved_slim(store)
    model_id = store.client.get_run(run_id).outputs.model_outputs[0].model_id
    store.client.create_registered_model("digits")
    store.client.create_model_version("digits", f"models:/{model_id}", run_id, model_id=model_id)
    theirs = dict.fromkeys(("champion", "production", "oversized", "slim"), "1")
    for alias in theirs:
        store.client.set_registered_model_alias("digits", alias, "1")
    assert register_slim(store, saved_slim(store)) == Registration(
        "digits", "2", None, "Registered as 'digits' version 2; the alias slim stays at version 1, "
                             "which somebody else registered.")
    assert aliases_of(store) == theirs
    store.client.delete_registered_model_alias("digits", "slim")
    for version in ("3", "4"):
        register_slim(store, saved_slim(store))
        assert aliases_of(store) == {**theirs, "slim": version}


def test_an_alias_that_another_process_makes_meanwhile_is_taken_over(store, monkeypatch):
    """SQLite refuses the second of two first settings; which is seen here at its first attempt."""
    first, second = saved_slim(store), saved_slim(store)
    register_slim(store, first)
    setting, refused = MlflowClient.set_registered_model_alias, []

    def late(client, name, alias, version):
        if not refused:
            refused.append(version)
            raise MlflowException("UNIQUE constraint failed", error_code=BAD_REQUEST)
        setting(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", late)
    assert register_slim(store, second).alias == "slim"
    assert (refused, aliases_of(store)) == (["2"], {"slim": "2"})


@pytest.mark.parametrize(("code", "attempts"), [(BAD_REQUEST, 5), (INTERNAL_ERROR, 1)])
def test_an_alias_that_the_store_keeps_refusing_is_its_error(store, monkeypatch, code, attempts):
    def refuses(*_):
        tried.append(1)
        raise MlflowException("no", error_code=code)

    tried: list[int] = []
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refuses)
    with pytest.raises(MlflowException, match="^no$"):
        register_slim(store, saved_slim(store))
    assert len(tried) == attempts


def test_names_that_do_and_a_prompts_that_does_not(store):
    run_id = saved_slim(store, nn.Linear(3, 2))
    for name in ("digits", "a b", "a@b", "a#b", "a%20b", "é", ".a", " a", "O'B", 'O"B',
                 "m-" + "a" * 32, "x" * 256):
        check_name(name)
        assert register_slim(store, run_id, name).version == "1"
        assert mlflow.pyfunc.load_model(f"models:/{name}@slim").metadata.run_id == run_id
    mlflow.genai.register_prompt(name="hello", template="Hello {{name}}")
    with pytest.raises(ValueError, match="^register: expected the name of a registered model, but "
                                         "'hello' is a prompt's$"):
        register_slim(store, run_id, "hello")


MLFLOW_REFUSES = ("", "  ", "a/b", "a:b", "..", ".", "..a", "/a")


@pytest.mark.parametrize("name", [*MLFLOW_REFUSES, "a?b", "a\nb", "a\x00b", "x" * 257])
def test_names_that_mlflow_or_an_address_or_a_database_does_not_take(name):
    with pytest.raises(MlflowException) if name in MLFLOW_REFUSES else nullcontext():
        _validate_model_name(name)
    with pytest.raises(ValueError, match="^register: expected .*name.*, but got ") as caught:
        check_name(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^register: "):  # before anything is read
        register(None, name, run_id="", verdict=GOOD, comparison_run_id="")


REGISTERING = """
import sys, time
from dataclasses import replace
import numpy as np
from wua_mlflow.tracking.registry import register
from wua_mlflow.tracking.store import connect
from wua_mlflow.verdict.compare import compare

client = connect("registry").client
verdict = compare(np.ones(1000), np.ones(1000), margin=0.02)
print("ready", flush=True)
sys.stdin.readline()
for run_id in sys.argv[1:]:
    done = register(client, "digits", run_id=run_id, verdict=verdict, comparison_run_id=run_id)
    print(done.version, done.alias, flush=True)
"""


@pytest.mark.slow
def test_several_processes_at_once(store):
    runs = [[saved_slim(store) for _ in range(4)] for _ in range(4)]
    workers = [subprocess.Popen([sys.executable, "-c", REGISTERING, *some], text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE) for some in runs]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        lines = [worker.communicate(timeout=600)[0].split("\n")[:-1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(600)
    assert [len(of_worker) for of_worker in lines] == [4] * 4
    versions, aliases = zip(*(line.split() for line in sum(lines, [])), strict=True)
    assert sorted(map(int, versions)) == list(range(1, 17))
    assert set(aliases) == {"slim"}
    assert aliases_of(store)["slim"] in {of_worker[-1].split()[0] for of_worker in lines}
    versions = store.client.search_model_versions("name = 'digits'")
    assert sorted(version.run_id for version in versions) == sorted(sum(runs, []))
    assert all(version.tags["wua.comparison"] == version.run_id for version in versions)


@pytest.mark.slow
def test_through_a_server(server, monkeypatch, capfd):
    """And it prints nothing, since ``--json`` is read by machines."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_tracking_uri(server)
    store = connect("registry")
    model = nn.Linear(3, 2)
    first, second = saved_slim(store, model), saved_slim(store)
    capfd.readouterr()
    for run_id in (first, second, first):
        assert register_slim(store, run_id).alias == "slim"
    assert capfd.readouterr() == ("", "")
    assert aliases_of(store) == {"slim": "1"}
    versions = store.client.search_model_versions("name = 'digits'")
    assert {str(version.version): version.run_id for version in versions} \
        == {"1": first, "2": second}
    assert versions[0].tags["wua.verdict.sentence"] == GOOD.sentence
    assert links_of(store, first) == [{"name": "digits", "version": "1"}]
    inputs = torch.rand(4, 3)
    answer = mlflow.pyfunc.load_model("models:/digits@slim").predict(inputs.numpy())
    np.testing.assert_allclose(answer, model(inputs).detach(), rtol=1e-6)
