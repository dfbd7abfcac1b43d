"""Which examples each step sees: a pure function of the seed and the step, whatever the number of processes."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from anystep.data.latents import LatentSet
from anystep.errors import InputError
from anystep.seeds import mixed
from anystep.training.config import DataConfig, RunConfig


@dataclass(frozen=True)
class MicroBatch:
    """What one process evaluates at once.

    Attributes:
        examples: numbers of the examples in the data set.
        first_sample: number of the first sample, which keys its random draws; the others follow.
        loss_weight: weight in the loss of the step, by tokens; the weights of all micro-batches of a step sum to 1.
        packed: whether the examples differ in shape and go into one sequence.
    """

    examples: list[int]
    first_sample: int
    loss_weight: float
    packed: bool = False


def of_rank(micro_batches: Sequence[MicroBatch], rank: int, count: int) -> list[MicroBatch]:
    """The micro-batches of a step that process `rank` of `count` evaluates."""
    return list(micro_batches[rank::count])


@dataclass(frozen=True)
class FixedShapeBatchSampler:
    """Batches of equally many images of one shape, from several sources in fixed proportions.

    Attributes:
        sizes: number of examples of each source.
        shares: share of every batch that each source gives.
        batch_size: number of images in a step.
        micro_batches: number of micro-batches in a step.
        members: the `class_members` of each source, to draw every class equally often.
    """

    sizes: Sequence[int]
    shares: Sequence[float]
    batch_size: int
    micro_batches: int
    seed: int
    members: Sequence[Sequence[Tensor]] | None = None

    @property
    def max_images(self) -> int:
        """Number of images in a micro-batch."""
        return self.batch_size // self.micro_batches

    def step(self, position: int) -> list[MicroBatch]:
        """The micro-batches of a step, of all processes."""
        order = mixed_indices(self.sizes, self.shares, self.batch_size, self.seed, position, self.members)
        first, count = position * self.batch_size, self.max_images
        return [
            MicroBatch(order[start : start + count], first + start, 1 / self.micro_batches)
            for start in range(0, self.batch_size, count)
        ]


class TokenBudgetBatchSampler:
    """Micro-batches of at most so many tokens, from examples of different shapes.

    A micro-batch holds images of one shape, or, packed, images of any shapes in one sequence. Every example is seen
    once an epoch: the images of a shape are shared out evenly among as few micro-batches as hold them, and the last
    sequence of an epoch holds what is left. Of several sources each gives its share of the micro-batches.

    Args:
        grids: rows and columns of the latents of each source.
        shares: share of the micro-batches that each source gives.
        tokens_per_micro_batch: largest number of tokens in a micro-batch.
        patch: latent pixels along one side of a token.
        micro_batches: number of micro-batches in a step.
        packed: whether a micro-batch is one sequence of images of any shapes.

    Raises:
        InputError: an image has more tokens than a micro-batch, or there are fewer micro-batches than sources.
    """

    def __init__(
        self,
        grids: Sequence[Int[Tensor, "_examples 2"]],
        shares: Sequence[float],
        tokens_per_micro_batch: int,
        patch: int,
        micro_batches: int,
        seed: int,
        packed: bool = False,
    ) -> None:
        self.micro_batches, self._seed, self._packed = micro_batches, seed, packed
        self._capacity = tokens_per_micro_batch
        self._grids = [(each // patch).long() for each in grids]
        self._tokens = [each.prod(1) for each in self._grids]
        self._all_tokens = torch.cat(self._tokens)
        largest, smallest = int(self._all_tokens.max()), int(self._all_tokens.min())
        if largest > tokens_per_micro_batch:
            raise InputError(
                f"run.tokens_per_micro_batch {tokens_per_micro_batch}: expected at least the {largest} tokens of the "
                "largest image"
            )
        self.max_images = tokens_per_micro_batch // smallest
        self._counts = apportion(micro_batches, shares, "run.micro_batches")
        self._offsets = [sum(len(each) for each in grids[:source]) for source in range(len(grids))]
        self._epoch = lru_cache(maxsize=2 * len(grids))(self._make_epoch)
        self._parts = [0 if packed else self._count_parts(each) for each in self._grids]
        # micro-batches of each source up to the end of each epoch
        self._ends: list[list[int]] = [[] for _ in grids]

    def step(self, position: int) -> list[MicroBatch]:
        """The micro-batches of a step, of all processes."""
        chosen: list[list[int]] = []
        for source, count in enumerate(self._counts):
            chosen += [self._examples(source, position * count + slot) for slot in range(count)]
        tokens = [self.tokens(examples) for examples in chosen]
        first = position * self.micro_batches * self.max_images
        return [
            MicroBatch(examples, first + slot * self.max_images, count / sum(tokens), self._packed)
            for slot, (examples, count) in enumerate(zip(chosen, tokens, strict=True))
        ]

    def tokens(self, examples: Sequence[int]) -> int:
        """Number of tokens of these examples together."""
        return int(self._all_tokens[list(examples)].sum())

    def _examples(self, source: int, number: int) -> list[int]:
        """The examples of the `number`-th micro-batch of a source."""
        ends = self._ends[source]
        while not ends or number >= ends[-1]:
            # epochs of packs differ, and each has to be made to know its length
            length = len(self._epoch(source, len(ends))) if self._packed else self._parts[source]
            ends.append((ends[-1] if ends else 0) + length)
        epoch = bisect_right(ends, number)
        examples = self._epoch(source, epoch)[number - (ends[epoch - 1] if epoch else 0)]
        return (examples + self._offsets[source]).tolist()

    def _count_parts(self, grids: Int[Tensor, "_examples 2"]) -> int:
        """Number of micro-batches of every epoch of a source, each of images of one shape."""
        shapes, members = grids.unique(dim=0, return_counts=True)
        each = self._capacity // shapes.prod(1)
        return int(((members + each - 1) // each).sum())

    def _make_epoch(self, source: int, epoch: int) -> list[Tensor]:
        """The examples of each micro-batch of an epoch."""
        rng = _generator(self._seed + 104_729 * source, epoch)
        tokens, grids = self._tokens[source], self._grids[source]
        parts: list[Tensor] = []
        if self._packed:
            order = torch.randperm(len(tokens), generator=rng)
            ends = tokens[order].cumsum(0)
            start, before = 0, 0
            while start < len(order):
                end = int(torch.searchsorted(ends, before + self._capacity, right=True))
                parts.append(order[start:end])
                start, before = end, int(ends[end - 1])
        else:
            for grid in grids.unique(dim=0):
                members = torch.nonzero((grids == grid).all(1)).squeeze(1)
                members = members[torch.randperm(len(members), generator=rng)]
                each = self._capacity // int(grid.prod())
                parts += members.tensor_split(-(-len(members) // each))
        return [parts[number] for number in torch.randperm(len(parts), generator=rng).tolist()]


BatchSampler = FixedShapeBatchSampler | TokenBudgetBatchSampler


def count_micro_batches(data: DataConfig, run: RunConfig, processes: int) -> int:
    """Number of micro-batches in a step of all processes together.

    Raises:
        InputError: the processes do not divide the step; says what would.
    """
    if data.native:
        if run.micro_batches % processes:
            fits = -(-run.micro_batches // processes) * processes
            raise InputError(f"run.micro_batches {run.micro_batches}: {processes} processes need a multiple, as {fits}")
        return run.micro_batches
    count = processes * run.accumulate
    if run.batch_size % count:
        sizes = sorted({max(1, run.batch_size // count) * count, -(-run.batch_size // count) * count})
        raise InputError(
            f"run.batch_size {run.batch_size} does not divide into {processes} processes x {run.accumulate} "
            f"micro-batches; {' or '.join(map(str, sizes))} would"
        )
    return count


def make_batch_sampler(
    config: DataConfig, run: RunConfig, data: LatentSet, micro_batches: int, patch: int
) -> BatchSampler:
    """The batch sampler of a recipe.

    Args:
        micro_batches: number of micro-batches in a step, from `count_micro_batches`.
        patch: latent pixels along one side of a token.
    """
    shares = list(config.shares.values())
    if not config.native:
        members = [class_members(labels) for labels in data.labels] if config.balanced else None
        return FixedShapeBatchSampler(data.sizes, shares, run.batch_size, micro_batches, run.seed, members)
    # at least the tokens of so many squares of data.size
    squares = max(1, run.batch_size // micro_batches) * math.prod(data.shape[1:]) // patch**2
    tokens = run.tokens_per_micro_batch or squares
    return TokenBudgetBatchSampler(data.grids, shares, tokens, patch, micro_batches, run.seed, run.packed)


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which samples step `step` sees: consecutive slices of one shuffle an epoch, wrapping over epoch ends."""
    first = step * batch_size
    indices: list[int] = []
    while len(indices) < batch_size:
        epoch, offset = divmod(first + len(indices), count)
        indices += _order(count, seed, epoch)[offset : offset + batch_size - len(indices)].tolist()
    return indices


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """Of an epoch; kept, since shuffling millions for every batch would take longer than a step."""
    return torch.randperm(count, generator=_generator(seed, epoch))


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(mixed(seed) * 7_919 + epoch)


