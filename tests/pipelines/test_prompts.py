"""Prompts, negative prompts, and states that were encoded before."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PROMPTS, GivenStates, opened, save_guided
from helpers import assert_latents_close as close
from helpers import draw_latents as draw

from anystep import TransitionPipeline, TransitionScheduler
from anystep.errors import InputError
from anystep.models import build_transformer


def test_what_was_encoded_before_draws_what_the_prompt_draws(pipeline: TransitionPipeline) -> None:
    encoded = pipeline.encode_prompt(PROMPTS)
    assert encoded._fields == (
        "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"
    )  # fmt: skip
    words: dict[str, Any] = {"seeds": [0, 1, 2]}
    assert torch.equal(draw(pipeline, None, **encoded._asdict(), **words), draw(pipeline))
    whole = {"prompt_embeds": encoded.prompt_embeds, "prompt_attention_mask": encoded.prompt_attention_mask.long()}
    assert torch.equal(draw(pipeline, None, **whole, **words), draw(pipeline))
    unmasked = draw(pipeline, None, prompt_embeds=encoded.prompt_embeds, **words)
    assert not torch.allclose(unmasked, draw(pipeline), atol=1e-3)


def test_a_pipeline_without_a_text_encoder_draws_what_was_encoded_elsewhere(pipeline: TransitionPipeline) -> None:
    bare = TransitionPipeline(**pipeline.components)
    bare.set_progress_bar_config(disable=True)
    encoded = pipeline.encode_prompt("a whale")._asdict()
    drawn = draw(bare, None, guidance_scale=1.5, seeds=[0], **encoded)
    assert torch.equal(drawn, draw(pipeline, "a whale"))
    unguided = draw(bare, None, guidance_scale=1.0, seeds=[0], **encoded)  # nothing is guided away from
    assert torch.equal(unguided, draw(pipeline, "a whale", guidance_scale=1.0))


def test_the_text_encoder_of_a_pipeline_is_the_one_that_it_has_now(tiny_model: Path, tmp_path: Path) -> None:
    opened(tiny_model).save_pretrained(tmp_path, carry_text_encoder=True)
    pipeline = opened(tmp_path)
    before = draw(pipeline, "a whale")
    other = copy.deepcopy(pipeline.text_encoder)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    replaced = weakref.ref(pipeline.text_encoder)
    pipeline.text_encoder = other
    gc.collect()
    assert replaced() is None
    assert not torch.allclose(draw(pipeline, "a whale"), before, atol=1e-3)
    pipeline.text_encoder = pipeline.tokenizer = None
    with pytest.raises(InputError, match="no text encoder"):
        draw(pipeline, "a whale")
    pipeline.register_to_config(text_encoder_name="builtin")
    close(draw(pipeline, "a whale"), before)
    assert pipeline.conditioner is pipeline.conditioner  # loaded once
    pipeline.register_to_config(text_encoder_name=str(tmp_path / "none"))
    with pytest.raises(InputError, match="none"):
        draw(pipeline, "a whale")


def test_the_first_call_leaves_the_random_numbers_of_pytorch_as_they_are(tiny_model: Path) -> None:
    pipeline = TransitionPipeline.from_pretrained(tiny_model)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pipeline.encode_prompt(PROMPTS)  # which loads the text encoder
    assert torch.equal(torch.get_rng_state(), before)


def test_another_conditioner_may_be_set(pipeline: TransitionPipeline) -> None:
    states, null = torch.randn(1, 5, 384), torch.zeros(1, 1, 384)
    pipeline.conditioner = GivenStates(states, null)
    found = draw(pipeline, "a whale")
    pipeline.conditioner = None
    assert torch.equal(found, draw(pipeline, None, prompt_embeds=states, negative_prompt_embeds=null, seeds=[0]))
    assert not torch.allclose(found, draw(pipeline, "a whale"), atol=1e-3)


def test_several_images_of_states(pipeline: TransitionPipeline) -> None:
    encoded = pipeline.encode_prompt(PROMPTS[:2], num_images_per_prompt=2)
    assert encoded.prompt_embeds.shape[0] == 4
    seeds = [0, 1, 2, 3]
    one = pipeline.encode_prompt(PROMPTS[:2])._asdict()
    both = draw(pipeline, PROMPTS[:2], num_images_per_prompt=2, seeds=seeds)
    close(draw(pipeline, None, num_images_per_prompt=2, seeds=seeds, **one), both)
    close(draw(pipeline, None, seeds=seeds, **encoded._asdict()), both)


def test_a_negative_prompt_stands_for_the_empty_one(pipeline: TransitionPipeline) -> None:
    plain = draw(pipeline, guidance_scale=2.0)
    close(draw(pipeline, guidance_scale=2.0, negative_prompt=""), plain)
    away = draw(pipeline, guidance_scale=2.0, negative_prompt="a blue whale")
    assert not torch.allclose(away, plain, atol=1e-3)
    each = ["", "a blue whale", "a blue whale"]
    several = draw(pipeline, guidance_scale=2.0, negative_prompt=each)
    close(several, torch.cat([plain[:1], away[1:]]))
    # guided away from itself a prompt is drawn as it is
    close(draw(pipeline, guidance_scale=7.0, negative_prompt=PROMPTS), draw(pipeline, guidance_scale=1.0))
    encoded = pipeline.encode_prompt(PROMPTS, negative_prompt="a blue whale")
    close(draw(pipeline, None, guidance_scale=2.0, seeds=[0, 1, 2], **encoded._asdict()), away)


def test_classes_are_guided_away_from_too(tiny_classes: Any) -> None:
    pipeline = TransitionPipeline.from_pretrained(tiny_classes)
    pipeline.set_progress_bar_config(disable=True)
    away = draw(pipeline, ["ant", "bee"], guidance_scale=2.0, negative_prompt="cat")
    assert torch.equal(away, draw(pipeline, [0, 1], guidance_scale=2.0, negative_prompt=[2, 2]))
    assert not torch.allclose(away, draw(pipeline, ["ant", "bee"], guidance_scale=2.0), atol=1e-3)
    for options, message in (
        ({"max_sequence_length": 3}, "max_sequence_length: goes with captions"),
        ({"prompt_embeds": torch.zeros(1, 2, 3)}, "prompt_embeds: goes with captions"),
    ):
        with pytest.raises(InputError, match=message):
            pipeline(None if "prompt_embeds" in options else "ant", seeds=[0], **options)


def test_a_network_that_is_told_the_scale_is_guided_away_from_a_negative_prompt_by_two_evaluations() -> None:
    torch.manual_seed(0)
    network = build_transformer("c2i-test", in_channels=3, num_classes=3, guidance_embed=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline = TransitionPipeline(network, TransitionScheduler())
    pipeline.set_progress_bar_config(disable=True)
    options = {"seeds": [0], "num_inference_steps": 1, "output_type": "latent"}
    away = pipeline(1, guidance_scale=2.0, negative_prompt=2, **options)
    to, from_ = (pipeline(label, guidance_scale=1.0, **options).images for label in (1, 2))
    close(away.images, from_ + 2.0 * (to - from_))
    assert away.nfe == 2
    assert pipeline(1, guidance_scale=2.0, **options).nfe == 1
    with pytest.raises(InputError, match="negative_prompt: at a scale of 1 and below"):
        pipeline(1, guidance_scale=1.0, negative_prompt=2, **options)


def test_what_a_network_that_is_told_the_scale_was_given_encoded_costs_one_evaluation(
    tiny_model: Path, tmp_path: Path
) -> None:
    save_guided(tiny_model, tmp_path)
    pipeline, words = opened(tmp_path), {"seeds": [0], "num_inference_steps": 2, "output_type": "latent"}
    plain = pipeline("a whale", **words)
    assert pipeline.encode_prompt("a whale", do_classifier_free_guidance=True).negative_prompt_embeds is not None
    for given in (pipeline.encode_prompt("a whale")._asdict(), {"prompt": "a whale", "negative_prompt": [" "]}):
        drawn = pipeline(**given, **words)
        assert torch.equal(drawn.images, plain.images)
        assert (drawn.nfe, plain.nfe) == (2, 2)
    away = pipeline.encode_prompt("a whale", negative_prompt="red")
    assert pipeline(**away._asdict(), **words).nfe == 4


def test_a_blank_negative_prompt_is_none(pipeline: TransitionPipeline, tiny_classes: Path) -> None:
    unguided = draw(pipeline, guidance_scale=1.0)
    for blank in ("", " \n", [""], ["", " ", ""]):
        assert torch.equal(draw(pipeline, guidance_scale=1.0, negative_prompt=blank), unguided)
    classes = opened(tiny_classes)
    plain = draw(classes, ["ant"], guidance_scale=2.0, seeds=[0])
    assert torch.equal(draw(classes, ["ant"], guidance_scale=2.0, seeds=[0], negative_prompt=""), plain)
    with pytest.raises(InputError, match="0 negative prompts for 3 prompts"):
        draw(pipeline, guidance_scale=2.0, negative_prompt=[])


@pytest.mark.parametrize("told", [False, True])
def test_a_pipeline_says_whether_a_step_takes_two_evaluations(tiny_model: Path, tmp_path: Path, told: bool) -> None:
    if told:
        save_guided(tiny_model, tmp_path)
    pipeline, seen = opened(tmp_path if told else tiny_model), list[bool]()

    def look(pipe: Any, step: int, timestep: float, tensors: Any) -> None:
        pipe.guidance_scale = 1.0 if step else pipe.guidance_scale
        seen.append(pipe.do_classifier_free_guidance)

    for options in ({}, {"negative_prompt": "red"}):
        nfe = pipeline("a whale", num_inference_steps=2, guidance_scale=2.0, callback_on_step_end=look, **options).nfe
        assert seen[-2:] == [nfe == 4, False]
    assert seen[0] is not told


def test_fewer_tokens_are_read_on_request_and_what_is_cut_is_said(
    pipeline: TransitionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "a red apple on a blue background"
    short = draw(pipeline, prompt, max_sequence_length=5)
    (record,) = caplog.records
    assert "longer than the 5 tokens" in record.getMessage()
    assert "on a blue background" in record.getMessage()
    close(short, draw(pipeline, "a red apple"))
    assert torch.equal(draw(pipeline, prompt, max_sequence_length=10_000), draw(pipeline, prompt))
