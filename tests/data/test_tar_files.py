"""Tars of others are read to their end; their files become records."""

import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import png_bytes, save_tar

from anystep.data.shard_index import INDEX
from anystep.data.shards import Shards
from anystep.data.sources import open_source
from anystep.errors import InputError


def damaged_in_the_middle(content: bytearray, offset: int) -> bytearray:
    content[offset : offset + 100] = b"\xff" * 100
    return content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content, at: damaged_in_the_middle(content, at), r"damaged at byte 3,072 of 20,480"),
        (lambda content, at: content[: at + 100], r"damaged at byte 3,072 of 3,172"),
        (lambda content, at: content[:at], r"cut off at byte 3,072 of 3,072"),
        (lambda content, at: content[: at + 600], r"unexpected end of data after the file at byte 3,072 of 3,672"),
        (lambda content, at: content + content, r"its archive ends at byte .*, but .* more follow"),
        (lambda content, at: content[:at] + bytes(512) + content[at:], r"no end of the archive there|more follow"),
        (lambda content, at: b"", r"empty file"),
    ],
)
def test_a_tar_is_read_to_its_end_or_refused(tmp_path: Path, damage: Callable[..., bytes], message: str) -> None:
    path = save_tar(tmp_path / "web" / "0.tar", [(f"{n}.png", png_bytes(n)) for n in range(12)])
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[3].offset
    path.write_bytes(damage(bytearray(path.read_bytes()), offset))
    with pytest.raises(InputError, match=rf"web/0\.tar: not a whole, uncompressed tar: .*({message})"):
        open_source(f"shards:{path.parent}", 8)
    assert not (path.parent / INDEX).exists()


def test_headers_that_lead_back_or_nowhere_end(tmp_path: Path) -> None:
    path = save_tar(tmp_path / "web" / "0.tar", [("a.png", png_bytes()), ("b.png", png_bytes())])
    content = bytearray(path.read_bytes())
    header = content[:512]
    header[124:136] = b"\xff" * 8 + struct.pack(">i", -1024)  # a negative size
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path.write_bytes(header + content[512:])
    with pytest.raises(InputError, match="not a whole, uncompressed tar"):
        Shards(str(path.parent))
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1
    path.write_bytes((long.tobuf() + b"x".ljust(512, b"\0")) * 3000)
    with pytest.raises(InputError, match="not a whole, uncompressed tar"):
        Shards(str(path.parent))


def test_dots_in_names_lose_nothing(tmp_path: Path) -> None:
    text = b"a cat"
    folder = save_tar(
        tmp_path / "web" / "0.tar",
        [
            ("a.png", png_bytes(1)), ("a.txt", text),
            *((f"photo.{n}.{extension}", content) for n in (1, 2) for extension, content in
              (("png", png_bytes(10 + n)), ("TXT", text))),
            ("b.png", png_bytes(2)), ("b.txt", text), ("b.seg.png", png_bytes(3)), ("b.v2.npy", b"?"),
            ("c.png", png_bytes(4)), ("c.txt", text), ("c.large.png", png_bytes(5)), ("c.large.txt", text),
        ],
    ).parent  # fmt: skip
    source = open_source(f"shards:{folder}", 8)
    assert [source[n].image.getpixel((0, 0))[0] for n in range(len(source))] == [1, 11, 12, 2, 4, 5]  # type: ignore[index]
    assert {source[n].captions for n in range(6)} == {("a cat",)}
    assert source.passed_over == {  # type: ignore[attr-defined]
        "images in tars that belong to another: the first dot ends a name": (1, "b.seg.png"),
        ".png files in tars": (1, "*.seg.png"),
        ".npy files in tars": (1, "*.v2.npy"),
    }


def test_of_files_of_one_name_the_last_counts(tmp_path: Path) -> None:
    files = [("a.png", png_bytes(1)), ("a.txt", b"old"), ("b.png", png_bytes(2)), ("b.txt", b"b")]
    folder = save_tar(tmp_path / "web" / "0.tar", [*files, ("a.png", png_bytes(3)), ("a.txt", b"new")]).parent
    source = open_source(f"shards:{folder}", 8)
    found = {each.captions[0]: each.image.getpixel((0, 0))[0] for each in source}  # type: ignore[index]
    assert (len(source), found) == (2, {"b": 2, "new": 3})
    assert source.passed_over == {  # type: ignore[attr-defined]
        "files in tars that a later one of the same name replaces": (2, "a.png")
    }


def test_what_is_no_plain_file_in_a_tar_is_counted_and_never_followed(tmp_path: Path) -> None:
    path = save_tar(
        tmp_path / "web" / "0.tar", [("../../up.png", png_bytes(1)), ("/abs/a.png", png_bytes(2)), ("._a.png", b"")]
    )
    with tarfile.open(path, "a") as tar:
        for name, kind in (("b.png", tarfile.SYMTYPE), ("c.png", tarfile.LNKTYPE), ("d.png", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    source = open_source(f"shards:{path.parent}", 8)
    assert [source[n].image.getpixel((0, 0))[0] for n in range(len(source))] == [1, 2]  # type: ignore[index]
    assert source.passed_over == {  # type: ignore[attr-defined]
        "hidden files and folders": (1, "._a.png"),
        "links, devices and sparse files in tars": (3, "b.png"),
    }
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["0.tar", INDEX, "web"]
    again = open_source(f"shards:{path.parent}", 8)
    assert again.passed_over == source.passed_over  # type: ignore[attr-defined]
