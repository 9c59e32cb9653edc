"""Data in any form become the same calls of the model; what is none is refused in one line."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tests.networks import Layers, labels, mlp, rows
from wua_mlflow.data.batches import (
    NO_TARGETS,
    Batches,
    GrowingArray,
    inputs_and_targets,
    mapped,
    needed_arguments,
)
from wua_mlflow.slimming import slim
from wua_mlflow.usage.analyze import analyze

X = torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, other: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        return self.linear(x)


class Open(Plain):
    def forward(self, **kwargs: object) -> Tensor:  # type: ignore[override]
        return self.linear(kwargs["x"])


class Dicts(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"x": X[number], "labels": Y[number]}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def halves(*tensors: Tensor):
    return zip(*(tensor.split(5) for tensor in tensors), strict=True)


FORMS = {
    "tensor": (lambda: X, False), "array of float64": (lambda: X.double().numpy(), False),
    "read-only array": (lambda: np.broadcast_to(X.numpy(), X.shape), False),
    "list of tensors": (lambda: list(X.split(3)), False),
    "list of arrays": (lambda: np.array_split(X.numpy(), 4), False),
    "generator": (lambda: (part for part in X.split(4)), False),
    "tuples": (lambda: list(halves(X, Y)), True),
    "tuples of arrays": (lambda: [(x.numpy(), y.numpy()) for x, y in halves(X, Y)], True),
    "lists": (lambda: [[x, y] for x, y in halves(X, Y)], True),
    "tuples of one": (lambda: [(x,) for x in X.split(5)], False),
    "triples": (lambda: [(x, y, "names") for x, y in halves(X, Y)], True),
    "dicts": (lambda: [{"x": x, "labels": y} for x, y in halves(X, Y)], True),
    "dicts without labels": (lambda: [{"x": x} for x in X.split(5)], False),
    "user dicts": (lambda: [UserDict(x=x, labels=y) for x, y in halves(X, Y)], True),
    "dicts of arrays": (lambda: [{"x": x.numpy(), "labels": y.numpy()}
                                 for x, y in halves(X, Y)], True),
    "tuples of a dict": (lambda: [({"x": x}, y) for x, y in halves(X, Y)], True),
    "dataset": (lambda: TensorDataset(X, Y), True),
    "dataset of inputs": (lambda: TensorDataset(X), False), "dataset of dicts": (Dicts, True),
    "stream": (Stream, True),
    "loader": (lambda: DataLoader(TensorDataset(X, Y), batch_size=4), True),
    "empty batches between": (lambda: [X[:0], X[:4], X[4:4], X[4:], X[:0]], False)}


@pytest.mark.parametrize(("form", "has_targets"), FORMS.values(), ids=FORMS)
def test_each_form_gives_all_samples_in_order(form, has_targets):
    batches = list(Batches(form(), Plain()))
    assert sum(batch.samples for batch in batches) == 10
    assert all(len(batch.first) == batch.samples > 0 for batch in batches)
    inputs = [(*batch.args, *batch.kwargs.values()) for batch in batches]
    assert torch.equal(torch.cat([tensor for tensor, in inputs]), X)
    assert all(tensor.dtype == torch.float32 for tensor, in inputs)
    if has_targets:
        assert torch.equal(torch.cat([batch.targets for batch in batches]), Y)
    else:
        assert all(batch.targets is NO_TARGETS for batch in batches)


def test_a_whole_tensor_comes_in_chunks():
    assert [batch.samples for batch in Batches(torch.zeros(2500, 3), Plain())] == [1024, 1024, 452]
    dataset = TensorDataset(torch.zeros(150, 3))
    assert [batch.samples for batch in Batches(dataset, Plain())] == [64, 64, 22]


def test_keys_that_the_forward_does_not_take_are_dropped():
    batch = {"idx": Y, "x": X, "other": X, "scale": 2.0, "text": ["a"] * 10}
    plain, = Batches([batch], Plain())
    assert list(plain.kwargs) == ["x", "other", "scale"] and plain.kwargs["scale"] == 2.0
    whole, = Batches([batch], Open())
    assert list(whole.kwargs) == list(batch) and whole.first is whole.kwargs["idx"]


def test_labels_are_targets_and_also_passed_on_where_the_forward_takes_them():
    class Labelled(Plain):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
            return self.linear(x)

    for model, keys in ((Plain(), ["x"]), (Labelled(), ["x", "labels"]), (Open(), ["x", "labels"])):
        batch, = Batches([{"x": X, "labels": Y}], model)
        assert list(batch.kwargs) == keys and torch.equal(batch.targets, Y)


def test_a_mask_says_what_is_padding_even_where_the_forward_does_not_take_it():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch, = Batches([{"x": X[:2], "attention_mask": mask}], Plain())
    assert list(batch.kwargs) == ["x"]
    assert batch.mask.keep.tolist() == [[True, True, False], [True, False, False]]
    assert batch.mask.count == 3
    for nothing in (torch.ones(2, 3), None, torch.zeros(2, 1, 3, 3)):
        batch, = Batches([{"x": X[:2], "attention_mask": nothing}], Plain())
        assert batch.mask is None
    batch, = Batches([{"x": X[:2], "attention_mask": mask.numpy()}], Plain())
    assert batch.mask.count == 3


TO_INPUTS = {
    "tensor": (lambda batch: batch["inner"]["x"], 1, 0),
    "array": (lambda batch: batch["inner"]["x"].numpy(), 1, 0),
    "tuple": (lambda batch: (batch["inner"]["x"], batch["inner"]["x"] + 1), 2, 0),
    "tuple with what is no tensor": (lambda batch: (batch["inner"]["x"], None, "word"), 3, 0),
    "dict": (lambda batch: {"x": batch["inner"]["x"], "scale": 3.0}, 0, 2)}


@pytest.mark.parametrize(("to_inputs", "args", "kwargs"), TO_INPUTS.values(), ids=TO_INPUTS)
def test_batch_to_inputs(to_inputs, args, kwargs):
    data = [{"inner": {"x": x}, "labels": y} for x, y in halves(X, Y)]
    batches = list(Batches(data, Plain(), to_inputs))
    assert torch.equal(torch.cat([batch.first for batch in batches]), X)
    assert torch.equal(torch.cat([batch.targets for batch in batches]), Y)
    assert all((len(batch.args), len(batch.kwargs)) == (args, kwargs) for batch in batches)


def test_batch_to_inputs_of_other_kinds_of_batches():
    record = SimpleNamespace(inputs=X)
    batch, = Batches([record], Plain(), lambda record: record.inputs)
    assert torch.equal(batch.args[0], X)
    assert batch.targets is record  # for the loss to take them from
    batch, = Batches([X], Plain(), lambda tensor: tensor)
    assert batch.targets is NO_TARGETS
    batch, = Batches([(Y, X)], Plain(), lambda pair: pair[1])
    assert torch.equal(batch.args[0], X)
    assert torch.equal(batch.targets, X)  # a tuple's second entry, whatever the inputs are
    unlabelled = {"image": X, "class": Y}
    batch, = Batches([unlabelled], Plain(), lambda batch: batch["image"])
    assert batch.targets is unlabelled
    batches = Batches(TensorDataset(Y, X), Plain(), lambda pair: pair[1])
    assert torch.equal(torch.cat([batch.args[0] for batch in batches]), X)


def test_of_three_entries_the_targets_are_the_same_for_the_model_and_for_the_task():
    class Two(Plain):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return self.linear(x)

    weights = torch.rand(10)
    for model, batch, to_inputs, expected in (
            (Plain(), (X, Y, weights), None, Y), (Two(), (X, X, Y), None, Y),
            (Plain(), (X, X, Y), lambda batch: batch[0], Y),
            (Two(), ((X, X), Y), None, Y), (Plain(), [X, Y, "names"], None, Y)):
        converted, = Batches([batch], model, to_inputs)
        _, targets = inputs_and_targets(batch, to_inputs, needed_arguments(model))
        assert torch.equal(converted.targets, expected) and torch.equal(targets, expected)


def test_targets_are_read_after_the_batch_was_changed_in_place():
    def to_inputs(batch):
        batch["labels"] = batch.pop("class") + 1
        return batch["image"]

    batch, = Batches([{"image": X, "class": Y}], Plain(), to_inputs)
    assert torch.equal(batch.targets, Y + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_numbers_come_in_the_models_dtype(dtype):
    pair = namedtuple("pair", "left right")
    model = Open().to(dtype)
    batch, = Batches([{"x": X.double(), "ids": Y, "on": Y > 3, "wave": torch.ones(10) * 1j,
                       "nested": [X, (Y, X)], "named": pair(X, Y), "deep": {"x": [X]}}], model)
    kwargs = batch.kwargs
    assert kwargs["x"].dtype == kwargs["nested"][0].dtype == kwargs["nested"][1][1].dtype == dtype
    assert kwargs["named"].left.dtype == kwargs["deep"]["x"][0].dtype == dtype
    assert kwargs["ids"].dtype == kwargs["nested"][1][0].dtype == torch.int64
    assert (kwargs["on"].dtype, kwargs["wave"].dtype) == (torch.bool, torch.complex64)
    assert isinstance(kwargs["named"], pair)


def test_targets_keep_their_dtype_and_a_model_without_parameters_takes_float32():
    batch, = Batches([X.double()], nn.ReLU())
    assert batch.args[0].dtype == torch.float32
    batch, = Batches([(X, X.double())], Plain())
    assert batch.targets.dtype == torch.float64
    batch, = Batches([(X, X.double().numpy())], Plain())
    assert (type(batch.targets), batch.targets.dtype) == (Tensor, torch.float64)
    batch, = Batches([(X, "cat")], Plain())
    assert batch.targets == "cat"


def test_everything_is_moved_to_the_models_device():
    batch, = Batches([{"x": X, "nested": [Y], "attention_mask": torch.tensor([[1, 0]] * 10),
                       "labels": Y}], Open().to("meta"))
    tensors = [batch.kwargs["x"], batch.kwargs["nested"][0], batch.targets, batch.mask.keep]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("data", [X.to("meta"), [(X, Y.to("meta"))], [{"x": X.to("meta")}]],
                         ids=["tensor", "target", "dict"])
def test_data_on_the_meta_device(data):
    with pytest.raises(ValueError, match="^data: expected tensors with values, but got one on the "
                                         "meta device; make it on a real device$"):
        list(Batches(data, Plain()))


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("mps", False), ("cuda", True)])
def test_only_a_copy_to_cuda_does_not_block(device, expected, monkeypatch):
    calls = []
    batches = Batches(X, Plain())
    batches._device = torch.device(device)
    monkeypatch.setattr(Tensor, "to", lambda self, **how: calls.append(how) or self)
    list(batches)
    assert calls == [{"device": torch.device(device), "dtype": torch.float32,
                      "copy": True, "non_blocking": expected}]


def test_the_data_are_left_alone():
    array = X.numpy().copy()
    batch, = Batches([array], Plain())
    batch.args[0].zero_()
    assert array.sum() > 0


def test_data_made_in_inference_mode_can_be_differentiated_through():
    with torch.inference_mode():
        x, y = X + 1, X * 2
        batches = Batches([(x, y)], Plain())
    batch, = batches
    assert x.is_inference() and y.is_inference()
    assert not batch.args[0].is_inference() and not batch.targets.is_inference()
    assert torch.equal(batch.args[0], x)


def test_what_can_be_gone_over_only_once():
    assert Batches(iter([X]), Plain()).once and Batches((part for part in [X]), Plain()).once
    for again in ([X], X, DataLoader(TensorDataset(X)), TensorDataset(X), Stream()):
        assert not Batches(again, Plain()).once


def test_a_loader_that_is_exhausted_in_a_later_pass():
    class Tired:
        def __init__(self) -> None:
            self.remaining = iter(X.split(5))

        def __iter__(self):
            return self.remaining

    batches = Batches(Tired(), Plain())
    assert len(list(batches)) == 2
    with pytest.raises(ValueError, match="^data: expected batches that can be gone over again, but "
                                         "got none in a later pass; give a DataLoader or a list$"):
        list(batches)
    never = Batches([], Plain())
    assert list(never) == list(never) == []


@pytest.mark.parametrize(("second", "shown"), [
    ({"x": X}, "x"), ({"x": X, "other": X, "labels": Y}, "labels, other, x")])
def test_keys_that_change(second, shown):
    batches = iter(Batches([{"x": X, "labels": Y}, second], Plain()))
    next(batches)
    with pytest.raises(ValueError, match=r"^data: expected batches with the same keys \(labels, x\)"
                                         f", but got {shown}$"):
        next(batches)


@pytest.mark.parametrize(("data", "message"), [
    (5, "an iterable of batches, but got int"), ("data.csv", "an iterable of batches, but got str"),
    ({"x": X}, "an iterable of batches, but got dict"),
    (torch.tensor(1.0), "an iterable of batches, but got Tensor"),
    ([[1.0, 2.0, 3.0]], r"expected batches of tensors or arrays .* but got 1\.0"),
    ([torch.tensor(1.0)], r"expected batches of tensors or arrays .* but got tensor\(1\.\)"),
    ([("words", Y)], "expected batches of tensors or arrays .* but got 'words'"),
    ([[]], r"expected batches of tensors or arrays .* but got \[\]"),
    ([{"x": "words"}], "expected batches of tensors or arrays .* but got {'x': 'words'}"),
    ([{}], r"expected keys that the model's forward takes \(other, scale, x\), but got none"),
    ([{"X": X, "Y": Y}], r"that the model's forward takes \(other, scale, x\), but got X, Y"),
    (X.to_sparse(), r"expected dense tensors, but got torch\.sparse_coo; call to_dense\(\)"),
    (np.array(["a", "b"]), "expected arrays of numbers, but got one of dtype <U1"),
    ([np.array([{}, {}])], "expected arrays of numbers, but got one of dtype object"),
    ([(X, np.array(["cat"] * 10))], "expected arrays of numbers, but got one of dtype <U3")])
def test_data_of_another_kind(data, message):
    with pytest.raises(ValueError, match=f"^data: .*{message}") as caught:
        list(Batches(data, Plain()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs", ["words", (), (None, X), {"x": None}])
def test_batch_to_inputs_that_gives_something_else(inputs):
    with pytest.raises(ValueError, match="^data: expected batches of tensors or arrays"):
        list(Batches([0], Plain(), lambda _: inputs))


@dataclass
class Graphs:
    x: Tensor
    y: Tensor


def test_the_loss_gets_a_batch_of_ones_own_class_itself():
    model, x, y = mlp(3, 5, 2), rows(8, 3), labels(8)
    usage = analyze(model, [Graphs(x[:3], y[:3]), Graphs(x[3:], y[3:])], criterion="taylor",
                    batch_to_inputs=lambda batch: batch.x,
                    loss=lambda outputs, batch: functional.cross_entropy(outputs, batch.y))
    expected = analyze(model, [(x, y)], criterion="taylor", loss=functional.cross_entropy)
    torch.testing.assert_close(torch.from_numpy(usage.layers["0"].unit_importance),
                               torch.from_numpy(expected.layers["0"].unit_importance))


def test_tensors_of_ones_own_function_keep_their_precision():
    model = nn.Linear(3, 2).bfloat16()
    batches = Batches([(rows(4, 3), torch.arange(4.0))], model, lambda batch: (
        batch[0].bfloat16(), batch[1] + 601.25, batch[0].double()))
    first, step, wide = next(iter(batches)).args
    assert (first.dtype, step.dtype, wide.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert float(step[1]) == 602.25


def test_time_first_sequences_are_counted_by_their_targets():
    model = Layers(lambda model, x: model.head(model.rnn(x)[0][-1]), rnn=nn.LSTM(3, 4),
                   head=nn.Linear(4, 2)).double()
    x, y = rows(4, 9, 3), labels(9)
    for criterion in ("taylor", "output"):
        whole, parts = (analyze(model, data, criterion=criterion, loss=functional.cross_entropy)
                        for data in ([(x, y)], [(x[:, :2], y[:2]), (x[:, 2:], y[2:])]))
        assert whole.samples == parts.samples == 9
        for name, layer in whole.layers.items():
            torch.testing.assert_close(torch.from_numpy(parts.layers[name].unit_importance),
                                       torch.from_numpy(layer.unit_importance))
    square = rows(9, 9, 3)  # cannot be told: as ever
    assert next(iter(Batches([(square, y)], model))).samples == 9
    assert next(iter(Batches([(rows(4, 9, 3), labels(4))], model))).samples == 4
    assert next(iter(Batches([rows(4, 9, 3)], model))).samples == 4


class Record(dict):
    """A dict with attributes, as the outputs of transformers' models are."""

    @property
    def first(self):
        return self["a"]


