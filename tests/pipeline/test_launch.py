"""Who speaks among several processes, and what the environment must say for there to be any."""

from __future__ import annotations

import pytest
from torch import distributed as dist

from wua_mlflow.distributed import VARIABLES, is_first, on_all_ranks, process_group, started


def of_two(monkeypatch: pytest.MonkeyPatch, rank: str = "1") -> None:
    values = (rank, "2", "127.0.0.1", "29400")
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_speaks(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_two(monkeypatch, rank)
    assert (started(), is_first()) == (2, rank == "0")


@pytest.mark.parametrize("lacking", VARIABLES)
def test_a_process_is_alone_unless_everything_is_said(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_two(monkeypatch)
    monkeypatch.delenv(lacking)
    assert (started(), is_first()) == (1, True)


def test_one_process_of_one_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    of_two(monkeypatch, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group("cpu"):
        assert not dist.is_initialized()


def test_an_error_alone_is_raised_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        on_all_ranks(lambda: {}["mine"])
