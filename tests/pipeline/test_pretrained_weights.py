"""Weights from a file: all of them, by name and shape, or none."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from wua_mlflow.pipeline.pretrained import load_weights


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.embedding.weight


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(
        a.state_dict().values(), b.state_dict().values(), strict=True))


def test_every_tensor_is_the_files(tmp_path: Path) -> None:
    source, target = net(1), net(2)
    source[1].running_mean.fill_(3)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    assert not same(source, target)
    load_weights(nn.DataParallel(target), str(tmp_path / "a.safetensors"))
    assert same(source, target)


def test_tied_weights_are_in_the_file_once(tmp_path: Path) -> None:
    source, target = Tied(1), Tied(2)
    save_model(source, str(tmp_path / "a.safetensors"))
    load_weights(target, str(tmp_path / "a.safetensors"))
    assert same(source, target)
    assert target.head.weight is target.embedding.weight


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


BAD = [
    (lambda state: without(state, "0.bias", "2.weight"),
     "state: expected all tensors of the model, but 'a.safetensors' has no '0.bias' (and 1 more)"),
    (lambda state: {**without(state, "2.weight"), "2.weigth": state["2.weight"].clone()},
     "state: expected all tensors of the model, but 'a.safetensors' has no '2.weight'; did you "
     "mean '2.weigth'?"),
    (lambda state: {**state, "more": torch.ones(1)},
     "state: expected the model's tensors alone, but 'a.safetensors' has 'more' too"),
    (lambda state: {**state, "2.weight": torch.ones(5, 4)},
     "state: expected '2.weight' of shape (2, 4), as in the model, but 'a.safetensors' has "
     "(5, 4)"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=["lacks", "misspelt", "more", "shape"])
def test_what_does_not_match_is_named_and_nothing_is_loaded(
    change, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(change(net(1).state_dict()), "a.safetensors")
    target = net(2)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(target, "a.safetensors")
    assert same(target, net(2))


def test_what_is_no_file_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("empty", b""), ("text", b"weights, honestly"), ("torch", b"PK\x03\x04")):
        Path(name).write_bytes(content)
        with pytest.raises(ValueError, match=f"^state: expected a .safetensors file, but '{name}' "
                                             "cannot be read as one: [^\n]*$"):
            load_weights(net(), name)
    with pytest.raises(ValueError, match="^state: expected a .safetensors file, but 'no' does not "
                                         "exist$"):
        load_weights(net(), "no")
    with pytest.raises(ValueError, match="^state: expected a .safetensors file, but '.' is a "
                                         "folder$"):
        load_weights(net(), ".")


SAVE = "; save model.state_dict() alone, best as safetensors"


@pytest.mark.parametrize(("content", "message"), [
    (lambda model: model, "state: expected a state dict, but 'a.pt' holds other objects, which are "
                          f"not unpickled{SAVE}"),
    (lambda model: {**model.state_dict(), "epoch": 3},
     f"state: expected tensors alone, but 'a.pt' has 'epoch', a int{SAVE}"),
    (lambda model: [torch.ones(1)],
     f"state: expected a state dict, but 'a.pt' holds a list{SAVE}"),
    (lambda model: without(model.state_dict(), "0.bias"),
     "state: expected all tensors of the model, but 'a.pt' has no '0.bias'"),
], ids=["module", "checkpoint", "list", "lacks"])
def test_what_is_no_state_dict_is_named_and_not_unpickled(
    content: Callable[[nn.Module], object], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content(net(1)), "a.pt")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_weights(net(2), "a.pt")


def test_an_exported_graph_has_no_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pt2").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="'a.pt2' is an exported graph, which has no layers"):
        load_weights(net(), "a.pt2")
    with pytest.raises(ValueError, match="'none.pt' does not exist"):
        load_weights(net(), "none.pt")
