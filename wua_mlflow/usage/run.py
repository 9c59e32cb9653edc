"""One streaming pass over the data: each layer's statistics, and what was skipped and why.

Tests: ``tests/usage/test_run.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wua_mlflow.data.batches import Batch, Batches
from wua_mlflow.distributed import (
    all_reduce,
    gather_objects,
    is_sharded,
    processes,
    raise_first_error,
    synchronized_batches,
)
from wua_mlflow.errors import did_you_mean
from wua_mlflow.hooks import Running, evaluating, running
from wua_mlflow.usage.activation_sample import ActivationSampler
from wua_mlflow.usage.gradients import Gradients, Loss, loss_of
from wua_mlflow.usage.tracing.layer import FiredUnits, RequiredStats, RunningSum, TracedLayer
from wua_mlflow.usage.tracing.parameters import clean, layer_names
from wua_mlflow.usage.tracing.registry import LayerRegistry
from wua_mlflow.usage.tracing.skipped import explain_skipped
from wua_mlflow.usage.tracing.tracer import WeightTracer
from wua_mlflow.usage.tracing.unit_taylor import UnitTaylor

__all__ = ["PassStatistics", "is_part", "layer_filter", "parts_of", "run_pass"]


SCRIPTED = "it runs as TorchScript, which shows no product"


@dataclass(frozen=True)
class PassStatistics:
    """The traced layers, in the order of their first calls, and what was skipped and why.

    ``last`` names the layers whose units the model's outputs are.
    ``parameters`` holds the weights by name, the model's own tensors; ``not_requested`` names
    layers that were called but not requested.
    """

    layers: Mapping[str, TracedLayer]
    last: tuple[str, ...]
    skipped: Mapping[str, str]
    samples: int
    parameters: Mapping[str, torch.Tensor]
    gradients: Gradients | None
    sampler: ActivationSampler | None
    not_requested: frozenset[str] = frozenset()


def run_pass(
    model: nn.Module,
    data: Batches,
    needs: RequiredStats,
    *,
    wanted: Callable[[str], bool] = lambda _: True,
    loss: Loss | None = None,
) -> PassStatistics:
    """Run the model over the data and gather what ``needs`` names.

    Inside an initialised ``torch.distributed`` each process streams its own share, and the sums
    are joined at the end; then every process has the same statistics.

    Args:
        model: left as found, also when its forward raises.
        data: the batches.
        needs: what to gather.
        wanted: whether a layer of this name is to be traced.
        loss: for gradients.

    Raises:
        ValueError: no samples, a model on the meta device, or a sum that is NaN or infinite:
            names the layer and the batch.
        Exception: whatever the model's forward raises; its message names the layer reached.
    """
    run, error = _Pass(model, needs, wanted, loss), None
    registry = run.tracer.registry
    with evaluating(model, grad=needs.gradient), running(model, run.module_names) as run.running:
        registry.index.running = run.running.stack
        try:
            for number, batch in enumerate(synchronized_batches(data, sharded=is_sharded(model))):
                run.add(batch, number)
            run.check_finite()
            run.compare_computed_weights()
        except Exception as caught:
            error = caught
        raise_first_error(error)
        if processes() > 1:
            run.merge_processes()
        if run.gradients is not None:
            run.gradients.finish()
        skipped = explain_skipped(registry, run.running.calls)
    if not run.samples:
        raise ValueError("data: expected at least one sample, but got none")
    return PassStatistics(registry.layers, tuple(run.tracer.output_layers), skipped, run.samples,
                          registry.index.parameters, run.gradients, run.sampler,
                          frozenset(registry.not_requested))


class _Pass:
    """What is gathered while the model goes over the data."""

    def __init__(
        self, model: nn.Module, needs: RequiredStats, wanted: Callable[[str], bool],
        loss: Loss | None,
    ) -> None:
        tensors = (*model.parameters(), *model.buffers())
        if any(map(is_lazy, tensors)):
            raise ValueError("model: expected initialised parameters, but got lazy ones; call the "
                             "model once first")
        if any(tensor.is_meta for tensor in tensors):
            raise ValueError(
                "model: expected parameters and buffers with values, but got some on the meta "
                "device; call model.to_empty(device=...) and load a state dict first")
        self.model, self.loss, self.samples = model, loss, 0
        self.tracer = WeightTracer(LayerRegistry(model, wanted), needs)
        self.gradients = Gradients() if needs.gradient else None
        self.sampler = ActivationSampler() if needs.rows else None
        if self.sampler is not None:
            self.tracer.on_call = self.sampler.see
        self.running = Running()
        self.module_names: dict[nn.Module, str] = {}
        for name, module in self.tracer.registry.index.modules.items():
            if not isinstance(module, torch.jit.ScriptModule):
                self.module_names[module] = name
            elif any(True for _ in module.parameters(False)):
                self.tracer.registry.unsupported[name] = SCRIPTED
        self._last_batch: Batch | None = None

    def add(self, batch: Batch, number: int) -> None:
        """Run the model on one batch, the ``number``-th of the pass."""
        self._last_batch = batch
        self.running.stack.clear()
        self.tracer.mask, self.tracer.computed_weights = batch.mask, []
        self.tracer.unit_taylor = UnitTaylor()
        if self.sampler is not None:
            self.sampler.begin(batch)
        try:
            with self.tracer:
                outputs = self.model(*batch.args, **batch.kwargs)
            self.tracer.note_outputs(outputs)
        except Exception as error:
            _add_location(error, self.running.stack, number)
            raise
        if not batch.first.is_cuda or not (number + 1) & number:  # to read from a GPU takes time
            self.check_finite(batch, number)
        if self.gradients is not None:
            calls = Counter(self.running.calls)
            value = loss_of(outputs, batch.targets, self.loss, number=number)
            self.gradients.add(value, self.tracer, batch.samples)
            self.running.calls = calls  # what is checkpointed ran again in the backward
        self.samples += batch.samples

    def compare_computed_weights(self) -> None:
        """Run another batch to see whether weights computed from parameters depend on the data.

        If the model fails on that batch, they are taken to depend on the parameters alone.
        """
        registry = self.tracer.registry
        computed = {name: layer.computed for name, layer in registry.layers.items()
                    if layer.computed is not None}
        if not computed or self._last_batch is None or is_sharded(self.model):
            return
        retracer = WeightTracer(LayerRegistry(self.model, registry.is_requested),
                                RequiredStats(output=False))
        calls = self.running.calls
        retracer.registry.index.running, self.running.calls = self.running.stack, Counter()
        with suppress(Exception):
            other = self._last_batch.other()
            with retracer:
                self.model(*other.args, **other.kwargs)
        self.running.stack.clear()
        self.running.calls = calls
        for name, layer in retracer.registry.layers.items():
            if name in computed and layer.computed is not None:
                registry.layers[name].changes |= not torch.equal(layer.computed, computed[name])

    def check_finite(self, batch: Batch | None = None, number: int | None = None) -> None:
        """Raise ValueError if a layer's sum is NaN or infinite: a sum shows each of them."""
        for layer in self.tracer.registry.layers.values():
            for kind, total in (("output", layer.output), ("input", layer.inputs[1]),
                                ("input", layer.inputs[2])):
                if total.sums is None or bool(torch.isfinite(total.sums.sum())):
                    continue
                where = "" if number is None else f" by batch {number}"
                if batch is not None and not bool(torch.isfinite(batch.first).all()):
                    where += ", which is not finite itself"
                if total is layer.inputs[2] and layer.overflow is not None:
                    raise ValueError(_overflow_message(layer.name, layer.overflow, where))
                broken = [name for name, parameter in self.tracer.registry.index.parameters.items()
                          if not bool(torch.isfinite(parameter).all())]
                cause = f"; parameter '{broken[0]}' is not finite" if broken else ""
                may_overflow = (total is layer.inputs[2] and total.sums.is_cuda
                                and not total.sums.isnan().any())
                value = "infinity, or squares that overflow" if may_overflow else "NaN or infinity"
                raise ValueError(f"layer {layer.name}: expected a finite {kind}, but got {value}"
                                 f"{where}{cause}")

    def merge_processes(self) -> None:
        """Merge what every process gathered, in place.

        A layer that a process never met (its share of the data took another path, or was empty) is
        made from another's description.
        """
        tracer, registry, calls = self.tracer, self.tracer.registry, self.running.calls
        gathered: list[dict[str, Any]] = gather_objects({
            "samples": self.samples,
            "calls": calls,
            "output_layers": list(tracer.output_layers),
            "other_uses": registry.other_uses,
            "unsupported": registry.unsupported,
            "layers": [_without_sums(layer) for layer in registry.layers.values()],
            "gradients": None if self.gradients is None else self.gradients.described(),
            "rows": None if self.sampler is None else self.sampler.samples(),
        })
        calls.clear()
        for process in reversed(gathered):
            calls.update(process["calls"])
            registry.other_uses.update(process["other_uses"])
            registry.unsupported.update(process["unsupported"])
        sums = _merge_layers(registry, [process["layers"] for process in gathered])
        tracer.output_layers = {name: registry.layers[name] for process in gathered
                                for name in process["output_layers"]}
        if self.gradients is not None:
            sums += self.gradients.join([process["gradients"] for process in gathered])
        if self.sampler is not None:
            self.sampler.join([process["rows"] for process in gathered])
        all_reduce(sums)
        self.samples = sum(process["samples"] for process in gathered)


