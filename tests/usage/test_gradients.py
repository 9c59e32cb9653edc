"""Mean gradients and the criterion ``taylor``, against autograd by sample; losses it cannot use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy as loss
from torch.utils.checkpoint import checkpoint

from tests.networks import NETWORKS, Layers, labels, mlp, rows, tokens
from wua_mlflow.usage.analyze import analyze, layer_importance
from wua_mlflow.usage.gradients import loss_of

SAMPLES = 9


def data_of(name: str):
    make, inputs = NETWORKS[name]
    return make(), inputs(SAMPLES), labels(SAMPLES)


def by_sample(model: nn.Module, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """|weight · mean of the gradients of single samples' losses|, in float64."""
    gradients = [torch.autograd.grad(loss(model.eval()(x), y), [weight])[0].double()
                 for x, y in zip(inputs.split(1), targets.split(1), strict=True)]
    return (weight.double() * torch.stack(gradients).mean(0)).abs().detach()


def plain(*layers: str):
    return {layer: (f"{layer}.weight", lambda weight: weight) for layer in layers}


TABLE = {"embed": ("embed.weight", lambda table: table.T)}
WEIGHTS = {
    "mlp": plain("0", "2", "4"), "cnn": plain("0", "3", "5", "8"),
    "attention": {
        **TABLE, **plain("block.self_attn.out_proj", "block.linear1", "block.linear2"),
        **{f"block.self_attn.{part}_proj": (
            "block.self_attn.in_proj_weight", lambda fused, i=i: fused.chunk(3)[i])
           for i, part in enumerate("qkv")}},
    "lstm": {**TABLE, **plain("head"), **{f"rnn.{name}": (
        f"rnn.{name}", lambda gates: gates.unflatten(0, (4, 6)).transpose(0, 1))
        for name in ("weight_ih_l0", "weight_hh_l1", "weight_ih_l1_reverse")}}}
"""By network and layer: its parameter, and what of the parameter is the layer's."""


