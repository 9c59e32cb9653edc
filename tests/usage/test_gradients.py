"""Mean gradients and the criterion ``taylor``, against autograd sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.networks import NETWORKS, labels, mlp, rows, tokens
from wua_mlflow.usage.analyze import analyze, layer_importance

SAMPLES = 9


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets)


def data_of(name: str, samples: int = SAMPLES):
    make, inputs = NETWORKS[name]
    return make(), inputs(samples), labels(samples)


def by_sample(model: nn.Module, inputs: Tensor, targets: Tensor, parameter: Tensor) -> Tensor:
    """The mean of the gradients of single samples' losses, in float64."""
    found = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        gradient, = torch.autograd.grad(loss(model.eval()(x), y), [parameter])
        found.append(gradient.double())
    return torch.stack(found).mean(0)


WEIGHTS = {
    "mlp": ("mlp", {"0": "0.weight", "2": "2.weight", "4": "4.weight"}),
    "cnn": ("cnn", {"0": "0.weight", "3": "3.weight", "5": "5.weight", "8": "8.weight"}),
    "attention": ("attention", {
        "embed": "embed.weight", "block.self_attn.out_proj": "block.self_attn.out_proj.weight",
        "block.linear1": "block.linear1.weight", "block.linear2": "block.linear2.weight"}),
    "lstm": ("lstm", {"embed": "embed.weight", "head": "head.weight"}),
}


def same(found: Tensor, expected: Tensor) -> None:
    """To float32's rounding, relative to the largest of them."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


@pytest.mark.parametrize(("name", "layers"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_by_single_samples(name, layers):
    model, inputs, targets = data_of(name)
    batches = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    found = layer_importance(model, batches, list(layers), "taylor", loss=loss)
    parameters = dict(model.named_parameters())
    for layer, parameter in layers.items():
        weight = parameters[parameter]
        expected = (weight.double() * by_sample(model, inputs, targets, weight)).abs().detach()
        same(found[layer], expected.T if layer == "embed" else expected)


def test_attentions_fused_weight_by_single_samples():
    model, inputs, targets = data_of("attention")
    fused = model.block.self_attn.in_proj_weight
    expected = (fused.double() * by_sample(model, inputs, targets, fused)).abs().detach()
    names = [f"block.self_attn.{which}_proj" for which in "qkv"]
    found = layer_importance(model, [(inputs, targets)], names, "taylor", loss=loss)
    for name, part in zip(names, expected.chunk(3), strict=True):
        same(found[name], part)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "weight_ih_l1_reverse"])
def test_gates_by_single_samples(name):
    model, inputs, targets = data_of("lstm")
    weight = getattr(model.rnn, name)
    expected = (weight.double() * by_sample(model, inputs, targets, weight)).abs().detach()
    found = layer_importance(model, [(inputs, targets)], [f"rnn.{name}"], "taylor", loss=loss)
    same(found[f"rnn.{name}"], expected.unflatten(0, (4, 6)).transpose(0, 1))


def units_by_hooks(model: nn.Module, inputs: Tensor, targets: Tensor, module: nn.Module,
                   unit_dim: int) -> Tensor:
    """|mean over samples of Σ z · dL/dz over positions| of a module's units, with hooks."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    handle = module.register_forward_hook(keep)
    sums = []
    for x, y in zip(inputs.split(1), targets.split(1), strict=True):
        outputs.clear()
        loss(model.eval()(x), y).backward()
        one = sum((z * z.grad).double().movedim(unit_dim, 0).flatten(1).sum(1) for z in outputs)
        sums.append(one.detach())
    handle.remove()
    model.zero_grad()
    return torch.stack(sums).mean(0).abs()


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.again(self.first(x)).relu()))


def twice() -> Twice:
    torch.manual_seed(3)
    return Twice()


UNITS = {
    "mlp, first": (lambda: data_of("mlp"), "0", -1),
    "mlp, second": (lambda: data_of("mlp"), "2", -1),
    "convolution": (lambda: data_of("cnn"), "0", 1),
    "depthwise": (lambda: data_of("cnn"), "3", 1),
    "grouped": (lambda: data_of("cnn"), "5", 1),
    "embedding": (lambda: data_of("attention"), "embed", -1),
    "in a sequence": (lambda: data_of("attention"), "block.linear1", -1),
    "called twice": (lambda: (twice(), rows(SAMPLES, 3), labels(SAMPLES)), "again", -1),
}


@pytest.mark.parametrize(("case", "name", "unit_dim"), UNITS.values(), ids=UNITS)
def test_units_by_hooks_on_their_outputs(case, name, unit_dim):
    model, inputs, targets = case()
    expected = units_by_hooks(model, inputs, targets, model.get_submodule(name), unit_dim)
    batches = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    usage = analyze(model, batches, criterion="taylor", loss=loss, layers=[name])
    found = torch.from_numpy(usage.layers[name].unit_importance)
    same(found, expected)


