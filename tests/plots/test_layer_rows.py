"""Rows: labels that stay apart; panels in which every layer stands once, blocks whole."""

import numpy as np
import pytest

from tests.plots.usages import PARTS, many, names, words_of
from wua_mlflow.plots.layer_rows import RowNames, are_crowded, panels_of, row_names, shortened
from wua_mlflow.plots.usage import layers_data, plot_layers, plot_units, units_data


@pytest.mark.parametrize(("full", "ends"), [
    (["fc"], [1]),
    ([f"fc{i}" for i in range(110)], [110]),
    ([f"fc{i}" for i in range(111)], [56, 111]),
    ([f"fc{i}" for i in range(1000)], [250, 500, 750, 1000]),
    (names(200), [97, 200]),  # a block begins there
    ([f"net.{i // 90}.part{i}" for i in range(180)] + ["head"], [90, 181]),
    ([f"net.{i // 150}.part{i}" for i in range(150)] + ["net.head"], [76, 151]),
])
def test_panels_hold_every_row_once_and_begin_with_a_block_where_one_is_near(full, ends):
    rows = row_names(full)
    assert panels_of(rows) == [slice(*each) for each in zip([0, *ends], ends, strict=False)]
    if full == names(200):
        assert rows.blocks[96:98] == ("encoder.layers.15", "encoder.layers.16")
    assert are_crowded(441) and not are_crowded(440), "above what four panels name"


def test_every_layer_is_named_within_its_block_or_the_caption_says_that_some_are(legible):
    words = legible(plot_units(units_data(many(128))))
    for part in PARTS:
        assert words.count(part) == 21
    assert {f"encoder.layers.{block}" for block in range(21)} <= set(words)
    assert words.count("all in model") == 2
    words = words_of(plot_layers(layers_data(many(500))))
    assert "One layer in 2 is named." in words
    named = [name for name in names(500)[1:-1] if name.removeprefix("model.") in words]
    assert 0 < len(named) < 498
    assert words.count("no importance at all") == 1, "in the subtitle"


@pytest.mark.parametrize(("full", "prefix", "blocks", "written"), [
    (["model.h.0.attn.c_attn", "model.h.0.mlp.c_fc", "model.h.1.attn.c_attn", "model.h.1.mlp.c_fc",
      "model.head"], "model.", ["h.0", "h.0", "h.1", "h.1", ""],
     ["attn.c_attn", "mlp.c_fc", "attn.c_attn", "mlp.c_fc", "head"]),
    (["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.downsample.0", "layer1.1.conv1",
      "layer1.1.conv2", "layer2.0.conv1"], "",
     ["", "layer1.0", "layer1.0", "layer1.0", "layer1.1", "layer1.1", ""],
     ["conv1", "conv1", "conv2", "downsample.0", "conv1", "conv2", "layer2.0.conv1"]),
    (["0", "2", "4"], "", ["", "", ""], ["0", "2", "4"]),
    (["features.0", "features.3"], "features.", ["", ""], ["0", "3"]),
    (["encoder.fc1"], "", [""], ["encoder.fc1"]),
    ([""], "", [""], ["model"]),
])
def test_layers_are_named_by_block(full, prefix, blocks, written):
    rows = row_names(full)
    assert rows == RowNames(prefix, tuple(blocks), tuple(written))
    starts = [not block or block != before
              for block, before in zip(blocks, ["", *blocks], strict=False)]
    assert [rows.starts_block(i) for i in range(len(full))] == starts
    unblocked = row_names(["net.0.a", "net.0.b", "net.1.a"], by_block=False)
    assert unblocked == RowNames("net.", ("", "", ""), ("0.a", "0.b", "1.a"))


@pytest.mark.parametrize("longest", [3, 20])
def test_what_differs_looks_different_and_what_does_not_the_same(longest):
    rng = np.random.default_rng(0)
    full = ["".join(rng.choice(list("abc.01_"), size=rng.integers(1, 60))) for _ in range(100)]
    full += full[:20]
    short = shortened(full, longest)
    for i, name in enumerate(full):
        for k in range(i):
            assert (short[i] == short[k]) == (name == full[k])
    long = "a_module_with_a_very_long_name_that_nobody_can_read_at_a_glance"
    cut, whole = shortened([long, "fc"], longest)
    assert whole == "fc" and len(cut) <= longest
    head, tail = cut.split("…")
    assert long.startswith(head) and long.endswith(tail)


@pytest.mark.parametrize("count", [6, 200])
def test_no_two_rows_of_a_model_look_alike(count):
    rows = row_names(names(count))
    assert len(set(zip(rows.blocks, rows.names, strict=True))) == count
    for block, name, full in zip(rows.blocks, rows.names, names(count), strict=True):
        assert f"{rows.prefix}{f'{block}.' if block else ''}{name}" == full
