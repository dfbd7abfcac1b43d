"""The transition transformer, its sizes and the bridge from released weights."""

from anystep.models.attention import EncodedCaption
from anystep.models.presets import PRESETS, build_transformer
from anystep.models.reference import load_reference_transformer
from anystep.models.transformer import TransitionTransformer2DModel

__all__ = [
    "PRESETS",
    "EncodedCaption",
    "TransitionTransformer2DModel",
    "build_transformer",
    "load_reference_transformer",
]
