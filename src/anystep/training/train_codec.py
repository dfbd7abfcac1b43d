"""Training a small AutoencoderDC on images: L1 and squared error, no adversary, latents normalised at the end."""

import math
import os
from collections.abc import Sequence
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
from anystep.errors import InputError
from anystep.files import publishing
from anystep.training.batch_samplers import mixed_indices
from anystep.training.checkpoints import Checkpoints
from anystep.training.config import CodecRecipe, GuardConfig
from anystep.training.guard import LOST, Guard, diverged
from anystep.training.optimizers import learning_rate
from anystep.training.parallel import all_finite
from anystep.training.run import (
    Progress,
    Run,
    interruptible,
    schedule_changes,
    set_up_device,
    step_generator,
)
from anystep.training.trainer_state import TrainingTensors

MEASURED = 256  # images on which PSNR and latent statistics are taken


def build_autoencoder(recipe: CodecRecipe) -> AutoencoderDC:
    """A fresh autoencoder whose residual blocks start as the identity, which makes it a linear codec to begin with."""
    sizes = recipe.codec
    if not len(sizes.widths) == len(sizes.encoder_depths) == len(sizes.decoder_depths):
        raise InputError(f"codec.widths, encoder_depths and decoder_depths must be of one length, got {sizes}")
    autoencoder = AutoencoderDC(
        latent_channels=sizes.latent_channels,
        encoder_block_out_channels=sizes.widths,
        decoder_block_out_channels=sizes.widths,
        encoder_layers_per_block=sizes.encoder_depths,
        decoder_layers_per_block=sizes.decoder_depths,
        encoder_qkv_multiscales=((),) * len(sizes.widths),
        decoder_qkv_multiscales=((),) * len(sizes.widths),
    )
    for module in autoencoder.modules():
        if type(module).__name__ == "ResBlock":
            nn.init.zeros_(module.norm.weight)
    return autoencoder


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


def psnr(images: Tensor, reconstruction: Tensor) -> float:
    """Mean over images of 10 log10(range^2 / MSE), in decibels, both in [-1, 1] and the reconstruction clamped."""
    error = (images - reconstruction.clamp(-1, 1)).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / error)).mean())


@torch.no_grad()
def measure(autoencoder: AutoencoderDC, images: Tensor) -> float:
    return psnr(images, torch.cat([autoencoder(part).sample for part in images.split(32)]))


@torch.no_grad()
def normalise(autoencoder: AutoencoderDC, images: Tensor) -> None:
    """Write the per-channel mean and standard deviation of the latents into the config."""
    latents = torch.cat([autoencoder.encode(part).latent for part in images.split(32)])
    autoencoder.register_to_config(
        latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=latents.std((0, 2, 3)).tolist()
    )


