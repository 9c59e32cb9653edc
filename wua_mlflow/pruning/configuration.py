"""The configuration of a cut model of the transformers library, so that ``from_pretrained`` works.

Which of its numbers say which widths is found by trial: the class is built on the meta device from
the configuration with one number changed, and what changes in the model is seen. No names of
families or of their settings are known here. Tests: ``tests/pruning/test_configuration.py``.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import nn

from wua_mlflow.errors import one_line
from wua_mlflow.flops import tensors_in
from wua_mlflow.hooks import evaluating
from wua_mlflow.module_attributes import attributes_kept
from wua_mlflow.pruning.layers import caches_off, call_model
from wua_mlflow.pruning.unit_groups import UnitGroup, UnitGroups
from wua_mlflow.rng import isolated

__all__ = [
    "Reload", "fit_configuration", "groups_by_number", "heads_tied_to_stream", "is_pretrained",
    "widths_that_reload",
]


MOST_BUILDS = 150
"""On the meta device; of a model with twelve layers one takes 30 ms."""
UNDECLARED = ("head_dim",)
"""What models ask their configuration for that it need not declare."""
PROBE = 6
"""What a number that is not set is set to on trial: even, as rotary positions ask."""

Path = tuple[str | int, ...]
"""Where a number is in a configuration: names of its attributes, places in lists."""
Number = int | float | None
Size = tuple[str, str | int]
"""A dimension of a parameter or buffer; or an attribute, a whole number, of a module."""
Assignment = Mapping[Path, int | float]


@dataclass(frozen=True)
class Reload:
    """Whether ``from_pretrained`` makes a cut model again.

    Attributes:
        changes: by name of a number of the configuration what it was and is.
        reason: why the configuration cannot say the widths; "" where it does.
        builds: how many models were built on the meta device to find out.
    """

    changes: Mapping[str, tuple[Number, int | float]] = field(default_factory=dict)
    reason: str = ""
    builds: int = 0

    def __str__(self) -> str:
        """In a line.

        >>> str(Reload({"n_embd": (32, 16)}))
        'reloads by from_pretrained'
        """
        if not self.reason:
            return "reloads by from_pretrained"
        return (f"does not reload by from_pretrained: {self.reason}; structure.json and "
                f"safetensors make it again (load_slim)")


def fit_configuration(
    original: nn.Module, pruned: nn.Module, units: Mapping[str, tuple[int, int]], example: Any
) -> Reload | None:
    """Change a cut model's configuration so that its class makes the same network from it.

    Proven before it is changed: a model from the new configuration takes the cut weights strictly,
    and its outputs on the example differ by 0.

    Args:
        original: the model before the cut; left as found.
        pruned: the cut model; only its configuration is changed, and only where that succeeds.
        units: by group how many there were and are (``Cut.units``).
        example: a batch as the model takes it.

    Returns:
        What was changed, or why the configuration cannot say these widths; None of a model that is
        not of the transformers library.
    """
    if not is_pretrained(pruned):
        return None
    with isolated(), _quiet():
        search = _Search(_Builder(original), _sizes(original), _sizes(pruned), units)
        if search.refused:
            return Reload(reason=search.refused, builds=search.builder.builds)
        reason = ""
        for assignment in search.solutions():
            trial = _tried(pruned, search.builder.config(assignment), example)
            if trial.proven is not None:
                _take_configurations(pruned, trial.proven)
                return Reload({_named(path): (search.builder.numbers[path], number)
                               for path, number in assignment.items()},
                              builds=search.builder.builds)
            reason = trial.cause or reason or trial.failure
            if trial.cause:
                break
    return Reload(reason=reason or search.obstacle(), builds=search.builder.builds)


def groups_by_number(model: nn.Module, structure: UnitGroups) -> dict[str, tuple[str, ...]]:
    """The groups whose sizes one number of the configuration says, by that number's name.

    They can only be cut to the same share if ``from_pretrained`` is to work: the units of all
    blocks, the model's width and the pooler's units. Empty for models that are not of the
    transformers library.
    """
    return {_named(path): moved for path, moved in _moved_groups(model, structure).items()}


def heads_tied_to_stream(model: nn.Module, structure: UnitGroups) -> dict[str, str]:
    """The groups of heads whose size is the model's width over their number, with that stream.

    Where a configuration has no number for the size of a head (``head_dim``, ``d_kv``), heads go
    only together with the stream: width = size of a head × heads that are left.
    """
    streams = {group.name for group in structure.groups if group.kind == "stream"}
    moved = [set(names) for names in _moved_groups(model, structure, makers_only=True).values()]
    tied: dict[str, str] = {}
    for group in structure.groups:
        if group.kind == "heads":
            of_streams = [sorted(names & streams) for names in moved if group.name in names]
            if of_streams and all(of_streams):
                tied[group.name] = of_streams[0][0]
    return tied


def widths_that_reload(
    model: nn.Module, structure: UnitGroups, widths: Mapping[str, int], allowed: Collection[str]
) -> dict[str, int]:
    """Widths, as large or larger, that a configuration can say; as they are of other models.

    Groups whose sizes one number says get the largest share among them, also those that no width
    is given of; heads whose size is the model's width over their number, the same share as that.
    Where one of them may not be cut, none is.

    Args:
        model: the one that is to be cut.
        structure: its groups of all kinds.
        widths: by name of a group how many units are to be left.
        allowed: the names of the groups that may be cut.
    """
    sets = [{*names} for names in groups_by_number(model, structure).values()]
    fewest = {name: min((names for names in sets if name in names), key=len)
              for names in sets for name in names}
    together = [{name for name in names if fewest[name] is names} for names in sets]
    together += [{*pair} for pair in heads_tied_to_stream(model, structure).items()]
    result = dict(widths)
    for _ in together:  # what one set changes may change another
        for names in together:
            if names & result.keys():
                groups = [structure.group(name) for name in sorted(names)]
                result |= _same_share(groups, result) if names <= set(allowed) else {
                    group.name: group.units for group in groups}
    return {name: width for name, width in result.items() if name in allowed}


def _same_share(groups: Sequence[UnitGroup], widths: Mapping[str, int]) -> dict[str, int]:
    """The largest share of any of these groups, of which all have whole units."""
    common = math.gcd(*(group.units for group in groups))
    steps = max(math.ceil(widths[group.name] * common / group.units)
                for group in groups if group.name in widths)
    return {group.name: group.units // common * steps for group in groups}


def _moved_groups(
    model: nn.Module, structure: UnitGroups, *, makers_only: bool = False
) -> dict[Path, tuple[str, ...]]:
    if not is_pretrained(model):
        return {}
    with isolated(), _quiet():
        search = _Search(_Builder(model), _sizes(model), _sizes(model))
        influences = {} if search.refused else search.influences
    result = {path: tuple(group.name for group in structure.groups
                          if not influence.keys().isdisjoint(_sizes_of(group, makers_only)))
              for path, influence in influences.items()}
    return {path: names for path, names in result.items() if names}


def _sizes_of(group: UnitGroup, makers_only: bool) -> set[Size]:
    """Where the number of a group's units shows: the weights that make them, and counts."""
    counts = () if makers_only else group.counts
    return {*((maker.parameter, maker.dim) for maker in group.makers),
            *((group.name, attribute) for attribute in counts)}


