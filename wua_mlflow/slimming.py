"""``wua.slim``: a trained network, cut to the widths that are given or that a method finds.

And ``wua.load_slim``: the slim network of a run again.

Tests: ``tests/test_slimming.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import load_file
from torch import nn

from wua_mlflow.data.batches import Batches
from wua_mlflow.data.tasks import Task
from wua_mlflow.errors import one_line
from wua_mlflow.hooks import unwrapped
from wua_mlflow.module_attributes import copied
from wua_mlflow.pruning.compensation import compensated
from wua_mlflow.pruning.computed_weights import plain_weights
from wua_mlflow.pruning.configuration import (
    fit_configuration,
    is_pretrained,
    widths_that_reload,
)
from wua_mlflow.pruning.cut import Cut, Specification, cut, rebuild, unit_groups
from wua_mlflow.pruning.heads import PrunedMultiheadAttention
from wua_mlflow.pruning.importance import most_important, unit_importance
from wua_mlflow.pruning.unit_groups import UnitGroups
from wua_mlflow.what_to_cut import KINDS, WhatToCut, alike, rounded_up
from wua_mlflow.widths.recommend import recommend_widths
from wua_mlflow.widths.scoring import Loss, scoring

__all__ = ["load_slim", "slim"]


heads = ModuleType(f"{__name__}.heads", "Names that older versions pickled.")
vars(heads)["FewerHeads"] = PrunedMultiheadAttention
sys.modules[heads.__name__] = heads


def slim(  # noqa: PLR0913 - the options of one question, each by name
    model: nn.Module, data: Any, *, widths: Mapping[str, int] | None = None, method: str = "rank",
    margin: float = 0.02, criterion: str = "spanning", fold: bool = False,
    what: str | Sequence[str] | WhatToCut = "units,heads",
    task: Task | None = None, loss: Loss | None = None, seed: int = 0,
    batch_to_inputs: Callable[[Any], Any] | None = None,
) -> Cut:
    """A copy of a trained network with its least important units cut out, to be fine-tuned.

    Of every group of units the most important stay. The cut is verified: shapes, parameters, FLOPs,
    ties, and outputs equal to those of the original with the same units masked (with ``fold``: of
    the compensated one); what cannot be cut is in ``fixed`` with the reason. That it is as good
    after fine-tuning is for ``compare`` to say, on data that neither training nor this function
    saw.

    Args:
        model: any module whose outputs hold a tensor; left as found.
        data: inputs and targets, each of shape (examples, ...), or a Dataset, a DataLoader or a
            list of batches, as ``analyze`` takes them: not the test data.
        widths: by name of a layer how many of its units stay, the others keep all; the method's,
            if None.
        method: of ``recommend_widths``, but for ``search``, which trains networks; ``rank`` did
            best of the others (``benchmarks/cut_knee.py``).
        margin: of the methods ``projection`` and ``ablation``.
        criterion: what makes a unit important: ``spanning`` (what it adds to the others),
            ``taylor``, ``magnitude``, ``random``, or a criterion of ``analyze``.
        fold: whether the next layers compensate for the removed units: the weights that read them
            are added to those of the units that stay, by least squares on the data
            (``pruning.compensation``); else they are dropped. The result is far nearer to the
            original before it is fine-tuned, and after it not always better
            (``benchmarks/pruning.py``).
        what: what may be cut: ``units`` of layers, ``heads`` of attention, ``stream`` (the model's
            width, which norms go over), or several; and which widths the method may choose:
            ``multiple_of=8`` above 64 units (1: any), ``same_widths`` in blocks that are alike
            (unset: in models of transformers), as ``units,stream,multiple_of=16``.
        task: as in ``recommend_widths``; read from the data, if None.
        loss: of outputs and targets, the mean over examples; that of the task, if None.
        seed: of the criterion ``random``.
        batch_to_inputs: as of ``analyze``.

    Returns:
        ``.model`` the narrower network, ``.units`` by group how many there were and are, ``.fixed``
        what was not cut and why, ``.specification`` what rebuilds it. The configuration of a model
        of transformers says the new widths, where it can, so that ``save_pretrained`` and
        ``from_pretrained`` keep it; ``.reload`` says whether, or why not.

    Raises:
        ValueError: one line; bad data or widths, or the method finds nothing narrower.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> data = torch.rand(64, 2), torch.randint(2, (64,))
    >>> slim(model, data, widths={"0": 3}).model
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    model = plain_weights(unwrapped(model))
    judge = scoring(model, data, task=task, loss=loss, batch_to_inputs=batch_to_inputs)
    example = judge.example(model, 4)
    asked = WhatToCut.of(what)
    structure = unit_groups(model, example, asked.kinds)
    if widths is None:
        recommended = recommend_widths(model, data, method=method, margin=margin, task=task,
                                       loss=loss, structure=structure, seed=seed,
                                       batch_to_inputs=batch_to_inputs)
        widths = {name: width for name, width
                  in _as_asked(recommended.widths, structure, asked, model, example).items()
                  if width < structure.group(name).units}
        if not widths:
            raise ValueError(f"method: expected one that finds widths below those that the network "
                             f"has, but {method} finds none; name them: widths={{...}}")
    by_group = _widths_by_group(structure, widths)
    importance = unit_importance(model, structure, judge.batches, judge.loss,
                                 criterion=criterion, seed=seed)
    keep = {name: most_important(importance[name], width) for name, width in by_group.items()}
    if fold:
        model = compensated(model, structure, keep, judge.batches)
    result = cut(model, example, keep, structure)
    return replace(result, reload=fit_configuration(model, result.model, result.units, example))


