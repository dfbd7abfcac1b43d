"""Training a small AutoencoderDC on images, with an adversary or without; latents are normalised at the end."""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn

from anystep.codecs import AutoencoderCodec, load_codec
from anystep.console import say
from anystep.data.example import BrokenExample, Source
from anystep.data.images import to_tensor
from anystep.data.sources import ConcatSource
from anystep.device import pick_precision
from anystep.errors import InputError
from anystep.publishing import publishing
from anystep.training.adversary import Adversary
from anystep.training.batch_samplers import mixed_indices
from anystep.training.checkpoints import Checkpoints, is_kept
from anystep.training.codec_config import CodecRecipe
from anystep.training.config import GuardConfig
from anystep.training.guard import Guard, check_finite, diverged
from anystep.training.optimizers import learning_rate, unfinished_warmup
from anystep.training.run import Progress, Run, interruptible, schedule_changes, set_up_device, step_generator
from anystep.training.trainer_state import TrainerState, TrainingTensors

MEASURED = 256  # images on which PSNR and latent statistics are taken


def build_autoencoder(recipe: CodecRecipe) -> AutoencoderDC:
    """A fresh autoencoder whose residual blocks start as the identity, which makes it a linear codec to begin with."""
    sizes = recipe.codec
    autoencoder = AutoencoderDC(
        latent_channels=sizes.latent_channels,
        encoder_block_out_channels=sizes.widths,
        decoder_block_out_channels=sizes.widths,
        encoder_layers_per_block=sizes.encoder_depths,
        decoder_layers_per_block=sizes.decoder_depths,
        encoder_qkv_multiscales=((),) * len(sizes.widths),
        decoder_qkv_multiscales=((),) * len(sizes.widths),
    )
    _silence_blocks(autoencoder)
    return autoencoder


def deepen_decoder(autoencoder: AutoencoderDC, depths: Sequence[int]) -> AutoencoderDC:
    """The same codec with as many residual blocks in each stage of its decoder, where these are more.

    They follow those that it has, and start as the identity. A decoder of other stages stays as it is.
    """
    own = autoencoder.config.decoder_layers_per_block
    more = len(own) == len(depths) and all(now <= then for now, then in zip(own, depths, strict=True))
    if not more or tuple(own) == tuple(depths) or (own[0] == 0) != (depths[0] == 0):  # the last layer is of two kinds
        return autoencoder
    deeper = AutoencoderDC.from_config(autoencoder.config, decoder_layers_per_block=tuple(depths))
    _silence_blocks(deeper)
    deeper.load_state_dict({**deeper.state_dict(), **autoencoder.state_dict()})
    statistics = {name: autoencoder.config.get(name) for name in ("latents_mean", "latents_std")}
    deeper.register_to_config(**statistics)
    return deeper


def _silence_blocks(autoencoder: AutoencoderDC) -> None:
    for module in autoencoder.modules():
        if type(module).__name__ == "ResBlock":
            nn.init.zeros_(module.norm.weight)


def load_images(source: Source, indices: list[int], broken: dict[int, str]) -> Tensor:
    """A batch in [-1, 1]; an unreadable image is noted in `broken` and its neighbour taken."""
    images = []
    for index in indices:
        for candidate in range(index, index + len(source)):
            place = candidate % len(source)
            if place in broken:
                continue
            try:
                images.append(to_tensor(source[place].image))
                break
            except BrokenExample as error:
                broken[place] = str(error)
        else:
            raise InputError(f"no image could be read; the first failure: {next(iter(broken.values()))}")
    return torch.stack(images)


@torch.no_grad()
def psnr(autoencoder: AutoencoderDC, images: Tensor) -> float:
    """Mean over images of 10 log10(range^2 / MSE), in decibels, both in [-1, 1] and the reconstruction clamped."""
    reconstruction = torch.cat([autoencoder(part).sample for part in images.split(32)])
    error = (images - reconstruction.clamp(-1, 1)).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


@torch.no_grad()
def normalise(autoencoder: AutoencoderDC, images: Tensor) -> None:
    """Write the per-channel mean and standard deviation of the latents into the config."""
    latents = torch.cat([autoencoder.encode(part).latent for part in images.split(32)])
    autoencoder.register_to_config(
        latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist()
    )


def start_autoencoder(recipe: CodecRecipe, device: torch.device) -> AutoencoderDC:
    """A new autoencoder, or the one to go on from: whole, or with its encoder frozen.

    Raises:
        InputError: what is to go on from is no autoencoder, or images are no multiple of what a latent pixel covers.
    """
    if (given := recipe.weights or recipe.refine) is None:
        autoencoder = build_autoencoder(recipe).to(device)
    else:
        codec = load_codec(given)
        if not isinstance(codec, AutoencoderCodec):
            raise InputError(f"{'weights' if recipe.weights else 'refine'} {given!r} is not an autoencoder")
        autoencoder = codec.autoencoder.float()
        if isinstance(autoencoder, AutoencoderDC):
            autoencoder = deepen_decoder(autoencoder, recipe.codec.decoder_depths)
        autoencoder = autoencoder.to(device)
        autoencoder.requires_grad_(True).encoder.requires_grad_(recipe.refine is None)
    factor = AutoencoderCodec(autoencoder).factor
    if recipe.data.size % factor:
        raise InputError(f"data.size {recipe.data.size}: must be a multiple of {factor}")
    return autoencoder


def spread_images(source: Source, count: int, broken: dict[int, str]) -> Tensor:
    """So many images, spread evenly over the source."""
    return load_images(source, torch.linspace(0, len(source) - 1, min(count, len(source))).long().tolist(), broken)


