"""MNIST's file format."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from anystep.data.idx import IdxSource, read_idx
from anystep.errors import InputError

IMAGES = np.arange(3 * 28 * 28, dtype=np.uint32).reshape(3, 28, 28).astype(np.uint8)
LABELS = np.array([7, 0, 9], np.uint8)


def encode(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def put(folder: Path, prefix: str = "train", mark: str = "-", packed: str = "", labels: np.ndarray = LABELS) -> Path:
    folder.mkdir(exist_ok=True)
    for kind, array in (("images", IMAGES), ("labels", labels)):
        content = encode(array)
        path = folder / f"{prefix}-{kind}{mark}idx{array.ndim}-ubyte{packed}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("mark", "-.")
def test_reads_every_spelling(tmp_path: Path, mark: str, packed: str) -> None:
    source = IdxSource(put(tmp_path / "mnist", "train", mark, packed))
    assert len(source) == 3
    assert [example.label for example in source] == [7, 0, 9]
    assert [example.key for example in source] == ["train-00000", "train-00001", "train-00002"]
    assert source[1].captions == ()
    assert source[1].image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(source[1].image), IMAGES[1][..., None].repeat(3, -1))
    with pytest.raises(IndexError):
        source[3]


def test_split_and_size(tmp_path: Path) -> None:
    put(tmp_path / "mnist", "t10k")
    source = IdxSource(tmp_path / "mnist", "test", 32)
    assert source[0].image.size == (32, 32)
    assert source[0].key == "test-00000"
    with pytest.raises(InputError, match="no train-images-idx3-ubyte"):
        IdxSource(tmp_path / "mnist")
    with pytest.raises(InputError, match=r"'valid'.*train.*test"):
        IdxSource(tmp_path / "mnist", "valid")


def test_class_names_follow_the_folder(tmp_path: Path) -> None:
    assert IdxSource(put(tmp_path / "mnist")).class_names[7] == "7"
    assert IdxSource(put(tmp_path / "Fashion-MNIST")).class_names[7] == "Sneaker"
    assert IdxSource(put(tmp_path / "Fashion-MNIST" / "raw")).class_names[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "bad magic number"),
        (b"\x00\x00\x08\x01" + bytes(8), "bad magic number '00000801', expected '00000803'"),
        (encode(IMAGES)[:-1], "truncated or damaged: 2367 bytes, expected 2368"),
        (encode(IMAGES)[:9], "truncated"),
        (encode(IMAGES) + b"x", "damaged"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name}: .*{reason}"):
        read_idx(path, 3)


@pytest.mark.parametrize("content", [gzip.compress(encode(IMAGES))[:-20], b"no gzip", b"\x1f\x8b\x08" + bytes(30)])
def test_damaged_gzip_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"ubyte\.gz: \S"):
        read_idx(path, 3)


def test_labels_must_fit_the_images_and_the_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 labels, but train-images-idx3-ubyte has 3 images"):
        IdxSource(put(tmp_path / "few", labels=LABELS[:2]))
    with pytest.raises(InputError, match="label 46, expected 0 to 9"):
        IdxSource(put(tmp_path / "letters", labels=np.array([1, 46, 2], np.uint8)))


def test_no_more_is_unpacked_than_the_header_announces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(encode(IMAGES) + bytes(50_000_000)))
    read, opened = list[int](), gzip.open

    def counted(name: Path) -> gzip.GzipFile:
        file = opened(name)
        real = file.read
        file.read = lambda size=-1: read.append(size) or real(size)  # type: ignore[method-assign, func-returns-value]
        return file  # type: ignore[return-value]

    monkeypatch.setattr(gzip, "open", counted)
    with pytest.raises(InputError, match="2369 bytes or more, expected 2368"):
        read_idx(path, 3)
    assert read == [16, 2353]
    header = bytes((0, 0, 8, 3)) + b"\x7f\xff\xff\xff" * 3
    path.write_bytes(gzip.compress(header))
    with pytest.raises(InputError, match=r"bytes by its header, more than the 805,306,368 that are read"):
        read_idx(path, 3)
    plain = tmp_path / "train-images-idx3-ubyte"
    os.mkfifo(plain)
    with pytest.raises(InputError, match="it is a FIFO"):
        read_idx(plain, 3)
