"""FLOPs of a model: forward, backward, by module, by operator, and what was not counted.

The convention is stated here once (``CONVENTION``) and logged beside every number.
Tests: ``tests/flops/test_flops.py``.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wua_mlflow.display import Displayed, Summary
from wua_mlflow.flops.formulas import FORMULAS
from wua_mlflow.flops.meta_run import (
    ForwardModules,
    FusedTimeSteps,
    OperatorLog,
    decomposed_ops,
    meta_copy,
    real_copy,
    swapped_tensors,
    tensor_copier,
)
from wua_mlflow.hooks import unwrapped
from wua_mlflow.rng import isolated

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CONVENTION", "FlopCount", "count_flops", "count_parameters", "ptflops_forward_flops",
    "tensors_in",
]


CONVENTION = ("2 FLOPs per multiply-accumulate of matrix products, convolutions and attention "
              "(causal counts the full square); eval mode")

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class FlopCount(Displayed):
    """FLOPs of one call of a model on a batch of ``samples``; divide by it for one sample.

    ``by_module`` maps the qualified name of each module that ran counted operators (the model
    itself is ``""``) to its forward FLOPs, its children's included; ``by_operator`` maps each
    counted operator, like ``"aten.mm"``, to its forward FLOPs; ``uncounted`` each operator that
    computes and has no formula to its number of calls, backward included. Elementwise operators,
    views, reductions, normalisations and the creation of tensors are left out of both. ``on_meta``:
    nothing was computed; False where the call had to run for real, on copies of all tensors.
    """

    forward_flops: int
    backward_flops: int
    by_module: Mapping[str, int]
    by_operator: Mapping[str, int]
    uncounted: Mapping[str, int]
    samples: int
    on_meta: bool = True

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the count leaves out, in a line; none where every operator has a formula."""
        if not self.uncounted:
            return ()
        calls = ", ".join(f"{name} ({calls} calls)" for name, calls in self.uncounted.items())
        return (f"FLOPs are a lower bound: no formula for {calls}",)

    def summary(self) -> Summary:
        """What is shown of it: a module a row, as deep as a screen holds them."""
        depths = {name: name.count(".") + 1 for name in self.by_module if name}
        shown = [depth for depth in sorted(set(depths.values()))
                 if sum(own <= depth for own in depths.values()) <= _MOST_MODULES]
        depth = shown[-1] if shown else min(depths.values(), default=0)
        rows = [(name, *self._cells(self.by_module[name]))
                for name, own in depths.items() if own <= depth]
        deeper = f"; modules to depth {depth}" if depth < max(depths.values(), default=0) else ""
        operators = ", ".join(f"{name} {flops:,}" for name, flops in self.by_operator.items())
        backward = f", backward {self.backward_flops:,}" if self.backward_flops else ""
        return Summary(
            f"FLOPs of a batch of {self.samples:,}: forward {self.forward_flops:,}"
            f"{backward}{deeper}",
            ("module", "FLOPs, forward", "FLOPs, one sample", "share"), rows,
            [("the model", *self._cells(self.forward_flops))],
            [*([f"by operator: {operators}"] if operators else []), *self.caveats])

    def _cells(self, flops: int) -> tuple[str, str, str]:
        share = flops / self.forward_flops if self.forward_flops else 0.0
        return f"{flops:,}", f"{flops / self.samples:,.0f}", f"{share:.1%}"

    def table(self) -> pd.DataFrame:
        """Forward FLOPs of every module, its children's included; the model itself is ``""``."""
        import pandas as pd

        flops = pd.Series(self.by_module, dtype="int64", name="forward_flops")
        share = flops / max(self.forward_flops, 1)
        return pd.DataFrame({"forward_flops": flops, "per_sample": flops / self.samples,
                             "share": share}).rename_axis("module")


_MOST_MODULES = 26
"""More than these would leave a screen."""


