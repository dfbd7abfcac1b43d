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
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anystep.errors import InputError
from anystep.evaluation.extractors.registry import TRIAL, FeatureExtractor, extract
from anystep.evaluation.finite import check_finite
from anystep.evaluation.metrics.base import Images, Observed
from anystep.evaluation.metrics.pixels import fine_energy, small_pixels
from anystep.files import make_folder, replacing, write_tensors
from anystep.ranks import Ranks

CHUNK = 50
SEEN = ("features", "pixels", "fine_energy")  # of every image, whatever is asked


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
    called: Callable[[int], str] = lambda number: f"image {number}",
) -> tuple[Observed, list[Cost]]:
    """What metrics need of `count` images, and what each chunk cost; the same in every process.

    Args:
        folder: of the chunks.
        make: the images of a range of numbers.
        called: the name of an image, for what is wrong with it.
        captions: one an image, for the scorers.
        keep: also write the images, as PNG files in `folder / "images"`.
        on_images: told of every image done or found done.
    """
    paths = [folder / f"{number:05d}.safetensors" for number in range(-(-count // CHUNK))]
    with ranks.together():
        make_folder(folder)
        for number, path in enumerate(paths):
            if number % ranks.count != ranks.rank:
                continue
            chunk = range(number * CHUNK, min(count, (number + 1) * CHUNK))
            if _read_chunk(path, len(chunk)) is None or (keep and not _images_whole(folder / "images", chunk)):
                images, cost = make(chunk)
                tensors = {
                    "features": extract(extractor, [images]),
                    "pixels": small_pixels(images),
                    "fine_energy": fine_energy(images),
                }
                names = [called(index) for index in chunk]
                check_finite(tensors["features"], f"extractor {extractor.name}", names)
                for scorer in scorers:
                    mine = [captions[index] for index in chunk]
                    tensors[scorer.name] = scorer(images, tensors["features"], mine).float().cpu()
                    check_finite(tensors[scorer.name][:, None], scorer.name, names)
                if keep:
                    _write_images(images, folder / "images", chunk)
                write_tensors(path, tensors, {"cost": json.dumps(asdict(cost))})
            on_images(len(chunk))

    rows: dict[str, list[Tensor]] = {}
    costs = []
    for number, path in enumerate(paths):
        read = _read_chunk(path, min(count - number * CHUNK, CHUNK))
        if read is None:
            raise InputError(f"{path}: damaged while it was in use: the same command makes it again")
        for name, values in read[0].items():
            rows.setdefault(name, []).append(values)
        costs.append(read[1])
    channels = max(part.shape[1] for part in rows["pixels"])  # one where all of a chunk are grey
    rows["pixels"] = [part.expand(-1, channels, -1) for part in rows["pixels"]]
    joined = {name: torch.cat(parts) for name, parts in rows.items()}
    features, pixels, energy = (joined.pop(name) for name in SEEN)
    logits = [extractor.classify(part) for part in features.split(CHUNK)]
    known = [part.cpu() for part in logits if part is not None]
    if known:
        check_finite(torch.cat(known), f"classifier {extractor.name}", range(count))
    return Observed(features, torch.cat(known) if known else None, joined, pixels, energy), costs


def try_scorers(scorers: Sequence[Scorer], width_of_features: int, width: int, height: int) -> None:
    """Raise `InputError`, before anything is drawn, for a scorer that cannot read such images and features."""
    images = torch.full((2, 3, height, width), 127, dtype=torch.uint8)
    for scorer in scorers:
        try:
            values = scorer(images, torch.zeros(2, width_of_features), ["a red apple", "a whale"])
            check_finite(values.float().cpu()[:, None], scorer.name, TRIAL)
        except InputError:
            raise
        except Exception as error:  # whatever a model of transformers raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{scorer.name} cannot score images of {width}x{height}: {reason}") from None


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
    whole = tensors.keys() >= set(SEEN) and all(
        len(values) == count and values.isfinite().all() for values in tensors.values()
    )
    return (tensors, cost) if whole else None


def _images_whole(folder: Path, chunk: range) -> bool:
    return all(is_whole_image(folder / _image_name(number)) for number in chunk)


def is_whole_image(path: Path) -> bool:
    """Whether a PNG of ours is there and was not cut off: its parts carry sums of themselves. JPEG has none."""
    from PIL import Image

    if not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            image.verify()
        if path.suffix != ".png":
            with Image.open(path) as image:
                image.load()
    except OSError as error:
        if error.errno is not None:  # no more files may be opened, or the like: no damage
            raise
        return False
    except Exception:  # decoders meet damage with exceptions of every type
        return False
    return True


def _image_name(number: int) -> str:
    return f"{number:06d}.png"


def _write_images(images: Images, folder: Path, numbers: range) -> None:
    from PIL import Image

    make_folder(folder)
    for image, number in zip(images, numbers, strict=True):
        with replacing(folder / _image_name(number)) as part:
            Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(part, "PNG")
