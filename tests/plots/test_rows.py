"""Panels of rows: every layer in exactly one, blocks whole, all named where there is room."""

from __future__ import annotations

import pytest

from tests.plots.usages import PARTS, many, names
from wua_mlflow.plots.layer_rows import are_crowded, panels_of, row_names
from wua_mlflow.plots.usage import layers_data, plot_layers, plot_units, units_data


def _sizes(parts: list[slice]) -> list[int]:
    assert parts[0].start == 0
    for one, after in zip(parts, parts[1:], strict=False):
        assert one.stop == after.start
    return [part.stop - part.start for part in parts]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (110, [110]), (111, [56, 55]), (220, [110, 110]), (222, [74] * 3), (440, [110] * 4),
     (1000, [250] * 4)],
)
def test_rows_are_shared_out_evenly(count, sizes):
    assert _sizes(panels_of(row_names([f"fc{i}" for i in range(count)]))) == sizes


def test_a_panel_begins_with_a_block_where_one_begins_near_by():
    rows = row_names(names(200))
    parts = panels_of(rows)
    assert _sizes(parts) == [97, 103]
    assert rows.blocks[96:98] == ("encoder.layers.15", "encoder.layers.16")


def test_a_block_longer_than_that_is_split():
    rows = row_names([f"net.{i // 90}.part{i}" for i in range(180)] + ["head"])
    assert _sizes(panels_of(rows)) == [90, 91]
    rows = row_names([f"net.{i // 150}.part{i}" for i in range(150)] + ["net.head"])
    assert _sizes(panels_of(rows)) == [76, 75]


@pytest.mark.parametrize(("count", "crowded"), [(200, False), (440, False), (441, True)])
def test_rows_are_crowded_above_what_four_panels_name(count, crowded):
    assert are_crowded(count) is crowded


@pytest.mark.parametrize("picture", [lambda u: plot_layers(layers_data(u)),
                                     lambda u: plot_units(units_data(u))])
def test_at_200_layers_every_one_is_named_within_its_block(picture, legible):
    words = legible(picture(many(200)))
    for part in PARTS:
        assert words.count(part) == 33
    for block in range(33):
        assert f"encoder.layers.{block}" in words
    assert words.count("all in model") == 2


def test_of_500_layers_some_are_named_in_full_and_the_caption_says_so(legible):
    usage = many(500)
    words = legible(plot_layers(layers_data(usage)))
    assert "One layer in 2 is named." in " ".join(" ".join(words).split())
    named = [f"encoder.layers.{i}.{PARTS[0]}" for i in range(83)]
    assert 0 < len(set(words) & set(named)) < len(named)
    assert "no importance at all" not in words
