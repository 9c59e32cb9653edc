"""The models that a pipeline can build: ``mlp``, ``cnn``, or the user's own factory.

Tests: ``tests/pipeline/test_models.py``.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wua_mlflow.data.batches import leaves
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.data.parts import Part
from wua_mlflow.data.tasks import checked_output
from wua_mlflow.errors import did_you_mean, one_line
from wua_mlflow.hooks import evaluating
from wua_mlflow.imports import load_object
from wua_mlflow.pruning.layers import call_model
from wua_mlflow.rng import isolated
from wua_mlflow.widths.factory import Factory, layers_by_width

__all__ = [
    "BUILT_IN", "check_fit", "check_slim_widths", "check_widths", "cnn", "factory", "made_by",
    "mlp", "naming", "users_factory", "users_function",
]


def factory(model: str, split: DataSplit) -> Factory:
    """The function from widths to a model that ``model`` names, for the shape of ``split``.

    Without widths, the user's own factory is called with no argument.

    Raises:
        ValueError: no such model, or it cannot be imported.
    """
    if model in BUILT_IN:
        built_in = BUILT_IN[model]

        def build(widths: Sequence[int]) -> nn.Module:
            if not split.features or split.outputs is None:
                raise ValueError(f"model: {model} expected one input tensor and one target an "
                                 f"example, but the data are of another form; name a model of "
                                 f"your own: package.module:factory")
            with naming(f"hidden: no {model} of the widths {_listed(widths)} can be made"):
                return built_in(widths, split.features, split.outputs, split.task)

        return build
    user = users_factory(model)
    return lambda widths: made_by(
        user, model, widths or None,
        lambda made: call_model(made, split.train.example(made, 2)))


def users_function(name: str, setting: str) -> Callable[..., Any]:
    """The function that a setting names; its errors become one line that names the setting.

    Raises:
        ValueError: one line; it cannot be imported.
    """
    function = load_object(name, argument=setting)

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        with naming(f"{setting}: {name} failed", ours=False):
            return function(*values, **named)

    return call


def users_factory(model: str) -> Callable[..., object]:
    """The user's function or class that ``model`` names.

    Raises:
        ValueError: it is named in no such way, or cannot be imported.
    """
    if ":" not in model:
        raise ValueError(f"model: expected {', '.join(BUILT_IN)} or package.module:factory, "
                         f"but got '{model}'{did_you_mean(model, BUILT_IN)}")
    user: Callable[..., object] = load_object(model, argument="model")
    return user


def made_by(
    user: Callable[..., object],
    model: str,
    widths: Sequence[int] | None,
    forward: Callable[[nn.Module], object],
) -> nn.Module:
    """The model that the user's factory makes, with its lazy parameters initialised.

    Args:
        user: the factory, of widths or of nothing.
        model: its name, for messages.
        widths: None: the factory takes nothing.
        forward: calls a model with some of the data.

    Raises:
        ValueError: one line; the factory fails, or makes no module.
    """
    beside = "" if widths is None else f" with the widths {_listed(widths)}"
    with naming(f"model: {model} failed{beside}", ours=False):
        made = user() if widths is None else user(tuple(widths))
    if not isinstance(made, nn.Module):
        raise ValueError(f"model: expected {model} to return a torch.nn.Module, but it "
                         f"returned {type(made).__name__}")
    if any(map(is_lazy, made.parameters())):  # they get their shapes in the first forward
        with naming(f"model: {model} does not take the data's inputs"), evaluating(made):
            forward(made)
    return made


def mlp(widths: Sequence[int], features: Sequence[int], outputs: int, task: str) -> nn.Module:
    """Linear layers ``fc1``, ``fc2``, … with ReLU between; a sigmoid at the end of a binary one.

    >>> mlp([10], [2], 1, "binary")
    Sequential(
      (fc1): Linear(in_features=2, out_features=10, bias=True)
      (relu1): ReLU()
      (fc2): Linear(in_features=10, out_features=1, bias=True)
      (sigmoid): Sigmoid()
    )
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if len(features) > 1:
        parts["flatten"] = nn.Flatten()
    width = int(torch.Size(features).numel())
    for number, units in enumerate(widths, 1):
        parts[f"fc{number}"] = nn.Linear(width, units)
        parts[f"relu{number}"] = nn.ReLU()
        width = units
    parts[f"fc{len(widths) + 1}"] = nn.Linear(width, outputs)
    if task == "binary":
        parts["sigmoid"] = nn.Sigmoid()
    return nn.Sequential(parts)