def _merge_layers(registry: LayerRegistry, by_process: list[list[TracedLayer]]) -> list[Tensor]:
    """The layers of all processes in the order of the first; gives the sums to be added up."""
    sums: list[Tensor] = []
    by_name: dict[str, list[TracedLayer]] = {}
    for layers in by_process:
        for layer in layers:
            by_name.setdefault(layer.name, []).append(layer)
    local = dict(registry.layers)
    registry.layers.clear()
    for name, copies in by_name.items():
        layer = registry.layers[name] = local.get(name) or replace(copies[0])
        _merge_layer(layer, copies, sums)
        if layer.view is None and layer.computed is None:  # only another process called it
            weight = getattr(registry.index.modules[layer.module], "weight", None)
            layer.computed = weight.detach() if isinstance(weight, Tensor) else None
    return sums


def _merge_layer(layer: TracedLayer, copies: list[TracedLayer], sums: list[Tensor]) -> None:
    """One layer's counts and flags from all processes; its sums are left to be added up."""
    layer.calls = sum(copy.calls for copy in copies)
    layer.flops = sum(copy.flops for copy in copies)
    layer.changes = any(copy.changes for copy in copies)
    layer.fired = _merge_fired([copy.fired for copy in copies])
    layer.fired_in_relu = _merge_fired([copy.fired_in_relu for copy in copies])
    for total, others in ((layer.output, [copy.output for copy in copies]),
                          *((layer.inputs[power], [copy.inputs[power] for copy in copies])
                            for power in (1, 2))):
        total.count = sum(other.count for other in others)
        shapes = [other.sums.shape for other in others if other.sums is not None]
        if shapes:
            if total.sums is None or total.sums.is_meta:
                total.sums = torch.zeros(shapes[0], dtype=torch.float64)
            sums.append(total.sums)


