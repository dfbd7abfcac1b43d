"""What the training engine adds to a bare loop that does the same forwards, backward and update, and what it waits for.

    python benchmarks/engine.py

The engine trains the emoji recipe on latents; the bare loop is given the same samples, noise, times and captions as
tensors that lie ready. Both take turns of a few steps in one run, so that what the machine is doing meanwhile weighs
on both alike. Left out are the first step of each turn, and the steps that are shown: they measure the derivative's
noise.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import write_record
from torch import Tensor

from anystep.device import pick_device
from anystep.objective import TrainingBatch
from anystep.ranks import Ranks
from anystep.training.assemble import prepare_data, prepare_network
from anystep.training.batch_samplers import FixedShapeBatchSampler
from anystep.training.config import Recipe
from anystep.training.loader import PrefetchingLoader
from anystep.training.objective import make_objective
from anystep.training.optimizers import make_optimizers
from anystep.training.recipe_files import load_recipe
from anystep.training.step import choose_captions, encode_conditions
from anystep.training.train import train

ROOT = Path(__file__).parent.parent


class Bare:
    """The loop that anybody would write first."""

    def __init__(self, recipe: Recipe, run: Path, device: torch.device) -> None:
        self.recipe, self.objective, self.device = recipe, make_objective(recipe), device
        inputs = prepare_data(recipe, run, device)
        self.data, self.conditioner = inputs.data, inputs.conditioner
        self.network = prepare_network(inputs).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = make_optimizers(self.network, recipe.optimizer, device)[0]

    def batches(self, first: int, count: int) -> Iterator[list[Tensor | None]]:
        """What the engine sees in these steps."""
        config = self.recipe.run
        order = FixedShapeBatchSampler(self.data.sizes, [1.0], config.batch_size, 1, config.seed)
        with PrefetchingLoader(self.data, order, Ranks.single(), 1, config.seed) as feed:
            for position in range(first, first + count):
                part = feed.take(position)[0]
                chosen = choose_captions(part.examples, self.recipe.condition_dropout, part.draws)
                condition, mask = encode_conditions(self.conditioner, part.examples, chosen)
                t, r = self.objective.times(part.draws.normal, part.draws.uniform)
                tensors = (part.x, part.z, t, r, condition, mask)
                yield [None if tensor is None else tensor.to(self.device) for tensor in tensors]

    def step(self, tensors: list[Tensor | None]) -> None:
        record = self.objective.evaluate(self.network, TrainingBatch(*tensors))  # type: ignore[arg-type]
        record.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1e-3)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, first: int, count: int) -> list[float]:
        taken = []
        for tensors in list(self.batches(first, count)):
            begin = time.perf_counter()
            self.step(tensors)
            taken.append(time.perf_counter() - begin)
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="of each turn (default: 4)")
    parser.add_argument("--debug", action="store_true", help="the recipe's laptop size, to see whether all works")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "engine.json")
    options = parser.parse_args()

    def recipe(steps: int) -> Recipe:
        over = ["--data.limit", "512", "--run.steps", str(steps), "--run.threads", "1", "--run.log_every", "1000000"]
        over += ["--run.sample_every", "0", "--run.checkpoint_every", "1000000", "--objective.diffusion_phase", "0"]
        return load_recipe(ROOT / "configs" / "emoji.yaml", Recipe, over, options.debug)

    torch.set_num_threads(1)
    engine: list[list[float]] = []
    bare: list[list[float]] = []
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        train(recipe(1), run)  # encodes the data
        loop = Bare(recipe(1), run, pick_device(recipe(1).run.device))
        loop.seconds(0, 1)
        for turn in range(options.turns):
            first = 1 + turn * options.steps
            train(recipe(first + options.steps), run)
            bare.append(loop.seconds(first, options.steps)[1:])
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
            engine.append([record["seconds"] for record in records[first + 1 :]])
            waits += [record["data_wait"] for record in records[first + 1 :]]
    ratios = [sum(one) / sum(two) for one, two in zip(engine, bare, strict=True)]
    figures: dict[str, Any] = {
        "engine_seconds": median(each for turn in engine for each in turn),
        "bare_seconds": median(each for turn in bare for each in turn),
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "data_wait": median(waits),
    }
    low, high = figures["ratio_range"]
    print(f"engine {figures['engine_seconds']:.3f} s a step, bare loop {figures['bare_seconds']:.3f} s")
    print(f"ratio {figures['ratio']:.3f} ({low:.3f} to {high:.3f} over {options.turns} turns)")
    print(f"waits for data {figures['data_wait']:.2%} of a step")
    origin = {"recipe": "configs/emoji.yaml", "turns": options.turns, "steps": options.steps}
    write_record(options.out, {**origin, **figures})


if __name__ == "__main__":
    main()
