"""Batches, read and put together by a thread while the device works on the one before."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anystep.data.latents import Encoded, LatentSet
from anystep.training.draws import Draws, draw


class Part(NamedTuple):
    """What one process evaluates at once: examples by number, the draws of each, and what does not need a device."""

    indices: list[int]
    examples: list[Encoded]
    draws: Draws
    x: Float[Tensor, "batch *shape"]
    features: Float[Tensor, "batch tokens width"] | None


class Feed:
    """The parts of a batch that this process sees.

    Args:
        data: what the numbers of `order` are of.
        order: batch `position` as numbers of examples, all rows of all processes.
        rows: which rows of a batch this process sees, a range a part.
        batch_size, seed: key the draws.
        mirror: whether to turn half of the images.
        last: position after the last batch.
    """

    def __init__(
        self,
        data: LatentSet,
        order: Callable[[int], list[int]],
        rows: Sequence[range],
        batch_size: int,
        seed: int,
        mirror: bool,
    ) -> None:
        self._data, self._order, self._rows = data, order, rows
        self._batch_size, self._seed, self._mirror = batch_size, seed, mirror
        self._reader = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[list[Part]]] | None = None

    def take(self, position: int) -> list[Part]:
        """The parts of batch `position`; the next one is begun."""
        if self._ahead is not None and self._ahead[0] == position:
            parts = self._ahead[1].result()
        else:
            parts = self._make(position)
        self._ahead = (position + 1, self._reader.submit(self._make, position + 1))
        return parts

    def _make(self, position: int) -> list[Part]:
        indices = self._order(position)
        return [self._part(part, [indices[row] for row in part], position * self._batch_size) for part in self._rows]

    def _part(self, rows: range, indices: list[int], first: int) -> Part:
        examples = self._data.read(indices)
        draws = draw(self._seed, [first + row for row in rows], self._data.shape)
        latents = [
            example.mirrored if self._mirror and turn < 0.5 and example.mirrored is not None else example.latent
            for example, turn in zip(examples, draws.mirror.tolist(), strict=True)
        ]
        features = [example.features for example in examples if example.features is not None]
        return Part(
            indices, examples, draws, torch.stack(latents),
            torch.stack(features) if len(features) == len(examples) else None,
        )  # fmt: skip

    def __enter__(self) -> "Feed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)