def apportion(batch_size: int, shares: Sequence[float], name: str = "run.batch_size") -> list[int]:
    """Number of examples in a batch from each source: the nearest to its share, and at least one."""
    if batch_size < len(shares):
        raise InputError(f"{name} {batch_size}: expected at least one for each of {len(shares)} sources")
    counts = [max(1, int(batch_size * share)) for share in shares]
    while (lacking := batch_size - sum(counts)) != 0:
        # the source that the step brings nearest to its share
        gaps = [batch_size * share - count for share, count in zip(shares, counts, strict=True)]
        if lacking > 0:
            counts[gaps.index(max(gaps))] += 1
        else:
            counts[gaps.index(min(gap for gap, count in zip(gaps, counts, strict=True) if count > 1))] -= 1
    return counts


def class_members(labels: Tensor) -> list[Tensor]:
    """The numbers of the examples of each class that has some."""
    return [torch.nonzero(labels == label).squeeze(1) for label in labels.unique().tolist()]


def balanced_indices(members: Sequence[Tensor], batch_size: int, seed: int, step: int) -> list[int]:
    """As `batch_indices`, but every class once in each round of all classes, each in a shuffle of its own."""
    indices = []
    for slot in range(step * batch_size, (step + 1) * batch_size):
        turn, place = divmod(slot, len(members))
        chosen = members[int(_order(len(members), seed, turn)[place])]
        epoch, offset = divmod(turn, len(chosen))
        indices.append(int(chosen[_order(len(chosen), seed, epoch)[offset]]))
    return indices


def mixed_indices(
    sizes: Sequence[int],
    shares: Sequence[float],
    batch_size: int,
    seed: int,
    step: int,
    members: Sequence[Sequence[Tensor]] | None = None,
) -> list[int]:
    """`batch_indices` of concatenated sources, each with its share of every batch and epochs of its own.

    With the `class_members` of each source, `balanced_indices`.
    """
    indices: list[int] = []
    for place, (size, count) in enumerate(zip(sizes, apportion(batch_size, shares), strict=True)):
        first, own = sum(sizes[:place]), seed + 104_729 * place
        found = (
            batch_indices(size, count, own, step)
            if members is None
            else balanced_indices(members[place], count, own, step)
        )
        indices += [first + index for index in found]
    return indices
