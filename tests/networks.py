"""Small networks and data for the tests of the analysis, and all that must stay as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for left, right in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(left, right), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def rows(samples: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.rand(samples, *shape, generator=torch.Generator().manual_seed(seed)) - 0.2


def labels(samples: int, classes: int = 2, seed: int = 2) -> Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))


def numpys(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def cnn(seed: int = 0) -> nn.Sequential:
    """Plain, strided, depthwise and grouped convolutions; takes (samples, 3, 8, 8)."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 6, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 2))
    model[1].running_mean.uniform_(-0.2, 0.2)
    return model


class Encoder(nn.Module):
    """Embedding, attention and a feed-forward part, as its layers and not as a fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.block(self.embed(tokens)).mean(1))


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder()


class Reader(nn.Module):
    """Embedding, two recurrent layers in both directions, and the last step's head."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 5)
        self.rnn = kind(5, 6, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0][:, -1])


def reader(seed: int = 0) -> Reader:
    torch.manual_seed(seed)
    return Reader()


def tokens(samples: int, length: int = 7, seed: int = 3) -> Tensor:
    return torch.randint(20, (samples, length), generator=torch.Generator().manual_seed(seed))


NETWORKS = {
    "mlp": (lambda: mlp(3, 16, 8, 2), lambda n: rows(n, 3)),
    "cnn": (cnn, lambda n: rows(n, 3, 8, 8)),
    "attention": (encoder, tokens),
    "lstm": (reader, tokens),
}
"""By name: what makes a network of two classes, and what makes its inputs."""


class Restless(nn.Module):
    """Leaves traces whatever its mode: statistics, counters, random numbers, a buffer put anew,
    a parameter frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout()
        self.twice = nn.Linear(4, 4)
        self.unused = nn.Linear(1, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(4), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = functional.batch_norm(hidden, self.norm.running_mean, self.norm.running_var,
                                       self.norm.weight, self.norm.bias, training=True)
        self.calls += 1
        self.unused.bias.requires_grad_(False)
        self.last = hidden.detach().mean(0)
        self.absent = hidden.detach()
        self.norm.num_batches_tracked.data.add_(1)
        hidden = self.twice(self.twice(self.drop(hidden)))
        noise = torch.rand(()) + random.random() + np.random.rand()
        if (x > 100).any():
            raise RuntimeError("more than 100 came in")
        return functional.relu(hidden) + 0 * noise


def restless() -> Restless:
    """In mixed modes, one parameter frozen, with gradients, hooks and statistics of its own."""
    torch.manual_seed(0)
    model = Restless()
    model(torch.rand(5, 3)).sum().backward()
    model.norm.eval()
    model.twice.eval()
    model.unused.weight.requires_grad_(False)
    model.unused.bias.requires_grad_(True)
    model.first.bias.requires_grad_(False)
    model.first.register_forward_hook(lambda module, inputs, output: None)
    return model


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything that must be the same afterwards, in comparable form."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [[list(getattr(module, name)) for name in (
            "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
            "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
            "_forward_hooks_always_called")] for module in model.modules()],
        "who": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.tolist() for name, tensor in tensors.items()},
        "kept": list(model.state_dict()),
        "no tensor": [[name for name, buffer in module._buffers.items() if buffer is None]
                      for module in model.modules()],
        "requires": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "grads": [None if p.grad is None else (id(p.grad), p.grad.tolist())
                  for p in model.parameters()],
        "placed": {name: (tensor.device, tensor.dtype) for name, tensor in tensors.items()},
        "marks": {name: sorted(vars(tensor)) for name, tensor in tensors.items()},
        "enabled": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "modes of functions": _get_current_function_mode_stack(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


@contextmanager
def kept_streams() -> Iterator[None]:
    """The global random streams, seeded with 0; those of the other tests are put back after it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Layers(nn.Module):
    """Runs ``run(self, ...)`` over the parts that it is given."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.run(self, *inputs, **named)


class Ending(nn.Module):
    """A Linear layer, and what a function makes of its outputs."""

    def __init__(self, ending, outputs: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3, outputs)
        self.ending = ending

    def forward(self, x):
        return self.ending(self.head(x))
