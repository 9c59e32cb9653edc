"""The step ``slim``: rounds, what is cut from what, and the controls beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline.slimming_cases import (  # noqa: F401 - store is a fixture
    HERE,
    QUICK,
    judging,
    original_in,
    settings_of,
    store,
    store_at,
    tags_of,
    text_of,
)
from wua_mlflow.cli import main
from wua_mlflow.config import load_settings
from wua_mlflow.flops import count_flops
from wua_mlflow.pipeline import chain, slimming
from wua_mlflow.pipeline.chain import Outcome, run_pipeline
from wua_mlflow.pipeline.slimming import check_slimming
from wua_mlflow.pipeline.variant import Variant, load_variant
from wua_mlflow.slimming import Specification, cut, rebuild
from wua_mlflow.tracking.names import ArtifactPath
from wua_mlflow.tracking.runs import runs
from wua_mlflow.tracking.store import Store

GOOD, BAD = "non_inferior", "inferior"
STILL = {"optimizer": "sgd", "lr": 1e-30, "width_method": "effective"}
"""Training that changes no weight: what was cut is there to be seen."""


@dataclass(frozen=True)
class Rounds:
    """A pipeline of several rounds, and what was compared with what."""

    store: Store
    outcome: Outcome
    compared: list[tuple[str, str]]

    def named(self, name: str) -> Variant:
        (found,) = [one for one in self.outcome.variants if one.variant == name]
        return found


@pytest.fixture(scope="module", params=["prune", "rebuild"])
def ran(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
    migrated_database: Path,
) -> Iterator[Rounds]:
    """Two rounds that are as good, and a third that is not; a fourth is asked for."""
    seen: list[tuple[str, str]] = []
    with store_at(tmp_path_factory.mktemp("rounds"), migrated_database) as found, \
            pytest.MonkeyPatch.context() as patch:
        patch.setattr(slimming, "compare_variants", judging([GOOD, GOOD, BAD], seen))
        outcome = run_pipeline(found, settings_of(
            **STILL, how=request.param, rounds=4, hidden="16", seeds=2, slim_epochs=2))
        yield Rounds(found, outcome, seen)


def test_rounds_end_at_the_first_that_is_not_as_good(ran: Rounds) -> None:
    rounds = ran.outcome.slimmed.rounds
    assert [one.variant.variant for one in rounds] == ["slim", "slim-2", "slim-3"]
    assert [one.as_good for one in rounds] == [True, True, False]
    widths = [one.variant.widths for one in rounds]
    assert (16,) > widths[0] > widths[1] > widths[2]


def test_each_round_is_compared_with_the_original(ran: Rounds) -> None:
    original, slims = ran.outcome.variants[0], [one.variant for one in ran.outcome.slimmed.rounds]
    assert original.variant == "oversized"
    assert ran.compared == [(original.run_id, one.run_id) for one in slims]
    assert {tags_of(ran.store, one.run_id)["wua.baseline"] for one in slims} == {original.run_id}


def test_the_result_is_the_last_good_one_and_is_what_is_shown(ran: Rounds) -> None:
    second = ran.named("slim-2")
    assert ran.outcome.slimmed.result.variant is second
    assert ran.outcome.variants[-1] is second
    tags = tags_of(ran.store, ran.outcome.run_id)
    assert tags["wua.result"] == second.run_id
    assert tags["wua.verdict"] == GOOD
    row = runs("slimming", "pipeline").iloc[0]
    assert row["run_id"] == ran.outcome.run_id
    assert row["name"].endswith(f" 16 → {second.widths[0]}")
    assert row["compare/params_ratio"] == pytest.approx(
        ran.outcome.variants[0].metrics["params/total"] / second.metrics["params/total"])


def test_all_that_was_trained_is_analysed_and_is_in_the_pipeline(ran: Rounds) -> None:
    assert len({one.run_id for one in ran.outcome.variants}) == len(ran.outcome.variants)
    for one in ran.outcome.variants:
        tags = tags_of(ran.store, one.run_id)
        assert (tags["wua.step.train"], tags["wua.step.analyze"]) == ("done", "done")
        assert tags["wua.pipeline"] == ran.outcome.run_id
        assert len(one.replicates) == 2


def test_a_loaded_slim_variant_gives_the_same_answers(ran: Rounds) -> None:
    """From what its run holds: the factory, the specification, the weights."""
    for name in ("slim", "slim-2", "slim-3"):
        made = ran.named(name)
        again = load_variant(ran.store, made.run_id)
        inputs = made.recipe.split.test.inputs
        assert torch.equal(again.model(inputs), made.model(inputs))
        assert again.widths == made.widths
        assert np.array_equal(again.replicate_scores, made.replicate_scores)


def test_widths_are_told_with_what_they_were_read_from(ran: Rounds) -> None:
    first, second = ran.named("slim"), ran.named("slim-2")
    told = json.loads(text_of(ran.store, second.run_id, "widths.json"))
    assert told["method"] == "effective"
    assert told["widths"] == [{"name": "fc1", "layers": ["fc1"],
                               "units": first.widths[0], "width": second.widths[0]}]


def test_each_round_is_cut_from_the_one_before(ran: Rounds) -> None:
    if ran.outcome.slimmed.original.settings.how != "prune":
        pytest.skip("nothing is cut")
    before = ran.outcome.variants[0]
    for number, name in enumerate(("slim", "slim-2", "slim-3"), 1):
        made = ran.named(name)
        history = Specification.from_json(text_of(ran.store, made.run_id, ArtifactPath.STRUCTURE))
        assert len(history.rounds) == number
        expected = cut(before.model, made.recipe.split.train.inputs[:4], history.rounds[-1]).model
        for found, one in zip(made.model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(found, one)
        fresh = rebuild(made.recipe.build((16,)), made.recipe.split.train.inputs[:2], history)
        fresh.load_state_dict(made.model.state_dict())
        before = made


def test_controls_of_equal_budget(ran: Rounds) -> None:
    """Rebuilt: one of 2 epochs. Cut: each round has had 2 epochs more, and another width."""
    pruning = ran.outcome.slimmed.original.settings.how == "prune"
    budgets = [one.settings.epochs for one in ran.outcome.variants
               if one.variant == "oversized-same-budget"]
    assert budgets == ([5, 7, 9] if pruning else [2])
    slims = [ran.named(name) for name in ("slim", "slim-2", "slim-3")]
    assert [one.settings.epochs for one in slims] == ([5, 7, 9] if pruning else [2, 2, 2])
    assert [one.epochs_trained for one in slims] == [one.settings.epochs for one in slims]
    scratch = [(one.widths, one.settings.epochs) for one in ran.outcome.variants
               if one.variant == "from-scratch"]
    assert scratch == ([(one.widths, 3) for one in slims] if pruning else [])


def test_training_costs_what_it_was_cut_from_cost_too(ran: Rounds) -> None:
    """Forward and backward of a sample by the counter, times samples, times epochs."""
    def a_sample(variant: Variant) -> float:
        count = count_flops(variant.model, variant.recipe.split.train.inputs[:1])
        return count.forward_flops + count.backward_flops

    original, slim = ran.outcome.variants[0], ran.named("slim")
    spent = a_sample(slim) * 160 * 2
    if ran.outcome.slimmed.original.settings.how == "prune":
        spent += a_sample(original) * 160 * 3
    assert slim.metrics["flops/training"] == spent


def test_no_round_is_as_good(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Then the first is the result, and there is no second."""
    monkeypatch.setattr(slimming, "compare_variants", judging(["inconclusive"], []))
    outcome = run_pipeline(store, settings_of(**STILL, rounds=3))
    assert [one.variant.variant for one in outcome.slimmed.rounds] == ["slim"]
    assert tags_of(store, outcome.run_id)["wua.result"] == outcome.variants[-1].run_id


