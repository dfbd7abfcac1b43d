"""What a recipe is put together from: codec, data, conditioner, network, and the pipeline that users load."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from anystep.bounds import shown
from anystep.codecs import AutoencoderCodec, Codec, load_codec
from anystep.conditioning import (
    CachedTextEncoder,
    Conditioner,
    LabelEncoder,
    PipelineTextEncoder,
    TextEncoder,
    load_caption_encoder,
)
from anystep.console import say
from anystep.data.cache import cache_folder
from anystep.data.encode import cut_at, make_encoders
from anystep.data.image_encoder import load_image_encoder
from anystep.data.latents import TEXT, LatentSet, LatentShards, holds_latents
from anystep.data.parquet import UNREAD_TEXT
from anystep.data.prepare import prepare
from anystep.data.sources import SHARDS
from anystep.errors import InputError
from anystep.models.flow_map import FlowMapTransformer, Network
from anystep.models.presets import PRESETS, build_transformer, preset_option
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.objective.presets import OBJECTIVES
from anystep.pipelines.classes import TransitionClassPipeline
from anystep.pipelines.load import Model, load
from anystep.pipelines.scheduler import TransitionScheduler
from anystep.pipelines.step_sheet import models_sheet
from anystep.pipelines.transition import TransitionPipeline
from anystep.publishing import publishing
from anystep.ranks import Ranks
from anystep.training import adapt
from anystep.training.adapter import base_settings, check_classes, export_adapter, frozen, put_adapter
from anystep.training.checkpoint_files import differing_tensors, read_average
from anystep.training.config import ModelConfig, Recipe
from anystep.training.parallel import all_finite, shard
from anystep.training.run import latents_path

KNOWN = 4  # rows of a sample grid where the recipe names none


@dataclass(frozen=True)
class TrainingInputs:
    """A recipe with everything that its network is trained on: encoded examples, and what encodes their condition."""

    recipe: Recipe
    codec: Codec
    data: LatentSet
    conditioner: Conditioner

    def check_batch(self) -> None:
        """Raises `InputError` where there are fewer examples than a batch has."""
        batch_size = self.recipe.run.batch_size
        if len(self.data) < batch_size and not self.recipe.data.native:
            raise InputError(f"{len(self.data)} samples are fewer than one batch of {batch_size}: lower run.batch_size")

    def check_resumed(self, before: Mapping[str, Any] | None) -> str:
        """Compare the data with those that a run has trained on until now; in words, where other examples go on.

        Args:
            before: what `LatentSet.identity` was; None of a new run, and of one that did not note it.

        Raises:
            InputError: a class has another name, so that the network has learned something else by its number.
        """
        now = self.data.identity
        if before is None or before == now:
            return ""
        if isinstance(self.conditioner, LabelEncoder) and isinstance(names := before.get("class_names"), list):
            for number, (then, name) in enumerate(zip_longest(names, now["class_names"])):
                if then != name:
                    raise InputError(
                        f"class {number} of the data is {shown(name)}, but {shown(then)} in the run's checkpoints: put "
                        "the data back, or choose another --out"
                    )
        then = shown(before.get("examples"))
        return f"the data has changed since the last checkpoint: {now['examples']} examples now, {then} then"


def prepare_data(recipe: Recipe, out: Path, device: torch.device, ranks: Ranks | None = None) -> TrainingInputs:
    """Load or make what a recipe trains on.

    Sources that are not encoded yet are, into `out / "latents-N"`, by all processes together.
    """
    codec = load_codec(recipe.model.codec, device)
    text = load_caption_encoder(recipe.model.text_encoder) if reads_captions(recipe.model) else None
    if text is not None:
        text.escape = bool(base_settings(recipe).get("escape_captions"))
    if isinstance(text, PipelineTextEncoder):
        text.to(device)
    cached = None if text is None else CachedTextEncoder(text, cache_folder() / "text.sqlite")
    if cached is not None:
        cached.fill([""])
    patch = patch_of(recipe)
    features = None if recipe.alignment is None else load_image_encoder(recipe.alignment.encoder)
    size = recipe.data.sizing(codec.factor * patch)
    encoders = make_encoders(codec, size, device, features=features, patch=patch, mirror=recipe.data.mirror)
    if cached is not None:
        encoders = replace(encoders, captions=cached.fill, reader=text if isinstance(text, TextEncoder) else None)
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
    if isinstance(text, TextEncoder) and (ranks is None or ranks.is_main):
        name = cut_at(text)
        if cut := sum(each.stats.conversions.get(name, 0) for each in sets):
            say(f"{name}: {cut:,}", error=True)
    data = LatentSet(sets, recipe.data.broken_limit, recipe.data.native)
    if cached is None:
        if min(int(labels.min()) for labels in data.labels) < 0:
            raise InputError(
                f"model.preset {recipe.model.preset} is for classes, but the data has none: choose a t2i one"
            )
        check_classes(recipe, data.class_names)
        return TrainingInputs(recipe, codec, data, LabelEncoder(data.class_names))
    if data.captioned < len(data):
        unread = [
            each.manifest.passed_over[UNREAD_TEXT][1] for each in sets if UNREAD_TEXT in each.manifest.passed_over
        ]
        beside = f"; {UNREAD_TEXT}, not in {shown(unread[0])}" if unread else ""
        raise InputError(
            f"model.preset {recipe.model.preset} is for captions, but {len(data) - data.captioned} of {len(data)} "
            f"samples have none: add captions, or choose a c2i preset{beside}"
        )
    return TrainingInputs(recipe, codec, data, cached)


def patch_of(recipe: Recipe) -> int:
    """Latent pixels along one side of a token of the recipe's network."""
    if recipe.adapt is not None:
        return adapt.patch_of(recipe)
    return preset_option(recipe.model.preset, recipe.model.options, "patch_size")


