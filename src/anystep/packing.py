"""Sequence packing: images of different sizes in one sequence, in which each attends to itself alone.

A packed batch of latents is (tokens, channels, patch, patch): the patches of one image after another, row by row.
Times and conditions have one entry an image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Heads = Float[Tensor, "1 tokens heads head_dim"]
Attend = Callable[..., Tensor]


@dataclass(frozen=True)
class Packing:
    """Which token of a packed batch belongs to which image.

    Attributes:
        grids: rows and columns of each image, in tokens.
        blockwise: whether attention runs over the whole sequence with a block-diagonal mask (PyTorch's FlexAttention)
            instead of a loop over images; `None` means on CUDA, where it is fast.
    """

    grids: tuple[tuple[int, int], ...]
    blockwise: bool | None = None
    # every block of a network needs the same indices, by device, and attention masks, by name
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def lengths(self) -> list[int]:
        return [rows * columns for rows, columns in self.grids]

    @cached_property
    def sample_index(self) -> Int[Tensor, " tokens"]:
        """Which image each token belongs to, on the CPU."""
        return torch.repeat_interleave(torch.tensor(self.lengths, device="cpu"))

    def index_on(self, device: torch.device) -> Int[Tensor, " tokens"]:
        """`sample_index`, on a device."""
        if device not in self._kept:
            self._kept[device] = self.sample_index.to(device)
        found: Tensor = self._kept[device]
        return found

    def spread(self, vectors: Float[Tensor, "images width"]) -> Float[Tensor, "1 tokens width"]:
        """The vector of each image, repeated for each of its tokens."""
        return vectors[self.index_on(vectors.device)][None]

    def mean(self, values: Float[Tensor, " tokens"]) -> Float[Tensor, " images"]:
        """The mean over the tokens of each image."""
        sums = torch.zeros(len(self.grids), dtype=values.dtype, device=values.device)
        sums = sums.index_add(0, self.index_on(values.device), values)
        return sums / torch.tensor(self.lengths, device=values.device)

    def all(self, flags: Tensor) -> Tensor:
        """Whether the flags of all tokens of an image are true."""
        return self.mean(flags.float()) == 1

    def chosen(self, images: Sequence[int]) -> "Packing":
        """The packing of a subset of the images, in the given order."""
        return Packing(tuple(self.grids[image] for image in images), self.blockwise)

    def in_order(self, image: Int[Tensor, " tokens"]) -> tuple[list[int], list[int]]:
        """The images that consecutive tokens belong to, image by image, and the position where each begins."""
        images, starts, place = [], [], 0
        while place < len(image):
            images.append(int(image[place]))
            starts.append(place)
            place += self.lengths[images[-1]]
        return images, starts

    def attend(self, attend: Attend, q: Heads, k: Heads, v: Heads) -> Float[Tensor, "1 tokens width"]:
        """Self-attention within each image, by `attend(q, k, v)` on batches of sequences of one length."""
        if self._blockwise(q):
            if "self" not in self._kept:
                index = self.index_on(q.device)
                self._kept["self"] = _mask(index, index, None)
            return _blockwise(q, k, v, self._kept["self"])
        parts = [each[0].split(self.lengths) for each in (q, k, v)]
        return self._by_length(lambda rows: attend(*(torch.stack([part[row] for row in rows]) for part in parts)))

    def attend_to(
        self, attend: Attend, q: Heads, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Float[Tensor, "1 tokens width"]:
        """Cross-attention of each image to its own keys and values, (images, length, heads, head_dim)."""
        if self._blockwise(q):
            length = k.shape[1]
            before, of, kept = self._kept.get("caption", (None, 0, None))
            if before is not mask or of != length:
                owner = torch.arange(len(k), device=q.device).repeat_interleave(length)
                kept = _mask(self.index_on(q.device), owner, None if mask is None else mask.flatten())
                self._kept["caption"] = mask, length, kept
            return _blockwise(q, k.flatten(0, 1)[None], v.flatten(0, 1)[None], kept)
        parts = q[0].split(self.lengths)
        return self._by_length(
            lambda rows: attend(
                torch.stack([parts[row] for row in rows]), k[rows], v[rows], None if mask is None else mask[rows]
            )
        )

    def _blockwise(self, q: Tensor) -> bool:
        return q.device.type == "cuda" if self.blockwise is None else self.blockwise

    def _by_length(self, answer: Callable[[list[int]], Tensor]) -> Tensor:
        """The answers for images of one length at a time, in the order of the images."""
        found: list[Any] = [None] * len(self.lengths)
        for length in sorted(set(self.lengths)):
            rows = [row for row, each in enumerate(self.lengths) if each == length]
            for row, each in zip(rows, answer(rows), strict=True):
                found[row] = each
        return torch.cat(found)[None]


class Unpacked:
    """The layout of a batch that is not packed, in the terms of `Packing`: every row is a sample of its own."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.sample_index, self.lengths = torch.arange(count, device=device), [1] * count

    def mean(self, values: Tensor) -> Tensor:
        return values

    def all(self, flags: Tensor) -> Tensor:
        return flags


def _mask(query_image: Tensor, key_image: Tensor, visible: Tensor | None) -> BlockMask:
    """A mask by which tokens attend to keys of the same image, where these are visible."""
    q, k, seen = query_image, key_image, visible
    # lambdas, because PyTorch counts their arguments, and type checkers of functions hide these
    attends: Any = lambda batch, head, query, key: q[query] == k[key]  # noqa: E731
    if seen is not None:
        attends = lambda batch, head, query, key: (q[query] == k[key]) & seen[key]  # noqa: E731
    return create_block_mask(attends, None, None, len(q), len(k), device=str(q.device))


def _blockwise(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    kernel = _compiled() if q.is_cuda else flex_attention
    found: Any = kernel(*(each.transpose(1, 2) for each in (q, k, v)), block_mask=mask)
    return found.transpose(1, 2).flatten(2)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def pack(latents: Sequence[Float[Tensor, "channels _height _width"]], patch: int) -> tuple[Tensor, Packing]:
    """Latents of any sizes as one packed batch: (tokens, channels, patch, patch)."""
    tokens = [_patches(each, patch) for each in latents]
    grids = tuple((each.shape[-2] // patch, each.shape[-1] // patch) for each in latents)
    return torch.cat(tokens), Packing(grids)


def unpack(tokens: Tensor, packing: Packing) -> list[Float[Tensor, "channels _height _width"]]:
    """The latents of a packed batch."""
    return [
        each.unflatten(0, grid).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        for each, grid in zip(tokens.split(packing.lengths), packing.grids, strict=True)
    ]


def _patches(latent: Tensor, patch: int) -> Tensor:
    cut = latent.unflatten(1, (-1, patch)).unflatten(3, (-1, patch))  # (C, rows, p, columns, p)
    return cut.permute(1, 3, 0, 2, 4).flatten(0, 1)
