"""The data loader: micro-batches are read and put together by a thread while the device works on the batch before."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from anystep.data.latents import Encoded, LatentSet
from anystep.packing import Packing, pack
from anystep.ranks import Ranks
from anystep.training.batch_samplers import BatchSampler, MicroBatch, of_rank
from anystep.training.draws import Draws, draw


class LoadedMicroBatch(NamedTuple):
    """A micro-batch, with everything that needs no device.

    Attributes:
        chosen: which examples it holds, and their weight in the loss.
        examples: the examples.
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
    fresh: Tensor | None = None


class PrefetchingLoader:
    """Reads the micro-batches of this process, always one step ahead.

    Args:
        data: the data set that the numbers of examples refer to.
        sampler: chooses the examples of every step.
        ranks: the processes of the run.
        patch: latent pixels along one side of a token.
        seed: seed of the random draws.
        mirror: whether to mirror half of the images.
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
        latents = [
            example.mirrored if self._mirror and turn < 0.5 and example.mirrored is not None else example.latent
            for example, turn in zip(examples, draws.mirror.tolist(), strict=True)
        ]
        features = [example.features for example in examples if example.features is not None]
        packing, join = None, torch.stack
        x, z, fresh = latents, draws.z, draws.fresh
        if chosen.packed:
            packed, packing = pack(latents, self.patch)
            x, z, join = [packed], [pack(draws.z, self.patch)[0]], torch.cat
            fresh = [pack(draws.fresh, self.patch)[0]] if draws.fresh else []
        return LoadedMicroBatch(
            chosen,
            examples,
            join(x),
            join(z),
            draws,
            join(features) if len(features) == len(examples) else None,
            packing,
            [(int(latent.shape[1]), int(latent.shape[2])) for latent in latents],
            join(fresh) if fresh else None,
        )

    def __enter__(self) -> "PrefetchingLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)
