"""Parts that are streamed: what they take, the order they keep, and what they never do."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from wua_mlflow.data import parts
from wua_mlflow.data.datasets import split_of
from wua_mlflow.data.parts import Part, StreamedPart, is_map_style, streamed_part
from wua_mlflow.training.evaluation import Objective, evaluate_batches

X = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50) % 3
MODEL = nn.Linear(3, 3)


class Rows(Dataset):
    """Hugging Face's rows: dicts; ``drawn`` adds noise anew each time."""

    def __init__(self, n: int = 50, drawn: bool = False) -> None:
        self.n, self.drawn, self.asked = n, drawn, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if i >= self.n:
            raise IndexError(i)
        self.asked += 1
        noise = torch.rand(3) if self.drawn else 0
        return {"input": X[i] + noise, "labels": Y[i]}


class NoDataset:
    """As Hugging Face's own: rows by number, of no torch class."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return Rows()[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Batched:
    """An iterable of batches that begins anew each time."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return zip(X.split(20), Y.split(20), strict=True)


NINES = list(zip(X.split(9), Y.split(9), strict=True))
SOURCES = {
    "rows": Rows, "no dataset": NoDataset, "stream": Stream, "batched": Batched,
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=7),
    "list": lambda: list(zip(X.split(8), Y.split(8), strict=True)),
    "arrays": lambda: [(x.numpy(), y.numpy()) for x, y in NINES],
    "dicts": lambda: [{"input": x, "label": y} for x, y in NINES]}


@pytest.mark.parametrize("name", SOURCES)
def test_every_form_gives_all_examples_in_order_each_time(name):
    part = streamed_part(SOURCES[name](), "test", batch_size=16)
    for _ in range(3):
        batches = list(part.batches(MODEL))
        inputs = [(batch.args or tuple(batch.kwargs.values()))[0] for batch in batches]
        assert torch.equal(torch.cat(inputs), X)
        assert torch.equal(torch.cat([batch.targets for batch in batches]), Y)
    assert len(part) == 50
    example = part.example(MODEL, 4)
    assert torch.equal(example["input"] if isinstance(example, dict) else example, X[:4])


def test_the_digest_is_of_the_data_and_not_of_the_batches():
    of_size = {streamed_part(DataLoader(TensorDataset(X, Y), batch_size=size), "test").digest
               for size in (1, 7, 50)}
    assert len(of_size) == 1
    for others in ((X + 1e-6, Y), (X, Y.roll(1)), (X.double(), Y), (X[:-1], Y[:-1])):
        part = streamed_part(DataLoader(TensorDataset(*others), batch_size=7), "test")
        assert part.digest not in of_size


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("source", [
    lambda: DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True), lambda: Rows(drawn=True)])
def test_another_order_in_a_later_pass_is_refused(source, kept, monkeypatch):
    monkeypatch.setattr(parts, "KEPT_BYTES", 2**20 if kept else 0)
    part = streamed_part(source(), "test")
    with pytest.raises(ValueError, match="^data: expected the test part in the same order each "
                                         "time.*shuffle=False"):
        for _ in range(2):
            list(part.batches(MODEL))
    free = streamed_part(source(), "train")
    assert [sum(batch.samples for batch in free.batches(MODEL)) for _ in range(2)] == [50, 50]
    assert free.digest == ""


def test_small_parts_are_gone_over_twice_and_kept_large_ones_never(monkeypatch):
    small = Batched()
    part = streamed_part(small, "validation")
    for _ in range(4):
        list(part.batches(MODEL))
    assert small.passes == 2
    monkeypatch.setattr(parts, "KEPT_BYTES", 100)
    large = Batched()
    part = streamed_part(large, "validation")
    for _ in range(4):
        list(part.batches(MODEL))
    assert large.passes == 4 and part._kept is None


def test_of_what_is_known_to_be_too_large_nothing_is_copied(monkeypatch):
    """Nor is what is kept copied once more for a sample."""
    monkeypatch.setattr(parts, "KEPT_BYTES", X.nbytes)  # too little for inputs and targets
    copies: list[object] = []
    copy = parts._copied
    monkeypatch.setattr(parts, "_copied", lambda batch: copies.append(batch) or copy(batch))
    for source in (Rows(), DataLoader(TensorDataset(X, Y), batch_size=7)):
        list(streamed_part(source, "test").batches(MODEL))
    assert copies == []
    monkeypatch.setattr(parts, "KEPT_BYTES", 2**20)
    part = streamed_part(Rows(), "validation", batch_size=8)
    list(part.batches(MODEL))
    before = len(copies)
    assert sum(batch.samples for batch in part.sample(MODEL)) == 50
    assert before == len(copies) > 0