def decode_with_noise(
    autoencoder: AutoencoderDC, images: Tensor, noise: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """The images decoded from their latents with noise.

    Args:
        noise: range of the noise, relative to the standard deviation of the latents; drawn for each image.
    """
    latents, (low, high) = autoencoder.encode(images).latent, noise
    spread = latents.detach().std((0, 2, 3), keepdim=True)
    added = torch.randn(latents.shape, generator=generator).to(latents)
    level = (low + (high - low) * torch.rand(len(latents), 1, 1, 1, generator=generator)).to(latents)
    decoded: Tensor = autoencoder.decode(latents + level * spread * added).sample
    return decoded.float()


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 plus twice the squared error."""
    return (decoded - images).abs().mean() + 2 * (decoded - images).square().mean()


def train_codec(recipe: CodecRecipe, out: Path) -> dict[str, Any]:
    """Train, resume or refine; `out/codec` holds the result in diffusers' layout. Returns the last log record."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("train-codec runs in one process: start it without torchrun")
    device = set_up_device(recipe.run)
    if recipe.data.native:
        raise InputError("data.native: a codec is trained on squares; it encodes and decodes any shape")
    sources = recipe.data.open()
    # measured on what training does not see, where the data has such a part
    held_out = ConcatSource(recipe.data.model_copy(update={"split": "held_out"}).open())
    if not sum(map(len, sources)) or not len(held_out):
        raise InputError(f"data.source {recipe.data.source!r} holds no images")
    measured, broken = spread_images(held_out, MEASURED, {}).to(device), dict[int, str]()
    autoencoder = start_autoencoder(recipe, device)
    with Run(out, recipe) as run:
        record = _train(run, recipe, autoencoder, sources, measured, broken)
        if recipe.refine is None:
            normalise(autoencoder, spread_images(ConcatSource(sources), 8 * MEASURED, broken).to(device))
        with publishing(out / "codec", "codec") as part:
            autoencoder.save_pretrained(part)
    for reason in broken.values():
        say(f"skipped {reason}")
    return record


def _train(
    run: Run,
    recipe: CodecRecipe,
    autoencoder: AutoencoderDC,
    sources: Sequence[Source],
    measured: Tensor,
    broken: dict[int, str],
) -> dict[str, Any]:
    """Make the steps that are left, or those until a signal; unreadable images are noted in `broken`.

    Raises:
        InputError: the run has diverged.
    """
    config, optimizing, device = recipe.run, recipe.optimizer, measured.device
    source, sizes, shares = ConcatSource(sources), [len(each) for each in sources], list(recipe.data.shares.values())
    trained = [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=optimizing.learning_rate, betas=optimizing.betas, weight_decay=optimizing.weight_decay
    )
    adversary = None if recipe.adversary is None else Adversary(recipe.adversary, optimizing.betas, device)
    learned = () if adversary is None else (adversary.discriminator, [adversary.optimizer])
    networks = [autoencoder, *learned[:1]]
    tensors = TrainingTensors(autoencoder, [], [optimizer], *learned)
    precision = pick_precision(config.precision, device)
    mixed = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
    checkpoints = Checkpoints(run.folder / "checkpoints", run.ranks, config.keep, config.keep_every, recipe)
    state = TrainerState.of(checkpoints.load(tensors))
    start = state.step
    record: dict[str, Any] = {"step": start}
    run.cut_log(start)
    for each in (schedule_changes(run.before, recipe, start), unfinished_warmup(optimizing, config.steps)):
        if each:
            say(each, error=True)
    guard, rate = Guard(GuardConfig(), state), learning_rate(optimizing, start, config.steps)

    with interruptible() as interrupted, Progress(config.steps, start) as progress, checkpoints:
        for step in range(start + 1, config.steps + 1):
            # --- evaluate ---------------------------------------------------------------------------------------------
            rate = learning_rate(optimizing, step - 1, config.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            generator = step_generator(config.seed, step - 1)
            chosen = mixed_indices(sizes, shares, config.batch_size, config.seed, step - 1)
            images = load_images(source, chosen, broken)
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images).to(device)
            with mixed():
                decoded = decode_with_noise(autoencoder, images, recipe.codec.noise, generator)
                loss = reconstruction_loss(decoded, images)
                if adversary is not None:
                    loss = loss + adversary.loss(decoded, images, step)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained, optimizing.clip).item()

            # --- update -----------------------------------------------------------------------------------------------
            if not math.isfinite(norm):
                check_finite(networks, run.ranks, step, rate)
            if guard.accepts(step, norm, chosen):
                optimizer.step()
                if adversary is not None:
                    with mixed():
                        adversary.learn(decoded, images, rate)

            # --- log --------------------------------------------------------------------------------------------------
            last, shown = step == config.steps or bool(interrupted), None
            if step % config.log_every == 0 or last:
                shown = {"loss": loss.item(), "PSNR": psnr(autoencoder, measured)}
                record = {"step": step, "loss": shown["loss"], "psnr": shown["PSNR"], "broken": len(broken)}
                run.log({**record, "learning_rate": rate, "gradient_norm": norm, "skipped_steps": state.skipped})
            progress.update(step, shown)

            # --- save -------------------------------------------------------------------------------------------------
            state.reach(step, finite=bool(loss.isfinite()))
            if step % config.checkpoint_every == 0 or is_kept(step, config.keep_every) or last:
                check_finite(networks, run.ranks, step, rate)
                checkpoints.save(step, tensors.state_dict(), asdict(state))
            if last:
                break
    if state.diverged:
        raise diverged(state.step, "loss and gradient are", rate)
    return record
