"""``wua compare A B`` of runs: what they keep, fresh rows, predictions of others."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file

import wua_mlflow as wua
from tests.pipeline import comparing
from tests.pipeline.comparing import (
    FEATURES,
    FRESH,
    FRESH_AMOUNTS,
    WHOLE,
    Compare,
    Made,
    Refused,
    Weighing,
    assert_same_verdict,
    forward,
    fresh_scores,
    log_model,
    model_of,
    raw,
    rows,
    scaling,
)
from wua_mlflow.cli.main import main
from wua_mlflow.tracking.store import connect

made, runs, compare, refused = comparing.made, comparing.runs, comparing.compare, comparing.refused


def test_runs_answer_with_what_they_keep(runs: dict[str, str], compare: Compare) -> None:
    found = compare(runs["A"], runs["B"], "--margin", "0.1")
    old, new = (load_file(MlflowClient().download_artifacts(
        runs[letter], "evaluation/test.safetensors")) for letter in "AB")
    scores = [(one["predictions"] == one["targets"]).astype(float) for one in (old, new)]
    assert_same_verdict(found, *scores, margin=0.1)
    assert found["metrics"]["compare/churn"] == pytest.approx(
        np.mean(old["predictions"] != new["predictions"]))
    forward_flops = [2 * (3 * hidden + hidden) for hidden in (6, 3)]
    parameters = [3 * hidden + hidden + hidden + 1 for hidden in (6, 3)]
    assert found["metrics"]["compare/flops_ratio"] == forward_flops[0] / forward_flops[1]
    assert found["metrics"]["compare/params_ratio"] == parameters[0] / parameters[1]
    assert found["metrics"]["compare/latency_ratio"] > 0


def test_beginnings_of_ids(runs: dict[str, str], compare: Compare) -> None:
    whole = compare(runs["A"], runs["B"])
    assert compare(runs["A"][:10], runs["B"][:10])["artifact"] == whole["artifact"]


def test_fresh_rows_go_through_each_runs_own_scaling(
    made: Made, runs: dict[str, str], compare: Compare
) -> None:
    """A and C were split, and so standardised, otherwise."""
    scores = [fresh_scores(made, letter, rows(7, 400)) for letter in "AC"]
    assert not np.array_equal(*scores)
    assert scores[0].mean() > 0.75
    assert_same_verdict(compare(runs["A"], runs["C"], *FRESH), *scores, margin=0.02)


def test_fresh_amounts(made: Made, runs: dict[str, str], compare: Compare) -> None:
    """R² in the data's own unit, by hand; the networks were trained on standardised targets."""
    found = compare(runs["P"], runs["Q"], *FRESH_AMOUNTS, "--margin", "0.3")
    fresh = rows(7, 400)
    truth = fresh["z"].to_numpy()
    scores = []
    for letter in "PQ":
        mean, scale = scaling(made, letter, "amounts")
        outputs = forward(runs[letter], (fresh[FEATURES].to_numpy() - mean[:3]) / scale[:3])
        scores.append(1 - (truth - outputs * scale[3] - mean[3]) ** 2 / truth.var())
    expected = wua.compare(*scores, margin=0.3, score="R²", seed=42)
    assert found["verdict"] == expected.outcome
    assert found["artifact"]["delta"] == pytest.approx(expected.delta, abs=1e-4)
    assert found["artifact"]["low"] == pytest.approx(expected.low, abs=1e-3)
    assert "compare/churn" not in found["metrics"]


def test_a_bundled_set_by_name_is_the_runs_own_test_part(
    runs: dict[str, str], compare: Compare, refused: Refused
) -> None:
    """And an MLP's flat rows and a CNN's images are then the same examples."""
    line = refused(runs["D"], runs["E"])
    assert line.endswith("differ; name one test set with --data")
    found = compare(runs["D"], runs["E"], "--data", "digits")
    old, new = (load_file(MlflowClient().download_artifacts(
        runs[letter], "evaluation/test.safetensors")) for letter in "DE")
    assert np.array_equal(old["targets"], new["targets"])
    assert_same_verdict(found, old["predictions"] == old["targets"],
                        new["predictions"] == new["targets"], margin=0.02)
    assert "compare/latency_ratio" not in found["metrics"]


