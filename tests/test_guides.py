"""The guides' code runs, in their order, and prints what they say."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

from wua_mlflow.cli.main import main
from wua_mlflow.cli.options import parse
from wua_mlflow.config import load_settings
from wua_mlflow.tracking.runs import runs

DOCS = Path(__file__).resolve().parent.parent / "docs"
README = (DOCS.parent / "README.md").read_text(encoding="utf-8")
PLAIN = {"python", "sh", ""}
GUIDES = {"own_table": {*PLAIN, "yaml"}, "own_loader": PLAIN, "own_trainer": PLAIN,
          "mlflow": set(), "querying": PLAIN, "own_model": PLAIN, "compare_two": PLAIN,
          "analyze": PLAIN, "own_loop": {"python", ""}, "lightning": PLAIN,
          "hugging_face": PLAIN, "half": {"python", ""}, "widths": {"python", "sh"},
          "registered_model": {"python", "sh"}, "evaluate": {"python", ""},
          "gate": {"python", "yaml"}}
"""By guide the languages of its blocks; those without one are what was printed before."""
READ_TOGETHER = [("own_table",), ("own_loader",), ("compare_two",), ("analyze",), ("own_loop",),
                 ("widths",),
                 *(pytest.param(guides, marks=pytest.mark.slow)
                   for guides in (("own_trainer", "querying"), ("own_model",),
                                  ("registered_model",), ("evaluate",), ("gate",)))]
"""One after the other, in one folder."""
OF_TRAINERS = [("lightning",), ("hugging_face",), ("half",)]
"""Those that import other people's trainers, which takes its time and warns."""
MINUTES = ("widths",)
"""Guides whose commands take minutes: that they are such is checked, and they are not run."""
QUICK = dict.fromkeys(("run", "slim", "analyze"), ("--null-draws", "0"))
ELSEWHERE = ("mlflow", "torchrun", "pip")
"""Commands that are shown and not run."""


