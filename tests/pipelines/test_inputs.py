"""What a call refuses, in one line each."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anystep import TransitionPipeline
from anystep.errors import InputError
from anystep.sampling import StepPlan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "empty prompt"),
        ({"prompt": 3}, "prompt 3: expected text"),
        ({"prompt": None}, "no prompt given"),
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
        ({"strength": "half"}, "strength 'half'"),
        ({"strength": 0.3}, r"strength 0\.3: goes with an image to start from only"),
        ({"image": "cat.png"}, "image 'str': expected a PIL image, an array or a tensor"),
        ({"image": np.zeros((16, 16))}, r"image of shape \(16, 16\): expected three colours"),
        ({"image": np.zeros((16, 16, 3)) - 1}, "image of float64: expected numbers from 0 to 1"),
        ({"image": torch.zeros(3, 16, 16, dtype=torch.int64)}, "image of int64"),
        ({"image": Image.new("RGB", (9, 9)), "timesteps": [500], "strength": 0.3}, "strength 0.3: the first of the"),
        ({"prompt_embeds": torch.zeros(1, 3, 384)}, "prompt and prompt_embeds: give one of them"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 3, 9)}, r"prompt_embeds of shape \(1, 3, 9\): expected"),
        ({"prompt": None, "prompt_embeds": torch.full((1, 3, 384), torch.nan)}, "prompt_embeds: expected finite"),
        ({"prompt": None, "prompt_embeds": [1]}, "prompt_embeds 'list': expected a tensor"),
        (
            {
                "prompt": None,
                "prompt_embeds": torch.zeros(1, 3, 384),
                "prompt_attention_mask": torch.zeros(1, 3),
            },
            "prompt_attention_mask: expected a token that is read in every row",
        ),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"negative_prompt": 3}, "negative_prompt 3: expected text"),
        ({"negative_prompt": "a", "guidance_scale": 1.0}, "negative_prompt: at a scale of 1 and below nothing"),
        ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 3, 384)}, "give one of them"),
        ({"negative_prompt_attention_mask": torch.ones(1, 3)}, "negative_prompt_embeds 'NoneType'"),
        ({"max_sequence_length": 0}, "max_sequence_length 0: expected a whole number from 1"),
        ({"timesteps": [500, 700]}, "timesteps .500, 700.: expected numbers that decrease from 1000"),
        ({"timesteps": []}, "timesteps .*: expected numbers"),
        ({"timesteps": "now"}, "timesteps 'now': expected numbers"),
        ({"sigmas": [1.2, 0.5]}, "sigmas .*: expected numbers that decrease from 1 and stay above 0"),
        ({"sigmas": [1.0, float("nan")]}, "sigmas .*: expected numbers"),
        ({"sigmas": [1.0], "timesteps": [1000]}, "sigmas and timesteps: give one of them"),
        ({"sigmas": [1.0], "plan": "uniform"}, "plan: goes with a number of steps"),
        ({"sigmas": [1.0], "shift": 2.0}, "shift: goes with a number of steps"),
        ({"image": "a.png"}, "image 'str'"),
        ({"image": Image.new("F", (16, 16))}, "image: cannot be read: pixels are floating-point"),
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
        ({"generator": [None], "seeds": None}, r"generator \[None\]: expected a torch.Generator, or a list"),
        ({"generator": torch.Generator()}, "seeds and generator: give one of them"),
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


def test_states_and_noise_may_be_narrow(pipeline: TransitionPipeline) -> None:
    call = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    states = pipeline.encode_prompt("a red apple").prompt_embeds.to(torch.float8_e4m3fn)
    noise = torch.randn(pipeline("a red apple", seeds=[0], **call).images.shape).to(torch.float8_e4m3fn)
    found = pipeline(prompt_embeds=states, latents=noise, **call).images
    assert torch.equal(found, pipeline(prompt_embeds=states.float(), latents=noise.float(), **call).images)
    for name, given in (("latents", {"prompt": "a red apple"}), ("prompt_embeds", {"latents": noise})):
        wrong = torch.full_like((noise if name == "latents" else states).float(), torch.nan).to(torch.float8_e4m3fn)
        with pytest.raises(InputError, match=f"{name}: expected finite numbers"):
            pipeline(**{name: wrong}, **given, **call)
