"""Fine-tuning a flow-matching pipeline of diffusers into a flow map: it decides all but the data and the objective."""

from pathlib import Path
from shlex import quote
from typing import Any

import torch

from anystep import __version__
from anystep.codecs.codec import downsampling_factor
from anystep.errors import InputError
from anystep.files import read_json, write_text
from anystep.fingerprint import sampled_digest, text_digest
from anystep.models.flow_map import FlowMapOptions, FlowMapTransformer
from anystep.models.lora import adapter_parameters
from anystep.objective.presets import OBJECTIVES
from anystep.pipelines.adapted import (
    FLOW_MAP_FILE,
    RUN_FOLDER,
    AdaptedPipeline,
    FlowMapFile,
    FlowMapScheduler,
    as_pipeline,
)
from anystep.pipelines.base_pipeline import BasePipeline
from anystep.pipelines.model_card import card_fields
from anystep.publishing import publishing
from anystep.training.adapter import BaseModel, adapter_size, check_unsaid, filled_in, put_adapter
from anystep.training.config import AdaptConfig, Recipe


def base_of(recipe: Recipe) -> BasePipeline:
    """The pipeline that a recipe adapts. Raises `InputError` where there is none, or one of another family."""
    base, adapt = BasePipeline.open(str(recipe.model.weights)), config_of(recipe)
    if base.family != adapt.family:
        raise InputError(
            f"model.weights {base.name!r} is a {base.index['_class_name']}, and adapt.family is {adapt.family}: "
            f"`anystep train adapt-{base.family}` is for it"
        )
    return base


def config_of(recipe: Recipe) -> AdaptConfig:
    """The section of a recipe that has it."""
    assert recipe.adapt is not None
    return recipe.adapt


def on_pipeline(recipe: Recipe) -> Recipe:
    """A recipe that adapts a pipeline with everything that this decides; any other recipe as it is.

    Raises:
        InputError: no such pipeline, or the recipe says something else of it.
    """
    if recipe.adapt is None:
        return recipe
    base = base_of(recipe)
    wanted = {"codec": base.codec, "text_encoder": base.text_encoder(config_of(recipe).caption_tokens)}
    check_unsaid(recipe.model, wanted, "model")
    said = recipe.model_dump()
    said["model"] |= {"weights": base.name, **wanted}
    if "size" not in recipe.data.model_fields_set:
        said["data"]["size"] = base_side(base) * latent_factor(base)
    return filled_in(said, base.name)


def latent_factor(base: BasePipeline) -> int:
    """Pixels along one side of a latent pixel."""
    return downsampling_factor(read_json(Path(base.codec) / "config.json"))


def base_side(base: BasePipeline) -> int:
    """Side of the latents that a pipeline draws by default."""
    return int(empty_flow_map(base, FlowMapOptions()).config["sample_size"])


def options_of(recipe: Recipe, base: BasePipeline) -> FlowMapOptions:
    """How the network of a recipe reads intervals."""
    adapt = config_of(recipe)
    side = recipe.data.size // latent_factor(base)
    return FlowMapOptions(adapt.interval_share, adapt.guidance_embed, side, adapt.base_guidance)


def empty_flow_map(base: BasePipeline, options: FlowMapOptions) -> FlowMapTransformer:
    """A flow map without numbers."""
    return FlowMapTransformer(base.empty_transformer(), options)


def patch_of(recipe: Recipe) -> int:
    """Latent pixels along one side of a token."""
    return int(empty_flow_map(base_of(recipe), FlowMapOptions()).config["patch_size"])


def build_flow_map(recipe: Recipe) -> FlowMapTransformer:
    """The network of a recipe: its answers are those of the pipeline, whatever the interval.

    Raises:
        InputError: a size that the network cannot draw, or weights that cannot be read.
    """
    base, adapt, lora = base_of(recipe), config_of(recipe), recipe.lora
    transformer = base.transformer(getattr(torch, adapt.storage))
    network = FlowMapTransformer(transformer, options_of(recipe, base))
    token = latent_factor(base) * int(network.config["patch_size"])
    if recipe.data.size % token:
        raise InputError(f"data.size {recipe.data.size}: must be a multiple of {token}")
    if lora is not None:
        put_adapter(transformer, lora)
        for weight in adapter_parameters(transformer).values():
            weight.data = weight.data.float()
            weight.requires_grad_(True)
    return network


