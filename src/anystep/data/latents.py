"""A source encoded once: latents, captions and labels of every readable example."""

from collections.abc import Callable
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
    """

    latents: Float[Tensor, "examples channels height width"]
    captions: list[tuple[str, ...]]
    labels: list[int]
    class_names: list[str]
    broken: list[str]

    def __len__(self) -> int:
        return len(self.latents)


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
    return LatentSet(latents, captions, labels, list(source.class_names), broken)


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
