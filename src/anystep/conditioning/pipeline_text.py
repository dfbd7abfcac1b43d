"""The text encoders of a pipeline of diffusers as one: captions to conditions of its network."""

import json
from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from threading import RLock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from anystep.bounds import Count, check
from anystep.conditioning.text import States, TextEncoder, load_text_encoder, plain_text
from anystep.errors import InputError
from anystep.files import read_json
from anystep.fingerprint import sampled_digest, text_digest
from anystep.flow_families import FAMILIES, family_of, joined_states
from anystep.model_folder import check_part
from anystep.pretrained import loading, pretrained_encoder
from anystep.weights import BUILTIN

# tokens of a caption; of FLUX.1 without a guidance scale, which is FLUX.1-schnell, half of them
DEFAULT_LENGTHS = {"sd3": 256, "flux": 512, "sana": 300}
LENGTH = "?max_sequence_length="
_ENCODING = RLock()  # tokenizers of the library serve one thread at a time


def is_pipeline(folder: str | Path) -> bool:
    """Whether a folder holds a pipeline of diffusers whose network can be made a flow map."""
    index = Path(folder) / "model_index.json"
    known = {traits.pipeline for traits in FAMILIES.values()}
    return index.is_file() and str(read_json(index).get("_class_name")) in known


class PipelineTextEncoder:
    """The text encoders of a Stable Diffusion 3, FLUX.1 or SANA pipeline, by its own `encode_prompt`.

    They are loaded when a caption is to be encoded, and `release` frees their memory.

    Args:
        folder: of the pipeline.
        max_length: tokens of a caption, as `max_sequence_length` of its calls; its default when None.

    Attributes:
        name: the folder of the pipeline.
        width: of a condition.
        escape: never: captions are read as they are.
    """

    escape = False

    def __init__(self, folder: str | Path, max_length: int | None = None) -> None:
        self.folder, self.name = Path(folder), str(folder)
        self.index = read_json(self.folder / "model_index.json")
        self.family = family_of(str(self.index.get("_class_name")))
        config = read_json(self.folder / "transformer" / "config.json")
        self.states = int(config.get("joint_attention_dim", config.get("caption_channels", 0)))
        self.width = max(self.states, int(config.get("pooled_projection_dim") or 0))
        schnell = self.family == "flux" and not config.get("guidance_embeds")
        self.max_length = max_length or DEFAULT_LENGTHS[self.family] // (1 + schnell)
        self.device = torch.device("cpu")
        self._pipeline: Any = None

    @cached_property
    def fingerprint(self) -> str:
        """A digest of configurations, tokenizers and samples of the weights: equal ones mean equal states."""
        parts = [part for part in sorted(self.folder.iterdir()) if part.name.startswith(("text_encoder", "tokenizer"))]
        files = [path for part in parts for path in sorted(part.iterdir()) if path.is_file()]
        said = [[path.parent.name, path.name, sampled_digest(path)] for path in files]
        return text_digest(json.dumps([self.family, self.max_length, said]))

    def to(self, device: torch.device | str) -> "PipelineTextEncoder":
        """Encode there from now on."""
        self.device = torch.device(device)
        if self._pipeline is not None:
            self._pipeline.to(self.device)
        return self

    def release(self) -> None:
        """Free the memory of the encoders, until the next caption."""
        self._pipeline = None

    @property
    def pipeline(self) -> Any:
        """That of diffusers, with its text encoders alone."""
        if self._pipeline is None:
            with torch.random.fork_rng(devices=[]):  # loaded in the middle of a call, whose draws are its caller's
                self._pipeline = self._load().to(self.device)
        return self._pipeline

    def _load(self) -> Any:
        import diffusers
        import transformers

        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        parts: dict[str, Any] = {"transformer": None, "vae": None}
        for part, entry in self.index.items():
            if isinstance(entry, list) and entry[-1] is None:
                parts[part] = None
            elif part.startswith(("text_encoder", "tokenizer")) and isinstance(entry, list):
                with loading("text encoder", str(self.folder / part)):
                    check_part(self.folder / part)
                    if part.startswith("text_encoder"):
                        kind = getattr(transformers, entry[1])
                        place, unused = str(self.folder / part), r"pooler\.|position_ids|embed_tokens"
                        parts[part] = pretrained_encoder(kind, place, unused, dtype=dtype).eval().requires_grad_(False)
        diffusers.utils.logging.disable_progress_bar()
        try:
            with loading("text encoders", str(self.folder)):
                pipeline = getattr(diffusers, FAMILIES[self.family].pipeline).from_pretrained(str(self.folder), **parts)
        finally:
            diffusers.utils.logging.enable_progress_bar()
        if self.family == "sd3":  # which asks its network how wide the states are of an encoder that it lacks
            pipeline.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=self.states))
        return pipeline

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], max_length: int | None = None) -> States:
        """The conditions of captions; the mask is None where nothing is padded, or networks attend to padding."""
        length = self.max_length if max_length is None else min(max_length, self.max_length)
        with _ENCODING:
            return self._states([plain_text(prompt) for prompt in prompts], length)

    def _states(self, captions: list[str], length: int) -> States:
        if self.family == "sana":
            return self._sana(captions, length)
        options: dict[str, Any] = {"device": self.device, "max_sequence_length": length}
        if self.family == "sd3":
            options |= {"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False}
            states, _, pooled, _ = self.pipeline.encode_prompt(captions, **options)
        else:
            states, pooled, _ = self.pipeline.encode_prompt(captions, **options)
        return joined_states(states.float(), pooled.float()), None

    def _sana(self, captions: list[str], length: int) -> States:
        """Captions are rewritten by an instruction before them; the empty one, which guidance goes from, is not."""
        instruction = signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        rows: list[Tensor] = []
        masks: list[Tensor] = []
        for caption in captions:
            states, mask, _, _ = self.pipeline.encode_prompt(
                [caption], do_classifier_free_guidance=False, device=self.device, max_sequence_length=length,
                complex_human_instruction=instruction if caption else None,
            )  # fmt: skip
            rows.append(states.float())
            masks.append(mask.bool())
        return torch.cat(rows), torch.cat(masks)

    def null(self, count: int) -> States:
        """The condition of the empty caption."""
        states, mask = self([""])
        return states.expand(count, -1, -1), None if mask is None else mask.expand(count, -1)


CaptionEncoder = TextEncoder | PipelineTextEncoder


def load_caption_encoder(name_or_path: str | Path = BUILTIN) -> CaptionEncoder:
    """As `load_text_encoder`; of the folder of a pipeline that `anystep.flow_families` knows, all its encoders as one.

    `FOLDER?max_sequence_length=77` reads so many tokens of a caption.

    Raises:
        InputError: nothing there, or refused.
    """
    folder, asked, length = str(name_or_path).partition(LENGTH)
    if not is_pipeline(folder):
        return load_text_encoder(name_or_path)
    tokens: Any = int(length) if length.isdecimal() else length
    encoder = PipelineTextEncoder(folder, check("max_sequence_length", tokens, Count) if asked else None)
    if not any(part.startswith("text_encoder") and (entry or [None])[-1] for part, entry in encoder.index.items()):
        raise InputError(f"{str(name_or_path)!r} has no text encoder: save the pipeline with its own")
    return encoder
