"""The pipeline: what a prompt, a seed and a size mean, and what is refused."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMapEulerDiscreteScheduler
from helpers import PROMPTS, offload_layers, tensor_defaults
from helpers import assert_latents_close as close
from helpers import draw_latents as draw
from PIL import Image
from torch import Tensor

import anystep
from anystep import TransitionPipeline, TransitionScheduler
from anystep.codecs.codec import AutoencoderCodec
from anystep.errors import InputError
from anystep.models import build_transformer
from anystep.pipelines.load import Model
from anystep.sampling import StepPlan


def test_a_batch_is_its_images_one_by_one(pipeline: TransitionPipeline) -> None:
    together = draw(pipeline)
    for row, prompt in enumerate(PROMPTS):
        close(together[row : row + 1], draw(pipeline, prompt, seeds=[row]))


def test_the_same_seed_is_the_same_image_and_another_is_another(pipeline: TransitionPipeline) -> None:
    assert torch.equal(draw(pipeline, seeds=[5, 6, 7]), draw(pipeline, seeds=[5, 6, 7]))
    assert not torch.allclose(draw(pipeline, seeds=[5, 6, 7]), draw(pipeline, seeds=[5, 6, 8]), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_image_does_not_depend_on_what_the_process_makes_tensors_of(
    pipeline: TransitionPipeline, dtype: torch.dtype
) -> None:
    words: dict[str, Any] = {"guidance_scale": 2.0, "stochasticity": 0.5, "output_type": "pt", "rope_scaling": "yarn"}
    expected = draw(pipeline, height=32, width=48, **words)
    with tensor_defaults(dtype):
        assert torch.equal(draw(pipeline, height=32, width=48, **words), expected)
    states, _, null, _ = pipeline.encode_prompt(PROMPTS[0])
    words |= {"prompt_embeds": states, "negative_prompt_embeds": null, "seeds": [3]}
    expected = draw(pipeline, None, **words)
    with tensor_defaults(dtype, "meta"):  # nor on which device
        assert torch.equal(draw(pipeline, None, **words), expected)


def test_prompt_and_guidance_matter(pipeline: TransitionPipeline) -> None:
    one, other = (draw(pipeline, prompt) for prompt in PROMPTS[:2])
    assert not torch.allclose(one, other, atol=1e-3)
    assert not torch.allclose(draw(pipeline, guidance_scale=1.0), draw(pipeline, guidance_scale=3.0), atol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 0.5, -0.0])
def test_guidance_of_1_and_below_is_none(pipeline: TransitionPipeline, scale: float) -> None:
    assert torch.equal(draw(pipeline, guidance_scale=scale), draw(pipeline, guidance_scale=1.0))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_evaluations_are_counted_and_are_those_made(
    pipeline: TransitionPipeline, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    rows = []
    real = pipeline.transformer.forward

    def counting(*arguments: Any, **options: Any) -> Any:
        rows.append(len(arguments[0]))
        return real(*arguments, **options)

    monkeypatch.setattr(pipeline.transformer, "forward", counting)
    middle = (0.5, 1.0)
    inside = sum(time >= 0.5 for time in pipeline.scheduler.times(steps)[:-1].tolist())
    for options, expected in (
        ({"guidance_scale": 1.0}, steps),
        ({"guidance_scale": 0.0}, steps),
        ({"guidance_scale": 0.5}, steps),
        ({}, 2 * steps),
        ({"guidance_scale": 2.0, "guidance_interval": middle}, steps + inside),
        ({"guidance_scale": 2.0, "guidance_interval": (2.0, 3.0)}, steps),
    ):
        rows.clear()
        nfe = pipeline(PROMPTS, num_inference_steps=steps, seeds=[0, 1, 2], output_type="latent", **options).nfe
        assert nfe == expected
        assert sum(rows) == expected * len(PROMPTS)


def test_a_network_that_is_told_the_scale_is_guided_at_one_evaluation_a_step() -> None:
    torch.manual_seed(0)
    network = build_transformer("c2i-test", in_channels=3, num_classes=3, guidance_embed=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline = TransitionPipeline(network, TransitionScheduler(base_size=8), guidance_scale=2.0)
    pipeline.set_progress_bar_config(disable=True)
    words: dict[str, Any] = {"num_inference_steps": 3, "seeds": [0], "output_type": "latent"}
    own, unguided = pipeline(1, **words), pipeline(1, guidance_scale=1.0, **words)
    assert own.nfe == unguided.nfe == 3
    assert not torch.allclose(own.images, unguided.images, atol=1e-3)
    assert torch.equal(pipeline(1, guidance_scale=2.0, **words).images, own.images)
    outside = pipeline(1, guidance_interval=(2.0, 3.0), **words)
    assert torch.equal(outside.images, unguided.images)
    assert [pipeline.evaluations_per_step(scale) for scale in (None, 1.0, 5.0)] == [1, 1, 1]


def test_evaluations_of_a_guided_step(pipeline: TransitionPipeline) -> None:
    assert [pipeline.evaluations_per_step(scale) for scale in (None, 0.0, 1.0, 5.0)] == [2, 1, 1, 2]


def test_captions_are_encoded_once_a_generation(pipeline: TransitionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = pipeline.transformer.encode_condition
    monkeypatch.setattr(
        pipeline.transformer, "encode_condition", lambda *arguments: (calls.append(1), real(*arguments))[1]
    )
    draw(pipeline, steps=5)
    assert len(calls) == 1  # the captions and the empty one together
    calls.clear()
    draw(pipeline, steps=5, guidance_in_one_batch=False)
    assert len(calls) == 2


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 32), (48, 16), (8, 8)])
def test_sizes_square_and_not(pipeline: TransitionPipeline, height: int, width: int) -> None:
    output = pipeline(PROMPTS[:2], height, width, 1, seeds=[0, 1], output_type="pil")
    assert [image.size for image in output.images] == [(width, height)] * 2


def test_output_types_show_one_picture(pipeline: TransitionPipeline) -> None:
    shown = {
        kind: pipeline(PROMPTS, seeds=[0, 1, 2], num_inference_steps=1, output_type=kind).images
        for kind in ("pil", "np", "pt")
    }
    assert shown["np"].shape == (3, 16, 16, 3)
    assert shown["pt"].shape == (3, 3, 16, 16)
    np.testing.assert_array_equal(shown["np"], shown["pt"].permute(0, 2, 3, 1).numpy())
    pixels = np.stack([np.asarray(image) for image in shown["pil"]])
    np.testing.assert_allclose(pixels / 255, shown["np"], atol=1e-6)
    assert 0 <= shown["np"].min() < shown["np"].max() <= 1


def test_a_tuple_on_request(pipeline: TransitionPipeline) -> None:
    images, nfe = pipeline(PROMPTS[0], seeds=[0], num_inference_steps=1, guidance_scale=1.0, return_dict=False)
    assert (len(images), nfe) == (1, 1)


def test_several_images_a_prompt(pipeline: TransitionPipeline) -> None:
    drawn = draw(pipeline, PROMPTS[:2], num_images_per_prompt=2, seeds=[3, 4, 3, 5])
    close(drawn, draw(pipeline, [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, seeds=[3, 4, 3, 5]))


def test_noise_from_generators_or_given(pipeline: TransitionPipeline) -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    close(draw(pipeline, generator=generators()), draw(pipeline, seeds=[0, 1, 2]))
    z = torch.cat([torch.randn(1, 4, 4, 4, generator=generator) for generator in generators()])
    close(draw(pipeline, latents=z), draw(pipeline, seeds=[0, 1, 2]))
    one = draw(pipeline, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one, draw(pipeline, generator=torch.Generator().manual_seed(0)))


def test_stochastic_sampling_belongs_to_the_seed_not_to_the_batch(pipeline: TransitionPipeline) -> None:
    noisy = draw(pipeline, steps=4, stochasticity=1.0)
    assert not torch.allclose(noisy, draw(pipeline, steps=4), atol=1e-3)
    close(noisy[1:2], draw(pipeline, PROMPTS[1], 4, seeds=[1], stochasticity=1.0))


@pytest.fixture(scope="module")
def planned(tiny_model: Path) -> TransitionPipeline:
    """The same model with plans: of 4 steps with all that a plan can say, of 8 and more like 4."""
    loaded: TransitionPipeline = TransitionPipeline.from_pretrained(tiny_model)
    loaded.set_progress_bar_config(disable=True)
    four = {"steps": 4, "tail": 0.3, "shift": 1.4, "velocity_below": 0.25, "memory": True}
    plans = {"4": four, "8": four, "16": {"steps": 16, "stochasticity": 0.3}}
    loaded.scheduler = TransitionScheduler.from_config(loaded.scheduler.config, plans=plans)
    return loaded


def test_plans_are_used_unless_times_are_to_be_uniform(
    pipeline: TransitionPipeline, planned: TransitionPipeline
) -> None:
    plan = StepPlan(4, tail=0.3, shift=1.4, velocity_below=0.25, memory=True)
    assert torch.equal(draw(planned, steps=4), draw(pipeline, steps=4, plan=plan))
    assert torch.equal(draw(planned, steps=4, plan="uniform"), draw(pipeline, steps=4))
    assert torch.equal(draw(planned, steps=2), draw(pipeline, steps=2))  # there is none for so few
    assert not torch.allclose(draw(planned, steps=4), draw(pipeline, steps=4), atol=1e-3)
    others = {"tail": None, "shift": 1.0, "memory": False, "velocity_below": 0.0}
    for name, value in {**others, "guidance_share": 0.5, "guided_above": 0.5}.items():
        other = draw(pipeline, steps=4, plan=replace(plan, **{name: value}))
        assert not torch.equal(draw(planned, steps=4), other), name


def test_what_is_spent_is_what_is_told(planned: TransitionPipeline) -> None:
    output = planned(PROMPTS[0], num_inference_steps=12, seeds=[0], guidance_scale=2.0, output_type="latent")
    assert (output.nfe, output.steps, planned.num_timesteps) == (8, 4, 4)
    model = Model("planned", planned)
    drawn = model.generate(PROMPTS[0], 12, guidance=1.0)
    assert (drawn.steps, drawn.asked, drawn.nfe) == (4, 12, 4)
    assert drawn.plan == planned.plan(12)
    assert model.generate(PROMPTS[0], 12, guidance=1.0, plan="uniform").nfe == 12


def test_a_plan_takes_a_share_of_the_guidance_and_leaves_little_noise_unguided(pipeline: TransitionPipeline) -> None:
    words: dict[str, Any] = {"steps": 5, "guidance_scale": 3.0}
    half = StepPlan(5, guidance_share=0.5)
    assert torch.equal(draw(pipeline, plan=half, **words), draw(pipeline, steps=5, guidance_scale=2.0))
    assert torch.equal(
        draw(pipeline, plan=half, steps=5, guidance_scale=0.5), draw(pipeline, steps=5, guidance_scale=0.5)
    )
    # of the times 1, 0.8, 0.6, 0.4 and 0.2; the interval of a call takes the place of the plan's
    above = StepPlan(5, guided_above=0.6)
    within = draw(pipeline, guidance_interval=(0.5, 1.0), **words)
    assert torch.equal(draw(pipeline, plan=above, **words), within)
    assert torch.equal(
        draw(pipeline, plan=StepPlan(5, guided_above=0.9), guidance_interval=(0.5, 1.0), **words), within
    )
    for plan in (half, above, StepPlan(5, guidance_share=0.0), StepPlan(5, guided_above=1.0), StepPlan(5)):
        for open_ends in (False, True):
            made = TransitionPipeline(
                **pipeline.components, text_encoder_name="builtin", open_guidance_interval=open_ends
            )
            found = made("a dog", num_inference_steps=5, plan=plan, guidance_scale=3.0, seeds=[0], output_type="latent")
            assert found.nfe == made.evaluations(plan, 3.0), (plan, open_ends)
    assert [pipeline.evaluations(plan, 3.0) for plan in (half, above, StepPlan(5, guidance_share=0.0))] == [10, 8, 5]


def test_what_the_user_says_wins_over_the_plan(planned: TransitionPipeline) -> None:
    assert planned.plan(4, shift=2.0) == replace(planned.plan(4), shift=2.0)
    assert planned.plan(16).stochasticity == 0.3
    assert planned.plan(16, stochasticity=0.0).stochasticity == 0.0
    still = draw(planned, steps=16, stochasticity=0.0, guidance_scale=1.0)
    assert torch.equal(still, draw(planned, steps=16, plan="uniform", guidance_scale=1.0))


def test_fresh_noise_belongs_to_the_seeds_or_comes_from_the_generator(planned: TransitionPipeline) -> None:
    words: dict[str, Any] = {"steps": 16, "guidance_scale": 1.0}
    close(draw(planned, **words)[1:2], draw(planned, PROMPTS[1], seeds=[1], **words))

    def made(seed: int, **more: Any) -> Tensor:
        return draw(planned, generator=torch.Generator().manual_seed(seed), **words, **more)

    assert torch.equal(made(3), made(3))
    assert not torch.allclose(made(3), made(4), atol=1e-3)
    each = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    alone = draw(planned, PROMPTS[1], generator=[torch.Generator().manual_seed(6)], **words)
    close(draw(planned, generator=each, **words)[1:2], alone)


def test_an_image_is_started_from_as_planned(planned: TransitionPipeline) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    seen: list[float] = []

    def watch(pipe: TransitionPipeline, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        seen.append(timestep / 1000)

    draw(planned, PROMPTS[0], 4, image=image, strength=0.5, callback_on_step_end=watch)
    expected = planned.scheduler.times(planned.plan(4), strength=0.5)[:-1].tolist()
    assert seen == pytest.approx(expected)
    assert len(seen) == 4


def test_a_network_of_velocities_is_asked_for_nothing_else_whatever_its_plan(planned: TransitionPipeline) -> None:
    flow = TransitionPipeline(**planned.components, text_encoder_name="builtin", sampling="instantaneous")
    assert flow.plan(4).velocity_below == 1.0
    assert flow.plan(4, StepPlan(3)).velocity_below == 1.0
    consistency = TransitionPipeline(**planned.components, text_encoder_name="builtin", sampling="consistency")
    assert consistency.plan(2).stochasticity == consistency.plan(4, "uniform").stochasticity == 1.0
    assert consistency.plan(4).stochasticity == consistency.plan(1).stochasticity == 0.0


def test_numbers_of_numpy_are_numbers(pipeline: TransitionPipeline) -> None:
    expected = draw(pipeline, PROMPTS[:2], seeds=[3, 4], height=16, width=32)
    call = torch.no_grad()(inspect.unwrap(TransitionPipeline.__call__))  # without the type checks of the tests
    for seeds in (np.array([3, 4]), torch.tensor([3, 4])):
        output = call(
            pipeline, np.array(PROMPTS[:2]), np.int64(16), np.int32(32), np.int64(2), seeds=seeds, output_type="latent"
        )
        assert torch.equal(output.images, expected)


def test_a_pipeline_made_from_another_keeps_its_parts(pipeline: TransitionPipeline) -> None:
    again = TransitionPipeline.from_pipe(pipeline)
    again.set_progress_bar_config(disable=True)
    assert again.vae is again.codec is pipeline.vae
    assert torch.equal(draw(again), draw(pipeline))
    bare = TransitionPipeline(**pipeline.components)
    with pytest.raises(InputError, match="no text encoder: give it text_encoder and tokenizer, or text_enc"):
        bare(PROMPTS[0], seeds=[0])
    named = TransitionPipeline(**pipeline.components, text_encoder_name="builtin")
    named.set_progress_bar_config(disable=True)
    assert torch.equal(draw(named, guidance_scale=1.5), draw(pipeline))


def test_classes_without_names_are_drawn_by_index_and_without_an_empty_class_unguided() -> None:
    torch.manual_seed(0)
    network = build_transformer("c2i-test", in_channels=3, num_classes=3, class_dropout_prob=0.0)
    pipeline = TransitionPipeline(network, TransitionScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert draw(pipeline, [2, 0], guidance_scale=1.0).shape == (2, 3, 8, 8)
    assert torch.equal(draw(pipeline, torch.tensor([2, 0]), seeds=[0, 1]), draw(pipeline, ["2", "0"], seeds=[0, 1]))
    with pytest.raises(InputError, match="knows no empty class"):
        pipeline(2, seeds=[0], guidance_scale=2.0)
    with pytest.raises(InputError, match="2 class_names for a network of 3 classes"):
        TransitionPipeline(network, TransitionScheduler(), class_names=["a", "b"])("a", seeds=[0])


def test_a_codec_of_other_channels_or_none_is_said(pipeline: TransitionPipeline) -> None:
    other = TransitionPipeline(pipeline.transformer, pipeline.scheduler, text_encoder_name="builtin")
    other.set_progress_bar_config(disable=True)
    with pytest.raises(InputError, match="latents of 4 channels, but there is no codec"):
        other("a whale", seeds=[0])
    assert draw(other, "a whale", 1).shape == (1, 4, 4, 4)
    network = build_transformer("t2i-test", in_channels=8, text_width=384)
    other = TransitionPipeline(network, pipeline.scheduler, pipeline.vae, text_encoder_name="builtin")
    with pytest.raises(InputError, match="latents of 8 channels, but the codec's have 4"):
        other("a whale", seeds=[0])


def test_without_a_codec_latents_say_the_size(pipeline: TransitionPipeline) -> None:
    other = TransitionPipeline(pipeline.transformer, pipeline.scheduler, text_encoder_name="builtin")
    other.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 4)
    words: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 2.0}
    found = other("a whale", latents=latents, **words).images
    assert found.shape == latents.shape
    for given in ({"height": 16, "width": 16}, {"width": 16}, {"height": 32, "width": 16, "latents": latents}):
        with pytest.raises(InputError, match=r"without the codec it is unknown what latents that is: give latents"):
            other("a whale", **given, **words)


def test_one_prompt_to_encode_is_no_list_of_letters(pipeline: TransitionPipeline) -> None:
    one = pipeline.encode_prompt("a red apple", "cpu")
    assert one.prompt_embeds.shape == (1, 5, 384)
    assert one.prompt_attention_mask is None
    assert torch.equal(one.prompt_embeds, pipeline.encode_prompt(["a red apple"], "cpu")[0])


def test_the_end_of_a_prompt_that_is_too_long_is_said(
    pipeline: TransitionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    long = f"a red apple{' very' * 300} blue"
    for _ in range(2):
        draw(pipeline, long, 1)
    draw(pipeline, "a red apple", 1)
    (record,) = caplog.records
    assert "longer than the 128 tokens" in record.getMessage()
    assert "very very" in record.getMessage()


def test_what_is_not_finite_is_said_and_no_picture(tiny_model: Path) -> None:
    pipeline = anystep.load(tiny_model).pipeline
    with torch.no_grad():
        next(pipeline.vae.decoder.parameters()).fill_(float("inf"))
    with pytest.raises(InputError, match="the codec gives numbers that are not finite"):
        pipeline("a whale", seeds=[0])
    with torch.no_grad():
        pipeline.transformer.final_layer.linear.bias.fill_(float("nan"))
    for kind in ("pil", "latent"):
        with pytest.raises(InputError, match=r"the model, in 4 steps with guidance 1\.5, gives numbers"):
            pipeline("a whale", seeds=[0], output_type=kind)


def test_an_image_is_read_as_the_command_line_reads_it(tiny_model: Path) -> None:
    pipeline = anystep.load(tiny_model).pipeline
    clear, white = Image.new("RGBA", (16, 16), (0, 0, 0, 0)), Image.new("RGB", (16, 16), "white")
    assert torch.equal(pipeline.encode(clear, 16, 16), pipeline.encode(white, 16, 16))
    halves = Image.new("RGB", (16, 16), "white")
    halves.paste("red", (0, 0, 16, 8))
    turned = halves.copy()
    turned.getexif()[0x0112] = 3  # upside down
    assert torch.equal(pipeline.encode(turned, 16, 16), pipeline.encode(halves.rotate(180), 16, 16))
    words: dict[str, Any] = {"seeds": [0, 1], "strength": 0.3, "output_type": "latent", "num_inference_steps": 1}
    both = pipeline(PROMPTS[:2], image=[white, halves], **words).images
    one = pipeline(PROMPTS[:2], image=halves, **words).images
    assert torch.equal(both[1], one[1])
    assert not torch.equal(both[0], one[0])


def test_offloaded_parts_are_brought_before_captions_are_encoded_and_latents_decoded(tiny_model: Path) -> None:
    """The meta device stands for an accelerator: what is brought there has no numbers, and nothing else fits it."""
    from accelerate import cpu_offload_with_hook

    pipeline = anystep.load(tiny_model).pipeline
    codec = pipeline.latent_codec
    states, device = torch.empty(1, 5, 384, device="meta"), torch.device("meta")
    cpu_offload_with_hook(pipeline.transformer, device)
    encoded = pipeline.transformer.encode_condition(states)
    assert encoded.keys_values[0][0].device == device
    cpu_offload_with_hook(pipeline.vae, device)
    assert codec.decode(torch.empty(1, 4, 4, 4, device="meta")).device == device
    assert codec.encode(torch.empty(1, 3, 16, 16, device="meta")).device == device


def test_offloaded_layer_by_layer_it_draws_the_same(
    tiny_model: Path, tiny_text_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the text encoder carried along: every part has weights only while one of its layers runs."""
    monkeypatch.setattr(AutoencoderCodec, "fingerprint", "")  # which jaxtyping's check of the protocol computes
    pipeline = anystep.load(tiny_model, "cpu").pipeline._with_text_encoder()
    pipeline.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (16, 16), "red")
    words: dict[str, Any] = {"seeds": [0, 1, 2], "output_type": "pt", "num_inference_steps": 2}
    for options in ({}, {"image": image, "strength": 0.5}):
        expected = pipeline(PROMPTS, **words, **options).images
        offload_layers(pipeline)
        for _ in range(2):
            assert torch.equal(pipeline(PROMPTS, **words, **options).images, expected)
        pipeline.remove_all_hooks()


