"""MLproject's entry point ``train``: the same as ``wua train``."""

import sys

from wua_mlflow.cli.main import entry

if __name__ == "__main__":
    raise SystemExit(entry(["train", *sys.argv[1:]]))
