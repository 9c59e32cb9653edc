"""``wua.slim``: what stays, what is refused, and that it equals the original with units masked."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

import wua_mlflow as wua
from tests.networks import kept_streams, mlp, numpys, snapshot
from tests.pruning.cutting_cases import Stream, greedy, twice
from wua_mlflow import slimming
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.pruning.heads import PrunedMultiheadAttention
from wua_mlflow.pruning.importance import unit_importance
from wua_mlflow.what_to_cut import WhatToCut


@pytest.fixture(autouse=True)
def _seeded():
    with kept_streams():
        yield


DATA = torch.randn(60, 4), torch.arange(60) % 3


def test_the_units_that_stay_are_the_most_important():
    model = mlp(4, 16, 3)
    before = snapshot(model)
    activations = numpys(model[0](DATA[0]).relu() * model[2].weight.norm(dim=0))
    stay = sorted(np.argsort(-greedy(activations))[:5].tolist())
    result = wua.slim(model, DATA, widths={"0": 5})
    assert result.units == {"0": (16, 5)}
    assert torch.equal(result.model[0].weight, model[0].weight[stay])
    assert torch.equal(result.model[2].weight, model[2].weight[:, stay])
    assert result.specification.rounds == ({"0": tuple(stay)},)
    assert snapshot(model) == before
    compensated = wua.slim(model, DATA, widths={"0": 5}, fold=True).model
    assert torch.equal(compensated[0].weight, model[0].weight[stay])
    errors = [(slim(DATA[0]) - model(DATA[0])).square().mean().item()
              for slim in (compensated, result.model)]
    assert errors[0] < 0.5 * errors[1]


def test_a_methods_widths_and_no_more_parameters_than_planned():
    model = mlp(4, 32, 3)
    width = wua.recommend_widths(model, DATA, method="rank").widths["0"]
    result = wua.slim(model, DATA)
    assert result.units == {"0": (32, width)} and width < 32
    assert result.params_after == 4 * width + width + 3 * width + 3
    assert result.params_after == sum(weight.numel() for weight in result.model.parameters())


def test_layers_that_share_their_units_and_widths_that_are_refused():
    model, data = twice(6), (DATA[0], DATA[1] % 2)
    assert wua.slim(model, data, widths={"2.0": 2}).model[0].out_features == 2
    with pytest.raises(ValueError, match="^widths: expected one width for 0, 2.0, which share "
                                         "their units, but got 2 and 3$"):
        wua.slim(model, data, widths={"0": 2, "2.0": 3})
    for widths, message in (({"0": 17}, "expected 1 to 16 units of 0, but got 17"),
                            ({"0": 0}, "expected 1 to 16 units of 0, but got 0"),
                            ({"0": 3.0}, "expected 1 to 16 units of 0, but got 3.0"),
                            ({"1": 3}, "expected layers whose units can be cut, but got '1'"),
                            ({"2": 2}, "expected layers whose units can be cut, but got '2' (")):
        with pytest.raises(ValueError) as raised:
            wua.slim(mlp(4, 16, 3), DATA, widths=widths)
        assert str(raised.value).startswith(f"widths: {message}")


def test_nothing_narrower():
    """Each of two units tells one class from the others."""
    model = mlp(2, 2, 3)
    model.load_state_dict({"0.weight": torch.eye(2), "0.bias": torch.zeros(2),
                           "2.weight": torch.eye(3, 2), "2.bias": torch.tensor([0.0, 0.0, 0.5])})
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).repeat(20, 1)
    with pytest.raises(ValueError, match="^method: expected one that finds widths below"):
        wua.slim(model, (x, torch.arange(3).repeat(20)), method="ablation")


@pytest.mark.parametrize("criterion", ["spanning", "taylor", "magnitude", "random", "wanda"])
def test_each_criterion_cuts_by_its_own_order(criterion):
    model = mlp(4, 16, 3)
    order = unit_importance(model, unit_groups(model, DATA[0][:4]), DATA, cross_entropy,
                            criterion=criterion)["0"].argsort(descending=True)
    result = wua.slim(model, DATA, widths={"0": 4}, criterion=criterion)
    assert result.specification.rounds[0]["0"] == tuple(sorted(order[:4].tolist()))


def test_an_old_pickle_of_attention_with_fewer_heads_is_read_in_a_fresh_process(tmp_path):
    """Earlier versions had the class at another path, which is in whole pickled modules."""
    attention = PrunedMultiheadAttention(nn.MultiheadAttention(8, 4, batch_first=True))
    content = pickle.dumps(attention, protocol=2)
    old = content.replace(b"cwua_mlflow.pruning.heads\nPrunedMultiheadAttention\n",
                          b"cwua_mlflow.slimming.heads\nFewerHeads\n")
    assert old != content
    (tmp_path / "old.pkl").write_bytes(old)
    script = ("import pickle; model = pickle.load(open('old.pkl', 'rb')); "
              "print(model.num_heads, tuple(model.out_proj.weight.shape))")
    environment = {**os.environ, "PYTHONPATH": str(Path(wua.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True,
                          text=True, env=environment, check=False)
    assert done.stdout == "4 (8, 8)\n", done.stderr


class Masked(nn.Module):
    """Of two inputs, by name, as MLflow does not serve them."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x, mask):
        return self.down(torch.relu(self.up(x * mask)))


