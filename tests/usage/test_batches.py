"""Data in any form become the same calls of the model, against what was put in."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from wua_mlflow.usage.batches import NO_TARGETS, Batches

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


class Pairs(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return X[number], Y[number]


class Dicts(Pairs):
    def __getitem__(self, number: int) -> dict[str, Tensor]:  # type: ignore[override]
        return {"x": X[number], "labels": Y[number]}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def halves(*tensors: Tensor):
    return zip(*(tensor.split(5) for tensor in tensors), strict=True)


FORMS = {
    "tensor": (lambda: X, False),
    "array": (lambda: X.numpy(), False),
    "array of float64": (lambda: X.double().numpy(), False),
    "read-only array": (lambda: np.broadcast_to(X.numpy(), X.shape), False),
    "array back to front": (lambda: X.numpy()[::-1][::-1], False),
    "list of tensors": (lambda: list(X.split(3)), False),
    "tuple of tensors": (lambda: X.split(3), False),
    "list of arrays": (lambda: np.array_split(X.numpy(), 4), False),
    "generator": (lambda: (part for part in X.split(4)), False),
    "tuples": (lambda: list(halves(X, Y)), True),
    "tuples of arrays": (lambda: [(x.numpy(), y.numpy()) for x, y in halves(X, Y)], True),
    "lists": (lambda: [[x, y] for x, y in halves(X, Y)], True),
    "tuples of one": (lambda: [(x,) for x in X.split(5)], False),
    "triples": (lambda: [(x, y, "names") for x, y in halves(X, Y)], True),
    "dicts": (lambda: [{"x": x, "labels": y} for x, y in halves(X, Y)], True),
    "dicts without labels": (lambda: [{"x": x} for x in X.split(5)], False),
    "ordered dicts": (lambda: [OrderedDict(x=x, labels=y) for x, y in halves(X, Y)], True),
    "user dicts": (lambda: [UserDict(x=x, labels=y) for x, y in halves(X, Y)], True),
    "dicts of arrays": (lambda: [{"x": x.numpy(), "labels": y.numpy()}
                                 for x, y in halves(X, Y)], True),
    "tuples of a dict": (lambda: [({"x": x}, y) for x, y in halves(X, Y)], True),
    "dataset": (lambda: TensorDataset(X, Y), True),
    "dataset of inputs": (lambda: TensorDataset(X), False),
    "own dataset": (Pairs, True),
    "dataset of dicts": (Dicts, True),
    "stream": (Stream, True),
    "loader": (lambda: DataLoader(TensorDataset(X, Y), batch_size=4), True),
    "loader of dicts": (lambda: DataLoader(Dicts(), batch_size=4), True),
    "empty batches between": (lambda: [X[:0], X[:4], X[4:4], X[4:], X[:0]], False),
}


@pytest.mark.parametrize(("form", "has_targets"), FORMS.values(), ids=FORMS)
def test_each_form_gives_all_samples_in_order(form, has_targets):
    batches = list(Batches(form(), Plain()))
    assert sum(batch.samples for batch in batches) == 10
    assert all(len(batch.first) == batch.samples > 0 for batch in batches)
    inputs = [(*batch.args, *batch.kwargs.values()) for batch in batches]
    assert torch.equal(torch.cat([one for one, in inputs]), X)
    assert all(one.dtype == torch.float32 for one, in inputs)
    if has_targets:
        assert torch.equal(torch.cat([batch.targets for batch in batches]), Y)
    else:
        assert all(batch.targets is NO_TARGETS for batch in batches)


def test_each_pass_is_like_the_first():
    batches = Batches(DataLoader(TensorDataset(X, Y), batch_size=4), Plain())
    for _ in range(3):
        assert torch.equal(torch.cat([batch.args[0] for batch in batches]), X)


def test_a_whole_tensor_comes_in_chunks():
    sizes = [batch.samples for batch in Batches(torch.zeros(2500, 3), Plain())]
    assert sizes == [1024, 1024, 452]
    dataset = TensorDataset(torch.zeros(150, 3))
    assert [batch.samples for batch in Batches(dataset, Plain())] == [64, 64, 22]


def test_keys_that_the_forward_does_not_take_are_dropped():
    batch = {"idx": Y, "x": X, "other": X, "scale": 2.0, "text": ["a"] * 10}
    found, = Batches([batch], Plain())
    assert list(found.kwargs) == ["x", "other", "scale"]
    assert found.kwargs["scale"] == 2.0
    found, = Batches([batch], Open())
    assert list(found.kwargs) == list(batch)
    assert found.first is found.kwargs["idx"]


def test_labels_are_targets_and_also_passed_on_where_the_forward_takes_them():
    class Labelled(Plain):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
            return self.linear(x)

    for model, keys in ((Plain(), ["x"]), (Labelled(), ["x", "labels"]), (Open(), ["x", "labels"])):
        found, = Batches([{"x": X, "labels": Y}], model)
        assert list(found.kwargs) == keys
        assert torch.equal(found.targets, Y)


def test_a_mask_says_what_is_padding_even_where_the_forward_does_not_take_it():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    found, = Batches([{"x": X[:2], "attention_mask": mask}], Plain())
    assert list(found.kwargs) == ["x"]
    assert found.mask.keep.tolist() == [[True, True, False], [True, False, False]]
    assert found.mask.count == 3
    for nothing in (torch.ones(2, 3), None, torch.zeros(2, 1, 3, 3)):
        found, = Batches([{"x": X[:2], "attention_mask": nothing}], Plain())
        assert found.mask is None
    found, = Batches([{"x": X[:2], "attention_mask": mask.numpy()}], Plain())
    assert found.mask.count == 3


TO_INPUTS = {
    "tensor": (lambda batch: batch["inner"]["x"], 1, 0),
    "array": (lambda batch: batch["inner"]["x"].numpy(), 1, 0),
    "tuple": (lambda batch: (batch["inner"]["x"], batch["inner"]["x"] + 1), 2, 0),
    "tuple with what is no tensor": (lambda batch: (batch["inner"]["x"], None, "word"), 3, 0),
    "dict": (lambda batch: {"x": batch["inner"]["x"], "scale": 3.0}, 0, 2),
}


@pytest.mark.parametrize(("to_inputs", "args", "kwargs"), TO_INPUTS.values(), ids=TO_INPUTS)
def test_batch_to_inputs(to_inputs, args, kwargs):
    data = [{"inner": {"x": x}, "labels": y} for x, y in halves(X, Y)]
    batches = list(Batches(data, Plain(), to_inputs))
    assert torch.equal(torch.cat([batch.first for batch in batches]), X)
    assert torch.equal(torch.cat([batch.targets for batch in batches]), Y)
    assert all((len(batch.args), len(batch.kwargs)) == (args, kwargs) for batch in batches)


def test_batch_to_inputs_of_other_kinds_of_batches():
    class Record:
        inputs = X

    record = Record()
    found, = Batches([record], Plain(), lambda one: one.inputs)
    assert torch.equal(found.args[0], X)
    assert found.targets is record  # for the loss to take them from
    found, = Batches([X], Plain(), lambda one: one)
    assert found.targets is NO_TARGETS
    found, = Batches([(Y, X)], Plain(), lambda pair: pair[1])
    assert torch.equal(found.args[0], X)
    assert torch.equal(found.targets, X)  # a tuple's second entry, whatever the inputs are
    found = list(Batches(TensorDataset(Y, X), Plain(), lambda pair: pair[1]))
    assert torch.equal(torch.cat([batch.args[0] for batch in found]), X)


def test_a_batch_that_is_a_dict_without_labels_is_its_own_target():
    batch = {"image": X, "class": Y}
    found, = Batches([batch], Plain(), lambda batch: batch["image"])
    assert found.targets is batch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_numbers_come_in_the_models_dtype(dtype):
    pair = namedtuple("pair", "left right")
    model = Open().to(dtype)
    found, = Batches([{"x": X.double(), "ids": Y, "on": Y > 3, "wave": torch.ones(10) * 1j,
                       "nested": [X, (Y, X)], "named": pair(X, Y), "deep": {"x": [X]}}], model)
    kwargs = found.kwargs
    assert kwargs["x"].dtype == kwargs["nested"][0].dtype == kwargs["nested"][1][1].dtype == dtype
    assert kwargs["named"].left.dtype == kwargs["deep"]["x"][0].dtype == dtype
    assert kwargs["ids"].dtype == kwargs["nested"][1][0].dtype == torch.int64
    assert (kwargs["on"].dtype, kwargs["wave"].dtype) == (torch.bool, torch.complex64)
    assert isinstance(kwargs["named"], pair)


def test_targets_keep_their_dtype():
    found, = Batches([(X, X.double())], Plain())
    assert found.targets.dtype == torch.float64
    found, = Batches([(X, X.double().numpy())], Plain())
    assert (type(found.targets), found.targets.dtype) == (Tensor, torch.float64)
    found, = Batches([(X, "cat")], Plain())
    assert found.targets == "cat"


def test_everything_is_moved_to_the_models_device():
    found, = Batches([{"x": X, "nested": [Y], "attention_mask": torch.tensor([[1, 0]] * 10),
                       "labels": Y}], Open().to("meta"))
    tensors = [found.kwargs["x"], found.kwargs["nested"][0], found.targets, found.mask.keep]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.parametrize("data", [X.to("meta"), [(X, Y.to("meta"))], [{"x": X.to("meta")}]],
                         ids=["tensor", "target", "dict"])
def test_data_on_the_meta_device(data):
    with pytest.raises(ValueError, match="^data: expected tensors with values, but got one on the "
                                         "meta device; make it on a real device$"):
        list(Batches(data, Plain()))


@pytest.mark.parametrize(("device", "expected"), [("cpu", False), ("mps", False), ("cuda", True)])
def test_only_a_copy_to_cuda_does_not_block(device, expected, monkeypatch):
    asked = []
    batches = Batches(X, Plain())
    batches._device = torch.device(device)
    monkeypatch.setattr(Tensor, "to", lambda self, **how: asked.append(how) or self)
    list(batches)
    assert asked == [{"device": torch.device(device), "dtype": torch.float32,
                      "copy": True, "non_blocking": expected}]


def test_a_model_without_parameters_takes_float32():
    found, = Batches([X.double()], nn.ReLU())
    assert found.args[0].dtype == torch.float32


def test_the_data_are_left_alone():
    array = X.numpy().copy()
    found, = Batches([array], Plain())
    found.args[0].zero_()
    assert array.sum() > 0


def test_data_made_in_inference_mode_can_be_differentiated_through():
    with torch.inference_mode():
        x, y = X + 1, X * 2
        batches = Batches([(x, y)], Plain())
    found, = batches
    assert x.is_inference() and y.is_inference()
    assert not found.args[0].is_inference() and not found.targets.is_inference()
    assert torch.equal(found.args[0], x)


def test_what_can_be_gone_over_only_once():
    assert Batches(iter([X]), Plain()).once
    assert Batches((part for part in [X]), Plain()).once
    for again in ([X], X, DataLoader(TensorDataset(X)), TensorDataset(X), Stream()):
        assert not Batches(again, Plain()).once


def test_a_loader_that_is_exhausted_in_a_later_pass():
    class Tired:
        def __init__(self) -> None:
            self.left = iter(X.split(5))

        def __iter__(self):
            return self.left

    batches = Batches(Tired(), Plain())
    assert len(list(batches)) == 2
    with pytest.raises(ValueError, match="^data: expected batches that can be gone over again, but "
                                         "got none in a later pass; give a DataLoader or a list$"):
        list(batches)
    never = Batches([], Plain())
    assert list(never) == list(never) == []


@pytest.mark.parametrize(("second", "shown"), [
    ({"x": X}, "x"), ({"x": X, "other": X, "labels": Y}, "labels, other, x"),
])
def test_keys_that_change(second, shown):
    batches = iter(Batches([{"x": X, "labels": Y}, second], Plain()))
    next(batches)
    with pytest.raises(ValueError, match=r"^data: expected batches with the same keys \(labels, x\)"
                                         f", but got {shown}$"):
        next(batches)