def test_predictions_against_a_run(
    runs: dict[str, str], compare: Compare, tmp_path: Path
) -> None:
    """Those of B, written down with the classes' names and with the amounts' own unit."""
    from wua_mlflow.pipeline.variant import load_variant

    kept = load_file(MlflowClient().download_artifacts(runs["B"], "evaluation/test.safetensors"))
    names = np.array(["no", "yes"])[kept["predictions"].astype(int)]
    pd.DataFrame({"prediction": names}).to_csv(tmp_path / "b.csv", index=False)
    assert compare(runs["A"], "b.csv")["artifact"] == compare(runs["A"], runs["B"])["artifact"]
    np.savez(tmp_path / "b.npz", prediction=names,
             target=np.array(["no", "yes"])[kept["targets"].astype(int)])
    assert compare("b.npz", runs["A"])["artifact"] == compare(runs["B"], runs["A"])["artifact"]
    scaler = load_variant(connect("variants"), runs["Q"]).recipe.split.scaling.targets
    kept = load_file(MlflowClient().download_artifacts(runs["Q"], "evaluation/test.safetensors"))
    unit = (float(scaler.mean.item()), float(scaler.deviation.item()))
    pd.DataFrame({name: kept[f"{name}s"] * unit[1] + unit[0] for name in ("prediction", "target")}
                 ).to_csv(tmp_path / "q.csv", index=False)
    by_file, by_run = compare(runs["P"], "q.csv"), compare(runs["P"], runs["Q"])
    assert by_file["artifact"]["delta"] == pytest.approx(by_run["artifact"]["delta"], abs=1e-5)
    assert by_file["artifact"]["low"] == pytest.approx(by_run["artifact"]["low"], abs=1e-4)


