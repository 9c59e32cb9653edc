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
from wua_mlflow.usage.batches import Batch, Batches
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

    ``last`` names the layers of the last product: the model's outputs are their units.
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
    are joined at the end; then every process has the same observation.

    Args:
        model: left as found, also when its forward raises.
        data: the batches.
        needs: what to gather.
        wanted: whether a layer of this name is to be observed.
        loss: for gradients.

    Raises:
        ValueError: no samples, a model on the meta device, or a sum that is NaN or infinite:
            names the layer and the batch.
        Exception: whatever the model's forward raises; its message names the layer reached.
    """
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise ValueError("model: expected initialised parameters, but got lazy ones; call the "
                         "model once first")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("model: expected parameters and buffers with values, but got some on the "
                         "meta device; call model.to_empty(device=...) and load a state dict first")
    registry = LayerRegistry(model, wanted)
    tracer = WeightTracer(registry, needs)
    gradients = Gradients() if needs.gradient else None
    sampler = ActivationSampler() if needs.rows else None
    if sampler is not None:
        tracer.on_call = sampler.see
    names = {module: name for name, module in registry.index.modules.items()
             if not isinstance(module, torch.jit.ScriptModule)}
    registry.unsupported.update({
        name: SCRIPTED for name, module in registry.index.modules.items()
        if module not in names and any(True for _ in module.parameters(False))})
    samples, error = 0, None
    with evaluating(model, grad=needs.gradient), running(model, names) as state:
        tracer.running = state.stack
        try:
            samples = _run_batches(model, data, tracer, state, (gradients, sampler, loss))
        except Exception as caught:
            error = caught
        raise_first_error(error)
        samples = _merge_processes(tracer, state.calls, samples, gradients, sampler)
        for layer in registry.layers.values():
            if layer.view is None and layer.computed is None:  # only another process called it
                weight = getattr(registry.index.modules[layer.module], "weight", None)
                layer.computed = weight.detach() if isinstance(weight, torch.Tensor) else None
        if gradients is not None:
            gradients.finish()
        skipped = explain_skipped(registry, state.calls)
    if not samples:
        raise ValueError("data: expected at least one sample, but got none")
    last = tuple(layer.name for layer in tracer.output_layers)
    return PassStatistics(registry.layers, last, skipped, samples, registry.index.parameters,
                          gradients, sampler, frozenset(registry.not_requested))


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


def _run_batches(
    model: nn.Module, data: Batches, tracer: WeightTracer, state: Running,
    extras: tuple[Gradients | None, ActivationSampler | None, Loss | None],
) -> int:
    samples = 0
    batch: Batch | None = None
    for number, batch in enumerate(synchronized_batches(data, sharded=is_sharded(model))):
        state.stack.clear()
        _run_batch(model, batch, number, tracer, state, extras)
        samples += batch.samples
    _check_finite(tracer, None, None)
    if batch is not None and not is_sharded(model):
        _compare_computed_weights(model, batch, tracer, state)
    return samples


def _run_batch(
    model: nn.Module, batch: Batch, number: int, tracer: WeightTracer, state: Running,
    extras: tuple[Gradients | None, ActivationSampler | None, Loss | None],
) -> None:
    gradients, sampler, loss = extras
    tracer.mask, tracer.computed_weights, tracer.unit_taylor = batch.mask, [], UnitTaylor()
    if sampler is not None:
        sampler.begin(batch)
    try:
        with tracer:
            outputs = model(*batch.args, **batch.kwargs)
    except Exception as error:
        _add_location(error, state.stack, number)
        raise
    if not batch.first.is_cuda or not (number + 1) & number:  # to read from a GPU takes time
        _check_finite(tracer, batch, number)
    if gradients is not None:
        calls = Counter(state.calls)
        value = loss_of(outputs, batch.targets, loss, number=number)
        gradients.add(value, tracer, batch.samples)
        state.calls = calls  # what is checkpointed ran again in the backward


def _merge_processes(
    tracer: WeightTracer,
    calls: Counter[str],
    samples: int,
    gradients: Gradients | None,
    sampler: ActivationSampler | None,
) -> int:
    """Merge what every process gathered, in place; gives the number of samples of all.

    A layer that a process never met (its share of the data took another path, or was empty) is
    made from another's description.
    """
    if processes() == 1:
        return samples
    gathered: list[dict[str, Any]] = gather_objects({
        "samples": samples,
        "calls": calls,
        "output_layers": [layer.name for layer in tracer.output_layers],
        "other_uses": tracer.registry.other_uses,
        "unsupported": tracer.registry.unsupported,
        "layers": [_without_sums(layer) for layer in tracer.registry.layers.values()],
        "gradients": None if gradients is None else gradients.described(),
        "rows": None if sampler is None else sampler.samples(),
    })
    calls.clear()
    for process in reversed(gathered):
        calls.update(process["calls"])
        tracer.registry.other_uses.update(process["other_uses"])
        tracer.registry.unsupported.update(process["unsupported"])
    sums = _merge_layers(tracer, [process["layers"] for process in gathered])
    names: list[list[str]] = [process["output_layers"] for process in gathered
                              if process["samples"]]
    tracer.output_layers = [tracer.registry.layers[name] for name in (names or [[]])[0]]
    if gradients is not None:
        sums += gradients.join([process["gradients"] for process in gathered])
    if sampler is not None:
        sampler.join([process["rows"] for process in gathered])
    all_reduce(sums)
    return sum(process["samples"] for process in gathered)


def _merge_layers(tracer: WeightTracer, by_process: list[list[TracedLayer]]) -> list[Tensor]:
    """The layers of all processes in the order of the first; gives the sums to be added up."""
    sums: list[Tensor] = []
    by_name: dict[str, list[TracedLayer]] = {}
    for layers in by_process:
        for layer in layers:
            by_name.setdefault(layer.name, []).append(layer)
    local = dict(tracer.registry.layers)
    tracer.registry.layers.clear()
    for name, layers in by_name.items():
        tracer.registry.layers[name] = local.get(name) or replace(layers[0])
        _merge_layer(tracer.registry.layers[name], layers, sums)
    return sums


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


def _merge_layer(layer: TracedLayer, copies: list[TracedLayer], sums: list[Tensor]) -> None:
    """One layer's counts and flags from all processes; its sums are left to be added up."""
    layer.calls = sum(copy.calls for copy in copies)
    layer.flops = sum(copy.flops for copy in copies)
    layer.changes = any(copy.changes for copy in copies)
    layer.fired = _merge_fired([copy.fired for copy in copies])
    layer.fired_in_relu = _merge_fired([copy.fired_in_relu for copy in copies])
    totals = [[copy.output, copy.inputs[1], copy.inputs[2]] for copy in copies]
    for total, *others in zip([layer.output, layer.inputs[1], layer.inputs[2]], *totals,
                              strict=True):
        like = next((other.sums for other in others if other.sums is not None), None)
        total.count = sum(other.count for other in others)
        if like is None:
            continue
        if total.sums is None or total.sums.is_meta:
            total.sums = torch.zeros(like.shape, dtype=torch.float64)
        sums.append(total.sums)


