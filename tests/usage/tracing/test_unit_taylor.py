"""Σ a·g of units that the gradients of their weights do not give: against masks on the units."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from tests.networks import labels, rows, tokens
from wua_mlflow.usage.analyze import analyze

SAMPLES, STEPS, INPUTS, UNITS = 9, 5, 3, 4


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets)


def units_of(model: nn.Module, data, names, **options) -> dict[str, Tensor]:
    usage = analyze(model, data, criterion="taylor", loss=loss, layers=list(names), **options)
    return {name: torch.from_numpy(usage.layers[name].unit_importance) for name in names}


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float(expected.max()) > 0
    assert float((found - expected).abs().max()) <= 3e-6 * float(expected.max())


class Reader(nn.Module):
    """A recurrent network whose states are read at every step, at the last, or both."""

    def __init__(self, rnn: nn.RNNBase, reads: str, lengths=None) -> None:
        super().__init__()
        self.rnn, self.reads, self.lengths = rnn, reads, lengths
        ways = 2 if rnn.bidirectional else 1
        self.head = nn.Linear(ways * (rnn.proj_size or rnn.hidden_size), 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.lengths is not None:
            x = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=False)
        states, ends = self.rnn(x)
        last = ends[0] if isinstance(ends, tuple) else ends
        ways = 2 if self.rnn.bidirectional else 1
        last = last[-ways:].transpose(0, 1).flatten(1)
        if self.reads == "last":
            return self.head(last)
        every = self.head(states.square()).sum(1)
        return every if self.reads == "every" else every + self.head(last)


def by_masks(model: Reader, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """The model's outputs, step by step, each state times its mask wherever it is read."""
    rnn, finals = model.rnn, []
    for layer in range(rnn.num_layers):
        found = []
        for way in range(2 if rnn.bidirectional else 1):
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
            found.append(torch.stack(after[::-1] if way else after, 1))
        x = torch.cat(found, -1)
    last = torch.cat(finals[-(2 if rnn.bidirectional else 1):], -1)
    every = model.head(x.square()).sum(1)
    return {"last": model.head(last), "every": every, "both": every + model.head(last)}[model.reads]


RECURRENT = {
    "LSTM": (lambda: nn.LSTM(INPUTS, UNITS, batch_first=True), "last"),
    "LSTM, two layers, both ways": (lambda: nn.LSTM(
        INPUTS, UNITS, 2, batch_first=True, bidirectional=True), "both"),
    "projected LSTM": (lambda: nn.LSTM(
        INPUTS, UNITS, 2, batch_first=True, proj_size=3, bidirectional=True), "every"),
    "GRU, two layers": (lambda: nn.GRU(INPUTS, UNITS, 2, batch_first=True), "both"),
    "RNN, both ways": (lambda: nn.RNN(
        INPUTS, UNITS, batch_first=True, bidirectional=True), "every"),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("make", "reads"), RECURRENT.values(), ids=RECURRENT)
def test_hidden_units_by_masks_on_their_states(make, reads):
    model, x, y = Reader(make(), reads).eval(), rows(SAMPLES, STEPS, INPUTS), labels(SAMPLES)
    weights = {name: one for name, one in model.rnn.named_parameters() if "weight" in name}
    masks = {name: torch.ones(len(one) if "_hr_" in name else UNITS, requires_grad=True)
             for name, one in weights.items() if "_ih_" not in name}
    outputs = by_masks(model, x, masks)
    torch.testing.assert_close(outputs, model(x), rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(loss(outputs, y), list(masks.values()), allow_unused=True)
    expected = {name: one.double().abs() for name, one in zip(masks, found, strict=True)}
    expected |= {name: expected[name.replace("_ih_", "_hh_")] for name in weights
                 if "_ih_" in name}
    names = [f"rnn.{name}" for name in weights]
    seen = units_of(model, [(x[:4], y[:4]), (x[4:], y[4:])], names)
    for name in weights:
        close(seen[f"rnn.{name}"], expected[name])
    alone = units_of(model, [(x, y)], [names[0]])  # without the layer whose weight reads the states
    close(alone[names[0]], expected[next(iter(weights))])


def test_hidden_units_of_packed_sequences():
    lengths = [STEPS] * SAMPLES
    torch.manual_seed(1)
    rnn = nn.LSTM(INPUTS, UNITS, batch_first=True)

    class Packed(Reader):
        def forward(self, x: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, lengths[:len(x)], batch_first=True)
            states = self.rnn(packed)[0]
            return self.head(states.data.square()).unflatten(0, (STEPS, -1)).sum(0)

    packed, plain = Packed(rnn, "every"), Reader(rnn, "every")
    plain.head = packed.head
    x, y = rows(SAMPLES, STEPS, INPUTS), labels(SAMPLES)
    torch.testing.assert_close(packed(x), plain(x))
    names = ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    found, expected = units_of(packed, [(x, y)], names), units_of(plain, [(x, y)], names)
    for name in names:
        close(found[name], expected[name])


class Tied(nn.Module):
    """A table that is looked up and, at the end, multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(11, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        found = self.embed(x)
        found = found if self.mask is None else found * self.mask
        return self.head(torch.relu_(self.body(found))).mean(1)[:, :2]


def test_a_tied_table_has_the_units_of_its_first_use():
    model, x, y = Tied().eval(), tokens(SAMPLES) % 11, labels(SAMPLES)
    model.mask = torch.ones(4, requires_grad=True)
    expected, = torch.autograd.grad(loss(model(x), y), [model.mask])
    model.mask = None
    found = units_of(model, [(x[:2], y[:2]), (x[2:], y[2:])], ["embed"])["embed"]
    close(found, expected.double().abs())
    weight = model.embed.weight
    gradient, = torch.autograd.grad(loss(model(x), y), [weight])
    of_all_uses = (weight.detach() * gradient).sum(0).abs()
    assert float((of_all_uses - found).abs().max()) > 0.1 * float(found.max())


class TwoBiases(nn.Module):
    """One weight under two modules, whose biases differ; in place after each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.two.weight = self.one.weight
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.two):
            x = layer(x)
            x = torch.tanh_(x if self.mask is None else x * self.mask)
        return self.head(x)


