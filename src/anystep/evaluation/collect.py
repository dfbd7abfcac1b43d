"""Images to what metrics need of them, in chunks: resumable, and shared among processes.

A chunk is a fixed number of consecutive images in a file that appears whole. Nothing in it depends on who makes it or
on the other chunks, so one process and many give the same bits, and a second call goes on where the first was stopped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anystep.data.images import from_pixels
from anystep.errors import InputError, refused
from anystep.evaluation.extractors.registry import TRIAL, FeatureExtractor, extract
from anystep.evaluation.finite import check_finite
from anystep.evaluation.image_files import is_whole_image, write_image
from anystep.evaluation.metrics.base import ImageFeatures, Images, Scorer
from anystep.evaluation.metrics.pixels import fine_energy, small_pixels
from anystep.evaluation.settings import Evaluation
from anystep.files import make_folder, write_tensors

CHUNK = 50
ALWAYS = ("features", "pixels", "fine_energy")  # in every chunk; scores are there where they were asked for


@dataclass(frozen=True)
class Cost:
    """What a chunk took: network evaluations of each image, seconds for all, megabytes at the peak of the process."""

    nfe: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0


def collect(
    evaluation: Evaluation,
    what: str,
    folder: Path,
    count: int,
    make: Callable[[range], tuple[Images, Cost]],
    captions: Sequence[str] = (),
    image_names: Sequence[str] = (),
) -> tuple[ImageFeatures, list[Cost]]:
    """What metrics need to know of `count` images, and what each chunk cost; the same in every process.

    Args:
        what: the images are, for progress and errors.
        folder: of the chunks.
        make: the images of a range of numbers.
        captions: one an image, for the scorers; without them nothing is scored.
        image_names: of the images in errors; numbers where there are none.
    """
    chunks = {
        folder / f"{place:05d}.safetensors": range(first, min(count, first + CHUNK))
        for place, first in enumerate(range(0, count, CHUNK))
    }
    ranks, keep = evaluation.ranks, evaluation.settings.keep_images
    with ranks.together():
        make_folder(folder)
        for path, chunk in list(chunks.items())[ranks.rank :: ranks.count]:
            kept = [folder / "images" / f"{number:06d}.png" for number in chunk if keep]
            if _read_chunk(path, len(chunk)) is None or not all(map(is_whole_image, kept)):
                images, cost = make(chunk)
                names = [image_names[number] if image_names else f"image {number} of {what}" for number in chunk]
                tensors = _features(evaluation, images, captions[chunk.start : chunk.stop], names)
                for image, place in zip(images, kept, strict=False):
                    write_image(from_pixels(image), place)
                write_tensors(path, tensors, {"cost": json.dumps(asdict(cost))})
            evaluation.on_images(what, len(chunk))
    return _joined(chunks, evaluation.extractor, folder)


def _features(
    evaluation: Evaluation, images: Images, captions: Sequence[str], names: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of a chunk, by what is in them. Raises `InputError` for numbers that are not finite."""
    tensors = {
        "features": extract(evaluation.extractor, [images]),
        "pixels": small_pixels(images),
        "fine_energy": fine_energy(images),
    }
    check_finite(tensors["features"], f"extractor {evaluation.extractor.name}", names)
    for scorer in evaluation.scorers if captions else ():
        tensors[scorer.name] = scorer(images, tensors["features"], captions).float().cpu()
        check_finite(tensors[scorer.name][:, None], scorer.name, names)
    return tensors


def _joined(
    chunks: Mapping[Path, range], extractor: FeatureExtractor, folder: Path
) -> tuple[ImageFeatures, list[Cost]]:
    """All chunks as one set of images, and the cost of each."""
    rows: dict[str, list[Tensor]] = {}
    costs = []
    for path, chunk in chunks.items():
        read = _read_chunk(path, len(chunk))
        if read is None:
            raise InputError(f"{path}: damaged while it was in use: the same command makes it again")
        for name, values in read[0].items():
            rows.setdefault(name, []).append(values)
        costs.append(read[1])
    if len({part.shape[1:] for part in rows["features"]}) > 1:
        raise InputError(
            f"{str(folder)!r} holds features of several widths: extractor {extractor.name} has changed, and its digest "
            "has not. Remove the folder"
        )
    channels = max(part.shape[1] for part in rows["pixels"])  # one where all of a chunk are grey
    rows["pixels"] = [part.expand(-1, channels, -1) for part in rows["pixels"]]
    joined = {name: torch.cat(parts) for name, parts in rows.items()}
    features, pixels, energy = (joined.pop(name) for name in ALWAYS)
    parts = [part.cpu() for part in map(extractor.classify, features.split(CHUNK)) if part is not None]
    logits = torch.cat(parts) if parts else None
    if logits is not None:
        check_finite(logits, f"classifier {extractor.name}", range(len(features)))
    return ImageFeatures(features, logits, joined, pixels, energy), costs


def try_scorers(scorers: Sequence[Scorer], width_of_features: int, width: int, height: int) -> None:
    """Raise `InputError`, before anything is drawn, for a scorer that cannot read such images and features."""
    images = torch.full((2, 3, height, width), 127, dtype=torch.uint8)
    for scorer in scorers:
        with refused(f"{scorer.name} cannot score images of {width}x{height}"):
            values = scorer(images, torch.zeros(2, width_of_features), ["a red apple", "a whale"])
            check_finite(values.float().cpu()[:, None], scorer.name, TRIAL)


def _read_chunk(path: Path, count: int) -> tuple[dict[str, Tensor], Cost] | None:
    """The tensors of a chunk and what it cost; None where it is not there, or not whole."""
    if not path.is_file():  # a FIFO of its name would be waited for
        return None
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            cost = Cost(**json.loads(file.metadata()["cost"]))
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        return None
    whole = tensors.keys() >= set(ALWAYS) and all(
        len(values) == count and values.isfinite().all() for values in tensors.values()
    )
    return (tensors, cost) if whole else None
