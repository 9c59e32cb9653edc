"""Which pictures a model gets."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.networks import Layers, mlp
from wua_mlflow.pipeline.analyze import output_names
from wua_mlflow.tracking.log import layers_table, write_files
from wua_mlflow.tracking.pictures import usage_pictures
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.usage.results import ModelUsage

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_network_gets_the_pictures_that_can_be_read(tmp_path):
    """A diagram is of a chain of linear layers, units are drawn where a layer has several."""
    torch.manual_seed(0)
    rows = torch.rand(20, 3)
    model = mlp(3, 5, 4, 2)
    files = usage_pictures(model, analyze(model, rows))
    assert set(files) == {f"plots/{name}.png" for name in (
        "layers", "units", "importance_0", "importance_2", "network")}
    (tmp_path / "plots").mkdir()
    for path, save in files.items():
        save(tmp_path / path)
        assert (tmp_path / path).read_bytes().startswith(PNG)
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    assert set(usage_pictures(cnn, analyze(cnn, torch.rand(5, 1, 4, 4)))) == {
        "plots/layers.png", "plots/units.png", "plots/importance_0.png"}
    branches = Layers(lambda self, x: self.c(torch.cat([self.a(x), self.b(x)], 1)),
                      a=nn.Linear(3, 2), b=nn.Linear(3, 4), c=nn.Linear(6, 1))
    narrow = mlp(3, 1, 1, 2)
    assert "plots/network.png" not in usage_pictures(branches, analyze(branches, rows))
    assert "plots/units.png" not in usage_pictures(narrow, analyze(narrow, rows))


def test_layers_with_odd_names_have_pictures_of_their_own(tmp_path):
    """Beside their keys in the table; names that matplotlib would read as formulas are text."""
    names = ["x" * 300, "x" * 299 + "y", "../a\n|b", "FC", "fc", "$\\frac$", "日\x1b"]
    fc = next(iter(analyze(mlp(3, 4, 2), torch.rand(20, 3)).layers.values()))
    usage = ModelUsage("output", 20, {name: replace(fc, name=name) for name in names}, {})
    table = json.loads(layers_table(usage))
    keys = [row[table["columns"].index("key")] for row in table["data"]]
    files = usage_pictures(nn.Flatten(), usage)
    assert set(files) == {"plots/layers.png", "plots/units.png", *(
        f"plots/importance_{key}.png" for key in keys)}
    drawn = ("plots/layers.png", f"plots/importance_{keys[0]}.png",
             f"plots/importance_{keys[2]}.png", "plots/units.png")
    write_files(tmp_path, {path: files[path] for path in drawn})


def _chain(layers: int, width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


@pytest.mark.parametrize(("layers", "width", "drawn"), [
    (20, 2, True), (21, 2, False), (23, 2, False), (2, 15, True), (3, 16, False)])
def test_the_diagram_is_for_networks_of_few_layers_and_units(layers, width, drawn):
    """And the first twenty layers get a histogram; all of more a figure to explore."""
    model = _chain(layers, width)
    files = usage_pictures(model, analyze(model, torch.rand(5, width)))
    assert set(files) == {"plots/layers.png", "plots/units.png", *["plots/network.png"] * drawn,
                          *["plots/layers.html"] * (layers > 21), *(
        f"plots/importance_{i}.png" for i in range(min(20, layers - 1)))}


@pytest.mark.parametrize(("layers", "drawn"), [(1000, True), (1001, False)])
def test_more_rows_than_can_be_read_are_not_drawn(layers, drawn):
    layer = next(iter(analyze(_chain(2, 2), torch.rand(5, 2)).layers.values()))
    named = {f"fc{i}": replace(layer, name=f"fc{i}") for i in range(layers)}
    files = usage_pictures(nn.Flatten(), ModelUsage("output", 5, named, {}))
    assert ("plots/layers.png" in files) == ("plots/units.png" in files) == drawn
    assert len(files) == 20 + 1 + 2 * drawn
    assert "plots/layers.html" in files, "under the pointer any number of layers has names"


@pytest.mark.parametrize(("classes", "outputs", "names"), [
    (("no", "yes"), 1, ("yes",)), (("0", "1"), 1, ("class 1",)), ((), 1, ()),
    (("a", "1", "c"), 3, ("a", "class 1", "c"))])
def test_outputs_are_named_by_their_classes(classes, outputs, names):
    assert output_names(SimpleNamespace(classes=classes, outputs=outputs)) == names