def test_memory_goes_back_between_large_batches_alone(monkeypatch):
    """In every pass and every epoch; the real call does no harm."""
    calls: list[int] = []
    parts._give_back()
    monkeypatch.setattr(parts, "_give_back", lambda: calls.append(1))
    part = streamed_part(Rows(), "train", batch_size=1)
    list(part.batches(MODEL))
    assert calls == []
    monkeypatch.setattr(parts, "LARGE_BYTES", 1)
    list(part.batches(MODEL))
    assert len(calls) == 4, "50 batches: three times after 16, and at the end"
    list(part.epoch(MODEL, 25, torch.Generator()))
    assert len(calls) == 5


def test_an_epoch_shuffles_examples_and_leaves_loaders_their_order():
    def order(source: object, seed: int) -> list[float]:
        part = streamed_part(source, "train")
        made = torch.Generator().manual_seed(seed)
        return [float(row[0]) for batch in part.epoch(MODEL, 8, made)
                for row in (batch.args or tuple(batch.kwargs.values()))[0]]

    whole = X[:, 0].tolist()
    for source in (Rows(), SOURCES["list"]()):
        assert order(source, 1) == order(source, 1) != order(source, 2)
        assert sorted(order(source, 1)) == sorted(whole) and order(source, 1) != whole
    for source in (Batched(), DataLoader(TensorDataset(X, Y), batch_size=7)):
        assert order(source, 1) == whole


def test_a_sample_is_bounded(monkeypatch):
    monkeypatch.setattr(parts, "SAMPLE_EXAMPLES", 20)
    rows = Rows()
    assert sum(batch.samples for batch in streamed_part(rows, "train", batch_size=8).sample(
        MODEL)) == 24
    assert rows.asked < 50
    monkeypatch.setattr(parts, "SAMPLE_BYTES", 1)
    assert len(list(streamed_part(Rows(), "train", batch_size=8).sample(MODEL))) == 1


def test_a_sample_is_the_same_whatever_was_drawn_before():
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        part = streamed_part(DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True), "train")
        before = torch.get_rng_state()
        again = [torch.cat([batch.first for batch in part.sample(MODEL)]) for _ in range(2)]
        assert torch.equal(*again) and torch.equal(torch.get_rng_state(), before)
        return again[0]

    assert torch.equal(first(1), first(2)) and not torch.equal(first(1), X)


def test_one_buffer_that_is_filled_again_is_kept_as_it_was():
    class Buffer:
        def __iter__(self):
            buffer = torch.empty(4, 3)
            for number in range(3):
                yield buffer.fill_(number), Y[:4]

    part = streamed_part(Buffer(), "test")
    for _ in range(2):
        assert [float(batch.first[0, 0]) for batch in part.batches(MODEL)] == [0, 1, 2]


class Images(IterableDataset):
    """40 MB of images, made when they are asked for."""

    def __iter__(self):
        for i in range(640):
            yield torch.full((16, 32, 32), float(i)), i % 3


def test_a_stream_is_never_stacked(monkeypatch):
    monkeypatch.setattr(parts, "KEPT_BYTES", 2**20)
    part = streamed_part(Images(), "test", batch_size=16)
    digest = part.digest
    seen = sum(float(batch.first.mean()) for batch in part.batches(nn.Conv2d(16, 1, 1)))
    assert part._kept is None and digest
    assert seen == pytest.approx(sum(range(640)) / 16, rel=1e-4)


@pytest.mark.parametrize(("source", "message"), [
    (iter([(X, Y)]), "can be gone over again, but got list_iterator, which ends after one pass"),
    ((x for x in [(X, Y)]), "but got generator"), (5, "an iterable of batches, but got int"),
    ("data.csv", "but got str"), ({"input": X}, "but got dict")])
def test_what_cannot_be_streamed(source, message):
    with pytest.raises(ValueError, match=f"^data: expected train .*{re.escape(message)}"):
        streamed_part(source, "train")


