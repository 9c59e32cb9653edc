"""A zoo of models, each analysed, its FLOPs counted, and cut to half of all its units.

Models of timm and of transformers with random weights, and small ones of many forms, fixed before
any was run. Of each three questions:

1. analysed: every weight matrix is analysed or named with a reason, else "silent"; the importances
   of linear layers and convolutions are the weights' magnitudes, and those of the first linear
   layer the weights times the norms of its inputs (criterion ``wanda``), by hand.
2. FLOPs: of each linear layer and convolution 2 · outputs · inputs of an output, by hand; of the
   whole no fewer than torch's ``FlopCounterMode`` counts in the same forward on real tensors (it
   has no formula for some attention kernels and recurrent layers, which here have one).
3. cut: half of each group of units goes, the first half stays; the network is the reference at its
   own weights and at others drawn here. "refused" is a ValueError of one line.

Beside it Torch-Pruning (``MagnitudePruner``, as its examples set it: half, the output layer and
nothing else ignored, numbers of heads given). A process each, one thread; the seconds of grouping
and cutting are medians of three rounds in turns, without verification. Run:
``python benchmarks/zoo.py [--only NAME ...]``; needs the ``bench`` extra, and timm
(``pip install --no-deps timm``), without which its models are left out. With ``--rows FILE`` each
row is written as it comes, and models whose row is there are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import zoo_by_hand
import zoo_forms
import zoo_timm
import zoo_transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import wua_mlflow as wua
from wua_mlflow.data.batches import Batches
from wua_mlflow.flops import count_flops, tensors_in
from wua_mlflow.hooks import evaluating, noting
from wua_mlflow.pruning.cut import cut, remove_units, unit_groups
from wua_mlflow.pruning.find_groups import OUTPUTS, find_groups, prunable_copy
from wua_mlflow.pruning.layers import caches_off, call_model, main_outputs
from wua_mlflow.pruning.reference import outputs_without
from wua_mlflow.usage.results import ModelUsage

os.environ.setdefault("HF_HUB_OFFLINE", "1")
WHAT = ("units", "heads", "stream")
SECONDS, SECONDS_THEIRS = 240, 30
"""A model may take so long, and the library with it, each time."""
FAMILIES: dict[str, dict[str, Callable[[], tuple[nn.Module, Any]]]] = {
    "timm": zoo_timm.MODELS, "transformers": zoo_transformers.MODELS, "forms": zoo_forms.FORMS}
TOY = {"timm": ("mobilenetv3_small_050",), "transformers": ("Bert", "Llama", "T5", "ViT"),
       "forms": ("residual + LayerNorm", "grouped convolutions", "GLU by chunk and split",
                 "attention, bias by head", "TransformerDecoder", "LSTM", "tied embedding",
                 "two heads, dataclass", "BiFPN's fusion", "grouped experts", "graph")}
RIGHT = "right"
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Row:
    """What came of one model; seconds and shares are None where there are none."""

    family: str
    name: str
    analysed: str = ""
    flops: str = ""
    cut: str = ""
    by_hand: str = ""
    left: float | None = None
    seconds: float | None = None
    verified_seconds: float | None = None
    theirs: str = ""
    left_theirs: float | None = None
    seconds_theirs: float | None = None
    refused: dict[str, int] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", help="a file of rows, a JSON object each, that is gone on with")
    parser.add_argument("--toy", action="store_true", help="a dozen; fails where one is wrong")
    arguments = parser.parse_args()
    wanted = [(family, name) for family, models in FAMILIES.items() for name in models
              if (family != "timm" or zoo_timm.available())
              and (name in TOY[family] if arguments.toy else
                   not arguments.only or name in arguments.only)]
    look_at = partial(looked_at, rounds=1 if arguments.toy else arguments.rounds)
    known = rows_in(arguments.rows)
    rows = []
    for each in wanted:
        row = known.get(each) or (look_at(*each) if arguments.toy else apart(look_at, *each))
        rows.append(row)
        if arguments.rows and each not in known:
            with open(arguments.rows, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    print_rows(rows)
    faults = [row for row in rows if is_fault(row)]
    if arguments.toy and faults:
        raise SystemExit(f"wrong: {', '.join(row.name for row in faults)}")


def rows_in(path: str | None) -> dict[tuple[str, str], Row]:
    """The rows of that file, by family and name; none where there is no file."""
    if path is None or not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        rows = [Row(**json.loads(line)) for line in file]
    return {(row.family, row.name): row for row in rows}


def apart(look_at: Callable[[str, str], Row], family: str, name: str) -> Row:
    """In a process of its own, ended where it takes too long."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(False)
    process = context.Process(target=lambda: there.send(look_at(family, name)))
    process.start()
    there.close()  # so that its end is seen here
    try:
        row: Row = here.recv() if here.poll(SECONDS) else Row(family, name, cut="too long")
    except EOFError:
        row = Row(family, name, cut="crash: its process ended")
    process.terminate()
    process.join()
    return row