def _merge_fired(copies: list[FiredUnits | None]) -> FiredUnits | None:
    known = [fired for fired in copies if fired is not None]
    if not known:
        return None
    merged = known[0].to(torch.device("cpu"))
    merged.flags = torch.stack([fired.flags for fired in known]).any(0)
    merged.calls = sum(fired.calls for fired in known)
    return merged


def _without_sums(layer: TracedLayer) -> TracedLayer:
    """A layer with the shapes of its sums alone: small enough to send."""
    def bare(total: RunningSum) -> RunningSum:
        shape = None if total.sums is None else torch.empty(total.sums.shape, device="meta")
        return RunningSum(shape, total.count)

    cpu = torch.device("cpu")
    return replace(layer, computed=None, output=bare(layer.output),
                   inputs={power: bare(total) for power, total in layer.inputs.items()},
                   fired=layer.fired and layer.fired.to(cpu),
                   fired_in_relu=layer.fired_in_relu and layer.fired_in_relu.to(cpu))


def _overflow_message(name: str, dtype: torch.dtype, where: str) -> str:
    dtype_name = str(dtype).removeprefix("torch.")
    remedy = "" if dtype == torch.float64 else ", or run the model in float64 (model.double())"
    return (f"layer {name}: expected inputs whose squares {dtype_name} can hold, but their sum "
            f"overflows{where}; scale the data down, choose criterion input{remedy}")


def _add_location(error: Exception, stack: list[str], number: int) -> None:
    """Append the layer that the forward had reached, and the batch, to an error's message."""
    reached = f"layer '{stack[-1]}'" if stack and stack[-1] else "the model's own forward"
    if error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]} (in {reached}, batch {number})", *error.args[1:])
    else:
        error.add_note(f"in {reached}, batch {number}")


def layer_filter(model: nn.Module, layers: Sequence[str] | None) -> Callable[[str], bool]:
    """A test of whether a layer is requested, by its, its parameter's or its module's name.

    All layers are, if ``layers`` is None.

    Raises:
        ValueError: no layer of the model can have such a name.

    >>> wanted = layer_filter(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["1"])
    >>> wanted("0"), wanted("1")
    (False, True)
    """
    if layers is None:
        return lambda _: True
    if isinstance(layers, str):
        raise ValueError(f"layers: expected a list of names, but got '{layers}'; put it into one")
    names = layer_names(model)
    modules = {clean(name) for name, _ in model.named_modules()} - {""}
    for name in layers:
        base, bracket, index = name.partition("[")  # a slice's name: weight[1:3]
        if name not in (*names, *modules) and (base not in names or bracket and index[-1:] != "]"):
            shown = ", ".join(names if len(names) <= 20 else [*names[:20], "…"])
            raise ValueError(f"layers: expected names among {shown}, but got '{name}'"
                             f"{did_you_mean(name, names)}")
    return lambda name: any(is_part(name, requested) for requested in layers)


def is_part(name: str, of: str) -> bool:
    """Whether a layer has this name, is a slice of that parameter, or lies in that module.

    >>> [is_part(name, "rnn") for name in ("rnn", "rnn.weight_ih_l0", "rnn[0:2]", "rnn2")]
    [True, True, True, False]
    """
    return name == of or name.startswith((f"{of}.", f"{of}["))


def parts_of(name: str, pass_stats: PassStatistics) -> list[str]:
    """The layers that a name stands for; the name itself, if that layer was skipped.

    Raises:
        ValueError: a slice of a parameter that no product used.
    """
    parts = [name] if name in pass_stats.layers else [
        layer for layer in pass_stats.layers if is_part(layer, name)]
    if not parts and "[" in name and name not in pass_stats.skipped:
        base = name.partition("[")[0]
        slices = [layer for layer in pass_stats.layers if layer.startswith(base)] or [
            layer for layer in pass_stats.not_requested if layer.startswith(base)]
        raise ValueError(f"layers: expected a slice that the forward multiplies with, but got "
                         f"'{name}'{did_you_mean(name, slices)}")
    return parts or [name]
