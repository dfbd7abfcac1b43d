"""What may be asked for, and which previews are shown."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from PIL import Image

from anystep.errors import InputError
from anystep.pipelines.load import Model
from anystep.studio.request import ImageRequest, Limits, checked

LIMITS = Limits(pixels=32 * 32, steps=8, prompt=20)


@given(transitions=st.integers(1, 200), previews=st.integers(0, 300) | st.none())
def test_previews_are_as_many_as_asked_for_and_never_the_image_itself(transitions: int, previews: int | None) -> None:
    shown = ImageRequest("x", previews=previews).shown_after(transitions)
    assert len(shown) == min(transitions - 1, transitions if previews is None else previews)
    assert all(0 <= each < transitions - 1 for each in shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "empty prompt"),
        ({"prompt": "x" * 21}, "prompt of 21 characters: expected at most 20"),
        ({"negative_prompt": "x" * 21}, "negative_prompt of 21 characters"),
        ({"negative_prompt": "x", "guidance": 1.0}, "guidance 1 leads away from nothing"),
        ({"prompt": "a\x1b[31m"}, "without control characters"),
        ({"steps": 9}, "steps 9: expected at most 8 here"),
        ({"steps": 0}, "steps 0: expected a whole number from 1"),
        ({"size": (80, 16)}, "size 80x16: expected at most 1,024 pixels here"),
        ({"size": (18, 16)}, "multiples of"),
        ({"seed": -1}, "seed -1"),
        ({"guidance": -1.0}, "guidance"),
        ({"guidance_interval": (0.9, 0.1)}, "guidance_interval"),
        ({"stochasticity": 2.0}, "stochasticity"),
        ({"finish_after": 4}, "finish_after 4: expected fewer than the 4 transitions"),
        ({"strength": 0.5}, "goes with an image"),
        ({"image": Image.new("RGB", (4, 4)), "strength": 0.0}, "strength 0.0"),
        ({"previews": -1}, "previews -1"),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)
def test_what_cannot_be_drawn_is_refused_before_it_waits(alone: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        checked(ImageRequest(**{"prompt": "a whale", **options}), alone, LIMITS)


def test_size_and_guidance_become_those_of_the_model(alone: Model) -> None:
    ready = checked(ImageRequest("a whale"), alone, LIMITS)
    assert (ready.size, ready.guidance) == ((16, 16), 1.5)
    assert checked(ImageRequest("a whale", guidance=0.3), alone, LIMITS).guidance == 1.0
    assert checked(ImageRequest("a whale", guidance=1.0, negative_prompt=" "), alone, LIMITS).negative_prompt == ""
