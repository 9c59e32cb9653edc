"""Units by what each adds to what the others span: column subset selection.

May import: torch, scipy, its own package. Tests: ``tests/slimming/test_spanning.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from wua_mlflow.slimming.activations import moments, outgoing_norms, ports
from wua_mlflow.slimming.groups import UnitGroup

__all__ = ["pivoted", "spanning"]


def spanning(
    model: nn.Module, groups: Sequence[UnitGroup], run: Callable[[], object]
) -> dict[str, Tensor]:
    """Importance by group, shape (units,), float64; groups that cannot be seen are left out.

    The activations as the next layers read them, centred, each times the norm of the weights that
    read it. The first unit is the one of the largest variance, each further one that of which most
    is left when those before it have explained it linearly; its importance is what was left. So of
    two units that say the same one is dispensable, however large both are. (The selection of the
    interpolative decomposition: Chee et al. 2022, arXiv 2108.00065; its correction of the next
    layer's weights is ``folding``.)

    Args:
        model: unwrapped.
        groups: the units.
        run: runs the model over the data.
    """
    known = {group.name: group for group in groups}
    found = {name: ports(model, group) for name, group in known.items()}
    seen = {name: own for name, own in found.items() if not isinstance(own, str)}
    result: dict[str, Tensor] = {}
    for name, own in moments(model, seen, run).items() if seen else ():
        if all(one.count for one in own):
            scale = outgoing_norms(model, known[name])
            scatter = torch.stack([one.scatter.cpu() for one in own]).sum(0)
            result[name] = pivoted(scatter * torch.outer(scale, scale))
    return result


def pivoted(scatter: Tensor) -> Tensor:
    """What is left of each unit's sum of squares when it is chosen, the largest first.

    Args:
        scatter: of centred rows, symmetric, shape (units, units), float64.

    Returns:
        Shape (units,): the squared diagonal of its Cholesky factor with complete pivoting; 0 for
        units that those before them explain wholly.

    >>> rows = torch.tensor([[3.0, 3.0, 0.0], [-3.0, -3.0, 0.0], [0.0, 0.0, 1.0]]).double()
    >>> pivoted(rows.T @ rows).round(decimals=6).tolist()
    [18.0, 0.0, 1.0]
    """
    from scipy.linalg.lapack import dpstrf

    factor, order, rank, _ = dpstrf(scatter.numpy())
    found = torch.zeros(len(scatter), dtype=torch.float64)
    chosen = torch.from_numpy(order[:rank] - 1).long()
    found[chosen] = torch.from_numpy(factor.diagonal()[:rank].copy()).square()
    return found
