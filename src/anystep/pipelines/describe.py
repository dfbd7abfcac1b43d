"""Facts about a loaded model, and the digest that tells it from others."""

import json
from collections.abc import Mapping
from typing import Any

from anystep.fingerprint import text_digest, weights_digest
from anystep.models.lora import adapter_state
from anystep.pipelines.load import Model
from anystep.pipelines.saved import EARLIER_VAE

# settings that models have gained, at what those saved earlier do without them
GAINED = {
    "vae_name": None, "open_guidance_interval": False, "escape_captions": False, "position_embed": False,
    "caption_pool": False,
}  # fmt: skip


def describe(model: Model) -> dict[str, Any]:
    """Sizes, transport, trained shapes and licence, as plain values."""
    pipeline = model.pipeline
    transformer, scheduler, codec = pipeline.transformer, pipeline.schedule, pipeline.latent_codec
    folder = pipeline.config.get("_name_or_path")
    base = pipeline.base_size
    return {
        "model": model.name,
        "folder": folder,
        "license": pipeline.config.license,
        "transformer_parameters": sum(p.numel() for p in transformer.parameters()),
        "codec_parameters": sum(p.numel() for p in pipeline.vae.parameters()) if pipeline.vae is not None else 0,
        "hidden_size": transformer.config.hidden_size,
        "depth": transformer.config.depth,
        "transport": scheduler.config.transport,
        "step_plans": [f"{budget}: {plan}" for budget, plan in scheduler.plans.items()] or None,
        "trained_shapes": pipeline.config.get("trained_shapes") or [f"{base}x{base}"],
        "size_multiple": pipeline.size_multiple,
        "tokens_at_base": (base // pipeline.size_multiple) ** 2,
        "latent": f"{codec.channels} channels, factor {codec.factor}",
        "text_encoder": pipeline.config.text_encoder_name or ("in the folder" if pipeline.text_encoder else None),
        "classes": pipeline.config.class_names,
        "default_guidance": pipeline.config.guidance_scale,
        "device": str(pipeline.device),
        "concepts": pipeline.config.concepts,
    }


def model_digest(model: Model) -> str:
    """Tells one model from another: weights, the configuration of every part, and how adapters are scaled and active.

    The folder that it is in does not count.

    Plans are no part of it: they say how a model is used, as steps and guidance do. Nor are settings that models have
    gained since, where they change nothing: images that hold a digest can be drawn again by later versions.
    """

    def plain(config: Mapping[str, Any]) -> dict[str, Any]:  # without names of folders and versions
        unsaid = [key for key, value in GAINED.items() if config.get(key) == value]
        kept = {key: config[key] for key in config if not key.startswith("_") and key not in ("plans", *unsaid)}
        return {EARLIER_VAE if key == "vae" else key: value for key, value in kept.items()}  # as digests always were

    pipeline = model.pipeline
    said: list[Any] = [plain(part.config) for part in (pipeline, pipeline.transformer, pipeline.schedule)]
    said.append(weights_digest(pipeline.transformer))
    said += adapter_state(pipeline.transformer)
    if pipeline.vae is not None:
        said += [plain(pipeline.vae.config), weights_digest(pipeline.vae)]
    said.append(getattr(pipeline.conditioner, "fingerprint", None))
    return text_digest(json.dumps(said, sort_keys=True, default=str))
