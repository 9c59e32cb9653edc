"""MLproject's entry point ``compare``: the same as ``wua compare``."""

import sys

from wua_mlflow.cli.main import entry

if __name__ == "__main__":
    raise SystemExit(entry(["compare", *sys.argv[1:]]))
