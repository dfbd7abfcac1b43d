"""MJHQ-30K (arXiv 2402.17245): FID and CLIP score on high-quality images of ten categories.

`meta_data.json` maps an id to its category and prompt; images are `CATEGORY/ID.jpg`, real and generated alike.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from anystep.bounds import shown
from anystep.codecs import to_uint8
from anystep.data.images import to_tensor
from anystep.errors import InputError
from anystep.evaluation.benchmarks.generate import Order, digest, open_image
from anystep.evaluation.collect import Cost, Images, Scorer, collect
from anystep.evaluation.extractors.registry import FeatureExtractor
from anystep.evaluation.metrics.base import Observed, interval, measure
from anystep.evaluation.metrics.frechet_distance import FrechetDistance
from anystep.evaluation.metrics.registry import MeanScore
from anystep.files import check_names, check_regular, read_json
from anystep.ranks import Ranks


def read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """By id. Raises InputError: not such a file, or ids and categories that cannot be names of files."""
    content = read_json(path)
    if not content:
        raise InputError(f"{path}: expected an object of id -> category and prompt")
    for name, entry in content.items():
        prompt = entry.get("prompt") if isinstance(entry, dict) else None
        if not isinstance(prompt, str) or not prompt.strip() or not isinstance(entry.get("category"), str):
            raise InputError(f"{path}: {shown(name)}: expected a category and a prompt, both text, got {shown(entry)}")
    check_names(((entry["category"], name) for name, entry in content.items()), f"{path}: the name")
    return content


def image_path(folder: Path, name: str, entry: Mapping[str, Any], suffix: str = ".jpg") -> Path:
    return folder / entry["category"] / f"{name}{suffix}"


def orders(entries: Mapping[str, Mapping[str, Any]], folder: Path, seed: int = 0) -> list[Order]:
    """One image of each prompt, as PNG: compression would be measured too."""
    return [
        Order(image_path(folder, name, entry, ".png"), entry["prompt"], seed + number)
        for number, (name, entry) in enumerate(entries.items())
    ]


def check_real(real: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InputError for real images that are not there, or too few."""
    if len(entries) < FrechetDistance.least:
        raise InputError(f"{len(entries)} images: the Fréchet distance needs at least {FrechetDistance.least}")
    if not real.is_dir():
        raise InputError(f"real images {str(real)!r}: no such folder")
    paths = [image_path(real, name, entry) for name, entry in entries.items()]
    if missing := [path for path in paths if not path.exists()]:
        raise InputError(f"{len(missing)} of {len(entries)} real images are missing, for example {missing[0]}")
    for path in paths:
        check_regular(path)
        try:
            with Image.open(path):
                pass
        except Exception:  # decoders meet damage with exceptions of every type
            raise InputError(f"{path}: not an image that can be read") from None


def score(
    folder: Path,
    real: Path,
    entries: Mapping[str, Mapping[str, Any]],
    extractor: FeatureExtractor,
    work: Path,
    scorers: Sequence[Scorer] = (),
    ranks: Ranks | None = None,
) -> dict[str, dict[str, float]]:
    """The Fréchet distance over all images and in each category, and the mean of each scorer.

    Args:
        folder: of generated images, PNG or, as published, JPEG.
        work: a folder for features, kept for the next time.

    Raises:
        InputError: an image that is missing or damaged, or generated images of several sizes.
    """
    names = list(entries)
    ending = next(
        (end for end in (".png", ".jpg") if image_path(folder, names[0], entries[names[0]], end).exists()), ".png"
    )
    size = open_image(image_path(folder, names[0], entries[names[0]], ending)).size
    captions = [entries[name]["prompt"] for name in names]

    def make(place: Path, suffix: str, fit: bool) -> Callable[[range], tuple[Images, Cost]]:
        def read(chunk: range) -> tuple[Images, Cost]:
            pictures = []
            for number in chunk:
                path = image_path(place, names[number], entries[names[number]], suffix)
                picture = open_image(path)
                if not fit and picture.size != size:
                    raise InputError(f"{path}: {picture.width}x{picture.height}, others are {size[0]}x{size[1]}")
                pictures.append(ImageOps.fit(picture, size, Image.Resampling.LANCZOS) if fit else picture)
            return to_uint8(torch.stack([to_tensor(picture) for picture in pictures])), Cost()

        return read

    ranks = ranks or Ranks()

    def features_of(place: Path, suffix: str, fit: bool, scored: Sequence[Scorer]) -> Observed:
        paths = [image_path(place, name, entries[name], suffix) for name in names]
        stamps = [(str(path.resolve()), path.stat().st_mtime_ns if path.exists() else 0) for path in paths]
        told = [extractor.name, extractor.digest, size, stamps, [(each.name, each.digest) for each in scored], captions]
        return collect(
            work / digest(told), len(names), make(place, suffix, fit), extractor, ranks, scored, captions,
            called=lambda number: str(paths[number]),
        )[0]  # fmt: skip

    reals, made = features_of(real, ".jpg", True, ()), features_of(folder, ending, False, scorers)
    metric = FrechetDistance()
    scores = {}
    categories = [entries[name]["category"] for name in names]
    for group in ["overall", *sorted(set(categories))]:
        rows = torch.tensor([group in ("overall", category) for category in categories])
        if int(rows.sum()) < metric.least:
            continue
        one, other = Observed(reals.features[rows]), Observed(made.features[rows])
        scores[f"{metric.name}_{extractor.name} {group}"] = vars(interval(measure(metric, one, other)))
    for scorer in scorers:
        scores[scorer.name] = vars(interval(measure(MeanScore(scorer.name), reals, made)))
    return scores
