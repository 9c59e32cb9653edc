"""A model that was trained elsewhere becomes an original: its weights from a file, its run.

Weights are loaded strictly: every tensor, by its name and shape. The file is safetensors', or a
state dict that ``torch.save`` wrote; no object is unpickled.
Tests: ``tests/pipeline/test_pretrained.py``.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wua_mlflow.config import Settings
from wua_mlflow.data.datasets import takes
from wua_mlflow.errors import did_you_mean, one_line
from wua_mlflow.hooks import unwrapped
from wua_mlflow.pipeline.cautions import constant_score, shown_score
from wua_mlflow.pipeline.compare_external import source_run
from wua_mlflow.pipeline.models import BUILT_IN, check_fit, users_factory
from wua_mlflow.pipeline.networks import one_network
from wua_mlflow.pipeline.recipe import Recipe, Trained, load_recipe
from wua_mlflow.pipeline.train import TrainingPlan, train_variant
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.rng import isolated, seed_all, stream_of
from wua_mlflow.tracking.names import Variant as VariantName
from wua_mlflow.tracking.store import Store
from wua_mlflow.training.evaluation import Evaluation
from wua_mlflow.verdict.scores import BY_EXAMPLE

__all__ = ["import_pretrained", "load_weights", "pretrained_recipe", "pretrained_settings",
           "source_of"]


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
    targets = {name: tensor for name, tensor in unwrapped(model).state_dict().items()
               if isinstance(tensor, Tensor)}
    if path.suffix in PICKLED:
        weights = _state_dict(path, state)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        _copy(targets, shapes, weights.__getitem__, state)
        return
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            _copy(targets, shapes, file.get_tensor, state)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"state: expected a .safetensors file, but '{state}' cannot be read as "
                         f"one: {one_line(error)}") from error


def _state_dict(path: Path, state: str) -> Mapping[str, Tensor]:
    save = "; save model.state_dict() alone, best as safetensors"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"state: expected a state dict, but '{state}' holds other objects, and "
                         f"unpickling them would run whatever code its author put in{save}") \
            from None
    except Exception as error:  # of a file that is none of torch's: of many kinds
        raise ValueError(f"state: expected a state dict, but '{state}' cannot be read as one: "
                         f"{one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"state: expected a state dict, but '{state}' holds a "
                         f"{type(content).__name__}{save}")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"state: expected tensors alone, but '{state}' has {name!r}, a "
                             f"{type(value).__name__}{save}")
    return content


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


def pretrained_settings(settings: Settings) -> Settings:
    """The settings of a model that exists: its file by a path that holds in any folder.

    A factory gets widths where ``hidden`` is given, or where it can do with nothing less.

    Raises:
        ValueError: one line; there is no such factory.
    """
    changes: dict[str, Any] = {}
    if settings.model not in BUILT_IN and "hidden" not in settings.given and \
            takes(users_factory(settings.model)):
        changes["hidden"] = ()
    if settings.state is not None:
        changes["state"] = str(Path(settings.state).expanduser().absolute())
    return settings.model_copy(update=changes)


def pretrained_recipe(settings: Settings) -> Recipe:
    """The data and the factory that the settings name.

    Raises:
        ValueError: one line; something is not there, or does not fit.
    """
    return load_recipe(pretrained_settings(settings))


def import_pretrained(store: Store, recipe: Recipe, *, pipeline: str | None = None) -> ModelVariant:
    """Log the factory's module, with the weights of ``state``, as an original's run.

    There is one network and no replicate of it. What its training cost is not known.

    Raises:
        ValueError: one line; the weights do not fit the module, or the module not the data.
    """
    settings, split = recipe.settings, recipe.split
    with isolated():
        seed_all(settings.seed)
        model = recipe.build(settings.hidden)
        stream = stream_of(recipe.device)
    if settings.state is not None:
        load_weights(model, settings.state)
    model = model.to(recipe.device).eval()
    check_fit(model, split)
    trained = Trained(model, recipe.kind_of(model), (), stream)
    widths = settings.hidden or tuple(
        group.units for group in unit_groups(model, recipe.example(model)).groups)
    variant = train_variant(store, recipe, TrainingPlan(
        VariantName.OVERSIZED, widths, settings.epochs, one_network(trained, recipe.device),
        hidden=settings.hidden, adopted=settings.state or settings.model, replicates=1,
        pipeline=pipeline))
    warning = _low_score_warning(variant.test)
    if warning:
        print(f"wua: note: {warning}", file=sys.stderr)
    return variant


def _low_score_warning(test: Evaluation) -> str:
    """A line, where the network answers worse than one that ignores its inputs."""
    name = shown_score(test)
    if test.task in BY_EXAMPLE or test.score_name not in ("", "accuracy", "r2"):
        return ""
    least = constant_score(test)
    if test.score >= least:
        return ""
    return (f"the original has {name} on the test part, where the same answer to everything has "
            f"{least:.4f}: are these data what it was trained on, in the same units? All that "
            f"follows is beside that score")


def source_of(store: Store, uri: str) -> str:
    """The run of ours that logged the model behind ``uri``.

    Raises:
        ValueError: one line; there is no such model, or it was not logged by a variant's run: its
            exported graph has no layers that could be cut.
    """
    run_id = source_run(store, uri)
    if run_id is None:
        raise ValueError(f"model_uri: expected a model that a variant's run of wua logged, but "
                         f"{uri} is none; an exported graph (pt2) has no layers to cut: name the "
                         f"module and its weights (--model package.module:factory "
                         f"--state weights.safetensors --data DATA)")
    return run_id
