"""Prompts to image files in a benchmark's layout: resumable, and shared among processes."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from anystep.errors import InputError
from anystep.evaluation.image_files import is_whole_image, write_image
from anystep.evaluation.settings import GenerationSettings
from anystep.files import check_settings, read_json, remove_parts, write_json
from anystep.fingerprint import text_digest
from anystep.pipelines.image_model import ImageModel
from anystep.ranks import Ranks


@dataclass(frozen=True)
class GenerationRequest:
    """One image to generate: its file, its prompt, its seed, and its size (that of all images when None)."""

    path: Path
    prompt: str | int
    seed: int
    size: tuple[int, int] | None = None


def made_before(out: Path) -> tuple[str, ...]:
    """What tells a benchmark's folder of the time before folders were marked: its settings, or a report of scores."""
    for name, keys in (("settings.json", {"benchmark", "model", "prompts"}), ("report.json", {"benchmark", "points"})):
        with suppress(InputError):
            if keys <= read_json(out / name).keys():
                return (name,)
    return ()


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """Write down what the images in `out` are made with.

    Raises `InputError`: images that were made with something else are there, or nobody knows with what.
    """
    path = out / "settings.json"
    try:
        # images that nothing is known of may be of anything
        known = read_json(path) if path.exists() else {} if any(out.glob("steps-*")) else settings
    except InputError:
        raise InputError(
            f"{path}: damaged, so nobody knows what the images beside it are: choose another --out"
        ) from None
    # the folders of earlier versions do not tell it
    check_settings(out, "images that differ", known, settings, lambda name: name == "dtype" and name not in known)
    write_json(path, settings)
    remove_parts(out)


def digest(content: Any) -> str:
    """Of prompts and the like, short."""
    return text_digest(json.dumps(content, default=str))


def steps_folder(out: Path, steps: int) -> Path:
    """Of the images of one number of steps."""
    return out / f"steps-{steps:03d}"


def generate_missing(
    model: ImageModel,
    requests: Sequence[GenerationRequest],
    steps: int,
    settings: GenerationSettings,
    ranks: Ranks,
    on_images: Callable[[int], None] = lambda images: None,
) -> None:
    """Generate every image that is not there yet.

    Batches are the same whoever makes them and whatever is there already: other batch mates change last bits.
    """
    by_size: dict[tuple[int, int] | None, list[GenerationRequest]] = {}
    for request in requests:
        by_size.setdefault(request.size or settings.size, []).append(request)
    batches = [
        (size, alike[start : start + settings.batch])
        for size, alike in by_size.items()
        for start in range(0, len(alike), settings.batch)
    ]
    with ranks.together():
        for size, batch in batches[ranks.rank :: ranks.count]:
            missing = [not is_whole_image(request.path) for request in batch]
            if any(missing):
                prompts, seeds = [request.prompt for request in batch], [request.seed for request in batch]
                generated = model.generate(prompts, steps, seeds, size, settings.guidance, plan=settings.plan)
                for request, image in compress(zip(batch, generated.images, strict=True), missing):
                    write_image(image, request.path)
            on_images(len(batch))
