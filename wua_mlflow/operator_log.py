"""Every operator that runs, counted by its calls; on meta tensors, run once for each signature.

May import: torch, ``flop_formulas``. Tests: ``tests/test_operator_log.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from wua_mlflow.flop_formulas import is_left_out

__all__ = ["OperatorLog"]

Replay = Callable[[tuple[Any, ...]], Any]


class OperatorLog(TorchDispatchMode):
    """Counts the calls of each operator; entered before torch's counter, it sees the operators
    after that one has decomposed them.

    With ``remember``, for meta tensors only: an operator called again on tensors of the same
    metadata and the same other arguments is not run again, its outputs are made from the metadata
    of the first call's. Most of torch's meta kernels are slow: they are written in Python. Views
    run each time, and whatever changes the metadata of its arguments.

    >>> with OperatorLog() as log:
    ...     _ = torch.ones(2) + torch.ones(2)
    >>> log.calls[torch.ops.aten.ones.default], log.uncounted({})
    (2, {})
    """

    supports_higher_order_operators = True

    def __init__(self, *, remember: bool = False) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()
        self._remember = remember
        self._replays: dict[Any, Replay] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func] += 1
        kwargs = kwargs or {}
        if not self._remember or not _depends_on_metadata_only(func):
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
            simple = isinstance(operator, torch._ops.OpOverload) and is_left_out(operator)
            if packet not in counted and not simple:
                calls[str(packet)] += n
        return dict(calls)


def _depends_on_metadata_only(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and func.namespace == "aten" and not func.is_view


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
        return (lambda _: make()) if make else None
    if type(result) is not tuple:
        return None
    makers = [_maker(item) if isinstance(item, Tensor) else None for item in result]
    if any(item is not None and make is None for item, make in zip(result, makers, strict=True)):
        return None
    return lambda _: tuple([make() if make else None for make in makers])


def _maker(tensor: Tensor) -> Callable[[], Tensor] | None:
    if _signature(tensor) != _signature(tensor):
        return None
    size, stride, dtype = tensor.shape, tensor.stride(), tensor.dtype
    return lambda: torch.empty_strided(size, stride, dtype=dtype, device="meta")
