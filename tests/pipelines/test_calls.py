"""Callbacks, and calls of several threads."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from helpers import PROMPTS
from helpers import assert_latents_close as close
from helpers import draw_latents as draw

from anystep import TransitionPipeline
from anystep.errors import InputError


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
    every = ["latents", "prompt_embeds", "negative_prompt_embeds", "pred_original_sample"]
    for asked in ([], ["latents"], every):
        seen: list[set[str]] = []
        draw(
            pipeline,
            callback_on_step_end=lambda p, i, t, tensors: seen.append(set(tensors)),  # noqa: B023
            callback_on_step_end_tensor_inputs=asked,
        )
        assert seen == [set(asked)] * 2
    before = draw(pipeline)
    for allowed in (lambda k: k, lambda k: {name: value[-1:] for name, value in k.items() if "embeds" in name}):
        returned = draw(
            pipeline,
            callback_on_step_end=lambda p, i, t, k: allowed({**k, "prompt_embeds": k["prompt_embeds"].clone()}),  # noqa: B023
            callback_on_step_end_tensor_inputs=every,
        )
        assert torch.equal(returned, before)
    for changed, message in (
        ({"latents": torch.zeros(1)}, "a callback returned"),
        ({"latents": before * torch.nan}, "a callback returned latents that are not finite"),
        ({"latent": before}, "a callback returned 'latent': expected a dict with some of"),
        ({"prompt_embeds": torch.zeros(3, 5, 384)}, "a callback returned other prompt_embeds: a call draws what it"),
        ({"negative_prompt_embeds": None}, "a callback returned other negative_prompt_embeds"),
    ):
        with pytest.raises(InputError, match=message):
            draw(pipeline, callback_on_step_end=lambda p, i, t, k: changed)  # noqa: B023


def test_guidance_that_a_call_began_without_cannot_be_raised(pipeline: TransitionPipeline) -> None:
    def raise_to(pipe: TransitionPipeline, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        pipe.guidance_scale = 3.0

    words: dict[str, Any] = {"num_inference_steps": 2, "seeds": [0], "callback_on_step_end": raise_to}
    with pytest.raises(InputError, match="guidance 3 needs a null condition: a call that begins with 1 or below has"):
        pipeline(PROMPTS[0], guidance_scale=1.0, **words)
    assert pipeline(PROMPTS[0], guidance_scale=1.5, **words).nfe == 4


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


def test_a_call_is_stopped_before_its_first_step_too(
    pipeline: TransitionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, go_on, real = Event(), Event(), pipeline._encode

    def slow(*arguments: Any) -> Any:
        encoding.set()
        assert go_on.wait(60)
        return real(*arguments)

    monkeypatch.setattr(pipeline, "_encode", slow)
    latents = torch.randn(1, 4, 4, 4)
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(pipeline, PROMPTS[0], latents=latents, num_inference_steps=3, output_type="latent")
        assert encoding.wait(60)
        pipeline.interrupt = True
        go_on.set()
        output: Any = drawn.result()
    assert (output.nfe, output.steps) == (0, 0)
    assert torch.equal(output.images, latents)
    go_on.set()
    assert pipeline(PROMPTS[0], seeds=[0], num_inference_steps=3, guidance_scale=1.0).nfe == 3
    assert list(inspect.signature(pipeline.__call__).parameters)[:3] == ["prompt", "height", "width"]


def test_a_callback_sees_what_the_image_would_be_by_now(pipeline: TransitionPipeline) -> None:
    seen: list[torch.Tensor] = []

    def watch(pipe: TransitionPipeline, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        seen.append(tensors["pred_original_sample"])

    last = draw(
        pipeline, steps=3, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["pred_original_sample"]
    )
    close(seen[-1], last)  # the last step goes to the data itself
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    assert pipeline.decode_latents(seen[0]).shape == (3, 3, 16, 16)
