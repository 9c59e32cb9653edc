"""MLproject's entry point ``main``: the same as ``wua run``."""

import sys

from wua_mlflow.cli.main import entry

if __name__ == "__main__":
    raise SystemExit(entry(["run", *sys.argv[1:]]))
