"""``wua compare`` of two files of per-example predictions: no network, no store."""

from __future__ import annotations

from dataclasses import dataclass

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.pipeline.comparing import EXIT, assert_same_verdict
from wua_mlflow.cli.main import main


@dataclass(frozen=True)
class Files:
    """Labels of 400 examples, and two models' guesses."""

    truth: np.ndarray
    a: np.ndarray
    b: np.ndarray

    @property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        return (self.a == self.truth).astype(float), (self.b == self.truth).astype(float)


@pytest.fixture
def files(store_uri, tmp_path):
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 400)
    a, b = (np.where(draw.random(400) < share, (truth + 1) % 3, truth) for share in (0.05, 0.09))
    pd.DataFrame({"prediction": a, "target": truth}).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame({"prediction": b}).to_csv(tmp_path / "b.csv", index=False)
    pd.DataFrame({"prediction": b.astype(float)}).to_parquet(tmp_path / "b.parquet")
    np.savez(tmp_path / "b.npz", prediction=b[:, None], target=truth.astype(np.int16))
    names = np.array(["ant", "bee", "cat"])
    pd.DataFrame({"prediction": names[a]}).to_csv(tmp_path / "a_names.csv", index=False)
    pd.DataFrame({"prediction": names[b], "target": names[truth]}).to_parquet(
        tmp_path / "b_names.parquet")
    np.savez(tmp_path / "b_names.npz", prediction=names[b].astype("S"))
    pd.DataFrame({"what": "text", "y": truth, "name": names[truth]}).to_csv(
        tmp_path / "truth.csv", index=False)
    np.savez(tmp_path / "truth.npz", y=truth)
    return Files(truth, a, b)


def test_files_of_predictions(files, compare):
    churn = np.mean(files.a != files.b)
    worst = min((files.scores[1] - files.scores[0])[files.truth == label].mean()
                for label in range(3))
    for words in (
        "a.csv b.csv", "a.csv b.parquet", "a.csv b.npz", "a.csv b.csv --data truth.csv --target y",
        "a.csv b.parquet --data truth.npz", "a_names.csv b_names.parquet",
        "a_names.csv b_names.npz --data truth.csv --target name",
    ):
        comparison = compare(*words.split(), "--margin", "0.06")
        assert_same_verdict(comparison, *files.scores, margin=0.06)
        metrics = comparison["metrics"]
        assert metrics["compare/churn"] == pytest.approx(churn)
        assert metrics["compare/worst_class_delta"] == pytest.approx(worst)
        assert not {name for name in metrics if name.endswith("_ratio")}


def loaders(seed):
    """Data in batches; the targets of the test part are those of ``files``."""
    truth = torch.from_numpy(np.random.default_rng(0).integers(0, 3, 400))
    return [DataLoader(TensorDataset(torch.zeros(400, 2), truth), batch_size=64) for _ in range(3)]


def tagged(seed):
    """Data of which each example has several targets."""
    rows = TensorDataset(torch.zeros(40, 5), torch.arange(200).reshape(40, 5) % 3)
    return [DataLoader(rows, batch_size=8) for _ in range(3)]


def test_files_of_predictions_beside_streamed_data(files, compare, tmp_path, capsys):
    """Their targets are read from the batches; of several targets an example there is no file."""
    pd.DataFrame({"prediction": files.a}).to_csv(tmp_path / "c.csv", index=False)
    data = "--data", f"{__name__}:loaders", "--margin", "0.06"
    assert_same_verdict(compare("c.csv", "b.csv", *data), *files.scores, margin=0.06)
    pd.DataFrame({"prediction": files.a[:300]}).to_csv(tmp_path / "short.csv", index=False)
    assert main(["compare", "short.csv", "b.csv", *data]) == 1
    assert "expected a prediction for each of the 400 test examples" in capsys.readouterr().err
    assert main(["compare", "c.csv", "b.csv", "--data", f"{__name__}:tagged",
                 "--task", "token_classification"]) == 1
    assert "compare: expected models, as an example has several targets (token_classification), " \
        "but got a file of predictions" in capsys.readouterr().err


def test_files_of_amounts(store_uri, compare, tmp_path):
    draw = np.random.default_rng(1)
    truth = draw.normal(50, 20, size=300)
    guesses = [truth + draw.normal(size=300) * spread for spread in (4, 5)]
    for name, guess in zip("ab", guesses, strict=True):
        pd.DataFrame({"prediction": guess, "target": truth}).to_csv(
            tmp_path / f"{name}.csv", index=False)
    comparison = compare("a.csv", "b.csv", "--margin", "0.05")
    assert_same_verdict(comparison, *guesses, margin=0.05, targets=truth, score="r2")
    assert comparison["artifact"]["method"] == "paired bootstrap-t"


@pytest.mark.parametrize(("wrong", "outcome"), [(0, "non_inferior"), (12, "inconclusive"),
                                                (400, "inferior")])
