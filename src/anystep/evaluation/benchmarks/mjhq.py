"""MJHQ-30K (arXiv 2402.17245): FID and CLIP score on high-quality images of ten categories.

`meta_data.json` maps an id to its category and prompt; images are `CATEGORY/ID.jpg`, real and generated alike.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from anystep.bounds import shown
from anystep.data.images import to_pixels
from anystep.errors import InputError
from anystep.evaluation.benchmarks.generate import GenerationRequest, digest
from anystep.evaluation.collect import Cost, collect
from anystep.evaluation.image_files import file_stamp, image_header, open_image
from anystep.evaluation.metrics.base import ImageFeatures, Images, interval, measure
from anystep.evaluation.metrics.frechet_distance import FrechetDistance
from anystep.evaluation.metrics.registry import MeanScore
from anystep.evaluation.settings import Evaluation
from anystep.files import check_names, read_json


def read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """The entries by id. Raises InputError: not such a file, or ids and categories that cannot be names of files."""
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


def generation_requests(
    entries: Mapping[str, Mapping[str, Any]], folder: Path, seed: int = 0
) -> list[GenerationRequest]:
    """One image of each prompt, as PNG: compression would be measured too."""
    return [
        GenerationRequest(image_path(folder, name, entry, ".png"), entry["prompt"], seed + number)
        for number, (name, entry) in enumerate(entries.items())
    ]


def check_real(real: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InputError for real images that are not there, or too few."""
    if len(entries) < FrechetDistance.min_images:
        raise InputError(f"{len(entries)} images: the Fréchet distance needs at least {FrechetDistance.min_images}")
    if not real.is_dir():
        raise InputError(f"real images {str(real)!r}: no such folder")
    paths = [image_path(real, name, entry) for name, entry in entries.items()]
    if missing := [path for path in paths if not path.exists()]:
        raise InputError(f"{len(missing)} of {len(entries)} real images are missing, for example {missing[0]}")
    for path in paths:
        image_header(path)


def score(
    folder: Path, real: Path, entries: Mapping[str, Mapping[str, Any]], evaluation: Evaluation
) -> dict[str, dict[str, float]]:
    """The Fréchet distance over all images and in each category, and the mean of each scorer.

    Args:
        folder: of generated images, PNG or, as published, JPEG.
        evaluation: its extractor and scorers serve; its folder keeps features for the next time.

    Raises:
        InputError: an image that is missing or damaged, or generated images of several sizes.
    """
    first = next(iter(entries.items()))
    ending = next((end for end in (".png", ".jpg") if image_path(folder, *first, end).exists()), ".png")
    size = open_image(image_path(folder, *first, ending)).size
    reals = _features(replace(evaluation, scorers=()), real, entries, ".jpg", size, fit=True)
    generated = _features(evaluation, folder, entries, ending, size)
    metric, scores = FrechetDistance(), {}
    categories = [entry["category"] for entry in entries.values()]
    for group in ["overall", *sorted(set(categories))]:
        rows = torch.tensor([group in ("overall", category) for category in categories])
        if int(rows.sum()) < metric.min_images:
            continue
        one, other = ImageFeatures(reals.features[rows]), ImageFeatures(generated.features[rows])
        scores[f"{evaluation.metric_name(metric)} {group}"] = vars(interval(measure(metric, one, other)))
    for scorer in evaluation.scorers:
        scores[scorer.name] = vars(interval(measure(MeanScore(scorer.name), reals, generated)))
    return scores


def _features(
    evaluation: Evaluation,
    folder: Path,
    entries: Mapping[str, Mapping[str, Any]],
    suffix: str,
    size: tuple[int, int],
    fit: bool = False,
) -> ImageFeatures:
    """The images of all prompts, in their order; `fit` resizes those of another size, which are refused without it."""
    paths = [image_path(folder, name, entry, suffix) for name, entry in entries.items()]
    captions = [entry["prompt"] for entry in entries.values()]

    def read(path: Path) -> UInt8[Tensor, "3 height width"]:
        image = open_image(path)
        if not fit and image.size != size:
            raise InputError(f"{path}: {image.width}x{image.height}, others are {size[0]}x{size[1]}")
        return to_pixels(ImageOps.fit(image, size, Image.Resampling.LANCZOS) if fit else image)

    def make(chunk: range) -> tuple[Images, Cost]:
        return torch.stack([read(path) for path in paths[chunk.start : chunk.stop]]), Cost()

    extractor, scorers = evaluation.extractor, [(each.name, each.digest) for each in evaluation.scorers]
    stamps = [file_stamp(path) for path in paths]
    chunks = evaluation.settings.out / digest([extractor.name, extractor.digest, size, stamps, scorers, captions])
    return collect(evaluation, str(folder), chunks, len(paths), make, captions, list(map(str, paths)))[0]