def test_a_slim_network_is_made_again_from_its_files(tmp_path):
    model = Masked()
    batch = {"x": DATA[0], "mask": torch.ones(60, 4), "labels": DATA[1]}
    result = wua.slim(model, [batch], widths={"up": 5})
    save_file(result.model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "structure.json").write_text(result.specification.to_json())
    fresh = Masked()
    before = snapshot(fresh)
    again = wua.load_slim(fresh, tmp_path, batch)
    assert snapshot(fresh) == before and not again.training
    assert torch.equal(again(DATA[0], batch["mask"]), result.model(DATA[0], batch["mask"]))
    with pytest.raises(ValueError, match="^model: expected the factory of the network in .*, but "
                       "it makes another one: "):
        wua.load_slim(mlp(4, 16, 3), _uncut(tmp_path / "whole"), DATA)
    with pytest.raises(ValueError, match="^folder: expected a run's artifacts 'state' with "
                       "model.safetensors, but there is none in nowhere$"):
        wua.load_slim(Masked(), "nowhere", batch)
    whole = wua.load_slim(Masked(), tmp_path / "whole", batch)
    assert torch.equal(whole.up.bias, torch.zeros(16))


def _uncut(folder: Path) -> Path:
    """The files of a network of which nothing was cut."""
    folder.mkdir()
    save_file({name: torch.zeros_like(value) for name, value in Masked().state_dict().items()},
              folder / "model.safetensors")
    return folder


def recommends(monkeypatch, widths: dict[str, int]) -> None:
    monkeypatch.setattr(slimming, "recommend_widths",
                        lambda *_, **__: SimpleNamespace(widths=widths))


@pytest.mark.parametrize(("what", "found", "kept"), [
    ("units,heads", (5, 9, 81), (5, 9, 88)), ("multiple_of=16", (5, 9, 65), (5, 9, 80)),
    (["units", "multiple_of=1"], (5, 9, 65), (5, 9, 65)), ("units", (5, 9, 97), (5, 9, 100)),
    ("same_widths", (5, 9, 65), (9, 9, 72)), ("same_widths=no", (5, 9, 8), (5, 9, 8)),
    (WhatToCut(("units", "heads"), 1, True), (16, 9, 65), (16, 16, 65))])
def test_what_a_method_may_choose(what, found, kept, monkeypatch):
    """Given widths are taken as they are."""
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                          nn.Linear(16, 100), nn.ReLU(), nn.Linear(100, 3))
    recommends(monkeypatch, dict(zip("024", found, strict=True)))
    result = wua.slim(model, DATA, what=what)
    assert [after for _, after in result.units.values()] == list(kept)
    given = wua.slim(model, DATA, what=what, widths={"0": 5, "4": 67})
    assert [after for _, after in given.units.values()] == [5, 16, 67]


@pytest.mark.parametrize("what", ["stream", "units,stream", ("heads", "stream")])
def test_the_models_width_is_cut_where_it_is_asked_for_and_made_again(what, tmp_path):
    """Whatever kinds were asked for then: a network's files do not say."""
    model = Stream()
    with pytest.raises(ValueError, match="^widths: expected layers whose units can be cut, but got "
                       r"'stem' \(blocks.0.0 \(LayerNorm\) normalises over these units"):
        wua.slim(model, DATA, widths={"stem": 7})
    widths = {"stem": 7, "blocks.0.1": 5} if "units" in what else {"stem": 7}
    for fold in (False, True):
        result = wua.slim(model, DATA, widths=widths, what=what, fold=fold)
        assert result.units["stem"] == (12, 7)
        assert result.model.norm.normalized_shape == (7,)
    again = wua.slim(result.model, DATA, widths={"stem": 4}, what=what)
    history = result.specification.then(again.specification)
    save_file(again.model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "structure.json").write_text(history.to_json())
    loaded = wua.load_slim(Stream(), tmp_path, DATA)
    assert torch.equal(loaded(DATA[0]), again.model.eval()(DATA[0]))
    with pytest.raises(ValueError, match="^what: expected units, heads or stream, .* but got "
                       "'streem'; did you mean 'stream'"):
        wua.slim(model, DATA, what="streem")


def test_models_of_transformers_get_one_width_in_all_blocks(monkeypatch):
    """What a configuration can say: so the slim model can be saved by that library too."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=80, num_labels=3)
    model = transformers.BertForSequenceClassification(config).eval()
    data = torch.randint(20, (12, 5)), torch.arange(12) % 3
    names = [f"bert.encoder.layer.{number}.{part}" for part in ("attention.self",
             "intermediate.dense") for number in (0, 1)]
    recommends(monkeypatch, dict(zip(names, (2, 3, 70, 41), strict=True)))
    result = wua.slim(model, data)
    assert [result.units[name] for name in names] == [(4, 4), (4, 4), (80, 72), (80, 72)]
    assert result.reload.reason == "", "heads of width ÷ number stay with the width"
