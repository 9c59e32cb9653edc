"""What can be taken for an original that was trained elsewhere, and what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.pipeline.slimming_cases import (  # noqa: F401 - store is a fixture
    HERE,
    blobs,
    net,
    store,
)
from tests.pipeline.test_adopted import OWN, elsewhere, slimmed
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.pretrained import import_pretrained, pretrained_recipe
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import Store


def test_a_state_dict_of_torch_does_too(store: Store) -> None:  # noqa: F811
    model = elsewhere()
    torch.save(model.state_dict(), "w.pt")
    settings = load_settings(None, {**OWN, "state": "w.pt"})
    found = import_pretrained(store, pretrained_recipe(settings))
    for one, own in zip(found.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, own)


def test_without_a_file_the_factorys_own_weights_are_taken(store: Store) -> None:  # noqa: F811
    """A factory may load them itself."""
    found = [import_pretrained(store, pretrained_recipe(
        load_settings(None, {**OWN, "seed": 5}))) for _ in range(2)]
    torch.manual_seed(5)
    for one, other, own in zip(*(each.model.parameters() for each in found), net().parameters(),
                               strict=True):
        assert torch.equal(one, other) and torch.equal(one, own)


@pytest.mark.parametrize(("given", "widths"), [
    ({}, ()),
    ({"hidden": "8"}, (8,)),
])
def test_a_factory_gets_widths_where_they_were_given(
    given: dict[str, str], widths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.pipeline import slimming_cases

    monkeypatch.setattr(slimming_cases, "either", lambda widths=(5,): nn.Sequential(
        nn.Linear(6, widths[0]), nn.ReLU(), nn.Linear(widths[0], 3)), raising=False)
    settings = load_settings(None, {**OWN, "model": f"{HERE}:either", "seeds": 7, **given})
    recipe = pretrained_recipe(settings)
    assert (recipe.settings.hidden, recipe.settings.seeds) == (widths, 1)
    assert recipe.build(recipe.settings.hidden)[0].out_features == (8 if widths else 5)


BAD = [
    ({"state": "none.safetensors"},
     "state: expected a .safetensors file, but '{folder}/none.safetensors' does not exist"),
    ({"state": "none.pt"}, "state: expected a .safetensors file, but '{folder}/none.pt' does not "
                           "exist"),
    ({"state": "other.safetensors"}, "state: expected all tensors of the model, but "
     "'{folder}/other.safetensors' has no '0.weight' (and 3 more); did you mean 'fc.weight'?"),
    ({"state": "other.pt"}, "state: expected all tensors of the model, but '{folder}/other.pt' has "
                            "no '0.weight' (and 3 more); did you mean 'fc.weight'?"),
    ({"state": "wide.pt"}, "state: expected '0.weight' of shape (8, 6), as in the model, but "
                           "'{folder}/wide.pt' has (9, 6)"),
    ({"state": "whole.pt"}, "state: expected a state dict, but '{folder}/whole.pt' holds other "
                            "objects, which are not unpickled; save model.state_dict() alone, best "
                            "as safetensors"),
    ({"state": "checkpoint.pt"}, "state: expected tensors alone, but '{folder}/checkpoint.pt' has "
     "'epoch', a int; save model.state_dict() alone, best as safetensors"),
    ({"state": "list.pt"}, "state: expected a state dict, but '{folder}/list.pt' holds a list; "
                           "save model.state_dict() alone, best as safetensors"),
    ({"state": "graph.pt2"}, "state: expected a .safetensors file, but '{folder}/graph.pt2' is an "
     "exported graph, which has no layers to look at or to cut; save the state_dict() of the "
     "module that it was exported from"),
    ({"model": f"{HERE}:nett"}, "model: expected a name in the module {here} ({file}), but got "
                                "'nett'; did you mean 'net'?"),
    ({"model": "nowhere:net"}, "model: expected a module in the current folder or among the "
                               "installed packages, but found none named 'nowhere'"),
    ({"model": f"{HERE}:blobs"}, "model: expected {here}:blobs to return a "
                                 "torch.nn.Module, but it returned list"),
    ({"model": f"{HERE}:uncuttable"}, "how: prune found nothing to cut in {here}:uncuttable: 0: "
                                      "its units are the network's outputs"),
    ({"how": "rebuild"}, "how: rebuild expected a factory of widths, but {here}:net takes none; "
                         "cut the trained network: --how prune"),
    ({"data": "wine"}, "model: does not take the data's inputs of shape (batch, 13): "),
    ({"slim_hidden": "9"}, "slim_hidden: expected widths of at most the original's (8), but got 9"),
    ({"distill": True, "how": "rebuild"}, "distill: expected how=prune beside it, "),
]


def _files() -> None:
    model = net()
    other = nn.Sequential()
    other.add_module("fc", nn.Linear(6, 3))
    save_file(other.state_dict(), "other.safetensors")
    torch.save(other.state_dict(), "other.pt")
    torch.save({**model.state_dict(), "0.weight": torch.ones(9, 6)}, "wide.pt")
    torch.save(model, "whole.pt")
    torch.save({**model.state_dict(), "epoch": 3}, "checkpoint.pt")
    torch.save([torch.ones(1)], "list.pt")
    Path("graph.pt2").write_bytes(b"PK\x03\x04")


@pytest.mark.parametrize(("given", "message"), BAD,
                         ids=[str(next(iter(given.values()))) for given, _ in BAD])
def test_what_cannot_be_adopted_is_said_in_one_line(
    store: Store, given: dict[str, object], message: str  # noqa: F811
) -> None:
    _files()
    with pytest.raises(ValueError) as caught:
        slimmed(store, **given)
    said = str(caught.value)
    file = Path(__file__).with_name("slimming_cases.py")
    expected = message.format(folder=Path.cwd(), here=HERE, file=file)
    assert said == expected or (expected.endswith((": ", ", ")) and said.startswith(expected))
    assert "\n" not in said
    assert set(runs("slimming", "pipeline")["status"]) == {"FAILED"}
