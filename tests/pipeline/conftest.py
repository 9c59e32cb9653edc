"""Fixtures: a store without pictures and exported models; ``wua compare``, and its refusals."""

import sys
from functools import partial

import pytest

from tests.pipeline.comparing import compared, refusal
from tests.pipeline.slimming_cases import without_exports
from wua_mlflow.tracking.store import connect


@pytest.fixture
def store(store_uri, monkeypatch):
    without_exports(monkeypatch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return connect("slimming")


@pytest.fixture
def compare(capsys):
    return partial(compared, capsys)


@pytest.fixture
def refused(capsys):
    return partial(refusal, capsys)
