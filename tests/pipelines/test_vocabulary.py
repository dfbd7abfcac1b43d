"""Prompts that a model knows, and those that it cannot know."""

import re
from pathlib import Path

import pytest

from anystep.pipelines.load import Model, load
from anystep.pipelines.vocabulary import unknown


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load(tiny_model)


@pytest.mark.parametrize("prompt", ["a whale", "two apples and a red tractor", "a shark", "fruit", "WHALE!"])
def test_known_words_and_near_meanings_pass(model: Model, prompt: str) -> None:
    assert unknown(model.pipeline, [prompt]) == [None]


@pytest.mark.parametrize("prompt", ["xyzzy qwrt", "jurisprudence"])
def test_a_prompt_of_unknown_words_is_answered_with_the_nearest_known(model: Model, prompt: str) -> None:
    known, said = unknown(model.pipeline, ["a whale", prompt])
    assert known is None
    assert re.search(rf"does not know '{prompt}': nearest are '.*'; `anystep info`", str(said))


def test_a_model_without_a_list_of_concepts_takes_every_prompt(tiny_model: Path) -> None:
    model = load(tiny_model)
    model.pipeline.register_to_config(concepts=None)
    assert unknown(model.pipeline, ["jurisprudence"]) == [None]
