"""A model, its gradients and the random streams are as before, also when the forward raises."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from wua_mlflow.hooks import evaluating, observe, unwrapped


class Net(nn.Module):
    """Batch norm, dropout, a layer that is used twice, and a forward that draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout()
        self.twice = nn.Linear(4, 4)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.norm(self.first(x)))
        hidden = self.twice(self.twice(hidden))
        noise = torch.rand(()) + random.random() + np.random.rand()  # draws in eval mode too
        if x.isnan().any():
            raise RuntimeError("a NaN came in")
        return functional.relu(hidden) + 0 * noise


def state_of(model: nn.Module) -> dict[str, object]:
    """Everything that must be the same afterwards, in comparable form."""
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [list(module._forward_hooks) for module in model.modules()],
        "pre hooks": [list(module._forward_pre_hooks) for module in model.modules()],
        "state": [tensor.tolist() for tensor in model.state_dict().values()],
        "requires": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "enabled": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def mixed() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.norm.eval()
    model.twice.eval()
    model.unused.weight.requires_grad_(False)
    model.first.register_forward_hook(lambda module, inputs, output: None)
    model(torch.rand(5, 3)).sum().backward()
    return model


@pytest.fixture(autouse=True)
def _seeded_globals():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


ENTRANCES: dict[str, Callable] = {
    "evaluating": evaluating,
    "observe": lambda model: observe(model, ["first", "twice"], lambda name, output: None),
}


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES)
def test_the_model_is_left_as_found(enter):
    model = mixed()
    before = state_of(model)
    with enter(model) as same:
        same(torch.rand(2, 3))
    assert state_of(model) == before


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES)
def test_the_model_is_left_as_found_when_the_forward_raises(enter):
    model = mixed()
    before = state_of(model)
    with pytest.raises(RuntimeError, match="a NaN came in"), enter(model) as same:
        same(torch.full((2, 3), torch.nan))
    assert state_of(model) == before


def test_the_model_is_left_as_found_when_the_observer_raises():
    model = mixed()
    before = state_of(model)

    def refuse(name: str, output: Tensor) -> None:
        raise KeyError(name)

    with pytest.raises(KeyError, match="first"), observe(model, ["first"], refuse) as same:
        same(torch.rand(2, 3))
    assert state_of(model) == before


def test_the_model_is_left_as_found_when_a_name_is_wrong():
    model = mixed()
    before = state_of(model)
    with pytest.raises(AttributeError, match="third"), \
            observe(model, ["first", "third"], lambda name, output: None):
        pass
    assert state_of(model) == before


def test_inside_all_is_in_eval_mode_without_gradients():
    model = mixed()
    with evaluating(model) as same:
        assert same is model
        assert not any(module.training for module in model.modules())
        assert not model(torch.rand(2, 3)).requires_grad
    with torch.no_grad():
        with evaluating(model):
            pass
        assert not torch.is_grad_enabled()


def test_the_outputs_are_those_of_eval_mode():
    model = mixed()
    inputs = torch.rand(4, 3)
    with evaluating(model):
        found = model(inputs)
    model.eval()
    assert torch.equal(found, model(inputs))


def test_each_call_is_told_in_the_order_of_the_forward():
    model = mixed().eval()
    seen: list[tuple[str, Tensor]] = []
    inputs = torch.rand(6, 3)
    with observe(model, ["twice", "norm", "first", "unused"],
                 lambda name, output: seen.append((name, output.clone()))) as same:
        same(inputs)
    first = functional.linear(inputs, model.first.weight, model.first.bias)
    norm = functional.batch_norm(first, model.norm.running_mean, model.norm.running_var,
                                 model.norm.weight, model.norm.bias)
    once = functional.linear(norm, model.twice.weight, model.twice.bias)
    twice = functional.linear(once, model.twice.weight, model.twice.bias)
    assert [name for name, _ in seen] == ["first", "norm", "twice", "twice"]
    for (_, found), expected in zip(seen, [first, norm, once, twice], strict=True):
        torch.testing.assert_close(found, expected)


def test_modules_may_be_given_by_any_name():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    seen = []
    with observe(model, {"mine": model[1]}, lambda name, output: seen.append(name)) as same:
        same(torch.rand(1, 2))
    assert seen == ["mine"]


def test_what_the_observer_returns_does_not_replace_the_output():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    inputs = torch.rand(4, 2)
    expected = model(inputs)
    with observe(model, ["0"], lambda name, output: torch.zeros(4, 3)) as same:
        assert torch.equal(same(inputs), expected)


def test_an_inplace_activation_comes_after():
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(inplace=True))
    inputs = torch.rand(4, 2)
    seen = []
    with observe(model, ["0"], lambda name, output: seen.append(output.clone())) as same:
        same(inputs)
    torch.testing.assert_close(
        seen[0], torch.addmm(model[0].bias, inputs, model[0].weight.T))
    assert (seen[0] < 0).any()


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel],
                         ids=["compiled", "parallel"])
def test_a_wrapped_model_is_unwrapped(wrap):
    inner = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    wrapped = wrap(inner)
    assert unwrapped(wrapped) is inner
    seen = []
    with observe(wrapped, ["0"], lambda name, output: seen.append(name)) as model:
        model(torch.rand(1, 2))
    assert seen == ["0"]
    assert model is inner


def test_a_graph_from_pt2_keeps_its_mode(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(), nn.Linear(3, 1)).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(net, (torch.rand(4, 2),), dynamic_shapes=({0: batch},))
    graph = exported.module()
    with pytest.raises(NotImplementedError):
        graph.eval()
    modes = [module.training for module in graph.modules()]
    inputs = torch.rand(7, 2)
    with evaluating(graph):
        found = graph(inputs)
    torch.testing.assert_close(found, net(inputs).detach())
    assert [module.training for module in graph.modules()] == modes
