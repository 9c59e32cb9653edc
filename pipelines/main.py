"""MLproject's entry point ``main``: the same as ``wua run``."""

import sys

from wua_mlflow.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["run", *sys.argv[1:]]))
