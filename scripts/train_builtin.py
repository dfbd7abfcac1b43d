"""Train the built-in model's transformer on one GPU: `python scripts/train_builtin.py --out runs/gpu --seconds 300`.

The network and objective are those of the recipe `emoji-guided`. A GPU takes thousands of images a second of so small
a network, more than can be read from files, so here all latents and captions stay in its memory, batches have one shape
each, and noise and times are drawn there. The schedule follows the clock. Draws are not keyed by samples, and a run is
not resumed: `anystep train` is for everything else.

`--out` is a model with the averaged transformer, which `scripts/build_weights.py` and `--weights` take, and a log.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anystep.codecs import load_codec
from anystep.conditioning import load_text_encoder
from anystep.data.art import ArtSource
from anystep.data.scenes import SceneSource
from anystep.data.sizing import CANVASES
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.objective import GuidanceCondition, TrainingBatch, TransitionObjective
from anystep.pipelines.load import load
from anystep.sampling import resolution_shift
from anystep.training.assemble import load_weights
from anystep.training.config import Recipe
from anystep.training.ema import update_ema
from anystep.training.objective import make_objective
from anystep.training.recipe_files import load_recipe
from anystep.training.recipes import find_recipe

SIDE = 64
ART, SCENES = 2, 1  # their parts of a batch
SQUARES = 3  # steps of small squares, before one of another canvas
CAPTION_TOKENS = 24  # more than any caption has: all are padded to it, so that shapes hardly change
SHARD = 4096  # pictures that a process draws at once
# of the recipe, what is changed: more little noise than `emoji-native` draws, where most of what was wrong arose
RECIPE = ("--model.weights", "builtin", "--objective.diffusion_times", "{mean: 0.5, std: 1.6}")
CHECKED = (1.0, 0.8, 0.5, 0.3, 0.1)  # times at which the velocity is checked


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass
class Pictures:
    """Latents of one canvas, and which of the captions each may have."""

    latents: Tensor  # (pictures, channels, rows, columns), float16
    captions: Tensor  # (pictures, 2)


@dataclass
class Data:
    """What the network learns, on the device: pictures of every canvas, drawings and scenes; states of all captions."""

    art: list[Pictures]
    scenes: list[Pictures]
    states: Tensor  # (captions, tokens, width), float16; the first is the empty caption
    lengths: Tensor  # (captions,)

    def draw(self, canvas: int, count: int, dropout: float) -> tuple[Tensor, Tensor]:
        """Latents of a canvas, drawings first, and the number of each one's caption, 0 where it is dropped."""
        scenes = count * SCENES // (ART + SCENES)
        latents, captions = [], []
        for pictures, share in ((self.art[canvas], count - scenes), (self.scenes[canvas], scenes)):
            device = pictures.latents.device
            rows = torch.randint(len(pictures.latents), (share,), device=device)
            latents.append(pictures.latents[rows].float())
            captions.append(pictures.captions[rows, torch.randint(2, (share,), device=device)])
        chosen = torch.cat(captions)
        return torch.cat(latents), chosen.where(torch.rand(count, device=chosen.device) >= dropout, 0)

    def conditions(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """States and masks of captions by number."""
        places = torch.arange(self.states.shape[1], device=captions.device)
        return self.states[captions].float(), places < self.lengths[captions][:, None]


def canvases() -> list[tuple[int, int]]:
    return [(round(SIDE * wide), round(SIDE * high)) for wide, high in CANVASES]


def draw_art(canvas: tuple[int, int], numbers: range) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    source = ArtSource(canvas, "everyday", "train")
    examples = [source[number] for number in numbers]
    return np.stack([np.asarray(each.image) for each in examples]), [each.captions for each in examples]


def draw_scenes(recipe: Recipe, numbers: range) -> dict[tuple[int, int], tuple[np.ndarray, list[tuple[str, ...]]]]:
    source = SceneSource(recipe.data.sizing(8), numbers.stop)
    examples = [source[number] for number in numbers]
    sizes = {each.image.size for each in examples}
    by_size = {size: [each for each in examples if each.image.size == size] for size in sizes}
    return {
        size: (np.stack([np.asarray(each.image) for each in some]), [each.captions for each in some])
        for size, some in by_size.items()
    }


def make_data(recipe: Recipe, device: torch.device, scenes: int, limit: int | None) -> Data:
    """All drawings on every canvas, and so many scenes, encoded."""
    count = len(ArtSource(SIDE, "everyday", "train")) if limit is None else limit
    parts = [range(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]
    scene_parts = [range(first, min(first + SHARD, scenes)) for first in range(0, scenes, SHARD)]
    with ProcessPoolExecutor() as pool:
        drawn = [pool.submit(draw_art, canvas, part) for canvas in canvases() for part in parts]
        composed = [pool.submit(draw_scenes, recipe, part) for part in scene_parts]
        art = [each.result() for each in drawn]
        together = [each.result() for each in composed]
    codec, numbers = load_codec("builtin", device), {"": 0}

    def encoded(pieces: Sequence[tuple[np.ndarray, list[tuple[str, ...]]]]) -> Pictures:
        latents, captions = [], []
        for images, texts in pieces:
            for batch in torch.from_numpy(images).split(512):
                pixels = batch.to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
                with torch.no_grad():
                    latents.append(codec.encode(pixels).half())
            captions += [[numbers.setdefault(text, len(numbers)) for text in (each[0], each[-1])] for each in texts]
        return Pictures(torch.cat(latents), torch.tensor(captions, device=device))

    found = [encoded(art[place * len(parts) : (place + 1) * len(parts)]) for place in range(len(CANVASES))]
    scene = [encoded([each[canvas] for each in together if canvas in each]) for canvas in canvases()]
    encoder = load_text_encoder("builtin").to(device)
    texts = list(numbers)
    states = torch.zeros(len(texts), CAPTION_TOKENS, encoder.width, dtype=torch.float16, device=device)
    lengths = torch.zeros(len(texts), dtype=torch.long, device=device)
    for first in range(0, len(texts), 2048):
        some, mask = encoder(texts[first : first + 2048])
        end = first + len(some)
        states[first:end, : some.shape[1]] = some.half()
        lengths[first:end] = some.shape[1] if mask is None else mask.sum(1)
    return Data(found, scene, states, lengths)


# --- training ---------------------------------------------------------------------------------------------------------


def starting_network(weights: str, depth: int | None) -> TransitionTransformer2DModel:
    """The transformer of a model, with blocks beyond its last that are the identity."""
    config = load(weights, "cpu").pipeline.transformer.config
    network = TransitionTransformer2DModel.from_config(config, **({} if depth is None else {"depth": depth}))
    load_weights(network, weights)
    return network


@dataclass
class Training:
    """One run.

    Attributes:
        guided: the share of samples whose guidance scale is drawn; it is 1 of the others.
        tokens: in a step.
    """

    network: TransitionTransformer2DModel
    average: TransitionTransformer2DModel
    objective: TransitionObjective
    data: Data
    recipe: Recipe
    guided: float
    tokens: int

    @property
    def device(self) -> torch.device:
        return self.data.states.device

    def batch(self, canvas: int, count: int, objective: TransitionObjective) -> TrainingBatch:
        """Samples of one canvas, with all their draws."""
        x, captions = self.data.draw(canvas, count, self.recipe.condition_dropout)
        normal, uniform = torch.randn(count, 3, device=self.device), torch.rand(count, 6, device=self.device)
        shift = torch.full((count,), resolution_shift(*x.shape[-2:], SIDE / 8), device=self.device)
        t, r = objective.times(normal, uniform, shift)
        assert isinstance(objective.guidance, GuidanceCondition)
        scale = objective.guidance.scales(torch.rand(count, device=self.device))
        scale = scale.where((captions > 0) & (torch.rand(count, device=self.device) < self.guided), 1.0)
        condition, mask = self.data.conditions(captions)
        null, null_mask = self.data.conditions(torch.zeros_like(captions))
        return TrainingBatch(x, torch.randn_like(x), t, r, condition, mask, null, null_mask, scale)

    def step(self, number: int) -> tuple[int, Tensor]:
        """Gradients of a step; returns how many images it had, and their mean residual.

        Three of four steps are of small squares, the others of each other canvas in turn. Every other step has twice
        the share of intervals, the rest none: so many small kernels cost less to launch.
        """
        turn, place = divmod(number // 2, SQUARES + 1)
        canvas = 0 if place < SQUARES else 1 + turn % (len(CANVASES) - 1)
        wide, high = canvases()[canvas]
        count, draws = self.tokens * 64 // (wide * high), self.objective.draws
        intervals = 2 * (1 - draws.diffusion_share) * (number % 2)
        draws = replace(
            draws, diffusion_share=1 - intervals, consistency_share=2 * draws.consistency_share * (number % 2)
        )
        objective = replace(self.objective, draws=draws)
        batch = self.batch(canvas, count, objective)
        with torch.autocast(self.device.type, torch.bfloat16):
            record = objective.evaluate(self.network, batch, self.average)
        record.loss.backward()
        return count, record.denoising

    @torch.no_grad()
    def check(self) -> dict[str, list[float]]:
        """The mean squared error of the average's velocity on fixed draws, of drawings and of scenes, at `CHECKED`."""
        transport, found = self.objective.transport, {}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(1)
            x, captions = self.data.draw(0, 768, 0.0)
            z = torch.randn_like(x)
        condition, mask = self.data.conditions(captions)
        scenes = len(x) * SCENES // (ART + SCENES)
        errors = []
        for checked in CHECKED:
            t = torch.full((len(x),), checked, device=self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                f = self.average(
                    transport.interpolate(x, z, t), transport.c_noise(t), transport.c_noise(t), condition, mask
                )
            errors.append((f - transport.target(x, z, t)).square().flatten(1).mean(1))
        table = torch.stack(errors)
        for name, rows in (("art", table[:, :-scenes]), ("scenes", table[:, -scenes:])):
            found[name] = [round(value, 4) for value in rows.mean(1).tolist()]
        return found


def learning_rate(peak: float, done: float) -> float:
    """A short warm-up, then a cosine to 1 % of the peak."""
    return peak * min(1.0, done / 0.02) * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, done))) / 2)


