"""The output layers are those whose units the model returns, whatever the order of its calls."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- torch's own habit
from torch import Tensor, nn

from tests.networks import Layers, labels, rows
from wua_mlflow.data.batches import Batches
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.run import run_pass
from wua_mlflow.usage.tracing.layer import RequiredStats
from wua_mlflow.usage.tracing.skipped import OUTPUT_LAYER


@dataclass
class Two:
    first: Any
    second: Any = None


Pair = namedtuple("Pair", ["first", "second"])
HEADS = {"stem": (3, 8), "a": (8, 2), "b": (8, 5), "c": (8, 2), "gate": (8, 1), "wide": (3, 2)}


def network(run: Callable[..., Any], **parts: nn.Module) -> Layers:
    """A stem of 8 units, and heads: a and c of 2, b of 5, a gate of 1, wide on the inputs."""
    torch.manual_seed(0)
    return Layers(run, **{name: nn.Linear(*shape) for name, shape in HEADS.items()}, **parts)


def outputs_of(model: nn.Module, x: Any) -> set[str]:
    """The layers that make the outputs; the analysis leaves them out and names them."""
    last = set(run_pass(model, Batches([x], model), RequiredStats()).last)
    usage = analyze(model, [x])
    named = {name for name, reason in usage.skipped.items() if reason == OUTPUT_LAYER}
    assert named == (last if set(usage.layers) - last else set())
    return last


def heads(order: str, wrap: Callable[[Tensor, Tensor], Any]) -> Callable[..., Any]:
    def run(model: Layers, x: Tensor) -> Any:
        hidden = model.stem(x).relu()
        made = {name: model.get_submodule(name)(hidden) for name in order}
        return wrap(made["a"], made["b"])

    return run


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list in a dict": lambda a, b: {"out": [a, {"more": (b,)}]},
    "ordered": lambda a, b: OrderedDict(out=a, aux=b),
    "dataclass": Two,
    "nested dataclasses": lambda a, b: Two(Two(None, a), [Two(b)]),
    "named tuple": Pair,
    "joined": lambda a, b: torch.cat([a, b], 1),
    "with a score": lambda a, b: (a.softmax(-1), b.max(-1).values, a.argmax(-1), 3, None),
}


@pytest.mark.parametrize("wrap", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_both_heads_in_any_order_and_in_whatever_they_are_returned(wrap, order):
    model = network(heads(order, wrap))
    assert outputs_of(model, rows(6, 3)) == {"a", "b"}
    assert list(analyze(model, rows(6, 3)).layers) == ["stem"]


def test_of_hugging_faces_outputs():
    from transformers.modeling_outputs import SequenceClassifierOutput

    for order in ("ab", "ba"):
        model = network(heads(order, lambda a, b: SequenceClassifierOutput(
            logits=a, hidden_states=(b,))))
        assert outputs_of(model, rows(6, 3)) == {"a", "b"}


def written(hidden: Tensor, model: Layers) -> Tensor:
    out = torch.zeros(len(hidden), 7)
    out[:, :2] = model.a(hidden)
    out[:, 2:].copy_(model.b(hidden))
    return out


def mixed(hidden: Tensor, model: Layers) -> Tensor:
    """A mixture of two experts: rows go to either."""
    out, first = torch.zeros(len(hidden), 2), torch.arange(len(hidden)) % 2 == 0
    for expert, places in ((model.a, first.nonzero()[:, 0]), (model.c, (~first).nonzero()[:, 0])):
        weights = model.b(hidden)[:, :1].sigmoid()
        out.index_add_(0, places, expert(hidden[places]) * weights[places])
    return out


OF_A_STEM: dict[str, tuple[Callable[[Tensor, Layers], Any], set[str]]] = {
    "one head": (lambda h, m: m.a(h), {"a"}),
    "activation in place": (lambda h, m: F.relu(m.a(h), inplace=True), {"a"}),
    "a gate computed last": (lambda h, m: m.a(h) * m.gate(h).sigmoid(), {"a"}),
    "a gate computed first": (lambda h, m: m.gate(h).sigmoid() * m.a(h), {"a"}),
    "a gate for each unit": (lambda h, m: m.a(h) * m.c(h).sigmoid(), {"a", "c"}),
    "a gate that chooses": (lambda h, m: torch.where(m.gate(h) > 0, m.a(h), m.c(h)), {"a", "c"}),
    "a sum of branches": (lambda h, m: m.a(h) + m.c(h), {"a", "c"}),
    "a sum in another order": (lambda h, m: m.c(h).add_(m.a(h)), {"a", "c"}),
    "a mixture": (mixed, {"a", "c"}),
    "written": (written, {"a", "b"}),
    "averaged": (lambda h, m: m.b(h).reshape(2, -1, 5).mean(1), {"b"}),
    "an auxiliary head": (lambda h, m: {"aux": m.a(h), "out": m.c(m.square(h).relu())},
                          {"a", "c"}),
    "features, too": (lambda h, m: (m.a(m.square(h).relu()), h), {"a", "stem"}),
    "a residual": (lambda h, m: F.layer_norm(h + m.square(h.relu()), (8,)), {"square"}),
    "a residual in place": (lambda h, m: (h * 1).add_(m.square(h)), {"square"}),
    "a difference": (lambda h, m: h - m.square(h.relu()), {"square"}),
    "two residuals": (lambda h, m: m.residual(m.residual(h)), {"square"}),
    "attention": (lambda h, m: F.softmax(m.square(h) @ m.b(h).repeat(1, 2)[:, :8].T, -1) @ m.a(h),
                  {"a"}),
    "fused attention": (lambda h, m: F.scaled_dot_product_attention(
        m.b(h)[None], m.b(h)[None], m.a(h)[None]), {"a"}),
    "attention by einsum": (lambda h, m: torch.einsum(
        "qk,kd->qd", torch.einsum("qd,kd->qk", m.b(h), m.b(h)), m.a(h)), {"a"}),
    "keys turned and read again": (lambda h, m: (lambda k: F.softmax(m.b(h) @ k.T, -1) @ k)(m.b(h)),
                                   {"b"}),
    "scores of two towers": (lambda h, m: m.a(h) @ m.c(h).T, set()),
    "two towers": (lambda h, m: (F.normalize(m.a(h)), F.normalize(m.c(h)), m.a(h) @ m.c(h).T),
                   {"a", "c"}),
    "a product that is not analysed": (
        lambda h, m: torch.einsum("bi,ij->bj", m.b(h), m.a.weight[:, :5].T), set()),
    "what no function shows": (lambda h, m: m.a(h).numpy(force=True), {"a"}),
}


@pytest.mark.parametrize(("run", "expected"), OF_A_STEM.values(), ids=OF_A_STEM)
def test_what_is_returned_of_a_stem(run, expected):
    model = network(lambda model, x: run(model.stem(x), model), square=nn.Linear(8, 8))
    model.residual = lambda h: h + model.square(h).relu()
    assert outputs_of(model, rows(6, 3)) == expected


@pytest.mark.parametrize("order", [1, -1])
def test_a_wide_and_a_deep_branch_have_no_order(order):
    def run(model: Layers, x: Tensor) -> Tensor:
        branches = [lambda: model.wide(x), lambda: model.a(model.stem(x).relu())][::order]
        return branches[0]() + branches[1]()

    assert outputs_of(network(run), rows(6, 3)) == {"wide", "a"}


def test_channels():
    def attended(model: Layers, x: Tensor) -> Tensor:
        h = model.stem(x).flatten(2)
        weights = (model.q(x).flatten(2).transpose(1, 2) @ model.k(x).flatten(2)).softmax(-1)
        return (h @ weights.transpose(1, 2)).unflatten(-1, (4, 4)) + h.unflatten(-1, (4, 4))

    parts = {name: nn.Conv2d(2, 3, 1) for name in ("stem", "q", "k")}
    assert outputs_of(Layers(attended, **parts), rows(5, 2, 4, 4)) == {"stem"}
    segmenting = Layers(lambda model, x: {
        name: F.interpolate(model.get_submodule(name)(model.stem(x).relu()), scale_factor=2)
        for name in ("out", "aux")}, stem=nn.Conv2d(2, 3, 1), out=nn.Conv2d(3, 4, 1),
        aux=nn.Conv2d(3, 4, 1))
    assert outputs_of(segmenting, rows(5, 2, 4, 4)) == {"out", "aux"}


@pytest.mark.parametrize(("returned", "depths"), [(0, "1"), (1, "01")])
def test_a_recurrent_network_returns_its_last_layer_and_the_states_of_all(returned, depths):
    model = Layers(lambda model, x: model.rnn(model.stem(x))[returned], stem=nn.Linear(3, 4),
                   rnn=nn.LSTM(4, 4, 2, batch_first=True))
    assert outputs_of(model, rows(5, 6, 3)) == {
        f"rnn.weight_{kind}_l{depth}" for kind in ("ih", "hh") for depth in depths}


def test_a_route_that_depends_on_the_data_has_the_outputs_of_all_batches():
    model = network(lambda model, x: (model.a if x.sum() > 0 else model.c)(model.stem(x)))
    batches = [rows(6, 3), -rows(6, 3)]
    assert set(run_pass(model, Batches(batches, model), RequiredStats()).last) == {"a", "c"}


def test_under_taylor_and_what_a_former_forward_left():
    def run(model: Layers, x: Tensor) -> Tensor:
        kept, model.kept[0] = model.kept[0], model.a(model.stem(x).relu())
        return model.b(model.stem(x)) if kept is None else kept + model.c(model.stem(x))

    model = network(run)
    model.kept = [None]
    batches = [(rows(6, 3), labels(6)), (rows(6, 3, seed=4), labels(6))]
    usage = analyze(model, batches, criterion="taylor", loss=F.cross_entropy)
    assert {name for name, reason in usage.skipped.items() if reason == OUTPUT_LAYER} == {"b", "c"}