def reads_captions(model: ModelConfig) -> bool:
    """Whether the preset is conditioned on text."""
    if model.preset not in PRESETS:
        raise InputError(f"model: unknown preset {model.preset!r}: choose one of {', '.join(PRESETS)}")
    return "text_width" in PRESETS[model.preset]


def prepare_network(inputs: TrainingInputs, init_from: str | None = None) -> Network:
    """The preset, fitted to the codec and the condition.

    Args:
        init_from: the model whose weights it starts with, such as `model.weights` of the recipe; random where None.
    """
    recipe, codec, data = inputs.recipe, inputs.codec, inputs.data
    if recipe.adapt is not None:
        return adapt.build_flow_map(recipe)
    options: dict[str, Any] = {"in_channels": codec.channels, "sample_size": recipe.data.size // codec.factor}
    patch = preset_option(recipe.model.preset, recipe.model.options, "patch_size")
    if recipe.data.native:
        options["rope_extent"] = max(int(grids.max()) for grids in data.grids) // patch
    if isinstance(inputs.conditioner, CachedTextEncoder):
        options |= {"text_width": inputs.conditioner.encoder.width, "num_classes": None}
    else:
        options |= {"text_width": None, "num_classes": len(data.class_names)}
    if recipe.alignment is not None:
        features = data.read([0])[0].features
        assert features is not None
        options |= {
            "z_dim": features.shape[-1],
            "encoder_depth": recipe.alignment.depth,
            "projector_dim": recipe.alignment.projector_dim,
        }
    try:
        network = build_transformer(recipe.model.preset, **{**options, **recipe.model.options})
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    if recipe.data.size % (codec.factor * patch):
        raise InputError(f"data.size {recipe.data.size}: must be a multiple of {codec.factor * patch}")
    if init_from is not None:
        load_weights(network, init_from, data.class_names if options["num_classes"] else ())
    if recipe.lora is not None:
        put_adapter(network, recipe.lora)
    return network


# parts that a network may have beside those of another, because they change nothing before they are trained
BEGUN_AT_ZERO = ("guidance_embedding.", "position_embedding.", "caption_pooling.")


def load_weights(network: TransitionTransformer2DModel, model: str, class_names: Sequence[str] = ()) -> None:
    """Copy the weights of another model's transformer.

    Embeddings of guidance, positions and whole captions that it lacks answer zero at first, and blocks beyond its last
    are the identity. Where the network has no embedding of guidance, the other's is taken at its answer for scale 1, so
    that the network is what the other is without it. That classes have other names there than `class_names` is said.

    Raises:
        InputError: one of another architecture; lists what differs. Or its answer for scale 1 has no place of its own.
    """
    pipeline = load(model, "cpu").pipeline
    other = pipeline.transformer.float()
    if other.guidance_embedding is not None and network.guidance_embedding is None:
        if other.config.shared_time_embedder or "," in other.config.interval_condition:  # then it embeds more than t
            raise InputError(f"model.weights {model!r} reads a guidance scale: set model.options.guidance_embed")
        with torch.no_grad():
            other.time_embed.linear_2.bias += other.guidance_embedding(torch.zeros(1))[0]
        other.guidance_embedding = None
    own = network.state_dict()
    deeper = [f"blocks.{index}." for index in range(len(other.blocks), len(network.blocks))]
    lacking = (*BEGUN_AT_ZERO, *deeper)
    state = {**{name: own[name] for name in own if name.startswith(lacking)}, **other.state_dict()}
    if different := differing_tensors(state, own):
        raise InputError(f"model.weights {model!r} is of another architecture, its tensors differ in {different}")
    if (theirs := other.config.max_time_frequency) != (ours := network.config.max_time_frequency):
        say(
            f"model.weights {model!r} has model.options.max_time_frequency {theirs:g}, this network {ours:g}: what it "
            "knows of times is learned again",
            error=True,
        )
    names = enumerate(zip(pipeline.config.class_names or (), class_names, strict=False))
    if renamed := [(number, theirs, ours) for number, (theirs, ours) in names if theirs != ours]:
        number, theirs, ours = renamed[0]
        say(
            f"model.weights {model!r} calls class {number} {shown(theirs)}, the data {shown(ours)}: what it knows of "
            f"{len(renamed)} of {len(class_names)} classes is learned again",
            error=True,
        )
    network.load_state_dict(state)


def shapes_in_pixels(data: LatentSet, factor: int) -> list[str]:
    """Sizes of the images, the most frequent first."""
    counts: Counter[tuple[int, int]] = Counter()
    for each in data.sets:
        counts.update(each.shapes)
    return [f"{columns * factor}x{rows * factor}" for (rows, columns), _ in counts.most_common()]


def prepare_networks(
    inputs: TrainingInputs, device: torch.device, mesh: DeviceMesh | None
) -> tuple[Network, list[Network]]:
    """The network of a new run, and a copy for each average of its weights, on the device and sharded over the mesh."""
    recipe = inputs.recipe
    network = prepare_network(inputs, recipe.model.weights).to(device)
    kept = (*recipe.ema_decays, *recipe.ema_lengths)
    # those of an adapter share the frozen weights, unless these are sharded
    shared = {} if mesh is not None else {id(weight): weight for weight in frozen(network)}
    averages = [copy.deepcopy(network, dict(shared)).eval().requires_grad_(False) for _ in kept]
    if recipe.model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if recipe.run.compile:
        network.compile_repeated_blocks()
    for each in (network, *averages):
        shard(each, mesh, trained=each is network)
    return network, averages


def as_pipeline(inputs: TrainingInputs, network: Network) -> TransitionPipeline:
    """The network as users will load it."""
    recipe, codec, data = inputs.recipe, inputs.codec, inputs.data
    if isinstance(network, FlowMapTransformer):
        return adapt.flow_map_pipeline(recipe, network, codec)
    text = reads_captions(recipe.model)
    kind = TransitionPipeline if text else TransitionClassPipeline
    pipeline = kind(
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
    pipeline.register_to_config(**base_settings(recipe))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_prompts(inputs: TrainingInputs, pipeline: TransitionPipeline) -> list[str]:
    """What sample grids show: what the recipe says, else the first of the data.

    Raises:
        InputError: one cannot be drawn.
    """
    recipe, data, conditioner = inputs.recipe, inputs.data, inputs.conditioner
    if isinstance(conditioner, CachedTextEncoder):
        pipeline.conditioner = conditioner
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


def release_text_encoder(inputs: TrainingInputs) -> None:
    """Free the text encoders of a pipeline, which may be larger than its network: what they are asked for is kept."""
    encoder = getattr(inputs.conditioner, "encoder", None)
    if isinstance(encoder, PipelineTextEncoder):
        encoder.release()


def sample_grid(inputs: TrainingInputs, pipeline: TransitionPipeline) -> Any:
    """Prompts down, step counts across, one noise for all."""
    prompts = sample_prompts(inputs, pipeline)
    return models_sheet([("", Model("run", pipeline), prompts)], inputs.recipe.sample_steps, 0, costs=True)


def export(run: Path, inputs: TrainingInputs) -> None:
    """Write the average of the newest checkpoint in diffusers' layout to `run / "pipeline"`, whole or not at all.

    An adapter goes to `run / "lora"`, alone; what makes a flow map of a pipeline to `run / "adapted"`.

    It is read from the shards straight into a network of this process, so that no process gathers those of others.
    """
    network, conditioner = prepare_network(inputs), inputs.conditioner
    step = read_average(run / "checkpoints", network)
    if not all_finite([network], Ranks.single()):
        raise InputError(f"the weights of checkpoint step {step} are not finite: nothing is exported")
    if isinstance(network, FlowMapTransformer):
        return adapt.export_flow_map(run, inputs.recipe, network)
    if inputs.recipe.lora is not None:
        return export_adapter(run, inputs.recipe, network)
    pipeline = as_pipeline(inputs, network.eval())
    encoder = getattr(conditioner, "encoder", None)
    if isinstance(encoder, TextEncoder) and Path(inputs.recipe.model.text_encoder).exists():
        # a folder of this machine: what is moved elsewhere would not find it
        pipeline.register_modules(text_encoder=encoder.model, tokenizer=encoder.tokenizer)
        pipeline.register_to_config(text_encoder_name=None)
    with publishing(run / "pipeline", "trained model") as part:
        pipeline.save_pretrained(part)
