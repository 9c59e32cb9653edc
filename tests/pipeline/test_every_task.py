"""Each task with a small real network, trained to something better than a constant answer."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from wua_mlflow.config import load_settings
from wua_mlflow.pipeline.networks import PruningPlan, from_scratch, pruned_and_tuned
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.pipeline.replicates import train_one
from wua_mlflow.pipeline.seeds import SharedExamples
from wua_mlflow.pruning.cut import unit_groups
from wua_mlflow.training.evaluation import Evaluation, Objective, evaluate_batches
from wua_mlflow.widths.recommend import recommend_widths

NAME = "every_task"


def made(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def three(part, sizes=(320, 80, 160)):
    """Of a function of size and seed the three parts; ``data`` takes the seed, as a user's does."""
    return lambda seed: [part(size, seed + number) for number, size in enumerate(sizes)]


def labels(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 8, generator=made(seed))
    return x, (x @ torch.randn(8, 4, generator=made(0)) > 0.5).long()


def amounts(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=made(seed))
    return x, x @ torch.randn(6, 3, generator=made(0)) * torch.tensor([1.0, 10.0, 0.1])


def tags(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(1, 10, (n, 6), generator=made(seed))
    y = (x % 3).clone()
    y[:, 4:] = -100
    return x, y


def text(n: int, seed: int) -> list[dict[str, Tensor]]:
    first = torch.randint(8, (n, 1), generator=made(seed))
    ids = (first + torch.arange(8)) % 8
    return [{"input_ids": rows, "labels": rows} for rows in ids.split(32)]


def masks(n: int, seed: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 8, 8, generator=made(seed))
    return x, (x[:, 0] > 0.5).long()


class Sums(Dataset):
    """Dict rows of sequences: is their sum odd? The mask says what is padding."""

    def __init__(self, n: int, seed: int) -> None:
        self.ids = torch.randint(1, 9, (n, 5), generator=made(seed))
        self.ids[:, 3:] = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if i >= len(self):
            raise IndexError
        return {"input_ids": self.ids[i], "attention_mask": (self.ids[i] > 0).long(),
                "labels": (self.ids[i, 0] > 4).long()}


def pairs(n: int, seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    left, right = torch.rand(2, n, 3, generator=made(seed))
    return (left, right), (left * right).sum(1)


class Tokens(nn.Module):
    """Takes what Hugging Face's models take and gives what they give."""

    def __init__(self, units: int, classes: int, pooled: bool = False) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(10, 12), nn.Linear(12, units)
        self.out, self.pooled = nn.Linear(units, classes), pooled

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None,
                labels: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        if self.pooled:
            x = x[:, 0]
        logits = self.out(torch.relu(self.hidden(x)))
        return {"logits": logits, "hidden": x}


class Two(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(6, units), nn.Linear(units, 1)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"product": self.out(torch.relu(self.both(torch.cat([left, right], 1))))[:, 0]}


PARTS = {
    "labels": three(labels), "amounts": three(amounts), "tags": three(tags), "text": three(text),
    "masks": three(masks), "sums": three(Sums), "pairs": three(pairs),
    "loaders": lambda seed: [DataLoader(part, batch_size=20, shuffle=not number)
                             for number, part in enumerate(three(Sums)(seed))],
    "tagger": lambda widths: Tokens(widths[0], 3), "writer": lambda widths: Tokens(widths[0], 8),
    "classifier": lambda widths: Tokens(widths[0], 2, pooled=True),
    "segmenter": lambda widths: nn.Sequential(nn.Conv2d(1, widths[0], 1), nn.ReLU(),
                                              nn.Conv2d(widths[0], 2, 1)),
    "two": lambda widths: Two(widths[0]),
    "distance": lambda outputs, targets: (outputs["product"] - targets).abs().mean(),
    "nearness": lambda targets, outputs: -np.abs(outputs["product"] - targets)}
CUSTOM = {"task": "custom", "loss": f"{NAME}:distance", "score": f"{NAME}:nearness"}
CASES = {  # data, model, further settings, task, task of a decision, score name
    "labels": ("labels", "mlp", {}, "multilabel", "binary", ""),
    "labels by f1": ("labels", "mlp", {"score": "f1"}, "multilabel", "binary", "f1"),
    "amounts": ("amounts", "mlp", {}, "regression", "regression", ""),
    "tags": ("tags", f"{NAME}:tagger", {}, "token_classification", "multiclass", ""),
    "text": ("text", f"{NAME}:writer", {}, "language_modeling", "language_modeling", "perplexity"),
    "masks": ("masks", f"{NAME}:segmenter", {}, "segmentation", "segmentation", "iou"),
    "dicts": ("sums", f"{NAME}:classifier", {}, "multiclass", "multiclass", ""),
    "loaders": ("loaders", f"{NAME}:classifier", {}, "multiclass", "multiclass", ""),
    "custom": ("pairs", f"{NAME}:two", CUSTOM, "custom", "custom", f"{NAME}:nearness")}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.setitem(sys.modules, NAME, SimpleNamespace(**PARTS))  # type: ignore[arg-type]


def recipe_of(name: str, **options: object) -> Recipe:
    data, model, further, *_ = CASES[name]
    return load_recipe(load_settings(None, {
        "data": f"{NAME}:{data}", "model": model, "hidden": "24", "lr": 0.02, "batch_size": 32,
        **further, **options}))


def constant(result: Evaluation, recipe: Recipe) -> float:
    """The score of a constant answer: the commonest class, the mean, or what the run keeps."""
    if result.task == "custom":  # the mean, of a score of minus the absolute error
        targets = torch.cat(list(recipe.split.test.all_targets()))  # type: ignore[attr-defined]
        return -float((targets - targets.mean()).abs().mean())
    if result.score_name in ("perplexity", "iou"):
        mean = float(result.targets.mean())
        return float(np.exp(-mean)) if result.score_name == "perplexity" else mean
    if result.task == "regression":
        return 0.0
    if result.score_name == "f1":
        return 0.0
    return float(np.unique(result.targets, return_counts=True)[1].max() / len(result.targets))


@pytest.mark.parametrize("name", CASES)
def test_it_learns_more_than_a_constant_answer_knows(name, module):
    recipe = recipe_of(name)
    *_, task, decision, score = CASES[name]
    assert recipe.split.task == task
    trained = train_one(recipe, (24,), 12, seed=3)
    result = recipe.evaluate(trained.model, recipe.split.test, trained.kind)
    assert (result.task, result.score_name) == (decision, score)
    better = result.score - constant(result, recipe)
    assert better < -1 if score == "perplexity" else better > 0.1
    if result.groups is not None:
        assert len(set(result.groups.tolist())) == len(recipe.split.test)
    again = train_one(recipe, (24,), 12, seed=3)
    assert recipe.evaluate(again.model, recipe.split.test, again.kind).score == result.score


@pytest.mark.parametrize("name", ["labels", "amounts", "tags", "text", "masks", "loaders"])
def test_a_cut_is_made_and_judged_on_what_belongs_together(name, module):
    recipe = recipe_of(name)
    root = from_scratch(recipe, (24,), 6)
    group = unit_groups(root(0, 42).model, recipe.example(root(0, 42).model)).groups[-1]
    make = pruned_and_tuned(recipe, root, root, PruningPlan(
        {group.name: group.units // 2}, 3, fold=True, distill=name in ("labels", "loaders")))
    sides = [recipe.evaluate(trained.model, recipe.split.test, trained.kind)
             for trained in (root(0, 42), make(0, 42))]
    examples = SharedExamples(sides[0].task, sides[0].targets, groups=sides[0].groups)
    verdict = examples.verdict(*(side.judged[None] for side in sides), recipe.settings)
    assert verdict.examples == len(sides[0].scores)
    assert verdict.groups == (None if sides[0].groups is None else len(recipe.split.test))
    assert verdict.low <= verdict.delta <= verdict.high
    if sides[0].score_name == "perplexity":
        values = [side.score for side in sides]
        assert verdict.delta == pytest.approx(1 - values[1] / values[0])


@pytest.mark.parametrize("method", ["projection", "ablation", "rank"])
@pytest.mark.parametrize("name", ["custom", "labels by f1", "masks", "text"])
def test_widths_are_measured_by_the_tasks_score(name, method, module):
    recipe = recipe_of(name)
    trained = train_one(recipe, (24,), 6, seed=3)
    objective = recipe.objective(trained.kind)
    found = recommend_widths(
        trained.model, recipe.split.validation.sample(trained.model), method=method,
        loss=objective.loss, task=recipe.split.task, score=recipe.settings.score,
        fit_data=None if method == "ablation" else recipe.split.train.sample(trained.model))
    assert all(1 <= layer.width <= layer.units for layer in found.layers) and found.layers


def seen_by_score(targets: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    assert targets.shape == predictions.shape
    return (targets == predictions).reshape(len(targets), -1).mean(1)


@pytest.mark.parametrize(("task", "kind", "outputs", "targets"), [
    ("segmentation", "logits", torch.rand(2, 3, 4, 4), torch.randint(3, (2, 1, 8, 8))),
    ("language_modeling", "logits", torch.rand(2, 9, 5), torch.randint(9, (2, 5))),
    ("language_modeling", "next_token_logits", torch.rand(2, 5, 9), torch.randint(9, (2, 5)))])
def test_a_score_of_ones_own_gets_predictions_beside_their_targets(
        task, kind, outputs, targets, module, monkeypatch):
    monkeypatch.setattr(sys.modules[NAME], "seen", seen_by_score, raising=False)
    objective = Objective(task, kind, f"{NAME}:seen")

    class Gives(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return outputs

    result = evaluate_batches(Gives(), (torch.zeros(2, 1), targets), objective)
    assert result.scores.shape == (2,) and 0 <= result.score <= 1


def test_the_users_loss_trains(module):
    plain, weighted = recipe_of("tags"), recipe_of("custom")
    assert plain.own_loss is None and weighted.own_loss is not None
    with pytest.raises(ValueError, match="^score: expected package.module:function"):
        recipe_of("custom", score=None)
    with pytest.raises(ValueError, match="^score: expected one of accuracy.* but got 'r2'"):
        recipe_of("tags", score="r2")


def test_a_loss_of_the_outputs_own(module, monkeypatch):
    class WithLoss(Two):
        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            outputs = super().forward(left, right)
            return {**outputs, "loss": (outputs["product"] - (left * right).sum(1)).abs().mean()}

    monkeypatch.setattr(sys.modules[NAME], "two", lambda widths: WithLoss(widths[0]))
    recipe = recipe_of("custom", loss="")
    trained = train_one(recipe, (24,), 4, seed=0)
    assert trained.records[-1].train_loss < trained.records[0].train_loss