def cnn(widths: Sequence[int], features: Sequence[int], outputs: int, task: str) -> nn.Module:
    """3×3 convolutions ``conv1``, … each with batch norm and ReLU, pooled by 2 while that is
    possible; then the mean over the image and one Linear layer, ``fc``.

    Raises:
        ValueError: the inputs are not images (channels, height, width).
    """
    if len(features) != 3:
        raise ValueError(f"model: cnn expected images of shape (channels, height, width), but the "
                         f"data's inputs have the shape {tuple(features)}")
    channels, height, width = features
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, units in enumerate(widths, 1):
        parts[f"conv{number}"] = nn.Conv2d(channels, units, 3, padding=1, bias=False)
        parts[f"norm{number}"] = nn.BatchNorm2d(units)
        parts[f"relu{number}"] = nn.ReLU()
        if min(height, width) >= 4 and number < len(widths):
            parts[f"pool{number}"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        channels = units
    parts["mean"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(channels, outputs)
    if task == "binary":
        parts["sigmoid"] = nn.Sigmoid()
    return nn.Sequential(parts)


BUILT_IN: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn}


@contextmanager
def naming(what: str, *, ours: bool = True) -> Iterator[None]:
    """Errors of the user's code, or of torch within it, become one line that begins with ``what``.

    Args:
        what: names the setting and what failed.
        ours: whether a ValueError comes from this package, worded for the user, and passes as is.

    Raises:
        ValueError: in place of any error, and of a call of ``sys.exit``.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if ours and isinstance(error, ValueError):
            raise
        raise ValueError(f"{what}: {one_line(error)}") from error


def check_fit(model: nn.Module, split: DataSplit) -> None:
    """Whether the model takes the data's inputs and gives outputs of the task's shape.

    Raises:
        ValueError: one line with both shapes.
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError("model: expected a module with parameters, but it has none")
    probe: Any = None
    try:
        with isolated(), evaluating(model):
            probe = split.train.example(model, 3)
            outputs = call_model(model, probe)
    except Exception as error:  # the user's forward: any error is theirs to see, in one line
        reason = " ".join(str(error).split())
        shape = f" of shape {_shape(split.features)}" if split.features else ""
        raise ValueError(f"model: does not take the data's inputs{shape}: {reason}") from error
    if split.task == "custom":
        return
    try:
        outputs = checked_output(outputs)
    except ValueError:
        if split.outputs is None:
            raise
    samples = len(leaves(probe, Tensor)[0])
    if split.outputs is None:  # of tokens and pixels only the model knows
        if outputs.dim() < 3 or len(outputs) != samples:
            raise ValueError(f"model: expected outputs of shape (batch, positions, classes), or "
                             f"(batch, classes, height, width) of pixels, for this {split.task} "
                             f"task, but got {_shape(tuple(outputs.shape[1:]))}")
        return
    more = not isinstance(split.train, Part) and split.task == "multiclass"
    if more and isinstance(outputs, Tensor) and outputs.dim() == 2 \
            and outputs.shape[1] > split.outputs:
        return
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != (samples, split.outputs):
        got = tuple(outputs.shape[1:]) if isinstance(outputs, Tensor) else type(outputs).__name__
        hint = "; two classes by two outputs: --task multiclass" if split.task == "binary" \
            and got == (2,) else ""
        raise ValueError(f"model: expected outputs of shape (batch, {split.outputs}) for this "
                         f"{split.task} task, but got {_shape(got)}{hint}")


def check_widths(
    build: Factory, original: tuple[int, ...], slim: tuple[int, ...] | None
) -> tuple[tuple[str, ...], ...]:
    """Whether the factory builds the widths it is given, and the slim ones given are slim.

    Returns:
        For each width the layers that it sets.

    Raises:
        ValueError: the factory ignores a width; or as ``check_slim_widths``.

    >>> check_widths(lambda w: nn.Linear(2, w[0]), (10,), (12,))
    Traceback (most recent call last):
    ValueError: slim_hidden: expected widths of at most the original's (10), but got 12
    """
    if slim is not None:
        check_slim_widths(original, slim)
    return layers_by_width(build, original)


def check_slim_widths(original: Sequence[int], slim: Sequence[int]) -> None:
    """Whether the slim widths are as many as the original's, none larger, and one smaller.

    Raises:
        ValueError: they are not.
    """
    given, whole = _listed(slim), _listed(original)
    if len(slim) != len(original):
        expected = f"{len(original)} widths, as the original has ({whole})"
        given = f"{len(slim)} ({given})"
    elif any(new > old for new, old in zip(slim, original, strict=True)):
        expected = f"widths of at most the original's ({whole})"
    elif tuple(slim) == tuple(original):
        expected = f"at least one width below the original's ({whole})"
    else:
        return
    raise ValueError(f"slim_hidden: expected {expected}, but got {given}")


def _shape(shape: object) -> str:
    return str(("batch", *shape)).replace("'", "") if isinstance(shape, tuple) else str(shape)


def _listed(widths: Sequence[int]) -> str:
    return ",".join(map(str, widths))
