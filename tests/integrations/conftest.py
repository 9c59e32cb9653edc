"""Other people's trainers take seconds to import: where slow tests are left out they are not."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tests out before they are imported, where ``-m "not slow"`` would afterwards."""
    left_out = config.getoption("markexpr") == "not slow" and collection_path.suffix == ".py"
    return True if left_out else None
