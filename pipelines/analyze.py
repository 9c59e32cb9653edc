"""MLproject's entry point ``analyze``: the same as ``wua analyze``."""

import sys

from wua_mlflow.cli.main import entry

if __name__ == "__main__":
    raise SystemExit(entry(["analyze", *sys.argv[1:]]))
