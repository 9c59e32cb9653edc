"""Each test begins with the same random streams."""

from tests.usage.conftest import _seeded  # noqa: F401
