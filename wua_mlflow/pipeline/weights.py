"""A model's weights from a file, strictly: every tensor, by its name and shape.

The file is safetensors', or a state dict that ``torch.save`` wrote; no object is unpickled.

May import: torch, safetensors, dotted, hooks. Tests: ``tests/pipeline/test_weights.py``.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from wua_mlflow.dotted import nearest, one_line
from wua_mlflow.hooks import unwrapped

__all__ = ["load_weights"]

PICKLED = (".pt", ".pth", ".bin")
"""Endings of state dicts that ``torch.save`` wrote."""


def load_weights(model: nn.Module, state: str) -> None:
    """Copy the file's tensors into the model; of safetensors no second copy is held.

    A tensor that the model holds under several names (tied weights) may be in the file under any
    of them.

    Args:
        model: its parameters and buffers are overwritten.
        state: the path of the file: a state dict where it ends in .pt, .pth or .bin, else
            safetensors.

    Raises:
        ValueError: there is no such file, it holds anything but tensors, or a name or a shape is
            not the model's; the first tensor is named, and nothing is overwritten.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(state).expanduser()
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"state: expected a .safetensors file, but '{state}' {reason}")
    if path.suffix == ".pt2":
        raise ValueError(f"state: expected a .safetensors file, but '{state}' is an exported "
                         f"graph, which has no layers to look at or to cut; save the state_dict() "
                         f"of the module that it was exported from")
    own = {name: tensor for name, tensor in unwrapped(model).state_dict().items()
           if isinstance(tensor, Tensor)}
    if path.suffix in PICKLED:
        found = _state_dict(path, state)
        _check(own, {name: tuple(tensor.shape) for name, tensor in found.items()}, state)
        with torch.no_grad():
            for name, tensor in found.items():
                own[name].copy_(tensor)
        return
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            _check(own, shapes, state)
            with torch.no_grad():
                for name in names:
                    own[name].copy_(file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"state: expected a .safetensors file, but '{state}' cannot be read as "
                         f"one: {one_line(error)}") from error


def _state_dict(path: Path, state: str) -> Mapping[str, Tensor]:
    save = "; save model.state_dict() alone, best as safetensors"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"state: expected a state dict, but '{state}' holds other objects, which "
                         f"are not unpickled{save}") from None
    except Exception as error:  # of a file that is none of torch's: of many kinds
        raise ValueError(f"state: expected a state dict, but '{state}' cannot be read as one: "
                         f"{one_line(error)}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"state: expected a state dict, but '{state}' holds a "
                         f"{type(found).__name__}{save}")
    for name, one in found.items():
        if not isinstance(one, Tensor):
            raise ValueError(f"state: expected tensors alone, but '{state}' has {name!r}, a "
                             f"{type(one).__name__}{save}")
    return found


def _check(own: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], state: str) -> None:
    tied = {_place(own[name]) for name in shapes if name in own}
    missing = [name for name, tensor in own.items()
               if name not in shapes and _place(tensor) not in tied]
    strange = [name for name in shapes if name not in own]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise ValueError(f"state: expected all tensors of the model, but '{state}' has no "
                         f"'{missing[0]}'{more}{nearest(missing[0], strange)}")
    if strange:
        more = f" (and {len(strange) - 1} more)" if strange[1:] else ""
        raise ValueError(f"state: expected the model's tensors alone, but '{state}' has "
                         f"'{strange[0]}' too{more}")
    for name, shape in shapes.items():
        if shape != tuple(own[name].shape):
            raise ValueError(f"state: expected '{name}' of shape {tuple(own[name].shape)}, as in "
                             f"the model, but '{state}' has {shape}")


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The same for tensors that are one in memory; one without memory is alike with itself only."""
    return tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride()