def _merge_fired(copies: list[FiredUnits | None]) -> FiredUnits | None:
    known = [fired for fired in copies if fired is not None]
    if not known:
        return None
    merged = known[0].to(torch.device("cpu"))
    merged.flags = torch.stack([fired.flags for fired in known]).any(0)
    merged.calls = sum(fired.calls for fired in known)
    return merged


def _compare_computed_weights(
    model: nn.Module, last: Batch, tracer: WeightTracer, state: Running
) -> None:
    """Run another batch to see whether weights computed from parameters depend on the data.

    If the model fails on that batch, they are taken to depend on the parameters alone.
    """
    computed = [layer for layer in tracer.registry.layers.values() if layer.computed is not None]
    if not computed:
        return
    retracer = WeightTracer(LayerRegistry(model, tracer.registry.is_requested),
                            RequiredStats(output=False))
    calls = state.calls
    retracer.running, state.calls = state.stack, Counter()
    with suppress(Exception):
        other = last.other()
        with retracer:
            model(*other.args, **other.kwargs)
    state.stack.clear()
    state.calls = calls
    for layer in computed:
        retraced, weight = retracer.registry.layers.get(layer.name), layer.computed
        if retraced is not None and retraced.computed is not None and weight is not None:
            layer.changes |= not torch.equal(retraced.computed, weight)


def _check_finite(tracer: WeightTracer, batch: Batch | None, number: int | None) -> None:
    """Raise ValueError if a layer's sum is NaN or infinite: a sum shows each of them."""
    for layer in tracer.registry.layers.values():
        for kind, total in (("output", layer.output), ("input", layer.inputs[1]),
                            ("input", layer.inputs[2])):
            if total.sums is None or bool(torch.isfinite(total.sums.sum())):
                continue
            where = "" if number is None else f" by batch {number}"
            if batch is not None and not bool(torch.isfinite(batch.first).all()):
                where += ", which is not finite itself"
            broken = next((name for name, parameter in tracer.registry.index.parameters.items()
                           if not bool(torch.isfinite(parameter).all())), None)
            cause = "" if broken is None else f"; parameter '{broken}' is not finite"
            if total is layer.inputs[2] and layer.overflow is not None:
                raise ValueError(_overflow_message(layer.name, layer.overflow, where))
            may_overflow = (total is layer.inputs[2] and total.sums.is_cuda
                            and not total.sums.isnan().any())
            value = "infinity, or squares that overflow" if may_overflow else "NaN or infinity"
            raise ValueError(f"layer {layer.name}: expected a finite {kind}, but got {value}{where}"
                             f"{cause}")


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
