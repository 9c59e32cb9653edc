"""Weights that are computed from others, made plain: a cut network computes none.

Masks of ``torch.nn.utils.prune``, ``weight_norm`` and ``spectral_norm`` as they were before
parametrizations, and all parametrizations. Tests: ``tests/pruning/test_computed_weights.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from wua_mlflow.module_attributes import copied

__all__ = ["plain_tensors", "plain_weights"]


def plain_weights(model: nn.Module) -> nn.Module:
    """The model itself, or a copy whose computed weights are parameters of the values they had.

    >>> layer = nn.Linear(2, 2)
    >>> _ = prune.l1_unstructured(layer, "weight", amount=2)
    >>> plain = plain_weights(layer)
    >>> [name for name, _ in plain.named_parameters()], int((plain.weight == 0).sum())
    (['bias', 'weight'], 2)
    """
    if not any(True for _ in _computed(model)):
        return model
    result = copied(model)
    for module, name, hook in list(_computed(result)):
        if isinstance(hook, parametrize.ParametrizationList):
            _own_class(module)
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, name)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, name)
        else:
            remove_spectral_norm(module, name)
            _forget_loading(module)
    return result


def _own_class(module: nn.Module) -> None:
    """A class that is not the original's, which a parametrisation is taken from, too."""
    shared = type(module)
    attributes = {name: value for name, value in vars(shared).items()
                  if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, attributes)


def _forget_loading(module: nn.Module) -> None:
    """What a spectral norm leaves of itself, where torch wraps its hook: loading asks for more."""
    hooks = module._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del hooks[key]


def _computed(model: nn.Module) -> Iterator[tuple[nn.Module, str, object]]:
    """Modules with the name of a weight that is computed, and the hook or what computes it."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name, how in module.parametrizations.items():  # type: ignore[union-attr, operator]
                yield module, name, how
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, prune.BasePruningMethod):
                yield module, str(hook._tensor_name), hook
            elif isinstance(hook, WeightNorm | SpectralNorm):
                yield module, hook.name, hook


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose computed weights are under the names of plain ones.

    ``x_orig`` with ``x_mask`` is a mask, ``x_orig`` with ``x_u`` and ``x_v`` a spectral norm (the
    weight ÷ u·W·v), ``x_g`` with ``x_v`` a weight norm (g · v ÷ ‖v‖); as parametrizations have
    them, too.

    >>> plain_tensors({"w_orig": torch.ones(2), "w_mask": torch.tensor([1.0, 0.0])})
    {'w': tensor([1., 0.])}
    """
    result = {}
    used: set[str] = set()
    for name in tensors:
        found = _weight_of(name, tensors)
        if found is not None:
            weight, value, parts = found
            result[weight] = value
            used.update(parts)
    return {**{name: value for name, value in tensors.items() if name not in used}, **result}


def _weight_of(
    name: str, tensors: Mapping[str, Tensor]
) -> tuple[str, Tensor, tuple[str, ...]] | None:
    """The plain weight that a tensor is the original of, its value, and the tensors it takes."""
    parts: tuple[str, ...]
    owner, parametrized, rest = name.rpartition("parametrizations.")
    if parametrized and name.endswith((".original", ".original0")):
        base = name.rpartition(".")[0]
        weight = owner + rest.partition(".")[0]
        if name.endswith(".original0") and f"{base}.original1" in tensors:
            parts = (name, f"{base}.original1")
            return weight, _weight_normed(*(tensors[part] for part in parts)), parts
        parts = (name, f"{base}.0._u", f"{base}.0._v")
    elif name.endswith("_orig") and f"{name[:-5]}_mask" in tensors:
        parts = (name, f"{name[:-5]}_mask")
        return name[:-5], tensors[parts[0]] * tensors[parts[1]], parts
    elif name.endswith("_orig"):
        weight, parts = name[:-5], (name, f"{name[:-5]}_u", f"{name[:-5]}_v")
    elif name.endswith("_g") and f"{name[:-2]}_v" in tensors:
        parts = (name, f"{name[:-2]}_v")
        return name[:-2], _weight_normed(*(tensors[part] for part in parts)), parts
    else:
        return None
    if not all(part in tensors for part in parts):
        return None
    return weight, _spectral_normed(*(tensors[part] for part in parts)), parts


def _weight_normed(g: Tensor, v: Tensor) -> Tensor:
    """g · v ÷ ‖v‖, the norm over all dimensions in which ``g`` has one entry."""
    dims = [dim for dim in range(v.dim()) if g.dim() != v.dim() or g.shape[dim] == 1]
    result: Tensor = g * v / torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    return result


def _spectral_normed(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The weight ÷ u·W·v, W having the units' dimension first: 1 of a transposed convolution.

    Where the shape leaves it open it is the one of which u and v are the leading singular vectors.
    """
    sigmas = [torch.dot(u, torch.mv(matrix, v)) for dim in range(min(2, weight.dim()))
              if (matrix := weight.movedim(dim, 0).flatten(1)).shape == (len(u), len(v))]
    result: Tensor = weight / max(sigmas, key=lambda sigma: float(sigma.abs()))
    return result
