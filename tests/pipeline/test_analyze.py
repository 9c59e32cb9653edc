"""A factory's model as a run of its own: what the run holds, against figures made by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow.entities import Run
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from tests.pipeline.slimming_cases import tags_of, text_of
from wua_mlflow.config import load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.pipeline import workflow
from wua_mlflow.pipeline.analyze import Analysis, analyze_model, loss_of
from wua_mlflow.tracking.pictures import usage_pictures
from wua_mlflow.tracking.store import Store
from wua_mlflow.usage.analyze import analyze
from wua_mlflow.widths.recommend import effective_widths

PARTS = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def net(): return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
def lazy(): return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(10))
def optional(widths=(3,)): return wide((*widths, 4))
def wide(widths):
    return nn.Sequential(nn.Linear(64, widths[0]), nn.ReLU(), nn.Linear(widths[0], widths[1]),
                         nn.ReLU(), nn.Linear(widths[1], 10))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(50, 8), nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)
    def forward(self, input_ids, attention_mask=None):
        return self.out(torch.relu(self.hidden(self.embedding(input_ids)))).mean(1)

def sentences(seed):
    return [{"input_ids": torch.randint(50, (4, 7)), "labels": torch.randint(3, (4,)),
             "attention_mask": (torch.arange(7) < 5).expand(4, 7).long()} for _ in range(3)]

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)
    def forward(self, x):
        if len(x) != 6:
            raise RuntimeError("six at a time")
        return self.b(self.a(x))

def sixes(seed): return [torch.rand(6, 4) for _ in range(3)]
def shuffled(seed):
    x, y = torch.rand(90, 64), torch.randint(10, (90,))
    return DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
def cross_entropy(outputs, targets): return nn.functional.cross_entropy(outputs, targets)
def squares(weight): return weight ** 2
def records(seed): return [[{"pixels": torch.arange(64.) / 64, "id": n} for n in range(3)]] * 2
def pixels(batch): return torch.stack([record["pixels"] for record in batch])
def left_of_pair(batch):
    inputs, targets = batch
    assert len(inputs) == len(targets)
    return inputs
'''


@pytest.fixture
def store(store, tmp_path):
    (tmp_path / "own.py").write_text(PARTS)
    yield store
    sys.modules.pop("own", None)


def analysed(store: Store, **options: object) -> tuple[Analysis, Run]:
    values = {"model": "own:net", "data": "digits", "null_draws": 0, **options}
    analysis = analyze_model(store, load_settings(None, values))
    return analysis, store.client.get_run(analysis.run_id)


def net(seed: int = 42) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def effective(importance: np.ndarray) -> float:
    """exp of the entropy, in float64."""
    p = importance[importance > 0].astype(np.float64)
    p /= p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def test_the_run_is_a_variant_that_holds_all_of_it(store, monkeypatch):
    monkeypatch.setattr("wua_mlflow.pipeline.analyze.usage_pictures", usage_pictures)
    _, run = analysed(store, null_draws=2, seed=7)
    tags, metrics = run.data.tags, run.data.metrics
    assert (run.info.status, run.info.run_name) == ("FINISHED", "net")
    assert {name: tags[name] for name in tags if name.startswith("wua.")} == {
        "wua.kind": "variant", "wua.variant": "oversized", "wua.version": "0.1.0",
        "wua.step.analyze": "done", "wua.criterion": "output", "wua.null_kind": "re-initialised",
        "wua.task": "multiclass", "wua.flop_convention": tags["wua.flop_convention"]}
    assert metrics["flops/forward"] == 2 * (64 * 16 + 16 * 10)
    assert metrics["params/total"] == 65 * 16 + 17 * 10
    weight, bias = (tensor.detach().double().numpy() for tensor in net(7)[0].parameters())
    mean = (load_data("digits", seed=7).train.inputs.double().numpy() @ weight.T + bias).mean(0)
    assert metrics["usage/effective_weights"] == pytest.approx(
        effective(np.abs(weight) * np.abs(mean)[:, None]), rel=1e-6)
    assert metrics["usage/null_low"] <= metrics["usage/null_share"] <= metrics["usage/null_high"]
    assert "hidden" not in run.data.params
    assert {name: run.data.params[name] for name in ("model", "data", "seed", "criterion")} == {
        "model": "own:net", "data": "digits", "seed": "7", "criterion": "output"}
    paths = {item.path for folder in ("usage", "plots", "")
             for item in store.client.list_artifacts(run.info.run_id, folder)}
    assert {"config.yaml", "usage/layers.json", "plots/layers.png", "plots/importance_0.png",
            "plots/units.png"} <= paths
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "digits train"


def test_the_configuration_gives_the_same_again(store, tmp_path):
    """Also of a factory that takes nothing, and with the weights of a file, from another folder."""
    weights = net(99).state_dict()
    save_file(weights, "mine.safetensors")
    first, run = analysed(store, state="mine.safetensors", criterion="magnitude")
    assert first.usage.effective_weights == pytest.approx(
        effective(weights["0.weight"].abs().numpy()), rel=1e-9)
    path = Path(store.client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path)))
    settings = load_settings(str(path))
    assert settings.state == str(tmp_path / "mine.safetensors")
    assert analyze_model(store, settings).usage.effective_weights == first.usage.effective_weights


@pytest.mark.parametrize(("options", "name", "widths", "units"), [
    ({"model": "own:wide", "hidden": "9,5"}, "oversized 9-5", "9,5", 9),
    ({"model": "own:wide"}, "oversized 64-32", "64,32", 64),
    ({"model": "mlp", "hidden": "8"}, "oversized 8", "8", 8),
    ({"model": "own:optional"}, "optional", None, 3),
    ({"model": "own:optional", "hidden": "6"}, "oversized 6", "6", 6),
    ({"model": "own:net", "hidden": []}, "net", None, 16),
    ({"model": "own:lazy"}, "lazy", None, 16)])
def test_widths_are_given_to_a_factory_that_needs_them(options, name, widths, units, store):
    analysis, run = analysed(store, **options)
    assert (analysis.name, run.info.run_name) == (name, name)
    assert run.data.tags.get("wua.widths") == run.data.params.get("hidden") == widths
    assert next(iter(analysis.usage.layers.values())).units == units


def test_the_first_criterion_gives_the_metrics_and_each_other_a_table(store):
    """Taylor by the task's loss, against autograd over the whole training part at once."""
    analysis, run = analysed(store, criterion="magnitude,own:squares,taylor")
    first = json.loads(text_of(store, run.info.run_id, "usage/layers.json"))
    assert (first["criterion"], run.data.tags["wua.criterion"]) == ("magnitude", "magnitude")
    assert run.data.metrics["usage/effective_weights"] == analysis.usage.effective_weights
    assert 1 < first["data"][0][first["columns"].index("effective_rank")] <= 16
    model = net().double()
    train = load_data("digits", seed=42).train
    functional.cross_entropy(model(train.inputs.double()), train.targets).backward()
    weight, gradient = (each.detach().numpy() for each in (model[0].weight, model[0].weight.grad))
    for criterion, importance, rel in (("magnitude", np.abs(weight), 1e-9),
                                       ("squares", weight ** 2, 1e-9),
                                       ("taylor", np.abs(weight * gradient), 1e-5)):
        assert analysis.usages[criterion].effective_weights == pytest.approx(
            effective(importance), rel=rel)
    for criterion in ("squares", "taylor"):
        table = json.loads(text_of(store, run.info.run_id, f"usage/layers_{criterion}.json"))
        assert table["criterion"] == criterion
        assert [row[table["columns"].index("effective_weights")] for row in table["data"]] == [
            layer.effective_weights for layer in analysis.usages[criterion].layers.values()]
    named, _ = analysed(store, criterion="taylor", loss="own:cross_entropy")
    assert named.usage.effective_weights == analysis.usages["taylor"].effective_weights