def count_weights(recipe: Recipe) -> tuple[int, int]:
    """Numbers of weights of a recipe's network that stay as they are, and that are trained."""
    base, lora = base_of(recipe), recipe.lora
    network: Any = empty_flow_map(base, options_of(recipe, base))
    whole = sum(weight.numel() for weight in network.parameters())
    if lora is None:
        return 0, whole
    added = sum(value.numel() for value in network.added.values())
    return whole - added, added + adapter_size(network.transformer, lora)


def base_digest(recipe: Recipe) -> str:
    """What tells the weights that an adapter is trained on from others of that name; "" where all are trained."""
    if recipe.lora is None:
        return ""
    if recipe.adapt is None:
        return BaseModel.open(str(recipe.model.weights)).digest
    files = sorted((base_of(recipe).folder / "transformer").glob("*.safetensors"))
    return text_digest(" ".join(sampled_digest(each) for each in files))


def flow_map_pipeline(recipe: Recipe, network: FlowMapTransformer, codec: Any) -> AdaptedPipeline:
    """The network as users will load it."""
    base = base_of(recipe)
    return as_pipeline(base, network, FlowMapScheduler(shift=shift_of(recipe, base)), codec, drawing(recipe))


def shift_of(recipe: Recipe, base: BasePipeline) -> float:
    """The shift of the pipeline's times at the size that a recipe trains."""
    side = recipe.data.size // latent_factor(base)
    return base.shift((side // patch_of(recipe)) ** 2)


def drawing(recipe: Recipe) -> dict[str, Any]:
    """How the network is drawn with, unless a call says otherwise."""
    sampling, tokens = OBJECTIVES[recipe.objective.kind].sampling, config_of(recipe).caption_tokens
    return {"guidance": float(recipe.guidance), "sampling": sampling, "caption_tokens": tokens}


def export_flow_map(run: Path, recipe: Recipe, network: FlowMapTransformer) -> None:
    """Write what was learned into `run / "adapted"`, as one file, with a page that says how to draw with it."""
    base = base_of(recipe)
    file = FlowMapFile.of(
        network, recipe.lora is not None, base=base.name, shift=shift_of(recipe, base), **drawing(recipe)
    )
    with publishing(run / RUN_FOLDER, "flow map") as part:
        part.mkdir(parents=True, exist_ok=True)
        file.write(part / FLOW_MAP_FILE)
        write_text(part / "README.md", card(recipe, base))


def card(recipe: Recipe, base: BasePipeline) -> str:
    """The page of a flow map."""
    prompt, learned = " ".join(next(iter(recipe.sample_prompts), "...").split()), "all weights"
    if recipe.lora is not None:
        learned = f"a low-rank adapter of rank {recipe.lora.rank}"
    kind = base.index["_class_name"]
    fields = {"base_model": base.name, "library_name": "diffusers", "tags": ["anystep", "text-to-image"]}
    lines = [
        *card_fields(fields),
        "# A flow map", "",
        f"An embedding of the interval and {learned} for `{base.name}`, a {kind}, which make it draw in any number of "
        f"steps; trained for {recipe.run.steps} steps of {recipe.run.batch_size} images by the objective "
        f"{recipe.objective.kind}, with anystep {__version__}.", "",
        f"    anystep generate {quote(prompt)} --model THIS_FOLDER --steps 1 2 4 8", "",
        "```python", "import anystep", f"from diffusers import {kind}", "",
        f"pipe = {kind}.from_pretrained({base.name!r})", 'anystep.adapt(pipe, "THIS_FOLDER")',
        f"pipe({prompt!r}, num_inference_steps=4).images[0]", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
