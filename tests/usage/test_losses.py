"""Losses that ``taylor`` cannot use, and gradients that are not finite: one line that says so."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import labels, mlp, rows
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.gradients import loss_of

loss = functional.cross_entropy
PLAIN = mlp(3, 4, 2)
BATCH = [(rows(4, 3), labels(4))]


@pytest.mark.parametrize(("function", "message"), [
    (lambda outputs, targets: outputs.sum(1), r"a scalar tensor .*, but got shape \(4,\)"),
    (lambda outputs, targets: 1.0, "a scalar tensor .*, but got float"),
    (lambda outputs, targets: None, "a scalar tensor .*, but got NoneType"),
    (lambda outputs, targets: torch.tensor(1.0), "a scalar tensor that depends on the model's "
                                                 "weights, but got one without a gradient$"),
    (lambda outputs, targets: outputs.detach().sum(), "a scalar tensor .*, but got one without"),
    (lambda outputs, targets: outputs.sum() * math.nan, "a finite number, but got nan for batch 0"),
    (lambda outputs, targets: outputs.sum() + math.inf, "a finite number, but got inf for batch 0"),
])
def test_a_loss_of_another_kind(function, message):
    with pytest.raises(ValueError, match=f"^loss: expected {message}") as caught:
        analyze(PLAIN, BATCH, criterion="taylor", loss=function)
    assert "\n" not in str(caught.value)


def test_the_batch_whose_loss_is_not_finite():
    losses = iter([1.0, 1.0, math.nan])
    with pytest.raises(ValueError, match="but got nan for batch 2$"):
        analyze(PLAIN, BATCH * 5, criterion="taylor",
                loss=lambda outputs, targets: outputs.sum() * next(losses))


class OnGpu(Tensor):
    """Says that it lies on a GPU."""

    @property
    def is_cuda(self) -> bool:
        return True


@pytest.mark.parametrize("number", range(8))
def test_on_a_gpu_a_loss_is_read_back_seldom(number):
    value = (torch.ones(1, requires_grad=True) * math.nan).as_subclass(OnGpu)
    if number in (0, 1, 3, 7):
        with pytest.raises(ValueError, match=f"but got nan for batch {number}$"):
            loss_of(None, None, lambda outputs, targets: value, number=number)
    else:
        assert loss_of(None, None, lambda outputs, targets: value, number=number).isnan()


def test_a_gradient_that_is_not_finite_names_its_layer():
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.first(x) * 0).sqrt())

    with pytest.raises(ValueError, match="^layer first: .* finite .* but got NaN"):
        analyze(Rooted(), BATCH, criterion="taylor", loss=loss)


def test_a_loss_of_one_element_is_a_scalar():
    found = [analyze(PLAIN, BATCH, criterion="taylor", loss=function).layers["0"].entropy
             for function in (loss, lambda outputs, targets: loss(outputs, targets).reshape(1, 1))]
    assert found[0] == found[1]


def test_neither_loss_nor_targets():
    with pytest.raises(ValueError, match="^loss: the criterion taylor needs a function of outputs "
                                         "and targets, or a model whose outputs have a loss, but "
                                         "got neither$"):
        analyze(PLAIN, BATCH, criterion="taylor")
    for data in (rows(4, 3), [rows(4, 3)], [(rows(4, 3),)]):
        with pytest.raises(ValueError, match="^data: the criterion taylor needs targets, but the "
                                             "batches are inputs alone"):
            analyze(PLAIN, data, criterion="taylor", loss=loss)


def test_a_user_s_own_loss_that_raises_comes_through():
    def refuse(outputs, targets):
        raise KeyError("no such target")

    with pytest.raises(KeyError, match="no such target"):
        analyze(PLAIN, BATCH, criterion="taylor", loss=refuse)


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="^model: expected a layer whose weights"):
        analyze(nn.Tanh(), [(rows(4, 3).requires_grad_(), labels(4))], criterion="taylor",
                loss=lambda outputs, targets: outputs.sum())


def test_the_loss_is_the_users_where_both_are_there():
    outputs = SimpleNamespace(loss=torch.ones(1, requires_grad=True))
    value = torch.full((), 2.0, requires_grad=True)
    assert loss_of(outputs, None, None, number=0) == 1
    assert loss_of(outputs, None, lambda out, targets: value, number=0) == 2
