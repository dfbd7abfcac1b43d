"""Sources of images: folders, class folders, tar, Parquet and IDX files."""

import gzip
import io
import json
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from areas.area import Area, make_captions, make_classes, picture, png


def read_source(spec: str) -> None:
    """As preparation does: some examples, and what tells that they changed."""
    from anystep.data.example import BrokenExample
    from anystep.data.sources import open_source

    source = open_source(spec, 16)
    for index in range(min(len(source), 8)):
        try:
            source[index]
            for name in ("stamp", "digest"):
                if hasattr(source, name):
                    getattr(source, name)(index)
        except BrokenExample:
            pass


def source(prefix: str) -> Callable[[Path, Path, random.Random], None]:
    def act(folder: Path, out: Path, rng: random.Random) -> None:
        read_source(f"{prefix}{folder}")

    return act


def make_images(folder: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for form in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm", "ico", "tga", "dds", "jp2"):
        try:
            picture().save(folder / f"{form}.{form}", icc_profile=profile)
        except (OSError, KeyError, ValueError):
            picture().save(folder / f"{form}.{form}")
    picture().convert("P").save(folder / "palette.png", transparency=0)
    frames = [picture(shade=n) for n in (0, 99)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    for path in [*folder.iterdir()]:
        path.with_suffix(".txt").write_text("a thing\n")


def make_lines(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    rows = [{"file_name": f"{number}.png", "text": "a cat", "captions": ["x", "y"]} for number in range(3)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_tar(folder: Path) -> None:
    for shard in range(2):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as file:
            for number in range(3):
                about = json.dumps({"caption": "a cat", "label": number}).encode()
                for suffix, content in (("png", png(number)), ("txt", b"a dog\n"), ("json", about), ("cls", b"1")):
                    info = tarfile.TarInfo(f"{shard}{number}.{suffix}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    (folder / "classes.txt").write_text("one\ntwo\nthree\n")


def make_parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows: dict[str, Any] = {
        "image": [{"bytes": png(number), "path": f"{number}.png"} for number in range(4)],
        "text": ["a cat", "a dog", "", "é"],
        "label": [0, 1, 0, 1],
    }
    for part in range(2):
        pyarrow.parquet.write_table(pyarrow.table(rows), folder / f"train-{part}.parquet")


def make_idx(folder: Path) -> None:
    pixels = struct.pack(">IIII", 2051, 5, 8, 8) + bytes(range(64)) * 5
    labels = struct.pack(">II", 2049, 5) + bytes([0, 1, 2, 1, 0])
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)


AREAS = {
    "images": Area(make_images, source(""), 3),
    "captions": Area(make_captions, source(""), 2),
    "JSON lines": Area(make_lines, source(""), 2),
    "class folders": Area(make_classes, source("classes:"), 1),
    "tar": Area(make_tar, source("shards:"), 3, own=True),
    "Parquet": Area(make_parquet, source("parquet:"), 2),
    "IDX": Area(make_idx, source("idx:"), 2),
}
