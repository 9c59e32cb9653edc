"""MLproject's entry point ``train``: the same as ``wua train``."""

import sys

from wua_mlflow.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
