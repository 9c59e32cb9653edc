"""A model's call run on meta tensors: every operator is logged, nothing is computed.

Tests: ``tests/flops/test_meta_run.py``, ``test_operator_log.py``, ``test_fused_time_steps.py``.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from wua_mlflow.flops.formulas import is_left_out
from wua_mlflow.module_attributes import contents_kept, held_by
from wua_mlflow.rng import isolated

__all__ = [
    "ForwardModules", "FusedTimeSteps", "OperatorLog", "decomposed_ops", "meta_copy", "real_copy",
    "swapped_tensors", "tensor_copier",
]


Replay = Callable[[tuple[Any, ...]], Any]


class OperatorLog(TorchDispatchMode):
    """Counts the calls of each operator.

    Entered before torch's counter, it sees the operators after that one has decomposed them.

    With ``reuse``, for meta tensors only: an operator called again on tensors of the same metadata
    and the same other arguments is not run again, its outputs are made from the metadata of the
    first call's. Most of torch's meta kernels are slow: they are written in Python. Views run each
    time, and whatever changes the metadata of its arguments.

    >>> with OperatorLog() as log:
    ...     _ = torch.ones(2) + torch.ones(2)
    >>> log.calls[torch.ops.aten.ones.default], log.uncounted({})
    (2, {})
    """

    supports_higher_order_operators = True

    def __init__(self, *, reuse: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Any] = Counter()
        self._reuse = reuse
        self._replays: dict[Any, Replay] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] += 1
        kwargs = kwargs or {}
        depends_on_metadata_only = isinstance(func, torch._ops.OpOverload) \
            and func.namespace == "aten" and not func.is_view
        if not self._reuse or not depends_on_metadata_only:
            return func(*args, **kwargs)
        key = func, _signature(args), _signature(tuple(kwargs.items()))
        replay = self._replays.get(key)
        if replay is not None:
            return replay(args)
        result = func(*args, **kwargs)
        replay = _replay(args, result)
        if replay and key == (func, _signature(args), _signature(tuple(kwargs.items()))):
            self._replays[key] = replay
        return result

    def uncounted(self, counted: Mapping[Any, Any]) -> dict[str, int]:
        """Calls of the operators that compute, are not in ``counted``, and have no formula."""
        calls: Counter[str] = Counter()
        for operator, n in self.calls.items():
            packet = getattr(operator, "_overloadpacket", operator)
            left_out = isinstance(operator, torch._ops.OpOverload) and is_left_out(operator)
            if packet not in counted and not left_out:
                calls[str(packet)] += n
        return dict(calls)


def _signature(value: Any) -> Any:
    """What a meta kernel can see of its arguments; an object equal to no other where unknown."""
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided
        if not plain or not value.is_meta:
            return object()
        return value.shape, value.stride(), value.dtype, value.is_conj(), value.is_neg()
    if isinstance(value, list | tuple):
        return tuple([_signature(item) for item in value])
    return type(value), value


def _replay(args: tuple[Any, ...], result: Any) -> Replay | None:
    """How to give ``result`` again for other arguments of the same signature, if it is known."""
    if args and result is args[0]:
        return lambda args: args[0]
    if isinstance(result, Tensor):
        make = _maker(result)
        return make and (lambda _: make())
    makers = [_maker(item) for item in result] if type(result) is tuple else [None]
    return None if None in makers else lambda _: tuple([make() for make in makers if make])


def _maker(item: Any) -> Callable[[], Tensor | None] | None:
    """A function that makes tensors of this metadata, or None for no tensor.

    None instead of a function where a copy would differ.
    """
    if not isinstance(item, Tensor):
        return lambda: None
    if _signature(item) != _signature(item):
        return None
    size, stride, dtype = item.shape, item.stride(), item.dtype
    return lambda: torch.empty_strided(size, stride, dtype=dtype, device="meta")


class ForwardModules(ModuleTracker):
    """Which modules' forwards are under way, for torch's counter.

    Torch's own hooks what they are given for the backward, too, and fails where that is a view
    made without gradients, as a slice of a parameter.
    """

    def _fw_pre_hook(self, mod: nn.Module, input: Any) -> None:
        self.parents.add(self._get_mod_name(mod))  # type: ignore[no-untyped-call]

    def _fw_post_hook(self, mod: nn.Module, input: Any, output: Any) -> None:
        self.parents.discard(self._get_mod_name(mod))  # type: ignore[no-untyped-call]


_STATES = {torch.lstm: 2, torch.gru: 1, torch.rnn_tanh: 1, torch.rnn_relu: 1}
"""How many states each carries from step to step."""


class FusedTimeSteps(TorchFunctionMode):
    """Runs ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` on meta tensors with all time steps at once.

    A step multiplies its input, the state before it, and, where it projects, its hidden units.
    Their rows are stacked over the steps: the same multiply-accumulates, forward and backward, in
    a fixed number of operators. The outputs depend on all that they depend on in the layer, so
    that their backward does its products again. Packed sequences, and layers of which only some
    parameters require a gradient, are left to torch, step by step.

    >>> with torch.device("meta"), FusedTimeSteps():
    ...     y, (h, c) = torch.nn.LSTM(6, 8, proj_size=3)(torch.zeros(4, 2, 6))
    >>> y.shape, h.shape, c.shape
    (torch.Size([4, 2, 3]), torch.Size([1, 2, 3]), torch.Size([1, 2, 8]))
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _STATES and not kwargs and len(args) == 9 and _can_be_stacked(args):
            return _all_steps(_STATES[func], *args)
        return func(*args, **(kwargs or {}))


def _can_be_stacked(args: Sequence[Any]) -> bool:
    x, parameters = args[0], args[2]
    packed = isinstance(parameters, Tensor) or isinstance(args[3], list | tuple)
    return x.is_meta and not packed and len({p.requires_grad for p in parameters}) == 1


def _all_steps(states: int, x: Tensor, start: Any, parameters: Sequence[Tensor], *options: Any
               ) -> tuple[Tensor, ...]:
    """Outputs of the shapes that torch's own function gives for the same arguments."""
    biases, layers, _, _, bidirectional, batch_first = options
    starts = start if states == 2 else [start]
    directions = 2 if bidirectional else 1
    per_direction = len(parameters) // (layers * directions)
    x = x.transpose(0, 1) if batch_first else x
    ends = []
    for layer in range(layers):
        outputs = []
        for i in range(layer * directions, (layer + 1) * directions):
            weights = parameters[i * per_direction:(i + 1) * per_direction]
            output, *end = _direction(x, [s[i] for s in starts], weights, biases)
            outputs.append(output)
            ends.append(end)
        x = torch.cat(outputs, -1)
    return x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*ends, strict=True))


def _direction(x: Tensor, start: list[Tensor], weights: Sequence[Tensor], biases: bool
               ) -> tuple[Tensor, ...]:
    """One layer in one direction: its outputs (steps × batch × state), then its last states.

    The values are not the layer's; the shapes and what depends on what are.
    """
    by_x, by_h, *more = weights
    bias_x, bias_h = more[:2] if biases else (None, None)
    hidden = start[-1].shape[-1]
    inputs = functional.linear(x, by_x, bias_x)
    first = functional.linear(start[0], by_h, bias_h)
    cell = inputs[..., :hidden] + first[..., :hidden] + start[-1]
    inner, last = cell[:-1], cell[-1:]
    if by_h.shape[1] != hidden:
        inner, last = functional.linear(inner, more[-1]), functional.linear(last, more[-1])
    from_before = functional.linear(inner, by_h, bias_h).sum(0)[..., :1]
    output = torch.cat([inner, last]) + from_before
    return output, output[-1], *([cell[-1] + from_before] if len(start) == 2 else [])


@contextmanager
def decomposed_ops(*, grad: bool, meta: bool) -> Iterator[None]:
    """Torch's global settings such that encoder, attention and recurrent layers run decomposed.

    They run as plain products, each of which is logged. Tensors made on the way are on the meta
    device if ``meta``. Settings and random streams are put back afterwards.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(isolated())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if meta:
            stack.enter_context(torch.device("meta"))
            _set(stack, nn.modules.transformer, "_detect_is_causal_mask", _is_causal)
        else:
            _set(stack, torch.backends.mkldnn, "enabled", False)
            _set(stack, torch.backends.cudnn, "enabled", False)
        yield


def _is_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """In place of torch's own, which compares the mask's values; the products are the same."""
    return bool(is_causal)


def _set(stack: ExitStack, owner: Any, name: str, value: object) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@contextmanager
def swapped_tensors(model: nn.Module, copy: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put a copy in place of every tensor of ``model``, in eval mode; put all back at the end.

    Works on the modules' own dicts, so that it bypasses what a module does on assignment and
    ``eval()``, and undoes whatever the forward assigns. Tied tensors stay tied. What the model
    reaches otherwise (a closure, an object that is no module) is left in place.
    """
    copied = tensor_copier(copy)
    held = held_by(model)
    attributes = [vars(module) for module in held.modules]
    of_torch = [value for values in attributes for value in values.values()
                if type(value) in (dict, OrderedDict)]  # a hook may remove itself from one
    saved = [(mapping, dict(mapping)) for mapping in (*attributes, *of_torch)]
    with contents_kept(held.containers):
        try:
            for values in attributes:
                values.update({name: copied(value) for name, value in values.items()},
                              training=False)
            yield
        finally:
            for mapping, before in saved:
                mapping.clear()
                mapping.update(before)


def tensor_copier(copy: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """A function that copies each tensor once, within lists, tuples, sets and dicts too.

    A compiled module comes out as the module that was compiled.
    """
    copies: dict[int, Tensor] = {}

    def mapped(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in copies:
                copies[id(value)] = copy(value)
            return copies[id(value)]
        if isinstance(value, nn.Module):
            return getattr(value, "_orig_mod", value)
        if type(value) in (list, tuple, set):
            return type(value)(map(mapped, value))
        if type(value) is deque:
            return deque(map(mapped, value), value.maxlen)
        if type(value) in (dict, OrderedDict):
            return type(value)((key, mapped(item)) for key, item in value.items())
        return value

    return mapped


def meta_copy(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and kind that holds nothing."""
    empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
    return _same_kind(tensor, empty)


def real_copy(tensor: Tensor) -> Tensor:
    """A tensor of the same values and kind, off the graph."""
    return _same_kind(tensor, tensor.detach().clone())


def _same_kind(tensor: Tensor, values: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        values = nn.Parameter(values, requires_grad=tensor.requires_grad)
    elif tensor.requires_grad:
        with torch.enable_grad():
            values.requires_grad_()
            values = values if tensor.is_leaf else values.clone()
    vars(values).update(vars(tensor))
    return values
