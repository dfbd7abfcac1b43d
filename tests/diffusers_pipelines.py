"""Small random text-to-image pipelines of diffusers, each with the parts and the shapes of the published ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from anystep.models.flow_map import FlowMapOptions, FlowMapTransformer
from anystep.models.lora import add_lora
from anystep.pipelines.adapted import FlowMapFile
from anystep.pipelines.base_pipeline import BasePipeline

WIDTH = 16  # of all states of text
WORDS = ["a", "red", "blue", "apple", "whale", "tractor", "on", "background"]


def _clip_tokenizer() -> transformers.CLIPTokenizer:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _word_tokenizer(first: str, last: str, **options: Any) -> transformers.PreTrainedTokenizerFast:
    """One token a word, between a first and a last one where they are not empty."""
    specials = ["<pad>", *filter(None, (first, last)), "<unk>"]
    known = {word: number for number, word in enumerate([*specials, *WORDS])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [word for word in (first, last) if word]
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(), special_tokens=[(word, known[word]) for word in ends]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", model_max_length=64, **options
    )


def _clip(with_projection: bool = True) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=WIDTH, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if with_projection else transformers.CLIPTextModel
    return kind(config).eval()


def _t5() -> transformers.T5EncoderModel:
    sizes = transformers.T5Config(vocab_size=16, d_model=2 * WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(sizes).eval()


def _gemma() -> transformers.Gemma2Model:
    sizes = transformers.Gemma2Config(
        vocab_size=16, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return transformers.Gemma2Model(sizes).eval()


def _vae(channels: int, blocks: int = 2) -> AutoencoderKL:
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["UpDecoderBlock2D"] * blocks}
    return AutoencoderKL(
        latent_channels=channels, block_out_channels=[8] * blocks, norm_num_groups=2, scaling_factor=0.5,
        shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False, **kinds,
    )  # fmt: skip


def _dc_ae() -> AutoencoderDC:
    kinds, widths = ["ResBlock", "ResBlock"], [8, 8]
    return AutoencoderDC(
        latent_channels=4, encoder_block_types=kinds, decoder_block_types=kinds, encoder_block_out_channels=widths,
        decoder_block_out_channels=widths, encoder_layers_per_block=[1, 1], decoder_layers_per_block=[1, 1],
        encoder_qkv_multiscales=[[], []], decoder_qkv_multiscales=[[], []], scaling_factor=0.4,
    )  # fmt: skip


def sd3() -> StableDiffusion3Pipeline:
    """As Stable Diffusion 3.5: two CLIP encoders and T5, 16 x 16 latents of 32 x 32 pixels, true guidance."""
    network = SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, caption_projection_dim=16, joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(shift=3.0), _vae(4), _clip(), _clip_tokenizer(), _clip(),
        _clip_tokenizer(), _t5(), _word_tokenizer("", "</s>"),
    )  # fmt: skip


def flux(embedded: bool = True) -> FluxPipeline:
    """As FLUX.1-dev, which is told the guidance scale; as FLUX.1-schnell where it is not embedded."""
    network = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=embedded,
    )  # fmt: skip
    times = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=embedded)
    return FluxPipeline(
        times, _vae(4), _clip(with_projection=False), _clip_tokenizer(), _t5(), _word_tokenizer("", "</s>"), network
    )


def _sana_network(**options: Any) -> SanaTransformer2DModel:
    return SanaTransformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=WIDTH, **options,
    )  # fmt: skip


def sana() -> SanaPipeline:
    """As SANA: a deep compression autoencoder, Gemma 2 and a multistep solver of flows."""
    times = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return SanaPipeline(_word_tokenizer("<bos>", ""), _gemma(), _dc_ae(), _sana_network(), times)


def sana_sprint() -> SanaSprintPipeline:
    """As SANA-Sprint, a consistency model that is told the guidance scale."""
    network = _sana_network(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    return SanaSprintPipeline(_word_tokenizer("<bos>", ""), _gemma(), _dc_ae(), network, SCMScheduler())


def _unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), norm_num_groups=4, **options,
    )  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    """As Stable Diffusion XL: a U-Net that is told sizes, 32 x 32 pixels."""
    network = _unet(
        cross_attention_dim=2 * WIDTH, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        _vae(4), _clip(with_projection=False), _clip(), _clip_tokenizer(), _clip_tokenizer(), network,
        EulerDiscreteScheduler(timestep_spacing="trailing"), add_watermarker=False,
    )  # fmt: skip


def lcm() -> LatentConsistencyModelPipeline:
    """As a latent consistency model, which is told the guidance scale and makes 50 steps at most."""
    network = _unet(cross_attention_dim=WIDTH, time_cond_proj_dim=8)
    return LatentConsistencyModelPipeline(
        _vae(4), _clip(with_projection=False), _clip_tokenizer(), network, LCMScheduler(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Any]] = {
    "sd3": sd3, "flux": flux, "sana": sana, "sana-sprint": sana_sprint, "sdxl": sdxl, "lcm": lcm,
}  # fmt: skip


def make(name: str) -> Any:
    """The pipeline of that name; its weights are the same every time."""
    torch.manual_seed(0)
    return MAKERS[name]()


def make_flow_map(base: Path, folder: Path, with_lora: bool = True, **options: Any) -> Path:
    """The file of a flow map that has learned something."""
    opened = BasePipeline.open(str(base))
    torch.manual_seed(1)
    network = FlowMapTransformer(opened.transformer(), FlowMapOptions(sample_size=16, **options))
    if with_lora:
        add_lora(network.transformer, 2, 4.0, ["to_q", "to_out.0"])
    for name, value in network.named_parameters():
        if ("embedder.linear_2" in name and ".base." not in name) or "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    file = FlowMapFile.of(network, with_lora, base=opened.name, shift=3.0, guidance=1.0, sampling="transition")
    file.write(folder / "anystep.safetensors")
    return folder / "anystep.safetensors"
