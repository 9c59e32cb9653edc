"""Σ a·g of units that the gradients of their weights do not give: against masks on the units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy as loss
from torch.nn.utils.rnn import pack_padded_sequence

from tests.model_forms import Layers
from tests.networks import labels, rows, tokens
from wua_mlflow.usage.analyze import analyze

SAMPLES, STEPS, INPUTS, UNITS = 9, 5, 3, 4


def units_of(model: nn.Module, data, names, loss=loss) -> dict[str, Tensor]:
    usage = analyze(model, data, criterion="taylor", layers=list(names), loss=loss)
    return {name: torch.from_numpy(usage.layers[name].unit_importance) for name in names}


def assert_close(importances: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(importances) == list(expected)
    for name, reference in expected.items():
        units, reference = importances[name], reference.double().abs()
        assert units.shape == reference.shape and float(reference.max()) > 0
        assert float((units - reference).abs().max()) <= 3e-6 * float(reference.max())


class Reader(nn.Module):
    """A recurrent network whose states are read at every step, at the last, or both."""

    def __init__(self, rnn: nn.RNNBase, reads: str) -> None:
        super().__init__()
        self.rnn, self.reads, self.ways = rnn, reads, 2 if rnn.bidirectional else 1
        self.head = nn.Linear(self.ways * (rnn.proj_size or rnn.hidden_size), 2)

    def forward(self, x: Tensor) -> Tensor:
        states, ends = self.rnn(x)
        last = ends[0] if isinstance(ends, tuple) else ends
        return self.read(states, last[-self.ways:].transpose(0, 1).flatten(1))

    def read(self, states: Tensor, last: Tensor) -> Tensor:
        if self.reads == "last":
            return self.head(last)
        every = self.head(states.square()).sum(1)
        return every if self.reads == "every" else every + self.head(last)


def by_masks(model: Reader, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """The model's outputs, step by step, each state times its mask wherever it is read."""
    rnn, finals = model.rnn, []
    for layer in range(rnn.num_layers):
        by_way = []
        for way in range(model.ways):
            suffix = f"_l{layer}" + "_reverse" * way
            into, back, b_in, b_back = (getattr(rnn, f"{name}{suffix}") for name in
                                        ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            shrink = getattr(rnn, f"weight_hr{suffix}", None)
            read = masks[f"weight_{'hh' if shrink is None else 'hr'}{suffix}"]
            state, memory, after = x.new_zeros(len(x), back.shape[1]), 0, []
            for step in x.flip(1).unbind(1) if way else x.unbind(1):
                gates = step @ into.T + b_in
                more = (state * read) @ back.T + b_back
                if isinstance(rnn, nn.LSTM):
                    i, f, g, o = (gates + more).chunk(4, 1)
                    memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
                    state = o.sigmoid() * memory.tanh()
                    if shrink is not None:
                        state = (state * masks[f"weight_hh{suffix}"]) @ shrink.T
                elif isinstance(rnn, nn.GRU):
                    (r, z, n), (rh, zh, nh) = gates.chunk(3, 1), more.chunk(3, 1)
                    gate = (z + zh).sigmoid()
                    state = (1 - gate) * (n + (r + rh).sigmoid() * nh).tanh() + gate * state
                else:
                    state = (gates + more).tanh()
                after.append(state * read)
            finals.append(after[-1])
            by_way.append(torch.stack(after[::-1] if way else after, 1))
        x = torch.cat(by_way, -1)
    return model.read(x, torch.cat(finals[-model.ways:], -1))


RECURRENT = {
    "LSTM": (lambda: nn.LSTM(INPUTS, UNITS, batch_first=True), "last"),
    "LSTM, two layers, both ways": (lambda: nn.LSTM(
        INPUTS, UNITS, 2, batch_first=True, bidirectional=True), "both"),
    "projected LSTM": (lambda: nn.LSTM(
        INPUTS, UNITS, 2, batch_first=True, proj_size=3, bidirectional=True), "every"),
    "GRU, two layers": (lambda: nn.GRU(INPUTS, UNITS, 2, batch_first=True), "both"),
    "RNN, both ways": (lambda: nn.RNN(
        INPUTS, UNITS, batch_first=True, bidirectional=True), "every")}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("make", "reads"), RECURRENT.values(), ids=RECURRENT)
def test_hidden_units_by_masks_on_their_states(make, reads):
    model, x, y = Reader(make(), reads).eval(), rows(SAMPLES, STEPS, INPUTS), labels(SAMPLES)
    weights = {name: weight for name, weight in model.rnn.named_parameters() if "weight" in name}
    masks = {name: torch.ones(len(weight) if "_hr_" in name else UNITS, requires_grad=True)
             for name, weight in weights.items() if "_ih_" not in name}
    outputs = by_masks(model, x, masks)
    torch.testing.assert_close(outputs, model(x), rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(loss(outputs, y), list(masks.values()), allow_unused=True)
    by_mask = dict(zip(masks, gradients, strict=True))
    expected = {f"rnn.{name}": by_mask[name.replace("_ih_", "_hh_")] for name in weights}
    assert_close(units_of(model, [(x[:4], y[:4]), (x[4:], y[4:])], expected), expected)
    first = next(iter(expected))  # without the layer whose weight reads the states
    assert_close(units_of(model, [(x, y)], [first]), {first: expected[first]})


class Stepwise(Reader):
    """One call a step, each with the state that the one before left."""

    def forward(self, x: Tensor) -> Tensor:
        by_step, state = [], None
        for step in x.unbind(1):
            states, state = self.rnn(step[:, None], state)
            by_step.append(states)
        last = state[0] if isinstance(state, tuple) else state
        return self.read(torch.cat(by_step, 1), last[-1])


class Packed(Reader):
    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, [STEPS] * len(x), batch_first=True)
        return self.read(self.rnn(packed)[0].data.unflatten(0, (STEPS, -1)).transpose(0, 1), x)


