"""Pictures in every form that diffusers takes, and latents that are decoded by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import draw_latents as draw
from PIL import Image

from anystep import TransitionPipeline
from anystep.pipelines.images import as_images

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    "given",
    [
        PIXELS,
        list(PIXELS),
        tuple(Image.fromarray(each) for each in PIXELS),
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2),
        torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255,
        list((torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255).bfloat16().float()),
    ],
)
def test_pictures_of_every_kind_are_one_picture(given: object) -> None:
    found = [np.asarray(image).astype(int) for image in as_images(given)]
    rounded = isinstance(given, list) and isinstance(given[0], torch.Tensor)  # to 8 bits of mantissa
    assert np.abs(np.stack(found) - PIXELS).max() <= rounded


def test_arrays_and_tensors_are_started_from_as_pictures_are(pipeline: TransitionPipeline) -> None:
    pictures = [Image.fromarray(each) for each in PIXELS]
    expected = draw(pipeline, ["a whale", "a tractor"], image=pictures, strength=0.3)
    for given in (PIXELS, PIXELS / 255, torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255):
        assert torch.equal(draw(pipeline, ["a whale", "a tractor"], image=given, strength=0.3), expected)


def test_latents_are_decoded_by_hand_as_the_pipeline_decodes_them(pipeline: TransitionPipeline) -> None:
    latents = draw(pipeline)
    pictures = pipeline.image_processor.postprocess(pipeline.decode_latents(latents), output_type="pil")
    shown = pipeline(
        ["a red apple", "a whale on a blue background", "a tractor"], num_inference_steps=2, seeds=[0, 1, 2]
    )
    for by_hand, own in zip(pictures, shown.images, strict=True):
        assert np.abs(np.asarray(by_hand).astype(int) - np.asarray(own)).max() <= 1


def test_preprocessed_pictures_are_encoded_as_given_ones(pipeline: TransitionPipeline, tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "cat.png")
    with Image.open(tmp_path / "cat.png") as picture:
        latent = pipeline.encode(picture, 16, 16)
        by_hand = pipeline.latent_codec.encode(pipeline.image_processor.preprocess(picture))
    torch.testing.assert_close(latent, by_hand, atol=1e-5, rtol=1e-5)
