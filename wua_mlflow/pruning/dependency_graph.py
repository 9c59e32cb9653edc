"""Models that keep what they computed for the next call: off, while a cut is looked for and tried.

May import: torch. Tests: ``tests/slimming/test_caches.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.pruning.examples import copied

__all__ = ["Graph", "GroupMember", "axes_of", "is_conv1d", "uncached"]


@contextmanager
def uncached(*models: nn.Module) -> Iterator[None]:
    """The configurations' ``use_cache``, as transformers' models have it, False for so long.

    With it on, a forward returns keys and values beside its outputs, which the graph of a model
    cannot be followed through; its outputs are the same.

    >>> net = nn.Linear(1, 1)
    >>> net.config = type("Config", (), {"use_cache": True})()
    >>> with uncached(net):
    ...     net.config.use_cache
    False
    >>> net.config.use_cache
    True
    """
    found: list[Any] = [getattr(module, "config", None) for model in models
                        for module in model.modules()]
    configs = {id(one): one for one in found if getattr(one, "use_cache", None) is True}
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d,
         nn.InstanceNorm3d, nn.PReLU)
"""What works on each unit alone."""


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D``: a Linear whose weight is (inputs, outputs).

    >>> is_conv1d(nn.Linear(2, 3))
    False
    """
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and \
        weight.dim() == 2 and getattr(module, "nf", None) == weight.shape[1]


def axes_of(module: nn.Module) -> tuple[int, int] | None:
    """The dimensions of ``module.weight`` along which its outputs and its inputs lie."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return 0, 1
    if isinstance(module, TRANSPOSED) or is_conv1d(module):
        return 1, 0
    return None


@dataclass(frozen=True)
class GroupMember:
    """One layer of a group: what of it goes with the units.

    Attributes:
        name: of the module; a parameter's own, where no module owns it.
        module: the layer, the parameter, or an operation of the graph.
        reads: whether it reads the units, rather than makes or passes them on.
        positions: along its inputs or outputs.
        roots: by position the unit of the first layer that it belongs to; -1 where unknown.
    """

    name: str | None
    module: Any
    reads: bool
    positions: tuple[int, ...]
    roots: tuple[int, ...]


class Graph:
    """The dependency graph of a model, which is traced once and changed by ``remove``.

    Args:
        model: put into eval mode; every floating-point parameter takes gradients.
        example: a batch as the model takes it: a tensor, a tuple of arguments, a dict of keywords.

    Raises:
        ValueError: the library cannot trace it, or there is nothing to trace.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        import torch_pruning

        self.model = model
        self.names = {module: name for name, module in model.named_modules()}
        self._library = torch_pruning
        self._graph = torch_pruning.DependencyGraph()
        pruners: dict[Any, Any] = {}
        for module in model.modules():
            if is_conv1d(module):
                pruners[type(module)] = _linear_pruner(torch_pruning)
            elif isinstance(module, RECURRENT):
                pruners[type(module)] = _recurrent_pruner(torch_pruning)
        example = copied(example)
        arguments = example if isinstance(example, Mapping | tuple) else (example,)
        with warnings.catch_warnings(), torch.enable_grad(), uncached(model), \
                _recurrent_as_one_step(model):
            warnings.simplefilter("ignore")
            self._graph.build_dependency(model, arguments, customized_pruners=pruners,
                                         verbose=False)
        self._highest = 4 * max((size for one in model.parameters() for size in one.shape),
                                default=1)
        self._roots = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding, *pruners)

    @property
    def roots(self) -> Iterator[tuple[str, int]]:
        """Every layer that makes units, and how many, in the model's order."""
        for module, name in self.names.items():
            if isinstance(module, self._roots) and module in self._graph.module2node:
                yield name, int(self._graph.get_out_channels(module))

    def coupled(self, name: str, units: Sequence[int]) -> list[GroupMember]:
        """Everything that goes with these units of a layer."""
        group = self._group(name, units)
        names = {id(module): known for module, known in self.names.items()}
        names |= {id(one): known for known, one in self.model.named_parameters()}
        reads = self._graph.is_in_channel_pruning_fn
        return [GroupMember(
            names.get(id(item.dep.target.module)), item.dep.target.module,
            reads(item.dep.handler) and not self._graph.is_out_channel_pruning_fn(item.dep.handler),
            tuple(item.idxs),
            tuple(-1 if root is None else root for root in item.root_idxs)) for item in group]

    def ends(self, one: GroupMember) -> bool:
        """Whether it is an output of the model."""
        return isinstance(one.module, self._library.ops._OutputOp)

    def remove(self, name: str, units: Sequence[int]) -> None:
        """Cut these units of a layer out of the model, and all that goes with them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gradients of weights that are computed
            self._group(name, units).prune()

    def _group(self, name: str, units: Sequence[int]) -> Any:
        module = self.model.get_submodule(name)
        pruner = self._graph.get_pruner_of_module(module)
        with _bounded(self._library, self._highest):
            return self._graph.get_pruning_group(module, pruner.prune_out_channels, list(units))


class EndlessError(ValueError):
    """The library finds the same units again and again, at ever higher places."""


@contextmanager
def _bounded(library: Any, highest: int) -> Iterator[None]:
    """The library's search for what goes with some units ends, where nothing has so many places.

    It goes round in circles where heads share their keys (grouped-query attention).
    """
    module = library.dependency.graph

    class Group(module.Group):  # type: ignore[name-defined]
        def add_dep(self, dep: Any, idxs: Any) -> Any:
            if any(index.idx > highest for index in idxs):
                raise EndlessError("the units come round again and again")
            return super().add_dep(dep, idxs)

    before, module.Group = module.Group, Group
    try:
        yield
    finally:
        module.Group = before


class _Opaque(torch.autograd.Function):
    """A recurrent layer as one step of the graph, from its inputs to its outputs."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        return outputs.clone()