def is_pretrained(model: nn.Module) -> bool:
    """Whether it is a model of the transformers library, which is not imported for that."""
    return any(each.__name__ == "PreTrainedModel" for each in type(model).__mro__) \
        and _is_configuration(getattr(model, "config", None))


def _is_configuration(value: Any) -> bool:
    return hasattr(value, "to_diff_dict") and hasattr(value, "model_type")


@contextmanager
def _quiet() -> Iterator[None]:
    """What the library says of configurations on trial is not shown."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Sizes(NamedTuple):
    """Sizes of a model: of its parameters and buffers, and whole numbers of its modules."""

    shapes: dict[Size, int]
    attributes: dict[Size, int]

    @property
    def all(self) -> dict[Size, int]:
        """Both."""
        return self.shapes | self.attributes


def _sizes(model: nn.Module) -> _Sizes:
    shapes: dict[Size, int] = {(name, dim): size for name, value in model.state_dict().items()
                               if isinstance(value, torch.Tensor)
                               for dim, size in enumerate(value.shape)}
    attributes: dict[Size, int] = {
        (name, attribute): value for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, int) and not isinstance(value, bool)}
    return _Sizes(shapes, attributes)


class _Builder:
    """Makes models of one class on the meta device, from its configuration with other numbers."""

    def __init__(self, model: nn.Module) -> None:
        self._class = type(model)
        self._config: Any = model.config
        self.numbers = _numbers(self._config)
        self.builds = 0
        self.error = ""
        self._built: dict[frozenset[tuple[Path, int | float]], _Sizes | None] = {}

    def config(self, assignment: Assignment) -> Any:
        """A copy of the configuration with these numbers."""
        config = copy.deepcopy(self._config)
        for path, number in assignment.items():
            _put(config, path, number)
        return config

    def sizes(self, assignment: Assignment) -> _Sizes | None:
        """Of the model with these numbers; None where there is none, or too many were built."""
        key = frozenset(assignment.items())
        if key not in self._built:
            self._built[key] = self._build(assignment)
        return self._built[key]

    def _build(self, assignment: Assignment) -> _Sizes | None:
        if self.builds >= MOST_BUILDS:
            return None
        self.builds += 1
        try:
            with torch.device("meta"):
                return _sizes(self._class(self.config(assignment)))
        except Exception as error:  # of the class, which takes not every configuration
            self.error = one_line(error)
            return None


def _numbers(config: Any, start: Path = ()) -> dict[Path, Number]:
    """The numbers of a configuration, those of nested ones too; None those that are not set."""
    numbers: dict[Path, Number] = {}
    for name, value in vars(config).items():
        path = (*start, name)
        if name.startswith("_"):
            continue
        if _is_configuration(value):
            numbers |= _numbers(value, path)
        elif value is None or _is_number(value):
            numbers[path] = value
        elif isinstance(value, list | tuple):
            numbers |= {(*path, place): each for place, each in enumerate(value)
                        if _is_number(each)}
    for name in UNDECLARED:
        numbers.setdefault((*start, name), None)
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 1


def _put(config: Any, path: Path, number: int | float) -> None:
    names = [step for step in path if isinstance(step, str)]
    for name in names[:-1]:
        config = getattr(config, name)
    value: Any = number
    if isinstance(path[-1], int):
        values = getattr(config, names[-1])
        value = type(values)(number if place == path[-1] else each
                             for place, each in enumerate(values))
    setattr(config, names[-1], value)


def _named(path: Path) -> str:
    return ".".join(map(str, path))


class _Search:
    """Numbers of a configuration that make the sizes of a cut model."""

    def __init__(
        self, builder: _Builder, before: _Sizes, after: _Sizes,
        units: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        self.builder = builder
        self._wanted: dict[Size, int] = {
            **after.shapes, **{size: value for size, value in after.attributes.items()
                               if before.attributes.get(size) != value}}
        self._others = after.attributes
        base = builder.sizes({})
        self._base = base or _Sizes({}, {})
        self.refused = ""
        if base is None:
            self.refused = f"its class is not made from its configuration alone ({builder.error})"
        elif base.shapes != before.shapes:
            self.refused = "its configuration makes other shapes than the model had before the cut"
        self.influences = {} if self.refused else self._influences()
        self._shares = self._shares_of(units or {})
        self._nearest: tuple[int, Assignment] = (len(self._wanted) + 1, {})

    def _influences(self) -> dict[Path, dict[Size, Fraction]]:
        """By number the sizes that change with it, and by how much for one more."""
        influences = {path: self._influence(path, {}) for path in self.builder.numbers}
        return {path: influence for path, influence in influences.items() if influence}

    def _influence(self, path: Path, assignment: Assignment) -> dict[Size, Fraction]:
        """Of one number, by the first number on trial that makes a model beside the others."""
        base = self.builder.sizes(assignment)
        if base is None:
            return {}
        there, number = base.all, self.builder.numbers[path]
        for probe in _probes(number):
            built = self.builder.sizes({**assignment, path: probe})
            if built is not None:
                changed = {size: value for size, value in built.all.items()
                           if size in there and there[size] != value}
                if number is None:
                    return {size: value / Fraction(probe) for size, value in changed.items()}
                step = Fraction(probe) - Fraction(number)
                return {size: (value - there[size]) / step for size, value in changed.items()}
        return {}

    def _shares_of(self, units: Mapping[str, tuple[int, int]]) -> dict[Path, set[int]]:
        """Numbers that the modules of groups hang on, each at the share of units that stay.

        That is where numbers of heads are found that show in no shape.
        """
        shares: dict[Path, set[int]] = {}
        for path, influence in self.influences.items():
            number = self.builder.numbers[path]
            if isinstance(number, int):
                modules = {name for name, attribute in influence if isinstance(attribute, str)}
                shares[path] = {number * after // before for name, (before, after) in units.items()
                                if name in modules and after < before and number % before == 0}
        return {path: numbers for path, numbers in shares.items() if numbers}

    def solutions(self) -> Iterator[dict[Path, int | float]]:
        """Numbers that make all sizes that are wanted, likeliest first."""
        seen: set[frozenset[tuple[Path, int | float]]] = set()
        stack: list[dict[Path, int | float]] = [{}]
        while stack and len(seen) < MOST_BUILDS and self.builder.builds < MOST_BUILDS:
            assignment = stack.pop()
            key = frozenset(assignment.items())
            if key in seen:
                continue
            seen.add(key)
            wrong, built = self._wrong(assignment), self.builder.sizes(assignment)
            if built is not None and not wrong:
                yield assignment
            if built is not None and len(wrong) < self._nearest[0]:
                self._nearest = (len(wrong), assignment)
            steps = [step for step in self._solving_steps(assignment, wrong)
                     if len(self._wrong(step)) < len(wrong)]
            steps += [{**assignment, path: number} for path, numbers in self._shares.items()
                      for number in numbers if path not in assignment]
            stack += sorted(steps, key=self._badness, reverse=True)

    def _unsaid(self) -> Size | None:
        """A size that the cut changed and that hangs on no number."""
        said = {size for influence in self.influences.values() for size in influence}
        return next((size for size, wanted in self._wanted.items() if size not in said
                     and self._base.all.get(size, wanted) != wanted), None)

    def _wrong(self, assignment: Assignment) -> list[Size]:
        """The sizes that are not as wanted; of numbers that make no model those of no number."""
        built = self.builder.sizes(assignment)
        if built is None:
            moved = {size for path in assignment for size in self.influences[path]}
            return [size for size, wanted in self._wanted.items()
                    if self._base.all.get(size) != wanted and size not in moved]
        return [*(size for size, wanted in self._wanted.items() if built.all.get(size) != wanted),
                *(size for size in built.shapes if size not in self._wanted)]

    def _badness(self, assignment: Assignment) -> tuple[int, int]:
        """How many sizes are wrong; then how many attributes that the cut left as they were."""
        built = self.builder.sizes(assignment)
        attributes = built.attributes if built else {}
        return len(self._wrong(assignment)), sum(
            self._others.get(size) != value for size, value in attributes.items())

    def _solving_steps(
        self, assignment: dict[Path, int | float], wrong: Sequence[Size]
    ) -> list[dict[Path, int | float]]:
        """The assignments with one number more, which makes one of the wrong sizes right."""
        there = (self.builder.sizes(assignment) or self._base).all
        steps: dict[tuple[Path, int | float], None] = {}
        for path, influence in self.influences.items():
            if path in assignment:
                continue
            number = self.builder.numbers[path]
            if number is None and assignment:  # it may stand for what hangs on the other numbers
                influence = self._influence(path, assignment)
            solved = [_solved(number, influence[size], there[size], self._wanted[size])
                      for size in wrong
                      if size in influence and size in there and size in self._wanted]
            steps |= dict.fromkeys((path, each) for each in solved if each is not None)
        return [{**assignment, path: number} for path, number in steps]

    def obstacle(self) -> str:
        """What no numbers make, in a line: where the nearest that were found differ."""
        cannot = "its configuration cannot say these widths"
        if (unsaid := self._unsaid()) is not None:
            return f"{cannot}: no number of it makes {self._part(unsaid)}"
        if self.builder.builds >= MOST_BUILDS:
            return f"no numbers for its configuration were found in {MOST_BUILDS} models"
        _, nearest = self._nearest
        wrong = [size for size in self._wrong(nearest) if size in self._wanted]
        if not wrong:
            return f"{cannot}: it makes weights that the cut does not have"
        size = next((size for size in wrong if isinstance(size[1], int)), wrong[0])
        made = (self.builder.sizes(nearest) or self._base).all.get(size)
        numbers = [f"{_named(path)}={number}" for path, number in nearest.items()
                   if size in self.influences[path]]
        return f"{cannot}: {', '.join(numbers) or 'it'} makes {made}, not {self._part(size)}"

    def _part(self, size: Size) -> str:
        name, dim = size
        where = f"along dimension {dim} of {name}" if isinstance(dim, int) else \
            f"as {dim} of {name or 'the model'}"
        return f"{self._wanted[size]} {where}"


def _probes(number: Number) -> list[int | float]:
    """Other numbers on trial: multiples first, since sizes are divided into heads."""
    if number is None:
        return [PROBE]
    if isinstance(number, float):
        return [2 * number]
    return [probe for probe in dict.fromkeys((2 * number, number // 2, 1, number + 1))
            if probe != number]


def _solved(number: Number, slope: Fraction, there: int, wanted: int) -> int | float | None:
    """The number that makes a size what is wanted; None where it would be no number above 0."""
    before = (Fraction(), 0) if number is None else (Fraction(number), there)
    solved = before[0] + (wanted - before[1]) / slope
    if solved <= 0 or solved == number:
        return None
    if isinstance(number, float):
        return float(solved)
    return int(solved) if solved.denominator == 1 else None


class _Tried(NamedTuple):
    """A model from a configuration with the cut weights, whose outputs are the same bit for bit.

    Attributes:
        proven: the model; None where it fails or its outputs differ.
        failure: in what it fails.
        cause: the failure where a single number is why: then no other configuration is better.
    """

    proven: nn.Module | None
    failure: str = ""
    cause: str = ""


def _tried(pruned: nn.Module, config: Any, example: Any) -> _Tried:
    try:
        fresh: nn.Module = type(pruned)(config)
        first = next(pruned.parameters())
        fresh.to(device=first.device, dtype=first.dtype).load_state_dict(pruned.state_dict())
        expected, outputs = (_outputs(model, example) for model in (pruned, fresh))
    except Exception as error:  # of the class, or of its forward
        return _Tried(None, f"a model from its configuration fails: {one_line(error)}")
    if _same(expected, outputs):
        return _Tried(fresh)
    failure = "with the same weights its configuration gives other outputs"
    cause = _cause(pruned, fresh, expected, example)
    return _Tried(None, failure, cause and f"{failure}: {cause}")


def _cause(
    pruned: nn.Module, fresh: nn.Module, expected: list[torch.Tensor], example: Any
) -> str:
    """The number of a module that makes the outputs others, found by trial; "" where none does."""
    modules = dict(pruned.named_modules())
    for name, module in fresh.named_modules():
        kept = _scalars(modules[name]) if name in modules else {}
        for attribute, made in _scalars(module).items():
            if kept.get(attribute, made) != made:
                setattr(module, attribute, kept[attribute])
                with suppress(Exception):  # of the forward, where a size is not that of the weights
                    if _same(expected, _outputs(fresh, example)):
                        return (f"{attribute} of {name or 'the model'} is "
                                f"{float(kept[attribute]):.4g} in the cut, and follows the width "
                                f"to {float(made):.4g}")
                setattr(module, attribute, made)
    return ""


def _scalars(module: nn.Module) -> dict[str, Any]:
    """The numbers that a module holds, those in buffers too."""
    held = {**vars(module), **dict(module.named_buffers(recurse=False))}
    return {name: value for name, value in held.items() if type(value) in (int, float)
            or (isinstance(value, torch.Tensor) and not value.dim())}


def _same(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(ones) == len(others) and all(
        torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def _outputs(model: nn.Module, example: Any) -> list[torch.Tensor]:
    with caches_off(model), evaluating(model), attributes_kept(model), torch.no_grad():
        return list(tensors_in(call_model(model, example), objects=True))


def _take_configurations(pruned: nn.Module, fresh: nn.Module) -> None:
    """Every module of the cut model gets the configuration that the fresh one's has."""
    modules = dict(fresh.named_modules())
    for name, module in pruned.named_modules():
        config = getattr(modules.get(name), "config", None)
        if _is_configuration(config) and _is_configuration(vars(module).get("config")):
            vars(module)["config"] = config