def test_the_exit_code_is_the_verdicts(wrong, outcome, store_uri, tmp_path, capsys):
    """Of 400 examples, against a margin of 2 points: none worse; 3 points worse; all wrong."""
    truth = np.arange(400) % 2
    pd.DataFrame({"prediction": truth, "target": truth}).to_csv(tmp_path / "a.csv", index=False)
    guess = np.where(np.arange(400) < wrong, 1 - truth, truth)
    pd.DataFrame({"prediction": guess}).to_csv(tmp_path / "b.csv", index=False)
    assert main(["compare", "a.csv", "b.csv", "--margin", "0.02"]) == EXIT[outcome]
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert table[0].split() == ["a.csv", "b.csv", "change"]
    assert table[1].split() == ["accuracy,", "test", "1.0000", f"{1 - wrong / 400:.4f}",
                                f"{-wrong / 400:+.4f}".replace("-", "−")]


def test_files_of_predictions_need_no_store(files, tmp_path, capsys):
    """One against itself, too."""
    for uri in ("http://127.0.0.1:1", f"sqlite:///{tmp_path / 'other.db'}"):
        mlflow.set_tracking_uri(uri)
        assert main(["compare", "a.csv", "a.csv"]) == 0
        assert "A: a.csv  B: a.csv" in capsys.readouterr().out
    assert not (tmp_path / "other.db").exists()


FILE_ERRORS = [
    ("a.csv short.csv", "compare: expected a prediction for each of the 400 test examples in "
                        "short.csv, but got 300"),
    ("a.csv shifted.csv", "compare: expected the test data's targets in shifted.csv, in the same "
                          "order, but "),
    ("a.csv chances.csv", "compare: expected predicted classes in chances.csv, but got 0.25; turn "
                          "probabilities into classes first"),
    ("a.csv a_names.csv", "compare: expected predicted classes such as 0 in a_names.csv, as the "
                          "targets are, but got "),
    ("b.csv b.parquet", "compare: expected a column 'target' in one of the two files, or the test "
                        "data (--data and --target), but got neither"),
    ("a.csv nowhere.csv", "compare: expected a file of predictions, but 'nowhere.csv' does not"),
    ("a.csv folder.csv", "compare: expected a file of predictions, but 'folder.csv' is a folder"),
    ("a.csv empty.csv", "compare: could not read empty.csv: "),
    ("a.csv junk.npz", "compare: could not read junk.npz: "),
    ("a.csv junk.parquet", "compare: could not read junk.parquet: "),
    ("a.csv headed.csv", "compare: expected one prediction an example in headed.csv, but got an "
                         "array of shape (0,)"),
    ("a.csv misspelt.csv", "compare: expected a column 'prediction' in misspelt.csv, but it has "
                           "predictions; did you mean 'predictions'?"),
    ("a.csv gap.parquet", "compare: expected a prediction in every row of gap.parquet, but 1 of "
                          "400 are missing"),
    ("a.csv wide.npz", "compare: expected one prediction an example in wide.npz, but got an array "
                       "of shape (400, 3)"),
    ("amounts.csv infinite.csv", "compare: expected finite numbers as the predictions in "
                                 "infinite.csv, as this is a regression, but got inf"),
    ("amounts.csv a_names.csv", "compare: expected finite numbers as the predictions in "
                                "a_names.csv, as this is a regression, but got "),
    ("b.csv b.csv --data truth.csv --target q", "target: expected a column of truth.csv, which "
                                                "has 'what', 'y', 'name', but got 'q'"),
    ("b.csv b.csv --data digits", "compare: expected a prediction for each of the 540 test "),
    ("a.csv b.txt", "compare: expected a run id, a model URI such as models:/name/1, or a file"),
]


def test_files_that_cannot_be_compared(files, tmp_path, refused):
    def write(name, **columns):
        pd.DataFrame(columns).to_csv(tmp_path / name, index=False)

    write("short.csv", prediction=files.a[:300], target=files.truth[:300])
    write("shifted.csv", prediction=files.a, target=np.roll(files.truth, 1))
    write("chances.csv", prediction=np.full(400, 0.25))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "junk.npz").write_text("no archive")
    (tmp_path / "junk.parquet").write_text("no table")
    write("headed.csv", prediction=[])
    write("misspelt.csv", predictions=files.b)
    pd.DataFrame({"prediction": ["ant"] * 399 + [None]}).to_parquet(tmp_path / "gap.parquet")
    np.savez(tmp_path / "wide.npz", prediction=np.zeros((400, 3)))
    amounts = np.linspace(0, 1, 400) ** 2
    write("amounts.csv", prediction=amounts, target=amounts)
    write("infinite.csv", prediction=[np.inf, *amounts[1:]])
    for words, message in FILE_ERRORS:
        assert refused(*words.split()).startswith(message), words
