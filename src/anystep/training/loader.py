"""Batches, read and put together by a thread while the device works on the one before."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from anystep.data.latents import Encoded, LatentSet
from anystep.packing import Packing, pack
from anystep.ranks import Ranks
from anystep.training.batches import Batches, Part, mine
from anystep.training.draws import Draws, draw


class Loaded(NamedTuple):
    """A part with what does not need a device.

    Attributes:
        x, z: latents and noise: (batch, channels, height, width), or packed.
        fresh: noise beside `z`, where it was asked for.
        draws: what else is drawn of each sample.
        features: of the examples, where they have some; (tokens, width) where they are packed.
        packing: whose tokens are whose, where they are packed.
        pixels: rows and columns of each latent.
    """

    part: Part
    examples: list[Encoded]
    x: Tensor
    z: Tensor
    draws: Draws
    features: Tensor | None
    packing: Packing | None
    pixels: list[tuple[int, int]]
    fresh: Tensor | None = None


class Feed:
    """The parts of a batch that this process evaluates.

    Args:
        data: what the numbers of examples are of.
        batches: of all processes.
        ranks: which of them this is.
        patch: latent pixels along one side of a token.
        seed: keys the draws.
        mirror: whether to turn half of the images.
        fresh: whether the objective wants noise beside `z`.
    """

    def __init__(
        self,
        data: LatentSet,
        batches: Batches,
        ranks: Ranks,
        patch: int,
        seed: int,
        mirror: bool = False,
        fresh: bool = False,
    ) -> None:
        self._data, self._batches, self._ranks = data, batches, ranks
        self._patch, self._seed, self._mirror, self._fresh = patch, seed, mirror, fresh
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[list[Loaded]]] | None = None

    def take(self, position: int) -> list[Loaded]:
        """The parts of batch `position`; the next one is begun."""
        if self._ahead is not None and self._ahead[0] == position:
            parts = self._ahead[1].result()
        else:
            parts = self._make(position)
        self._ahead = (position + 1, self._reader.submit(self._make, position + 1))
        return parts

    def _make(self, position: int) -> list[Loaded]:
        return [self._load(part) for part in mine(self._batches.step(position), self._ranks)]

    def _load(self, part: Part) -> Loaded:
        examples = self._data.read(part.examples)
        numbers = range(part.first, part.first + len(examples))
        draws = draw(self._seed, numbers, [example.latent.shape for example in examples], self._fresh)
        latents = [
            example.mirrored if self._mirror and turn < 0.5 and example.mirrored is not None else example.latent
            for example, turn in zip(examples, draws.mirror.tolist(), strict=True)
        ]
        features = [example.features for example in examples if example.features is not None]
        whole = features if len(features) == len(examples) else []
        pixels = [(int(latent.shape[1]), int(latent.shape[2])) for latent in latents]
        if part.packed:
            x, packing = pack(latents, self._patch)
            z, _ = pack(draws.z, self._patch)
            fresh = pack(draws.fresh, self._patch)[0] if draws.fresh else None
            return Loaded(part, examples, x, z, draws, torch.cat(whole) if whole else None, packing, pixels, fresh)
        x, z = torch.stack(latents), torch.stack(draws.z)
        fresh = torch.stack(draws.fresh) if draws.fresh else None
        return Loaded(part, examples, x, z, draws, torch.stack(whole) if whole else None, None, pixels, fresh)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)