def test_values_are_changed_within_containers_that_stay_what_they_are():
    pair = namedtuple("pair", "x y")
    nested = {"p": pair(1, "s"), "b": Record(a=2), "o": OrderedDict(z=[3, (4.5, None)])}
    changed = mapped(nested, int, lambda number: number * 10)
    assert changed == {"p": pair(10, "s"), "b": Record(a=20), "o": OrderedDict(z=[30, (4.5, None)])}
    assert isinstance(changed["p"], pair) and isinstance(changed["b"], Record)
    assert changed["b"].first == 20
    assert nested["b"].first == 2 and nested["o"]["z"][0] == 3
    tokens = UserDict(a=[1], b="x")  # what a tokenizer gives: a mapping and no dict
    assert mapped((tokens, 2), int, lambda number: number * 10) == ({"a": [10], "b": "x"}, 20)
    assert tokens["a"] == [1]
    graphs = Graphs(X, Y)
    assert mapped([graphs], Tensor, str) == [graphs]


@pytest.mark.parametrize("width", [(), (3,), (2, 2)])
def test_a_growing_array_is_all_rows_in_few_pieces(width):
    draw = np.random.default_rng(0)
    parts = [draw.normal(size=(int(count), *width)) for count in draw.integers(0, 200, 300)]
    array, buffers = GrowingArray(), set()
    for part in parts:
        array.add(part)
        buffers.add(id(array._buffer.base if array._buffer.base is not None else array._buffer))
    assert np.array_equal(array.rows, np.concatenate(parts))
    assert len(buffers) < 8, "it doubles"
    mixed = GrowingArray()
    for part in (np.array([1, 2]), np.array([0.5]), np.array([True])):
        mixed.add(part)
    assert mixed.rows.tolist() == [1.0, 2.0, 0.5, 1.0] and mixed.rows.dtype == np.float64
    with pytest.raises(ValueError):
        array.add(np.zeros((2, 7, 7)))
    empty_first = GrowingArray()
    for part in (np.zeros((0, *width)), parts[1]):
        empty_first.add(part)
    assert np.array_equal(empty_first.rows, parts[1]) and len(GrowingArray().rows) == 0


def test_samples_of_several_sizes_come_in_a_list():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

        def forward(self, pictures):
            return self.head(torch.stack([self.body(each[None]).relu().mean((2, 3))[0]
                                          for each in pictures]))

    batches = [([torch.rand(3, 8, 9), torch.rand(3, 7, 7)], torch.tensor([0, 1])),
               ([torch.rand(3, 6, 6)], torch.tensor([1]))]
    model = Pooled()
    assert [batch.samples for batch in Batches(batches, model)] == [2, 1]
    assert set(analyze(model, batches, criterion="wanda").layers) == {"body"}
    assert slim(model, batches, widths={"body": 4}).units["body"] == (6, 4)
    with pytest.raises(ValueError, match="^data: expected batches of tensors"):
        list(Batches([(["a picture"], 0)], model))
