"""The weights of a model that was trained elsewhere, from a file: read, renamed where that is sure.

Weights are loaded strictly: every tensor, by its name and shape. The file is safetensors', a state
dict that ``torch.save`` wrote, or a checkpoint that holds one; no object is unpickled.
Tests: ``tests/pipeline/test_weights.py``.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.errors import did_you_mean, one_line
from wua_mlflow.hooks import unwrapped
from wua_mlflow.imports import existing_file
from wua_mlflow.pruning.computed_weights import plain_tensors

__all__ = ["load_weights"]


PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Endings of what ``torch.save`` wrote."""
ENTRIES = ("state_dict", "model_state_dict", "model", "module", "weights")
"""Entries of a checkpoint that hold the model's state dict; the first that is there."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What data parallelism, ``torch.compile`` and a wrapper put in front of a model's names."""
_PLAIN_OBJECTS = ("lightning.fabric.utilities.data:AttributeDict",
                  "lightning_fabric.utilities.data:AttributeDict")
"""Mappings in which trainers keep hyperparameters; they run no code when they are loaded."""


def load_weights(model: nn.Module, state: str) -> None:
    """Copy the file's tensors into the model; of safetensors no second copy is held.

    A tensor that the model holds under several names (tied weights) may be in the file under any
    of them. Where the names do not fit but would without one prefix of all of them, that is taken
    away, and said; masks of ``torch.nn.utils.prune``, weight norms and spectral norms are computed
    where the model has plain weights.

    Args:
        model: its parameters and buffers are overwritten.
        state: the path of the file: what ``torch.save`` wrote where it ends in .pt, .pth, .bin,
            .ckpt or .tar, else safetensors.

    Raises:
        ValueError: there is no such file, it holds anything but tensors, or a name or a shape is
            not the model's; the first tensor is named, and nothing is overwritten.
    """
    from safetensors import SafetensorError, safe_open

    path = existing_file(str(state), "state: expected a .safetensors file")
    if path.suffix == ".pt2":
        raise ValueError(f"state: expected a .safetensors file, but '{state}' is an exported "
                         f"graph, which has no layers to look at or to cut; save the state_dict() "
                         f"of the module that it was exported from")
    targets = {name: tensor for name, tensor in unwrapped(model).state_dict().items()
               if isinstance(tensor, Tensor)}
    if path.suffix in PICKLED:
        weights = _fitted(_state_dict(path, state), targets, state)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        _copy(targets, shapes, weights.__getitem__, state)
        return
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            if set(shapes) <= set(targets):
                _copy(targets, shapes, file.get_tensor, state)
                return
            weights = _fitted({name: file.get_tensor(name) for name in names}, targets, state)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"state: expected a .safetensors file, but '{state}' cannot be read as "
                         f"one: {one_line(error)}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    _copy(targets, shapes, weights.__getitem__, state)


