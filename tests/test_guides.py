"""The guides' code runs, in their order, and prints what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.tracking.runs import runs

DOCS = Path(__file__).resolve().parent.parent / "docs"
GUIDES = ("own_table",)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guides_code_runs(guide, store_uri, tmp_path, capsys):
    text = (DOCS / f"{guide}.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    printed = ""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in blocks} == {"python", "sh", "yaml", ""}
    for language, code in blocks:
        if language == "python":
            exec(compile(code, f"{guide}.md", "exec"), scope)
        elif language == "yaml":
            Path("mine.yaml").write_text(code)
            assert load_settings("mine.yaml").given == set(yaml.safe_load(code))
        elif language == "":
            assert code in printed
        for line in code.splitlines() if language == "sh" else ():
            words = line.split("#")[0].split()
            if "RUN" in words:
                words[words.index("RUN")] = runs()["run_id"].iloc[0]
            assert words[0] == "wua"
            quick = ["--null-draws", "0"] if words[1] == "run" else []
            assert main([*words[1:], *quick]) == 0, line
            captured = capsys.readouterr()
            printed = captured.out + captured.err