@pytest.mark.parametrize(("kind", "rnn", "layers", "reads"), [
    (Packed, nn.LSTM, 1, "every"), (Stepwise, nn.LSTM, 2, "every"), (Stepwise, nn.GRU, 1, "both"),
    (Stepwise, nn.RNN, 1, "both")])
def test_the_states_of_packed_sequences_and_those_that_are_handed_on(kind, rnn, layers, reads):
    plain = Reader(rnn(INPUTS, UNITS, layers, batch_first=True), reads)
    other, x, y = kind(plain.rnn, reads), rows(SAMPLES, STEPS, INPUTS), labels(SAMPLES)
    other.head = plain.head
    torch.testing.assert_close(other(x), plain(x))
    names = [f"rnn.{name}" for name, _ in plain.rnn.named_parameters() if "weight" in name]
    assert_close(units_of(other, [(x, y)], names), units_of(plain, [(x, y)], names))


class Masked(Layers):
    """``layer(name)`` of the model's parts has its outputs times a mask, where there is one."""

    def __init__(self, run: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__(run, **parts)
        self.masks: dict[str, Tensor] = {}

    def masked(self, name: str, outputs: Tensor) -> Tensor:
        return outputs * self.masks[name] if name in self.masks else outputs


def tied_table() -> Masked:
    """A table that is looked up and, at the end, multiplied with."""
    def run(model: Masked, ids: Tensor) -> Tensor:
        hidden = torch.relu_(model.body(model.masked("one", model.one(ids))))
        return model.head(hidden).mean(1)[:, :2]

    model = Masked(run, one=nn.Embedding(20, 4), body=nn.Linear(4, 4),
                   head=nn.Linear(4, 20, bias=False))
    model.head.weight = model.one.weight
    return model


def two_modules(late: bool) -> Masked:
    """One weight under two modules, whose biases differ; in place after each."""
    def run(model: Masked, x: Tensor) -> Tensor:
        if late:
            outputs = functional.linear(x, model.one.weight) + model.one.bias
            return model.head(torch.tanh(model.masked("one", outputs)))
        for layer in (model.one, model.two):
            x = torch.tanh_(model.masked("one", layer(x)))
        return model.head(x)

    model = Masked(run, one=nn.Linear(3, 3), two=nn.Linear(3, 3), head=nn.Linear(3, 2))
    model.two.weight = model.one.weight
    return model


def sum_of(products: Callable[..., dict[str, Tensor]], **parts: nn.Module | nn.Parameter) -> Masked:
    def run(model: Masked, x: Tensor) -> Tensor:
        return model.head(sum(model.masked(name, outputs).tanh()
                              for name, outputs in products(model, x).items()))

    return Masked(run, **parts, head=nn.Linear(4, 2))


def shared_bias() -> Masked:
    """Two layers with one bias, and one whose bias is computed."""
    model = sum_of(lambda model, x: {
        "one": model.one(x), "two": model.two(x),
        "made": functional.linear(x, model.made.weight, model.made.bias * 2)},
        one=nn.Linear(3, 4), two=nn.Linear(3, 4), made=nn.Linear(3, 4))
    model.two.bias = model.one.bias
    return model


def lent_bias(late: bool) -> Masked:
    """Two weights and one bias in one module, added by the function or afterwards."""
    parameters = {name: nn.Parameter(torch.randn(*shape)) for name, shape in (
        ("one", (4, 3)), ("two", (4, 3)), ("bias", (4,)))}
    return sum_of(lambda model, x: {
        name: functional.linear(x, weight) + model.bias if late
        else functional.linear(x, weight, model.bias)
        for name, weight in (("one", model.one), ("two", model.two))}, **parameters)


SHARED = {
    "tied table": (tied_table, ["one"], 4),
    "tied weight, two biases": (lambda: two_modules(False), ["one"], 3),
    "tied weight, bias added": (lambda: two_modules(True), ["one"], 3),
    "shared bias": (shared_bias, ["one", "two", "made"], 4),
    "lent bias": (lambda: lent_bias(False), ["one", "two"], 4),
    "lent bias, added": (lambda: lent_bias(True), ["one", "two"], 4)}


@pytest.mark.parametrize("name", SHARED)
def test_weights_and_biases_of_several_uses_by_masks_on_the_outputs(name):
    make, layers, units = SHARED[name]
    model, y = make().eval(), labels(SAMPLES)
    x = tokens(SAMPLES) if name == "tied table" else rows(SAMPLES, 3)
    masks = {layer: torch.ones(units, requires_grad=True) for layer in layers}
    model.masks = masks
    gradients = torch.autograd.grad(loss(model(x), y), list(masks.values()))
    model.masks = {}
    assert_close(units_of(model, [(x[:4], y[:4]), (x[4:], y[4:])], layers),
                 dict(zip(masks, gradients, strict=True)))


def test_what_the_loss_does_not_depend_on_has_units_of_zero():
    model, x, y = two_modules(False), rows(SAMPLES, 3), labels(SAMPLES)
    units = units_of(model, [(x, y)], ["one"], loss=lambda outputs, y: model.head.bias.sum())
    assert not units["one"].any()
