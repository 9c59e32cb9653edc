"""``python -m wua_mlflow``: the same as ``wua``."""

from __future__ import annotations

from wua_mlflow.cli.main import entry

raise SystemExit(entry())
