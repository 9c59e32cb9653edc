"""Models of transformers themselves, of random weights: heads, masked batches, FLOPs.

The package never imports transformers; what it does with single layers of theirs is tested on
stand-ins elsewhere.
"""

import copy
import functools
import os

import pytest
import torch
from torch import nn

from wua_mlflow.flops import count_flops
from wua_mlflow.pruning.cut import cut, unit_groups
from wua_mlflow.usage.analyze import analyze

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 4}
PLACES = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
BUILDS = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(vocab_size=97, dim=32, hidden_dim=48, n_layers=1, n_heads=4)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=1, n_head=4, **PLACES)),
    "neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SIZES, **PLACES)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(
        **SIZES, **PLACES, num_key_value_heads=2)),
    "qwen": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=8)),
    "opt": lambda: transformers.OPTForCausalLM(transformers.OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4,
        word_embed_proj_dim=32, **PLACES)),
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        image_size=32, patch_size=8)),
    "bloom": lambda: transformers.BloomForCausalLM(transformers.BloomConfig(
        vocab_size=97, hidden_size=32, n_layer=1, n_head=4, **PLACES))}
CUT = {
    "bert": ("bert.encoder.layer.0.attention.self", "bert.encoder.layer.0.attention.output.dense",
             4),
    "distilbert": ("distilbert.transformer.layer.0.attention",
                   "distilbert.transformer.layer.0.attention.out_lin", 4),
    "gpt2": ("transformer.h.0.attn", "transformer.h.0.attn.c_proj", 4),
    "neox": ("gpt_neox.layers.0.attention", "gpt_neox.layers.0.attention.dense", 4),
    "qwen": ("model.layers.0.self_attn", "model.layers.0.self_attn.o_proj", 2),
    "opt": ("model.decoder.layers.0.self_attn", "model.decoder.layers.0.self_attn.out_proj", 4),
    "vit": ("vit.layers.0.attention", "vit.layers.0.attention.o_proj", 4)}
"""By model a module with heads, the layer that reads them, and how many units there are."""


def built(name):
    model = BUILDS[name]().eval()
    if name == "vit":
        return model, {"pixel_values": torch.randn(2, 3, 32, 32)}
    batch = {"input_ids": torch.randint(3, 97, (2, 6))}
    return model, batch | ({"decoder_input_ids": torch.randint(3, 97, (2, 5))}
                           if name == "t5" else {})


@functools.cache
def grouped(name):
    """A model and its groups of units."""
    model, batch = built(name)
    return model, unit_groups(model, batch)


