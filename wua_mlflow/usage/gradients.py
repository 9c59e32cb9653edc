"""The mean gradient of a loss with respect to the weights that a forward used.

Tests: ``tests/usage/test_gradients.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from wua_mlflow.data.batches import NO_TARGETS
from wua_mlflow.usage.tracing.layer import TracedLayer
from wua_mlflow.usage.tracing.parameters import ParameterView
from wua_mlflow.usage.tracing.tracer import WeightTracer

__all__ = ["Gradients", "Loss", "loss_of"]


_BLOCK = 2**16
Loss = Callable[[Any, Any], Tensor]
"""Of the model's outputs and a batch's targets: the mean over the batch's samples, a scalar."""


class Gradients:
    """Gradients summed over samples, in float64 and in the parameters' memory layout.

    ``sums`` holds them by name, for each kind: ``parameters``, weights that modules ``computed``,
    and Σ a·g of ``units``.
    """

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, Tensor]] = {"parameters": {}, "computed": {}, "units": {}}
        self.samples = 0

    def add(self, loss: Tensor, tracer: WeightTracer, samples: int) -> None:
        """Add the gradients of one batch's mean loss, for every traced layer."""
        targets = [("parameters", name, tracer.registry.index.parameters[name])
                   for name in _parameter_names(tracer.registry.layers.values())]
        targets += [("computed", layer.name, tensor) for layer, tensor in tracer.computed_weights]
        consumers = tracer.unit_taylor.weights()
        tensors = [tensor for *_, tensor in targets if tensor.requires_grad]
        tensors += [tensor for _, tensor in consumers]
        gradients = iter(_gradients(loss, tensors) if tensors else ())
        for kind, name, tensor in targets:
            gradient = next(gradients) if tensor.requires_grad else None
            _add_gradient(self.sums[kind], name, tensor, gradient, samples)
        for name, tensor in consumers:
            tracer.unit_taylor.add_gradient(name, tensor, next(gradients))
        for name, unit_sums in tracer.unit_taylor.sums.items():
            _add_gradient(self.sums["units"], name, unit_sums, unit_sums, samples)
        self.samples += samples

    def described(self) -> dict[str, Any]:
        """The number of samples, and the sums' shapes and strides, to send to other processes."""
        return {"samples": self.samples, "shapes": {kind: {
            name: torch.empty_like(total, device="meta") for name, total in sums.items()}
            for kind, sums in self.sums.items()}}

    def join(self, by_process: list[Any]) -> list[Tensor]:
        """Take in the ``described()`` of all processes; gives the sums, in one order for all."""
        self.samples = sum(described["samples"] for described in by_process)
        all_sums = []
        for kind, sums in self.sums.items():
            shapes = {name: shape for described in by_process
                      for name, shape in described["shapes"][kind].items()}
            for name in sorted(shapes):
                if name not in sums:
                    sums[name] = torch.zeros_like(shapes[name], device="cpu")
                all_sums.append(sums[name])
        return all_sums

    def finish(self) -> None:
        """Divide the sums by the number of samples, in place: nothing is added after."""
        for sums in self.sums.values():
            for total in sums.values():
                total.div_(max(1, self.samples))

    def of_weight(self, layer: TracedLayer) -> Tensor:
        """The mean gradient of a layer's weight, shape (units, ...)."""
        if layer.view is None:
            return layer.units_first(self.sums["computed"][layer.name])
        return layer.units_first(layer.view.of(self.sums["parameters"][layer.view.parameter]))

    def of_bias(self, view: ParameterView) -> Tensor:
        """The mean gradient of a layer's bias, shape (units,)."""
        return view.of(self.sums["parameters"][view.parameter]).reshape(-1)

    def of_units(self, layer: TracedLayer) -> Tensor | None:
        """The mean Σ a·g of a layer's units, signed; None where weight and bias give it."""
        if not layer.has_own_taylor:
            return None
        return self.sums["units"].get(layer.name, torch.zeros(layer.units, dtype=torch.float64))


def loss_of(outputs: Any, targets: Any, loss: Loss | None, *, number: int) -> Tensor:
    """The loss of a batch, from the user's function or from the model's own outputs.

    On a GPU it is read back, to see whether it is finite, for batches 0, 1, 3, 7, … only.

    Raises:
        ValueError: there is neither a loss nor a target, or the loss is no finite scalar.
    """
    if loss is None:
        value = getattr(outputs, "loss", None)
        if value is None:
            raise ValueError("loss: the criterion taylor needs a function of outputs and targets, "
                             "or a model whose outputs have a loss, but got neither")
    elif targets is NO_TARGETS:
        raise ValueError("data: the criterion taylor needs targets, but the batches are inputs "
                         "alone; give (inputs, targets), or dicts with labels")
    else:
        value = loss(outputs, targets)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ValueError(f"loss: expected a scalar tensor that depends on the model's weights, but "
                         f"got {_describe_value(value)}")
    read_back = not value.is_cuda or not (number + 1) & number
    if read_back and not bool(torch.isfinite(value)):
        raise ValueError(f"loss: expected a finite number, but got {value.item()} for batch "
                         f"{number}")
    return value.reshape(())


def _gradients(loss: Tensor, tensors: list[Tensor]) -> Sequence[Tensor | None]:
    try:
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            loss, tensors, allow_unused=True)
    except RuntimeError:
        if not _is_reentrant(loss):
            raise
        gradients = [None]
    if any(gradient is None for gradient in gradients) and _is_reentrant(loss):
        raise ValueError("model: taylor needs the gradients of weights, which do not come out of "
                         "reentrant checkpoints; use checkpoint(..., use_reentrant=False)")
    return gradients


def _is_reentrant(loss: Tensor) -> bool:
    """Whether a part of the forward used a reentrant checkpoint, which hides its weights."""
    visited, pending = set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        visited.add(node)
        pending += [parent for parent, _ in node.next_functions]
    return False


def _parameter_names(layers: Iterable[TracedLayer]) -> list[str]:
    views = [view for layer in layers for view in (layer.view, layer.bias) if view is not None]
    return list(dict.fromkeys(view.parameter for view in views))


def _add_gradient(
    sums: dict[str, Tensor], name: str, like: Tensor, gradient: Tensor | None, samples: int
) -> None:
    if gradient is not None:
        gradient = gradient.detach()
        gradient = gradient if gradient.layout is torch.strided else gradient.to_dense()
        if name not in sums and like.is_contiguous() and gradient.is_contiguous():
            sums[name] = gradient.to(torch.float64, copy=True).mul_(samples)
            return
    if name not in sums:  # also of a parameter with gaps
        sums[name] = torch.empty_strided(
            like.shape, like.stride(), dtype=torch.float64, device=like.device).zero_()
    if gradient is None:
        return
    total = sums[name]
    if gradient.is_cuda or not total.is_contiguous():
        total.add_(gradient, alpha=samples)
        return
    blocks = zip(total.view(-1).split(_BLOCK), gradient.reshape(-1).split(_BLOCK), strict=True)
    for total_block, block in blocks:  # five times as fast as adding float32 to float64 in one go
        total_block.add_(block.double(), alpha=samples)


def _describe_value(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"shape {tuple(value.shape)}" if value.numel() != 1 else "one without a gradient"
