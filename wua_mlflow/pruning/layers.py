"""The kinds of layers that make units, and how a model is called on a batch.

Tests: ``tests/pruning/test_layers.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from wua_mlflow.data.batches import mapped

__all__ = [
    "CONVOLUTIONS", "RECURRENT", "TRANSPOSED", "call_model", "caches_off", "hidden_slices",
    "is_conv1d", "main_outputs", "weight_dims",
]


@contextmanager
def caches_off(*models: nn.Module) -> Iterator[None]:
    """The models without their caches: ``use_cache`` of a configuration is False in the block.

    With it on, as transformers' models have it, a forward returns keys and values beside its
    outputs, which the graph of a model cannot be followed through; its outputs are the same.

    >>> net = nn.Linear(1, 1)
    >>> net.config = type("Config", (), {"use_cache": True})()
    >>> with caches_off(net):
    ...     net.config.use_cache
    False
    >>> net.config.use_cache
    True
    """
    configs: list[Any] = [getattr(module, "config", None)
                          for model in models for module in model.modules()]
    cached = [config for config in configs if getattr(config, "use_cache", None) is True]
    try:
        for config in cached:
            config.use_cache = False
        yield
    finally:
        for config in cached:
            config.use_cache = True


def call_model(model: nn.Module, example: Any) -> Any:
    """The model's outputs for a batch: a tensor, a tuple of arguments, or a dict of keywords.

    The batch is copied first, since a model may write into its inputs.
    """
    arguments = mapped(example, Tensor, Tensor.clone)
    if isinstance(arguments, Mapping):
        return model(**arguments)
    return model(*arguments) if isinstance(arguments, tuple) else model(arguments)


SIDE_OUTPUTS = ("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions",
                "hidden_states", "decoder_hidden_states", "attentions", "decoder_attentions",
                "cross_attentions", "past_key_values", "text_model_output",
                "vision_model_output")
"""What transformers' models return beside what they are for: values on the way to that."""


def main_outputs(outputs: Any) -> Any:
    """A model's outputs without values on the way, where it returns these too.

    >>> main_outputs({"logits": 1, "encoder_last_hidden_state": 2})
    {'logits': 1}
    """
    if isinstance(outputs, Mapping):
        main = {name: each for name, each in outputs.items() if name not in SIDE_OUTPUTS}
        return main or outputs
    return outputs


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' ``Conv1D``: a Linear whose weight is (inputs, outputs).

    >>> is_conv1d(nn.Linear(2, 3))
    False
    """
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) and \
        weight.dim() == 2 and getattr(module, "nf", None) == weight.shape[1]


def weight_dims(module: nn.Module) -> tuple[int, int] | None:
    """The dimensions of ``module.weight`` along which its outputs and its inputs lie."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return 0, 1
    if isinstance(module, TRANSPOSED) or is_conv1d(module):
        return 1, 0
    return None


def hidden_slices(layer: Any) -> Iterator[tuple[str, int, tuple[tuple[int, ...], ...]]]:
    """Where a recurrent layer's parameters hold its hidden units: name, dimension, positions.

    As rows in each gate of every parameter, and as columns of all but the first layer's inputs,
    where a bidirectional layer has them twice.
    """
    hidden = layer.hidden_size
    for name, parameter in layer.named_parameters(recurse=False):
        for dim in range(1 if name.startswith(("weight_ih_l0", "bias")) else 2):
            size = parameter.shape[dim]
            yield name, dim, tuple(tuple(range(unit, size, hidden)) for unit in range(hidden))