@pytest.fixture
def _mine(store_uri, monkeypatch):
    """The module that guides write is each one's own."""
    monkeypatch.syspath_prepend(Path.cwd())
    sys.modules.pop("mine", None)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.filterwarnings(  # MLflow's, on what it imports, and its advice on logging models
    "ignore:.*Any type hint", "ignore:_ImportHookChainedLoader:ImportWarning",
    "ignore:the load_module:DeprecationWarning", "ignore:.*LeafSpec:FutureWarning",
    "ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("guides", READ_TOGETHER, ids=lambda guides: "-".join(guides))
@pytest.mark.usefixtures("_mine")
def test_a_guides_code_runs(guides, capsys):
    for guide in guides:
        run_guide(guide, capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("guides", OF_TRAINERS, ids="-".join)
@pytest.mark.usefixtures("_mine")
def test_a_guides_code_runs_in_other_peoples_trainers(guides, capsys):
    for guide in guides:
        run_guide(guide, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("_mine")
def test_skorch_trains_the_networks_of_a_pipeline(capsys):
    pytest.importorskip("skorch")
    blocks = blocks_of((DOCS / "own_trainer.md").read_text(encoding="utf-8"))
    for language, code in blocks:
        if language == "python":
            run_python(code, "own_trainer.md", {}) if code.startswith("#") else None
    command = next(code for language, code in blocks if language == "sh")
    run_commands(command.replace("mine:train", "with_skorch:train"), dry=False)
    assert set(runs()["accuracy/test"] > 0.9) == {True}


def run_guide(guide: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks of a guide, in their order."""
    text = (DOCS / f"{guide}.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    printed = ""
    blocks = blocks_of(text)
    assert {language for language, _ in blocks} == GUIDES[guide]
    for language, code in blocks:
        if language == "python":
            run_python(code, f"{guide}.md", scope)
        elif language == "sh":
            run_commands(code, dry=guide in MINUTES)
        elif language == "yaml" and "jobs:" in code:
            run_workflow(code)
        elif language == "yaml":
            Path("mine.yaml").write_text(code)
            assert load_settings("mine.yaml").given == set(yaml.safe_load(code))
        else:
            assert code in printed
            continue
        captured = capsys.readouterr()
        printed = (captured.out + captured.err).replace(f"{Path.cwd()}/", "")


def blocks_of(text: str) -> list[tuple[str, str]]:
    """Language and code of each block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_readmes_example_ends_as_it_says(capsys):
    blocks = dict(reversed(blocks_of(README)))  # the first of each language
    exec(compile(blocks["python"], "README.md", "exec"), {})
    for printed in (capsys.readouterr().out, blocks[""]):
        outcome = re.fullmatch(r"non_inferior: (\d+) and (\d+) of 256 units are left, "
                               r"(\d+) × fewer FLOPs", printed.splitlines()[1])
        assert outcome is not None
        assert int(outcome[1]) < 60 > int(outcome[2]) and int(outcome[3]) > 20


def run_python(code: str, name: str, scope: dict[str, object]) -> None:
    """A block; one that says its file's name is written there."""
    if code.startswith("# not run here: "):
        compile(code, name, "exec")
    elif file := re.match(r"# (\w+\.py)\n", code):
        Path(file[1]).write_text(code)
    else:
        exec(compile(code, name, "exec"), scope)


def run_commands(code: str, *, dry: bool) -> None:
    """A command a line, with the exit code that its comment says, else 0."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in ELSEWHERE:
            continue
        if dry:
            parse(words[1:])
            continue
        if "RUN" in words:
            words[words.index("RUN")] = runs()["run_id"].iloc[0]
        assert words[0] == "wua"
        said = re.search(r"# exit code (\d)", line)
        assert main([*words[1:], *QUICK.get(words[1], ())]) == (int(said[1]) if said else 0), line


def commands_of(workflow: str) -> list[str]:
    """What the steps of a workflow run that is ours."""
    steps = [step for job in yaml.safe_load(workflow)["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if step.get("run", "").startswith("wua ")]


def run_workflow(workflow: str) -> None:
    """Each of its commands, in this process; what it prints goes to a summary."""
    for line in commands_of(workflow):
        command, _, file = line.replace("\\\n", " ").partition(">>")
        assert file.strip() == '"$GITHUB_STEP_SUMMARY"'
        with contextlib.redirect_stdout(io.StringIO()) as summary:
            assert main(shlex.split(command)[1:]) == 0
        assert "`non_inferior`" in summary.getvalue().partition("\n")[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint",
                            "ignore:_ImportHookChainedLoader:ImportWarning",
                            "ignore:the load_module:DeprecationWarning")
@pytest.mark.usefixtures("_mine")
def test_the_gates_step_ends_with_the_verdicts_code_in_a_shell(tmp_path):
    """As GitHub's runner starts it; a worse candidate, and a margin that the data cannot tell."""
    (_, models), (_, workflow) = blocks_of((DOCS / "gate.md").read_text(encoding="utf-8"))
    exec(compile(models, "gate.md", "exec"), {})
    (step,) = commands_of(workflow)
    worse = models.replace("GaussianNB()", "DummyClassifier()").replace(
        "from sklearn.naive_bayes import GaussianNB", "from sklearn.dummy import DummyClassifier")
    summary = tmp_path / "summary.md"
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(summary), "PATH": os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ["PATH"]])}
    for code, line in ((0, step), (4, step.replace("0.02", "0.0001")), (3, step)):
        if code == 3:
            exec(compile(worse, "gate.md", "exec"), {})
        done = subprocess.run(["bash", "-e", "-c", line], env=environment, capture_output=True,
                              text=True)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
    heads = [line for line in summary.read_text().splitlines() if line.startswith("### ")]
    assert [re.findall("`(.*?)`", head) for head in heads] == [
        ["non_inferior"], ["inconclusive"], ["inferior"]]
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"]
