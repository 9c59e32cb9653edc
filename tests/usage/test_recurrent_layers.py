"""LSTM, GRU and RNN: each weight matrix by hand, from single layers run one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tests.networks import Layers, labels, rows
from tests.references import assert_importance, flat, unnamed
from wua_mlflow.usage.analyze import analyze, layer_importance
from wua_mlflow.usage.criteria import CRITERIA

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
KINDS = pytest.mark.parametrize("kind", list(GATES), ids=lambda kind: kind.__name__)


class Only(nn.Module):
    """A recurrent network, with what its caller gives it beside the inputs."""

    def __init__(self, rnn: nn.RNNBase, *state, lengths: list[int] | None = None) -> None:
        super().__init__()
        self.rnn, self.state, self.lengths = rnn, state, lengths

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if self.lengths is not None:
            x = pack_padded_sequence(x, self.lengths, self.rnn.batch_first, enforce_sorted=False)
        out = self.rnn(x, *self.state)[0]
        return out.data if isinstance(out, PackedSequence) else out


def one_sequence(rnn: nn.RNNBase, layer: int, way: int, x: Tensor, first: Tensor, memory: Tensor):
    """(states before each step, states after) of one layer and direction, x (steps, in)."""
    suffix = f"_l{layer}" + "_reverse" * way
    names = [f"{name}{suffix}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
             if hasattr(rnn, f"{name}{suffix}")]
    into, back, *biases = (getattr(rnn, name) for name in names)
    b_in, b_back = biases if biases else (torch.zeros(len(into)),) * 2
    shrink = getattr(rnn, f"weight_hr{suffix}", None)
    before, after, state = [], [], first
    for step in (x.flip(0) if way else x):
        before.append(state)
        if isinstance(rnn, nn.LSTM):
            i, f, g, o = (into @ step + b_in + back @ state + b_back).chunk(4)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            state = o.sigmoid() * memory.tanh()
            state = state if shrink is None else shrink @ state
        elif isinstance(rnn, nn.GRU):
            r, z, n = (into @ step + b_in).chunk(3)
            rh, zh, nh = (back @ state + b_back).chunk(3)
            new = (n + (r + rh).sigmoid() * nh).tanh()
            gate = (z + zh).sigmoid()
            state = (1 - gate) * new + gate * state
        else:
            sums = into @ step + b_in + back @ state + b_back
            state = sums.tanh() if rnn.nonlinearity == "tanh" else sums.relu()
        after.append(state)
    before, after = torch.stack(before), torch.stack(after)
    return (before.flip(0), after.flip(0)) if way else (before, after)


@torch.no_grad()
def step_by_step(rnn: nn.RNNBase, sequences: list[Tensor], states: Tensor, memories: Tensor):
    """By (layer, way): what its input weight met, its hidden weight met, and its units gave."""
    ways, by_layer = 2 if rnn.bidirectional else 1, {}
    for layer in range(rnn.num_layers):
        parts = [[one_sequence(rnn, layer, way, x, states[layer * ways + way, n],
                               memories[layer * ways + way, n]) for way in range(ways)]
                 for n, x in enumerate(sequences)]
        for way in range(ways):
            before, after = (torch.cat([part[way][i] for part in parts]) for i in (0, 1))
            by_layer[layer, way] = torch.cat(sequences), before, after
        sequences = [torch.cat([after for _, after in part], 1) for part in parts]
    return by_layer, sequences


def assert_by_hand(
    model: Only, data, sequences: list[Tensor], *, state: Tensor | None = None,
    memory: Tensor | None = None
) -> list[Tensor]:
    """All weights of all layers; gives what the network gives, as step by step it is."""
    rnn = model.rnn
    gates, hidden = GATES[type(rnn)], rnn.proj_size or rnn.hidden_size
    count = rnn.num_layers * (2 if rnn.bidirectional else 1)
    state = torch.zeros(count, len(sequences), hidden) if state is None else state
    memory = torch.zeros(count, len(sequences), rnn.hidden_size) if memory is None else memory
    by_layer, outputs = step_by_step(rnn, sequences, state, memory)
    for (layer, way), (x, before, after) in by_layer.items():
        for name, met in (("weight_ih", x), ("weight_hh", before)):
            name = f"rnn.{name}_l{layer}" + "_reverse" * way
            weight = model.get_parameter(name).unflatten(0, (gates, -1)).transpose(0, 1).flatten(1)
            shown = () if rnn.proj_size else ("output",)
            assert_importance(model, data, name, weight, met.repeat(1, gates), after,
                              only=(*shown, "input", "wanda", "magnitude"))
    return outputs


@KINDS
@pytest.mark.parametrize(("bidirectional", "batch_first"), [(False, False), (True, True)],
                         ids=["one way, time first", "both ways, batch first"])
def test_two_layers_step_by_step(kind, bidirectional, batch_first):
    model = Only(kind(3, 4, 2, batch_first=batch_first, bidirectional=bidirectional))
    x = rows(5, 6, 3)  # five samples, six steps
    inputs = x if batch_first else x.transpose(0, 1)
    outputs = assert_by_hand(model, [inputs], list(x))
    torch.testing.assert_close(torch.stack(outputs, 0 if batch_first else 1), model(inputs))
    usage = analyze(model, [inputs], layers=["rnn"])
    assert len(usage.layers) == (8 if bidirectional else 4)
    assert {(layer.kind, layer.units) for layer in usage.layers.values()} == {(kind.__name__, 4)}
    assert unnamed(model, usage) == []


@KINDS
def test_without_biases_and_with_dropout_that_sleeps(kind):
    model, x = Only(kind(3, 4, 2, batch_first=True, bias=False, dropout=0.5)), rows(5, 6, 3)
    assert_by_hand(model, x, list(x))


def test_an_rnn_of_relus():
    model = Only(nn.RNN(3, 4, 2, nonlinearity="relu", batch_first=True))
    assert_by_hand(model, rows(5, 6, 3), list(rows(5, 6, 3)))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_projected_lstm(bidirectional):
    rnn = nn.LSTM(3, 5, 2, proj_size=2, batch_first=True, bidirectional=bidirectional)
    model, x = Only(rnn), rows(4, 6, 3)
    outputs = assert_by_hand(model, x, list(x))
    name = "rnn.weight_hr_l1" + "_reverse" * bidirectional
    mean = flat(torch.stack(outputs))[:, -2:].mean(0)
    expected = model.get_parameter(name).abs() * mean.abs()[:, None]
    importance = layer_importance(model, x, [name])[name].flatten(1)
    torch.testing.assert_close(importance, expected.double(), rtol=1e-5, atol=1e-8)
    usage = analyze(model, x, criterion="wanda", layers=["rnn"])
    assert usage.skipped[name] == "what its weights multiply is hidden within the cell"
    assert unnamed(model, usage) == []
    reason = "its units' outputs are hidden by a projection: no mean output"
    assert analyze(model, x).skipped["rnn.weight_ih_l0"] == reason


@KINDS
def test_packed_sequences_are_the_unpadded_ones(kind):
    lengths, x = [2, 6, 4], rows(3, 6, 3)
    model = Only(kind(3, 4, 2, batch_first=True, bidirectional=True), lengths=lengths)
    assert_by_hand(model, x, [steps[:n] for steps, n in zip(x, lengths, strict=True)])


@KINDS
def test_a_state_that_the_caller_gives(kind):
    state, memory = rows(2, 3, 4), rows(2, 3, 4, seed=5)
    model = Only(kind(3, 4, 2, batch_first=True), (state, memory) if kind is nn.LSTM else state)
    x = rows(3, 6, 3)
    assert_by_hand(model, x, list(x), state=state, memory=memory)


@KINDS
def test_one_sequence_without_a_batch_dimension(kind):
    assert_by_hand(Only(kind(3, 4, 2)), [rows(6, 3)], [rows(6, 3)])


@KINDS
def test_padding_on_the_right_counts_nowhere(kind):
    model, lengths, x = Only(kind(3, 4, 2, batch_first=True)), [2, 6, 4], rows(3, 6, 3)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    batch = {"x": x + 3 * ~mask.unsqueeze(-1), "attention_mask": mask}
    assert_by_hand(model, [batch], [steps[:n] for steps, n in zip(x, lengths, strict=True)])


CELLS = {"LSTM": (nn.LSTMCell, nn.LSTM, {}), "GRU": (nn.GRUCell, nn.GRU, {}),
         "RNN": (nn.RNNCell, nn.RNN, {}), "ReLU": (nn.RNNCell, nn.RNN, {"nonlinearity": "relu"})}


def unrolled(model: Layers, x: Tensor) -> Tensor:
    """A cell's hidden states at all steps, through the head."""
    states, outputs = None, []
    for step in x.unbind(1):
        states = model.rnn(step, states)
        outputs.append(states[0] if isinstance(states, tuple) else states)
    return model.head(torch.stack(outputs, 1).tanh()).mean(1)


