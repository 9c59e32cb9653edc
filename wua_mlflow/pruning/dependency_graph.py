"""Which parts of a model go with a unit: the dependency graph of the library torch-pruning.

Tests: ``tests/pruning/test_dependency_graph.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.data.batches import mapped

__all__ = [
    "Graph", "GroupMember", "call_model", "caches_off", "hidden_slices", "is_conv1d", "select",
    "select_remaining", "update_sizes", "weight_dims",
]


@contextmanager
def caches_off(*models: nn.Module) -> Iterator[None]:
    """The models without their caches: ``use_cache`` of a configuration is False in the block.

    With it on, as transformers' models have it, a forward returns keys and values beside its
    outputs, which the graph of a model cannot be followed through; its outputs are the same.

    >>> net = nn.Linear(1, 1)
    >>> net.config = type("Config", (), {"use_cache": True})()
    >>> with caches_off(net):
    ...     net.config.use_cache
    False
    >>> net.config.use_cache
    True
    """
    configs: list[Any] = [getattr(module, "config", None)
                          for model in models for module in model.modules()]
    cached = [config for config in configs if getattr(config, "use_cache", None) is True]
    try:
        for config in cached:
            config.use_cache = False
        yield
    finally:
        for config in cached:
            config.use_cache = True


def call_model(model: nn.Module, example: Any) -> Any:
    """The model's outputs for a batch: a tensor, a tuple of arguments, or a dict of keywords.

    The batch is copied first, since a model may write into its inputs.
    """
    arguments = mapped(example, Tensor, Tensor.clone)
    if isinstance(arguments, Mapping):
        return model(**arguments)
    return model(*arguments) if isinstance(arguments, tuple) else model(arguments)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D``: a Linear whose weight is (inputs, outputs).

    >>> is_conv1d(nn.Linear(2, 3))
    False
    """
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and \
        weight.dim() == 2 and getattr(module, "nf", None) == weight.shape[1]


def weight_dims(module: nn.Module) -> tuple[int, int] | None:
    """The dimensions of ``module.weight`` along which its outputs and its inputs lie."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return 0, 1
    if isinstance(module, TRANSPOSED) or is_conv1d(module):
        return 1, 0
    return None


def select(parameter: Tensor, dim: int, positions: Sequence[int]) -> nn.Parameter:
    """A new parameter with these positions along ``dim`` alone."""
    index = torch.tensor(positions, dtype=torch.long, device=parameter.device)
    return nn.Parameter(parameter.detach().index_select(dim, index))


def select_remaining(parameter: Tensor, dim: int, removed: Iterable[int]) -> nn.Parameter:
    """A new parameter without these positions along ``dim``."""
    return select(parameter, dim, sorted(set(range(parameter.shape[dim])) - set(removed)))


def hidden_slices(layer: Any) -> Iterator[tuple[str, int, tuple[tuple[int, ...], ...]]]:
    """Where a recurrent layer's parameters hold its hidden units: name, dimension, positions.

    As rows in each gate of every parameter, and as columns of all but the first layer's inputs,
    where a bidirectional layer has them twice.
    """
    hidden = layer.hidden_size
    for name, parameter in layer.named_parameters(recurse=False):
        for dim in range(1 if name.startswith(("weight_ih_l0", "bias")) else 2):
            size = parameter.shape[dim]
            yield name, dim, tuple(tuple(range(unit, size, hidden)) for unit in range(hidden))


def update_sizes(layer: Any) -> None:
    """Set the sizes that a layer states to those of its weight."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    else:
        layer.nf = layer.weight.shape[1]
        if hasattr(layer, "nx"):
            layer.nx = layer.weight.shape[0]


