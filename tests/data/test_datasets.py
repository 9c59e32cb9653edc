"""The tutorial's data, bundled sets and the user's function, against NumPy's and sklearn's own."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import sys
from typing import get_args
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn import datasets

from wua_mlflow.data.datasets import DataSplit, Part, load_data
from wua_mlflow.data.tasks import Task

_numbers = itertools.count()
USER = """
import numpy as np, torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset
class Items(Dataset):
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return torch.tensor(self.x[i]), int(self.y[i])
class Stream(IterableDataset):
    def __init__(self, x, y): self.x, self.y = x, y
    def __iter__(self): return iter(zip(self.x, self.y))
def parts(kind=tuple, classes=3, spoil=None):
    made = []
    for n in (30, 12, 15):
        x, y = np.random.default_rng(n).normal(size=(n, 4)), np.arange(n) % classes
        made.append([x, y])
    if spoil: spoil(made)
    return [kind(x, y) if kind is not tuple else (x, y) for x, y in made]
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Writes a module with ``parts`` and a function of the given body; gives its reference."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)

    def write(body):
        name = f"wua_user_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(f"{USER}\ndef data(seed):\n    {body}\n")
        return f"{name}:data"
    return write


def three(split: DataSplit) -> list[Part]:
    return [split.train, split.validation, split.test]


def digests(split: DataSplit) -> list[str]:
    return [part.digest for part in three(split)]


def fails(data: str, **options) -> str:
    """The one line that such data are refused with."""
    with pytest.raises(ValueError) as raised:
        load_data(data, **{"seed": 0, **options})
    message = str(raised.value)
    assert "\n" not in message
    return message


# The tutorial's data

def test_usecase_is_the_tutorials():
    before = np.random.get_state()
    np.random.seed(42)
    x = np.random.rand(1000, 2)
    np.random.set_state(before)
    split = load_data("usecase", seed=42)
    assert np.array_equal(split.train.inputs.numpy(), x.astype(np.float32))
    assert np.array_equal(split.train.targets.numpy()[:, 0], (x[:, 0] + x[:, 1] > 1))
    assert (split.features, split.outputs, split.task) == ((2,), 1, "binary")
    for part, purpose, n in ((split.validation, 2, 1000), (split.test, 3, 10_000)):
        fresh = np.random.default_rng(np.random.SeedSequence([42, purpose])).random((n, 2))
        assert np.array_equal(part.inputs.numpy(), fresh.astype(np.float32))
        assert np.array_equal(part.targets.numpy()[:, 0], fresh.sum(1) > 1)


def test_usecase_imports_no_table_library():
    absent = dict.fromkeys(("sklearn", "pandas", "pyarrow", "mlflow"))
    package = [name for name in sys.modules if name.split(".")[0] == "wua_mlflow"]
    with mock.patch.dict(sys.modules, absent):  # type: ignore[arg-type]
        for name in package:
            del sys.modules[name]
        again = importlib.import_module("wua_mlflow.data.datasets")
        assert again.load_data is not load_data
        assert len(again.load_data("usecase", seed=1).test) == 10_000
        with pytest.raises(ImportError):
            again.load_data("iris", seed=1)


# Bundled sets
@pytest.mark.parametrize(("name", "task", "classes"), [
    ("digits", "multiclass", tuple("0123456789")), ("breast_cancer", "binary", None),
    ("wine", "multiclass", None), ("iris", "multiclass", None), ("diabetes", "regression", ()),
])
def test_bundled_sets_are_sklearns(name, task, classes):
    raw = getattr(datasets, f"load_{name}")()
    split = load_data(name, seed=7)
    n = len(raw.target)
    assert (len(split.validation), len(split.test)) == (np.ceil(n / 10), np.ceil(0.3 * n))
    assert (split.task, split.features, split.name) == (task, raw.data.shape[1:], name)
    assert split.outputs == (len(raw.target_names) if task == "multiclass" else 1)
    assert split.source == f"sklearn.datasets.load_{name}"
    assert split.classes == (tuple(raw.target_names) if classes is None else classes)
    assert split.train.inputs.mean(0).abs().max() < 1e-5
    as_read = load_data(name, seed=7, standardise=False)
    inputs, targets = (torch.cat([getattr(part, what) for part in three(as_read)]).numpy()
                       for what in ("inputs", "targets"))
    assert np.array_equal(np.sort(inputs, axis=0), np.sort(raw.data.astype(np.float32), axis=0))
    assert np.array_equal(np.sort(targets.ravel()), np.sort(raw.target.astype(targets.dtype)))
    for part, share in zip(three(split), (0.6, 0.1, 0.3), strict=True) if classes != () else ():
        counts = np.bincount(part.targets.flatten().long().numpy())
        assert np.abs(counts - share * np.bincount(raw.target)).max() <= 1.5


