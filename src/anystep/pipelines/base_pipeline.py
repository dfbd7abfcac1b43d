"""The pipeline of diffusers that a flow map is made of."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline

from anystep.bounds import shown
from anystep.codecs.codec import check_whole
from anystep.conditioning.pipeline_text import LENGTH
from anystep.errors import InputError, refused
from anystep.files import read_json
from anystep.flow_families import FAMILIES, Family, family_of
from anystep.model_folder import check_model_folder
from anystep.pretrained import may_be_hub_id


@dataclass(frozen=True)
class BasePipeline:
    """The pipeline of diffusers that a flow map is made of, by its folder."""

    name: str
    folder: Path

    @classmethod
    def open(cls, model: str) -> "BasePipeline":
        """Find it by a folder or hub id.

        Raises:
            InputError: there is none, it is refused (`anystep.model_folder`), or it cannot be made a flow map.
        """
        folder = Path(model).expanduser()
        if not (folder / "model_index.json").exists():
            if not may_be_hub_id(model):
                raise InputError(
                    f"no pipeline of diffusers at {shown(model)}: expected a folder or a hub id owner/name"
                )
            with refused(f"no pipeline {shown(model)} came from the hub"):
                folder = Path(DiffusionPipeline.download(model, use_safetensors=True))
        else:
            folder, model = folder.resolve(), str(folder.resolve())
        check_model_folder(folder)
        found = cls(model, folder)
        _ = found.family
        return found

    @cached_property
    def index(self) -> dict[str, Any]:
        """What the folder says of its parts."""
        index: dict[str, Any] = read_json(self.folder / "model_index.json")
        return index

    @property
    def family(self) -> Family:
        """Which kind it is. Raises `InputError` where it is none of them."""
        return family_of(str(self.index.get("_class_name")))

    @cached_property
    def network(self) -> dict[str, Any]:
        """The configuration of its transformer."""
        return plain_config(read_json(self.folder / "transformer" / "config.json"))

    @property
    def codec(self) -> str:
        """What `load_codec` finds its autoencoder by."""
        return str(self.folder / "vae")

    def transformer(self, dtype: torch.dtype = torch.float32) -> Any:
        """Its network, from safetensors.

        Raises:
            InputError: damaged, or without some of its weights.
        """
        kind = getattr(diffusers, FAMILIES[self.family].network)
        with refused(f"cannot load the transformer of {self.name!r}"):
            network = kind.from_pretrained(str(self.folder / "transformer"), dtype=dtype, use_safetensors=True)
            check_whole(network)
        return network

    def empty_transformer(self) -> Any:
        """Its network without numbers, for what only sizes tell."""
        with torch.device("meta"):
            return getattr(diffusers, FAMILIES[self.family].network).from_config(self.network)

    def text_encoder(self, tokens: int | None = None) -> str:
        """What `load_caption_encoder` finds its text encoders by, with the number of tokens that are read."""
        return str(self.folder) + ("" if tokens is None else f"{LENGTH}{tokens}")

    def shift(self, tokens: int) -> float:
        """The shift of its times for images of so many tokens."""
        times = read_json(self.folder / "scheduler" / "scheduler_config.json")
        if times.get("use_dynamic_shifting"):
            low, high = times.get("base_image_seq_len", 256), times.get("max_image_seq_len", 4096)
            first, last = times.get("base_shift", 0.5), times.get("max_shift", 1.15)
            return math.exp(first + (last - first) * (tokens - low) / (high - low))
        return float(times.get("flow_shift") or times.get("shift") or 1.0)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON has it, without names of folders and versions."""
    plain: dict[str, Any] = json.loads(json.dumps({key: value for key, value in config.items() if key[:1] != "_"}))
    return plain
