"""``python -m wua_mlflow``: the same as ``wua``."""

from wua_mlflow.cli import entry

raise SystemExit(entry())
