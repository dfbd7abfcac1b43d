"""The pipeline: what a prompt, a seed and a size mean, and what is refused."""

import inspect
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

import anystep
from anystep import TransitionPipeline, TransitionScheduler
from anystep.errors import InputError
from anystep.models import build_transformer
from anystep.pipelines.describe import model_digest
from anystep.pipelines.load import Model
from anystep.sampling import StepPlan

PROMPTS = ["a red apple", "a whale on a blue background", "a tractor"]


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> TransitionPipeline:
    loaded: TransitionPipeline = TransitionPipeline.from_pretrained(tiny_model)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline: TransitionPipeline, prompts: Any = PROMPTS, steps: int = 2, **options: Any) -> torch.Tensor:
    if not options.keys() & {"generator", "latents"}:
        count = (1 if isinstance(prompts, str) else len(prompts)) * options.get("num_images_per_prompt", 1)
        options = {"seeds": list(range(count)), **options}
    images = pipeline(prompts, num_inference_steps=steps, **{"output_type": "latent", **options}).images
    assert isinstance(images, torch.Tensor)
    return images


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_a_batch_is_its_images_one_by_one(pipeline: TransitionPipeline) -> None:
    together = draw(pipeline)
    for row, prompt in enumerate(PROMPTS):
        close(together[row : row + 1], draw(pipeline, prompt, seeds=[row]))


def test_the_same_seed_is_the_same_image_and_another_is_another(pipeline: TransitionPipeline) -> None:
    assert torch.equal(draw(pipeline, seeds=[5, 6, 7]), draw(pipeline, seeds=[5, 6, 7]))
    assert not torch.allclose(draw(pipeline, seeds=[5, 6, 7]), draw(pipeline, seeds=[5, 6, 8]), atol=1e-2)


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
    assert len(calls) == 2  # the captions and the empty one


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
    for name, value in (("tail", None), ("shift", 1.0), ("memory", False), ("velocity_below", 0.0)):
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


