"""A loaded model for the tests of this folder."""

from pathlib import Path

import pytest

from anystep import TransitionPipeline


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> TransitionPipeline:
    loaded: TransitionPipeline = TransitionPipeline.from_pretrained(tiny_model)
    loaded.set_progress_bar_config(disable=True)
    return loaded
