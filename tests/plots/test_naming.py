"""Labels of rows: by hand for the usual models, and apart from each other for any."""

from __future__ import annotations

import numpy as np
import pytest

from tests.plots.usages import names
from wua_mlflow.plots.layer_rows import RowNames, row_names, shortened


def test_a_transformers_layers_are_named_by_block():
    rows = row_names(["model.h.0.attn.c_attn", "model.h.0.mlp.c_fc", "model.h.1.attn.c_attn",
                      "model.h.1.mlp.c_fc", "model.head"])
    assert rows == RowNames(
        prefix="model.",
        blocks=("h.0", "h.0", "h.1", "h.1", ""),
        names=("attn.c_attn", "mlp.c_fc", "attn.c_attn", "mlp.c_fc", "head"),
    )
    assert [rows.starts_block(i) for i in range(5)] == [True, False, True, False, True]


def test_a_resnets_layers_are_named_by_block():
    rows = row_names(["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.downsample.0",
                      "layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1"])
    assert rows.prefix == ""
    assert rows.blocks == ("", *["layer1.0"] * 3, *["layer1.1"] * 2, "")
    assert rows.names == (
        "conv1", "conv1", "conv2", "downsample.0", "conv1", "conv2", "layer2.0.conv1")


@pytest.mark.parametrize(
    ("given", "prefix", "written"),
    [
        (["fc1", "fc2"], "", ("fc1", "fc2")),
        (["0", "2", "4"], "", ("0", "2", "4")),
        (["features.0", "features.3"], "features.", ("0", "3")),
        (["encoder.fc1"], "", ("encoder.fc1",)),
        ([""], "", ("model",)),
    ],
)
def test_a_network_without_blocks(given, prefix, written):
    assert row_names(given) == RowNames(prefix, ("",) * len(given), written)


def test_without_blocks_a_name_is_whole_but_for_what_all_share():
    rows = row_names(["net.0.a", "net.0.b", "net.1.a"], by_block=False)
    assert rows == RowNames("net.", ("", "", ""), ("0.a", "0.b", "1.a"))


@pytest.mark.parametrize("longest", [3, 8, 20])
def test_what_differs_looks_different_and_what_does_not_the_same(longest):
    rng = np.random.default_rng(0)
    alphabet = list("abc.01_")
    full = ["".join(rng.choice(alphabet, size=rng.integers(1, 60))) for _ in range(300)]
    full += full[:20]
    short = shortened(full, longest)
    for i, name in enumerate(full):
        for k in range(i):
            assert (short[i] == short[k]) == (name == full[k])


@pytest.mark.parametrize("count", [6, 60, 200])
def test_no_two_rows_of_a_model_look_alike(count):
    rows = row_names(names(count))
    assert len(set(zip(rows.blocks, rows.names, strict=True))) == count
    for block, name, full in zip(rows.blocks, rows.names, names(count), strict=True):
        assert f"{rows.prefix}{f'{block}.' if block else ''}{name}" == full


def test_a_short_name_stays_whole_and_a_long_one_is_cut():
    long = "a_module_with_a_very_long_name_that_nobody_can_read_at_a_glance"
    short = shortened([long, "fc"], 20)
    assert short[1] == "fc" and len(short[0]) <= 20 and "…" in short[0]
    head, tail = short[0].split("…")
    assert long.startswith(head) and long.endswith(tail)