@dataclass
class Outputs:
    logits: Tensor
    loss: Tensor | None = None


class OwnLoss(nn.Module):
    """Gives its loss itself where it gets labels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 6, 2)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Outputs:
        logits = self.net(x)
        return Outputs(logits, None if labels is None else loss(logits, labels))


def test_a_model_that_gives_its_loss_itself():
    model, x, y = OwnLoss(), rows(SAMPLES, 3), labels(SAMPLES)
    data = [{"x": x[:4], "labels": y[:4]}, {"x": x[4:], "labels": y[4:]}]
    found = layer_importance(model, data, ["net.0"], "taylor")["net.0"]
    weight = model.net[0].weight
    expected = (weight.double() * by_sample(model.net, x, y, weight)).abs().detach()
    same(found, expected)
    again = layer_importance(model, data, ["net.0"], "taylor",
                             loss=lambda outputs, targets: loss(outputs.logits, targets))["net.0"]
    torch.testing.assert_close(again, found)
    with pytest.raises(ValueError, match="^loss: the criterion taylor needs a function"):
        analyze(model, [{"x": x}], criterion="taylor")


def test_frozen_parameters_have_gradients_too():
    model, x, y = data_of("mlp")
    expected = layer_importance(model, [(x, y)], ["0", "2"], "taylor", loss=loss)
    model.requires_grad_(False)
    found = layer_importance(model, [(x, y)], ["0", "2"], "taylor", loss=loss)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in ("0", "2"):
        assert torch.equal(found[name], expected[name])


def test_a_weight_that_the_loss_does_not_depend_on_has_importance_zero():
    model, x, y = data_of("mlp")
    usage = analyze(model, [(x, y)], criterion="taylor", layers=["0", "4"],
                    loss=lambda outputs, targets: (model[0].weight ** 2).sum())
    assert usage.layers["4"].dead
    assert not usage.layers["0"].dead


class Gapped(nn.Module):
    """A weight with gaps in memory, one behind a transpose, and one that is computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.gaps = nn.Linear(3, 5)
        self.gaps.weight = nn.Parameter(torch.randn(5, 8)[:, ::3])
        self.turned = nn.Parameter(torch.randn(5, 4))
        self.normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.linear(self.gaps(x).tanh(), self.turned.T)
        return self.head(self.normed(hidden).tanh())


def test_weights_that_lie_otherwise_in_memory():
    model, x, y = Gapped(), rows(SAMPLES, 3), labels(SAMPLES)
    assert not model.gaps.weight.is_contiguous()
    found = layer_importance(model, [(x[:4], y[:4]), (x[4:], y[4:])], ["gaps", "turned", "normed"],
                             "taylor", loss=loss)
    for name, weight in (("gaps", model.gaps.weight), ("turned", model.turned)):
        expected = (weight.double() * by_sample(model, x, y, weight)).abs().detach()
        same(found[name], expected.T if name == "turned" else expected)
    plain = Gapped()
    torch.nn.utils.parametrize.remove_parametrizations(plain.normed, "weight")
    weight = plain.normed.weight
    same(found["normed"], (weight.double() * by_sample(plain, x, y, weight)).abs().detach())


def test_a_computed_weight_that_is_detached_has_no_gradient():
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part, self.head = nn.Linear(3, 4), Masked(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.part(self.first(x)))

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, (self.weight * 2).detach())

    torch.manual_seed(5)
    usage = analyze(Detached(), [(rows(SAMPLES, 3), labels(SAMPLES))], criterion="taylor",
                    loss=loss)
    assert (usage.layers["first"].dead, usage.layers["part"].dead) == (False, True)


@pytest.mark.parametrize("before", [False, True])
def test_weights_in_reentrant_checkpoints_are_refused(before):
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.reentrant = reentrant
            self.stem, self.inner, self.head = nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x) if before else x.detach().requires_grad_()
            return self.head(checkpoint(self.inner, x, use_reentrant=self.reentrant).relu())

    torch.manual_seed(5)
    model, data = Checkpointed(True), [(rows(SAMPLES, 3), labels(SAMPLES))]
    with pytest.raises(ValueError, match="^model: taylor needs .* use_reentrant=False"):
        analyze(model, data, criterion="taylor", loss=loss)
    assert not any(one.grad is not None for one in model.parameters())
    model.reentrant = False
    assert not analyze(model, data, criterion="taylor", loss=loss).layers["inner"].dead


def test_a_table_whose_gradients_are_sparse():
    def network(*, sparse: bool) -> nn.Sequential:
        torch.manual_seed(5)
        return nn.Sequential(nn.Embedding(20, 4, sparse=sparse), nn.Flatten(), nn.Linear(28, 2))

    x, y = tokens(SAMPLES), labels(SAMPLES)
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    found, expected = (layer_importance(network(sparse=sparse), data, ["0"], "taylor",
                                        loss=loss)["0"] for sparse in (True, False))
    assert torch.equal(found, expected) and bool(expected.any())
