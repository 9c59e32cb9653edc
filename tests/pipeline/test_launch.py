"""Who speaks among several processes, and what the environment must say for there to be any."""

from __future__ import annotations

import pytest
from torch import distributed as dist

from wua_mlflow.distributed import VARIABLES, is_first, on_all_ranks, process_group, started


def test_a_process_is_alone_unless_everything_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1"):
        for name, value in zip(VARIABLES, (rank, "2", "127.0.0.1", "29400"), strict=True):
            monkeypatch.setenv(name, value)
        assert (started(), is_first()) == (2, rank == "0")
    for name in VARIABLES:
        with monkeypatch.context() as patch:
            patch.delenv(name)
            assert (started(), is_first()) == (1, True)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group("cpu"):
        assert not dist.is_initialized()


def test_an_error_alone_is_raised_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        on_all_ranks(lambda: {}["mine"])
