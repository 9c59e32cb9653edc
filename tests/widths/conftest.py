"""Each test begins with the same random streams."""

from __future__ import annotations

from tests.usage.conftest import _seeded  # noqa: F401
