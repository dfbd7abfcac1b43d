"""Training a transition model: one script that reads from top to bottom.

Every draw of a step comes from a generator keyed by (seed, step), so a resumed run continues exactly.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anystep.codecs import AutoencoderCodec, Codec, load_codec
from anystep.conditioning import CachedTextEncoder, Conditioner, LabelEncoder, load_text_encoder
from anystep.contact_sheet import contact_sheet, save_image
from anystep.data.art import cache_folder
from anystep.data.latents import LatentSet, encode_source, join
from anystep.errors import InputError
from anystep.models.presets import build_transformer
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.objective import ModelGuidance, TransitionObjective, derivative
from anystep.objectives import OBJECTIVES
from anystep.pipelines.load import Model, load
from anystep.pipelines.scheduler import TransitionScheduler
from anystep.pipelines.transition import TransitionPipeline
from anystep.ranks import Ranks
from anystep.training.config import Recipe
from anystep.training.run import (
    Progress,
    Run,
    interruptible,
    latents_path,
    learning_rate,
    mixed_indices,
    prepare,
    step_generator,
)
from anystep.transport import make_transport


def builtin_codec_folder() -> Path:
    """Where the codec of the built-in model lies."""
    from anystep.pipelines.load import find

    return Path(find("builtin")) / "codec"


def make_objective(recipe: Recipe) -> TransitionObjective:
    """The objective a recipe describes, for its main phase."""
    config = recipe.objective
    try:
        transport = make_transport(recipe.transport.name, **recipe.transport.options)
    except ValueError as error:
        raise InputError(str(error)) from None
    return TransitionObjective(
        transport=transport,
        estimate=derivative(config.derivative, config.eps),
        target=config.target,
        diffusion_share=config.diffusion_share,
        consistency_share=config.consistency_share,
        weight=config.weight,
        tangent=config.tangent,
        adaptive=config.adaptive,
        direction=config.direction,
        guidance=None if config.guidance is None else ModelGuidance(**config.guidance),
    )


def draw_condition(
    data: LatentSet, indices: Sequence[int], dropout: float, generator: torch.Generator
) -> list[str | int]:
    """For each sample one of its captions (or its label), or the empty one with probability `dropout`.

    Drawn once a step, so that every evaluation of the step sees the same.
    """
    choice = torch.rand(len(indices), generator=generator).tolist()
    dropped = (torch.rand(len(indices), generator=generator) < dropout).tolist()
    prompts: list[str | int] = []
    for index, share, drop in zip(indices, choice, dropped, strict=True):
        captions = data.captions[index]
        if captions:
            prompts.append("" if drop else captions[int(share * len(captions))])
        else:
            prompts.append(len(data.class_names) if drop else data.labels[index])
    return prompts


def encode_prompts(conditioner: Conditioner, prompts: Sequence[str | int]) -> tuple[Tensor, Tensor | None]:
    """Labels pass as they are, the null label included; captions go through the text encoder."""
    if isinstance(conditioner, LabelEncoder):
        return torch.tensor(prompts), None
    return conditioner(prompts)


def interval_residuals(residual: Tensor, t: Tensor, r: Tensor) -> dict[str, float]:
    """Mean unweighted residual at t = r, and over the shorter and the longer half of the intervals."""
    interval = t - r
    middle = interval[interval > 0].median() if (interval > 0).any() else torch.tensor(0.0)
    groups = {
        "residual_diffusion": interval == 0,
        "residual_short": (interval > 0) & (interval <= middle),
        "residual_long": interval > middle,
    }
    return {name: residual[rows].nanmean().item() for name, rows in groups.items() if rows.any()}


def train(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Train or resume in the run folder `out`; `out/pipeline` holds the EMA model. Returns the last log record."""
    ranks = Ranks()
    mine = ranks.rows(recipe.run.batch_size)
    objective, config = make_objective(recipe), recipe.optimizer
    device = prepare(recipe.run)
    if ranks.first:
        run = Run(out, recipe)
        codec, data, conditioner = prepare_data(recipe, out, device)
    ranks.wait()
    if not ranks.first:
        run = Run(out, recipe, writing=False)
        codec, data, conditioner = prepare_data(recipe, out, device)
    network = prepare_network(recipe, codec, data, conditioner).to(device)
    ema = copy.deepcopy(network).eval().requires_grad_(False)
    if recipe.model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    parameters, averaged = list(network.parameters()), list(ema.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay,
        fused=device.type != "mps",
    )  # fmt: skip
    start, skipped = 0, 0
    if (state := run.load(device)) is not None:
        network.load_state_dict(state["network"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        start, skipped = state["step"], state["skipped"]
    pipeline = as_pipeline(recipe, ema, codec, data)
    record: dict[str, Any] = {"step": start}
    null, _ = conditioner.null(1)
    shares = list(recipe.data.shares.values())
    wrapped = ranks.wrap(network)

    with interruptible() as interrupted, Progress(recipe.run.steps, start, quiet=not ranks.first) as progress:
        for step in range(start, recipe.run.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, recipe.run.steps)
            generator = step_generator(recipe.run.seed, step)
            indices = mixed_indices(data.sizes, shares, recipe.run.batch_size, recipe.run.seed, step)
            prompts = draw_condition(data, indices, recipe.condition_dropout, generator)
            warming = step < recipe.objective.diffusion_phase * recipe.run.steps
            current = replace(objective, diffusion_share=1.0, consistency_share=0.0) if warming else objective
            t, r = current.draw_times(len(indices), generator)
            z = torch.randn(len(indices), *data.latents.shape[1:], generator=generator)
            condition, mask = encode_prompts(conditioner, prompts[mine])
            guided: dict[str, Any] = {}
            if current.guidance is not None:
                guided = {"ema_network": ema, "null_condition": null.expand(len(condition), *null.shape[1:]).to(device)}

            bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = current.evaluate(
                    wrapped, data.latents[indices[mine]].to(device), z[mine].to(device), t[mine].to(device),
                    r[mine].to(device), condition.to(device), None if mask is None else mask.to(device), **guided,
                )  # fmt: skip
            optimizer.zero_grad()
            loss.loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, config.clip)
            healthy = not ranks.any(not bool(norm.isfinite() & loss.loss.isfinite()))
            if healthy:
                optimizer.step()
                decay = min(recipe.ema_decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(averaged, parameters, 1 - decay)
            if not healthy or loss.nonfinite:
                skipped += not healthy
                names = [indices[mine][row] for row in loss.nonfinite] or indices[mine]
                print(f"step {step + 1}: not finite, samples {names}" + ("" if healthy else ", step skipped"))

            done = step + 1
            last = done == recipe.run.steps or ranks.any(bool(interrupted))
            residual = ranks.gather(loss.residual)
            record = {
                "step": done,
                "loss": ranks.gather(loss.loss.detach()[None]).mean().item(),
                "residual": residual.nanmean().item(),
                **interval_residuals(residual.cpu(), t, r),
                "derivative_norm": loss.derivative_norm.item(),
                "gradient_norm": norm.item(),
                "learning_rate": optimizer.param_groups[0]["lr"],
                "evaluations": loss.evaluations,
                "nonfinite": len(loss.nonfinite),
                "skipped_steps": skipped,
                "skipped_examples": len(data.broken),
                "images_per_second": progress.rate * recipe.run.batch_size,
            }
            run.log(record)
            shown: dict[str, float] = {
                name: record[name] for name in ("residual", "residual_short", "residual_long") if name in record
            }
            progress.update(done, shown if done % recipe.run.log_every == 0 or last else None)
            if done % recipe.run.checkpoint_every == 0 or last:
                state = {"network": network.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
                run.save(done, {**state, "skipped": skipped})
            if ranks.first and recipe.run.sample_every and (done % recipe.run.sample_every == 0 or last):
                save_image(sample_grid(recipe, pipeline, conditioner, data), out / "samples" / f"step-{done:08d}.png")
            if last:
                break
    if ranks.first:
        save_pipeline(pipeline, out / "pipeline")
    ranks.wait()
    if data.broken and ranks.first:
        print(f"skipped {len(data.broken)} unreadable examples: {'; '.join(data.broken[:5])}")
    return record


def prepare_data(recipe: Recipe, out: Path, device: torch.device) -> tuple[Codec, LatentSet, Conditioner]:
    """The codec, the encoded examples and what encodes their captions or labels."""
    codec = load_codec(builtin_codec_folder() if recipe.model.codec == "builtin" else recipe.model.codec)
    if isinstance(codec, AutoencoderCodec):
        codec.autoencoder.to(device)
    with torch.no_grad():
        data = join(
            [
                encode_source(source, lambda images: codec.encode(images.to(device)), latents_path(out, place))
                for place, source in enumerate(recipe.data.open())
            ]
        )
    if not any(data.captions):
        return codec, data, LabelEncoder(data.class_names)
    text = load_text_encoder(recipe.model.text_encoder)
    cached = CachedTextEncoder(text, cache_folder() / "text.sqlite")
    cached.fill(["", *sorted({caption for captions in data.captions for caption in captions})])
    return codec, data, cached


def prepare_network(
    recipe: Recipe, codec: Codec, data: LatentSet, conditioner: Conditioner
) -> TransitionTransformer2DModel:
    """The preset, fitted to the codec and the condition."""
    options: dict[str, Any] = {"in_channels": codec.channels, "sample_size": data.latents.shape[-1]}
    if isinstance(conditioner, CachedTextEncoder):
        options |= {"text_width": conditioner.encoder.width, "num_classes": None}
    else:
        options |= {"text_width": None, "num_classes": len(data.class_names)}
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
        InputError: one of another architecture; says what differs first.
    """
    state = load(model, "cpu").pipeline.transformer.state_dict()
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (state, network.state_dict())]
    different = sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
    if different:
        there, here = (each.get(different[0], "not there") for each in shapes)
        raise InputError(
            f"model.weights {model!r} has another architecture: {len(different)} of its tensors differ, for example "
            f"{different[0]}, {there} in the file and {here} in this recipe"
        )
    network.load_state_dict(state)


def as_pipeline(
    recipe: Recipe, network: TransitionTransformer2DModel, codec: Codec, data: LatentSet
) -> TransitionPipeline:
    """The network as users will load it."""
    text = any(data.captions)
    pipeline = TransitionPipeline(
        transformer=network,
        scheduler=TransitionScheduler(
            recipe.transport.name, dict(recipe.transport.options), base_size=recipe.data.size
        ),
        codec=codec.autoencoder if isinstance(codec, AutoencoderCodec) else None,
        text_encoder_name=recipe.model.text_encoder if text else None,
        class_names=None if text else data.class_names,
        concepts=(data.class_names or None) if text else None,
        guidance_scale=recipe.guidance,
        sampling=OBJECTIVES[recipe.objective.kind].sampling,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_grid(recipe: Recipe, pipeline: TransitionPipeline, conditioner: Conditioner, data: LatentSet) -> Any:
    """Prompts down, step counts across, one noise for all."""
    if isinstance(conditioner, CachedTextEncoder):
        pipeline._conditioner = conditioner
    known = [captions[-1] for captions in data.captions[:4]] if any(data.captions) else data.class_names[:4]
    prompts = list(recipe.sample_prompts or known)
    columns = [Model("run", pipeline).generate(prompts, steps) for steps in recipe.sample_steps]
    return contact_sheet(
        [[column.images[row] for column in columns] for row in range(len(prompts))],
        prompts,
        [f"{column.steps} step{'s' * (column.steps > 1)}\n{column.nfe} NFE" for column in columns],
    )


def save_pipeline(pipeline: TransitionPipeline, folder: Path) -> None:
    """In diffusers' layout, written beside and moved in place."""
    import shutil

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
