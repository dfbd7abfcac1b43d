"""Conditions of the network behind one interface: captions through a text encoder, or class labels."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from anystep.conditioning.labels import LabelEncoder
from anystep.conditioning.pipeline_text import CaptionEncoder, PipelineTextEncoder, load_caption_encoder
from anystep.conditioning.text import TextEncoder, load_text_encoder
from anystep.conditioning.text_cache import CachedTextEncoder

__all__ = [
    "CachedTextEncoder", "CaptionEncoder", "Conditioner", "LabelEncoder", "PipelineTextEncoder", "TextEncoder",
    "load_caption_encoder", "load_text_encoder",
]  # fmt: skip


@runtime_checkable
class Conditioner(Protocol):
    """Encodes prompts as the network's `condition` and `condition_mask`."""

    def __call__(self, prompts: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """The condition of each prompt; the mask is true where it is not padding, and None where nothing is padded."""
        ...

    def null(self, count: int) -> tuple[Tensor, Tensor | None]:
        """The empty condition, `count` times."""
        ...
