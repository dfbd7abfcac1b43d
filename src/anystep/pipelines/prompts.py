"""Prompts of a call, and the conditions that they become."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any, NamedTuple, cast

from torch import Tensor
from torch.random import fork_rng

from anystep.bounds import Count, check, shown
from anystep.conditioning import CaptionEncoder, Conditioner, LabelEncoder, TextEncoder, load_caption_encoder
from anystep.errors import InputError
from anystep.pipelines.inputs import check_embeds, check_prompts, check_text, listed

MAX_WARNINGS = 5  # about prompts that are cut, of one pipeline
log = logging.getLogger(__name__)
_LOADING = RLock()  # transformers builds one model at a time


class Encoded(NamedTuple):
    """The conditions of a call and their masks, in the order of diffusers' pipelines; None where there is none."""

    prompt_embeds: Tensor
    prompt_attention_mask: Tensor | None
    negative_prompt_embeds: Tensor | None
    negative_prompt_attention_mask: Tensor | None


@dataclass
class Prompts:
    """What a call is to draw, and to keep away from: text, or states that were encoded before.

    A negative prompt that is blank, or several of which all are, is none: the empty prompt is guided away from anyway.
    """

    prompt: Any = None
    negative_prompt: Any = None
    prompt_embeds: Any = None
    prompt_attention_mask: Any = None
    negative_prompt_embeds: Any = None
    negative_prompt_attention_mask: Any = None
    max_sequence_length: Any = None

    def __post_init__(self) -> None:
        negatives = [] if self.negative_prompt is None else listed(self.negative_prompt)
        if negatives and all(isinstance(each, str) and not each.strip() for each in negatives):
            self.negative_prompt = None

    @property
    def negative(self) -> bool:
        """Whether they say what to guide away from."""
        return self.negative_prompt is not None or self.negative_prompt_embeds is not None

    @property
    def count(self) -> int:
        """How many are drawn."""
        return len(listed(self.prompt) if self.prompt_embeds is None else self.prompt_embeds)

    @property
    def texts(self) -> list[Any]:
        """What there is of text."""
        given = [self.prompt] if self.prompt_embeds is None else []
        return [each for one in [*given, self.negative_prompt] if one is not None for each in listed(one)]

    def check(self, text_width: int | None) -> None:
        """Refuse what contradicts itself; `text_width` is None where the model reads classes."""
        if self.max_sequence_length is not None:
            check("max_sequence_length", self.max_sequence_length, Count)
            if text_width is None:
                raise InputError("max_sequence_length: goes with captions, and this model reads classes")
        if self.prompt_embeds is None:
            if self.prompt is None:
                check_prompts([], reads_text=False)
            check_prompts(listed(self.prompt), reads_text=text_width is not None)
        elif self.prompt is not None:
            raise InputError("prompt and prompt_embeds: give one of them")
        if self.negative_prompt is not None:
            if self.negative_prompt_embeds is not None:
                raise InputError("negative_prompt and negative_prompt_embeds: give one of them")
            negatives = listed(self.negative_prompt)
            for each in negatives:
                check_text("negative_prompt", each, reads_text=text_width is not None)
            self._check_negatives(len(negatives))
        for kind in ("prompt", "negative_prompt"):
            embeds, mask = (getattr(self, f"{kind}_{name}") for name in ("embeds", "attention_mask"))
            check_embeds(kind, embeds, mask, text_width)
        if self.negative_prompt_embeds is not None:
            self._check_negatives(len(self.negative_prompt_embeds))

    def _check_negatives(self, found: int) -> None:
        if found not in (1, self.count):
            raise InputError(f"{found} negative prompts for {self.count} prompts: expected one, or one each")