def test_the_table_of_two_networks(runs: dict[str, str],
                                   capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", runs["A"], runs["B"]])
    out = capsys.readouterr().out
    assert "oversized 6  oversized 3" in out
    for label in ("accuracy, test", "FLOPs, one sample", "parameters", "latency, p50, ms"):
        assert f"\n{label}" in out
    assert "The latencies are not alike" not in out
    main(["compare", runs["A"], log_model(Weighing(WHOLE), raw())[0], *FRESH])
    assert "The latencies are not alike: models:/" in capsys.readouterr().out


def _everything() -> dict[str, object]:
    client = MlflowClient()
    ids = [found.experiment_id for found in client.search_experiments()]
    return {"experiments": ids, "models": len(client.search_logged_models(ids)),
            "runs": {run.info.run_id: (run.data.to_dictionary(), run.info.end_time)
                     for run in client.search_runs(ids)}}


def _artifacts(made: Made) -> list[Path]:
    """All but a note that MLflow itself leaves beside a model that it loads."""
    return sorted(path for path in (made.folder / "mlruns").rglob("*")
                  if path.name != "registered_model_meta")


def test_nothing_is_logged_or_trained(
    made: Made, runs: dict[str, str], compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wua_mlflow.pipeline import recipe

    monkeypatch.setattr(recipe, "fit", None)
    address = model_of(runs["B"])
    before = _everything()
    files = _artifacts(made)
    compare(runs["A"], runs["B"])
    compare(runs["A"], address, *FRESH)
    assert _everything() == before
    assert _artifacts(made) == files


def test_each_comparison_is_a_look_at_its_test_data(
    runs: dict[str, str], compare: Compare
) -> None:
    """The same one again is none; another margin, or other data, is."""
    def looks(*arguments: str) -> int:
        return int(compare(runs["A"], runs["B"], *arguments)["metrics"]["compare/looks"])

    first = looks("--margin", "0.031")
    assert looks("--margin", "0.031") == first
    assert looks("--margin", "0.032") == first + 1
    assert compare(runs["B"], runs["A"], "--margin", "0.032")["metrics"]["compare/looks"] == \
        first + 2
    fresh = looks("--margin", "0.031", *FRESH)
    assert looks("--margin", "0.033", *FRESH) == fresh + 1
    assert looks("--margin", "0.031") == first + 2


def test_a_file_that_was_written_anew_is_another_look(
    runs: dict[str, str], compare: Compare
) -> None:
    kept = load_file(MlflowClient().download_artifacts(
        runs["A"], "evaluation/test.safetensors"))
    found = []
    for flipped in (3, 4, 4):
        predictions = kept["predictions"].copy()
        predictions[:flipped] = 1 - predictions[:flipped]
        names = np.array(["no", "yes"])[predictions.astype(int)]
        pd.DataFrame({"prediction": names}).to_csv("written.csv", index=False)
        found.append(int(compare(runs["A"], "written.csv")["metrics"]["compare/looks"]))
    assert found == [found[0], found[0] + 1, found[0] + 1]


def test_where_nothing_can_be_noted_the_look_counts_all_the_same(
    runs: dict[str, str], compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise MlflowException("read only")

    before = compare(runs["A"], runs["B"], "--margin", "0.041")["metrics"]["compare/looks"]
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refused)
    found = compare(runs["A"], runs["B"], "--margin", "0.042")
    assert found["metrics"]["compare/looks"] == before + 1


def test_the_ratio_of_latencies_has_its_interval(runs: dict[str, str], compare: Compare) -> None:
    found = compare(runs["A"], runs["B"])["metrics"]
    low, ratio, high = (found[f"compare/latency_ratio{end}"] for end in ("_low", "", "_high"))
    assert 0 < low <= ratio <= high


def test_a_store_that_is_not_there_is_not_made(
    store_uri: str, tmp_path: Path, refused: Refused
) -> None:
    uri = f"sqlite:///{tmp_path / 'none.db'}"
    mlflow.set_tracking_uri(uri)
    assert refused("ab" * 16, "cd" * 16) == (
        f"compare: no run has the id '{'ab' * 16}': there is no {uri}")
    assert not (tmp_path / "none.db").exists()


def test_models_that_cannot_be_compared(
    made: Made, runs: dict[str, str], refused: Refused, tmp_path: Path
) -> None:
    foreign = log_model(Weighing(WHOLE), raw())[0]
    assert refused(foreign, foreign) == (
        "data: expected the test data that the models are compared on (--data), but got none")
    assert refused(runs["A"], runs["C"]).endswith("differ; name one test set with --data")
    assert refused(runs["A"], runs["D"]).endswith("; name one test set with --data")
    assert "does not take the data's inputs of shape (batch, 64)" in refused(foreign, runs["D"])
    assert refused(runs["A"], runs["D"], *FRESH).startswith(
        "data: expected inputs of shape (64,) in fresh.csv, as the model's own data have")
    rows(7).assign(y="maybe").drop(columns="z").to_csv(tmp_path / "unseen.csv", index=False)
    assert refused(runs["A"], runs["B"], "--data", "unseen.csv", "--target", "y") == (
        "data: expected only the classes 'no', 'yes', but unseen.csv has 'maybe'")
    fresh = rows(7).drop(columns="z")
    fresh[["c", "a", "b", "y"]].to_csv(tmp_path / "turned.csv", index=False)
    assert refused(runs["A"], runs["B"], "--data", "turned.csv", "--target", "y") == (
        f"data: expected the columns a, b, c in turned.csv, as in {made.folder / 'classes.csv'}, "
        f"which the model was trained on, but got them in another order")
    fresh.rename(columns={"b": "d"}).to_csv(tmp_path / "named.csv", index=False)
    assert refused(runs["A"], runs["B"], "--data", "named.csv", "--target", "y").endswith(
        ", which the model was trained on, but got a, d, c")
    trained_on = str(made.folder / "classes.csv")
    assert refused(runs["A"], runs["B"], "--data", trained_on, "--target", "y").startswith(
        "data: expected rows that training never saw, but ")
    assert refused(runs["A"], "models:/none/1").startswith("model URI models:/none/1: ")
    assert refused(runs["A"], f"runs:/{runs['B']}/none").startswith("model URI runs:/")
    assert refused(runs["A"], "e" * 32).startswith(f"run_id: no run has the id '{'e' * 32}'")
    assert refused(runs["A"], runs["B"], "--device", "cuda:77").startswith("device: cuda:77 ")