def test_a_callback_sees_every_step_and_may_change_and_stop_it(pipeline: TransitionPipeline) -> None:
    seen: list[tuple[int, float]] = []

    def watch(pipe: TransitionPipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, float(timestep)))
        assert tensors["latents"].shape == (3, 4, 4, 4)
        return {}

    kept = draw(pipeline, steps=4, callback_on_step_end=watch)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [time for _, time in seen] == pytest.approx([1000, 750, 500, 250], abs=1e-3)  # where a step begins
    close(kept, draw(pipeline, steps=4))
    zeroed = draw(
        pipeline, steps=4, callback_on_step_end=lambda p, i, t, k: {"latents": torch.zeros_like(k["latents"])}
    )
    assert not zeroed.any()

    def stop(pipe: TransitionPipeline, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return {}

    output = pipeline(PROMPTS, num_inference_steps=4, seeds=[0, 1, 2], guidance_scale=1.0, callback_on_step_end=stop)
    assert output.nfe == 2
    assert pipeline.interrupt
    assert pipeline(PROMPTS[0], num_inference_steps=3, seeds=[0], guidance_scale=1.0).nfe == 3


def test_what_is_seen_by_a_callback_is_what_it_asked_for(pipeline: TransitionPipeline) -> None:
    for asked in ([], ["latents"], ["latents", "prompt_embeds"]):
        seen: list[set[str]] = []
        draw(
            pipeline,
            callback_on_step_end=lambda p, i, t, tensors: seen.append(set(tensors)),  # noqa: B023
            callback_on_step_end_tensor_inputs=asked,
        )
        assert seen == [set(asked)] * 2
    with pytest.raises(InputError, match="a callback returned"):
        draw(pipeline, callback_on_step_end=lambda p, i, t, k: {"latents": torch.zeros(1)})


def test_a_callback_of_diffusers_ends_guidance_early(pipeline: TransitionPipeline) -> None:
    from diffusers.callbacks import SDCFGCutoffCallback

    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    output = pipeline(
        PROMPTS[0], num_inference_steps=4, seeds=[0], guidance_scale=3.0, callback_on_step_end=cutoff, output_type="pt"
    )
    assert output.nfe == 2 * 3 + 1  # the step after which it acts is the third
    assert pipeline.num_timesteps == 4
    assert pipeline(PROMPTS[0], num_inference_steps=4, seeds=[0], guidance_scale=3.0).nfe == 8


def test_calls_of_two_threads_do_not_meet(pipeline: TransitionPipeline) -> None:
    settings: list[dict[str, Any]] = [
        {"rope_scaling": "yarn", "guidance_scale": 3.0, "steps": 3},
        {"key_grid": 2, "guidance_scale": 1.0, "steps": 5},
        {"steps": 4, "stochasticity": 1.0},
    ]
    for each in settings:
        each |= {"height": 32, "width": 16}
    alone = [draw(pipeline, **each) for each in settings]
    assert not torch.equal(alone[0], draw(pipeline, steps=3, guidance_scale=3.0, height=32, width=16))
    with ThreadPoolExecutor(len(settings)) as pool:
        for _ in range(3):
            for together, expected in zip(pool.map(lambda each: draw(pipeline, **each), settings), alone, strict=True):
                assert torch.equal(together, expected)


def test_a_callback_stops_its_own_call_alone(pipeline: TransitionPipeline) -> None:
    inside, go_on = Event(), Event()

    def wait(pipe: TransitionPipeline, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        inside.set()
        assert go_on.wait(60)

    def stop(pipe: TransitionPipeline, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        pipe.interrupt = True

    words: dict[str, Any] = {"num_inference_steps": 3, "seeds": [0], "guidance_scale": 1.0}
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(pipeline, PROMPTS[0], callback_on_step_end=wait, **words)
        assert inside.wait(60)
        assert pipeline(PROMPTS[0], callback_on_step_end=stop, **words).nfe == 1
        go_on.set()
        assert slow.result().nfe == 3
        inside.clear(), go_on.clear()
        slow = pool.submit(pipeline, PROMPTS[0], callback_on_step_end=wait, **words)
        assert inside.wait(60)
        pipeline.interrupt = True  # of a thread that draws nothing: a server that shuts down
        go_on.set()
        assert slow.result().nfe == 1


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


def test_one_prompt_to_encode_is_no_list_of_letters(pipeline: TransitionPipeline) -> None:
    one, mask = pipeline.encode_prompt("a red apple", "cpu")
    assert one.shape == (1, 5, 384)
    assert mask is None
    assert torch.equal(one, pipeline.encode_prompt(["a red apple"], "cpu")[0])


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


def test_an_adapter_keeps_a_pipeline_from_being_saved_until_it_is_merged(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    pipeline = anystep.load(tiny_model).pipeline
    network = pipeline.transformer
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    expected = draw(pipeline)
    for part in (pipeline, network):
        with pytest.raises(InputError, match=r"carries the adapter 'default'.*fuse_lora\(\).*save_lora_adapter"):
            part.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    network.save_lora_adapter(tmp_path / "adapter")
    network.fuse_lora()
    network.unload_lora()
    pipeline.save_pretrained(tmp_path / "out")
    torch.testing.assert_close(draw(anystep.load(tmp_path / "out").pipeline), expected, atol=1e-4, rtol=1e-4)


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


def test_saved_and_loaded_it_draws_the_same(pipeline: TransitionPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    again = TransitionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), draw(pipeline))
    assert dict(again.config)["concepts"] == ["red apple", "whale", "tractor"]


def test_the_folder_is_of_diffusers_layout(tiny_model: Path) -> None:
    index = json.loads((tiny_model / "model_index.json").read_text())
    assert index["_class_name"] == "TransitionPipeline"
    assert index["transformer"] == ["anystep", "TransitionTransformer2DModel"]
    assert index["scheduler"] == ["anystep", "TransitionScheduler"]
    assert index["vae"] == ["diffusers", "AutoencoderDC"]
    assert {"transformer", "scheduler", "vae"} <= {path.name for path in tiny_model.iterdir()}
    parts = DiffusionPipeline.load_config(tiny_model)
    assert parts["text_encoder_name"] == "builtin"


def test_a_model_whose_vae_was_saved_as_codec_loads_as_before(
    pipeline: TransitionPipeline, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = shutil.copytree(tiny_model, tmp_path / "earlier")
    (earlier / "vae").rename(earlier / "codec")
    index = json.loads((earlier / "model_index.json").read_text())
    index["codec"] = index.pop("vae")
    (earlier / "model_index.json").write_text(json.dumps(index))
    model = anystep.load(earlier)
    assert model_digest(model) == model_digest(Model("today", pipeline))
    assert torch.equal(draw(model.pipeline), draw(pipeline))
    assert not model.pipeline.vae.training
    dtypes: dict[str, Any] = {"vae": torch.bfloat16, "default": torch.float32}
    for dtype in (torch.bfloat16, dtypes):
        loaded = TransitionPipeline.from_pretrained(earlier, dtype=dtype)
        assert loaded.vae.dtype == torch.bfloat16
    assert TransitionPipeline.from_pretrained(earlier, vae=pipeline.vae).vae is pipeline.vae
    model.pipeline.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderDC"]
    assert not caplog.records


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


def test_text_encoders_of_transformers_are_saved_inside(
    tiny_model: Path, tiny_text_models: dict[str, Path], tmp_path: Path
) -> None:
    import transformers

    parts = TransitionPipeline.from_pretrained(tiny_model)
    torch.manual_seed(0)
    pipeline = TransitionPipeline(
        transformer=build_transformer("t2i-test", sample_size=4, text_width=16),
        scheduler=parts.scheduler,
        vae=parts.vae,
        text_encoder=transformers.BertModel.from_pretrained(tiny_text_models["bert"]),
        tokenizer=transformers.AutoTokenizer.from_pretrained(tiny_text_models["bert"]),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    again = TransitionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again), draw(pipeline))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "empty prompt"),
        ({"prompt": 3}, "prompt 3: expected text"),
        ({"prompt": None}, "prompt None: expected text"),
        ({"prompt": ["a whale", b"a whale"]}, "prompt b'a whale'"),
        ({"prompt": {"a whale": 1}}, "expected a prompt, or a list"),
        ({"prompt": "caf\udce9"}, "not text"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0: expected a whole number from 1"),
        ({"num_images_per_prompt": 10**9}, "num_images_per_prompt 1000000000"),
        ({"num_inference_steps": 2.0}, "steps 2.0"),
        ({"num_inference_steps": 10**20}, "steps 100000000000000000000"),
        ({"height": 64.0}, "height 64.0"),
        ({"height": 0}, "height 0"),
        ({"height": "64"}, "height '64'"),
        ({"seeds": 5}, "seeds 5: expected whole numbers, one an image"),
        ({"seeds": [None]}, "seed None"),
        ({"seeds": "5"}, "seeds '5'"),
        ({"generator": 5, "seeds": None}, "generator 5"),
        ({"latents": np.zeros((1, 4, 4, 4))}, "latents 'ndarray'"),
        ({"latents": torch.full((1, 4, 4, 4), float("nan"))}, "latents: expected finite"),
        ({"guidance_scale": "2"}, "guidance_scale '2'"),
        ({"guidance_interval": 0.5}, "guidance_interval 0.5"),
        ({"guidance_interval": ("a", "b")}, "guidance_interval"),
        ({"strength": "half", "image": Image.new("RGB", (16, 16))}, "strength 'half'"),
        ({"image": np.zeros((16, 16, 3))}, "image 'ndarray': expected a PIL image"),
        ({"image": "a.png"}, "image 'str'"),
        ({"image": Image.new("F", (16, 16))}, "image: cannot be read: floating-point"),
        ({"image": [Image.new("RGB", (16, 16))] * 3}, "3 images to start from: expected one"),
        ({"rope_scaling": ["yarn"]}, "rope_scaling"),
        ({"key_grid": 2.5}, "key_grid 2.5"),
        ({"callback_on_step_end": 5}, "callback_on_step_end 5"),
        ({"prompt": []}, "no prompt"),
        ({"num_inference_steps": 0}, "steps 0: expected a whole number from 1 to 10000"),
        ({"num_inference_steps": True}, "steps True"),
        ({"height": 18}, "size 16x18: both sides must be multiples of 4"),
        ({"width": -8}, "width -8: expected a whole number from 1"),
        ({"output_type": "jpg"}, "output_type 'jpg'"),
        ({"seeds": [1, 2]}, "2 seeds for 1 images"),
        ({"seeds": [2**70]}, "seed 1180591620717411303424: expected"),
        ({"generator": [torch.Generator()] * 2, "seeds": None}, "2 generators for 1 images"),
        ({"latents": torch.zeros(1, 4, 5, 5)}, r"latents of shape \(1, 4, 5, 5\)"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan: expected a number from 0"),
        ({"guidance_scale": -0.5}, "guidance_scale -0.5: expected a number from 0"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval"),
        ({"stochasticity": 1.5}, "stochasticity 1.5"),
        ({"shift": 0}, "shift 0: expected a number from 0.01"),
        ({"plan": "even"}, "plan 'even': expected a StepPlan, model or uniform"),
        ({"plan": StepPlan(9)}, r"plan {'steps': 9}: expected at most the 4 steps"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "unknown callback tensors"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(pipeline: TransitionPipeline, options: dict[str, Any], message: str) -> None:
    call = inspect.unwrap(TransitionPipeline.__call__)  # without the type checks of the tests
    with pytest.raises(InputError, match=message) as caught:
        call(pipeline, **{"prompt": "a whale", "seeds": [0], **options})
    assert "\n" not in str(caught.value)


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


def test_a_pipeline_is_shown_in_one_line_that_errors_of_python_can_carry(pipeline: TransitionPipeline) -> None:
    assert "concepts=<3>" in repr(pipeline)
    with pytest.raises(TypeError) as told:
        pipeline("a whale", colour="red")
    assert len(str(told.value)) < 1000