def looked_at(family: str, name: str, *, rounds: int) -> Row:
    torch.set_num_threads(1)
    row = Row(family, name)
    with quiet():
        torch.manual_seed(0)
        model, example = FAMILIES[family][name]()
        model.eval()
        for check, part in ((check_analysis, "analysed"), (check_flops, "flops"),
                            (check_cut, "cut")):
            try:
                setattr(row, part, check(model, example, row))
            except Exception as error:  # what is looked for
                setattr(row, part, failure(error))
        with contextlib.suppress(ImportError):
            time_both(model, example, row, rounds)
    return row


def failure(error: Exception) -> str:
    """A ValueError of one line refuses; any other is a crash."""
    if type(error) is ValueError and "\n" not in str(error):
        return f"refused: {error}"[:200]
    lines = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({os.path.basename(line.filename)}:{line.lineno})" for line in lines)
    return f"crash: {type(error).__name__}: {error}".splitlines()[0][:150] + where


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):
        yield


def batches_of(model: nn.Module, example: Any) -> Batches:
    return Batches([example], model, lambda batch: batch)


def check_analysis(model: nn.Module, example: Any, row: Row) -> str:
    """Every weight matrix is analysed or named, and linear layers' importances are as by hand."""
    usage = wua.analyze(model, batches_of(model, example), criterion="wanda")
    named = {*usage.layers, *usage.skipped}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        around = {owner[:place] for place, letter in enumerate(owner) if letter == "."} | {owner}
        if parameter.dim() > 1 and not around & named and not any(
                each == name or each.startswith((f"{name}[", f"{owner}.")) for each in named):
            return f"silent: {name}"
    return magnitudes(model, example, usage) or by_inputs(model, example, usage) or RIGHT


def magnitudes(model: nn.Module, example: Any, usage: ModelUsage) -> str:
    """What is wrong with the importances of criterion ``magnitude``; empty if nothing."""
    weights = {name: module.weight.detach() for name, module in model.named_modules()
               if type(module) in LAYERS and name in usage.layers}
    if not weights:
        return ""
    found = wua.usage.analyze.layer_importance(
        model, batches_of(model, example), weights, "magnitude")
    for name, weight in weights.items():
        expected = weight.double().abs()  # one that is tied may be analysed as the embedding
        if not any(torch.equal(found[name], each) for each in (expected, expected.mT)):
            return f"wrong: {name} is not the magnitude of its weight"
    return ""


def by_inputs(model: nn.Module, example: Any, usage: ModelUsage) -> str:
    """The same of criterion ``wanda``, of the first linear layer that is called once."""
    linear = {name: module for name, module in model.named_modules()
              if type(module) is nn.Linear and name in usage.layers}
    with evaluating(model), caches_off(model), noting(linear.values()) as calls, torch.no_grad():
        call_model(model, example)
    for name, module in linear.items():
        inputs = [call.inputs for call in calls if call.module is module]
        if len(inputs) != 1:
            continue  # called twice, or with another name
        norms = inputs[0].double().flatten(0, -2).square().sum(0).sqrt()
        by_hand = (module.weight.detach().double().abs() * norms).sum().item()
        found = wua.usage.analyze.layer_importance(
            model, batches_of(model, example), [name], "wanda")[name].sum().item()
        if abs(found - by_hand) > 1e-4 * by_hand:
            return f"wrong: {name} {found:.6g} instead of {by_hand:.6g}"
        break
    return ""


