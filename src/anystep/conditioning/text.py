"""Encoding of captions as the token states of a text encoder."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anystep.device import execution_device
from anystep.errors import InputError
from anystep.fingerprint import encoder_digest, tokenizer_digest
from anystep.model_folder import check_part
from anystep.pretrained import loading, pretrained_encoder
from anystep.weights import BUILTIN, shipped

# of the tokens of each caption, and a mask that is true where they are not padding; None where nothing is padded
States = tuple[Float[Tensor, "batch length width"], Bool[Tensor, "batch length"] | None]
MAX_LENGTH = 256
_TOKENIZING = Lock()


class TextEncoder:
    """A tokenizer and a transformers encoder (BERT-like, T5, Gemma 3), giving its last hidden states.

    Attributes:
        name: the name or path that it was loaded from.
        width: width of a token's state.
        max_length: number of tokens after which captions are cut.
        escape: whether captions are read as Python escapes them, as released weights learned them: other letters than
            those of ASCII, line breaks and backslashes become `\\xe9`, `\\n` and the like.
    """

    escape = False

    def __init__(self, tokenizer: Any, model: Any, name: str, max_length: int = MAX_LENGTH) -> None:
        self.tokenizer, self.model, self.name = tokenizer, model.eval().requires_grad_(False), name
        self.width = int(model.config.hidden_size)
        self.max_length = min(max_length, int(getattr(model.config, "max_position_embeddings", max_length)))
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the tokenizer, the configuration and all weights: equal fingerprints mean equal states."""
        return encoder_digest(self.model, tokenizer_digest(self.tokenizer), self.max_length)

    def to(self, device: torch.device | str) -> "TextEncoder":
        """Encode there from now on."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], max_length: int | None = None) -> States:
        """States padded to the longest caption of the batch; the mask is None when nothing is padded.

        Args:
            max_length: tokens after which captions are cut, where these are fewer than those of the encoder.
        """
        with _TOKENIZING:  # tokenizers are not safe for threads
            tokens = self.tokenizer(
                [self.read(prompt) for prompt in prompts],
                padding="longest", truncation=True, max_length=self.tokens_read(max_length), return_tensors="pt",
            ).to(execution_device(self.model))  # fmt: skip
        states = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        mask = tokens.attention_mask.bool()
        return states, None if bool(mask.all()) else mask

    def read(self, caption: str) -> str:
        """A caption as the tokenizer is given it."""
        return caption.encode("unicode-escape").decode() if self.escape else plain_text(caption)

    def length(self, prompt: str) -> int:
        """The number of tokens of a caption, as it is cut."""
        with _TOKENIZING:
            return len(self.tokenizer(self.read(prompt), truncation=True, max_length=self.max_length)["input_ids"])

    def mean_states(self, prompts: Sequence[str]) -> Float[Tensor, "batch width"]:
        """The mean state of the tokens of each caption."""
        states, mask = self(prompts)
        weight = torch.ones_like(states[..., 0]) if mask is None else mask.float()
        return (states * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)

    def tokens_read(self, max_length: int | None = None) -> int:
        """How many tokens of a caption are read, of which a call asks for `max_length`."""
        return self.max_length if max_length is None else min(max_length, self.max_length)

    def cut(self, captions: Sequence[str]) -> list[str]:
        """Those captions of which the end is not read, because they have more than `max_length` tokens."""
        if not captions:
            return []
        with _TOKENIZING:
            texts = [self.read(caption) for caption in captions]
            tokens = self.tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        return [caption for caption, each in zip(captions, tokens, strict=True) if len(each) > self.max_length]

    def cut_off(self, prompt: str, max_length: int | None = None) -> str:
        """The end of a prompt that is not read, because it has more tokens than that; empty where all is read."""
        with _TOKENIZING:
            specials = len(self.tokenizer("")["input_ids"])
            options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
            tokens = self.tokenizer(self.read(prompt), return_offsets_mapping=self.tokenizer.is_fast, **options)
        kept = max(0, self.tokens_read(max_length) - specials)
        if len(tokens["input_ids"]) <= kept:
            return ""
        if self.tokenizer.is_fast:
            return self.read(prompt)[tokens["offset_mapping"][kept][0] :]
        return str(self.tokenizer.decode(tokens["input_ids"][kept:]))

    def null(self, count: int) -> States:
        """The states of the empty caption."""
        return self([""] * count)

    @torch.no_grad()
    def padded_null(self, length: int) -> Float[Tensor, "1 length width"]:
        """The states of the empty caption with padding up to `length` tokens, for networks that attend to padding.

        States of padding are those of flash attention, which released weights were trained with: padded tokens attend
        to nothing, and every layer of attention gives zero there. Other kinds of attention would let them read the
        tokens before them.
        """
        with _TOKENIZING:
            tokens = self.tokenizer(
                [""], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).to(execution_device(self.model))
        padding = tokens.attention_mask[..., None] == 0

        def silence(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0].masked_fill(padding, 0), *inputs[1:])

        outputs = [module for name, module in self.model.named_modules() if name.endswith(".o_proj")]
        hooks = [module.register_forward_pre_hook(silence) for module in outputs]
        try:
            states: Tensor = self.model(**tokens).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        return states


def plain_text(caption: str) -> str:
    """A caption without lone surrogates, which are no valid text and no tokenizer accepts."""
    return caption.encode("utf-8", "replace").decode()


def split_states(
    states: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"] | None
) -> list[Float[Tensor, "tokens width"]]:
    """The states of each caption without its padding."""
    lengths = [states.shape[1]] * len(states) if mask is None else mask.sum(1).tolist()
    return [row[:length] for row, length in zip(states, lengths, strict=True)]


def pad_states(rows: Sequence[Float[Tensor, "_ width"]]) -> States:
    """States padded to the longest caption, in float32, with a mask where anything is padded: undoes `split_states`."""
    states = torch.nn.utils.rnn.pad_sequence([row.float() for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=states.device)
    mask = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    return states, None if bool(mask.all()) else mask


def load_text_encoder(name_or_path: str | Path = BUILTIN) -> TextEncoder:
    """`builtin` (all-MiniLM-L6-v2, shipped), or a folder or hub id of a transformers text model.

    The folder may be that of a whole model, which carries its text encoder.

    Raises:
        InputError: nothing there, not a text encoder, damaged weights, a tokenizer without words, or what is refused
            (`anystep.model_folder`), as code that comes with a model is.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel

    name = str(name_or_path)
    if name == BUILTIN:
        return _builtin()
    parts = (Path(name) / part for part in ("text_encoder", "tokenizer"))  # where it is the folder of a whole model
    place, words = (str(part) if part.is_dir() else name for part in parts)
    with loading("text encoder", place):
        if words != place:
            check_part(Path(words))
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        kind = T5EncoderModel if config.model_type in ("t5", "umt5") else AutoModel
        tokenizer = AutoTokenizer.from_pretrained(words, trust_remote_code=False)
        encoder = TextEncoder(tokenizer, pretrained_encoder(kind, place, r"^pooler\."), name)
        if len(tokenizer) <= len(tokenizer.all_special_tokens) + 1:  # transformers makes those of nothing
            raise InputError("its tokenizer has no words; are its files there?")
    return encoder


def _builtin() -> TextEncoder:
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer, BertModel

    folder = str(shipped("minilm"))
    stored = load_file(f"{folder}/model.int8.safetensors")
    weights = {
        name: tensor.float() * stored[f"{name}.scale"] if tensor.dtype == torch.int8 else tensor
        for name, tensor in stored.items()
        if not name.endswith(".scale")
    }
    with loading("text encoder", folder):
        # built around its weights: the constructor would first draw all of them at random
        config = AutoConfig.from_pretrained(folder)
        model = pretrained_encoder(
            BertModel, None, r"^pooler\.", config=config, state_dict=weights, add_pooling_layer=False
        )
        model.config.dtype = None  # as in its file, and so in the digest of the encoder
        return TextEncoder(AutoTokenizer.from_pretrained(folder), model, BUILTIN)
