"""Weights under other names: wrappers' prefixes, checkpoints, masks and norms; and what is refused.

That every tensor is checked is in ``test_pretrained.py``.
"""

from __future__ import annotations

import copy
from argparse import Namespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from wua_mlflow.pipeline.weights import load_weights

X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()


class Wrapper(nn.Module):
    def __init__(self, name: str = "model") -> None:
        super().__init__()
        self.add_module(name, net())
        self.name = name

    def forward(self, x):
        return getattr(self, self.name)(x)


def named(prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in trained().state_dict().items()}


def trained() -> nn.Sequential:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(0.1)
    return model


CHECKPOINT = {"epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.5.0",
              "state_dict": named("model."), "optimizer_states": [{"lr": 0.1}],
              "hyper_parameters": {"width": 6}, "callbacks": {}}
FILES = {  # what the file holds, the name it has, what is said
    "as it is": (named(""), "a.pt", ""),
    "data parallel": (named("module."), "a.pth", "the prefix 'module.'"),
    "compiled": (named("_orig_mod."), "a.bin", "the prefix '_orig_mod.'"),
    "both": (named("module._orig_mod."), "a.pt", "the prefix 'module._orig_mod.'"),
    "all three": (named("module._orig_mod.model."), "a.pt", "'module._orig_mod.model.'"),
    "state dict": ({"state_dict": named("")}, "a.tar", "its entry 'state_dict' is taken"),
    "lightning": (CHECKPOINT, "a.ckpt", "the prefix 'model.'"),
    "a metric's": ({"state_dict": {**named("model."), "loss.weight": torch.ones(3)}}, "a.ckpt",
                   "1 other tensors are left out"),
    "namespace": ({**CHECKPOINT, "args": Namespace(lr=1)}, "a.ckpt", "the prefix 'model.'")}


@pytest.mark.parametrize("kind", FILES)
def test_one_prefix_is_taken_away_and_said(kind, tmp_path, capsys):
    content, name, said = FILES[kind]
    torch.save(content, tmp_path / name)
    model = net()
    load_weights(model, str(tmp_path / name))
    assert torch.equal(model(X), trained()(X))
    shown = capsys.readouterr().err
    assert said in shown and bool(said) == bool(shown)


def test_safetensors_have_prefixes_too(tmp_path):
    from safetensors.torch import save_file

    save_file(named("module."), tmp_path / "a.safetensors")
    model = net()
    load_weights(model, str(tmp_path / "a.safetensors"))
    assert torch.equal(model(X), trained()(X))


@pytest.mark.parametrize("prefix", ["model.", "module.model.", ""])
def test_a_wrappers_own_names_fit_the_wrapper(prefix, tmp_path):
    torch.save(named(prefix), tmp_path / "a.pt")
    model = Wrapper().eval()
    load_weights(model, str(tmp_path / "a.pt"))
    assert torch.equal(model(X), trained()(X))


@pytest.mark.parametrize(("content", "message"), [
    (named("student."), "has no '0.weight'"),
    ({**named("module."), **named("")}, "has 'module.0.weight' too"),
    ({**named("module."), "module.more": torch.ones(1)}, "has no '0.weight'"),
    ({"module.0.weight": torch.ones(6, 4)}, "has no '0.weight'")])
def test_what_is_not_sure_is_refused(content, message, tmp_path, capsys):
    torch.save(content, tmp_path / "a.pt")
    model = net()
    with pytest.raises(ValueError, match=f"^state: expected .*{message}"):
        load_weights(model, str(tmp_path / "a.pt"))
    assert torch.equal(model(X), net()(X)) and capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [
    lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5), nn.utils.weight_norm,
    nn.utils.spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm,
    lambda layer: nn.utils.weight_norm(layer, dim=1)],
    ids=["prune", "weight norm of old", "spectral norm of old", "weight norm", "spectral norm",
         "weight norm by column"])
def test_masks_and_norms_become_plain_weights(norm, tmp_path, capsys):
    model = trained()
    norm(model[2])
    model.train()
    model(X)  # a spectral norm's vectors are of a forward in training
    model.eval()
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()},
               tmp_path / "a.pt")
    plain = net()
    load_weights(plain, str(tmp_path / "a.pt"))
    assert torch.allclose(plain(X), model(X), atol=1e-6)
    assert "as they come out" in capsys.readouterr().err


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(8, 8, 3), nn.Conv2d(8, 8, 3)])
def test_a_spectral_norm_whose_dimension_the_shape_leaves_open(norm, layer, tmp_path):
    torch.manual_seed(3)
    normed, x = norm(copy.deepcopy(layer)), torch.rand(2, 8, 5, 5)
    for _ in range(30):
        normed(x)
    torch.save(normed.eval().state_dict(), tmp_path / "a.pt")
    plain = copy.deepcopy(layer)
    load_weights(plain, str(tmp_path / "a.pt"))
    assert torch.allclose(plain(x), normed(x), atol=1e-5)


class Strange:
    def __init__(self) -> None:
        self.weight = torch.ones(2)


@pytest.mark.parametrize(("save", "message"), [
    (lambda path: torch.save(net(), path), "holds other objects .*would run whatever code"),
    (lambda path: torch.save({"state_dict": named(""), "more": Strange()}, path),
     "Strange.*would run whatever code"),
    (lambda path: torch.jit.trace(net(), X).save(path), "is a TorchScript archive, which has no"),
    (lambda path: path.write_bytes(b"nothing of torch's"), "cannot be read as one|other objects"),
    (lambda path: torch.save([1, 2], path), "holds a list"),
    (lambda path: torch.save({"state_dict": {"a": 3}}, path), "has 'a', a int"),
    (lambda path: torch.save({3: torch.ones(1)}, path), "has 3, a int")],
    ids=["module", "object", "script", "bytes", "list", "number", "number as a name"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_state_dict_is_refused_in_a_line(save, message, tmp_path):
    path = tmp_path / "a.pt"
    save(path)
    with pytest.raises(ValueError, match=f"^state: expected .*({message})") as raised:
        load_weights(net(), str(path))
    assert "\n" not in str(raised.value)
