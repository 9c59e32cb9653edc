"""Models of the transformers library with random weights, small, for ``zoo.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

SMALL = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64}
PLACES = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
GENERATING = SMALL | PLACES
PICTURES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
SEQ2SEQ = {"vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
           "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
           "decoder_ffn_dim": 64, "max_position_embeddings": 64,
           "decoder_start_token_id": 2} | PLACES
STAGES = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2}


def tokens(length: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"input_ids": torch.randint(3, 96, (2, length), generator=generator)}


def both() -> dict[str, torch.Tensor]:
    return tokens() | {"decoder_input_ids": tokens(5)["input_ids"]}


def pictures(size: int = 32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"pixel_values": torch.randn(2, 3, size, size, generator=generator)}


def pairs() -> dict[str, torch.Tensor]:
    return tokens() | pictures()


def waves() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, 2000, generator=torch.Generator().manual_seed(2))}


def made(name: str, config: str, settings: dict[str, Any], batch: Callable[[], Any]
         ) -> tuple[nn.Module, Any]:
    import transformers

    return getattr(transformers, name)(getattr(transformers, config)(**settings)), batch()


TWO = {"text_config": GENERATING, "vision_config": PICTURES, "projection_dim": 16}
SPEECH = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 64, "conv_dim": (16, 16), "conv_stride": (5, 4),
          "conv_kernel": (10, 8), "num_conv_pos_embeddings": 16,
          "num_conv_pos_embedding_groups": 4}
LISTED: tuple[tuple[str, str, dict[str, Any], Callable[[], Any]], ...] = (
    ("BertForSequenceClassification", "Bert", SMALL, tokens),
    ("RobertaForSequenceClassification", "Roberta", SMALL | {"max_position_embeddings": 80},
     tokens),
    ("CamembertForMaskedLM", "Camembert", SMALL | PLACES, tokens),
    ("XLMRobertaForTokenClassification", "XLMRoberta", SMALL, tokens),
    ("DistilBertForSequenceClassification", "DistilBert",
     {"vocab_size": 96, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}, tokens),
    ("ElectraForSequenceClassification", "Electra", SMALL | {"embedding_size": 16}, tokens),
    ("AlbertForSequenceClassification", "Albert", SMALL | {"embedding_size": 16}, tokens),
    ("DebertaV2ForSequenceClassification", "DebertaV2", SMALL | {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}, tokens),
    ("MPNetForSequenceClassification", "MPNet", SMALL, tokens),
    ("FNetForSequenceClassification", "FNet", SMALL, tokens),
    ("MobileBertForSequenceClassification", "MobileBert", SMALL | {
        "embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 1}, tokens),
    ("ModernBertForSequenceClassification", "ModernBert", GENERATING | {
        "cls_token_id": 0, "sep_token_id": 1}, tokens),
    ("GPT2LMHeadModel", "GPT2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4,
                                 "n_positions": 64} | PLACES, tokens),
    ("GPTNeoForCausalLM", "GPTNeo", {
        "vocab_size": 96, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64,
        "intermediate_size": 64} | PLACES, tokens),
    ("GPTNeoXForCausalLM", "GPTNeoX", GENERATING, tokens),
    ("GPTJForCausalLM", "GPTJ", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4,
                                 "rotary_dim": 4, "n_positions": 64} | PLACES, tokens),
    ("OPTForCausalLM", "OPT", {
        "vocab_size": 96, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32
    } | PLACES, tokens),
    ("BloomForCausalLM", "Bloom", {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4
                                   } | PLACES, tokens),
    ("FalconForCausalLM", "Falcon", GENERATING | {"alibi": False}, tokens),
    ("LlamaForCausalLM", "Llama", GENERATING | {"num_key_value_heads": 2}, tokens),
    ("MistralForCausalLM", "Mistral", GENERATING | {"num_key_value_heads": 2}, tokens),
    ("MixtralForCausalLM", "Mixtral", GENERATING | {
        "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}, tokens),
    ("Qwen2ForCausalLM", "Qwen2", GENERATING | {"num_key_value_heads": 2}, tokens),
    ("Qwen3ForCausalLM", "Qwen3", GENERATING | {"num_key_value_heads": 2, "head_dim": 8}, tokens),
    ("GemmaForCausalLM", "Gemma", GENERATING | {"num_key_value_heads": 2, "head_dim": 8}, tokens),
    ("Gemma2ForCausalLM", "Gemma2", GENERATING | {"num_key_value_heads": 2, "head_dim": 8}, tokens),
    ("PhiForCausalLM", "Phi", GENERATING, tokens),
    ("Phi3ForCausalLM", "Phi3", GENERATING | {"num_key_value_heads": 2}, tokens),
    ("StableLmForCausalLM", "StableLm", GENERATING | {"num_key_value_heads": 2}, tokens),
    ("Olmo2ForCausalLM", "Olmo2", GENERATING | {"num_key_value_heads": 2}, tokens),
    ("CohereForCausalLM", "Cohere", GENERATING | {"num_key_value_heads": 2}, tokens),
    ("Starcoder2ForCausalLM", "Starcoder2", GENERATING | {"num_key_value_heads": 2}, tokens),
    ("T5ForConditionalGeneration", "T5", {
        "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
     both),
    ("MT5EncoderModel", "MT5", {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64,
                                "num_layers": 2, "num_heads": 4}, tokens),
    ("BartForConditionalGeneration", "Bart", SEQ2SEQ, both),
    ("PegasusForConditionalGeneration", "Pegasus", SEQ2SEQ, both),
    ("MBartForConditionalGeneration", "MBart", SEQ2SEQ, both),
    ("MarianMTModel", "Marian", SEQ2SEQ, both),
    ("BlenderbotForConditionalGeneration", "Blenderbot", SEQ2SEQ, both),
    ("WhisperForConditionalGeneration", "Whisper", SEQ2SEQ | {
        "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16},
     lambda: {"input_features": torch.randn(2, 8, 40),
              "decoder_input_ids": tokens(5)["input_ids"]}),
    ("ViTForImageClassification", "ViT", PICTURES, pictures),
    ("DeiTForImageClassification", "DeiT", PICTURES, pictures),
    ("BeitForImageClassification", "Beit", PICTURES | {"use_relative_position_bias": True,
                                                       "out_features": None}, pictures),
    ("Dinov2ForImageClassification", "Dinov2", PICTURES, pictures),
    ("ViTMAEForPreTraining", "ViTMAE", PICTURES | {
        "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4, "decoder_intermediate_size": 64}, pictures),
    ("SwinForImageClassification", "Swin", {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4}, pictures),
    ("Swinv2ForImageClassification", "Swinv2", {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4}, pictures),
    ("ConvNextForImageClassification", "ConvNext", STAGES, pictures),
    ("ConvNextV2ForImageClassification", "ConvNextV2", STAGES, pictures),
    ("ResNetForImageClassification", "ResNet", STAGES | {"embedding_size": 16}, pictures),
    ("RegNetForImageClassification", "RegNet", STAGES | {"embedding_size": 16, "groups_width": 8},
     pictures),
    ("MobileNetV2ForImageClassification", "MobileNetV2", {"depth_multiplier": 0.25}, pictures),
    ("MobileViTForImageClassification", "MobileViT", {
        "image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24,
                                                                              32]},
     lambda: pictures(64)),
    ("SegformerForImageClassification", "Segformer", {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 1], "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2], "decoder_hidden_size": 32}, pictures),
    ("PvtForImageClassification", "Pvt", {
        "image_size": 32, "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [16, 32],
        "sequence_reduction_ratios": [2, 1], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
        "patch_sizes": [4, 2], "strides": [4, 2]}, pictures),
    ("PoolFormerForImageClassification", "PoolFormer", {
        "depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32]}, pictures),
    ("CLIPModel", "CLIP", TWO, pairs),
    ("SiglipModel", "Siglip", TWO, pairs),
    ("Wav2Vec2ForCTC", "Wav2Vec2", SPEECH, waves),
    ("HubertForSequenceClassification", "Hubert", SPEECH | {"num_labels": 3}, waves),
    ("ASTForAudioClassification", "AST", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_length": 64, "num_mel_bins": 32},
     lambda: {"input_values": torch.randn(2, 64, 32)}),
    ("MambaForCausalLM", "Mamba", {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2,
                                   "state_size": 8} | PLACES, tokens),
    ("PatchTSTForClassification", "PatchTST", {
        "num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8,
        "d_model": 32, "ffn_dim": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
        "num_targets": 3, "use_cls_token": True},
     lambda: {"past_values": torch.randn(2, 32, 2)}),
)
MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    name.split("For")[0]: partial(made, name, f"{config}Config", settings, batch)
    for name, config, settings, batch in LISTED}
