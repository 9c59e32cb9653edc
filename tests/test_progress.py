"""What is told on standard error while it goes on: stages, the line of all bars, silence."""

from __future__ import annotations

import io
import sys

import pytest

from wua_mlflow import progress
from wua_mlflow.progress import Bar, keep, kept, say, stage


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that stand still unless a test sets them; progress is told, as nobody asked not to.
    """
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "_now", progress._Shown())
    return clock


def seen(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_stage_is_said_once_and_nothing_goes_to_standard_output(clock, capsys):
    with stage("training"), stage("replicates"):
        say("one is done")
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", ["wua: training", "wua: replicates",
                                            "wua: one is done"])
    with pytest.raises(KeyError), stage("failing"):
        raise KeyError
    assert progress._now.stages == []


@pytest.mark.parametrize(("name", "value"), [("TQDM_DISABLE", "1"), ("RANK", "1")])
def test_it_is_silent_where_asked_and_in_other_processes(name, value, clock, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    with stage("training"), Bar(total=3, desc="a") as bar:
        bar.update()
        bar.display()
        say("done")
    assert capsys.readouterr() == ("", "")


def test_bars_within_one_another_are_one_line_with_the_time_that_is_left(clock, capsys):
    with stage("training"):
        outer, inner = Bar(total=4, desc="widths", unit="width"), Bar(total=10, unit="epoch")
        outer.n, inner.n = 1, 5
        outer.display()
        assert seen(capsys) == ["wua: training"], "the last line was just now"
        clock.now += 60
        inner.display()
        inner.display()
        assert seen(capsys) == [
            "wua: widths: width 1 of 4; epoch 5 of 10; about 100 s left"], "once, 3/8 in a minute"
        outer.close()
        assert progress._now.bars == [], "what is within a bar ends with it"


def test_no_more_time_is_said_to_be_left_than_there_is(clock, capsys):
    """What ends after 100 seconds, however far it is, has 40 left after 60."""
    bar = Bar(total=20, desc="screening", unit="seed", at_most=100.0)
    bar.n = 2
    clock.now += 60
    bar.display()
    assert seen(capsys) == ["wua: screening: seed 2 of 20; about 40 s left"]
    bar.close()


def test_a_silent_stage_says_that_it_goes_on(clock, capsys):
    class Beats:
        """Waits that end: two beats, then it is done."""

        left = 3

        def wait(self, seconds: float) -> bool:
            clock.now += 6
            self.left -= 1
            return self.left == 0

    progress._now.stages.append(("fitting", clock.now))
    progress._now.written = clock.now
    progress._say_that_it_goes_on(Beats(), 1)
    assert seen(capsys) == ["wua: fitting; 12 s so far"]
    progress._say_that_it_goes_on(Beats(), 2)
    with progress.hushed():
        progress._say_that_it_goes_on(Beats(), 1)
    assert seen(capsys) == [], "the stage within it speaks, or the user is asked"
    with stage("quick", begin=False):
        pass
    assert seen(capsys) == []


def test_at_a_terminal_there_are_bars(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = Bar(range(3), desc="widths", unit="width")
    bar.display()
    assert "widths" in terminal.getvalue() and "0/3" in terminal.getvalue()
    bar.close()


def test_what_is_kept_is_told_once():
    kept()
    keep("oversized 10: run a")
    keep("oversized 10: run a")
    assert (kept(), kept()) == (["oversized 10: run a"], [])
