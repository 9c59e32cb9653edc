"""Models of timm with random weights, at small sizes, for ``zoo.py``.

timm imports torchvision for its transforms, which no model needs: a stand-in does.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import nn

STAND_INS = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional",
             "torchvision.ops", "torchvision.ops.misc", "torchvision.datasets",
             "torchvision.models", "torchvision.models.feature_extraction", "torchvision.utils")
TWO = {"img_size": 64, "depth": 2}
CONVOLUTIONAL: dict[str, int] = dict.fromkeys((
    "resnet18", "resnet26d", "resnet50", "resnext26ts", "seresnext26d_32x4d", "resnext50_32x4d",
    "regnetx_002", "regnety_002", "densenet121", "efficientnet_b0", "efficientnetv2_rw_t",
    "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small", "mnasnet_small",
    "ghostnet_050", "vgg11_bn", "dla46_c", "hrnet_w18_small", "dpn48b", "resnest14d",
    "skresnet18", "ecaresnet26t", "repvgg_a0", "convnext_atto", "convnextv2_atto", "cspresnet50",
    "ese_vovnet19b_dw", "hardcorenas_a", "tinynet_e", "lcnet_050", "rexnet_100", "gernet_s",
    "mobileone_s0", "starnet_s1", "hgnet_tiny", "inception_next_atto", "mambaout_femto",
    "repvit_m1", "edgenext_xx_small", "mobilevit_xxs", "mobilevitv2_050", "poolformer_s12",
    "legacy_seresnet18", "convmixer_768_32", "caformer_s18"), 96)
"""By name the size of the picture."""
WITH_SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "fastvit_t8": (128, {}), "vit_tiny_patch16_224": (64, TWO), "deit_tiny_patch16_224": (64, TWO),
    "deit3_small_patch16_224": (64, TWO), "cait_xxs24_224": (64, TWO),
    "vit_base_patch16_siglip_224": (64, TWO | {"embed_dim": 192, "num_heads": 3}),
    "vit_relpos_small_patch16_224": (64, TWO), "eva02_tiny_patch14_224": (
        56, {"img_size": 56, "depth": 2}),
    "beit_base_patch16_224": (64, TWO | {"embed_dim": 192, "num_heads": 3}),
    "mixer_s32_224": (64, {"img_size": 64, "num_blocks": 2}),
    "resmlp_12_224": (64, {"img_size": 64, "num_blocks": 2}),
    "gmlp_ti16_224": (64, {"img_size": 64, "num_blocks": 2}),
    "xcit_nano_12_p16_224": (64, TWO), "convit_tiny": (64, {"img_size": 64, "depth": 4}),
    "visformer_tiny": (64, {"img_size": 64}), "pit_ti_224": (64, {"img_size": 64}),
    "coat_lite_tiny": (64, {"img_size": 64}), "pvt_v2_b0": (64, {}),
    "twins_svt_small": (64, {"img_size": 64}), "levit_128s": (64, {"img_size": 64}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "window_size": 4, "depths": (2, 2),
                                          "num_heads": (3, 6)}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "window_size": 4, "depths": (2, 2),
                                     "num_heads": (3, 6)}),
    "efficientformer_l1": (224, {}), "coatnet_pico_rw_224": (64, {"img_size": 64}),
}


def available() -> bool:
    """Whether timm is installed."""
    return importlib.util.find_spec("timm") is not None


def made(name: str, size: int, settings: dict[str, Any]) -> tuple[nn.Module, Any]:
    added = [] if "timm" in sys.modules else [
        module for module in STAND_INS if module not in sys.modules]
    for module in added:
        sys.modules[module] = MagicMock(name=module)
    if added:
        vars(sys.modules["torchvision.ops.misc"])["FrozenBatchNorm2d"] = type(
            "FrozenBatchNorm2d", (nn.Module,), {})
    import timm

    for module in added:  # transformers asks whether torchvision is there
        del sys.modules[module]
    generator = torch.Generator().manual_seed(2)
    return timm.create_model(name, num_classes=10, **settings), torch.randn(
        2, 3, size, size, generator=generator)


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{name: partial(made, name, size, {}) for name, size in CONVOLUTIONAL.items()},
    **{name: partial(made, name, *settings) for name, settings in WITH_SETTINGS.items()}}
