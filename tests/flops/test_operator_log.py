"""Operators whose outputs are reused give what running them again would give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own habit
from torch import Tensor

from wua_mlflow.flops import tensors_in
from wua_mlflow.flops.meta_run import OperatorLog


@pytest.fixture(autouse=True)
def on_meta():
    with torch.device("meta"):
        yield


def metadata(value: Any) -> list[Any]:
    return [(t.shape, t.stride(), t.dtype, t.device, t.is_conj(), t.requires_grad)
            for t in tensors_in(value)]


def x(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.ones(shape, dtype=dtype, requires_grad=grad)


INT, BOOL, HALF, COMPLEX = torch.int32, torch.bool, torch.float16, torch.cfloat
NEAR_ALIKE: dict[str, list[Callable[[], Any]]] = {
    "kind of number": [lambda: x(2, dtype=INT) + 1, lambda: x(2, dtype=INT) + 1.0,
                       lambda: x(2, dtype=BOOL) + True, lambda: x(2, dtype=BOOL) + 1],
    "dtype": [lambda: x(3) * x(3), lambda: x(3) * x(3, dtype=torch.float64),
              lambda: x(3, dtype=HALF) * x(3), lambda: x(3, dtype=HALF) * x()],
    "strides": [lambda: x(3, 4).relu(), lambda: x(4, 3).T.relu(), lambda: x(1, 4).expand(3, 4) + 1],
    "options": [lambda: x(3, 4).sum(0), lambda: x(3, 4).sum(1), lambda: x(3, 4).sum(1, True),
                lambda: x(3, 4).sum(0, dtype=torch.float64)],
    "several outputs": [lambda: x(3, 4).max(0), lambda: x(3, 4).max(1), lambda: x(3, 4).split(2),
                        lambda: x(3, 4).split(1), lambda: F.layer_norm(x(3, 4, grad=True), (4,))],
    "complex": [lambda: x(3, dtype=COMPLEX) * 1, lambda: x(3, dtype=COMPLEX).conj() * 1,
                lambda: x(3, dtype=COMPLEX).conj(), lambda: x(3, dtype=COMPLEX).real],
    "in place": [lambda: x(3).add_(1), lambda: x(2, 3).t_(), lambda: x(6).resize_(2, 2),
                 lambda: x(4).resize_(2, 2), lambda: x(1, 3).squeeze_(0)],
    "given an output": [lambda: torch.add(x(3), 1, out=x(0)), lambda: torch.add(x(3), 1, out=x(3))],
    "lists": [lambda: torch.cat([x(2), x(3)]), lambda: torch.cat([x(3), x(3)]),
              lambda: torch.stack([x(2)] * 3), lambda: x(3, 4)[:, x(2, dtype=torch.long)]]}


@pytest.mark.parametrize("name", NEAR_ALIKE)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_calls_that_are_near_alike_are_told_apart(name):
    expected = [metadata(function()) for function in NEAR_ALIKE[name]]
    with OperatorLog(reuse=True):
        first = [metadata(function()) for function in NEAR_ALIKE[name]]
        again = [metadata(function()) for function in NEAR_ALIKE[name]]
    assert first == again == expected


def test_an_operator_runs_once_for_each_signature():
    weight, bias = x(4, 5, grad=True), x(5)
    with OperatorLog() as ran, OperatorLog(reuse=True) as log:  # the outer sees what really runs
        for rows in (3, 3, 3, 7):
            torch.addmm(bias, x(rows, 4), weight).relu_()
    addmm, relu = torch.ops.aten.addmm.default, torch.ops.aten.relu_.default
    assert (ran.calls[addmm], ran.calls[relu]) == (2, 2)
    assert (log.calls[addmm], log.calls[relu]) == (4, 4)


def test_tensors_are_told_apart_views_share_and_in_place_returns_the_same():
    with OperatorLog(reuse=True):
        a, b = (x(3) + 1 for _ in range(2))
        assert a is not b
        for _ in range(2):
            y = x(3) + 1
            assert y.add_(1) is y
            out = x(3)
            assert torch.add(y, 1, out=out) is out
            pair = x(), x(dtype=torch.long)
            assert all(a is b for a, b in zip(torch.max(y, 0, out=pair), pair, strict=True))
            assert y.view(3)._base is y


def test_what_fails_fails_again_and_a_real_index_is_looked_at_each_time():
    masks = [torch.tensor(mask, device="cpu") for mask in ([True, False], [True, True])]
    with OperatorLog(reuse=True):
        for mask in masks:
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied|a and b must have"):
                x(2, 3) @ x(2, 3)
            assert x(2, 3)[mask].shape[0] == mask.sum()
