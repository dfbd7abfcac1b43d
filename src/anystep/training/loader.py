"""The data loader: micro-batches and their random draws are made by a thread while the device works on those before.

Everything random in training is keyed by the seed and the number of the sample. Sample `number` is the row
`number % batch` of step `number // batch`. What it draws depends on nothing else, so that a resumed run, and one on
another number of processes, continues exactly.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anystep.data.latents import Encoded, LatentSet
from anystep.packing import Packing, pack
from anystep.ranks import Ranks
from anystep.training.batch_samplers import BatchSampler, MicroBatch, of_rank


class Draws(NamedTuple):
    """Of each sample: noise `z`, what its times come from, and uniform numbers that choose and drop its caption and
    mirror it, a guidance scale, and noise beside `z` where it was asked for.
    """

    z: list[Float[Tensor, "channels _height _width"]]
    normal: Float[Tensor, "batch 3"]
    uniform: Float[Tensor, "batch 6"]
    choice: Float[Tensor, " batch"]
    drop: Float[Tensor, " batch"]
    mirror: Float[Tensor, " batch"]
    guidance: Float[Tensor, " batch"]
    fresh: list[Float[Tensor, "channels _height _width"]]


def draw(seed: int, numbers: Sequence[int], shapes: Sequence[Sequence[int]], fresh: bool = False) -> Draws:
    """The draws of these samples, on the CPU, float32.

    Args:
        shapes: of the noise of each.
        fresh: whether each gets noise once more; else there is none.
    """
    normal = np.empty((len(numbers), 3), np.float32)
    uniform = np.empty((len(numbers), 10), np.float32)
    z, more = [], []
    for row, (number, shape) in enumerate(zip(numbers, shapes, strict=True)):
        # counter-based (Philox): every key is a stream of its own, in which newer draws come after older ones
        rng = np.random.Generator(np.random.Philox(key=[seed, number]))
        normals = rng.standard_normal(2 + int(np.prod(shape)), dtype=np.float32)
        normal[row, :2] = normals[:2]
        z.append(torch.from_numpy(normals[2:]).view(*shape))
        rng.random(out=uniform[row, :6], dtype=np.float32)
        normal[row, 2] = rng.standard_normal(dtype=np.float32)
        rng.random(out=uniform[row, 6:9], dtype=np.float32)
        if fresh:
            more.append(torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32)))
        beside = np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, 1]))
        uniform[row, 9] = beside.random(dtype=np.float32)  # a stream of its own: not every sample has fresh noise
    columns = torch.from_numpy(uniform)
    return Draws(
        z, torch.from_numpy(normal), columns[:, [0, 1, 2, 6, 7, 9]], choice=columns[:, 3], drop=columns[:, 4],
        mirror=columns[:, 5], guidance=columns[:, 8], fresh=more,
    )  # fmt: skip


class LoadedMicroBatch(NamedTuple):
    """A micro-batch, with everything that needs no device.

    Attributes:
        chosen: which examples it holds, and their weight in the loss.
        examples: those, turned left to right where that was drawn.
        x, z: latents and noise: (batch, channels, height, width), or packed.
        draws: all other random numbers of each sample.
        features: features of the examples for alignment, if all have them; (tokens, width) where packed.
        packing: which tokens belong to which image, where packed.
        shapes: rows and columns of each latent.
        fresh: noise beside `z`, where the objective asks for it.
    """

    chosen: MicroBatch
    examples: list[Encoded]
    x: Tensor
    z: Tensor
    draws: Draws
    features: Tensor | None
    packing: Packing | None
    shapes: list[tuple[int, int]]
    fresh: Tensor | None


class PrefetchingLoader:
    """Reads the micro-batches of this process, always one step ahead.

    Args:
        data: the data set that the numbers of examples refer to.
        sampler: chooses the examples of every step.
        patch: latent pixels along one side of a token.
        seed: seed of the random draws.
        mirror: whether to mirror half of the images, with their features.
        fresh: whether the objective asks for noise beside `z`.
    """

    def __init__(
        self,
        data: LatentSet,
        sampler: BatchSampler,
        ranks: Ranks,
        patch: int,
        seed: int,
        mirror: bool = False,
        fresh: bool = False,
    ) -> None:
        self.data, self.sampler, self.ranks, self.patch = data, sampler, ranks, patch
        self._seed, self._mirror, self._fresh = seed, mirror, fresh
        self._reader = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[list[LoadedMicroBatch]]] | None = None
        self._shared = 0  # unreadable examples that all processes know of

    def take(self, position: int) -> list[LoadedMicroBatch]:
        """The micro-batches of step `position`; reading those of the next one is begun."""
        if self._next is not None and self._next[0] == position:
            loaded = self._next[1].result()
        else:
            loaded = self._read(position)
        self._next = (position + 1, self._reader.submit(self._read, position + 1))
        return loaded

    def examples(self, position: int) -> list[int]:
        """Numbers of the examples of all processes in a step: those of the first process, then of the second, ..."""
        chosen, count = self.sampler.step(position), self.ranks.count
        return [number for rank in range(count) for each in of_rank(chosen, rank, count) for number in each.examples]

    def share_unreadable(self) -> None:
        """Let all processes know of the examples that one could not read; they come here together.

        Raises:
            InputError: in all of them, when more cannot be read than the run may bear.
        """
        if self.ranks.any(len(self.data.broken) > self._shared):
            for broken in self.ranks.all_gather_object(dict(self.data.broken)):
                self.data.broken.update(broken)
            self._shared = len(self.data.broken)
            self.data.check_broken()

    def _read(self, position: int) -> list[LoadedMicroBatch]:
        return [self._load(each) for each in of_rank(self.sampler.step(position), self.ranks.rank, self.ranks.count)]

    def _load(self, chosen: MicroBatch) -> LoadedMicroBatch:
        examples = self.data.read(chosen.examples)
        numbers = range(chosen.first_sample, chosen.first_sample + len(examples))
        draws = draw(self._seed, numbers, [example.latent.shape for example in examples], self._fresh)
        if self._mirror:
            turns = (draws.mirror < 0.5).tolist()
            examples = [each.turned(self.patch) if turn else each for each, turn in zip(examples, turns, strict=True)]
        features = [example.features for example in examples if example.features is not None]
        joined = torch.cat if chosen.packed else torch.stack

        def batch(images: list[Tensor]) -> tuple[Tensor, Packing | None]:
            return pack(images, self.patch) if chosen.packed else (torch.stack(images), None)

        x, packing = batch([example.latent for example in examples])
        return LoadedMicroBatch(
            chosen, examples, x, batch(draws.z)[0], draws,
            features=joined(features) if len(features) == len(examples) else None,
            packing=packing,
            shapes=[(int(each.latent.shape[1]), int(each.latent.shape[2])) for each in examples],
            fresh=batch(draws.fresh)[0] if self._fresh else None,
        )  # fmt: skip

    def __enter__(self) -> "PrefetchingLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)
