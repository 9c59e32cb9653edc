"""Counting leaves the model, its inputs and torch's global state as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own habit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.example_modules import Apply, Peek, mlp
from wua_mlflow.flops import count_flops, ptflops_forward_flops

zeros = torch.zeros


class Restless(nn.Module):
    """Changes whatever a forward can change, and draws random numbers."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout().eval()
        self.calls, self.seen, self.last, self.fail = 0, [], zeros(1), fail
        self.register_buffer("steps", zeros(1))
        self.handle = self.fc.register_forward_hook(self._once)

    def _once(self, *_: Any) -> None:
        self.handle.remove()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x.add_(1)
        y = F.dropout(self.norm(self.fc(x)) + torch.rand(3), training=True)
        self.seen.append(y)
        self.last, self.new = y, y
        self.steps.add_(1)
        with torch.no_grad():
            self.fc.weight.mul_(2)
        self.norm.train()
        if self.fail:
            raise RuntimeError("on purpose")
        return self.drop(y)


def contents(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, id(item)) for key, item in value.items()]
    return [id(item) for item in value] if isinstance(value, list | set) else value


def state(model: nn.Module) -> list[Any]:
    """Every attribute of every module: which object, what that holds; and torch's globals."""
    attributes = [(m, dict(vars(m))) for m in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    return [
        [(m, name, id(value)) for m, values in attributes for name, value in values.items()],
        [contents(value) for _, values in attributes for value in values.values()],
        [(id(t), t._version, t.requires_grad, t.tolist(), id(t.grad)) for t in tensors],
        [t.grad.tolist() for t in tensors if t.grad is not None],
        torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_default_device(),
        torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled,
        torch.backends.cudnn.enabled, torch.backends.cuda.flash_sdp_enabled(),
        nn.modules.module._global_forward_hooks.copy(),
        nn.modules.transformer._detect_is_causal_mask]


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("peek", [False, True])
def test_model_inputs_and_globals_are_left_as_found(peek, fail):
    inner, x = Restless(fail), zeros(4, 3)
    model = Peek(inner) if peek else inner
    inner.fc.weight.grad = torch.ones(3, 3)
    inner.norm.bias.requires_grad_(False)
    before = state(model)
    if fail:
        with pytest.raises(RuntimeError, match="on purpose"):
            count_flops(model, x)
    else:
        count = count_flops(model, x)
        assert (count.forward_flops, count.backward_flops) == (2 * 4 * 9, 2 * 4 * 9)
    assert state(model) == before
    assert (x.tolist(), x._version) == (zeros(4, 3).tolist(), 0)


def test_ptflops_leaves_a_restless_model_as_found():
    model = Restless(fail=False)
    before = state(model)
    assert ptflops_forward_flops(model, (3,)) is not None and state(model) == before


@pytest.mark.parametrize("peek", [False, True])
def test_counts_in_eval_mode_with_the_attributes_of_parameters(peek):
    def run(x: Tensor, w: Tensor) -> Any:
        return (x @ w, x @ w) if model.training or not w.active else x @ w

    model = Apply(run, (3, 4))
    model.weights[0].active = True
    assert count_flops(Peek(model) if peek else model, zeros(1, 3)).forward_flops == 24
    assert model.training


def test_callers_gradient_mode_does_not_matter():
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            count, real = count_flops(mlp(), zeros(1, 2)), count_flops(Peek(mlp()), zeros(1, 2))
        assert count.backward_flops == real.backward_flops == 80


def test_modules_held_in_a_plain_list_are_counted():
    model = Apply(lambda x, w: model.rest[1](model.rest[0](x @ w)), (2, 3))
    model.rest = [nn.Linear(3, 3), nn.Dropout()]
    assert count_flops(Peek(model), zeros(1, 2)).forward_flops == 12 + 18
    assert model.rest[0].weight.grad is None and model.rest[1].training


def test_no_weights_are_allocated():
    """A copy of this weight would take 4 TiB; the mask is made on the meta device as well."""
    model = Apply(lambda x, weight: (x * torch.ones(2**20)) @ weight, (1, 1))
    model.weights[0] = nn.Parameter(zeros(1, 1).expand(2**20, 2**20))
    assert count_flops(model, zeros(1, 2**20)).forward_flops == 2 * 2**40


class Allocations(TorchDispatchMode):
    """Entries of the real tensors that operators make; views share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not made.is_meta and not func.is_view:
            self.entries.append(made.numel())
        return made


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_real_tensor_is_made_for_a_transformer(device):
    with torch.device(device):
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True), 2)
        causal = nn.Transformer.generate_square_subsequent_mask(16)
        inputs = {"src": zeros(1, 16, 64), "mask": causal}
    with Allocations() as allocations:
        count = count_flops(model, inputs)
    assert count.forward_flops == 2 * 2 * (12 * 16 * 64**2 + 2 * 16**2 * 64)
    first_input = 3 * 16 * 64**2  # the model's input needs no gradient
    assert count.backward_flops == 2 * count.forward_flops - 2 * first_input
    assert not any(allocations.entries)


def test_the_fallback_copies_each_weight_once():
    model, x = Peek(nn.Linear(64, 64)), zeros(1, 64)
    with Allocations() as allocations:
        assert not count_flops(model, x, backward=False).on_meta
    assert [entries for entries in allocations.entries if entries >= 64**2] == [64**2]


def test_tied_weights_stay_tied():
    def check(module: nn.Module, *_: Any) -> None:
        assert module.weight is model[0].weight

    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    model[1].register_forward_hook(check)
    count = count_flops(model, zeros(1, 3, dtype=torch.long))
    assert (count.forward_flops, count.backward_flops) == (2 * 3 * 28, 2 * 2 * 3 * 28)


def test_parametrized_weights():
    """Orthogonal: the exponential of a matrix is reported, the products around it are counted."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    assert count_flops(model, zeros(2, 3)).forward_flops == 2 * 2 * 12
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    assert set(count_flops(orthogonal, zeros(2, 4)).uncounted) == {"aten.linalg_matrix_exp"}


class Fed(nn.Module):
    """A layer that is fed what ``fed`` makes of the model's own tensors."""

    def __init__(self, fed: Callable[[Fed], Tensor], *, peek: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(zeros(6, 4))
        self.rows, self.doubled, self.plain = self.table[:2], self.table[:2] * 2, zeros(2, 4)
        self.layer, self.fed, self.peek = nn.Linear(4, 4), fed, peek

    def forward(self, x: Tensor) -> Any:
        return self.layer(x), self.fed(self), float(x.sum()) if self.peek else 0


def without_gradients(model: Fed) -> Tensor:
    with torch.no_grad():
        return model.layer(model.table[:2])


@pytest.mark.parametrize("peek", [False, True])
@pytest.mark.parametrize(("fed", "backwards"), [
    (lambda model: model.layer(model.table[:2]), 2),
    (lambda model: model.layer(model.table.view(3, 2, 4)[0]), 2),
    (lambda model: model.layer(model.table[0].expand(2, 4)), 2),
    (lambda model: model.layer(model.table.split(2)[1]), 2),
    (lambda model: nn.Identity()(model.table[:2]) @ model.layer.weight, 2),
    (lambda model: F.linear(model.plain, model.table[:4]), 1),
    (lambda model: model.layer(model.rows), 2),
    (lambda model: model.layer(model.doubled), 2),
    (lambda model: model.layer(model.plain[:2]), 1),
    (lambda model: checkpoint(model.layer, model.table[:2], use_reentrant=False), 2),
    (without_gradients, 0),
])
def test_a_layer_fed_by_the_model_itself(fed, backwards, peek):
    """Products of 2 rows beside one of 1; the backward has one for each of both factors."""
    model, one = Fed(fed, peek=peek), 2 * 4 * 4
    count = count_flops(model, zeros(1, 4))
    assert (count.forward_flops, count.backward_flops) == (3 * one, (1 + 2 * backwards) * one)
    count = count_flops(model, zeros(1, 4), backward=False)
    assert (count.forward_flops, count.backward_flops, count.on_meta) == (3 * one, 0, not peek)


def test_a_slice_that_is_returned_has_no_backward():
    def slice_without_gradients(x: Tensor, weight: Tensor) -> Any:
        with torch.no_grad():
            return x @ weight, weight[:2], weight

    assert count_flops(Apply(lambda x, weight: (x @ weight, weight[:2], weight), (3, 4)),
                       zeros(1, 3)).backward_flops == 24
    assert count_flops(Apply(slice_without_gradients, (3, 4)), zeros(1, 3)).backward_flops == 0