def save(average: TransitionTransformer2DModel, out: Path) -> None:
    """The built-in model with this transformer, as `out / "pipeline"`."""
    pipeline = load("builtin", "cpu").pipeline
    pipeline.transformer = average
    pipeline.save_pretrained(out / "pipeline")


def train(options: argparse.Namespace) -> None:
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(options.seed)
    began = time.perf_counter()
    recipe = load_recipe(find_recipe("emoji-guided", "train"), Recipe, RECIPE)
    data = make_data(recipe, torch.device(options.device), options.scenes, options.limit)
    print(f"data after {time.perf_counter() - began:.0f} s", flush=True)
    network = starting_network(options.weights, options.depth).to(options.device)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    training = Training(network, average, make_objective(recipe), data, recipe, options.guided, options.tokens)
    weights, averages = list(network.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    options.out.mkdir(parents=True, exist_ok=True)
    log = (options.out / "log.jsonl").open("w")

    def tell(**record: Any) -> None:
        print(json.dumps(record), file=log, flush=True)
        print(json.dumps(record), flush=True)

    tell(step=0, **training.check())
    began, images, step, saved = time.perf_counter(), 0, 0, False
    while (done := (time.perf_counter() - began) / options.seconds) < 1:
        rate = learning_rate(options.learning_rate, done)
        optimizer.param_groups[0]["lr"] = rate
        count, residual = training.step(step)
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema([averages], weights, [min(options.ema, (1 + step) / (10 + step))])
        step, images = step + 1, images + count
        if step % options.every == 0:
            seconds = time.perf_counter() - began
            figures = {"seconds": round(seconds, 1), "images_per_second": round(images / seconds), "rate": rate}
            figures |= {"norm": round(norm.item(), 3), "residual": round(residual.item(), 3)}
            tell(step=step, images=images, **figures, **(training.check() if step % (5 * options.every) == 0 else {}))
        if done > 0.6 and not saved:  # should the machine go before the end
            save(average, options.out)
            saved = True
    tell(step=step, images=images, seconds=round(time.perf_counter() - began, 1), **training.check())
    save(average, options.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--weights", default="builtin", help="a model, or the --out of another run")
    parser.add_argument("--depth", type=int, help="blocks; those beyond the last of --weights begin as the identity")
    parser.add_argument("--scenes", type=int, default=60_000)
    parser.add_argument("--limit", type=int, help="drawings of each canvas; all of them by default")
    parser.add_argument("--tokens", type=int, default=98_304, help="of a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--guided", type=float, default=0.35)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
