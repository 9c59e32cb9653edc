"""The guides' code runs, in their order, and prints what they say."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.tracking.runs import runs

DOCS = Path(__file__).resolve().parent.parent / "docs"
PLAIN = {"python", "sh", ""}
GUIDES = {"own_table": {*PLAIN, "yaml"}, "own_loader": {"python", "sh"}, "own_trainer": PLAIN,
          "mlflow": PLAIN, "own_model": PLAIN, "compare_two": PLAIN}
"""By guide the languages of its blocks; those without one are what was printed before."""
READ_TOGETHER = [("own_table",), ("own_loader",), ("own_trainer", "mlflow"), ("own_model",),
                 ("compare_two",)]
"""One after the other, in one folder."""
QUICK = {"run": ("--null-draws", "0"), "slim": ("--null-draws", "0")}
ELSEWHERE = ("mlflow", "torchrun", "pip")
"""Commands that are shown and not run."""


@pytest.fixture
def _mine(store_uri, monkeypatch):
    """The module that guides write is each one's own."""
    monkeypatch.syspath_prepend(Path.cwd())
    sys.modules.pop("mine", None)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("guides", READ_TOGETHER, ids="-".join)
@pytest.mark.usefixtures("_mine")
def test_a_guides_code_runs(guides, capsys):
    for guide in guides:
        run_guide(guide, capsys)


def run_guide(guide: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks of a guide, in their order."""
    text = (DOCS / f"{guide}.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    printed = ""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in blocks} == GUIDES[guide]
    for language, code in blocks:
        if language == "python":
            run_python(code, f"{guide}.md", scope)
        elif language == "sh":
            run_commands(code)
        elif language == "yaml":
            Path("mine.yaml").write_text(code)
            assert load_settings("mine.yaml").given == set(yaml.safe_load(code))
        else:
            assert code in printed
            continue
        captured = capsys.readouterr()
        printed = (captured.out + captured.err).replace(f"{Path.cwd()}/", "")


def run_python(code: str, name: str, scope: dict[str, object]) -> None:
    """A block; one that says its file's name is written there."""
    if code.startswith("# not run here: "):
        compile(code, name, "exec")
    elif file := re.match(r"# (\w+\.py)\n", code):
        Path(file[1]).write_text(code)
    else:
        exec(compile(code, name, "exec"), scope)


def run_commands(code: str) -> None:
    """A command a line, with the exit code that its comment says, else 0."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in ELSEWHERE:
            continue
        if "RUN" in words:
            words[words.index("RUN")] = runs()["run_id"].iloc[0]
        assert words[0] == "wua"
        said = re.search(r"# exit code (\d)", line)
        assert main([*words[1:], *QUICK.get(words[1], ())]) == (int(said[1]) if said else 0), line
