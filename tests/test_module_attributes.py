"""A model is as before after everything that runs it: what its forward left in it is gone again."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from tests.networks import rows
from wua_mlflow.flops import count_flops
from wua_mlflow.hooks import evaluating
from wua_mlflow.module_attributes import attributes_kept, copied
from wua_mlflow.slimming import slim
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.widths.recommend import recommend_widths

pytestmark = pytest.mark.filterwarnings("ignore:.*_norm.* is deprecated:FutureWarning")
CRITERIA = ("output", "input", "wanda", "magnitude", "taylor")


class Keeper(nn.Module):
    """Keeps what its forward computes wherever a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.rows, self.scale = self.layer.weight[:2], torch.ones(1, requires_grad=True)
        self.unregistered = [nn.Linear(4, 4)]
        self.seen: list[Tensor] = []
        self.by_name: dict[str, Any] = {"nested": {"tuple": (torch.zeros(2), {1})}}
        self.recent: deque[Tensor] = deque(maxlen=2)
        self.ordered: OrderedDict[str, Tensor] = OrderedDict()
        self.moving, self.calls, self.longest = torch.zeros(4), 0, 0
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.layer(x)) * self.scale
        self.kept = self.unregistered[0].kept = hidden
        self.seen.append(hidden)
        self.recent.append(hidden)
        self.by_name["nested"]["new"] = self.ordered["last"] = hidden
        self.by_name["nested"]["tuple"][0].add_(1)
        self.by_name["nested"]["tuple"][1].add(self.calls)
        self.moving.mul_(0.9).add_(hidden.detach().mean(0))
        self.total = self.total + hidden.mean(0)
        self.calls, self.longest = self.calls + 1, max(self.longest, len(x))
        return self.head(hidden)


def network(first: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))


class WeightNormedLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = weight_norm(nn.LSTM(3, 4, batch_first=True), "weight_hh_l0")
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unsqueeze(1))[0][:, -1])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight norm of old": lambda: network(weight_norm(nn.Linear(3, 4))),
    "spectral norm of old": lambda: network(spectral_norm(nn.Linear(3, 4))),
    "mask": lambda: network(prune.l1_unstructured(nn.Linear(3, 4), "weight", amount=2)),
    "parametrised": lambda: network(parametrizations.weight_norm(nn.Linear(3, 4))),
    "recurrent weight norm": WeightNormedLSTM,
    "attributes": Keeper,
}


def state(model: nn.Module) -> list[Any]:
    """All that a module and its unregistered ones hold; tensors by identity, kind and values.

    Not so the weak references by which recurrent layers see that their weights changed.
    """
    def described(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (id(value), tuple(value.shape), value.requires_grad, value.is_leaf,
                    value.tolist())
        if isinstance(value, dict):
            return [(key, described(item)) for key, item in value.items()
                    if key != "_flat_weight_refs"]
        if isinstance(value, list | tuple | set | deque):
            return [described(item) for item in value]
        return described(vars(value)) if isinstance(value, nn.Module) else id(value)

    return described(vars(model))


def trains(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether a step of training gives every parameter in use a gradient, and falls."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[1] < losses[0] and all(p.grad is not None for p in model.parameters())


def copies(model: nn.Module) -> bool:
    try:
        return copy.deepcopy(model) is not model
    except RuntimeError:
        return False


@pytest.mark.parametrize("ran", ["never", "with gradients", "without"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_analysed_counted_and_slimmed_it_is_as_before(make, ran):
    torch.manual_seed(0)
    model, x, y = make(), rows(16, 3), torch.arange(16) % 2
    if ran != "never":
        with torch.set_grad_enabled(ran == "with gradients"):
            model.eval()(x)
    before, could_be_copied = state(model), copies(model)
    analyze(model, [(x, y)], criterion=CRITERIA, loss=functional.cross_entropy, null=2)
    assert state(model) == before
    count_flops(model, x)
    assert state(model) == before
    if not isinstance(model, Keeper):
        first = "rnn" if isinstance(model, WeightNormedLSTM) else "0"
        try:
            cut = slim(model, (x, y), widths={first: 2})
        except ValueError as error:
            assert "parametrised" in str(error)
        else:
            assert copies(cut.model) and trains(cut.model, x, y)
        assert state(model) == before
    assert copies(model) == could_be_copied and trains(model, x, y)


def test_a_slim_network_keeps_nothing_of_what_was_run_to_cut_it():
    class Seen(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.hidden = self[1](self[0](x))
            return self[2](self.hidden)

    model, x, y = Seen(*network(nn.Linear(3, 4))), rows(16, 3), torch.arange(16) % 2
    model(x)
    before = state(model)
    cut = slim(model, (x, y), widths={"0": 2})
    recommend_widths(model, (x, y))
    assert state(model) == before and not copies(model)
    assert copies(cut.model) and trains(cut.model, x, y)


def test_an_error_puts_the_attributes_back_too():
    model = Keeper()
    before = state(model)
    with pytest.raises(RuntimeError, match="cannot be multiplied"), evaluating(model):
        model(rows(2, 3))
        model(rows(2, 5))
    assert state(model) == before


def test_what_is_not_changed_is_not_touched():
    model = Keeper()
    versions = [tensor._version for tensor in (model.moving, model.scale, model.rows)]
    with attributes_kept(model):
        model.layer(rows(2, 3))
    assert [tensor._version for tensor in (model.moving, model.scale, model.rows)] == versions


def test_a_copy_shares_no_tensor_and_ties_what_was_tied():
    model = Keeper()
    model.again = model.kept = model(rows(2, 3))
    again = copied(model)
    assert again.again is again.kept and torch.equal(again.kept, model.kept)
    assert not again.kept.requires_grad and again.total.is_leaf
    kept = {tensor.data_ptr() for tensor in (model.kept, model.total, *model.parameters())}
    assert kept.isdisjoint(tensor.data_ptr()
                           for tensor in (again.kept, again.total, *again.parameters()))
