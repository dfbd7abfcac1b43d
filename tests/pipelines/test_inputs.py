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
        ({"strength": "half"}, "strength 'half'"),
        ({"strength": 0.3}, r"strength 0\.3: goes with an image to start from only"),
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
