"""A run on a shared store names code: none of it is imported that the user did not name."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from tests.mistakes import all_runs, here, line_of  # noqa: F401 - a fixture
from tests.pipeline.slimming_cases import without_exports
from wua_mlflow.cli import commands
from wua_mlflow.cli.main import main
from wua_mlflow.config import CODE, Settings, load_settings
from wua_mlflow.pipeline import trust
from wua_mlflow.pipeline.trust import Trust

EVIL = "open('hit', 'w').close()\ndef hit(*values, **named): open('hit', 'w').close()\n"
QUICK = "--seeds 1 --epochs 1 --data bad_parts:data --hidden 4"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    without_exports(monkeypatch)


@pytest.fixture
def evil(here):  # noqa: F811
    """The victim's folder, with a module in it that no command may import."""
    (here / "evil.py").write_text(EVIL)
    yield here
    assert "evil" not in sys.modules and not (here / "hit").exists()


def train(words: str = f"{QUICK} --model bad_parts:fine") -> str:
    assert main(["train", *words.split()]) == 0
    return str(all_runs()[-1].info.run_id)


def config_of(run_id: str) -> Path:
    return Path(MlflowClient().get_run(run_id).info.artifact_uri.removeprefix("file://"),
                "config.yaml")


def edit(run_id: str, **values: object) -> None:
    """As anybody may who can write to the store."""
    path = config_of(run_id)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def test_what_may_name_code_is_what_is_described_so():
    described = {name for name, field in Settings.model_fields.items()
                 if "package.module" in str(field.description) and name != "trust"}
    assert set(CODE) == described


@pytest.mark.parametrize(("setting", "value"), [
    *((name, "evil:hit") for name in CODE), ("criterion", "output,evil:hit"),
    ("model", "os:system"), ("train", "subprocess:run"), ("score", "shutil:rmtree")])
def test_an_edited_configuration_imports_and_calls_nothing(evil, capsys, setting, value):
    client = MlflowClient()
    pair = [client.create_run("0", run_name=name, tags={
        "wua.kind": "variant", "wua.variant": name, "wua.step.train": "done", "wua.task": "binary",
        "wua.test_digest": "0", "wua.widths": "4"}).info.run_id for name in ("oversized", "slim")]
    for run_id in pair:
        client.set_terminated(run_id)
        for path in ("state/model.safetensors", "state/rng.safetensors",
                     "evaluation/test.safetensors", "config.yaml"):
            Path(evil, "empty").write_text(yaml.safe_dump({setting: value}))
            client.log_artifact(run_id, shutil.copy(evil / "empty", evil / Path(path).name),
                                str(Path(path).parent).replace(".", ""))
    reference = value.rpartition(",")[2]
    message = (f"trust: run {pair[0]} names code that you have not named in this folder: "
               f"{reference} ({setting}); name it yourself (--{setting.replace('_', '-')} "
               f"{reference}), or let it run: --trust code")
    for words in (["analyze", "--run-id", pair[0]], ["slim", "--run-id", pair[0]],
                  ["compare", *pair], ["compare", *pair, "--trust", "pickle"]):
        capsys.readouterr()
        assert line_of(words, 1, capsys) == message, words
    line = line_of(["compare", "--run-id", pair[1]], 1, capsys)
    assert line == message.replace(pair[0], pair[1])


