"""The settings of earlier versions by today's names: files of theirs, and runs, still say them.

Tests: ``tests/test_old_settings.py``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from wua_mlflow.setting_values import FIRST_SEEDS, MOST_SEEDS, with_table_keys

__all__ = ["GONE", "instead", "of_today"]


GONE = ("width_method", "budget", "max_seeds", "search_runs", "search_seconds", "model_uri",
        "effective_rank")
"""Names that are no setting any more."""
_DEFAULT_RUNS = (None, 12, "12")


def of_today(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by today's names; what is said by a new name holds.

    Raises:
        ValueError: one line; two of them contradict each other.

    >>> of_today({"width_method": "rank", "max_seeds": 40, "drop_columns": "id"})
    {'table': {'drop_columns': 'id'}, 'slim_hidden': 'rank', 'seeds': '5-40'}
    """
    old = {name: values[name] for name in GONE if values.get(name) not in (None, "")}
    new = with_table_keys({name: value for name, value in values.items() if name not in GONE})
    if old.get("width_method", "auto") != "auto" and new.get("slim_hidden", "auto") == "auto":
        new["slim_hidden"] = old["width_method"]
    if old.get("budget") == "flops":
        if new.get("slim_epochs") not in (None, "flops"):
            raise ValueError(f"budget: flops sets the epochs of the slim network, so expected no "
                             f"slim_epochs, but got {new['slim_epochs']}")
        new["slim_epochs"] = "flops"
    if "max_seeds" in old and new.get("seeds", "auto") == "auto":
        most = str(old["max_seeds"])
        new["seeds"] = "auto" if most == str(MOST_SEEDS) else f"{FIRST_SEEDS}-{most}"
    if "model_uri" in old:
        new.setdefault("run_id", old["model_uri"])
    return {**_limit(old), **new}


def _limit(old: Mapping[str, Any]) -> dict[str, str]:
    runs, seconds = old.get("search_runs"), old.get("search_seconds")
    parts = [] if runs in _DEFAULT_RUNS else [f"{runs}"]
    parts += [] if seconds is None else [f"{seconds}s"]
    return {"limit": ",".join(parts)} if parts else {}


def instead(old: Mapping[str, str]) -> str:
    """What to write on the command line in the place of options that are gone.

    >>> instead({"search_runs": "4", "search_seconds": "60"}), instead({"effective_rank": "true"})
    ('write --limit 4,60s', 'leave it out')
    """
    words = [word for name, value in of_today(old).items()
             for word in (f"--{name.replace('_', '-')}", str(value))]
    return f"write {shlex.join(words)}" if words else "leave it out"
