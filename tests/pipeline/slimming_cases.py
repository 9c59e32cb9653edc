"""What the tests of slimming share: small data, factories, variants with and without a run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from wua_mlflow.config import Settings, load_settings
from wua_mlflow.data.datasets import DataSplit
from wua_mlflow.pipeline import analyze, publish, train
from wua_mlflow.pipeline.compare import compare_variants
from wua_mlflow.pipeline.networks import NetworkFactory, from_scratch
from wua_mlflow.pipeline.recipe import Recipe, load_recipe
from wua_mlflow.pipeline.replicates import Trained, train_replicates
from wua_mlflow.pipeline.train import TrainingPlan, train_variant
from wua_mlflow.pipeline.variant import ModelVariant
from wua_mlflow.tracking.models import NotExportable, log_model
from wua_mlflow.tracking.store import Store, connect

HERE = "tests.pipeline.slimming_cases"
CENTRES = np.random.default_rng(5).normal(size=(3, 6)) * 1.5
QUICK = {"data": f"{HERE}:blobs", "hidden": "8", "epochs": 3, "seeds": 1, "null_draws": 0,
         "lr": 0.03, "batch_size": 32, "margin": 0.1}


def blobs(seed: int, sizes: tuple[int, ...] = (160, 80, 200)) -> list[tuple[Any, Any]]:
    """Three classes around three centres in six dimensions; integer targets."""
    draw = np.random.default_rng(seed)
    return [(torch.tensor(CENTRES[classes] + draw.normal(size=(len(classes), 6))).float(),
             torch.tensor(classes)) for classes in (np.arange(size) % 3 for size in sizes)]


def many(seed: int) -> list[tuple[Any, Any]]:
    """The same with enough validation examples for a margin of 0.1."""
    return blobs(seed, (160, 400, 200))


def one_class(seed: int) -> list[tuple[Any, Any]]:
    """The same, but all test examples are of class 0."""
    train, validation, (points, classes) = blobs(seed)
    return [train, validation, (points, torch.zeros_like(classes))]


def net() -> nn.Sequential:
    """A factory of nothing."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def trained_elsewhere() -> nn.Sequential:
    """The factory's network, trained by somebody."""
    torch.manual_seed(3)
    model, (x, y) = net(), blobs(42)[0]
    steps = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(40):
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        steps.step()
    return model


def uncuttable() -> nn.Sequential:
    """A network without hidden units."""
    return nn.Sequential(nn.Linear(6, 3))


def branched(widths: tuple[int, ...]) -> nn.Sequential:
    """One width sets two layers, the second of twice as many units."""
    return nn.Sequential(nn.Linear(6, widths[0]), nn.ReLU(), nn.Linear(widths[0], 2 * widths[0]),
                         nn.ReLU(), nn.Linear(2 * widths[0], 3))


def ignoring(widths: tuple[int, ...]) -> nn.Sequential:
    return net()


def settings_of(**options: object) -> Settings:
    return load_settings(None, {**QUICK, **options})


def recipe_of(**options: object) -> Recipe:
    return load_recipe(settings_of(**options))


def variant_of(recipe: Recipe, make: NetworkFactory | None = None) -> ModelVariant:
    """An original that was trained and is in no store; its networks are made anew each time."""
    settings = recipe.settings
    make = make or from_scratch(recipe, settings.hidden, settings.epochs)
    trained = make(0, settings.seed)
    test = recipe.evaluate(trained.model, recipe.split.test, trained.kind)
    replicates = train_replicates(recipe, make, (trained, test), count=settings.seeds)
    return ModelVariant("0" * 32, "0", "oversized", "oversized", recipe, trained, test, replicates,
                   {"wua.widths": ",".join(map(str, settings.hidden))}, {}, make)


def original_in(store: Store, **options: object) -> ModelVariant:
    """An original that was trained, with its run."""
    settings = settings_of(**options)
    recipe = load_recipe(settings)
    return train_variant(store, recipe, TrainingPlan("oversized", settings.hidden, settings.epochs,
                                     from_scratch(recipe, settings.hidden, settings.epochs)))


def with_split(variant: ModelVariant, change: Callable[[DataSplit], DataSplit]) -> ModelVariant:
    return replace(variant, recipe=replace(variant.recipe, split=change(variant.recipe.split)))


def weights_of(network: ModelVariant | Trained | nn.Module) -> dict[str, torch.Tensor]:
    return (network if isinstance(network, nn.Module) else network.model).state_dict()


def same(first: Trained | nn.Module, second: Trained | nn.Module) -> bool:
    """Whether two networks have the very same weights."""
    a, b = weights_of(first), weights_of(second)
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def without_exports(patch: pytest.MonkeyPatch) -> None:
    """No pictures, fidelity or exported models, which take longer than the networks."""
    def refused(*_: object, **__: object) -> None:
        raise NotExportable("model: not exported in this test")

    patch.setattr(analyze, "usage_pictures", lambda *_, **__: {})
    patch.setattr(analyze, "fidelity_metrics", lambda *_: ({}, ""))
    patch.setattr(publish, "report_pictures", lambda *_, **__: {"comparison": b"picture"})
    patch.setattr(publish, "_pages", lambda *_: {})
    patch.setattr(publish, "plot_answer", lambda *_: Figure((0.1, 0.1)))
    patch.setattr(train, "log_model", refused)


def with_exports(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(train, "log_model", log_model)


def tags_of(store: Store, run_id: str | None) -> dict[str, str]:
    return store.client.get_run(str(run_id)).data.tags


def text_of(store: Store, run_id: str, path: str) -> str:
    return Path(store.client.download_artifacts(run_id, path)).read_text(encoding="utf-8")


@contextmanager
def folder_with_store(folder: Path, migrated: Path) -> Iterator[None]:
    """The current folder, with an MLflow store that lasts for a module's tests."""
    shutil.copy(migrated, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@contextmanager
def store_at(folder: Path, migrated: Path) -> Iterator[Store]:
    """A store that lasts for a module's tests, without pictures and exported models."""
    with folder_with_store(folder, migrated), pytest.MonkeyPatch.context() as patch:
        without_exports(patch)
        yield connect("slimming")


def judging(outcomes: Sequence[str], pairs: list[tuple[str, str]]) -> Callable:
    """``compare_variants`` with these outcomes, one a call; what it was given is written down."""
    remaining = iter(outcomes)

    def compared(store, original, slim, **options):
        comparison, variants = compare_variants(store, original, slim, **options)
        pairs.append((original.run_id, slim.run_id))
        artifact = replace(comparison.artifact, outcome=next(remaining))
        return replace(comparison, recipe=None, artifact=artifact), variants

    return compared