@pytest.mark.parametrize(("data", "outputs", "loss"), [
    ("usecase", "Sigmoid", functional.binary_cross_entropy),
    ("usecase", "Identity", functional.binary_cross_entropy_with_logits),
    ("diabetes", "Identity", functional.mse_loss),
    ("iris", "Identity", functional.cross_entropy)])
def test_the_tasks_own_loss(data, outputs, loss):
    split = load_data(data, seed=1)
    model = nn.Sequential(nn.Linear(*split.features, split.outputs), getattr(nn, outputs)())
    settings = load_settings(None, {"data": data, "criterion": "output,taylor"})
    found = loss_of(settings, model, split, torch.device("cpu"))
    inputs, made = split.train[:5], torch.Generator().manual_seed(1)
    outputs = torch.rand(5, split.outputs, generator=made)
    assert found(outputs, inputs[1]) == loss(outputs, inputs[1])
    without = settings.model_copy(update={"criterion": "output,wanda"})
    assert loss_of(without, model, split, torch.device("cpu")) is None


def test_the_users_batches_go_to_the_analysis_untouched(store):
    analysis, run = analysed(store, model="own:Words", data="own:sentences",
                             loss="own:cross_entropy", criterion="input,taylor", null_draws=1)
    import own  # type: ignore[import-not-found]

    torch.manual_seed(42)
    model = own.Words()
    torch.manual_seed(42)
    data = own.sentences(42)
    expected = analyze(model, data, criterion=["input", "taylor"], loss=functional.cross_entropy)
    for name, usage in expected.items():
        assert analysis.usages[name].effective_weights == usage.effective_weights
    assert run.data.metrics["flops/forward"] == 2 * 7 * (8 * 6 + 6 * 3)
    assert run.info.run_name == "Words"
    assert run.inputs.dataset_inputs == []
    assert "wua.task" not in run.data.tags