def check_flops(model: nn.Module, example: Any, row: Row) -> str:
    """Each linear layer and convolution by hand, and the whole by torch's own counter."""
    arguments = example if isinstance(example, Mapping | tuple) else (example,)
    with caches_off(model):
        counted = count_flops(model, arguments, backward=False)
    by_hand: Counter[str] = Counter()
    layers = {module: name for name, module in model.named_modules() if type(module) in LAYERS}
    with evaluating(model), caches_off(model), noting(layers) as calls, torch.no_grad():
        call_model(model, example)
    for call in calls:
        by_hand[layers[call.module]] += 2 * call.outputs.numel() * call.module.weight[0].numel()
    for name, flops in by_hand.items():
        if counted.by_module.get(name) != flops:
            return f"wrong: {name} {counted.by_module.get(name)} instead of {flops}"
    torchs = FlopCounterMode(display=False)
    with contextlib.suppress(AssertionError), evaluating(model), caches_off(model), torchs:
        call_model(model, example)  # its hooks for the backward fail in DeBERTa
    if counted.forward_flops < torchs.get_total_flops():
        return f"wrong: {counted.forward_flops} in all, fewer than {torchs.get_total_flops()}"
    return RIGHT


def check_cut(model: nn.Module, example: Any, row: Row) -> str:
    """Half of each group; as the reference at these weights, and at others drawn here."""
    began = time.perf_counter()
    structure = unit_groups(model, example, WHAT)
    row.refused = dict(Counter(reason for reason in structure.not_prunable.values()
                               if reason != OUTPUTS))
    weights = {name for name, module in model.named_modules()
               if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)}
    told = {*structure.not_prunable, *(layer for group in structure.groups
                                       for layer in (group.name, *group.layers))}
    silent = [name for name in weights if name not in told and "parametrizations" not in name
              and not any(each.startswith(f"{name}.") or name.startswith(f"{each}.")
                          for each in told)]
    if silent:
        return f"silent: {silent[0]}"
    keep = {group.name: range((group.units + 1) // 2) for group in structure.groups}
    if not keep:
        row.left = 1.0
        return "nothing to cut"
    result = cut(model, example, keep, structure)
    row.verified_seconds = time.perf_counter() - began
    row.left = result.params_after / result.params_before
    return redrawn(model, example, row, structure, keep)


def redrawn(model: nn.Module, example: Any, row: Row, structure: Any,
            keep: Mapping[str, range]) -> str:
    """The same cut of a copy of other weights, a normal draw of standard deviation 1 ÷ √inputs."""
    other = prunable_copy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 1
            drawn = torch.randn(parameter.shape, generator=generator) / max(fan, 1) ** 0.5
            parameter.copy_(drawn if parameter.dim() > 1 else 1 + 0.2 * drawn)
    removed = {name: structure.group(name).others(list(units)) for name, units in keep.items()
               if len(units) < structure.group(name).units}
    smaller = remove_units(other, structure, removed)
    with evaluating(other), evaluating(smaller), caches_off(other, smaller), torch.no_grad():
        expected = outputs_without(other, structure, removed, partial(seeded, other, example))
        outputs = seeded(smaller, example)
    worst = difference(expected, outputs)
    row.by_hand = by_hand(other, example, partial(
        remove_units, structure=structure, removed=removed), outputs)
    return RIGHT if worst < 1e-3 else f"wrong: outputs differ by {worst:.1%} at other weights"


def seeded(model: nn.Module, example: Any) -> Any:
    """Its outputs; what it draws itself, as masked autoencoders do, is always the same."""
    torch.manual_seed(3)
    return call_model(model, example)


def difference(expected: Any, outputs: Any) -> float:
    """The largest, as a share of the largest output."""
    pairs = zip(tensors_in(main_outputs(expected), objects=True),
                tensors_in(main_outputs(outputs), objects=True), strict=True)
    return max(float((one - two).abs().max() / one.abs().max().clamp(min=1e-9))
               for one, two in pairs if one.is_floating_point() and one.numel())


def by_hand(model: nn.Module, example: Any, smaller_of: Callable[[nn.Module], nn.Module],
            outputs: Any) -> str:
    """Whether these are also the outputs that are found without the package's reference."""
    try:
        kept = zoo_by_hand.kept_positions(model, smaller_of)
        with zoo_by_hand.masked_by_hand(model, smaller_of(model), kept) as masked, \
                evaluating(masked), caches_off(masked), torch.no_grad():
            worst = difference(seeded(masked, example), outputs)
    except zoo_by_hand.NotByHandError as error:
        return f"no: {error}"
    except Exception as error:
        return failure(error)
    return RIGHT if worst < 1e-3 else f"differs by {worst:.1%}"


def time_both(model: nn.Module, example: Any, row: Row, rounds: int) -> None:
    """Grouping and cutting, without verification, and Torch-Pruning's, in turns."""
    ours, theirs = [], []
    structure = None
    for _ in range(rounds):
        began = time.perf_counter()
        with contextlib.suppress(Exception):
            structure = cut_plainly(model, example)
            ours.append(time.perf_counter() - began)
        try:
            began = time.perf_counter()
            with limited(SECONDS_THEIRS if rounds > 1 else 3):
                smaller = cut_by_library(model, example)
            theirs.append(time.perf_counter() - began)
        except Exception as error:
            row.theirs = "too long" if isinstance(error, TimeoutError) else \
                f"{type(error).__name__}: {error}".splitlines()[0][:60]
            break
        row.left_theirs = sum(p.numel() for p in smaller.parameters()) / \
            sum(p.numel() for p in model.parameters())
        try:
            with torch.no_grad():
                call_model(smaller.eval(), example)
        except Exception as error:
            row.theirs = f"its forward fails: {error}".splitlines()[0][:60]
    del structure
    row.seconds = statistics.median(ours) if ours else None
    row.seconds_theirs = statistics.median(theirs) if theirs and not row.theirs else None
    if row.theirs:
        row.left_theirs = None


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError where the block takes longer."""
    def ended(*_: object) -> None:
        raise TimeoutError("too long")

    before = signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def cut_plainly(model: nn.Module, example: Any) -> nn.Module:
    plain = prunable_copy(model)
    structure = find_groups(plain, example, WHAT)
    return remove_units(plain, structure, {
        group.name: range((group.units + 1) // 2, group.units) for group in structure.groups
        if group.units > 1})


HEADS = (("num_attention_heads", ("query", "key", "value", "q_proj", "k_proj", "v_proj")),
         ("num_heads", ("qkv", "q_proj", "k_proj", "v_proj", "q", "k", "v")),
         ("n_heads", ("q_lin", "k_lin", "v_lin", "q", "k", "v")))
"""Names of numbers of heads, and of the layers that make them, as the library's examples list."""


def cut_by_library(model: nn.Module, example: Any) -> nn.Module:
    import torch_pruning as tp

    smaller = prunable_copy(model)
    outputs = {OUTPUTS}
    ignored = [smaller.get_submodule(name) for name, reason in
               unit_outputs(smaller, example).items() if reason in outputs]
    heads = {getattr(module, layer): getattr(module, number)
             for module in smaller.modules() for number, layers in HEADS
             if hasattr(module, number) for layer in layers
             if isinstance(getattr(module, layer, None), nn.Linear)}
    with caches_off(smaller):
        pruner = tp.pruner.MagnitudePruner(
            smaller, example, importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=0.5, ignored_layers=ignored, num_heads=heads,
            output_transform=lambda out: sum(each.sum() for each in tensors_in(out)
                                             if each.is_floating_point()))
        pruner.step()
    for module in smaller.modules():
        for number, layers in HEADS:
            if hasattr(module, number):
                for layer in layers:
                    count = pruner.num_heads.get(getattr(module, layer, None))
                    made_by = getattr(module, layer, None)
                    if count and made_by is not None:
                        setattr(module, number, count)
                        total = made_by.out_features // (3 if layer == "qkv" else 1)
                        for size in ("head_dim", "attention_head_size"):
                            if hasattr(module, size):
                                setattr(module, size, total // count)
                        for size in ("all_head_size", "dim", "attn_dim"):
                            if hasattr(module, size):
                                setattr(module, size, total)
    return smaller


OUTPUT_LAYERS: dict[int, dict[str, str]] = {}


def unit_outputs(model: nn.Module, example: Any) -> dict[str, str]:
    """The layers that make outputs, found once for all rounds: the examples name them by hand."""
    key = sum(parameter.numel() for parameter in model.parameters())
    if key not in OUTPUT_LAYERS:
        found = find_groups(prunable_copy(model), example, WHAT).not_prunable
        modules = dict(model.named_modules())
        OUTPUT_LAYERS.clear()
        OUTPUT_LAYERS[key] = {name: reason for name, reason in found.items()
                              if reason == OUTPUTS and name in modules}
    return OUTPUT_LAYERS[key]


def is_fault(row: Row) -> bool:
    """Wrong, crashed, silent or too long; what is refused is not."""
    return any(answer not in (RIGHT, "nothing to cut") and not answer.startswith("refused")
               for answer in (row.analysed, row.flops, row.cut))


def print_rows(rows: list[Row]) -> None:
    print("| | models | wrong, crash, silent | refused whole | right without the package's "
          "reference, no such check | below 40% | Torch-Pruning: below 40%, fails | time ÷ "
          "Torch-Pruning's: median (worst) |\n|---|---:|---:|---:|---:|---:|---:|---:|")
    for family in FAMILIES:
        of_family = [row for row in rows if row.family == family]
        if of_family:
            print(summary(family, of_family))
    print_refused(rows)
    for family in FAMILIES:
        of_family = [row for row in rows if row.family == family]
        if of_family:
            print(f"\n## {family}\n")
            print_family(of_family)


def summary(family: str, rows: list[Row]) -> str:
    ratios = [row.seconds / row.seconds_theirs for row in rows
              if row.seconds and row.seconds_theirs]
    counts: list[int] = [
        len(rows), sum(map(is_fault, rows)), sum(row.cut.startswith("refused") for row in rows)]
    by_hand = (f"{sum(row.by_hand == RIGHT for row in rows)}, "
               f"{sum(row.by_hand.startswith('no') or not row.by_hand for row in rows)}")
    low = sum((row.left or 1) < 0.4 for row in rows)
    low_theirs = sum((row.left_theirs or 1) < 0.4 for row in rows)
    fails = sum(bool(row.theirs) for row in rows)
    times = f"{statistics.median(ratios):.1f} ({max(ratios):.1f})" if ratios else "–"
    return (f"| {family} | {' | '.join(map(str, counts))} | {by_hand} | {low} | "
            f"{low_theirs}, {fails} | {times} |")


def print_refused(rows: list[Row]) -> None:
    """Why units stay: by the reason without its sizes, the models in which it is given."""
    models: dict[str, dict[str, int]] = {}
    for row in rows:
        for reason, count in row.refused.items():
            kind = re.sub(r"\(RuntimeError.*|\d+|'[^']*'|[^ ]*[._][^ ]*", "…", reason)[:110]
            by_model = models.setdefault(kind.strip(), {})
            by_model[row.name] = by_model.get(row.name, 0) + count
    print("\n| why units stay | models | layers | in |\n|---|---:|---:|---|")
    for kind, by_model in sorted(models.items(), key=lambda each: -len(each[1])):
        print(f"| {kind} | {len(by_model)} | {sum(by_model.values())} | {', '.join(by_model)} |")


def print_family(rows: list[Row]) -> None:
    print("| | analysed | FLOPs | cut | without the package's reference | parameters left | "
          "Torch-Pruning | grouping and cutting, s | Torch-Pruning, s | with verification, s |\n"
          "|---|---|---|---|---|---:|---|---:|---:|---:|")
    for row in rows:
        cells = [row.name, row.analysed, row.flops, row.cut, row.by_hand or "–", share(row.left),
                 row.theirs or share(row.left_theirs), seconds(row.seconds),
                 seconds(row.seconds_theirs), seconds(row.verified_seconds)]
        print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
