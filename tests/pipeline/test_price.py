"""What a pipeline costs: said before it is spent, and the cheap plan beyond the limit."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import nn

from tests.pipeline.slimming_cases import settings_of
from wua_mlflow.cli import commands
from wua_mlflow.pipeline import train as train_module
from wua_mlflow.pipeline.price import cheap_plan, price_of
from wua_mlflow.pipeline.workflow import run_pipeline, slim_run, train_run
from wua_mlflow.tracking.names import Tag


@pytest.mark.parametrize(("options", "trained", "parts"), [
    ({}, 1, {"more of the original": (4, 19), "to find the widths": (9, 22),
             "of the slim network": (20, 20)}),
    ({"how": "prune"}, 1, {"more of the original": (4, 19), "to find the widths": (9, 22),
                           "of the slim network": (5, 20)}),
    ({"train": "own:trainer"}, 5, {"more of the original": (0, 15), "to find the widths": (2, 12),
                                   "of the slim network": (20, 20)}),
    ({"slim_hidden": "4"}, 1, {"more of the original": (4, 19), "to find the widths": (0, 0),
                               "of the slim network": (5, 20)}),
    ({"slim_hidden": "ablation", "seeds": "5-8"}, 1, {
        "more of the original": (4, 7), "to find the widths": (0, 0),
        "of the slim network": (5, 8)}),
    ({"seeds": 7}, 1, {"more of the original": (6, 6), "to find the widths": (9, 22),
                       "of the slim network": (7, 7)}),
])
def test_what_is_planned(options, trained, parts):
    price = price_of(settings_of(**{"seeds": "auto", "how": "rebuild", **options}), 2.0,
                     trained=trained)
    assert price.parts == parts
    assert price.trainings == round(sum(map(sum, parts.values())) / 2)
    assert price.total_seconds == 2 * price.trainings
    assert price.limit == 3600 and price.affordable
    assert all(what in price.line for what, (_, most) in parts.items() if most)


def test_the_limit_is_an_hour_or_what_the_user_says():
    settings = settings_of(seeds="auto", how="rebuild")
    assert not price_of(settings, 100.0).affordable
    assert price_of(settings.within(1e5), 100.0).affordable
    assert not price_of(settings.within(10.0), 1.0).affordable


@pytest.mark.parametrize(("asked", "changes"), [
    ({}, {"seeds": 1, "how": "prune", "slim_hidden": "rank"}),
    ({"how": "rebuild"}, {"seeds": 1, "how": "rebuild", "slim_hidden": "rank"}),
    ({"slim_hidden": "ablation"}, {"seeds": 1, "how": "prune", "slim_hidden": "ablation"})])
def test_the_cheap_plan_leaves_what_was_asked_for(asked, changes):
    asked = settings_of(seeds="auto", **asked)
    resolved = asked.model_copy(update={"how": "rebuild"})
    cheap = cheap_plan(resolved, asked)
    assert {name: getattr(cheap, name) for name in changes} == changes
    said = price_of(resolved, 100.0).instead("4be1", resolved, cheap)
    assert ("cut and fine-tuned" if changes["how"] == "prune" else "is trained") in said
    assert "wua slim --run-id 4be1 --how rebuild --seeds auto --limit " in said


def trained_in(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[tuple[int, ...]]:
    """Every training takes so long, as far as anyone is told; gives the number of each."""
    trained: list[tuple[int, ...]] = []
    count = train_module.train_replicates

    def counting(*args, **options):
        found = count(*args, **options)
        trained.append(len(found))
        return found

    monkeypatch.setattr("wua_mlflow.pipeline.replicates.time.perf_counter",
                        lambda at=[0.0]: at.__setitem__(0, at[0] + seconds) or at[0])
    monkeypatch.setattr(train_module, "train_replicates", counting)
    return trained


def own_trainer(model: nn.Module, data: Any, budget: int, seed: int) -> nn.Module:
    """Leaves the network as it was made."""
    return model


@pytest.mark.parametrize(("seconds", "options"), [(0.5, {}), (500.0, {}), (500.0, {"seeds": 5}),
                                                  (0.5, {"limit": "2,1s"})])
def test_a_pipeline_says_its_price_and_does_what_it_may(seconds, options, store, monkeypatch,
                                                        capsys):
    trained = trained_in(monkeypatch, seconds)
    settings = settings_of(**{"seeds": "5-5", "limit": 2, "margin": 0.3, **options})
    result = run_pipeline(store, settings)
    said = [line for line in capsys.readouterr().err.splitlines() if "wua: plan: " in line]
    asked = "seeds" in options
    cheap = not asked and seconds * 40 > (settings.search_seconds or 3600)
    assert len(said) == (0 if asked else 2 if cheap else 1)
    assert trained[0] == (1 if cheap else 5)
    if not asked:
        assert said[0].startswith(f"wua: plan: about {price_of(settings, seconds).trainings} "
                                  "trainings of at most ")
    slim = result.variants[-1]
    if cheap:
        assert trained == [1, 1], "the original and the slim one, no controls"
        assert result.comparison.recipe is None
        assert slim.trained.structure is not None, "cut and fine-tuned"
        assert slim.tags[Tag.VERDICT] == result.comparison.artifact.outcome
        command = (f"wua slim --run-id {result.variants[0].run_id} --how rebuild --seeds 5-5 "
                   "--limit 2,")
        assert command in said[1] and command in result.comparison.no_recipe
    else:
        assert result.comparison.recipe is not None


@pytest.mark.parametrize("answer", [True, False])
def test_who_sits_at_a_terminal_is_asked_once(answer, store, monkeypatch):
    trained_in(monkeypatch, 500.0)
    questions: list[str] = []
    result = run_pipeline(store, settings_of(seeds="5-5", limit=2, margin=0.3),
                          ask=lambda question: questions.append(question) or answer)
    assert len(questions) == 1 and "is more than the 60 minutes that it may take" in questions[0]
    assert (result.comparison.recipe is not None) == answer
    assert len(result.variants[0].replicates) == (5 if answer else 1)


@pytest.mark.parametrize("terminal", [True, False])
def test_nobody_is_asked_without_a_terminal(terminal, monkeypatch):
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("click.confirm", lambda question, *, err: err and question == "Go on?")
    ask = commands._ask_at_terminal()
    assert (ask is not None) == terminal
    assert ask is None or (ask("Go on?") and not ask("else"))


def test_the_step_slim_knows_the_price_from_the_originals_run(store, monkeypatch, capsys):
    trained = trained_in(monkeypatch, 500.0)
    settings = settings_of(seeds="auto", margin=0.3)
    original = train_run(store, settings)
    result = slim_run(store, settings_of(seeds="auto", margin=0.3).model_copy(
        update={"run_id": original.run_id}))
    assert "so the network is cut and fine-tuned once" in capsys.readouterr().err
    assert result.comparison.recipe is None and trained[0] == 5


def test_the_same_for_a_trainer_of_ones_own(store, monkeypatch, capsys):
    """``rank`` is where the search begins; its network is trained and judged, and wider ones."""
    trained = trained_in(monkeypatch, 0.01)
    result = run_pipeline(store, settings_of(
        seeds="5-5", margin=0.3, how="rebuild",
        train="tests.pipeline.test_price:own_trainer",
        limit=3))
    assert "2 to 12 to find the widths" in capsys.readouterr().err
    goal = result.slimmed.last or result.slimmed.result.goal
    assert goal.method == "rank" and goal.searched is not None
    assert trained[0] == 5