def outputs(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def weighted_layers(model):
    return {name for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"}


@pytest.mark.parametrize("name", CUT)
def test_heads_are_cut(name):
    """Half of the heads: the outputs of the whole model that does not read them, fewer weights."""
    model, batch = built(name)
    module, reader, units = CUT[name]
    kept = [1] if units == 2 else [0, units - 1]
    smaller = cut(model, batch, {module: kept}, structure=grouped(name)[1])
    silent = copy.deepcopy(model)
    weight = silent.get_submodule(reader).weight.data
    columns = weight if name == "gpt2" else weight.T  # Conv1D: (inputs, outputs)
    columns[:16] = columns[:16] if units == 4 else 0
    if units == 4:
        columns[8:24] = 0
    torch.testing.assert_close(outputs(smaller.model, batch), outputs(silent, batch),
                               rtol=1e-3, atol=1e-5)
    lost = 32 * 32 // 2 * (3 if units == 2 else 4)  # q, k, v, o; shared keys have half of the rows
    biased = {"bert", "distilbert", "gpt2", "neox", "opt", "vit"}
    lost += 3 * 16 if name in biased else 0
    assert smaller.params_before - smaller.params_after == lost
    assert smaller.flops_after < smaller.flops_before


@pytest.mark.parametrize("name", BUILDS)
def test_every_layer_is_in_a_group_and_analysed_or_named_with_the_reason(name):
    model, structure = grouped(name)
    in_groups = {layer for group in structure.groups for layer in group.layers}
    assert weighted_layers(model) <= in_groups | set(structure.not_prunable)
    assert all(structure.not_prunable.values())
    usage = analyze(model, [built(name)[1]], criterion="wanda")
    assert weighted_layers(model) <= set(usage.layers) | set(usage.skipped)


def test_heads_whose_bias_the_model_computes_are_refused():
    """Bloom's slopes come from the number of heads in its configuration."""
    structure = grouped("bloom")[1]
    assert "heads" not in {group.kind for group in structure.groups}
    assert structure.not_prunable["transformer.h.0.self_attention.query_key_value"].startswith(
        "cut on trial, its forward fails: ")


def test_heads_that_share_their_bias_go_together_in_all_layers():
    """T5's first layer makes the bias of all of the encoder, and of the decoder."""
    model, structure = grouped("t5")
    heads = {group.name: group for group in structure.groups if group.kind == "heads"}
    assert {name: (group.units, group.counts) for name, group in heads.items()} == {
        f"{name}Attention": (4, ("n_heads",)) for name in (
            "encoder.block.0.layer.0.Self", "decoder.block.0.layer.0.Self",
            "decoder.block.0.layer.1.EncDec")}
    pruned = cut(model, built("t5")[1], dict.fromkeys(heads, [1, 3]), structure).model
    table = "layer.0.SelfAttention.relative_attention_bias.weight"
    assert pruned.get_parameter(f"encoder.block.0.{table}").shape[1] == 2
    assert pruned.encoder.block[1].layer[0].SelfAttention.n_heads == 2


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_padding_that_the_mask_hides_changes_no_figure(name):
    model, batch = built(name)
    ids = batch["input_ids"]
    padded = {"input_ids": torch.cat([ids, torch.full((2, 3), 2)], 1),
              "attention_mask": torch.tensor([[1] * 6 + [0] * 3] * 2)}
    plain = analyze(model, [{**batch, "attention_mask": torch.ones(2, 6)}], criterion="wanda")
    masked = analyze(model, [padded], criterion="wanda")
    assert set(plain.layers) == set(masked.layers)
    for name, layer in plain.layers.items():
        if "position" not in name:
            assert masked.layers[name].effective_weights == \
                pytest.approx(layer.effective_weights, rel=1e-4), name


def test_flops_of_gpt2_and_llama_by_hand():
    """Two a multiplication with an addition: projections, both products of attention, the head."""
    tokens, length, width, inner, vocabulary = 12, 6, 32, 128, 97
    attention = 2 * 2 * tokens * length * width
    model, batch = built("gpt2")
    layer = 2 * tokens * (4 * width * width + 2 * width * inner) + attention
    assert count_flops(model, batch, backward=False).forward_flops == \
        layer + 2 * tokens * width * vocabulary
    model, batch = built("llama")
    inner = 48
    layer = 2 * tokens * (3 * width * width + 3 * width * inner) + attention
    rotary = 2 * 2 * length * 4  # positions times frequencies, once for the model
    flops = count_flops(model, batch, backward=False).forward_flops
    assert flops - (layer + 2 * tokens * width * vocabulary) in (0, rotary // 2, rotary)


PROJECTIONS = {
    "bert": ("bert.encoder.layer.0.attention.self.", ("query", "key", "value"), (4, 4, 4)),
    "distilbert": ("distilbert.transformer.layer.0.attention.", ("q_lin", "k_lin", "v_lin"),
                   (4, 4, 4)),
    "llama": ("model.layers.0.self_attn.", ("q_proj", "k_proj", "v_proj"), (4, 2, 2)),
    "qwen": ("model.layers.0.self_attn.", ("q_proj", "k_proj", "v_proj"), (4, 2, 2)),
    "opt": ("model.decoder.layers.0.self_attn.", ("q_proj", "k_proj", "v_proj"), (4, 4, 4)),
    "t5": ("encoder.block.0.layer.0.SelfAttention.", ("q", "k", "v"), (4, 4, 4))}
FUSED = {"gpt2": ("transformer.h.0.attn", "c_attn", "c_proj"),
         "neox": ("gpt_neox.layers.0.attention", "query_key_value", "dense"),
         "bloom": ("transformer.h.0.self_attention", "query_key_value", "dense")}


@pytest.mark.parametrize("name", FUSED)
def test_importance_of_heads_whose_three_are_made_at_once(name):
    """Which rows are a head's is read from gradients of what a head gives, not from the code."""
    model, tokens = BUILDS[name]().eval(), torch.randint(3, 97, (3, 7))
    module, fused, reader = FUSED[name]
    layer, seen = model.get_submodule(f"{module}.{fused}"), []
    layer.weight.data.mul_(torch.rand_like(layer.weight) * 20)  # attention that is far from even
    hooks = [layer.register_forward_hook(lambda _, args, out: seen.append(out)),
             model.get_submodule(f"{module}.{reader}").register_forward_pre_hook(
                 lambda _, args: seen.append(args[0]))]
    model(tokens)
    for hook in hooks:
        hook.remove()
    made, read = seen
    weight = (layer.weight.T if name == "gpt2" else layer.weight).detach().abs().double().sum(1)
    expected = []
    for head in range(4):
        gradient, = torch.autograd.grad(read[..., 8 * head:8 * head + 8].square().sum(), made,
                                        retain_graph=True)
        rows = gradient.abs().sum((0, 1)) > 0
        assert int(rows.sum()) == 24
        expected.append(weight[rows].sum())
    usage = analyze(model, [{"input_ids": tokens}], criterion="magnitude")
    importance = usage.layers[f"{module}.{fused}"].head_importance
    torch.testing.assert_close(torch.from_numpy(importance), torch.stack(expected), rtol=1e-6,
                               atol=0)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_importance_of_heads(name):
    """Each of so many units in a row; 8 a head."""
    model, tokens = BUILDS[name]().eval(), torch.randint(3, 97, (3, 7))
    data = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if name == "t5":
        data["decoder_input_ids"] = tokens
    prefix, projections, heads = PROJECTIONS[name]
    usage = analyze(model, [data], criterion="magnitude")
    for projection, count in zip(projections, heads, strict=True):
        layer = usage.layers[prefix + projection]
        weight = model.get_submodule(prefix + projection).weight.detach().abs().double()
        expected = weight.sum(1).reshape(count, 8).sum(1)
        assert layer.head_importance.shape == (count,)
        torch.testing.assert_close(torch.from_numpy(layer.head_importance), expected, rtol=1e-6,
                                   atol=0)
    assert not any(layer.head_importance is not None for name, layer in usage.layers.items()
                   if not name.endswith(projections))