def test_images_of_the_digits():
    split = load_data("digits", seed=7, image=True)
    assert split.features == (1, 8, 8)
    raw = datasets.load_digits().images.reshape(-1, 64) / 16
    images = torch.cat([part.inputs.flatten(1) for part in three(split)]).numpy()
    assert np.array_equal(images[np.lexsort(images.T)], raw[np.lexsort(raw.T)].astype(np.float32))
    for name in ("usecase", "iris"):
        assert fails(name, image=True).startswith("data: expected images, (height, width) or (ch")


# The user's function
@pytest.mark.parametrize("kind", [
    "tuple", "Items", "lambda x, y: (torch.tensor(x), torch.tensor(y)[:, None])",
    "lambda x, y: TensorDataset(torch.tensor(x), torch.tensor(y))",
    "lambda x, y: (x.tolist(), y.tolist())",
])
def test_a_users_function_in_every_form(user, kind):
    reference = user(f"global made; made = parts({kind}); return made")
    split = load_data(reference, seed=0)
    if kind == "tuple":  # the parts share no memory with the user's arrays
        sys.modules[reference.split(":")[0]].made[0][0][:] = 5
    for part, n in zip(three(split), (30, 12, 15), strict=True):
        x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
        assert np.array_equal(part.inputs.numpy(), x)
        assert part.targets.tolist() == [i % 3 for i in range(n)]
    assert (split.features, split.outputs, split.classes) == ((4,), 3, ("0", "1", "2"))
    inputs, targets = zip(*torch.utils.data.DataLoader(split.test, batch_size=4), strict=True)
    assert torch.equal(torch.cat(inputs), split.test.inputs)
    assert torch.equal(torch.cat(targets), split.test.targets)


def test_an_integer_tensor_or_dataset_holds_classes_however_many(user):
    for kind in ("lambda x, y: (torch.tensor(x), torch.tensor(y))", "Items"):
        assert load_data(user(f"return parts({kind}, classes=30)"), seed=0).outputs == 30
    arrays = user("return parts(classes=30)")
    assert load_data(arrays, seed=0).task == "regression"
    assert load_data(arrays, seed=0, task="multiclass").outputs == 30
    assert load_data("iris", target="", seed=0).outputs == 3
    assert load_data("iris", seed=0, task="regression").classes == ()


# Random numbers and digests
@pytest.mark.parametrize("data", [
    "usecase", "iris", "diabetes", "np.random.rand()", "torch.rand(1).item()", "random.random()"])