def test_the_vae_is_tiled_and_sliced_where_users_of_diffusers_ask_for_it(tiny_model: Path) -> None:
    pipeline = anystep.load(tiny_model).pipeline
    words: dict[str, Any] = {"seeds": [0, 1, 2], "num_inference_steps": 1, "output_type": "pt"}
    whole = pipeline(PROMPTS, **words).images
    pipeline.vae.enable_slicing()
    torch.testing.assert_close(pipeline(PROMPTS, **words).images, whole, atol=1.01 / 255, rtol=0)
    pipeline.vae.enable_tiling(8, 8, 4, 4)
    tiled = pipeline(PROMPTS, **words).images
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)


def test_class_conditional_pixels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_transformer("c2i-test", sample_size=8, in_channels=3, num_classes=2)
    pipeline = TransitionPipeline(
        network, TransitionScheduler("trigflow", base_size=8), class_names=["cat", "dog"], guidance_scale=2.0
    )
    pipeline.save_pretrained(tmp_path)
    again = TransitionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    by_name, by_index = draw(again, ["dog", "cat"]), draw(again, [1, 0])
    assert torch.equal(by_name, by_index)
    assert again("dog", seeds=[0]).images[0].size == (8, 8)
    with pytest.raises(InputError, match="unknown class 'cow'"):
        again("cow", seeds=[0])


