"""ImageNet samples in the `.npz` that ADM's evaluator reads (arXiv 2105.05233): `arr_0` the images, `arr_1` the labels.

Images are made in chunks that appear whole, so that a run of 50,000 resumes, and are put together without ever holding
them all.
"""

import shutil
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from anystep.data.npy import to_npy
from anystep.errors import InputError
from anystep.evaluation.evaluate import generate_images
from anystep.evaluation.settings import GenerationSettings
from anystep.files import make_folder, read_json, replacing, write_json
from anystep.pipelines.load import Model
from anystep.ranks import Ranks
from anystep.seeds import generator_of

CHUNK = 64
SECONDS = "seconds.json"  # beside the samples: what drawing them took


def draw_labels(count: int, classes: int, kind: Literal["balanced", "random"], seed: int = 0) -> list[int]:
    """`balanced` goes through the classes in turn, so that each is as often as any other, or once more."""
    if kind == "balanced":
        return [number % classes for number in range(count)]
    return torch.randint(classes, (count,), generator=generator_of(seed)).tolist()


def read_points(report: Path) -> dict[int, dict[str, Any]]:
    """What an earlier call reported, by number of steps; nothing where that is damaged, which costs a clock only."""
    try:
        return {point["steps"]: point for point in read_json(report)["points"]}
    except (InputError, KeyError, TypeError):
        return {}


def read_seconds(path: Path) -> float | None:
    """What drawing took; None where an earlier version has not kept it, or it is damaged, which costs a clock only."""
    with suppress(InputError, KeyError, TypeError, ValueError):
        return float(read_json(path)["seconds"])
    return None


def write_seconds(path: Path, seconds: float | None) -> None:
    """None where nobody knows any more."""
    write_json(path, {"seconds": seconds})


def is_whole(archive: Path, count: int, side: int) -> bool:
    """Whether the samples are there and were not cut off."""
    if not archive.is_file():
        return False
    try:
        with zipfile.ZipFile(archive) as content:
            sizes = {each.filename: each.file_size for each in content.infolist()}
    except (OSError, zipfile.BadZipFile):
        return False
    return sizes.get("arr_0.npy", 0) > count * side * side * 3 and "arr_1.npy" in sizes


def _is_whole_chunk(path: Path, shape: tuple[int, ...]) -> bool:
    if not path.is_file():
        return False
    try:
        return bool(np.load(path, mmap_mode="r").shape == shape)
    except (OSError, ValueError, EOFError):
        return False


def sample_imagenet(
    model: Model,
    folder: Path,
    labels: list[int],
    steps: int,
    settings: GenerationSettings,
    ranks: Ranks,
    on_images: Callable[[int], None] = lambda images: None,
) -> Path:
    """Write the `.npz` of samples, image `i` with seed `settings.seed + i` and class `labels[i]`; return its path.

    The seconds that all of them took are beside it, however often it was interrupted.
    """
    side = model.pipeline.base_size
    target = folder / f"samples_{len(labels)}x{side}x{side}x3.npz"
    chunks = folder / "chunks"
    if any(ranks.all_gather_object(is_whole(target, len(labels), side))):
        if ranks.is_main:
            shutil.rmtree(chunks, ignore_errors=True)  # of a process that was killed when it had just put them together
        on_images(len(labels) // ranks.count)
        return target
    make_folder(chunks)
    paths = [chunks / f"{number:06d}.npy" for number in range(-(-len(labels) // CHUNK))]
    with ranks.together():
        for number in range(ranks.rank, len(paths), ranks.count):
            rows = range(number * CHUNK, min(len(labels), (number + 1) * CHUNK))
            if not _is_whole_chunk(paths[number], (len(rows), side, side, 3)):
                begin = time.perf_counter()
                images, _ = generate_images(model, labels, rows, steps, settings)
                write_seconds(paths[number].with_suffix(".json"), time.perf_counter() - begin)
                with replacing(paths[number], durable=True) as part:
                    part.write_bytes(to_npy(images.permute(0, 2, 3, 1).numpy()))  # numpy's own loses a Ctrl-C
            on_images(len(rows))

    def finish() -> None:
        write_seconds(folder / SECONDS, sum(read_seconds(path.with_suffix(".json")) or 0.0 for path in paths))
        join(paths, labels, (side, side), target)
        shutil.rmtree(chunks)

    ranks.on_main(finish)
    return target


def join(paths: list[Path], labels: list[int], size: tuple[int, int], target: Path) -> None:
    """The chunks one after the other as `arr_0`, read one at a time."""
    shape = (len(labels), *size, 3)
    with (
        replacing(target, durable=True) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for path in paths:
                file.write(np.ascontiguousarray(np.load(path)).tobytes())
        with archive.open("arr_1.npy", "w") as file:
            np.save(file, np.array(labels, dtype=np.int64))
