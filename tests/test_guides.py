"""The guides' code runs, in their order, and prints what they say."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

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
          "mlflow": {"python"}, "querying": PLAIN, "own_model": PLAIN, "compare_two": PLAIN,
          "analyze": PLAIN, "widths": {"python", "sh"}}
"""By guide the languages of its blocks; those without one are what was printed before."""
READ_TOGETHER = [("own_table",), ("own_loader",), ("own_trainer", "mlflow", "querying"),
                 ("own_model",), ("compare_two",), ("analyze",), ("widths",)]
"""One after the other, in one folder."""
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
    blocks = blocks_of(text)
    assert {language for language, _ in blocks} == GUIDES[guide]
    for language, code in blocks:
        if language == "python":
            run_python(code, f"{guide}.md", scope)
        elif language == "sh":
            run_commands(code, dry=guide in MINUTES)
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