def test_examples_of_different_lengths_want_a_collate_function():
    ragged = [{"ids": torch.arange(n), "labels": torch.tensor(n % 2)} for n in (3, 5, 4, 2)]

    class Ragged(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            return ragged[i]

    with pytest.raises(ValueError, match="collate_fn$"):
        streamed_part(Ragged(), "train").first()

    def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = nn.utils.rnn.pad_sequence([row["ids"] for row in rows], batch_first=True)
        return {"ids": ids, "attention_mask": (ids > 0).long(),
                "labels": torch.stack([row["labels"] for row in rows])}

    loader = DataLoader(Ragged(), batch_size=3, collate_fn=padded)
    part = streamed_part(loader, "test")
    net = nn.Embedding(9, 2)
    assert [batch.samples for batch in part.batches(net)] == [3, 1]


@pytest.mark.parametrize(("make", "task", "outputs", "in_memory"), [
    (lambda: (X, Y), "multiclass", 3, True), (lambda: Rows(), "multiclass", 3, False),
    (lambda: DataLoader(TensorDataset(X, Y % 2), batch_size=9), "binary", 1, False),
    (lambda: DataLoader(TensorDataset(X, X[:, :1]), batch_size=9), "regression", 1, False),
    (lambda: (X, X[:, :2]), "regression", 2, True), (lambda: (X, (X > 0.5).long()), "multilabel", 3,
                                                     True),
    (lambda: ((X, X), X[:, 0]), "regression", 1, False),
    (lambda: ({"a": X, "b": X}, Y), "multiclass", 3, False),
    (lambda: TensorDataset(X, Y), "multiclass", 3, True),
    (lambda: TensorDataset(X, X, Y), "multiclass", 3, False)])
def test_a_split_of_every_form(make, task, outputs, in_memory):
    split = split_of((make(), make(), make()), "mine:data", arguments=lambda: 2)
    assert (split.task, split.outputs) == (task, outputs)
    assert isinstance(split.train, Part if in_memory else StreamedPart)
    assert split.test.digest == split_of(
        (make(), make(), make()), "mine:data", arguments=lambda: 2).test.digest


def test_what_was_guessed_is_said():
    note, = split_of([(X, X[:, :2])] * 3, "mine:data").notes
    assert "(examples, 2), taken as regression; another task: --task" in note
    assert split_of([(X, X[:, :2])] * 3, "mine:data", task="regression").notes == ()


def test_datasets_that_draw_or_are_large_are_streamed(monkeypatch):
    class Flipped(Dataset):
        """As often as not an example is as it was."""

        def __len__(self) -> int:
            return 50

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            if i >= 50:
                raise IndexError
            return (X[i].flip(0) if torch.rand(()) < 0.5 else X[i]), Y[i]

    for seed in range(20):
        torch.manual_seed(seed)
        split = split_of((Flipped(), TensorDataset(X, Y), TensorDataset(X, Y)), "mine:data")
        assert isinstance(split.train, StreamedPart)
    monkeypatch.setattr("wua_mlflow.data.datasets.STACKED_BYTES", 10)
    assert isinstance(split_of([TensorDataset(X, Y)] * 3, "mine:data").train, StreamedPart)


ZEROS_AND_ONES = (X[:, :2] > 0.5).long()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("targets", "task", "found"), [
    (ZEROS_AND_ONES, "regression", "regression"), (ZEROS_AND_ONES, None, "multilabel"),
    (ZEROS_AND_ONES, "multiclass", ValueError), (Y % 2, "multilabel", ValueError),
    (Y % 2, "token_classification", ValueError), (Y % 2, "segmentation", ValueError),
    (torch.eye(50), None, ValueError), (torch.eye(50), "regression", "regression")])
def test_a_task_that_is_given_is_taken_or_refused(targets, task, found, streamed):
    part = DataLoader(TensorDataset(X, targets), batch_size=60) if streamed else (X, targets)
    if found is ValueError:
        with pytest.raises(ValueError, match="^(task|data): expected"):
            split_of((part, part, part), "mine:data", task=task)
    else:
        assert split_of((part, part, part), "mine:data", task=task).task == found


@pytest.mark.parametrize("targets", [Y[:, None], Y.int(), Y.float(), Y[:, None].double()])
def test_streamed_classes_of_any_shape_and_type_are_judged(targets):
    part = DataLoader(TensorDataset(X, targets), batch_size=9)
    split = split_of((part, part, part), "mine:data")
    objective = Objective(split.task, "logits")
    result = evaluate_batches(MODEL, split.test.batches(MODEL), objective)
    assert result.targets.tolist() == Y.tolist()
    batch = next(iter(split.test.batches(MODEL)))
    assert torch.isfinite(objective.loss(batch.call(MODEL), batch.targets))


def test_a_list_of_two_tensors_is_a_pair_also_beside_what_is_streamed():
    train = DataLoader(TensorDataset(X, Y), batch_size=9)
    split = split_of((train, [X, Y], (X, Y)), "mine:data")
    assert len(split.validation) == len(split.test) == 50
    assert split.validation.digest == split.test.digest


def test_two_outputs_make_two_classes():
    split = split_of([(X, Y % 2)] * 3, "mine:data").for_two_outputs()
    assert (split.task, split.outputs) == ("multiclass", 2)
    assert split.test.targets.tolist() == (Y % 2).tolist()


@pytest.mark.parametrize(("source", "answer"), [
    (Rows(), True), (NoDataset(), True), (Stream(), False), ([X], False), (X.numpy(), False),
    (Batched(), False), (DataLoader(TensorDataset(X)), False), (np.zeros(3), False)])
def test_map_style(source, answer):
    assert is_map_style(source) is answer
