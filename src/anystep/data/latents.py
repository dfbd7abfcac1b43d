"""A source encoded once: latents, captions and labels of every readable example."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from anystep.atomic import replacing
from anystep.data.example import BrokenExample, Source
from anystep.data.images import to_tensor
from anystep.errors import InputError

BATCH = 32


@dataclass(frozen=True)
class LatentSet:
    """What training reads.

    Attributes:
        latents: of the readable examples, all of one shape.
        captions: of each of them; empty tuples for class-conditional data.
        labels: of each, -1 without.
        class_names: of the source.
        broken: why each unreadable example was skipped.
        sizes: how many examples each source gave, in the order they lie in.
    """

    latents: Float[Tensor, "examples channels height width"]
    captions: list[tuple[str, ...]]
    labels: list[int]
    class_names: list[str]
    broken: list[str]
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.latents)


def join(sets: Sequence[LatentSet]) -> LatentSet:
    """Several sets end to end.

    Raises:
        InputError: latents of different shapes, or sets of classes: their labels would mean different things.
    """
    if len(sets) == 1:
        return sets[0]
    shapes = {tuple(each.latents.shape[1:]) for each in sets}
    if len(shapes) > 1:
        raise InputError(f"sources with latents of different shapes cannot be mixed: {sorted(shapes)}")
    if not all(any(each.captions) for each in sets):
        raise InputError("sources without captions cannot be mixed: the labels of one are not those of another")
    return LatentSet(
        torch.cat([each.latents for each in sets]),
        [captions for each in sets for captions in each.captions],
        [label for each in sets for label in each.labels],
        sorted({name for each in sets for name in each.class_names}),
        [reason for each in sets for reason in each.broken],
        [size for each in sets for size in each.sizes],
    )


def encode_source(
    source: Source,
    encode: Callable[[Tensor], Tensor],
    path: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatentSet:
    """Encode every example, or read `path` if it was written before. Unreadable examples are skipped and named.

    Args:
        encode: images (batch, 3, height, width) in [-1, 1] to latents.
        path: a `.safetensors` file; written under a temporary name and renamed.

    Raises:
        InputError: no example can be read.
    """
    if not path.exists():
        _encode(source, encode, path, on_progress)
    with safe_open(path, "pt") as file:
        latents, labels = file.get_tensor("latents"), file.get_tensor("labels").tolist()
        metadata = file.metadata()
    captions = [tuple(line.split("\x1f")) if line else () for line in metadata["captions"].split("\x1e")]
    broken = metadata["broken"].split("\x1e") if metadata["broken"] else []
    return LatentSet(latents, captions, labels, list(source.class_names), broken, [len(latents)])


def _encode(
    source: Source, encode: Callable[[Tensor], Tensor], path: Path, on_progress: Callable[[int, int], None]
) -> None:
    latents: list[Tensor] = []
    waiting: list[Tensor] = []
    captions: list[str] = []
    labels: list[int] = []
    broken: list[str] = []
    for index in range(len(source)):
        try:
            example = source[index]
            waiting.append(to_tensor(example.image))
            captions.append("\x1f".join(example.captions))
            labels.append(-1 if example.label is None else example.label)
        except BrokenExample as error:
            broken.append(str(error))
        if len(waiting) == BATCH or (waiting and index + 1 == len(source)):
            latents.append(encode(torch.stack(waiting)).float().cpu())
            waiting.clear()
            on_progress(index + 1, len(source))
    if not labels:
        raise InputError(
            f"no example could be read; the first failure: {broken[0] if broken else 'the source is empty'}"
        )
    with replacing(path) as part:
        save_file(
            {"latents": torch.cat(latents), "labels": torch.tensor(labels)},
            part,
            metadata={"captions": "\x1e".join(captions), "broken": "\x1e".join(broken)},
        )