def test_layers_and_batches_of_a_kind_of_ones_own(store):
    """The output layer where it is named; the run's configuration says both."""
    analysis, run = analysed(store, data="own:records", layers="2, 0,2",
                             batch_to_inputs="own:pixels")
    assert list(analysis.usage.layers) == ["0", "2"]
    model = net()
    x = torch.arange(64.).repeat(6, 1) / 64
    for name, layer, inputs in (("0", model[0], x), ("2", model[2], model[:2](x))):
        mean = layer(inputs).mean(0).abs()[:, None]
        assert analysis.usage.layers[name].effective_weights == pytest.approx(
            effective((layer.weight.abs() * mean).detach().numpy()), rel=1e-5)
    assert run.data.metrics["flops/forward"] == 2 * (64 * 16 + 16 * 10)
    assert run.data.params["batch_to_inputs"] == "own:pixels"
    again = load_settings(None, yaml.safe_load(text_of(store, run.info.run_id, "config.yaml")))
    assert again.layers == ("2", "0")
    of_a_split, _ = analysed(store, batch_to_inputs="own:left_of_pair")  # is given whole batches
    assert of_a_split.usage.layers["0"].weights == 64 * 16
    assert not of_a_split.remarks, "FLOPs are counted"


def test_a_shuffled_loader_gives_the_same_again_and_leaves_the_stream(store):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again = (analysed(store, data="own:shuffled", null_draws=2)[0].usage for _ in range(2))
    assert first.null == again.null
    assert first.effective_weights == again.effective_weights
    assert torch.equal(torch.get_rng_state(), before)


def test_flops_that_cannot_be_counted_are_said(store):
    analysis, run = analysed(store, model="own:Odd", data="own:sixes")
    assert analysis.remarks == ("FLOPs not counted: RuntimeError: six at a time",)
    assert "flops/forward" not in run.data.metrics
    assert run.data.metrics["params/total"] == 25 + 12


def test_the_run_of_mlflow_run_is_the_variant(store, monkeypatch):
    """Which was only analysed: not a trained one."""
    inherited = store.client.create_run(store.experiment_id, run_name="grumpy-fish-7").info.run_id
    store.client.log_param(inherited, "model", "own:net")
    monkeypatch.setenv("MLFLOW_RUN_ID", inherited)
    analysis, run = analysed(store)
    assert analysis.run_id == inherited
    assert (run.info.status, run.info.run_name) == ("FINISHED", "net")
    assert run.data.tags["wua.kind"] == "variant"
    monkeypatch.delenv("MLFLOW_RUN_ID")
    with pytest.raises(ValueError, match=f"^run_id: expected a variant that was trained here, but "
                                         f"{inherited} \\(net\\) was only analysed; name the "
                                         "model again: wua analyze --model ...$"):
        workflow.analyze_run(store, load_settings(None, {"run_id": inherited}))


def test_a_trained_run_takes_the_new_options_too(store):
    quick = {"seeds": 1, "null_draws": 0, "epochs": 2}
    original = workflow.train_run(store, load_settings(None, quick))
    named = load_settings(None, {"run_id": original.run_id, "criterion": "taylor,output",
                                 "null_draws": 0, "slim_epochs": 2})
    slim = workflow.slim_run(store, named).variants[-1]  # which measures itself
    analysis = workflow.analyze_run(store, named)
    model, train = original.model, original.recipe.split.train
    model.zero_grad()
    functional.binary_cross_entropy(model(train.inputs), train.targets).backward()
    weight = model.fc1.weight  # type: ignore[union-attr]
    expected = (weight * weight.grad).abs().detach().numpy()  # type: ignore[operator]
    assert analysis.usage.effective_weights == pytest.approx(effective(expected), rel=1e-5)
    assert analysis.usage.layers["fc1"].effective_rank is not None
    assert tags_of(store, original.run_id)["wua.criterion"] == "taylor"
    second = json.loads(text_of(store, original.run_id, "usage/layers_output.json"))
    assert second["criterion"] == "output"
    rule = {name: effective_widths(usage, (10,), (("fc1",),))
            for name, usage in analysis.usages.items()}
    assert rule["taylor"] != rule["output"], "or this shows nothing"
    assert slim.widths == rule["taylor"]
