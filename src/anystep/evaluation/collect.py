"""Images to what metrics need of them, in chunks: resumable, and shared among processes.

A chunk is a fixed number of consecutive images in a file that appears whole. Nothing in it depends on who makes it or
on the other chunks, so one process and many give the same bits, and a second call goes on where the first was stopped.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from anystep.errors import InputError
from anystep.evaluation.features import FeatureExtractor, extract
from anystep.evaluation.metric import Observed
from anystep.files import replacing
from anystep.ranks import Ranks

CHUNK = 50
Images = UInt8[Tensor, "batch 3 height width"]


@runtime_checkable
class Scorer(Protocol):
    """A number for each image and its caption, under a name of its own.

    `note` says what to know before reading it, `digest` tells one set of weights from another.
    """

    name: str

    @property
    def note(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def __call__(
        self, images: Images, features: Float[Tensor, "batch features"], captions: Sequence[str]
    ) -> Float[Tensor, " batch"]: ...


@dataclass(frozen=True)
class Cost:
    """What a chunk took: network evaluations of each image, seconds for all, megabytes at the peak of the process."""

    nfe: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0


def collect(
    folder: Path,
    count: int,
    make: Callable[[range], tuple[Images, Cost]],
    extractor: FeatureExtractor,
    ranks: Ranks,
    scorers: Sequence[Scorer] = (),
    captions: Sequence[str] = (),
    keep: bool = False,
    on_images: Callable[[int], None] = lambda images: None,
) -> tuple[Observed, list[Cost]]:
    """What metrics need of `count` images, and what each chunk cost; the same in every process.

    Args:
        folder: of the chunks.
        make: the images of a range of numbers.
        captions: one an image, for the scorers.
        keep: also write the images, as PNG files in `folder / "images"`.
        on_images: told of every image done or found done.
    """
    paths = [folder / f"{number:05d}.safetensors" for number in range(-(-count // CHUNK))]
    folder.mkdir(parents=True, exist_ok=True)
    problem = ""
    try:
        for number, path in enumerate(paths):
            if number % ranks.count != ranks.rank:
                continue
            chunk = range(number * CHUNK, min(count, (number + 1) * CHUNK))
            if not _done(path, folder / "images" if keep else None, chunk):
                images, cost = make(chunk)
                features = extract(extractor, [images])
                tensors = {"features": features}
                for scorer in scorers:
                    mine = [captions[index] for index in chunk]
                    tensors[scorer.name] = scorer(images, features, mine).float().cpu()
                if keep:
                    _write_images(images, folder / "images", chunk)
                with replacing(path) as part:
                    save_file(tensors, part, metadata={"cost": json.dumps(asdict(cost))})
            on_images(len(chunk))
    except InputError as error:  # all processes must hear of it, or they wait for this one
        problem = str(error)
    problems = [each for each in ranks.tell(problem) if each]
    if problems:
        raise InputError(problems[0])

    rows: dict[str, list[Tensor]] = {}
    costs = []
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                rows.setdefault(name, []).append(file.get_tensor(name))
            costs.append(Cost(**json.loads(file.metadata()["cost"])))
    joined = {name: torch.cat(parts) for name, parts in rows.items()}
    features = joined.pop("features")
    logits = [extractor.classify(part) for part in features.split(CHUNK)]
    known = [part.cpu() for part in logits if part is not None]
    return Observed(features, torch.cat(known) if known else None, joined), costs


def _done(path: Path, images: Path | None, chunk: range) -> bool:
    """Whether a chunk is there and whole, with its images if they are wanted."""
    if images is not None and not all((images / _image_name(number)).exists() for number in chunk):
        return False
    try:
        with safe_open(path, "pt") as file:
            return "cost" in file.metadata()
    except (OSError, SafetensorError):
        return False


def _image_name(number: int) -> str:
    return f"{number:06d}.png"


def _write_images(images: Images, folder: Path, numbers: range) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for image, number in zip(images, numbers, strict=True):
        with replacing(folder / _image_name(number)) as part:
            Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(part, "PNG")
