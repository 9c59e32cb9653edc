"""DataFrames that the user's function returns: as a file with the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.data.test_datasets import digests, fails, three, user
from wua_mlflow.config import load_settings
from wua_mlflow.data.datasets import load_data
from wua_mlflow.data.loaders import load_analysis_data

user = user
FRAME = """
    import pandas as pd
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"age": draw.normal(40, 9, 200), "city": draw.choice(["a", "b"], 200),
                          "who": np.arange(200) // 4, "y": draw.choice(["no", "yes"], 200)})
    frame.loc[draw.random(200) < .1, "age"] = None
    parts = frame[:120], frame[120:150], frame[150:]
    pairs = [(part.drop(columns="y"), part["y"]) for part in parts]
    return """


def made():
    scope: dict = {"np": np}
    exec("def build():" + FRAME + "frame", scope)  # the same frame, here
    return scope["build"]()


def test_one_frame_is_split_like_a_file(user):
    frame = made()
    frame.to_csv("f.csv", index=False)
    for options in ({}, {"groups": "who"}):
        expected = load_data("f.csv", target="y", seed=1, **options)
        split = load_data(user(FRAME + "frame"), target="y", seed=1, **options)
        assert digests(split) == digests(expected)
        assert (split.columns, split.notes) == (expected.columns, expected.notes)
    beside = load_data(user(FRAME + "(frame.drop(columns='y'), frame['y'])"), seed=1)
    assert digests(beside) == digests(load_data("f.csv", target="y", seed=1))
    assert beside.spec.values == ("no", "yes")


@pytest.mark.parametrize(("returned", "target"), [
    ("parts", "y"), ("pairs", None), ("[list(pair) for pair in pairs]", "y"),
    ("[(x, y.to_numpy()) for x, y in pairs]", None)])
def test_three_parts_are_taken_as_they_are_divided(user, returned, target):
    split = load_data(user(FRAME + returned), target=target, seed=1)
    frame = made()
    assert [len(part) for part in three(split)] == [120, 30, 50]
    assert split.columns == ("age", "city=a", "city=b", "who", "age missing")
    assert split.scaling.gaps.fill[0] == frame.age[:120].median()
    expected = (frame.y[150:] == "yes").to_numpy(dtype=np.float32)
    assert np.array_equal(split.test.targets[:, 0].numpy(), expected)
    assert split.notes[0].startswith(f"age: {frame.age.isna().sum()} gaps, imputed by the median ")


def test_numbers_without_gaps_in_pairs_stay_as_they_are(user):
    plain = "[(x[['who']], (y == 'yes').to_numpy()) for x, y in pairs]"
    split = load_data(user(FRAME + plain), seed=1)
    assert torch.equal(split.train.inputs[:, 0], torch.arange(120.0) // 4)
    assert (split.scaling, split.encoding) == (None, None)


def test_an_analysis_takes_a_frame_too(user):
    settings = load_settings(None, {"data": user(FRAME + "frame"), "target": "y",
                                    "model": "wua_mlflow.pipeline.models:mlp"})
    assert digests(load_analysis_data(settings)) == digests(
        load_data(settings.data, target="y", seed=42))


@pytest.mark.parametrize(("returned", "target", "message"), [
    ("frame", None, "target: expected a column of what {} returned, which has 'age', 'city', "
     "'who', 'y', but got none"),
    ("frame[:0]", "y", "data: expected rows in what {} returned, but it has only a header"),
    ("(frame[:-1], frame['y'])", None, "data: expected a target for each of 199 rows from {}, but "
     "got an array of shape (200,)"),
    ("(frame, frame['y'])", None, "data: expected the target beside the inputs from {}, but they "
     "have a column 'y' too"),
    ("(parts[0], parts[1].drop(columns='city'), parts[2])", "y", "data: expected the same columns "
     "in all parts from {}, but validation lacks 'city', other than train"),
    ("pd.concat([frame, frame[['age']]], axis=1)", "y", "data: expected each column's name once in "
     "what {} returned, but 'age' stands there more than once; rename the columns"),
    ("frame.assign(city=[[1]] * 200)", "y", "data: expected numbers, dates or categories, but "
     "column 'city' of what {} returned has a list in a cell, such as [1]; mend it or leave it out "
     "(--drop-columns city)"),
    ("pairs[:2]", "y", "target: expected none beside data '{}', but got 'y'"),
])
def test_frames_that_cannot_be_used(user, returned, target, message):
    reference = user(FRAME + returned)
    assert fails(reference, target=target) == message.format(reference)