def train_codec(recipe: CodecRecipe, out: Path) -> dict[str, Any]:
    """Train, resume or refine; `out/codec` holds the result in diffusers' layout. Returns the last log record."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("train-codec runs in one process: start it without torchrun")
    device = set_up_device(recipe.run)
    if recipe.data.native:
        raise InputError("data.native: a codec is trained on squares; it encodes and decodes any shape")
    sources = recipe.data.open()
    # judged on what training does not see, where the data has such a part
    held_out = ConcatSource(recipe.data.model_copy(update={"split": "held_out"}).open())
    if not sum(map(len, sources)) or not len(held_out):
        raise InputError(f"data.source {recipe.data.source!r} holds no images")
    spread = torch.linspace(0, len(held_out) - 1, min(MEASURED, len(held_out))).long().tolist()
    judged = load_images(held_out, spread, {}).to(device)

    if recipe.refine is None:
        autoencoder = build_autoencoder(recipe).to(device)
    else:
        codec = load_codec(recipe.refine)
        if not isinstance(codec, AutoencoderCodec):
            raise InputError(f"refine {recipe.refine!r} is not an autoencoder")
        autoencoder = codec.autoencoder.float().to(device)
        autoencoder.requires_grad_(True).encoder.requires_grad_(False)
    factor = AutoencoderCodec(autoencoder).factor
    if recipe.data.size % factor:
        raise InputError(f"data.size {recipe.data.size}: must be a multiple of {factor}")
    with Run(out, recipe) as run:
        return _train(run, autoencoder, sources, judged)


def _train(run: Run, autoencoder: AutoencoderDC, sources: Sequence[Source], judged: Tensor) -> dict[str, Any]:
    recipe, out, device = run.recipe, run.folder, judged.device
    assert isinstance(recipe, CodecRecipe)
    source, shares, config = ConcatSource(sources), list(recipe.data.shares.values()), recipe.optimizer
    broken: dict[int, str] = {}
    trained = [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    state = TrainingTensors(autoencoder, [], [optimizer])
    keep, saved = (recipe.run.keep, recipe.run.keep_every), recipe.model_dump(mode="json")
    checkpoints = Checkpoints(out / "checkpoints", run.ranks, *keep, saved)
    facts: dict[str, Any] = {"step": 0, "skipped": 0, "skipped_in_a_row": 0, "diverged": False}
    facts = {name: value for name, value in {**facts, **(checkpoints.load(state) or {})}.items() if name in facts}
    start = facts["step"]
    run.cut_log(start)
    if changes := schedule_changes(run.before, recipe, start):
        say(changes, error=True)
    guard = Guard(GuardConfig(), facts["skipped"], row=facts["skipped_in_a_row"])
    rate = learning_rate(config, start, recipe.run.steps)

    record: dict[str, Any] = {"step": start}
    with interruptible() as interrupted, Progress(recipe.run.steps, start) as progress, checkpoints:
        for step in range(start, recipe.run.steps):
            rate = learning_rate(config, step, recipe.run.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            generator = step_generator(recipe.run.seed, step)
            sizes = [len(each) for each in sources]
            chosen = mixed_indices(sizes, shares, recipe.run.batch_size, recipe.run.seed, step)
            images = load_images(source, chosen, broken)
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images).to(device)

            latents = autoencoder.encode(images).latent
            spread_of = latents.detach().std((0, 2, 3), keepdim=True)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            low, high = recipe.codec.noise
            level = (low + (high - low) * torch.rand(len(latents), 1, 1, 1, generator=generator)).to(latents)
            decoded = autoencoder.decode(latents + level * spread_of * noise).sample
            loss = (decoded - images).abs().mean() + 2 * (decoded - images).square().mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained, config.clip).item()
            if not math.isfinite(norm) and not all_finite([autoencoder], run.ranks):
                raise diverged(step + 1, "the weights are", rate)
            if guard.accepts(step + 1, norm, chosen):
                optimizer.step()

            done, last = step + 1, step + 1 == recipe.run.steps or bool(interrupted)
            shown = None
            if done % recipe.run.log_every == 0 or last:
                record = {
                    "step": done,
                    "loss": loss.item(),
                    "psnr": measure(autoencoder, judged),
                    "broken": len(broken),
                }
                run.log({**record, "learning_rate": rate, "gradient_norm": norm, "skipped_steps": guard.skipped})
                shown = {"loss": record["loss"], "PSNR": record["psnr"]}
            progress.update(done, shown)
            facts = {
                "step": done, "skipped": guard.skipped, "skipped_in_a_row": guard.row,
                "diverged": guard.row >= LOST or not bool(loss.isfinite()),
            }  # fmt: skip
            if done % recipe.run.checkpoint_every == 0 or last:
                if not all_finite([autoencoder], run.ranks):
                    raise diverged(done, "the weights are", rate)
                checkpoints.save(done, state, facts)
            if last:
                break
    if facts["diverged"]:
        raise diverged(facts["step"], "loss and gradient are", rate)
    if recipe.refine is None:
        spread = torch.linspace(0, len(source) - 1, min(8 * MEASURED, len(source))).long().tolist()
        normalise(autoencoder, load_images(source, spread, broken).to(device))
    with publishing(out / "codec") as part:
        autoencoder.save_pretrained(part)
    for reason in broken.values():
        say(f"skipped {reason}")
    return record