def test_an_image_is_started_from_at_any_time_and_in_any_number_of_steps(tiny_model: Path) -> None:
    pipeline = anystep.load(tiny_model).pipeline
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8))
    words: dict[str, Any] = {"height": 16, "width": 32, "seeds": [3], "output_type": "latent", "guidance_scale": 1.0}

    def draw(steps: int, **more: Any) -> Tensor:
        return pipeline("a whale", num_inference_steps=steps, **words, **more).images

    encoded = pipeline.encode(image, 16, 32)
    for steps in (1, 4):
        # from pure noise nothing of the image is left; from nearly none of it all is
        torch.testing.assert_close(draw(steps, image=image, strength=1.0), draw(steps))
        torch.testing.assert_close(draw(steps, image=image, strength=1e-4), encoded, atol=2e-2, rtol=0)
    near, far = (float((draw(2, image=image, strength=strength) - encoded).norm()) for strength in (0.2, 0.7))
    assert near < far
    words["seeds"] = [1, 2, 3]
    variations = draw(2, image=image, num_images_per_prompt=3, strength=0.5)
    assert len(variations) == 3
    assert not torch.equal(variations[0], variations[1])
    with pytest.raises(InputError, match=r"strength 0\.0: expected a number above 0"):
        draw(2, image=image, strength=0.0)


