"""MLproject's entry point ``slim``: the same as ``wua slim``."""

import sys

from wua_mlflow.cli.main import entry

if __name__ == "__main__":
    raise SystemExit(entry(["slim", *sys.argv[1:]]))
