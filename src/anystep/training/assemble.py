"""What a recipe is put together from: codec, data, conditioner, network, and the pipeline that users load."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anystep.codecs import AutoencoderCodec, Codec, load_codec
from anystep.conditioning import CachedTextEncoder, Conditioner, LabelEncoder, load_text_encoder
from anystep.contact_sheet import contact_sheet
from anystep.data.cache import cache_folder
from anystep.data.encoders import make_encoders
from anystep.data.image_encoder import load_image_encoder
from anystep.data.latents import TEXT, LatentSet, LatentShards, holds_latents
from anystep.data.prepare import prepare
from anystep.data.sources import SHARDS
from anystep.errors import InputError
from anystep.files import publishing
from anystep.models.presets import PRESETS, build_transformer, preset_option
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.objective.presets import OBJECTIVES
from anystep.pipelines.load import Model, load
from anystep.pipelines.scheduler import TransitionScheduler
from anystep.pipelines.transition import TransitionPipeline
from anystep.ranks import Ranks
from anystep.training.checkpoint_files import differing_tensors, read_average
from anystep.training.config import Recipe
from anystep.training.parallel import all_finite
from anystep.training.run import latents_path

KNOWN = 4  # rows of a sample grid where the recipe names none


def prepare_data(
    recipe: Recipe, out: Path, device: torch.device, ranks: Ranks | None = None
) -> tuple[Codec, LatentSet, Conditioner]:
    """The codec, the encoded examples and what encodes their captions or labels.

    Sources that are not encoded yet are, into `out / "latents-N"`, by all processes together.
    """
    codec = load_codec(recipe.model.codec, device)
    text = load_text_encoder(recipe.model.text_encoder) if reads_captions(recipe) else None
    cached = None if text is None else CachedTextEncoder(text, cache_folder() / "text.sqlite")
    if cached is not None:
        cached.fill([""])
    patch = preset_option(recipe.model.preset, recipe.model.options, "patch_size")
    features = None if recipe.alignment is None else load_image_encoder(recipe.alignment.encoder)
    size = recipe.data.sizing(codec.factor * patch)
    encoders = make_encoders(codec, size, device, features=features, patch=patch)
    encoders = replace(
        encoders, mirror=recipe.data.mirror, captions=(lambda captions: None) if cached is None else cached.fill
    )
    sets = []
    for place, spec in enumerate(recipe.data.shares):
        url = spec.removeprefix(SHARDS)
        if url != spec and holds_latents(url):
            if recipe.data.limit is not None:
                raise InputError(f"data.limit {recipe.data.limit}: {spec!r} is prepared already, and is taken whole")
            prepared = LatentShards(url)
            prepared.check(encoders.made_by)
            if TEXT in prepared.shards.fields and text is not None:
                prepared.check({"text_encoder": text.fingerprint})
            if recipe.data.mirror:
                prepared.check({"mirror": True})
        else:
            prepared = prepare(recipe.data.open_one(spec, size), latents_path(out, place), encoders, ranks)
        sets.append(prepared)
    data = LatentSet(sets, recipe.data.broken_limit, recipe.data.native)
    if cached is None:
        if min(int(labels.min()) for labels in data.labels) < 0:
            raise InputError(
                f"model.preset {recipe.model.preset} is for classes, but the data has none: choose a t2i one"
            )
        return codec, data, LabelEncoder(data.class_names)
    if data.captioned < len(data):
        raise InputError(
            f"model.preset {recipe.model.preset} is for captions, but {len(data) - data.captioned} of {len(data)} "
            "samples have none: add captions, or choose a c2i preset"
        )
    return codec, data, cached


def reads_captions(recipe: Recipe) -> bool:
    """Whether the preset is conditioned on text."""
    if recipe.model.preset not in PRESETS:
        raise InputError(f"model: unknown preset {recipe.model.preset!r}: choose one of {', '.join(PRESETS)}")
    return "text_width" in PRESETS[recipe.model.preset]


def prepare_network(
    recipe: Recipe, codec: Codec, data: LatentSet, conditioner: Conditioner
) -> TransitionTransformer2DModel:
    """The preset, fitted to the codec and the condition."""
    options: dict[str, Any] = {"in_channels": codec.channels, "sample_size": recipe.data.size // codec.factor}
    if recipe.data.native:
        patch = preset_option(recipe.model.preset, recipe.model.options, "patch_size")
        options["rope_extent"] = max(int(grids.max()) for grids in data.grids) // patch
    if isinstance(conditioner, CachedTextEncoder):
        options |= {"text_width": conditioner.encoder.width, "num_classes": None}
    else:
        options |= {"text_width": None, "num_classes": len(data.class_names)}
    if recipe.alignment is not None:
        width = data.read([0])[0].features
        assert width is not None
        options |= {
            "z_dim": width.shape[-1],
            "encoder_depth": recipe.alignment.depth,
            "projector_dim": recipe.alignment.projector_dim,
        }
    try:
        network = build_transformer(recipe.model.preset, **{**options, **recipe.model.options})
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    multiple = codec.factor * network.config.patch_size
    if recipe.data.size % multiple:
        raise InputError(f"data.size {recipe.data.size}: must be a multiple of {multiple}")
    if recipe.model.weights is not None:
        begin_with(network, recipe.model.weights)
    return network


def begin_with(network: TransitionTransformer2DModel, model: str) -> None:
    """Copy the weights of another model's transformer.

    Raises:
        InputError: one of another architecture; lists what differs.
    """
    state = load(model, "cpu").pipeline.transformer.state_dict()
    if different := differing_tensors(state, network.state_dict()):
        raise InputError(f"model.weights {model!r} is of another architecture, its tensors differ in {different}")
    network.load_state_dict(state)


def shapes_in_pixels(data: LatentSet, factor: int) -> list[str]:
    """Sizes of the images, the most frequent first."""
    counts: Counter[tuple[int, int]] = Counter()
    for each in data.sets:
        counts.update(each.shapes)
    return [f"{columns * factor}x{rows * factor}" for (rows, columns), _ in counts.most_common()]


def as_pipeline(
    recipe: Recipe, network: TransitionTransformer2DModel, codec: Codec, data: LatentSet
) -> TransitionPipeline:
    """The network as users will load it."""
    text = reads_captions(recipe)
    pipeline = TransitionPipeline(
        transformer=network,
        scheduler=TransitionScheduler(
            recipe.transport.name,
            dict(recipe.transport.options),
            base_size=recipe.transport.base_size or recipe.data.size,
        ),
        vae=codec.autoencoder if isinstance(codec, AutoencoderCodec) else None,
        text_encoder_name=recipe.model.text_encoder if text else None,
        class_names=None if text else data.class_names,
        concepts=(data.class_names or None) if text else None,
        guidance_scale=recipe.guidance,
        sampling=OBJECTIVES[recipe.objective.kind].sampling,
        trained_shapes=shapes_in_pixels(data, codec.factor) if recipe.data.native else None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_prompts(
    recipe: Recipe, pipeline: TransitionPipeline, conditioner: Conditioner, data: LatentSet
) -> list[str]:
    """What sample grids show: what the recipe says, else the first of the data.

    Raises:
        InputError: one cannot be drawn.
    """
    if isinstance(conditioner, CachedTextEncoder):
        pipeline._conditioner = conditioner
    first = range(min(KNOWN, len(data)))
    known = (
        data.class_names[:KNOWN]
        if isinstance(conditioner, LabelEncoder)
        else [example.captions[-1] for example in data.read(first)]
    )
    prompts = list(recipe.sample_prompts or known)
    for steps in recipe.sample_steps:
        try:
            pipeline.check_inputs(prompts, pipeline.base_size, pipeline.base_size, steps, "pil")
            conditioner(prompts)
        except InputError as error:
            raise InputError(f"sample_prompts: {error}") from None
    return prompts


def sample_grid(recipe: Recipe, pipeline: TransitionPipeline, conditioner: Conditioner, data: LatentSet) -> Any:
    """Prompts down, step counts across, one noise for all."""
    prompts = sample_prompts(recipe, pipeline, conditioner, data)
    columns = [Model("run", pipeline).generate(prompts, steps) for steps in recipe.sample_steps]
    return contact_sheet(
        [[column.images[row] for column in columns] for row in range(len(prompts))],
        prompts,
        [f"{column.steps} step{'s' * (column.steps > 1)}\n{column.nfe} NFE" for column in columns],
    )


def export(run: Path, recipe: Recipe, codec: Codec, data: LatentSet, conditioner: Conditioner) -> None:
    """The average of the newest checkpoint in diffusers' layout, in `run / "pipeline"`; written beside and moved there.

    Read from the shards straight into a network in this process's memory, so no process ever gathers another's.
    """
    network = prepare_network(
        recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": None})}), codec, data, conditioner
    )
    step = read_average(run / "checkpoints", network)
    if not all_finite([network], Ranks.single()):
        raise InputError(f"the weights of checkpoint step {step} are not finite: nothing is exported")
    pipeline = as_pipeline(recipe, network.eval(), codec, data)
    if isinstance(conditioner, CachedTextEncoder) and Path(recipe.model.text_encoder).exists():
        encoder = conditioner.encoder  # a folder of this machine: what is moved elsewhere would not find it
        pipeline.register_modules(text_encoder=encoder.model, tokenizer=encoder.tokenizer)
        pipeline.register_to_config(text_encoder_name=None)
    with publishing(run / "pipeline") as part:
        pipeline.save_pretrained(part)
