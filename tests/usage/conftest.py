"""Each test begins with the same random streams."""

import pytest

from tests.networks import kept_streams


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        yield
