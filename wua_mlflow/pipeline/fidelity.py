"""How well the importance of an original's units foretells what the loss loses without them.

Importance on training data, the exact changes of the loss on the validation part.
May import: everything but cli. Tests: ``tests/pipeline/test_fidelity.py``.
"""

from __future__ import annotations

from wua_mlflow.dotted import one_line
from wua_mlflow.evaluation import loss_for
from wua_mlflow.importance import CRITERIA
from wua_mlflow.pipeline.variant import Variant
from wua_mlflow.processes import processes
from wua_mlflow.slimming import unit_groups, unit_importance
from wua_mlflow.widths.fidelity import fidelity

__all__ = ["fidelity_metrics"]

MOST_FLOPS = 2e11
"""Of the forwards that leave a unit out each; above, the exact changes cost too much unasked."""
MOST_FORWARDS = 500
"""Of the greedy order; above, the ablation curves' areas cost too much unasked."""
ORDERS = 10
"""Random orders that the areas are set against."""


def fidelity_metrics(variant: Variant, flops: float) -> tuple[dict[str, float], str]:
    """``fidelity/<criterion>`` of what units are cut by, and of the settings' criteria; or why not.

    Of small networks also ``fidelity_area/<criterion>``: where the ablation curve lies between
    random orders (0) and the greedy one (1).

    Args:
        variant: an original, on its device; left as found.
        flops: of its forward, one sample.
    """
    if processes() > 1:
        return {}, "Fidelity not measured: it is by one process alone, and there are several."
    split, device = variant.recipe.split, variant.recipe.device
    train, held_out = ((part.inputs.to(device), part.targets.to(device))
                       for part in (split.train, split.validation))
    loss = loss_for(split.task, variant.kind)
    asked = {"taylor", "spanning", *(name for name in variant.settings.criterion.split(",")
                         if name in CRITERIA)}
    try:
        structure = unit_groups(variant.model, train[0][:4])
        units = sum(group.units for group in structure.groups)
        if not units:
            return {}, "Fidelity not measured: the network has no units that can be removed."
        if units * len(held_out[0]) * flops > MOST_FLOPS:
            return {}, (f"Fidelity not measured: leaving out each of {units:,} units on "
                        f"{len(held_out[0]):,} examples takes too long unasked; "
                        f"wua_mlflow.widths.fidelity does it.")
        importances = {name: unit_importance(variant.model, structure, train, loss, criterion=name)
                       for name in sorted(asked)}
        forwards = sum(group.units**2 for group in structure.groups)
        found = fidelity(variant.model, held_out, structure, importances, task=split.task,
                         loss=loss, orders=ORDERS if forwards <= MOST_FORWARDS else 0,
                         seed=variant.settings.seed)
    except (RuntimeError, ValueError) as error:  # of the network's own forward, in other shapes
        return {}, f"Fidelity not measured: {one_line(error)}"
    return found.metrics(), ""
