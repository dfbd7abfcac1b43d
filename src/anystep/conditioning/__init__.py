"""Conditions of the network behind one interface: captions through a text encoder, or class labels."""

from anystep.conditioning.condition import Conditioner
from anystep.conditioning.labels import LabelEncoder
from anystep.conditioning.text import TextEncoder, load_text_encoder
from anystep.conditioning.text_cache import CachedTextEncoder

__all__ = ["CachedTextEncoder", "Conditioner", "LabelEncoder", "TextEncoder", "load_text_encoder"]
