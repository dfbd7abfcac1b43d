"""The page's requests, and settings of pictures as the form's fields, which draw them again, bit for bit."""

import base64
from io import BytesIO
from typing import Any

import pytest
from PIL import ExifTags, Image
from pydantic import ValidationError

from anystep.errors import InputError
from anystep.pipelines.settings import Settings, settings_in
from anystep.studio.draw import Drawn
from anystep.studio.engine import Engine
from anystep.studio.openai_images import ImageFields, Start
from anystep.studio.page_fields import PageFields, recalled
from anystep.studio.request import ImageRequest

from .conftest import Engines


def drawn(engine: Engine, *requests: ImageRequest) -> list[Drawn]:
    jobs = engine.submit(requests)
    engine.drain()
    return [job.result() for job in jobs]


def page(steps: list[int], image: str | None = None, **fields: Any) -> PageFields:
    return PageFields.model_validate({"fields": {"prompt": "a whale", **fields}, "steps": steps, "image": image})


def test_one_request_for_each_count_and_image_with_the_same_noise_cheap_ones_first(engines: Engines) -> None:
    requests = page([8, 1, 2, 8], n=2, seed=5).requests(engines())
    assert [(each.steps, each.seed) for each in requests] == [(1, 5), (1, 6), (2, 5), (2, 6), (8, 5), (8, 6)]
    assert len({each.seed for each in page([1, 2, 4]).requests(engines())}) == 1


def test_estimates_of_every_transition_or_of_as_many_as_are_asked_for(engines: Engines) -> None:
    assert page([4]).requests(engines())[0].previews is None
    assert page([4], partial_images=0).requests(engines())[0].previews == 0


def test_an_image_to_start_from(engines: Engines) -> None:
    buffer = BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "PNG")
    (request,) = page([2], base64.b64encode(buffer.getvalue()).decode(), strength=0.4).requests(engines())
    assert request.image is not None
    assert (request.image.size, request.strength) == ((20, 20), 0.4)
    for wrong, message in (
        ("no base64!", "expected a file in base64"),
        ("bm8gaW1hZ2U=", "expected a PNG, JPEG or WebP"),
    ):
        with pytest.raises(InputError, match=message):
            page([2], wrong).requests(engines())


def test_the_shape_of_a_photograph_is_that_of_it_upright(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, buffer, exif = engines(), BytesIO(), Image.Exif()
    pipeline = engine.model(engine.default_model).pipeline
    monkeypatch.setattr(pipeline, "_internal_dict", {**pipeline.config, "trained_shapes": ["24x16", "16x24"]})
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn
    Image.new("RGB", (30, 20), "red").save(buffer, "JPEG", exif=exif)
    fields = ImageFields(prompt="a whale", size="auto")
    assert fields._size(engine.model(engine.default_model), Start.read(buffer.getvalue())) == (16, 24)


@pytest.mark.parametrize("wrong", [{"steps": []}, {"steps": [0]}, {"steps": [1] * 17}, {"other": 1}, {"fields": {}}])
def test_other_bodies_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PageFields.model_validate({"fields": {"prompt": "a whale"}, "steps": [1], **wrong})


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"size": (24, 16), "guidance": 3.0, "guidance_interval": (0.2, 0.9)},
        {"stochasticity": 0.5, "plan": "uniform"},
        {"steps": 4, "finish_after": 2},
    ],
)
def test_what_a_picture_says_draws_it_again(engines: Engines, asked: dict[str, Any]) -> None:
    engine = engines()
    (first,) = drawn(engine, ImageRequest("a whale", "tiny", **{"seed": 3, "steps": 3, **asked}))
    told = recalled(settings_in(BytesIO(first.encoded()), "it"), engine)
    assert told.pop("warnings") == []
    assert (told.pop("nfe"), told.pop("n")) == ([first.nfe], 1)
    (again,) = drawn(
        engines(), *PageFields.model_validate({"steps": told.pop("steps"), "fields": told}).requests(engine)
    )
    assert again.image.tobytes() == first.image.tobytes()
    assert again.texts == first.texts


def test_what_cannot_be_as_it_was_is_told(engines: Engines) -> None:
    engine = engines()
    (first,) = drawn(engine, ImageRequest("a whale", "tiny", steps=3))
    settings = settings_in(BytesIO(first.encoded()), "it")

    def warned(**changes: Any) -> list[str]:
        found: list[str] = recalled(Settings.model_validate({**settings.model_dump(), **changes}), engine)["warnings"]
        return found

    assert "drawn by another model, 'runs/x'" in warned(model="runs/x", model_digest="other")[0]
    assert "a sheet of 2 prompts" in warned(prompts=("a whale", "a red apple"))[0]
    assert "begun with the image 'apple.png'" in warned(image="apple.png", image_digest="0", strength=0.5)[0]
    assert "drawn with adapters: 'mine'" in warned(lora=[{"name": "mine", "digest": "0", "scale": 1.0}])[0]
    assert "rope_scaling or key_grid, which this form lacks" in warned(key_grid=4)[0]
    begun = settings.model_copy(update={"image": "apple.png", "image_digest": "0", "strength": 0.5})
    assert recalled(begun, engine)["start"] == "apple.png"  # which the copied command names
    assert "its seed is larger" in warned(seeds=(2**60,))[0]
    assert "a sampling plan of its own" in warned(plans={3: {"steps": 2, "tail": 0.25}})[0]