def count_parameters(model: nn.Module) -> int:
    """How many numbers its parameters hold; tied ones count once.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, inputs: Inputs, *, backward: bool = True) -> FlopCount:
    """Count the FLOPs of ``model(inputs)`` in eval mode, and of its backward.

    The call runs on meta tensors: nothing is computed and no weights are allocated. Where that
    fails (a path that depends on the data, a tensor that the model holds outside its modules),
    it runs for real, on copies of the parameters, buffers and inputs (``on_meta`` is False), and
    the count is the one for these inputs. The model, torch's random streams and the inputs stay as
    they were. Complex products count as real ones, an outer product made by broadcasting as
    elementwise.

    Args:
        model: any module written in Python; a compiled or data-parallel one is unwrapped.
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments. The
            leading size of the first tensor is the number of samples.
        backward: also run the backward of the sum of all outputs, for the parameters that
            require a gradient; the inputs need none.

    Returns:
        The count, for the whole batch.

    Raises:
        ValueError: ``inputs`` holds no tensor or no sample, or ``model`` is scripted, or its
            lazy parameters were never initialised.
        Exception: whatever the model's own forward raises.

    >>> mlp = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1))
    >>> count = count_flops(mlp, torch.rand(1, 2))
    >>> count.forward_flops, count.backward_flops, count.by_module["0"]
    (60, 80, 40)
    """
    model = _checked_model(model)
    args, kwargs = _arguments(inputs)
    with suppress(Exception):
        return _count(model, args, kwargs, meta=True, backward=backward)
    return _count(model, args, kwargs, meta=False, backward=backward)


def ptflops_forward_flops(model: nn.Module, input_shape: Sequence[int]) -> int | None:
    """FLOPs of one sample as the tutorial has them: 2 × the multiply-accumulates of ptflops.

    Its "pytorch" backend counts biases and activations too, some of them twice. It runs the model
    once, for real, on copies of its tensors; the model stays as it was.

    Args:
        model: a module that takes one floating-point tensor.
        input_shape: shape of one sample, without the batch dimension.

    Returns:
        FLOPs, or None, with a warning, where ptflops cannot count the model.

    Raises:
        ValueError: ``input_shape`` is empty or holds anything but positive integers.

    >>> mlp = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())
    >>> ptflops_forward_flops(mlp, (2,))
    122
    """
    shape = tuple(input_shape)
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"input_shape: expected positive integers, but got {shape}")
    model = _checked_model(model)
    macs, reason = _ptflops_macs(model, shape)
    if macs is not None:
        return 2 * macs
    warnings.warn(f"ptflops cannot count {type(model).__name__} on an input of shape {shape}: "
                  f"{reason}", stacklevel=2)
    return None


def _count(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, meta: bool, backward: bool
) -> FlopCount:
    """Count the call, run on copies of all tensors: empty ones on the meta device, or real ones."""
    copy = meta_copy if meta else real_copy
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    copied = tensor_copier(lambda x: copy(x).detach().to("meta" if meta else device))
    log = OperatorLog(reuse=meta)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = ForwardModules()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with decomposed_ops(grad=backward, meta=meta), swapped_tensors(model, copy):
        inputs = copied(args), copied(kwargs)
        with FusedTimeSteps() if meta and recurrent else nullcontext(), log, counter:
            outputs = model(*inputs[0], **inputs[1])
            forward = counter.get_flop_counts()
            if backward:
                roots = [tensor for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
                torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])
        by_module = _by_module(model, forward)
    by_operator = {str(operator): n for operator, n in forward.get("Global", {}).items()}
    return FlopCount(
        forward_flops=sum(by_operator.values()),
        backward_flops=counter.get_total_flops() - sum(by_operator.values()),
        by_module=by_module,
        by_operator=by_operator,
        uncounted=log.uncounted(counter.flop_registry),
        samples=_samples(tensors_in((args, kwargs))),
        on_meta=meta,
    )


def tensors_in(value: Any, *, objects: bool = False, _within: tuple[int, ...] = ()) -> list[Tensor]:
    """The tensors in nested mappings, lists, tuples, sets and dataclasses.

    Args:
        value: any of them, or a tensor.
        objects: also in the attributes of other objects, such as a cache of keys and values.

    >>> from types import SimpleNamespace
    >>> value = {"a": [torch.ones(1)], "b": SimpleNamespace(c=torch.ones(2), d=3)}
    >>> len(tensors_in(value)), len(tensors_in(value, objects=True))
    (1, 2)
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, list | tuple | set):
        items = list(value)
    elif id(value) in _within or callable(value):
        return []  # modules and functions are no outputs; an object may hold itself
    elif is_dataclass(value):
        items = [getattr(value, field.name) for field in fields(value)]
    else:
        items = list(getattr(value, "__dict__", {}).values()) if objects else []
    within = (*_within, id(value))
    return [tensor for item in items
            for tensor in tensors_in(item, objects=objects, _within=within)]


def _by_module(model: nn.Module, counts: Mapping[str, Mapping[Any, int]]) -> dict[str, int]:
    """Forward FLOPs by qualified name, from the counter's names (``Net.encoder.0``, any alias)."""
    names = {module: name for name, module in model.named_modules()}
    modules = {f"{type(model).__name__}.{alias}": module
               for alias, module in model.named_modules(remove_duplicate=False)}
    flops = Counter({"": sum(counts.get("Global", {}).values())})
    for tracked, operators in counts.items():
        if tracked in modules:
            flops[names[modules[tracked]]] += sum(operators.values())
    return dict(flops)


def _checked_model(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Module, but got {type(model).__name__}")
    model = unwrapped(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("model: expected a module in Python, but got a scripted one")
    if any(map(torch.nn.parameter.is_lazy, (*model.parameters(), *model.buffers()))):
        raise ValueError("model: expected initialised parameters, but got lazy ones; call the "
                         "model once first")
    return model


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not isinstance(inputs, Tensor | Mapping | list | tuple):
        raise ValueError("inputs: expected a tensor, a tuple of tensors or a dict of tensors, but "
                         f"got {type(inputs).__name__}")
    tensors = tensors_in(inputs)
    if not tensors:
        raise ValueError("inputs: expected at least one tensor, but got none")
    if _samples(tensors) == 0:
        raise ValueError("inputs: expected at least one sample, but got an empty batch")
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return ((inputs,) if isinstance(inputs, Tensor) else tuple(inputs)), {}


def _samples(tensors: list[Tensor]) -> int:
    return next((len(tensor) for tensor in tensors if tensor.dim()), 1)


def _ptflops_macs(model: nn.Module, shape: tuple[int, ...]) -> tuple[int | None, str]:
    """ptflops' multiply-accumulates for one sample, or None and why.

    On meta tensors it would count what torch's own meta functions call as well.
    """
    from ptflops import get_model_complexity_info

    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return None, "its tensors are on the meta device"
    printed = io.StringIO()
    with warnings.catch_warnings(action="ignore"), redirect_stdout(printed), \
            redirect_stderr(printed), isolated(), torch.no_grad(), \
            swapped_tensors(model, real_copy):
        try:
            macs, _ = get_model_complexity_info(
                model, shape, print_per_layer_stat=False, as_strings=False, backend="pytorch")
        except Exception as error:
            return None, f"{type(error).__name__}: {error}"
    return macs, printed.getvalue().strip().rpartition("\n")[2]