def load_slim(
    model: nn.Module, folder: str | Path, batch: Any, *,
    batch_to_inputs: Callable[[Any], Any] | None = None,
) -> nn.Module:
    """The slim network of a run again: the factory's module, cut as that was, with its weights.

    For models that MLflow does not load by itself, such as those of several inputs.

    Args:
        model: fresh from the factory, whatever its weights; left as found.
        folder: the run's artifacts ``state``, downloaded: ``model.safetensors`` and, of a network
            that was cut, ``structure.json``.
        batch: any batch of the data, as ``analyze`` takes them.
        batch_to_inputs: as of ``analyze``.

    Returns:
        The network, on the CPU and in eval mode.

    Raises:
        ValueError: there are no such files, or the factory makes another network.
    """
    weights, structure = Path(folder) / "model.safetensors", Path(folder) / "structure.json"
    if not weights.is_file():
        raise ValueError(f"folder: expected a run's artifacts 'state' with {weights.name}, but "
                         f"there is none in {folder}")
    model = copied(plain_weights(unwrapped(model))).cpu()
    if structure.is_file():
        first = next(iter(Batches([batch], model, batch_to_inputs)))
        model = rebuild(model, first.kwargs or first.args,
                        Specification.from_json(structure.read_text(encoding="utf-8")))
    try:
        model.load_state_dict(load_file(str(weights)))
    except RuntimeError as error:
        raise ValueError(f"model: expected the factory of the network in {folder}, but it makes "
                         f"another one: {one_line(error)}") from error
    return model.eval()


def _as_asked(
    widths: Mapping[str, int], structure: UnitGroups, asked: WhatToCut, model: nn.Module,
    example: Any,
) -> dict[str, int]:
    """The widths that a method found: rounded up, and in groups that are alike the largest.

    In models of transformers that get the same widths, such as their configuration can say.
    """
    groups = [structure.group(name) for name in widths]
    sets = alike((group.name, (group.units, group.kind)) for group in groups) \
        if asked.are_same(model) else [[place] for place in range(len(groups))]
    result: dict[str, int] = {}
    for places in sets:
        group = groups[places[0]]
        width = rounded_up(max(widths[groups[place].name] for place in places), group.units,
                           asked.multiple_for(group.kind))
        result |= {groups[place].name: width for place in places}
    if not asked.are_same(model) or not is_pretrained(model):
        return result
    allowed = {group.name for group in structure.groups}
    return widths_that_reload(model, unit_groups(model, example, KINDS), result, allowed)


def _widths_by_group(structure: UnitGroups, widths: Mapping[str, int]) -> dict[str, int]:
    by_group: dict[str, int] = {}
    for name, width in widths.items():
        group = structure.group_of_layer(name, argument="widths")
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= group.units:
            raise ValueError(f"widths: expected 1 to {group.units} units of {name}, but got "
                             f"{width!r}")
        if by_group.setdefault(group.name, width) != width:
            raise ValueError(f"widths: expected one width for {', '.join(group.layers)}, which "
                             f"share their units, but got {by_group[group.name]} and {width}")
    return by_group