@pytest.mark.parametrize(("size", "message"), [((16, 96), "one side may be 5 times"), ((18, 16), "multiples of 4")])
def test_any_multiple_up_to_five_to_one_is_drawn(tiny_model: Path, size: tuple[int, int], message: str) -> None:
    model = anystep.load(tiny_model)
    for width, height in ((16, 80), (80, 16), (24, 20)):
        assert model("a whale", steps=1, size=(width, height))[0].size == (width, height)
    with pytest.raises(InputError, match=message):
        model("a whale", steps=1, size=size)


def test_what_a_call_asks_of_the_network_ends_with_it(tiny_model: Path) -> None:
    model = anystep.load(tiny_model)
    plain = model("a whale", size=(64, 32))[0]
    for more in ({"rope_scaling": "yarn"}, {"key_grid": 4}):
        assert model("a whale", size=(64, 32), **more)[0].tobytes() != plain.tobytes()
        assert model("a whale", size=(64, 32))[0].tobytes() == plain.tobytes()
    for bad in ({"rope_scaling": "none"}, {"key_grid": 1}):
        with pytest.raises(InputError, match="expected"):
            model("a whale", size=(64, 32), **bad)


def test_the_scheduler_of_diffusers_draws_the_same_images(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = TransitionPipeline.from_pretrained(tiny_model)
    pipeline.set_progress_bar_config(disable=True)
    wide: dict[str, Any] = {"steps": 4, "height": 32, "width": 32}
    plain, large = draw(pipeline, steps=4), draw(pipeline, **wide)
    theirs = FlowMapEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    for scheduler in (theirs, FlowMapEulerDiscreteScheduler()):
        pipeline.scheduler = scheduler
        torch.testing.assert_close(draw(pipeline, steps=4), plain, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(draw(pipeline, **wide), large, atol=1e-3)  # it knows no base size, which shifts times
    pipeline.scheduler = theirs
    torch.testing.assert_close(draw(pipeline, **wide), large, atol=1e-5, rtol=1e-5)
    pipeline.save_pretrained(tmp_path)
    again = TransitionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(again, **wide), large, atol=1e-5, rtol=1e-5)
    pipeline.scheduler = FlowMapEulerDiscreteScheduler(shift=3.0)
    expected = TransitionScheduler(shift=3.0).times(4)
    found: list[float] = []
    draw(pipeline, steps=4, callback_on_step_end=lambda p, i, t, k: found.append(t / 1000))
    assert found == pytest.approx(expected[:-1].tolist())
    pipeline.scheduler = EulerDiscreteScheduler()
    with pytest.raises(InputError, match="scheduler EulerDiscreteScheduler: its steps are not told the time they go"):
        draw(pipeline)


def test_times_may_be_given_in_place_of_a_number_of_steps(pipeline: TransitionPipeline) -> None:
    times = pipeline.scheduler.times(4)[:-1]
    expected = draw(pipeline, steps=4)
    for given in ({"sigmas": times.tolist()}, {"timesteps": (1000 * times).tolist()}, {"sigmas": times}):
        output = pipeline(PROMPTS, seeds=[0, 1, 2], output_type="latent", **given)
        close(output.images, expected)
        assert (output.steps, output.nfe) == (4, 8)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    half = draw(pipeline, PROMPTS[0], 1, image=image, strength=0.5)
    close(draw(pipeline, PROMPTS[0], image=image, sigmas=[0.5]), half)


def test_guidance_in_one_batch_is_a_matter_of_time_and_memory_alone(
    pipeline: TransitionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    real = pipeline.transformer.forward
    monkeypatch.setattr(
        pipeline.transformer, "forward", lambda x, *more, **options: (rows.append(len(x)), real(x, *more, **options))[1]
    )
    one, two = (draw(pipeline, steps=3, guidance_in_one_batch=together) for together in (True, False))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert rows == [6] * 3 + [3] * 6
    for sides, expected in ((16, [6]), (128, [3, 3])):  # 4 x 4 and 32 x 32 tokens each
        rows.clear()
        draw(pipeline, steps=1, height=sides, width=sides)
        assert rows == expected


def test_group_offloading_changes_no_image(tiny_model: Path) -> None:
    """The CPU stands for the accelerator: weights are brought before each layer, and taken away after it."""
    plain, pipeline = (anystep.load(tiny_model, "cpu").pipeline for _ in range(2))
    pipeline.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    for _ in range(2):
        close(draw(pipeline, guidance_scale=2.0), draw(plain, guidance_scale=2.0))


class EightBit(torch.nn.Module):
    """A linear layer as quantising libraries make them: whole numbers in place of weights, and a scale a row."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.data.abs().amax(1, keepdim=True) / 127
        numbers = (linear.weight.data / self.scale + 128).round().to(torch.uint8)
        self.weight, self.bias = torch.nn.Parameter(numbers, requires_grad=False), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight.float() - 128) * self.scale
        return torch.nn.functional.linear(x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


@pytest.mark.parametrize("stored", ["uint8", "dynamic", "float8"])
@pytest.mark.filterwarnings("ignore")
def test_weights_are_stored_in_fewer_bits_than_they_compute_in(tiny_model: Path, stored: str) -> None:
    pipeline = anystep.load(tiny_model, "cpu").pipeline
    expected = draw(pipeline)
    if stored == "float8":
        pipeline.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    elif stored == "dynamic":
        pipeline.transformer = torch.ao.quantization.quantize_dynamic(pipeline.transformer, {torch.nn.Linear})
    else:
        for block in pipeline.transformer.blocks:
            for part in (block.attn, block.caption_attn, block.mlp):
                for name, layer in list(part.named_children()):
                    if type(layer) is torch.nn.Linear:
                        setattr(part, name, EightBit(layer))
    drawn = draw(pipeline)
    assert not torch.equal(drawn, expected)
    assert (drawn - expected).abs().mean() < 0.2 * expected.abs().mean()
