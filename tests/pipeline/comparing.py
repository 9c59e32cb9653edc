"""What the tests of ``wua compare A B`` share: the command, and its verdict by ``wua.compare``."""

from __future__ import annotations

import json

import numpy as np
import pytest

import wua_mlflow as wua
from wua_mlflow.cli.main import main

EXIT = {"non_inferior": 0, "inferior": 3, "inconclusive": 4}


def compared(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    """What ``wua compare`` gives as JSON; its exit code is the verdict's, stderr is empty."""
    code = main(["compare", *words, "--json"])
    output = capsys.readouterr()
    assert output.err == ""
    result = json.loads(output.out)
    assert code == EXIT[result["verdict"]]
    return dict(result)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that ``wua compare`` ends with."""
    assert main(["compare", *words]) in (1, 2)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err
    return output.err.removeprefix("wua: ").rstrip("\n")


def assert_same_verdict(
    result: dict, old: np.ndarray, new: np.ndarray, margin: float = 0.02, **options: object
) -> None:
    """``result`` is what ``wua.compare`` says of these scores, or predictions."""
    expected = wua.compare(old, new, margin=margin, seed=42, **options)
    assert result["artifact"]["outcome"] == result["verdict"] == expected.outcome
    for name in ("delta", "low", "high"):
        assert result["artifact"][name] == pytest.approx(getattr(expected, name), abs=1e-5)
    assert (result["artifact"]["examples"], result["recipe"]) == (expected.examples, None)
