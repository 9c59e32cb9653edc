"""MLproject's entry point ``compare``: the same as ``wua compare``."""

import sys

from wua_mlflow.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["compare", *sys.argv[1:]]))
