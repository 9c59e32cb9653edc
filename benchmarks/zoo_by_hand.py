"""What a cut network must answer, found from which weights it kept and nothing else.

The reference of the package's own verification knows which columns read which units. Here all that
is known is what each weight of the cut network was in the original, from a cut of weights that are
their own positions: in the original, the columns of linear layers, convolutions and recurrent
layers that are not among them are set to zero, and norms take the features that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.pruning.find_groups import prunable_copy

Kept = dict[str, tuple[Tensor, ...]]
NO_COLUMNS = (nn.Embedding, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d,
              nn.InstanceNorm2d, nn.PReLU)
ROWS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase, nn.RNNCellBase,
              nn.MultiheadAttention)
ROWS_LAST = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class NotByHandError(Exception):
    """A module is of no kind that is known here."""


def kept_positions(model: nn.Module, smaller_of: Callable[[nn.Module], nn.Module]) -> Kept:
    """By parameter and dimension which positions the cut network has, in their order."""
    kept: dict[str, list[Tensor]] = {
        name: [] for name, _ in model.named_parameters(remove_duplicate=False)}
    most = max(parameter.dim() for parameter in model.parameters())
    for dim in range(most):
        numbered = prunable_copy(model)
        with torch.no_grad():
            for parameter in numbered.parameters():
                if dim < parameter.dim():
                    shape = [-1 if each == dim else 1 for each in range(parameter.dim())]
                    parameter.copy_(torch.arange(parameter.shape[dim]).view(shape))
        for name, parameter in smaller_of(numbered).named_parameters(
                remove_duplicate=False):
            if dim < parameter.dim():
                lines = parameter.detach().movedim(dim, 0)
                lines = lines.reshape(len(lines), -1)
                if not bool((lines == lines[:, :1]).all()):
                    raise NotByHandError(f"{name} keeps other places in other rows")
                kept[name].append(lines[:, 0].long())
    return {name: tuple(places) for name, places in kept.items()}


@contextmanager
def masked_by_hand(model: nn.Module, smaller: nn.Module, kept: Kept) -> Iterator[nn.Module]:
    """A copy of the model without what the smaller one lacks; its outputs are those expected.

    Raises:
        NotByHandError: a module that lost weights is of no known kind.
    """
    masked = prunable_copy(model)
    hooks = []
    try:
        for name, module in masked.named_modules():
            own = dict(module.named_parameters(recurse=False))
            places = {each: kept[f"{name}.{each}" if name else each] for each in own
                      if (f"{name}.{each}" if name else each) in kept}
            lost = any(len(there) < size for each in places
                       for there, size in zip(places[each], own[each].shape, strict=True))
            if not lost or isinstance(module, NO_COLUMNS):
                continue
            if any(word in type(module).__name__ for word in ("Norm", "GRN")):
                there, = {tuple(each[-1].tolist()) for each in places.values()}
                hooks.append(module.register_forward_hook(partial(
                    over_kept, smaller.get_submodule(name), torch.tensor(there))))
            else:
                columns_to_zero(name, module, places)
        yield masked
    finally:
        for hook in hooks:
            hook.remove()


def over_kept(smaller: nn.Module, there: Tensor, module: nn.Module, inputs: Any, outputs: Any
              ) -> Tensor:
    """A norm's outputs, from the features that stay; zero elsewhere."""
    size = next(module.parameters()).shape[-1]
    by_channel = isinstance(module, nn.GroupNorm) or inputs[0].shape[-1] != size
    dim = 1 if by_channel else -1
    normed = smaller(inputs[0].index_select(dim, there))
    return torch.zeros_like(outputs).index_copy(dim, there, normed)


def columns_to_zero(name: str, module: nn.Module, places: dict[str, tuple[Tensor, ...]]) -> None:
    if isinstance(module, ROWS_LAST) and module.groups > 1:  # type: ignore[operator]
        raise NotByHandError(f"{name} is a transposed convolution of several groups")
    if isinstance(module, ROWS_LAST) or type(module).__name__ == "Conv1D":
        dim = 0
    elif isinstance(module, ROWS_FIRST):
        dim = 1  # of a convolution of several groups: within each, if all keep the same
    elif all(parameter.squeeze().dim() < 2 or len(places[each][-1]) < parameter.shape[-1]
             and all(len(there) == size for there, size in zip(
                 places[each][:-1], parameter.shape[:-1], strict=True))
             for each, parameter in module.named_parameters(recurse=False)):
        return  # factors or summands of features, which are read elsewhere
    else:
        raise NotByHandError(f"{name} is a {type(module).__name__}")
    with torch.no_grad():
        for each, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                there = places[each][dim]
                gone = torch.ones(parameter.shape[dim], dtype=torch.bool)
                gone[there] = False
                parameter.index_fill_(dim, gone.nonzero().flatten(), 0)
