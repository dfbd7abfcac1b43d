"""What a model was shown: a prompt it cannot know is told so, with the nearest that it does."""

import re
from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

from anystep.bounds import shown
from anystep.conditioning import TextEncoder
from anystep.pipelines.transition import TransitionPipeline

# cosine of mean token states below which a prompt without any known word is taken for nonsense
UNRELATED = 0.4


def unknown(pipeline: TransitionPipeline, prompts: Sequence[str]) -> list[str | None]:
    """What is to be said of each prompt that the model cannot know; None for those that it may.

    That is one that shares no word with the model's concepts and is near none in meaning. Models without a list of
    concepts are taken to know everything.
    """
    concepts = pipeline.config.concepts
    if not concepts or not isinstance(pipeline.conditioner, TextEncoder):
        return [None] * len(prompts)
    known = {word for concept in concepts for word in _words(concept)}
    meanings: Tensor | None = None
    said: list[str | None] = [None] * len(prompts)
    for place, prompt in enumerate(prompts):
        if _words(prompt) & known or not prompt.strip():
            continue
        if meanings is None:
            meanings = normalize(pipeline.conditioner.mean_states(concepts), dim=-1)
        similarity = meanings @ normalize(pipeline.conditioner.mean_states([prompt]), dim=-1)[0]
        if similarity.max() < UNRELATED:
            near = ", ".join(repr(concepts[index]) for index in similarity.topk(min(3, len(concepts))).indices)
            told = f"this model does not know {shown(prompt)}: nearest are {near}; `anystep info` lists what it knows"
            said[place] = told
    return said


def _words(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 2} - {"the", "and", "with", "face"}
