"""Cut models of the transformers library reload by ``from_pretrained``, or it is said why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import wua_mlflow as wua
from wua_mlflow.flops import tensors_in
from wua_mlflow.pruning.configuration import (
    MOST_BUILDS,
    Reload,
    fit_configuration,
    groups_by_number,
    heads_tied_to_stream,
    widths_that_reload,
)
from wua_mlflow.pruning.cut import Cut, cut, unit_groups
from wua_mlflow.pruning.unit_groups import UnitGroups
from wua_mlflow.slimming import slim

ALL = ("units", "heads", "stream")
SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64}
"""As many places as units of the feed-forward, as many words as the model is wide."""
PLACES = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GROUPED = {**SIZES, **PLACES, "num_key_value_heads": 2}
CLASSIFIER = "ForSequenceClassification"
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, int]]]] = {
    "Bert": (CLASSIFIER, SIZES, {
        "hidden_size": (32, 16), "intermediate_size": (64, 32), "num_attention_heads": (4, 2)}),
    "Roberta": (CLASSIFIER, SIZES, {
        "hidden_size": (32, 16), "intermediate_size": (64, 32), "num_attention_heads": (4, 2)}),
    "DistilBert": (CLASSIFIER, {
        "vocab_size": 32, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 64},
        {"dim": (32, 16), "hidden_dim": (64, 32), "n_heads": (4, 2)}),
    "Electra": (CLASSIFIER, {**SIZES, "embedding_size": 16}, {
        "hidden_size": (32, 16), "intermediate_size": (64, 32), "num_attention_heads": (4, 2),
        "embedding_size": (16, 8)}),
    "ViT": ("ForImageClassification", {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 16, "patch_size": 8},
        {"hidden_size": (32, 16), "intermediate_size": (64, 32), "num_attention_heads": (4, 2)}),
    "GPT2": ("LMHeadModel", {"vocab_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 4,
                             "n_positions": 64, **PLACES},
             {"n_embd": (32, 16), "n_head": (4, 2)}),
    **dict.fromkeys(("Llama", "Qwen2", "Mistral"), ("ForCausalLM", GROUPED, {
        "hidden_size": (32, 16), "intermediate_size": (64, 32), "num_attention_heads": (4, 2),
        "num_key_value_heads": (2, 1)})),
    "Gemma2": ("ForCausalLM", {**GROUPED, "head_dim": 8}, {
        "intermediate_size": (64, 32), "num_attention_heads": (4, 2),
        "num_key_value_heads": (2, 1)}),
    "T5": ("ForConditionalGeneration", {
        "vocab_size": 32, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        {"d_ff": (64, 32), "num_heads": (4, 2)}),
    "Whisper": ("ForConditionalGeneration", {
        "vocab_size": 32, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "num_mel_bins": 8, "max_source_positions": 20,
        "max_target_positions": 16, "decoder_start_token_id": 2, **PLACES},
        {"d_model": (32, 16), "encoder_ffn_dim": (64, 32), "decoder_ffn_dim": (64, 32),
         "encoder_attention_heads": (4, 2), "decoder_attention_heads": (4, 2)}),
}
"""By family its class, its sizes, and which of them change when all is cut to half."""
SLOW = ("Whisper", "Mistral", "Electra", "Roberta", "Qwen2", "T5")
SCALED = {"Gemma2": "embed_scale", "T5": "model_dim"}
"""Families that multiply by a number made of the model's width, and that number."""


