"""What a model was shown: a prompt it cannot know is told so, with the nearest that it does."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from anystep.conditioning import TextEncoder
from anystep.errors import InputError
from anystep.pipelines.transition import TransitionPipeline

# cosine of mean token states below which a prompt without any known word is taken for nonsense
UNRELATED = 0.4


def check_known(pipeline: TransitionPipeline, prompts: Sequence[str]) -> None:
    """Raises InputError for a prompt that shares no word with the model's concepts and is near none in meaning.

    Models without a list of concepts are taken to know everything.
    """
    concepts = pipeline.config.concepts
    if not concepts or not isinstance(pipeline.conditioner, TextEncoder):
        return
    known = {word for concept in concepts for word in _words(concept)}
    for prompt in prompts:
        if _words(prompt) & known or not prompt.strip():
            continue
        states = _mean_states(pipeline.conditioner, [prompt, *concepts])
        similarity = states[1:] @ states[0]
        if similarity.max() < UNRELATED:
            near = ", ".join(repr(concepts[index]) for index in similarity.topk(min(3, len(concepts))).indices)
            raise InputError(
                f"this model does not know {prompt!r}: nearest are {near}; `anystep info` lists what it knows"
            )


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 2} - {"the", "and", "with", "face"}


def _mean_states(encoder: TextEncoder, texts: list[str]) -> Tensor:
    states, mask = encoder(texts)
    weight = torch.ones(states.shape[:2], device=states.device) if mask is None else mask.float()
    return normalize((states * weight[..., None]).sum(1) / weight.sum(1, keepdim=True), dim=-1)