def test_what_was_named_in_this_folder_for_this_setting_runs_again(evil, capsys, monkeypatch):
    """Replays of one's own project ask nothing; the record is the user's own, not the store's."""
    run_id = train()
    replay = ["analyze", "--run-id", run_id, "--null-draws", "0"]
    assert main(replay) == 0
    record = Path(os.environ["XDG_STATE_HOME"], "wua-mlflow", "named_code.json")
    assert (record.stat().st_mode & 0o777, record.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert json.loads(record.read_text()) == {"folders": {str(evil): [
        ["data", "bad_parts:data"], ["model", "bad_parts:fine"]]}}
    capsys.readouterr()
    for changed in ({"train": "bad_parts:fine"}, {"model": "bad_parts:data"},
                    {"data": "bad_parts:data_raises"}):
        original = config_of(run_id).read_text()
        edit(run_id, **changed)
        assert "names code that you have not named in this folder" in line_of(replay, 1, capsys)
        config_of(run_id).write_text(original)
    (evil / "elsewhere").mkdir()
    monkeypatch.chdir(evil / "elsewhere")
    assert "bad_parts:data (data), bad_parts:fine (model)" in line_of(replay, 1, capsys)
    monkeypatch.chdir(evil)
    for content in ("{", "[]", '{"folders": {"x": [[1]]}}', "\x00"):
        record.write_text(content)
        assert line_of(replay, 1, capsys).startswith("trust: run ")
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # somebody else's file
    trust.remember(load_settings(None, {"model": "bad_parts:fine", "data": "bad_parts:data"}))
    assert line_of(replay, 1, capsys).startswith("trust: run ")


def test_naming_it_beside_the_run_or_trust_is_enough(evil, capsys, monkeypatch):
    run_id = train()
    shutil.rmtree(Path(os.environ["XDG_STATE_HOME"], "wua-mlflow"))
    replay = ["analyze", "--run-id", run_id, "--null-draws", "0"]
    capsys.readouterr()
    assert line_of([*replay, "--model", "bad_parts:fine"], 1, capsys).startswith("trust: ")
    shutil.rmtree(Path(os.environ["XDG_STATE_HOME"], "wua-mlflow"))
    assert main([*replay, "--trust", "pickle,code"]) == 0
    assert not Path(os.environ["XDG_STATE_HOME"], "wua-mlflow").exists(), "that is for once"
    capsys.readouterr()
    named = ["--model", "bad_parts:fine", "--data", "bad_parts:data"]
    assert re.match(r"run_id: expected nothing but the variant's own model \(bad_parts:fine\)",
                    line_of([*replay, "--trust", "code", "--model", "bad_parts:nan"], 1, capsys))
    assert main([*replay, *named]) == 0
    assert "trust" not in config_of(run_id).read_text()
    assert "trust" not in all_runs()[-1].data.params
    blocked = evil / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))  # no record can be kept
    assert main([*replay, *named]) == 0
    capsys.readouterr()
    assert line_of(replay, 1, capsys).startswith("trust: ")


def test_a_person_is_asked_once(evil, capsys, monkeypatch):
    run_id = train()
    shutil.rmtree(Path(os.environ["XDG_STATE_HOME"], "wua-mlflow"))
    questions: list[str] = []
    replay = ["analyze", "--run-id", run_id, "--null-draws", "0"]
    for answer in (False, True):
        monkeypatch.setattr(commands, "_ask_at_terminal", lambda answer=answer: lambda question: (
            questions.append(question), answer)[1])
        assert main(replay) == (0 if answer else 1)
    assert main(replay) == 0
    assert questions == [f"Run {run_id} names code that you have not named in this folder: "
                         f"bad_parts:data (data), bad_parts:fine (model). Import and call it?"] * 2


def test_a_configuration_file_trusts_nothing_and_a_line_stays_short(here, capsys):  # noqa: F811
    (here / "own.yaml").write_text("trust: code\n")
    assert line_of(["compare", "a.csv", "b.csv", "--config", "own.yaml"], 2, capsys) == (
        "config: trust is given on the command line alone, but own.yaml has it")
    assert line_of(["compare", "a.csv", "b.csv", "--trust", "all"], 2, capsys) == (
        "trust: expected code, pickle, or code,pickle, but got 'all'")
    long = load_settings(None, {"model": f"{'m' * 999}:f", "train": f"a:{'b' * 999}",
                                "criterion": ",".join(f"c{i}:d" for i in range(99))})
    with pytest.raises(ValueError, match="^trust: run r names .* and 98 more; name it") as error:
        Trust().check_code(long, "r")
    assert len(str(error.value)) < 500
    assert "; name it yourself (--model mm" in str(error.value)
    Trust(code=True).check_code(long, "r")
    Trust.by(long).check_code(long, "r")


def test_nothing_else_reads_a_runs_configuration_and_every_reader_says_what_it_trusts():
    package = Path(trust.__file__).parents[1]
    sources = {path: path.read_text() for path in package.rglob("*.py")}
    readers = {path.stem for path, text in sources.items() if re.search(r"\bload_settings\(", text)}
    assert readers == {"config", "main", "variant", "evaluate_logged"}
    assert "load_settings(None, " in sources[package / "pipeline" / "evaluate_logged.py"]
    calls = [call for path, text in sources.items() if path.stem != "variant"
             for call in re.findall(r"\bload_variant\([^)]*\)+[^)]*\)?", text)]
    assert len(calls) >= 5
    assert [call for call in calls if not re.search(r"\btrust\b|Trust\.by", call)] == []
