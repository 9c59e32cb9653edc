"""Which products the units of a tensor come from: so the layers that make a model's outputs.

Tests: ``tests/usage/tracing/test_flow.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from wua_mlflow.flops import tensors_in
from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.op_tables import (
    BROADCASTING,
    CONTRACTIONS,
    SUMS_AND_DIFFERENCES,
    TRANSPOSITIONS,
)

__all__ = ["Flow"]


class Source(NamedTuple):
    """Where the units of a tensor come from.

    Attributes:
        products: a bit for each product that they come from with no other product in between.
        last: whether the units lie along the last dimension, as those of a linear layer, or along
            another, as the channels of a convolution.
    """

    products: int = 0
    last: bool = True


_UNKNOWN = Source()
_MATRIX_PRODUCTS = frozenset(["matmul", "__matmul__", "__rmatmul__", "mm", "bmm"])


class Flow:
    """The products of one forward, and which of them a tensor's units come from.

    The result of a product has the units of its layer. Any other function hands on those of what
    it was given, but for these: a sum has no units of a layer on which another of its terms
    depends (a residual stream has those of the layer that was added last); where a function
    repeats a smaller tensor for a larger one (a gate of one number a sample), the result has the
    larger one's; of a product of activations (attention) it has those that are not summed over;
    and what is made of whole numbers has none.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[TracedLayer, ...]] = []
        self._ancestors: list[int] = []
        self._token = object()  # what a former forward left on a tensor is not of this one

    def add_product(
        self, layers: Iterable[TracedLayer | None], inputs: Iterable[Any], *results: Tensor
    ) -> None:
        """Note a product.

        Args:
            layers: whose it is; none, or None, where its weight is not analysed.
            inputs: the activations.
            results: what has the layers' units.
        """
        product = self._new(layers, self._all_before(self._products(_flat(inputs))))
        last = not any(layer.spatial or layer.unit_dim != -1 for layer in self._layers[-1])
        for result in results:
            self._mark(result, Source(product, last))

    def add_recurrent(
        self, by_depth: Iterable[Iterable[TracedLayer | None]], inputs: Iterable[Any],
        outputs: Tensor, states: Iterable[Tensor],
    ) -> None:
        """Note a recurrent network: its outputs are the last layer's, its last states all layers'.

        Args:
            by_depth: its layers' weights.
            inputs: activations and first states.
            outputs: at all steps.
            states: of all layers.
        """
        before, product, products = self._all_before(self._products(_flat(inputs))), 0, 0
        for layers in by_depth:
            product = self._new(layers, before | products)
            products |= product
        self._mark(outputs, Source(product))
        for state in states:
            self._mark(state, Source(products))

    def hand_on(self, name: str, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """Note any other function's call: its result has the units of what it was given."""
        results = list(_flat(args[:1] if name == "__setitem__" else (result,)))
        if not results:
            return
        given = list(_flat((*args[name == "copy_":], *kwargs.values())))
        known = [tensor for tensor in given if self._source(tensor).products and (
            tensor.is_floating_point() or not results[0].is_floating_point())]
        kept = known
        if name in CONTRACTIONS:
            weighted = any(map(_is_of_parameter, given))
            kept = [] if weighted else self._not_summed(name, args, given)
            if weighted or (known and not kept):
                self.add_product((), given, *results)
        if kept:
            source = self._joined(name, kept, results[0])
            for tensor in results:
                self._mark(tensor, source)
                if tensor._base is not None and _is_in_place(name):
                    before = self._source(tensor._base)  # a part of it was written
                    self._mark(tensor._base,
                               Source(before.products | source.products, source.last))

    def layers_of(self, outputs: Any) -> list[TracedLayer] | None:
        """The layers whose units a model's outputs have; None if of no output any is known.

        Args:
            outputs: a tensor, or what holds some: tuples, lists, dicts, dataclasses.
        """
        products = self._products(tensors_in(outputs))
        if not products:
            return None
        return [layer for number in _bits(products) for layer in self._layers[number]]

    def _new(self, layers: Iterable[TracedLayer | None], before: int) -> int:
        """The bit of a new product, which depends on those before it."""
        self._layers.append(tuple(layer for layer in layers if layer is not None))
        self._ancestors.append(before)
        return 1 << (len(self._layers) - 1)

    def _joined(self, name: str, given: Sequence[Tensor], result: Tensor) -> Source:
        if name in BROADCASTING:
            given = [tensor for tensor in given if tensor.shape == result.shape] or given
        products, last = self._products(given), self._source(given[0]).last
        if name in SUMS_AND_DIFFERENCES:
            products &= ~self._all_before(products, strictly=True)
        if name in TRANSPOSITIONS and given[0].dim() == result.dim() > 1:
            last ^= given[0].stride(-1) != result.stride(-1)
        return Source(products, last)

    def _not_summed(self, name: str, args: Any, operands: Sequence[Tensor]) -> list[Tensor]:
        """The factors of a product of activations whose units it has, too."""
        kept: Sequence[Tensor] = ()
        if name == "scaled_dot_product_attention":
            kept = operands[2:3]
        elif name == "einsum":
            kept = [operand for operand, letters, result in _einsum_operands(args)
                    if letters[-1 if self._source(operand).last else 1:][:1] in result]
        elif len(operands) == 2:
            left, right = operands[::-1] if name == "__rmatmul__" else operands
            kept = [factor for factor, last in ((left, False), (right, True))
                    if name in _MATRIX_PRODUCTS and self._source(factor).last is last]
        return [operand for operand in kept if self._source(operand).products]

    def _products(self, tensors: Iterable[Tensor]) -> int:
        products = 0
        for tensor in tensors:
            products |= self._source(tensor).products
        return products

    def _all_before(self, products: int, *, strictly: bool = False) -> int:
        """The products on which any of these depend, and these themselves unless ``strictly``."""
        before = 0 if strictly else products
        for number in _bits(products):
            before |= self._ancestors[number]
        return before

    def _source(self, tensor: Tensor) -> Source:
        marked: tuple[object, Source] | None = getattr(tensor, "wua_source", None)
        return marked[1] if marked is not None and marked[0] is self._token else _UNKNOWN

    def _mark(self, tensor: Tensor, source: Source) -> None:
        tensor.wua_source = (self._token, source)  # type: ignore[attr-defined]


def _flat(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among a call's arguments or results, those in lists too."""
    for value in values:
        for part in value if isinstance(value, list | tuple) else (value,):
            if isinstance(part, Tensor):
                yield part


def _is_in_place(name: str) -> bool:
    """Whether a function writes into its first argument.

    >>> [_is_in_place(name) for name in ("add_", "__iadd__", "__setitem__", "__get__", "add")]
    [True, True, True, False, False]
    """
    return name == "__setitem__" or name.startswith("__i") or (
        name.endswith("_") and not name.endswith("__"))


def _is_of_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter)


def _einsum_operands(args: Any) -> Iterator[tuple[Tensor, str, str]]:
    """The operands of an einsum with their letters and those of the result."""
    if args and isinstance(args[0], str) and "->" in args[0]:
        inputs, _, result = args[0].replace(" ", "").replace("...", "").partition("->")
        for operand, letters in zip(_flat(args[1:]), inputs.split(","), strict=False):
            yield operand, letters, result


def _bits(number: int) -> Iterator[int]:
    """The places of the ones in a binary number.

    >>> list(_bits(0b1101))
    [0, 2, 3]
    """
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