def test_the_seed_decides_the_data_and_the_global_streams_are_not_touched(data, user):
    if "(" in data:
        data = user(f"import random; return [(np.full((9, 2), {data}), np.arange(9) % 2)] * 3")
    numpy_before, torch_before = str(np.random.get_state()), torch.get_rng_state()
    first, again, other = (digests(load_data(data, seed=seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert str(np.random.get_state()) == numpy_before
    assert first == again
    assert not set(first) & set(other)


def test_a_digest_is_the_sha256_of_shapes_types_and_bytes():
    x, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1])
    digest, floats = Part(x, y).digest, np.array([1, 2, 3, 4], "<f4").tobytes()
    text = b"<f4(2, 2)" + floats + b"<i8(2,)" + np.array([0, 1], "<i8").tobytes()
    assert digest == hashlib.sha256(text).hexdigest()
    assert digest == Part(x.t().contiguous().t(), y).digest
    others = [Part(x + 1e-6, y), Part(x, 1 - y), Part(x.reshape(2, 1, 2), y), Part(x, y.int())]
    assert len({digest, *(part.digest for part in others)}) == 5


# What the user can get wrong
UNKNOWN = ("data: expected one of usecase, digits, breast_cancer, wine, iris, diabetes, the path "
           "of a file ending in .csv, .tsv, .parquet, .feather, .arrow, .npz, or "
           "package.module:function, but got ")


@pytest.mark.parametrize(("data", "options", "message"), [
    ("digit", {}, f"{UNKNOWN}'digit'; did you mean 'digits'?"), ("", {}, f"{UNKNOWN}''"),
    ("none.xlsx", {"target": "y"}, f"{UNKNOWN}'none.xlsx'"),
    ("iris", {"target": "y"}, "target: expected none beside data 'iris', but got 'y'"),
    ("iris", {"task": "classify"},
     f"task: expected one of {', '.join(get_args(Task))}, but got 'classify'"),
    ("iris", {"task": "binary"}, "task: binary expected two classes, but the target has 3"),
    ("iris", {"seed": -1}, "seed: expected a whole number in [0, 2**32), but got -1"),
])
def test_names_and_options_that_do_not_fit(data, options, message):
    assert fails(data, **options) == message


@pytest.mark.parametrize(("body", "message"), [
    ("return parts()[:2]", "to return (train, validation, test), but got 2 parts"),
    ("return 5", "to return (train, validation, test), but got int"),
    ("raise KeyError('k')", ", but got KeyError: 'k'"),
    ("return [(1, 2, 3)] * 3", "expected train to be a pair (inputs, targets), a Dataset, a "
     "DataLoader or a list of batches, but got 3 values"),
    ("return [np.ones((2, 9))] * 3", "or a list of batches, but got ndarray"),
    ("return parts(lambda x, y: TensorDataset(torch.tensor(x)))",
     "expected targets as tensors in the batches, (inputs, targets) or dicts with labels, but got "
     "none"),
    ("return parts(lambda x, y: iter([(x, y)]))", "expected train as something that can be gone "
     "over again, but got list_iterator"),
    ("return parts(lambda x, y: x[:, 0] * 5)", "a list of batches, but got ndarray"),
    ("return parts(lambda x, y: [])", "expected at least one batch in train, but got none"),
    ("return parts(lambda x, y: Items(x[:0], y))", "hold pairs (input, target), but got no items"),
    ("return parts(lambda x, y: Items(x, y[:3]))", "data from train, but got IndexError: index 3"),
    ("return parts(lambda x, y: ([[1], [2, 3]], y))", "arrays in train, but got ValueError: "),
])
def test_a_function_that_cannot_be_found_or_returns_something_else(user, body, message):
    reference = user(body)
    assert message in fails(reference)
    assert fails(f"{reference[:-4]}dta").endswith("but got 'dta'; did you mean 'data'?")
    assert fails("wua_no_such:data").startswith("data: expected a module")


@pytest.mark.parametrize(("spoil", "message"), [
    ("p[2][1] = p[2][1][:9]", "as many targets in test, but got 15 inputs and 9 targets"),
    ("p[1][:] = [p[1][0][:0], p[1][1][:0]]", "in validation, but got 0 inputs and 0 targets"),
    ("p[0][0] = p[0][0][:, 0]", "of shape (n, features, ...) in train, but got (30,)"),
    ("p[0][1] = np.eye(30)", "each example has exactly one of 30 labels; give targets.argmax(1)"),
    ("p[1][0][3:5] = np.nan", "the inputs of validation has NaN in 2 of 12 rows"),
    ("p[1][0][3] = np.inf", "has infinity, or more than float32 holds, in 1 of 12 rows"),
    ("p[2][1] = np.where(p[2][1] > 1, np.nan, 1)", "the target of test has NaN in 5 of 15 rows"),
    ("p[0][1] = [None, 'a', 'b'] * 10", "the target of train has none in 10 of 30 rows"),
    ("p[0][0] = np.full((30, 4), 'a')", "numbers as the inputs of train, but got <U1, such as 'a'"),
    ("p[0][1] = np.zeros(30)", "two different values, but all are '0'"),
    ("p[2][1][4] = 7", "only the classes '0', '1', '2', but test has '7'"),
    ("p[0][1] = np.linspace(0, 1, 30); p[1][1] = ['a'] * 12",
     "expected numbers in a regression, but validation has text, such as 'a'"),
    ("p[1][0] = p[1][0][:, :2]", "inputs of shape (4,) in validation, as in train, but got (2,)"),
    ("p[0][1] = np.full(30, 1j)", "numbers or text, but the target of train is complex128"),
])
def test_parts_that_do_not_fit(user, spoil, message):
    assert message in fails(user(f"def spoil(p): {spoil}\n    return parts(spoil=spoil)"))