def test_rounds_end_where_nothing_narrower_is_found(
    store: Store, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    """Two units, then one: the tutorial's rule goes no lower."""
    monkeypatch.setattr(slimming, "compare_variants", judging([GOOD, GOOD], []))
    outcome = run_pipeline(store, settings_of(**STILL, hidden="2", rounds=3))
    assert [one.variant.widths for one in outcome.slimmed.rounds] == [(1,)]
    assert outcome.slimmed.ended.startswith("The method effective finds no width below those that "
                                            "the network has (1). Another method may ")
    assert outcome.slimmed.result.variant.widths == (1,)


@pytest.mark.parametrize("gate", [True, False])
def test_nothing_narrower_at_all(
    store: Store, capsys: pytest.CaptureFixture[str], gate: bool  # noqa: F811
) -> None:
    """The pipeline says so, and ends well; the gate leaves the question open."""
    code = main(["run", "--data", QUICK["data"], "--hidden", "1", "--epochs", "1", "--seeds", "1",
                 "--width-method", "rank", "--null-draws", "0", "--experiment", "slimming",
                 *(["--gate"] if gate else [])])
    assert code == (4 if gate else 0)
    said = ("The method rank finds no width below those that the network has (1). Another method "
            "may (--width-method), or name the widths (--slim-hidden).")
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
    fit = recipe.fit
    monkeypatch.setattr(recipe, "fit", lambda model, *given, **named:
                        trained.append(model[0].out_features) or fit(model, *given, **named))
    run_pipeline(store, settings_of(how="prune", slim_hidden="5", slim_epochs=1))
    assert trained == [8, 8, 5, 5]  # the original, its control, the control from scratch, the cut


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


@pytest.mark.parametrize(("given", "message"), [
    ({"distill": True, "how": "rebuild"},
     "distill: expected how=prune beside it, since a rebuilt network is the control that learns "
     "from the data alone, but got how=rebuild"),
    ({"distill": True, "how": "prune", "train": "own:trainer"},
     "distill: expected the built-in trainer, but got train=own:trainer"),
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
    ({"slim_hidden": "9"},
     "slim_hidden: expected widths of at most the original's (8), but got 9"),
    ({"slim_hidden": "9", "how": "prune"},
     "slim_hidden: expected widths of at most the original's (8), but got 9"),
    ({"slim_hidden": "8", "how": "prune"},
     "slim_hidden: expected at least one width below the original's (8), but got 8"),
    ({"slim_hidden": "4,4,4", "how": "prune"},
     "slim_hidden: expected 1 widths, as the original has (8), but got 3 (4,4,4)"),
    ({"budget": "flops", "slim_epochs": 5},
     "budget: flops sets the epochs of the slim network, so expected no slim_epochs, but got 5"),
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


def test_test_sets_that_differ_are_not_compared(store: Store) -> None:  # noqa: F811
    one, other = original_in(store, epochs=1), original_in(store, epochs=1, seed=7)
    slim = slimming.slim(store, one, None, pipeline=None,
                         settings=settings_of(slim_hidden="4", how="rebuild")).variants[-1]
    with pytest.raises(ValueError) as caught:
        slimming.compare_variants(store, other, slim)
    assert str(caught.value).startswith("candidate: ")


def test_the_step_slim_cuts_the_network_that_its_run_holds(store: Store) -> None:  # noqa: F811
    original = original_in(store, seeds=2, epochs=2)
    given = {"run_id": original.run_id, "how": "prune", "slim_hidden": "3", "slim_epochs": "1",
             "distill": "true"}
    slim = chain.slim_run(store, load_settings(None, given), frozenset(given)).variants[-1]
    history = Specification.from_json(text_of(store, slim.run_id, ArtifactPath.STRUCTURE))
    assert history.summary == "fc1 3"
    assert (slim.settings.epochs, len(slim.replicates)) == (3, 2)
    assert slim.settings.distill
