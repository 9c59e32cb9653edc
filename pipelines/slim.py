"""MLproject's entry point ``slim``: the same as ``wua slim``."""

import sys

from wua_mlflow.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["slim", *sys.argv[1:]]))
