"""Which positions of parameters an operation ties, divides, frees or freezes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.networks import Layers, snapshot
from wua_mlflow.pruning.axes import Axes, plain_operations, trace_axes
from wua_mlflow.pruning.tracer import OUTPUTS

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def traced(forward: Callable[..., Tensor], *inputs: Tensor, **sizes: tuple[int, ...]) -> Axes:
    """The axes of a function of inputs and parameters, which it gets by attribute."""
    generator = torch.Generator().manual_seed(1)
    model = Layers(forward, **{name: nn.Parameter(torch.randn(size, generator=generator))
                               for name, size in sizes.items()}).eval()
    with plain_operations():
        return trace_axes(model, lambda: model(*(inputs or (X,))))


def units(axes: Axes, name: str, dim: int) -> list[list[int]]:
    """By position the units that it belongs to and that may be cut."""
    axis, = (each for each in axes.axes if (each.name, each.dim) == (name, dim))
    return [[unit for unit in row if unit >= 0 and unit not in axes.frozen]
            for row in axis.units.tolist()]


def of(axes: Axes, name: str, dim: int) -> list[int]:
    """The same where each position belongs to one unit; -1 where to none."""
    return [row[0] if row else -1 for row in units(axes, name, dim)]


def between(operation: Callable[[Tensor], Tensor], made: int, read: int) -> Axes:
    """``a`` makes units, the operation goes over (samples, units), ``b`` reads what it gives."""
    return traced(lambda net, x: operation(x @ net.a) @ net.b, a=(4, made), b=(read, 2))


PASSING: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda h: h,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "a product": lambda h: h * h.sigmoid(),
    "in place": lambda h: h.mul_(2).clamp_(0),
    "there and back": lambda h: h.t().contiguous().t(),
    "twice": lambda h: h.unsqueeze(1).squeeze(1),
    "maximum": lambda h: torch.maximum(h, torch.zeros(())),
    "where": lambda h: torch.where(h > 0, h, 0),
    "float64": lambda h: h.double().float(),
    "expand": lambda h: h[None].expand(2, 3, 6)[0],
    "repeat": lambda h: h.repeat(2, 1)[:3],
    "all": lambda h: h[:, :],
    "zeros": lambda h: h + torch.zeros(6),
    "einsum": lambda h: torch.einsum("sh,sh->sh", h, h),
    "batch norm": lambda h: functional.batch_norm(h, torch.zeros(6), torch.ones(6)),
    "masked": lambda h: h.masked_fill(h < 0, 0.0),
    "split and joined": lambda h: torch.cat(h.split(2, 1), 1),
    "picked rows": lambda h: h[torch.tensor([0, 2])],
}


@pytest.mark.parametrize("operation", PASSING.values(), ids=PASSING)
def test_units_pass_operations_on_each_number_and_what_only_moves_them(operation):
    axes = between(operation, 6, 6)
    made = of(axes, "a", 1)
    assert made == of(axes, "b", 0) and -1 not in made
    if operation is not PASSING["split and joined"]:  # equal parts stay equal
        assert len(set(made)) == 6
    assert ("b", 0) in axes.read and ("a", 1) not in axes.read


FREEZING: dict[str, tuple[Callable[[Tensor], Tensor], int, str]] = {
    "a softmax": (lambda h: h.softmax(1), 6, "depends on how many there are"),
    "a sum of all": (lambda h: h.cumsum(1), 6, "depends on how many there are"),
    "a sort": (lambda h: h.sort(1).values, 6, "depends on how many there are"),
    "one of them": (lambda h: h[:, 2, None], 1, "picked by its number"),
    "places": (lambda h: functional.max_pool1d(h[:, None], 2)[:, 0], 3, "pooled or resized"),
    "an inverse": (lambda h: torch.linalg.pinv(h).T, 6, "is not known"),
    "a table": (lambda h: h[:, torch.tensor([0, 3])], 2, "looked up by number"),
    "a constant": (lambda h: h * torch.arange(6.0), 6, "keeps its size"),
}


@pytest.mark.parametrize(("operation", "read", "reason"), FREEZING.values(), ids=FREEZING)
def test_units_that_an_operation_needs_all_of_are_frozen_with_the_reason(operation, read, reason):
    axes = between(operation, 6, read)
    assert any(reason in why for why in axes.frozen.values()), axes.frozen
    assert -1 in of(axes, "a", 1)


def test_a_sum_ties_both_of_its_terms():
    axes = traced(lambda net, x: (x @ net.a + x @ net.b + net.c) @ net.d,
                  a=(4, 5), b=(4, 5), c=(5,), d=(5, 2))
    assert of(axes, "a", 1) == of(axes, "b", 1) == of(axes, "c", 0) == of(axes, "d", 0)
    assert len(set(of(axes, "a", 1))) == 5


def test_a_view_divides_units_into_those_of_each_of_its_dimensions():
    axes = between(lambda h: h.view(3, 2, 3).flatten(1), 6, 6)
    made = units(axes, "a", 1)
    assert made == units(axes, "b", 0) and len({unit for row in made for unit in row}) == 2 + 3


def test_halves_of_a_gate_go_together():
    for gated in (functional.glu, lambda h: (lambda one, other: one * other)(*h.chunk(2, 1))):
        axes = between(gated, 6, 3)
        assert of(axes, "a", 1) == 2 * of(axes, "b", 0) and len(set(of(axes, "b", 0))) == 3


def test_what_is_joined_keeps_its_units():
    axes = traced(lambda net, x: torch.cat([x @ net.a, x, x @ net.b], 1) @ net.c,
                  a=(4, 2), b=(4, 3), c=(9, 2))
    assert of(axes, "c", 0) == [*of(axes, "a", 1), -1, -1, -1, -1, *of(axes, "b", 1)]


def test_a_flattened_picture_has_its_channels_many_times():
    x = torch.randn(2, 3, 4, 4)
    axes = traced(lambda net, x: functional.conv2d(x, net.a).flatten(1) @ net.b, x,
                  a=(5, 3, 1, 1), b=(80, 2))
    assert of(axes, "b", 0) == [unit for unit in of(axes, "a", 0) for _ in range(16)]


def attention(net: nn.Module, x: Tensor) -> Tensor:
    q, k, v = ((x @ weight).view(2, 5, 2, 3).transpose(1, 2) for weight in (net.q, net.k, net.v))
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 6) @ net.o


def test_heads_and_the_places_within_them_are_units_of_their_own():
    """A row belongs to a head and to a place in it; places of keys and queries are the same."""
    axes = traced(attention, torch.randn(2, 5, 4), q=(4, 6), k=(4, 6), v=(4, 6), o=(6, 4))
    q, k, v, o = (units(axes, name, dim) for name, dim in (("q", 1), ("k", 1), ("v", 1), ("o", 0)))
    head = [next(unit for unit in row if unit in axes.heads) for row in q]
    assert head[0] == head[1] == head[2] != head[3] == head[4] == head[5]
    for rows in (k, v, o):
        assert [next(unit for unit in row if unit in axes.heads) for row in rows] == head
    place = [[unit for unit in row if unit not in axes.heads] for row in q]
    assert place[:3] == place[3:] and len({unit for row in place for unit in row}) == 3
    assert [[unit for unit in row if unit not in axes.heads] for row in k] == place
    assert {unit for row in v for unit in row} & {unit for row in place for unit in row} == set()
    assert axes.passes > 1


def test_what_a_norm_or_a_mean_goes_over_is_said():
    for reduced in (lambda h: functional.layer_norm(h, (6,)),
                    lambda h: functional.rms_norm(h, (6,)),
                    lambda h: h - h.mean(1, keepdim=True), lambda h: h / h.std(1, keepdim=True),
                    lambda h: functional.group_norm(h[:, :, None], 1)[:, :, 0],
                    lambda h: functional.normalize(h, dim=1)):
        axes = between(reduced, 6, 6)
        assert set(of(axes, "a", 1)) == set(axes.reduced)
    assert not between(lambda h: h - h.mean(0, keepdim=True), 6, 6).reduced


def test_whole_groups_of_a_convolution_go_or_the_same_share_of_each():
    axes = traced(lambda net, x: functional.conv2d(functional.conv2d(x, net.a), net.b, groups=2),
                  torch.randn(2, 3, 4, 4), a=(4, 3, 1, 1), b=(6, 2, 1, 1))
    rows = units(axes, "a", 0)
    assert [len(row) for row in rows] == [1, 1, 1, 1], "the outputs keep whole groups"
    assert rows[:2] == rows[2:]


def test_a_model_is_left_as_it_was_found_whatever_the_forward_does():
    def fails(net: nn.Module, x: Tensor) -> Tensor:
        raise ArithmeticError(str((x @ net.a).shape))

    model = Layers(fails, a=nn.Parameter(torch.randn(4, 2)))
    before = snapshot(model)
    with pytest.raises(ArithmeticError):
        trace_axes(model, lambda: model(X))
    assert snapshot(model) == before
    assert not [name for name in vars(model.a) if name.startswith("_wua")]


def test_the_outputs_are_all_that_is_returned():
    axes = traced(lambda net, x: {"one": x @ net.a, "more": [(x @ net.b, "text")]},
                  a=(4, 2), b=(4, 3))
    axis, other = (next(axis for axis in axes.axes if (axis.name, axis.dim) == (name, 1))
                   for name in "ab")
    assert {axes.frozen[unit] for unit in (*axis.units.flat, *other.units.flat)} == {OUTPUTS}
    assert of(axes, "a", 1) == [-1, -1] and of(axes, "b", 1) == [-1, -1, -1]


def test_what_a_forward_makes_to_size_ties_all_that_it_meets():
    """As the bias of no heads that a layer of T5 makes for all that follow."""
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        bias = torch.zeros(5)
        return (x @ net.a + bias) @ net.b + (x @ net.c + bias) @ net.d

    axes = traced(forward, a=(4, 5), b=(5, 2), c=(4, 5), d=(5, 2))
    assert of(axes, "a", 1) == of(axes, "c", 1) == of(axes, "d", 0)