def _state_dict(path: Path, state: str) -> Mapping[str, Tensor]:
    save = "; save model.state_dict() alone, best as safetensors"
    try:
        with torch.serialization.safe_globals(_plain_objects()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on old protocols, beside the error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "TorchScript" in str(error):
            raise ValueError(f"state: expected a state dict, but '{state}' is a TorchScript "
                             f"archive, which has no layers to look at or to cut{save}") from None
        raise ValueError(f"state: expected a state dict, but '{state}' holds other objects"
                         f"{_objects(path)}, and unpickling them would run whatever code its "
                         f"author put in{save}") from None
    except Exception as error:  # of a file that is none of torch's: of many kinds
        script = "TorchScript" in str(error)
        reason = "is a TorchScript archive, which has no layers to look at or to cut" if script \
            else f"cannot be read as one: {one_line(error)}"
        raise ValueError(f"state: expected a state dict, but '{state}' {reason}"
                         f"{save if script else ''}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"state: expected a state dict, but '{state}' holds a "
                         f"{type(content).__name__}{save}")
    entry = next((name for name in ENTRIES if isinstance(content.get(name), Mapping)), None)
    if entry is not None:
        _say(f"{state}: its entry '{entry}' is taken")
        content = content[entry]
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise ValueError(f"state: expected names of tensors, but '{state}' has {name!r}, a "
                             f"{type(name).__name__}{save}")
        if not isinstance(value, Tensor):
            raise ValueError(f"state: expected tensors alone, but '{state}' has {name!r}, a "
                             f"{type(value).__name__}{save}")
        tensors[name] = value
    return tensors


def _plain_objects() -> list[Any]:
    """Classes that hold values and run nothing, which checkpoints have beside the weights."""
    classes: list[Any] = [Namespace, PosixPath, OrderedDict]
    for reference in _PLAIN_OBJECTS:
        module, _, name = reference.partition(":")
        if module.partition(".")[0] in sys.modules:
            with contextlib.suppress(ImportError, AttributeError):
                classes.append(getattr(importlib.import_module(module), name))
    return classes


def _objects(path: Path) -> str:
    """What the file holds beside tensors, as far as torch can tell without loading it."""
    with contextlib.suppress(Exception):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        if names:
            return f" ({', '.join(sorted(names)[:3])}{', …' if len(names) > 3 else ''})"
    return ""


def _fitted(
    weights: Mapping[str, Tensor], targets: Mapping[str, Tensor], state: str
) -> Mapping[str, Tensor]:
    """The tensors under the model's names, where one change of all names makes them fit."""
    if set(weights) <= set(targets):
        return weights
    for change, renamed in _renamings(weights, targets):
        for tensors in (renamed, _computed(renamed)):
            if not _fits(tensors, targets):
                continue
            words = [change] if change else []
            if set(tensors) != set(renamed):
                words.append("weights that masks or norms compute are taken as they come out")
            left_out = len(weights) - len(renamed)
            if left_out:
                words.append(f"{left_out} other tensors are left out")
            _say(f"{state}: {'; '.join(words)}")
            return tensors
    return weights


def _computed(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return plain_tensors(weights)


def _renamings(
    weights: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Names as they are, without a prefix, or with the one that all of the model's have."""
    yield "", weights
    prefix = ""
    while step := next((each for each in PREFIXES if any(
            name.startswith(prefix + each) for name in weights)
            and not any(target.startswith(each) for target in targets)), None):
        prefix += step
        if len(prefix) > 40:
            break
        without = {name.removeprefix(prefix): tensor for name, tensor in weights.items()
                   if name.startswith(prefix)}
        if not set(targets).intersection(weights):  # else it holds two networks
            yield f"the prefix '{prefix}' of its names is taken away", without
    fronts = {name.partition(".")[0] for name in targets}
    if len(fronts) == 1:
        front = next(iter(fronts))
        yield (f"'{front}.' is put in front of its names",
               {f"{front}.{name}": tensor for name, tensor in weights.items()})


def _fits(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> bool:
    """Whether these are all of the model's tensors, in their shapes, and no others; tied ones once.
    """
    if not set(tensors) <= set(targets):
        return False
    held = {_memory(targets[name]) for name in tensors if name in targets}
    return all(name in tensors or _memory(target) in held for name, target in targets.items()) \
        and all(tensors[name].shape == target.shape for name, target in targets.items()
                if name in tensors)


def _say(words: str) -> None:
    print(f"wua: note: state: {words}", file=sys.stderr)


def _copy(
    targets: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]],
    tensor_of: Callable[[str], Tensor], state: str,
) -> None:
    """Copy the file's tensors, where they are all of the model's and no others."""
    tied = {_memory(targets[name]) for name in shapes if name in targets}
    missing = [name for name, tensor in targets.items()
               if name not in shapes and _memory(tensor) not in tied]
    unknown = [name for name in shapes if name not in targets]
    others = len(missing or unknown) - 1
    more = f" (and {others} more)" if others > 0 else ""
    if missing:
        raise ValueError(f"state: expected all tensors of the model, but '{state}' has no "
                         f"'{missing[0]}'{more}{did_you_mean(missing[0], unknown)}")
    if unknown:
        raise ValueError(f"state: expected the model's tensors alone, but '{state}' has "
                         f"'{unknown[0]}' too{more}")
    for name, shape in shapes.items():
        expected = tuple(targets[name].shape)
        if shape != expected:
            raise ValueError(f"state: expected '{name}' of shape {expected}, as in the model, but "
                             f"'{state}' has {shape}")
    with torch.no_grad():
        for name in shapes:
            targets[name].copy_(tensor_of(name))


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Equal for two tensors of the same memory; a tensor without memory equals itself alone."""
    return tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride()