def test_a_weight_of_two_modules_with_biases_of_their_own():
    model, x, y = TwoBiases().eval(), rows(SAMPLES, 3), labels(SAMPLES)
    model.mask = torch.ones(3, requires_grad=True)
    expected, = torch.autograd.grad(loss(model(x), y), [model.mask])
    model.mask = None
    close(units_of(model, [(x, y)], ["one"])["one"], expected.double().abs())


def test_what_the_loss_does_not_depend_on_has_units_of_zero():
    model, x, y = TwoBiases(), rows(SAMPLES, 3), labels(SAMPLES)
    usage = analyze(model, [(x, y)], criterion="taylor", layers=["one"],
                    loss=lambda outputs, targets: model.head.bias.sum())
    assert not usage.layers["one"].unit_importance.any()


class Stepwise(Reader):
    """The same, one call a step, each with the state that the one before left."""

    def forward(self, x: Tensor) -> Tensor:
        states, state = [], None
        for step in x.unbind(1):
            one, state = self.rnn(step[:, None], state)
            states.append(one)
        every = self.head(torch.cat(states, 1).square()).sum(1)
        last = state[0] if isinstance(state, tuple) else state
        return every if self.reads == "every" else every + self.head(last[-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("reads", ["every", "both"])
def test_a_state_that_is_handed_on_counts_once(kind, reads):
    rnn = kind(INPUTS, UNITS, 2 if kind is nn.LSTM else 1, batch_first=True)
    whole, steps = Reader(rnn, reads), Stepwise(rnn, reads)
    steps.head = whole.head
    x, y = rows(SAMPLES, STEPS, INPUTS), labels(SAMPLES)
    if kind is nn.LSTM:  # its last layer's end alone
        whole.reads = steps.reads = "every"
    torch.testing.assert_close(steps(x), whole(x))
    names = [f"rnn.{name}" for name, _ in rnn.named_parameters() if "weight" in name]
    found, expected = (units_of(one, [(x, y)], names) for one in (steps, whole))
    for name in names:
        close(found[name], expected[name])


class Shared(nn.Module):
    """Two layers with one bias, and one whose bias is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.made = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
        self.two.bias = self.one.bias
        self.head = nn.Linear(4, 2)
        self.masks: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        found = {
            "one": self.one(x), "two": self.two(x),
            "made": functional.linear(x, self.made.weight, self.made.bias * 2)}
        return self.head(sum((one * self.masks.get(name, 1)).tanh()
                             for name, one in found.items()))


def test_biases_that_are_shared_or_computed():
    model, x, y = Shared(), rows(SAMPLES, 3), labels(SAMPLES)
    names = ["one", "two", "made"]
    model.masks = {name: torch.ones(4, requires_grad=True) for name in names}
    expected = torch.autograd.grad(loss(model(x), y), list(model.masks.values()))
    model.masks = {}
    found = units_of(model, [(x[:4], y[:4]), (x[4:], y[4:])], names)
    for name, one in zip(names, expected, strict=True):
        close(found[name], one.double().abs())


class Lent(nn.Module):
    """Two weights and one bias in one module, added by the function or afterwards."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late = late
        self.one, self.two = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))
        self.bias, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 2)
        self.masks: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        found = {name: functional.linear(x, weight) + self.bias if self.late
                 else functional.linear(x, weight, self.bias)
                 for name, weight in (("one", self.one), ("two", self.two))}
        return self.head(sum((one * self.masks.get(name, 1)).tanh()
                             for name, one in found.items()))


@pytest.mark.parametrize("late", [False, True])
def test_a_bias_that_two_products_of_a_module_share(late):
    model, x, y = Lent(late), rows(SAMPLES, 3), labels(SAMPLES)
    model.masks = {name: torch.ones(4, requires_grad=True) for name in ("one", "two")}
    expected = torch.autograd.grad(loss(model(x), y), list(model.masks.values()))
    model.masks = {}
    found = units_of(model, [(x[:4], y[:4]), (x[4:], y[4:])], ["one", "two"])
    for name, one in zip(("one", "two"), expected, strict=True):
        close(found[name], one.double().abs())


def test_a_bias_added_to_a_tied_weight():
    class Late(TwoBiases):
        def forward(self, x: Tensor) -> Tensor:
            mask = 1 if self.mask is None else self.mask
            x = torch.tanh((functional.linear(x, self.one.weight) + self.one.bias) * mask)
            return self.head(x)

    model, x, y = Late(), rows(SAMPLES, 3), labels(SAMPLES)
    model.mask = torch.ones(3, requires_grad=True)
    expected, = torch.autograd.grad(loss(model(x), y), [model.mask])
    model.mask = None
    close(units_of(model, [(x, y)], ["one"])["one"], expected.double().abs())