@dataclass(frozen=True)
class GroupMember:
    """A layer in a dependency group, and which of its inputs or outputs go with the units.

    Attributes:
        name: of the module; a parameter's own, where no module owns it.
        module: the layer, the parameter, or an operation of the graph.
        reads: whether it reads the units, rather than makes or passes them on.
        positions: along its inputs or outputs.
        units: by position the unit of the first layer that it belongs to; -1 where unknown.
    """

    name: str | None
    module: Any
    reads: bool
    positions: tuple[int, ...]
    units: tuple[int, ...]


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
        pruners = {type(module): _conv1d_pruner(torch_pruning) for module in model.modules()
                   if is_conv1d(module)}
        pruners |= {type(module): _recurrent_pruner(torch_pruning) for module in model.modules()
                    if isinstance(module, RECURRENT)}
        example = mapped(example, Tensor, Tensor.clone)
        arguments = example if isinstance(example, Mapping | tuple) else (example,)
        with warnings.catch_warnings(), torch.enable_grad(), caches_off(model), \
                _recurrent_layers_opaque(model):
            warnings.simplefilter("ignore")
            self._graph.build_dependency(model, arguments, customized_pruners=pruners,
                                         verbose=False)
        self._largest = 4 * max((size for parameter in model.parameters()
                                 for size in parameter.shape), default=1)
        self._unit_layers = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding, *pruners)

    @property
    def unit_layers(self) -> Iterator[tuple[str, int]]:
        """Every layer that makes units, and how many, in the model's order."""
        for module, name in self.names.items():
            if isinstance(module, self._unit_layers) and module in self._graph.module2node:
                yield name, int(self._graph.get_out_channels(module))

    def members(self, name: str, units: Sequence[int]) -> list[GroupMember]:
        """Everything that goes with these units of a layer."""
        names = {id(module): known for module, known in self.names.items()}
        names |= {id(parameter): known for known, parameter in self.model.named_parameters()}
        graph = self._graph
        return [GroupMember(
            names.get(id(item.dep.target.module)), item.dep.target.module,
            graph.is_in_channel_pruning_fn(item.dep.handler)
            and not graph.is_out_channel_pruning_fn(item.dep.handler),
            tuple(item.idxs),
            tuple(-1 if root is None else root for root in item.root_idxs))
            for item in self._pruning_group(name, units)]

    def is_output(self, member: GroupMember) -> bool:
        """Whether it is an output of the model."""
        return isinstance(member.module, self._library.ops._OutputOp)

    def remove(self, name: str, units: Sequence[int], count: int) -> None:
        """Cut these units of ``count`` of a layer out of the model, and all that goes with them."""
        outputs = self._graph.get_out_channels(self.model.get_submodule(name))
        positions = [position for unit in units for position in range(unit, outputs, count)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of gradients of weights that are computed
            self._pruning_group(name, positions).prune()

    def _pruning_group(self, name: str, units: Sequence[int]) -> Any:
        module = self.model.get_submodule(name)
        pruner = self._graph.get_pruner_of_module(module)
        with _bounded_search(self._library, self._largest):
            return self._graph.get_pruning_group(module, pruner.prune_out_channels, list(units))


class EndlessError(ValueError):
    """The library finds the same units again and again, at ever higher positions."""


@contextmanager
def _bounded_search(library: Any, largest: int) -> Iterator[None]:
    """Stop the library's search for dependencies at positions that no layer has.

    It never ends where heads share their keys (grouped-query attention).
    """
    module = library.dependency.graph

    class Group(module.Group):  # type: ignore[misc, name-defined]
        def add_dep(self, dep: Any, idxs: Any) -> Any:
            if any(index.idx > largest for index in idxs):
                raise EndlessError("the units come round again and again")
            return super().add_dep(dep, idxs)

    original, module.Group = module.Group, Group
    try:
        yield
    finally:
        module.Group = original


class _Opaque(torch.autograd.Function):
    """A recurrent layer as one step of the graph, from its inputs to its outputs."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        return outputs.clone()


@contextmanager
def _recurrent_layers_opaque(model: nn.Module) -> Iterator[None]:
    """Trace each recurrent layer as one step, whose last states depend on its outputs.

    It follows a module's first result only; ``h_n`` of one-way layers has the same units.
    """
    layers = [module for module in model.modules() if isinstance(module, RECURRENT)]
    try:
        for layer in layers:
            layer.__dict__["forward"] = partial(_opaque_forward, layer, layer.forward)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _opaque_forward(layer: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    outputs, states = forward(*args, **kwargs)
    inputs = args[0] if args else kwargs.get("input")
    if not isinstance(outputs, Tensor) or not isinstance(inputs, Tensor):
        return outputs, states
    opaque: Any = _Opaque.apply
    outputs = opaque(outputs.detach(), inputs, layer.weight_hh_l0)
    time = 0 if outputs.dim() == 2 or not layer.batch_first else 1
    zeros = torch.stack([outputs.sum(time) * 0] * layer.num_layers)

    def tied_to_outputs(state: Tensor) -> Tensor:
        values = state.detach()
        return values + zeros if values.shape == zeros.shape else values

    return outputs, (tuple(map(tied_to_outputs, states)) if isinstance(states, tuple)
                     else tied_to_outputs(states))


def _conv1d_pruner(library: Any) -> Any:
    class Conv1DPruner(library.pruner.function.BasePruningFunc):  # type: ignore[misc]
        """transformers' Conv1D: weight (inputs, outputs)."""

        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            layer.weight = select_remaining(layer.weight, 1, idxs)
            layer.bias = select_remaining(layer.bias, 0, idxs)
            update_sizes(layer)
            return layer

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            layer.weight = select_remaining(layer.weight, 0, idxs)
            update_sizes(layer)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.weight.shape[1])

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.weight.shape[0])

    return Conv1DPruner()


def _recurrent_pruner(library: Any) -> Any:
    class RecurrentPruner(library.pruner.function.BasePruningFunc):  # type: ignore[misc]
        """LSTM, GRU, RNN: outputs j and hidden + j of a bidirectional layer are hidden unit j."""

        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            units = {position % layer.hidden_size for position in idxs}
            for name, dim, columns in list(hidden_slices(layer)):
                removed = [position for unit in units for position in columns[unit]]
                setattr(layer, name, select_remaining(getattr(layer, name), dim, removed))
            layer.hidden_size -= len(units)
            return layer

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> Any:
            for name, weight in list(layer.named_parameters(recurse=False)):
                if name.startswith("weight_ih_l0"):
                    setattr(layer, name, select_remaining(weight, 1, idxs))
            layer.input_size -= len(set(idxs))
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.hidden_size * (2 if layer.bidirectional else 1))

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.input_size)

    return RecurrentPruner()
