"""The words of the command line: what they mean, and what is said of wrong ones."""

import re
import shlex
from pathlib import Path

import pytest
from mlflow.projects._project_spec import load_project

from tests.mistakes import line_of
from wua_mlflow.cli.main import main
from wua_mlflow.cli.options import COMMANDS, parse
from wua_mlflow.config import COMMAND_FIELDS, TABLE_KEYS, TOPICS, Settings


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_command_and_that_of_a_command_every_field_once(command, capsys):
    assert main(["--help"]) == 0
    whole = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  ", whole.partition("Commands:")[2], re.M) == list(COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == whole
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "0.1.0\n"
    assert main([command, "--help-all"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: wua {command} ")
    assert COMMANDS[command].split()[-1] in text
    for field in COMMAND_FIELDS.get(command, ()):
        assert len(re.findall(rf"^  --{field.replace('_', '-')}[ ,]", text, re.M)) == 1
        assert "_" not in field or f"--{field}" not in text
    for key in TABLE_KEYS:  # beside the setting that they are a part of
        described = text.partition("  --table ")[2]
        assert described.count(f"  --{key.replace('_', '-')} ") == (command in COMMAND_FIELDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_short_help_has_a_dozen_options_the_defaults_and_examples_that_are_read(
        command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    shown = re.findall(r"^  --([\w-]+)", text, re.M)
    assert 1 <= len(shown) <= 12 and len(text.splitlines()) <= 60
    examples = re.findall(r"^  wua (.+)", text.partition("For example:")[2], re.M)
    assert examples
    for example in examples:
        assert parse(shlex.split(example)).command == command
    if command in COMMAND_FIELDS:
        assert {name.replace("-", "_") for name in shown} <= {*COMMAND_FIELDS[command],
                                                               *TABLE_KEYS}
        assert f"wua {command} --help-all" in text
    if command == "run":
        assert "[0.02]" in text.partition("--margin ")[2].partition("  --")[0]


def test_every_setting_has_one_topic():
    fields = [field for fields in TOPICS.values() for field in fields]
    assert sorted(fields) == sorted(Settings.model_fields)


@pytest.mark.parametrize(("words", "message"), [
    (["run", "--epohcs", "5"], "--epohcs: no such option of wua run; did you mean '--epochs'?"),
    (["run", "--epoch=5"], "--epoch: no such option of wua run; did you mean '--epochs'?"),
    (["run", "--slim_hiden", "5"],
     "--slim-hiden: no such option of wua run; did you mean '--slim-hidden'?"),
    (["runs", "--lmit", "5"], "--lmit: no such option of wua runs; did you mean '--limit'?"),
    (["train", "--slim-hidden", "5"],
     "--slim-hidden: no such option of wua train; did you mean '--hidden'?"),
    (["--vresion"], "--vresion: no such option of wua; did you mean '--version'?"),
    (["rnu"], "command: expected one of run, train, analyze, slim, compare, predict, runs, best, "
              "show, but got 'rnu'; did you mean 'run'?"),
    (["run", "--width-method", "rank"],
     "--width-method: no option any more; write --slim-hidden rank"),
    (["run", "--search_runs=4", "--search-seconds", "600"],
     "--search-runs: no option any more; write --limit 4,600s"),
    (["train", "--max-seeds", "40"], "--max-seeds: no option any more; write --seeds 5-40"),
    (["run", "--budget", "flops"], "--budget: no option any more; write --slim-epochs flops"),
    (["run", "--budget", "epochs"], "--budget: no option any more; leave it out"),
    (["compare", "--model-uri", "models:/a/1"],
     "--model-uri: no option any more; write --run-id models:/a/1"),
    (["analyze", "--effective-rank", "--run-id", "a"],
     "--effective-rank: no option any more; leave it out"),
    (["runs", "--budget", "flops"],
     "--budget: no such option of wua runs; did you mean '--debug'?"),
    (["compare", "--max-seeds", "40"],
     "--max-seeds: no such option of wua compare; did you mean '--seed'?"),
    (["run", "--epochs"], "--epochs: expected a value, but got none"),
    (["analyze", "--run_id"], "--run-id: expected a value, but got none"),
    (["run", "--epochs", "--json"], "--epochs: expected a value, but got none"),
    (["run", "--epochs", "--config", "digits"], "--epochs: expected a value, but got none"),
    (["run", "digits"], "digits: expected options only after wua run"),
    (["runs", "--limit", "x"], "--limit: 'x' is not a valid integer"),
    (["show"], "RUN: expected a value, but got none; `wua runs` lists the runs"),
    (["compare"], "compare: expected two models, A and B, or the run of a slim variant (--run-id), "
                  "but got none"),
    (["compare", "a.csv"], "compare: expected two models, A and B, but got 1"),
    (["compare", "a.csv", "b.csv", "c.csv"], "compare: expected two models, A and B, but got 3"),
    (["compare", "--candidate", "b.csv"], "compare: expected two models, A and B, or the run of a "
                                          "slim variant (--run-id), but got b.csv"),
    *((["compare", "--run-id", "a", *words],
       f"run_id: a variant is compared with its original on their own test part, so expected "
       f"nothing like {name} beside it; any two models and any data: wua compare A B --data DATA")
      for words, name in ((["--data", "digits"], "data"), (["--task", "binary"], "task"),
                          (["--groups", "who"], "table"),
                          (["a.csv", "b.csv"], "a.csv"), (["--candidate", "b"], "candidate"))),
])
def test_wrong_words_are_one_line(words, message, capsys):
    assert line_of(words, 2, capsys) == message


def test_options_are_spelled_with_a_dash_or_an_underscore():
    for name in ("--slim-hidden", "--slim_hidden"):
        assert parse(["run", name, "4"]).slim_hidden == "4"
        assert parse(["run", f"{name}=4"]).slim_hidden == "4"
    for command, fields in COMMAND_FIELDS.items():
        for field in fields:
            for name in (field, field.replace("_", "-")):
                assert getattr(parse([command, f"--{name}", "x"]), field) == "x"
    assert parse(["run", "--slim-hidden", "", "--slim_hidden", "4"]).slim_hidden == "4"


def test_a_value_may_begin_with_a_minus_options_stand_anywhere_and_gate_is_a_flag_too(capsys):
    for option, value in (("--hidden", "-1,5"), ("--lr", "-inf")):
        assert line_of(["run", option, value], 2, capsys).startswith(f"{option[2:]}: expected ")
    for words in (["a", "b", "--data", "d"], ["--data", "d", "a", "b"], ["a", "--data", "d", "b"]):
        options = parse(["compare", *words])
        assert (options.models, options.data) == (("a", "b"), "d")
    for words, gate in (([], None), (["--gate"], "true"), (["--gate", "true"], "true"),
                        (["--gate", "false"], "false"), (["--gate", ""], ""),
                        (["--gate", "--json"], "true")):
        assert parse(["run", *words]).gate == gate


@pytest.mark.parametrize("command", ["analyze", "slim"])
def test_a_models_uri_is_said_as_what_it_is(command):
    """By ``--model-uri``, or as MLflow passes on what it was given by ``-P model_uri=…``: after the
    parameters that the project declares, which are empty."""
    project = load_project(str(Path(__file__).resolve().parents[2]))
    line = project.get_entry_point(command).compute_command({"model_uri": "models:/a/1"}, "")
    for words in ([command, "--model-uri", "models:/a/1"], [command, *shlex.split(line)[2:]]):
        assert parse(words).run_id == "models:/a/1"