def same(value: Tensor, expected: Tensor) -> None:
    """To float32's rounding, relative to the largest of them."""
    assert value.shape == expected.shape
    assert float((value - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


@pytest.mark.parametrize("network", WEIGHTS)
def test_weights_by_single_samples(network):
    model, inputs, targets = data_of(network)
    batches = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    importances = layer_importance(model, batches, list(WEIGHTS[network]), "taylor", loss=loss)
    for layer, (parameter, part_of) in WEIGHTS[network].items():
        expected = by_sample(model, inputs, targets, model.get_parameter(parameter))
        same(importances[layer], part_of(expected))


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
        sums.append(sum((z * z.grad).double().movedim(unit_dim, 0).flatten(1).sum(1)
                        for z in outputs).detach())
    handle.remove()
    model.zero_grad()
    return torch.stack(sums).mean(0).abs()


def twice() -> Layers:
    """A layer that is called twice."""
    return Layers(lambda model, x: model.head(model.again(model.again(model.first(x)).relu())),
                  first=nn.Linear(3, 5), again=nn.Linear(5, 5), head=nn.Linear(5, 2))


UNITS = {
    "mlp, second": (lambda: data_of("mlp"), "2", -1),
    "convolution": (lambda: data_of("cnn"), "0", 1), "grouped": (lambda: data_of("cnn"), "5", 1),
    "embedding": (lambda: data_of("attention"), "embed", -1),
    "in a sequence": (lambda: data_of("attention"), "block.linear1", -1),
    "called twice": (lambda: (twice(), rows(SAMPLES, 3), labels(SAMPLES)), "again", -1)}


@pytest.mark.parametrize(("case", "name", "unit_dim"), UNITS.values(), ids=UNITS)
def test_units_by_hooks_on_their_outputs(case, name, unit_dim):
    model, inputs, targets = case()
    expected = units_by_hooks(model, inputs, targets, model.get_submodule(name), unit_dim)
    batches = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    usage = analyze(model, batches, criterion="taylor", loss=loss, layers=[name])
    same(torch.from_numpy(usage.layers[name].unit_importance), expected)


@dataclass
class Outputs:
    logits: Tensor
    loss: Tensor | None = None


def own_loss(model: Layers, x: Tensor, labels: Tensor | None = None) -> Outputs:
    """Gives its loss itself where it gets labels."""
    logits = model.net(x)
    return Outputs(logits, None if labels is None else loss(logits, labels))


def test_a_model_that_gives_its_loss_itself():
    model, x, y = Layers(own_loss, net=mlp(3, 6, 2)), rows(SAMPLES, 3), labels(SAMPLES)
    data = [{"x": x[:4], "labels": y[:4]}, {"x": x[4:], "labels": y[4:]}]
    importance = layer_importance(model, data, ["net.0"], "taylor")["net.0"]
    same(importance, by_sample(model.net, x, y, model.net[0].weight))
    again = layer_importance(model, data, ["net.0"], "taylor",
                             loss=lambda outputs, targets: loss(outputs.logits, targets))["net.0"]
    torch.testing.assert_close(again, importance)


def test_frozen_parameters_have_gradients_too():
    model, x, y = data_of("mlp")
    expected = layer_importance(model, [(x, y)], ["0", "2"], "taylor", loss=loss)
    model.requires_grad_(False)
    importances = layer_importance(model, [(x, y)], ["0", "2"], "taylor", loss=loss)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name in ("0", "2"):
        assert torch.equal(importances[name], expected[name])


def test_a_weight_that_the_loss_does_not_depend_on_has_importance_zero():
    model, x, y = data_of("mlp")
    usage = analyze(model, [(x, y)], criterion="taylor", layers=["0", "4"],
                    loss=lambda outputs, targets: (model[0].weight ** 2).sum())
    assert usage.layers["4"].dead and not usage.layers["0"].dead


def test_weights_that_lie_otherwise_in_memory():
    """A weight with gaps in memory, one behind a transpose, and one that is computed."""
    model = Layers(lambda model, x: model.head(model.normed(functional.linear(
        model.gaps(x).tanh(), model.turned.T)).tanh()), gaps=nn.Linear(3, 5), head=nn.Linear(4, 2),
        turned=nn.Parameter(torch.randn(5, 4)),
        normed=torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    model.gaps.weight = nn.Parameter(torch.randn(5, 8)[:, ::3])
    x, y = rows(SAMPLES, 3), labels(SAMPLES)
    assert not model.gaps.weight.is_contiguous()
    importances = layer_importance(model, [(x[:4], y[:4]), (x[4:], y[4:])],
                                   ["gaps", "turned", "normed"], "taylor", loss=loss)
    same(importances["gaps"], by_sample(model, x, y, model.gaps.weight))
    same(importances["turned"], by_sample(model, x, y, model.turned).T)
    torch.nn.utils.parametrize.remove_parametrizations(model.normed, "weight")
    same(importances["normed"], by_sample(model, x, y, model.normed.weight))


def test_a_computed_weight_that_is_detached_has_no_gradient():
    part = Layers(lambda part, x: functional.linear(x, (part.weight * 2).detach()),
                  weight=nn.Parameter(torch.ones(4, 4)))
    model = nn.Sequential(nn.Linear(3, 4), part, nn.Linear(4, 2))
    usage = analyze(model, [(rows(SAMPLES, 3), labels(SAMPLES))], criterion="taylor", loss=loss)
    assert (usage.layers["0"].dead, usage.layers["1"].dead) == (False, True)


@pytest.mark.parametrize("before", [False, True])
def test_weights_in_reentrant_checkpoints_are_refused(before):
    def run(model: Layers, x: Tensor) -> Tensor:
        x = model.stem(x) if before else x.detach().requires_grad_()
        return model.head(checkpoint(model.inner, x, use_reentrant=model.reentrant).relu())

    model, data = Layers(run, stem=nn.Linear(3, 3), inner=nn.Linear(3, 4),
                         head=nn.Linear(4, 2)), [(rows(SAMPLES, 3), labels(SAMPLES))]
    model.reentrant = True
    with pytest.raises(ValueError, match="^model: taylor needs .* use_reentrant=False"):
        analyze(model, data, criterion="taylor", loss=loss)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.reentrant = False
    assert not analyze(model, data, criterion="taylor", loss=loss).layers["inner"].dead


def test_a_table_whose_gradients_are_sparse():
    def network(*, sparse: bool) -> nn.Sequential:
        torch.manual_seed(5)
        return nn.Sequential(nn.Embedding(20, 4, sparse=sparse), nn.Flatten(), nn.Linear(28, 2))

    x, y = tokens(SAMPLES), labels(SAMPLES)
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    importance, expected = (layer_importance(network(sparse=sparse), data, ["0"], "taylor",
                                             loss=loss)["0"] for sparse in (True, False))
    assert torch.equal(importance, expected) and bool(expected.any())


PLAIN = mlp(3, 4, 2)
BATCH = [(rows(4, 3), labels(4))]


@pytest.mark.parametrize(("function", "message"), [
    (lambda outputs, targets: outputs.sum(1), r"a scalar tensor .*, but got shape \(4,\)"),
    (lambda outputs, targets: 1.0, "a scalar tensor .*, but got float"),
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
    model = Layers(lambda model, x: model.head((model.first(x) * 0).sqrt()),
                   first=nn.Linear(3, 4), head=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="^layer first: .* finite .* but got NaN"):
        analyze(model, BATCH, criterion="taylor", loss=loss)


def test_a_loss_of_one_element_is_a_scalar():
    scalar, reshaped = (
        analyze(PLAIN, BATCH, criterion="taylor", loss=function).layers["0"].entropy
        for function in (loss, lambda outputs, targets: loss(outputs, targets).reshape(1, 1)))
    assert scalar == reshaped


def test_neither_loss_nor_targets():
    with pytest.raises(ValueError, match="^loss: the criterion taylor needs a function of outputs "
                                         "and targets, or a model whose outputs have a loss, but "
                                         "got neither$"):
        analyze(PLAIN, BATCH, criterion="taylor")
    for data in (rows(4, 3), [rows(4, 3)], [(rows(4, 3),)]):
        with pytest.raises(ValueError, match="^data: the criterion taylor needs targets, but the "
                                             "batches are inputs alone"):
            analyze(PLAIN, data, criterion="taylor", loss=loss)


def test_the_loss_is_the_users_where_both_are_there():
    outputs = SimpleNamespace(loss=torch.ones(1, requires_grad=True))
    value = torch.full((), 2.0, requires_grad=True)
    assert loss_of(outputs, None, None, number=0) == 1
    assert loss_of(outputs, None, lambda out, targets: value, number=0) == 2
