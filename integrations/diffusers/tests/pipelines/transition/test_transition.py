# Copyright 2026 The anystep authors and The HuggingFace Team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

import unittest

import numpy as np
import torch
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from diffusers import AutoencoderDC, TransitionPipeline, TransitionScheduler, TransitionTransformer2DModel
from diffusers.utils import is_peft_available

from ...testing_utils import enable_full_determinism, require_peft_backend
from ..pipeline_params import TEXT_TO_IMAGE_BATCH_PARAMS, TEXT_TO_IMAGE_IMAGE_PARAMS, TEXT_TO_IMAGE_PARAMS
from ..test_pipelines_common import PipelineTesterMixin


if is_peft_available():
    from peft import LoraConfig


enable_full_determinism()


class TransitionPipelineFastTests(PipelineTesterMixin, unittest.TestCase):
    pipeline_class = TransitionPipeline
    params = TEXT_TO_IMAGE_PARAMS - {"cross_attention_kwargs"}
    batch_params = TEXT_TO_IMAGE_BATCH_PARAMS
    image_params = TEXT_TO_IMAGE_IMAGE_PARAMS
    image_latents_params = TEXT_TO_IMAGE_IMAGE_PARAMS
    test_xformers_attention = False
    test_layerwise_casting = True

    def get_dummy_components(self):
        torch.manual_seed(0)
        transformer = TransitionTransformer2DModel(
            in_channels=4, patch_size=1, sample_size=8, hidden_size=32, depth=2, num_heads=4, text_width=32
        )
        torch.manual_seed(0)
        vae = AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "ResBlock"),
            decoder_block_types=("ResBlock", "ResBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
        )
        torch.manual_seed(0)
        config = T5Config(vocab_size=1103, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        text_encoder = T5EncoderModel(config).eval()
        tokenizer = AutoTokenizer.from_pretrained("hf-internal-testing/tiny-random-t5")
        return {
            "transformer": transformer.eval(),
            "vae": vae.eval(),
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "scheduler": TransitionScheduler(),
        }

    def get_dummy_inputs(self, device, seed=0):
        return {
            "prompt": "a red apple",
            "generator": torch.Generator(device="cpu").manual_seed(seed),
            "num_inference_steps": 2,
            "guidance_scale": 2.0,
            "height": 16,
            "width": 16,
            "output_type": "np",
            "max_sequence_length": 16,
        }

    def test_inference(self):
        pipe = self.pipeline_class(**self.get_dummy_components())
        pipe.set_progress_bar_config(disable=None)
        image = pipe(**self.get_dummy_inputs("cpu")).images[0]
        self.assertEqual(image.shape, (16, 16, 3))
        self.assertFalse(np.isnan(image).any())

    def test_any_number_of_steps(self):
        pipe = self.pipeline_class(**self.get_dummy_components())
        pipe.set_progress_bar_config(disable=None)
        for steps in (1, 2, 5):
            inputs = {**self.get_dummy_inputs("cpu"), "num_inference_steps": steps}
            self.assertEqual(pipe(**inputs).images[0].shape, (16, 16, 3))
            self.assertEqual(pipe.num_timesteps, steps)

    @require_peft_backend
    def test_a_lora_counts_as_many_times_as_its_scale_says(self):
        pipe = self.pipeline_class(**self.get_dummy_components())
        pipe.set_progress_bar_config(disable=None)
        for parameter in pipe.transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        inputs = {**self.get_dummy_inputs("cpu"), "output_type": "latent"}

        def draw(**options):
            return pipe(**{**inputs, "generator": torch.Generator().manual_seed(0)}, **options).images

        without = draw()
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        self.assertLess((draw(attention_kwargs={"scale": 0.0}) - without).abs().max(), 1e-5)
        self.assertGreater((draw() - without).abs().max(), 1e-3)

    def test_captions_of_a_batch_do_not_change_each_other(self):
        pipe = self.pipeline_class(**self.get_dummy_components())
        pipe.set_progress_bar_config(disable=None)
        for parameter in pipe.transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        inputs = {**self.get_dummy_inputs("cpu"), "output_type": "latent"}
        alone = pipe(**inputs).images
        inputs["prompt"] = [inputs["prompt"], "a much longer caption of a blue whale in the sea"]
        inputs["generator"] = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        both = pipe(**inputs).images
        self.assertLess((both[:1] - alone).abs().max(), 1e-4)


class TransitionSchedulerTests(unittest.TestCase):
    def test_a_path_is_followed_exactly(self):
        for transport in ("ot_fm", "trigflow", "edm", "vp", "ve"):
            scheduler = TransitionScheduler(transport=transport)
            x, z = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
            scheduler.set_timesteps(3)
            scale = scheduler.config.num_train_timesteps
            sample = scheduler.scale_noise(x, scheduler.sigmas[0] * scale, z)
            for t, r in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:]):
                _, _, alpha_hat, sigma_hat = scheduler.coefficients(t.double())
                target = (alpha_hat * x + sigma_hat * z).float()
                sample = scheduler.step(target, t * scale, sample, r * scale).prev_sample
                expected = scheduler.scale_noise(x, r * scale, z)
                self.assertLess((sample - expected).abs().max() / expected.abs().max(), 1e-4)