@contextmanager
def _recurrent_as_one_step(model: nn.Module) -> Iterator[None]:
    """The trace does not look into recurrent layers, and sees their last states as outputs.

    It follows a module's first result only; ``h_n`` of one-way layers has the same units.
    """
    layers = [one for one in model.modules() if isinstance(one, RECURRENT)]
    try:
        for layer in layers:
            layer.__dict__["forward"] = partial(_seen, layer, layer.forward)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _seen(layer: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    outputs, states = forward(*args, **kwargs)
    inputs = args[0] if args else kwargs.get("input")
    if not isinstance(outputs, Tensor) or not isinstance(inputs, Tensor):
        return outputs, states
    outputs = _Opaque.apply(outputs.detach(), inputs, layer.weight_hh_l0)
    time = 0 if outputs.dim() == 2 or not layer.batch_first else 1
    nothing = torch.stack([outputs.sum(time) * 0] * layer.num_layers)

    def seen(state: Tensor) -> Tensor:
        found = state.detach()
        return found + nothing if found.shape == nothing.shape else found

    return outputs, tuple(map(seen, states)) if isinstance(states, tuple) else seen(states)


def _left(count: int, gone: Sequence[int]) -> Tensor:
    return torch.tensor(sorted(set(range(count)) - set(gone)), dtype=torch.long)


def _chosen(parameter: Tensor, dim: int, left: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().index_select(dim, left.to(parameter.device)))


def _linear_pruner(library: Any) -> Any:
    class Conv1DPruner(library.pruner.function.BasePruningFunc):
        """transformers' Conv1D: weight (inputs, outputs)."""

        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            left = _left(layer.weight.shape[1], idxs)
            layer.weight = _chosen(layer.weight, 1, left)
            layer.bias = _chosen(layer.bias, 0, left)
            layer.nf = len(left)
            return layer

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            left = _left(layer.weight.shape[0], idxs)
            layer.weight = _chosen(layer.weight, 0, left)
            if hasattr(layer, "nx"):
                layer.nx = len(left)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.weight.shape[1])

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.weight.shape[0])

    return Conv1DPruner()


def _recurrent_pruner(library: Any) -> Any:
    class RecurrentPruner(library.pruner.function.BasePruningFunc):
        """LSTM, GRU, RNN: outputs j and hidden + j of a bidirectional layer are hidden unit j."""

        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            hidden = layer.hidden_size
            left = _left(hidden, [position % hidden for position in idxs])
            gates = layer.weight_hh_l0.shape[0] // hidden
            rows = torch.cat([left + gate * hidden for gate in range(gates)])
            both = torch.cat([left, left + hidden]) if layer.bidirectional else left
            for name, parameter in list(layer.named_parameters(recurse=False)):
                chosen = _chosen(parameter, 0, rows)
                if name.startswith("weight_hh"):
                    chosen = _chosen(chosen, 1, left)
                elif name.startswith("weight_ih") and not name.startswith("weight_ih_l0"):
                    chosen = _chosen(chosen, 1, both)
                setattr(layer, name, chosen)
            layer.hidden_size = len(left)
            return layer

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            left = _left(layer.input_size, idxs)
            for name, parameter in list(layer.named_parameters(recurse=False)):
                if name.startswith("weight_ih_l0"):
                    setattr(layer, name, _chosen(parameter, 1, left))
            layer.input_size = len(left)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.hidden_size * (2 if layer.bidirectional else 1))

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.input_size)

    return RecurrentPruner()