class PromptEncoding:
    """What a pipeline does with prompts, by its text encoder or the names of its classes."""

    network_config: Any
    text_encoder: Any
    tokenizer: Any
    config: Any
    device: Any
    guidance_embedded: Any
    _execution_device: Any

    def __init__(self) -> None:
        super().__init__()
        self._chosen: Conditioner | None = None
        self._loaded: dict[str, CaptionEncoder] = {}  # the one of the name that is set
        self._warned: set[str] = set()

    @property
    def classes(self) -> list[str]:
        """The names of the classes that the network reads, or their numbers; none where it reads captions."""
        count = self.network_config.num_classes
        return [] if count is None else list(self.config.class_names or map(str, range(count)))

    @property
    def conditioner(self) -> Conditioner:
        """What encodes prompts: the pipeline's components, or a text encoder given by name, loaded on first use.

        Another may be set, which then encodes in its place; None sets the pipeline's own again.

        Raises:
            InputError: no text encoder, or one of another width; class names that are not as many as the classes.
        """
        return self._own_conditioner() if self._chosen is None else self._chosen

    @conditioner.setter
    def conditioner(self, value: Conditioner | None) -> None:
        self._chosen = value

    def _own_conditioner(self) -> Conditioner:
        config, name = self.network_config, self.config.text_encoder_name
        if config.num_classes is not None:
            names = self.classes
            if len(names) != config.num_classes:
                raise InputError(f"{len(names)} class_names for a network of {config.num_classes} classes")
            return LabelEncoder(names)
        if self.text_encoder is not None and self.tokenizer is not None:
            encoder: CaptionEncoder = TextEncoder(self.tokenizer, self.text_encoder, "pipeline")
        elif name is None:
            raise InputError(
                "this pipeline has no text encoder: give it text_encoder and tokenizer, or text_encoder_name "
                "('builtin', a folder or a hub id)"
            )
        else:
            encoder = self._load(name)
        encoder.escape = bool(self.config.escape_captions)
        if encoder.width != config.text_width:
            states = f"text encoder {encoder.name!r} gives states {encoder.width} wide"
            raise InputError(f"{states}, but the network reads {config.text_width}")
        return encoder

    def _load(self, name: str) -> CaptionEncoder:
        # weights are drawn before they are read, and the random numbers of PyTorch are those of who calls
        with _LOADING, fork_rng(devices=[]):
            if name not in self._loaded:
                encoder = load_caption_encoder(name)
                encoder.to(self._execution_device if self.device.type == "meta" else self.device)
                self._loaded = {name: encoder}
            return self._loaded[name]

    def encode_prompt(
        self,
        prompt: Any = None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool | None = None,
        negative_prompt: Any = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        max_sequence_length: int | None = None,
    ) -> Encoded:
        """Conditions of prompts, one row an image, which a call takes in their place.

        Args:
            do_classifier_free_guidance: also those to guide away from: of `negative_prompt`, else of the empty prompt.
                None: where a guided step takes a second evaluation for them, because there is a negative prompt or the
                network is not told the guidance scale.
            max_sequence_length: tokens of a prompt that are read; as many as the text encoder takes by default.

        Raises:
            InputError: what cannot be encoded, in one line.
        """
        prompts = Prompts(
            prompt, negative_prompt, prompt_embeds, prompt_attention_mask, negative_prompt_embeds,
            negative_prompt_attention_mask, max_sequence_length,
        )  # fmt: skip
        prompts.check(self.network_config.text_width)
        away = do_classifier_free_guidance
        if away is None:
            away = prompts.negative or not self.guidance_embedded
        return self._encode(prompts, device, num_images_per_prompt, away)

    def _encode(self, prompts: Prompts, device: Any, repeats: int, guided: bool) -> Encoded:
        device = self._execution_device if device is None else device
        condition, length = (prompts.prompt_embeds, prompts.prompt_attention_mask), prompts.max_sequence_length
        if prompts.prompt_embeds is None:
            condition = self._states(listed(prompts.prompt), length)
        null: tuple[Tensor | None, Tensor | None] = (None, None)
        if guided:
            null = (prompts.negative_prompt_embeds, prompts.negative_prompt_attention_mask)
            if prompts.negative_prompt is not None:
                null = self._states(listed(prompts.negative_prompt), length)
            elif null[0] is None:
                null = self._null(prompts.count, condition)

        def rows(values: Any) -> Any:  # one an image
            return (
                None
                if values is None
                else values.repeat_interleave(prompts.count * repeats // len(values), 0).to(device)
            )

        masks = (None if mask is None else rows(mask.bool()) for mask in (condition[1], null[1]))
        return Encoded(rows(condition[0]), next(masks), rows(null[0]), next(masks))

    def _null(self, count: int, condition: tuple[Any, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """The empty condition of prompts; of a network that attends to padding, padded as long as each caption is.

        Masks end at the end of the caption in both, so that each image is drawn as if its caption were alone.
        """
        network, conditioner = self.network_config, cast(Any, self.conditioner)
        if network.mask_text or network.num_classes is not None:
            return self.conditioner.null(count)
        states, mask = condition
        return conditioner.padded_null(states.shape[1]).expand(count, -1, -1), mask

    def _states(self, prompts: list[Any], length: int | None) -> tuple[Tensor, Tensor | None]:
        conditioner = self.conditioner
        if length is None:
            return conditioner(prompts)
        if not isinstance(conditioner, TextEncoder):
            raise InputError("max_sequence_length: this model's captions were encoded before")
        return conditioner(prompts, length)

    def _tell_of_cuts(self, prompts: Sequence[Any], length: int | None = None) -> None:
        """Say in one line what of a prompt is not read, once for each of the first few."""
        if not prompts or not isinstance(encoder := self.conditioner, TextEncoder):
            return
        for prompt in [each for each in dict.fromkeys(prompts) if each not in self._warned]:
            if len(self._warned) < MAX_WARNINGS and (rest := encoder.cut_off(prompt, length)):
                self._warned.add(prompt)
                read, rest = encoder.tokens_read(length), shown(rest.strip(), 120)
                log.warning("the prompt is longer than the %d tokens that are read: %s is not drawn", read, rest)
