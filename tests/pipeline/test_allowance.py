"""The time that search and seeds may take together, by a clock that only trainings move."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.pipeline.slimming_cases import HERE, QUICK
from wua_mlflow.config import Settings, load_settings
from wua_mlflow.pipeline import allowance, workflow
from wua_mlflow.pipeline import networks as networks_module
from wua_mlflow.pipeline.allowance import Allowance, null_seconds, seconds_elsewhere
from wua_mlflow.pipeline.price import price_of_cuts
from wua_mlflow.usage import null as null_module

ELSEWHERE = {"model": f"{HERE}:trained_elsewhere", "data": f"{HERE}:many",
             "null_draws": 0, "slim_epochs": 1, "batch_size": 32, "margin": 0.3}


class Clock:
    """Each training takes ``seconds``, nothing else takes any."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.trainings = seconds, 0

    def __call__(self) -> float:
        return self.seconds * self.trainings


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    found = Clock(1.0)
    make = networks_module.train_made

    def timed(*args: Any, **options: Any) -> Any:
        found.trainings += 1
        return replace(make(*args, **options), seconds=found.seconds)

    monkeypatch.setattr(networks_module, "train_made", timed)
    monkeypatch.setattr(allowance, "clock", found)
    return found


def slimmed(store: Any, **options: object) -> workflow.SlimmingResult:
    return workflow.slim_run(store, load_settings(None, {**ELSEWHERE, **options}))


@pytest.mark.parametrize(("seconds", "options", "seeds"), [
    pytest.param(1.0, {}, (20, 20), marks=pytest.mark.slow),
    pytest.param(11.0, {}, (6, 19), marks=pytest.mark.slow),
    pytest.param(8.0, {"limit": "4m"}, (6, 19), marks=pytest.mark.slow),
    pytest.param(9.0, {"limit": "1h"}, (20, 20), marks=pytest.mark.slow),
    (80.0, {}, (1, 1)),
    pytest.param(24.0, {"slim_hidden": "4"}, (5, 8), marks=pytest.mark.slow),
    (80.0, {"slim_hidden": "4"}, (1, 1)),
])
def test_search_and_seeds_take_no_longer_together(
    seconds, options, seeds, clock, store, capsys
):
    """As many seeds as there is time for; the verdict is of what there is."""
    fewest, most = seeds
    clock.seconds = seconds
    result = slimmed(store, **options)
    slim, limit = result.variants[-1], load_settings(None, options).search_seconds or 480
    assert clock() <= limit + 2 * seconds, "no training is stopped half way"
    assert fewest <= len(slim.replicates) <= most
    said = [line for line in capsys.readouterr().err.splitlines() if "wua: plan: " in line]
    assert len(said) == 1 and f"trainings of about {seconds:.0f} s, " in said[0]
    assert "for search and seeds together (more: --limit " in said[0]
    recipe = result.comparison.recipe
    if most == 1:
        assert recipe is None and "would take about" in result.comparison.no_recipe
    elif "slim_hidden" not in options:
        assert recipe.counts.candidate == len(slim.replicates)
        assert (recipe.counts.looks, recipe.counts.beyond_plan) == (1, 0), \
            "the time chose their number, so nothing is looked at twice"


@pytest.mark.slow
def test_nothing_bounds_seeds_that_were_asked_for(clock, store, capsys):
    clock.seconds = 1e4
    result = slimmed(store, slim_hidden="4", seeds=5)
    assert result.comparison.recipe.seeds == 5
    assert "at most" not in capsys.readouterr().err.partition("wua: plan: ")[2].partition("\n")[0]


def test_rounds_end_with_the_time(clock, store):
    clock.seconds = 30.0
    result = slimmed(store, rounds=3, limit="60s", slim_hidden="ablation", margin=0.2)
    assert result.verdict.outcome == "non_inferior" and len(result.slimmed.rounds) == 1
    assert result.slimmed.ended == "the time of `limit` was spent."


def test_a_plan_is_said_once_and_a_share_of_what_is_left_is_spent(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(allowance, "clock", lambda: now[0])
    pocket = Allowance(60.0, lambda seconds: f"{seconds:.0f} s each")
    now[0] = 120.0
    assert pocket.limited and pocket.left == 40
    assert pocket.affords(10.0, 4) and not pocket.affords(10.0, 5)
    assert pocket.affords(5.0, 4, share=0.5) and not pocket.affords(5.0, 5, share=0.5)
    assert capsys.readouterr().err == "wua: plan: 10 s each\n"
    assert Allowance().affords(1e9, 20) and not Allowance().limited


def test_what_a_network_from_elsewhere_may_take():
    def settings(**options: object) -> Settings:
        return load_settings(None, {**QUICK, "seeds": "auto", "null_draws": 20, **options})

    assert seconds_elsewhere(settings()) == 480
    assert seconds_elsewhere(settings(limit="8,30m")) == 1800
    assert seconds_elsewhere(settings(seeds=5)) == math.inf
    assert (null_seconds(settings()), null_seconds(settings(limit="1h"))) == (16, 120)
    assert null_seconds(settings(null_draws=30)) == math.inf


@pytest.mark.parametrize(("options", "ways", "line"), [
    ({}, 2, "about 60 trainings of about 8 s, 8 minutes in all: 9 to 22 to find the widths, 40 of "
     "the slim network, 5 of the original, trained on; at most 8 minutes for search and seeds "
     "together (more: --limit 960s)"),
    ({"slim_hidden": "4"}, 1, "about 18 trainings of about 8 s, 2 minutes in all: 5 to 20 of the "
     "slim network, 5 of the original, trained on; at most 8 minutes for search and seeds "
     "together (more: --limit 960s)"),
    ({"seeds": 1}, 2, "about 9 trainings of about 8 s, 72 s in all: 1 to 11 to find the widths, 2 "
     "of the slim network, 1 of the original, trained on"),
    ({"limit": "2m"}, 2, "about 60 trainings of about 8 s, 8 minutes in all: 9 to 22 to find the "
     "widths, 40 of the slim network, 5 of the original, trained on; what is there is judged after "
     "2 minutes for search and seeds together (more: --limit 960s)"),
])
def test_the_plan_of_cuts(options, ways, line):
    settings = load_settings(None, {**QUICK, "seeds": "auto", "how": "prune", **options})
    price = price_of_cuts(settings, 8.0, ways=ways, limit=seconds_elsewhere(settings))
    assert f"{price.line}{price.ends(settings)}" == line


def test_fewer_untrained_networks_where_they_take_long_are_said(store, monkeypatch, capsys):
    """The first takes two and a half seconds, of sixteen."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(null_module, "clock", iter((0.0, 2.5) * 3).__next__)
    result = slimmed(store, slim_hidden="4", seeds=1, null_draws=20)
    said = capsys.readouterr().err
    assert said.count("wua: 6 of 20 untrained networks were drawn for the null") == 3
    assert {usage.null.draws for usage in result.slimmed.usages.values()} == {6}
