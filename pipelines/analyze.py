"""MLproject's entry point ``analyze``: the same as ``wua analyze``."""

import sys

from wua_mlflow.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["analyze", *sys.argv[1:]]))
