"""Damaged files of every kind that sources and prepared folders read: one line, or one example left out."""

import gzip
import io
import json
import random
import resource
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from anystep.data.encode import Encoders
from anystep.data.example import BrokenExample
from anystep.data.latents import LatentSet, LatentShards
from anystep.data.prepare import prepare
from anystep.data.sources import open_source
from anystep.errors import InputError

KINDS = {"folder": "", "classes": "classes:", "web": "shards:", "idx": "idx:", "parquet": "parquet:"}
WORDS = (b"9" * 30, b"-1", b"null", b"[[", b"{", b"\xff", b"1e999", b"NaN", b'"\\ud800"')
WHOLE = (b"", b"[]", b"{}", b"null", b"[" * 99_999, bytes(2000), b"\xff\xfe")


def same(images: Tensor) -> Tensor:
    return images


def picture(form: str = "PNG") -> bytes:
    buffer, level = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(level).save(buffer, form)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one of each kind, whole."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    root = tmp_path_factory.mktemp("sound")
    for name in ("folder", "classes/a", "web", "idx", "parquet"):
        (root / name).mkdir(parents=True)
    for place, form in enumerate(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")):
        for folder in ("folder", "classes/a"):
            (root / folder / f"{place}.{form.lower()}").write_bytes(picture(form))
        (root / "folder" / f"{place}.txt").write_text("a thing")
    rows = [{"file_name": "0.png", "text": "x"}, {"file_name": "1.jpeg", "captions": ["a", "b"]}]
    (root / "folder" / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with tarfile.open(root / "web" / "0.tar", "w") as tar:
        for n in range(4):
            for name, content in (("png", picture()), ("txt", b"a cat"), ("cls", b"1"), ("json", b'{"caption": "x"}')):
                entry = tarfile.TarInfo(f"a{n}.{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    (root / "idx" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((3, 8, 8), np.uint8))))
    (root / "idx" / "train-labels-idx1-ubyte").write_bytes(idx(np.array([1, 2, 3], np.uint8)))
    table = pa.table({"image": [picture()] * 4, "label": [0, 1, 2, 1], "text": ["a"] * 4})
    parquet.write_table(table, root / "parquet" / "train-0.parquet", row_group_size=2)
    prepare(open_source(str(root / "folder"), 8), root / "made", Encoders(same, {}), shard_size=2)
    return root


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut, changed, longer or shorter in the middle, with other words in it, or something else altogether."""
    at, some = rng.randrange(len(content) + 1), rng.randrange(1, 600)
    match rng.randrange(6):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + rng.randbytes(some) + content[at:]
        case 2:
            return content[:at] + content[at + some :]
        case 3:
            return content[:at] + rng.choice((b"\xff", b"\0", b"\x7f")) * 8 + content[at + 8 :]
        case 4:
            old = rng.choice((b"1", b"0", b"[", b'"', b"a"))
            return content.replace(old, rng.choice(WORDS), rng.randrange(1, 3))
    return rng.choice((*WHOLE, content + content))


def read(kind: str, sound: Path, folder: Path) -> None:
    if kind == "prepare":
        source = open_source(str(sound / "folder"), 8)
        prepare(source, folder, Encoders(same, {}), shard_size=2, on_note=lambda line: None)
    elif kind == "made":
        shards = LatentShards(str(folder))
        LatentSet([shards], native=True).read(range(len(shards)))
    else:
        source = open_source(f"{KINDS[kind]}{folder}", 8)
        for number in range(len(source)):
            source.stamp(number), source.digest(number)  # type: ignore[attr-defined]
            try:
                source[number]
            except BrokenExample:
                continue


def held_up(sound: Path, folder: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    refused = 0
    for _ in range(count):
        kind = rng.choice((*KINDS, "made", "made", "prepare"))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound / {"prepare": "made"}.get(kind, kind), folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
        for path in rng.sample(files, min(len(files), rng.choice((1, 1, 2)))):
            path.write_bytes(damaged(path.read_bytes(), rng))
        try:
            read(kind, sound, folder)
        except InputError:
            refused += 1
    assert 0 < refused < count


def test_damaged_files_are_one_line_or_one_example_left_out(sound: Path, tmp_path: Path) -> None:
    held_up(sound, tmp_path / "folder", 0, 80)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_damaged_files_are_one_line_in_little_memory(sound: Path, tmp_path: Path, seed: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held_up(sound, tmp_path / "folder", seed, 2000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # kilobytes
