"""The step ``slim``: budgets, what is trained beside what is cut, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.slimming_cases import (  # noqa: F401 - store is a fixture
    HERE,
    QUICK,
    original_in,
    recipe_of,
    same,
    settings_of,
    store,
    tags_of,
    text_of,
    variant_of,
)
from wua_mlflow.cli.main import main
from wua_mlflow.config import load_settings
from wua_mlflow.pipeline import slim as slim_module
from wua_mlflow.pipeline import target_widths, workflow
from wua_mlflow.pipeline.networks import PruningPlan, pruned_and_tuned
from wua_mlflow.pipeline.slim import check_slimming
from wua_mlflow.pipeline.variant import load_variant
from wua_mlflow.pipeline.workflow import run_pipeline
from wua_mlflow.pruning.cut import Specification
from wua_mlflow.tracking.names import ArtifactPath
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import Store
from wua_mlflow.training import fit as fit_module
from wua_mlflow.widths import recommend as recommend_module


def test_nothing_narrower_at_all(
    store: Store, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """The pipeline says so, and ends well; the gate leaves the question open."""
    code = main(["run", "--data", QUICK["data"], "--hidden", "1", "--epochs", "1", "--seeds", "1",
                 "--width-method", "rank", "--null-draws", "0", "--experiment", "slimming",
                 "--gate"])
    assert code == 4
    said = "The network has one unit in every layer; no width is below that."
    assert capsys.readouterr().out == f"{said}\n"
    row = runs("slimming", "pipeline").iloc[0]
    tags = tags_of(store, row["run_id"])
    assert tags["mlflow.note.content"] == f"**No narrower network.** {said}"
    assert row["status"] == "FINISHED"
    assert "wua.result" not in tags and "wua.verdict" not in tags
    assert len(runs("slimming")) == 1


def test_equal_training_flops(store: Store) -> None:  # noqa: F811
    """Scratch-B: what is trained is at most what the original was, and less than an epoch below.

    A sample of 6-16-3, by hand: forward 2·(6·16 + 16·3); backward all weights' gradients, and the
    second layer's inputs'.
    """
    outcome = run_pipeline(store, settings_of(hidden="16", slim_hidden="5", budget="flops",
                                              epochs=4))
    original, slim = outcome.variants[0], outcome.variants[-1]

    def a_sample(units: int) -> int:
        forward = 2 * (6 * units + units * 3)
        return 2 * forward + 2 * units * 3

    assert original.metrics["flops/training"] == a_sample(16) * 160 * 4
    assert slim.settings.epochs == 4 * a_sample(16) // a_sample(5) == 12
    left = original.metrics["flops/training"] - slim.metrics["flops/training"]
    assert 0 <= left < a_sample(5) * 160
    assert [one.settings.epochs for one in outcome.variants] == [4, 12, 12]


def test_the_networks_that_are_cut_are_those_that_were_judged(
    store: Store, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    """The original is not trained a second time to be cut: a trainer may give another one."""
    from wua_mlflow.pipeline import recipe

    trained = []
    fit = fit_module.fit
    monkeypatch.setattr(recipe, "fit", lambda model, *given, **named:
                        trained.append(model[0].out_features) or fit(model, *given, **named))
    run_pipeline(store, settings_of(how="prune", slim_hidden="5", slim_epochs=1))
    assert trained == [8, 8, 5, 5, 5]  # the original, its two controls, the cut in both ways


@pytest.mark.slow
def test_where_it_came_from_is_a_comment_in_the_config(store: Store) -> None:  # noqa: F811
    outcome = run_pipeline(store, settings_of(how="prune", slim_hidden="5", slim_epochs=1))
    original, slim = outcome.variants[0], outcome.variants[-1]
    assert text_of(store, slim.run_id, "config.yaml").startswith(
        f"# Cut from the network that run {original.run_id} left (oversized 8, 3 epochs).\n"
        f"# Both again: the original's config.yaml with how: prune, slim_hidden: [5], "
        f"slim_epochs: 1\n")
    path = "again.yaml"
    Path(path).write_text(text_of(store, original.run_id, "config.yaml"), encoding="utf-8")
    again = run_pipeline(store, load_settings(path, {
        "how": "prune", "slim_hidden": "5", "slim_epochs": 1}))
    for found, one in zip(again.variants[-1].model.parameters(), slim.model.parameters(),
                          strict=True):
        assert torch.equal(found, one)


def test_what_a_method_saw_is_kept_where_it_finds_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    def all_of_them(*given: Any, **named: Any) -> Any:
        real = recommend(*given, **named)
        return replace(real, layers=tuple(replace(one, width=one.units) for one in real.layers),
                       skipped={"2.rnn": "no method sees it", "3.rnn": "no method sees it"})

    recommend = recommend_module.recommend_widths
    monkeypatch.setattr(target_widths, "recommend_widths", all_of_them)
    outcome = run_pipeline(store, settings_of(hidden="6", width_method="rank", epochs=1, seeds=1))
    assert "; *.rnn (2): no method sees it." in outcome.slimmed.ended
    kept = json.loads(text_of(store, str(outcome.run_id), ArtifactPath.WIDTHS))
    assert [one["width"] for one in kept["widths"]] == [6]
    assert kept["recommendation"]["layers"][0]["curve"]["widths"]


@pytest.mark.parametrize(("given", "message"), [
    ({"distill": True, "how": "rebuild"},
     "distill: expected how=prune beside it, since a rebuilt network is the control that learns "
     "from the data alone, but got how=rebuild"),
    ({"distill": True, "how": "prune", "train": "own:trainer"},
     "distill: expected the built-in trainer, but got train=own:trainer"),
    ({"fold": True, "how": "rebuild"},
     "fold: expected how=prune beside it, since in a rebuilt network there is nothing to fold, but "
     "got how=rebuild"),
    ({"budget": "flops", "how": "prune"},
     "budget: expected epochs where the network is cut and fine-tuned, but got flops; equal "
     "training FLOPs are for how=rebuild"),
    ({"budget": "flops", "how": "rebuild", "slim_epochs": 5},
     "budget: flops sets the epochs of the slim network, so expected no slim_epochs, but got 5"),
    ({"rounds": 2, "slim_hidden": "4,2", "how": "prune"},
     "rounds: expected slim_hidden=auto, since each round needs widths of its own, but got 4,2"),
    ({"register": "team/digits", "how": "prune"},
     "register: expected a name without any of / : ?, but got 'team/digits'"),
    ({"margin": 1}, "margin: expected a number of at least 0 and below 1, but got 1"),
    ({"margin": -0.01}, "margin: expected a number of at least 0 and below 1, but got -0.01"),
    ({"confidence": 1}, "confidence: expected a number above 0 and below 1, but got 1"),
    ({"confidence": 0}, "confidence: expected a number above 0 and below 1, but got 0"),
    ({"slim_hidden": "0"},
     "slim_hidden: expected auto, or whole numbers of at least 1, e.g. 40,20, but got '0'"),
])
def test_what_does_not_fit_together(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_slimming(settings_of(**given))
    assert str(caught.value) == message


@pytest.mark.parametrize(("given", "message"), [
    ({"slim_hidden": "4,4,4", "how": "prune"},
     "slim_hidden: expected 1 widths, as the original has (8), but got 3 (4,4,4)"),
    ({"data": f"{HERE}:one_class"},
     "test data: expected examples of at least two classes, but all 200 are of class 0; an "
     "accuracy on one class says nothing of the others"),
])
def test_bad_input_ends_the_pipeline_in_one_line(
    store: Store, given: dict[str, object], message: str  # noqa: F811
) -> None:
    with pytest.raises(ValueError) as caught:
        run_pipeline(store, settings_of(**{"epochs": 1, **given}))
    assert str(caught.value) == message
    assert runs("slimming", "pipeline").iloc[0]["status"] == "FAILED"


def test_the_step_slim_cuts_the_network_that_its_run_holds(store: Store) -> None:  # noqa: F811
    original = original_in(store, seeds=2, epochs=2)
    given = {"run_id": original.run_id, "how": "prune", "slim_hidden": "3", "slim_epochs": "1",
             "distill": "true", "fold": "false"}
    slim = workflow.slim_run(store, load_settings(None, given)).variants[-1]
    history = Specification.from_json(text_of(store, slim.run_id, ArtifactPath.STRUCTURE))
    assert history.summary == "fc1 3"
    assert (slim.settings.epochs, len(slim.replicates)) == (3, 2)
    expected = [
        pruned_and_tuned(
            slim.recipe, original.make, original.make, PruningPlan({"fc1": 3}, 1, distill=distill)
        )(0, 42)
        for distill in (True, False)
    ]
    assert [same(slim.model, one) for one in expected] == [True, False]


def test_how_the_slim_network_is_trained_is_nothing_to_the_controls(
    store: Store,  # noqa: F811
) -> None:
    """A learning rate for fine-tuning would make weak controls; another seed is of the search."""
    original = original_in(store)
    asked = settings_of(how="prune", slim_hidden="4", slim_epochs=1, lr=1e-30, seed=7, seeds=3,
                        optimizer="sgd")
    found, networks = slim_module.slim_variant(store, original, None, settings=asked,
                                               pipeline=None)
    *controls, slim = [networks[each.run_id] for each in found.variants[1:]]
    for one in controls:
        assert (one.settings.lr, one.settings.optimizer, one.settings.seed) == (0.03, "adam", 42)
        assert one.test.score > 0.7
    assert (slim.settings.lr, slim.settings.optimizer) == (1e-30, "sgd")
    assert (slim.settings.seed, slim.settings.seeds) == (42, 1)
    again = load_variant(store, slim.run_id)
    inputs = slim.recipe.split.test.inputs
    assert torch.equal(again.model(inputs), slim.model(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("given", [
    {"data": "digits", "model": "cnn", "hidden": "8,12", "lr": 0.01, "distill": True},
    {"data": "breast_cancer", "hidden": "16,8", "lr": 0.01, "rounds": 2, "distill": True},
    {"data": "diabetes", "hidden": "16", "lr": 0.01, "distill": True},
    {"data": "wine", "hidden": "16", "how": "rebuild", "width_method": "search", "search_runs": 4},
], ids=["cnn", "binary", "regression", "search"])
def test_real_data_from_the_original_to_the_recipes_verdict(
    store: Store, given: dict[str, object]  # noqa: F811
) -> None:
    outcome = run_pipeline(store, settings_of(**{
        "how": "prune", "epochs": 4, "slim_epochs": 2, "seeds": 5, "margin": 0.2, **given}))
    assert outcome.comparison.recipe is not None
    assert outcome.comparison.recipe.seeds == 5
    original, slim = outcome.variants[0], outcome.variants[-1]
    assert slim.metrics["params/total"] < original.metrics["params/total"]
    assert slim.metrics["flops/forward"] < original.metrics["flops/forward"]
    again = load_variant(store, slim.run_id)
    inputs = slim.recipe.split.test.inputs
    assert torch.equal(again.model(inputs), slim.model(inputs))
