"""Where the original was little used: a description, layer by layer.

May import: the report's content and blocks, usage. Tests: ``tests/pipeline/test_report_usage.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from wua_mlflow.pipeline.report.blocks import Block, Bullets, Picture, Section, Table
from wua_mlflow.pipeline.report.content import Report
from wua_mlflow.usage import PERMUTED, LayerUsage, ModelUsage

__all__ = ["usage_section"]

MOST_NAMED = 5
CAUTION = ("Effective weights describe how concentrated the importance is; on their account alone "
           "nothing is superfluous. They depend on how the network is parametrised, and mean "
           "something only beside the untrained networks' value.")


def usage_section(report: Report) -> Section | None:
    """Of the original; None where it was not analysed."""
    usage = report.usages.get(report.names[0])
    if usage is None or not usage.layers:
        return None
    slim = report.usages.get(report.names[-1]) if len(report.names) > 1 else None
    blocks: list[Block] = [
        Bullets((*_concentrated(usage), *_permuted(usage), *_dead(usage), CAUTION)),
        _table(usage, slim),
        Picture("layers", "Effective share of each layer of the original, beside networks that "
                          "learned nothing."),
    ]
    return Section("Where the original was little used", tuple(blocks))


def _concentrated(usage: ModelUsage) -> list[str]:
    """The layers below the range of their null, the most concentrated first; else the lowest."""
    layers = [layer for layer in usage.layers.values() if not layer.dead]
    known = [(layer, layer.null) for layer in layers if layer.null]
    below = [(layer, null) for layer, null in known if layer.effective_share < null.low]
    below.sort(key=lambda pair: pair[0].effective_share / pair[1].low)
    if below:
        named = [f"{_name(layer)} ({layer.effective_share:.0%} of its weights are effective; "
                 f"{null.low:.0%} to {null.high:.0%} in networks that learned nothing)"
                 for layer, null in below[:MOST_NAMED]]
        return [f"By the criterion {usage.criterion}, importance is more concentrated than in "
                f"networks that learned nothing in {_listed(named, len(below))}."]
    if known:
        which = "the layer lies" if len(known) == 1 else f"all {len(known):,} layers lie"
        return [f"By the criterion {usage.criterion}, importance is nowhere more concentrated than "
                f"in networks that learned nothing: {which} within their range or above it."]
    if not layers:
        return []
    least = min(layers, key=lambda layer: layer.effective_share)
    return [f"By the criterion {usage.criterion}, importance is most concentrated in "
            f"{_name(least)}: {least.effective_share:.0%} of its weights are effective. It was not "
            f"compared with networks that learned nothing."]


def _permuted(usage: ModelUsage) -> list[str]:
    """The layers whose weights no module could re-initialise; by magnitude they have no range."""
    layers, said = usage.layers.values(), []
    permuted = [_name(layer) for layer in layers if layer.null and layer.null.kind == PERMUTED]
    if permuted:
        said.append("Compared with their own weights in another order, since they could not be "
                    f"re-initialised: {_listed(permuted[:MOST_NAMED], len(permuted))}.")
    without = [_name(layer) for layer in layers if usage.null and not layer.null]
    if without:
        said.append("Not compared with networks that learned nothing, since they could not be "
                    f"re-initialised: {_listed(without[:MOST_NAMED], len(without))}.")
    return said


def _dead(usage: ModelUsage) -> list[str]:
    some = [layer for layer in usage.layers.values() if layer.dead_units]
    some.sort(key=lambda layer: -(layer.dead_units or 0) / layer.units)
    said = []
    if some:
        named = [f"{_name(layer)} ({layer.dead_units:,} of {layer.units:,})"
                 for layer in some[:MOST_NAMED]]
        said.append(f"Units that were zero for all of these data, or never above zero before a "
                    f"ReLU: {_listed(named, len(some))}. On other data they can still fire.")
    silent = [_name(layer) for layer in usage.layers.values() if layer.dead]
    if silent:
        said.append(f"No importance at all: {_listed(silent[:MOST_NAMED], len(silent))}.")
    return said


def _listed(named: Sequence[str], count: int) -> str:
    more = count - len(named)
    if more:
        return f"{', '.join(named)} and {more:,} more"
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))


def _table(usage: ModelUsage, slim: ModelUsage | None) -> Table:
    layers = list(usage.layers.values())
    columns = [
        ("layer", [_name(layer) for layer in layers]),
        ("weights", [f"{layer.weights:,}" for layer in layers]),
        ("effective share", [f"{layer.effective_share:.1%}" for layer in layers]),
        ("learned nothing", [_null(layer) for layer in layers]),
        ("share that holds 90%", [f"{layer.top90_share:.1%}" for layer in layers]),
        ("dead units", [_dead_units(layer) for layer in layers]),
        ("slim: effective share", [_share_in(slim, layer.name) for layer in layers]),
    ]
    told = [(head, texts) for head, texts in columns if any(texts)]
    return Table(tuple(head for head, _ in told),
                 list(zip(*(texts for _, texts in told), strict=True)))


def _null(layer: LayerUsage) -> str:
    return f"{layer.null.low:.1%} to {layer.null.high:.1%}" if layer.null else ""


def _dead_units(layer: LayerUsage) -> str:
    return "" if layer.dead_units is None else f"{layer.dead_units:,} of {layer.units:,}"


def _share_in(usage: ModelUsage | None, name: str) -> str:
    found = usage.layers.get(name) if usage else None
    return f"{found.effective_share:.1%}" if found else ""


def _name(layer: LayerUsage) -> str:
    return layer.name or "the model"