def made(family: str, **sizes: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model of random weights in eval mode, and a batch."""
    ending, settings, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**settings, **sizes})
    words = torch.randint(3, 32, (2, 6))
    batch = {"input_ids": words}
    if family == "ViT":
        batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    elif family == "T5":
        batch["decoder_input_ids"] = words[:, :5]
    elif family == "Whisper":
        batch = {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": words[:, :5]}
    return getattr(transformers, f"{family}{ending}")(config).eval(), batch


def to_half(
    model: nn.Module, batch: Mapping[str, torch.Tensor], structure: UnitGroups,
    widths: Mapping[str, int] | None = None,
) -> tuple[Cut, Reload]:
    """Cut to half, every other unit, and these to other widths; then the configuration."""
    widths = {group.name: group.units // 2 for group in structure.groups} | dict(widths or {})
    keep = {name: range(structure.group(name).units)[::2][:width]
            if 2 * width <= structure.group(name).units else range(width)
            for name, width in widths.items()}
    result = cut(model, batch, keep, structure)
    reload = fit_configuration(model, result.model, result.units, batch)
    assert reload is not None
    return result, reload


def difference(one: nn.Module, other: nn.Module, batch: Mapping[str, torch.Tensor]) -> float:
    with torch.no_grad():
        pairs = zip(*(tensors_in(model(**batch), objects=True) for model in (one, other)),
                    strict=True)
        return max(float((first - second).abs().max()) for first, second in pairs)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", [
    pytest.param(family, marks=pytest.mark.slow) if family in SLOW else family
    for family in FAMILIES])
def test_a_model_cut_to_half_reloads(family, tmp_path):
    model, batch = made(family)
    before = model.config.to_dict()
    structure = unit_groups(model, batch, ALL[:2] if family in SCALED else ALL)
    result, reload = to_half(model, batch, structure)
    assert (reload.reason, reload.changes) == ("", FAMILIES[family][2])
    assert model.config.to_dict() == before
    result.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert difference(result.model, again, batch) == 0
    changed = {name for name, value in again.config.to_dict().items() if before.get(name) != value}
    assert changed - {"architectures", "dtype", "_name_or_path"} == set(reload.changes)
    assert reload.builds < MOST_BUILDS / 2


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
@pytest.mark.parametrize("family", SCALED)
def test_a_number_made_of_the_width_is_named(family):
    model, batch = made(family)
    result, reload = to_half(model, batch, unit_groups(model, batch, ALL))
    assert SCALED[family] in reload.reason and "other outputs" in reload.reason
    assert result.model.config.to_dict() == model.config.to_dict()


def test_widths_that_differ_by_layer_are_named_and_the_configuration_stays():
    model, batch = made("Bert")
    structure = unit_groups(model, batch, ("units",))
    other = "bert.encoder.layer.1.intermediate.dense"
    result, reload = to_half(model, batch, structure, {"bert.pooler.dense": 32, other: 24})
    assert reload.reason.startswith("its configuration cannot say these widths: intermediate_size=")
    assert "bert.encoder.layer." in reload.reason
    assert not reload.changes and result.model.config.to_dict() == model.config.to_dict()
    assert "structure.json" in str(reload)


def test_a_width_that_hangs_on_others_is_set_where_it_need_not_be():
    """GPT-2's ``n_inner`` is None, four times the width."""
    model, batch = made("GPT2")
    structure = unit_groups(model, batch, ("units",))
    _, reload = to_half(model, batch, structure,
                        {f"transformer.h.{layer}.mlp.c_fc": 40 for layer in (0, 1)})
    assert (reload.reason, reload.changes) == ("", {"n_inner": (None, 40)})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_heads_alone_reload_where_their_size_can_be_said(tmp_path):
    """ViT takes a ``head_dim`` that its configuration does not declare; BERT takes none."""
    for family, reloads in (("ViT", True), ("Bert", False)):
        model, batch = made(family)
        structure = unit_groups(model, batch, ("heads",))
        result, reload = to_half(model, batch, structure)
        assert (not reload.reason) == reloads
        assert heads_tied_to_stream(model, unit_groups(model, batch, ALL)) == ({} if reloads else {
            f"bert.encoder.layer.{layer}.attention.self": "bert.embeddings.word_embeddings"
            for layer in (0, 1)})
        if reloads:
            result.model.save_pretrained(tmp_path)
            assert difference(result.model, type(model).from_pretrained(tmp_path), batch) == 0


def test_an_odd_share_of_heads_and_stream_changes_both_numbers_at_once():
    """5 of 8 heads of 3: neither 24 ÷ 5 nor 15 ÷ 8 is a whole number."""
    model, batch = made("Bert", hidden_size=24, num_attention_heads=8)
    structure = unit_groups(model, batch, ALL)
    widths = {name: 15 for name in groups_by_number(model, structure)["hidden_size"]}
    heads = {name: 5 for name in heads_tied_to_stream(model, structure)}
    _, reload = to_half(model, batch, structure, widths | heads)
    assert (reload.reason, reload.changes) == ("", {
        "hidden_size": (24, 15), "intermediate_size": (64, 32), "num_attention_heads": (8, 5)})


def test_groups_that_one_number_says():
    model, batch = made("Llama")
    structure = unit_groups(model, batch, ALL)
    heads = tuple(f"model.layers.{layer}.self_attn" for layer in (0, 1))
    groups = groups_by_number(model, structure)
    assert groups["intermediate_size"] == tuple(
        f"model.layers.{layer}.mlp.gate_proj" for layer in (0, 1))
    assert groups["hidden_size"] == ("model.embed_tokens",)
    assert groups["num_attention_heads"] == groups["num_key_value_heads"] == heads
    assert heads_tied_to_stream(model, structure) == {}


class OwnConfig(transformers.PreTrainedConfig):
    """Of a class of one's own: a nested configuration, a list of widths, the same numbers."""

    model_type = "own"

    def __init__(self, widths=(8, 12), inner=None, steps=12, **others):
        self.widths, self.steps = list(widths), steps
        self.inner = OwnInner(**inner) if isinstance(inner, dict) else inner or OwnInner()
        super().__init__(**others)


class OwnInner(transformers.PreTrainedConfig):
    model_type = "own_inner"

    def __init__(self, width=12, steps=8, **others):
        self.width, self.steps = width, steps
        super().__init__(**others)


class Own(transformers.PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config, last=3):
        super().__init__(config)
        sizes = [4, *config.widths, config.inner.width]
        self.layers = nn.Sequential(*(
            layer for pair in zip(sizes, sizes[1:], strict=False)
            for layer in (nn.Linear(*pair), nn.ReLU())))
        self.last = nn.Linear(config.inner.width, last)
        self.post_init()

    def forward(self, x):
        return self.last(self.layers(x))


class OwnFixed(Own):
    """One of its widths is written in its code."""

    def __init__(self, config):
        super().__init__(config)
        self.last = nn.Sequential(nn.Linear(config.inner.width, 6), nn.ReLU(), nn.Linear(6, 3))


class OwnWithArguments(Own):
    def __init__(self, config, last):
        super().__init__(config, last)


def test_a_class_of_ones_own_with_nested_numbers_and_lists(tmp_path):
    torch.manual_seed(0)
    model, batch = Own(OwnConfig()).eval(), {"x": torch.randn(5, 4)}
    structure = unit_groups(model, batch)
    result, reload = to_half(model, batch, structure, {"layers.2": 7})
    assert reload.changes == {"widths.0": (8, 4), "widths.1": (12, 7), "inner.width": (12, 6)}
    assert (result.model.config.steps, result.model.config.inner.steps) == (12, 8)
    result.model.save_pretrained(tmp_path)
    assert difference(result.model, Own.from_pretrained(tmp_path), batch) == 0


@pytest.mark.parametrize("model, reason", [
    (OwnWithArguments(OwnConfig(), 3), "its class is not made from its configuration alone"),
    (OwnFixed(OwnConfig()), "its configuration cannot say these widths: no number of it makes 3 "
                            "along dimension 0 of last.0.weight"),
    (Own(OwnConfig(), last=5), "its configuration makes other shapes than the model had before")])
def test_a_model_that_its_configuration_does_not_make_is_said(model, reason):
    batch = {"x": torch.randn(5, 4)}
    _, reload = to_half(model.eval(), batch, unit_groups(model, batch))
    assert reload.reason.startswith(reason) and not reload.changes


def test_slim_says_whether_a_model_reloads():
    model, _ = made("Bert")
    words = torch.randint(3, 32, (16, 6), generator=torch.Generator().manual_seed(1))
    data = [({"input_ids": words}, words[:, 0] % 2)]
    names = [f"bert.encoder.layer.{layer}.intermediate.dense" for layer in (0, 1)]
    same, other = (wua.slim(model, data, criterion="magnitude",
                            widths=dict(zip(names, widths, strict=True)))
                   for widths in ((16, 16), (16, 24)))
    assert same.model.config.intermediate_size == 16 and not same.reload.reason
    assert "reloads by from_pretrained" in str(same)
    assert other.model.config.intermediate_size == 64
    assert "does not reload by from_pretrained: its configuration cannot say" in str(other)
    plain = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    assert wua.slim(plain, (torch.rand(8, 2), torch.arange(8) % 2), widths={"0": 3}).reload is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("what", ["units,heads", "units,heads,stream"])
@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama"])
def test_widths_that_a_method_finds_reload(family, what):
    """Heads whose size is the width over their number stay, or go at the width's share."""
    model, batch = made(family)
    targets = torch.arange(2) % 2 if family == "Bert" else batch["input_ids"]
    result = slim(model, [{**batch, "labels": targets}], method="rank", what=what,
                  loss=lambda outputs, targets: outputs.logits.float().square().mean())
    assert result.reload.reason == "" and result.params_after < result.params_before
    heads = {units for name, units in result.units.items() if "attn" in name or "self" in name}
    if family != "Llama" and what == "units,heads":
        assert all(before == after for before, after in heads)


def test_widths_of_one_number_get_the_largest_share_that_is_whole():
    model, batch = made("Bert")
    structure = unit_groups(model, batch, ALL)
    widths = {group.name: max(1, group.units // 4) for group in structure.groups}
    heads = [group for group in structure.groups if group.kind == "heads"]
    widths[heads[0].name] = heads[0].units - 1
    names = set(widths)
    found = widths_that_reload(model, structure, widths, names)
    share = (heads[0].units - 1) / heads[0].units
    for group in structure.groups:
        if group.kind in ("heads", "stream"):
            assert found[group.name] == share * group.units
    assert all(found[name] >= width for name, width in widths.items())
    without = {name: width for name, width in widths.items()
               if structure.group(name).kind != "stream"}
    kept = widths_that_reload(model, structure, without, set(without))
    assert all(kept[group.name] == group.units for group in heads)