def cell_and_network(name: str, *, bias: bool = True) -> tuple[Layers, Layers]:
    cell, network, options = CELLS[name]
    torch.manual_seed(0)
    models = [Layers(run, rnn=rnn, head=nn.Linear(4, 2)) for run, rnn in (
        (unrolled, cell(3, 4, bias=bias, **options)),
        (lambda model, x: model.head(model.rnn(x)[0].tanh()).mean(1),
         network(3, 4, bias=bias, batch_first=True, **options)))]
    models[1].load_state_dict({name + "_l0" * name.startswith("rnn"): value
                               for name, value in models[0].state_dict().items()})
    return models[0], models[1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_called_step_by_step_has_the_figures_of_the_whole_layer(name, bias):
    stepwise, whole = cell_and_network(name, bias=bias)
    data = [(rows(5, 6, 3), labels(5)), (rows(2, 6, 3, seed=7), labels(2))]
    torch.testing.assert_close(stepwise(data[0][0]), whole(data[0][0]))
    criteria = [criterion for criterion in CRITERIA if (criterion, name) != ("taylor", "GRU")]
    expected = analyze(whole, data, criterion=criteria, loss=functional.cross_entropy)
    for criterion, usage in analyze(stepwise, data, criterion=criteria,
                                    loss=functional.cross_entropy).items():
        assert list(usage.layers) == ["rnn.weight_ih", "rnn.weight_hh"]
        assert usage.skipped.keys() == {"head"} and unnamed(stepwise, usage) == []
        for layer in usage.layers.values():
            other = expected[criterion].layers[f"{layer.name}_l0"]
            assert (layer.units, layer.weights, layer.kind) == (
                4, other.weights, CELLS[name][0].__name__)
            assert layer.unit_importance == pytest.approx(other.unit_importance, rel=1e-4)
            assert layer.entropy == pytest.approx(other.entropy, rel=1e-4)
            assert layer.forward_flops == other.forward_flops
            assert layer.dead_units == other.dead_units


def test_every_state_of_a_gru_cell_counts_where_it_was_made():
    model, _ = cell_and_network("GRU")
    x, y, states = rows(5, 6, 3), labels(5), []

    def keep(_: nn.Module, inputs: object, state: Tensor) -> None:
        state.retain_grad()
        states.append(state)

    handle = model.rnn.register_forward_hook(keep)
    functional.cross_entropy(model(x), y).backward()
    handle.remove()
    expected = sum((state * state.grad).sum(0) for state in states).abs().detach()
    usage = analyze(model, [(x, y)], criterion="taylor", loss=functional.cross_entropy)
    for layer in usage.layers.values():
        assert layer.unit_importance == pytest.approx(expected.numpy(), rel=1e-4)


def test_a_cell_whose_weights_are_computed_is_named():
    model, _ = cell_and_network("LSTM")
    nn.utils.parametrizations.weight_norm(model.rnn, "weight_hh")
    usage = analyze(model, rows(5, 6, 3), layers=None)
    assert "rnn.weight_ih" in usage.layers and unnamed(model, usage) == []
