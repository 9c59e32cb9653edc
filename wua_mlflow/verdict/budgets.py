"""The sentences on what networks of unequal budgets, and controls beside them, score.

Tests: ``tests/verdict/test_budgets.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TrainingSummary", "budget_sentences", "equal_budget_sentence"]


@dataclass(frozen=True)
class TrainingSummary:
    """How a network was trained, and its mean test score over the seeds.

    Attributes:
        epochs: the budget.
        epochs_trained: fewer where training stopped early.
        score: mean over the seeds.
        seeds: their number.
        parameters: their number.
        pretrained: whether it was trained elsewhere; nothing is known of that training.
    """

    epochs: int
    epochs_trained: int
    score: float
    seeds: int
    parameters: int
    pretrained: bool = False

    @property
    def length(self) -> str:
        """The length of the training, in words."""
        if self.epochs_trained == self.epochs:
            return f"{self.epochs} epochs"
        return f"at most {self.epochs} epochs (stopped after {self.epochs_trained})"

    @property
    def score_words(self) -> str:
        """The mean score, and over how many seeds."""
        over = f"on average over {self.seeds} seeds" if self.seeds > 1 else "with its one seed"
        return f"{self.score:.4f} {over}"


def budget_sentences(  # noqa: PLR0913 - four networks, and how they compare
    original: TrainingSummary, slim: TrainingSummary, score: str, *,
    same_budget: TrainingSummary | None = None, from_scratch: TrainingSummary | None = None,
    trained_on: bool = False, judged: str = "",
) -> str:
    """The sentences on unequal budgets, with what each control scores; "" where there are none.

    Args:
        original: the network to begin with.
        slim: the slim network.
        score: the name of the score.
        same_budget: the original with the slim network's budget.
        from_scratch: a network of the slim one's widths, trained from scratch.
        trained_on: whether ``same_budget`` is the original's weights, trained on.
        judged: the slim network's verdict against ``same_budget``, in words.
    """
    sentences = []
    if original.pretrained:
        sentences.append("The original was trained elsewhere, so nothing is known of its budget.")
    elif (original.epochs, original.epochs_trained) != (slim.epochs, slim.epochs_trained):
        sentences.append(f"Budgets differ: the original trained for {original.length}, the slim "
                         f"one for {slim.length}.")
    sentences += filter(None, [equal_budget_sentence(
        slim, score, same_budget, trained_on, judged)])
    if from_scratch:
        made, needed = from_scratch.parameters, slim.parameters
        widths = "these widths" if made == needed else \
            f"the nearest widths that the factory can make ({made:,} parameters, not {needed:,})"
        sentences.append(f"From scratch at {widths} for {from_scratch.length} (Scratch-E, Liu et "
                         f"al. 2019) a network scores {from_scratch.score_words}; the pruned one "
                         f"is {_gap_words(slim, from_scratch, score)} that.")
    return " ".join(sentences)


def equal_budget_sentence(
    slim: TrainingSummary, score: str, same_budget: TrainingSummary | None, trained_on: bool,
    judged: str = "",
) -> str:
    """What the original scores with the slim network's budget; "" where that is not known.

    ``judged`` is the slim one's verdict against that, in words.
    """
    if same_budget is None or same_budget.epochs != slim.epochs:
        return ""
    return (f"Trained{' on' if trained_on else ''} for {same_budget.length} too, the original "
            f"scores {same_budget.score_words}; the slim one is "
            f"{_gap_words(slim, same_budget, score)} that{judged and f' ({judged})'}.")


def _gap_words(slim: TrainingSummary, control: TrainingSummary, score: str) -> str:
    """The difference of two scores; in points where the score is an accuracy."""
    gap = slim.score - control.score
    amount = f"{100 * abs(gap):.1f} points" if score == "accuracy" else f"{abs(gap):.3f}"
    return f"{amount} {'below' if gap < 0 else 'above'}"
