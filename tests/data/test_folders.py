"""Folders of captioned images and of classes."""

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import save_image
from PIL import Image

from anystep.cli import main
from anystep.data.example import BrokenExample
from anystep.data.folders import ClassFolderSource, ImageFolderSource
from anystep.data.images import read_image
from anystep.errors import InputError
from anystep.files import MARKER

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def test_captions_beside_images(tmp_path: Path) -> None:
    save_image(tmp_path / "b.png", "a red field\n\n  all red \r\n")
    save_image(tmp_path / "a" / "z.PNG", "\ufeffa piñata")
    save_image(tmp_path / "a" / "..hidden.png")
    save_image(tmp_path / ".thumbnails" / "b.png")
    (tmp_path / "notes.md").write_text("no image")
    source = ImageFolderSource(tmp_path, 4)
    assert [example.key for example in source] == ["a/z.PNG", "b.png"]
    assert source[0].captions == ("a piñata",)
    assert source[1].captions == ("a red field", "all red")
    assert source[1].image.size == (4, 4)
    assert source[1].label is None
    assert list(source.class_names) == []


def test_names_that_another_system_wrote_otherwise_are_the_same(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    save_image(tmp_path / "beside" / f"{composed}.png")
    (tmp_path / "beside" / f"{apart}.txt").write_text("a cup")
    assert ImageFolderSource(tmp_path / "beside", 4)[0].captions == ("a cup",)
    save_image(tmp_path / "rows" / "d" / f"{apart}.png")
    (tmp_path / "rows" / "metadata.jsonl").write_text(f'{{"file_name": "d\\\\{composed}.png", "text": "a cup"}}\n')
    source = ImageFolderSource(tmp_path / "rows", 4)
    assert (source[0].captions, len(source), dict(source.passed_over)) == (("a cup",), 1, {})
    # where both ways are there, each is itself
    both = tmp_path / "both"
    for name in (composed, apart):
        save_image(both / f"{name}.png", f"{len(name)} letters")
    assert [example.captions for example in ImageFolderSource(both, 4)] == [("5 letters",), ("4 letters",)]


def test_everything_in_a_folder_is_used_or_counted(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "p", tmp_path / "elsewhere"
    save_image(folder / "a.png", "a")
    save_image(folder / "deep" / "b.png").with_suffix(".TXT").write_text("b")
    save_image(elsewhere / "c.png", "c")
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "again").symlink_to("deep")
    (elsewhere / "loop").symlink_to("../p")
    (folder / "self").symlink_to("self")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "d.cr2", "notes.md", ".DS_Store"):
        (folder / name).write_bytes(b"?")
    (folder / "IMG_1.txt").write_text("of a photograph")
    os.mkfifo(folder / "pipe.png")
    save_image(folder / "made" / "picture.png")
    (folder / "made" / MARKER).write_text('{"kind": "report", "format": 1}')
    source = ImageFolderSource(folder, 8)
    assert [example.captions for example in source] == [("a",), ("b",), ("c",)]
    assert source.names == ["a.png", "deep/b.png", "linked/c.png"]
    assert source.passed_over == {
        ".heic images, which pillow-heif reads (pip install pillow-heif)": (2, "IMG_1.HEIC"),
        ".cr2 images, which rawpy develops: save them as PNG or JPEG": (1, "d.cr2"),
        ".md files": (1, "notes.md"),
        "other files": (1, "self"),
        "captions without an image that can be read": (1, "IMG_1.txt"),
        "hidden files and folders": (1, ".DS_Store"),
        "FIFOs, sockets and devices": (1, "pipe.png"),
        "folders that anystep made": (1, "made/"),
        "links to folders that are read already": (2, "again/"),
    }
    (folder / "a.png").unlink()
    classes = ClassFolderSource(tmp_path, 8)
    assert classes.class_names == ["elsewhere", "p"]
    assert classes.names == ["elsewhere/c.png", "p/deep/b.png"]  # neither is in both, whatever the links say
    assert classes.passed_over["other files"] == (1, "p/self")


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", "a")
    save_image(tmp_path / "b.png")
    os.mkfifo(tmp_path / "pipe")
    for name in ("c.png", "b.txt"):
        (tmp_path / name).symlink_to("pipe")
    with pytest.raises(InputError, match=r"no caption for b\.png"):  # its text is none
        ImageFolderSource(tmp_path, 8)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "b.txt").write_text("b")
    source = ImageFolderSource(tmp_path, 8)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("pipe")
    with pytest.raises(BrokenExample, match="it is a FIFO"):
        source[0]
    assert source.stamp(0) != source.stamp(1)
    assert source.digest(0) != source.digest(1)
    os.mkfifo(tmp_path / "metadata.jsonl")
    assert source.names == ["a.png", "b.png"]


def test_names_that_are_no_utf8_and_captions_that_are_none(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    save_image(tmp_path / odd, "a cup")
    save_image(tmp_path / "b.png").with_suffix(".txt").write_bytes("a tea pot".encode("utf-16-le"))
    source = ImageFolderSource(tmp_path, 8)
    assert (source[1].key, source[1].captions) == ("caf\\udce9.png", ("a cup",))
    with pytest.raises(BrokenExample, match="NUL characters"):
        source[0]
    (tmp_path / odd).write_bytes(b"")
    with pytest.raises(BrokenExample, match=r"caf\\udce9\.png: not an image"):
        source[1]


def test_our_own_sheet_and_prepared_folder_are_no_data(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    save_image(folder / "a.png", "a thing", (64, 64))
    for name in ("sheet.png", "sheet.jpg", "sheet.webp"):
        for _ in range(2):
            assert main(["data", "show", str(folder), "--out", str(folder / name)]) == 0
    words = ["data", "prepare", str(folder), "--out", str(folder / "made"), "--size", "64", "--codec", "identity"]
    assert main(words) == main(words) == 0
    source = ImageFolderSource(folder, 8)
    assert source.names == ["a.png"]
    assert source.passed_over == {
        "contact sheets that anystep drew": (3, "sheet.jpg"), "folders that anystep made": (1, "made/"),
    }  # fmt: skip
    assert main(["data", "show", str(folder / "made"), "--out", str(tmp_path / "no.png")]) == 2


def test_an_image_is_not_left_out_because_files_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageFolderSource(save_image(tmp_path / "a.png", "a").parent, 8)

    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", no_more)
    with pytest.raises(OSError, match="Too many open files"):
        source[0]


def test_missing_captions_are_one_line_with_a_count(tmp_path: Path) -> None:
    save_image(tmp_path / "sub" / "a.png", "  \n")
    with pytest.raises(InputError, match=r"none of 1 images has .* can be used: sub/a\.png: its caption is empty"):
        ImageFolderSource(tmp_path, 8)
    for name in "bcd":
        save_image(tmp_path / "sub" / f"{name}.png")
    with pytest.raises(InputError, match=r"no caption for sub/b\.png and 2 more; write sub/b\.txt") as caught:
        ImageFolderSource(tmp_path, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [ImageFolderSource, ClassFolderSource])
@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_nothing_there(tmp_path: Path, source: type, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=folder):
        source(tmp_path / folder, 8)


def test_classes_are_sorted_subfolders(tmp_path: Path) -> None:
    save_image(tmp_path / "dog" / "1.png", colour=RED)
    save_image(tmp_path / "cat" / "2.png", colour=GREEN)
    save_image(tmp_path / "cat" / "young" / "1.png", colour=BLUE)
    save_image(tmp_path / ".cache" / "1.png")
    save_image(tmp_path / "stray.png")
    source = ClassFolderSource(tmp_path, 8)
    assert list(source.class_names) == ["cat", "dog"]
    assert [(example.key, example.label) for example in source] == [
        ("cat/2.png", 0), ("cat/young/1.png", 0), ("dog/1.png", 1),
    ]  # fmt: skip
    assert source[2].captions == ()
    (tmp_path / "bird").mkdir()
    with pytest.raises(InputError, match="bird: no image"):
        ClassFolderSource(tmp_path, 8)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "vanished", "link"])
def test_damaged_image_is_one_broken_example(tmp_path: Path, damage: str) -> None:
    path = save_image(tmp_path / "a.png", "x")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if damage == "link":
        path.unlink()
        path.symlink_to(tmp_path / "nowhere.png")
    save_image(tmp_path / "b.png", "y")
    source = ImageFolderSource(tmp_path, 8)
    if damage == "vanished":
        path.unlink()
    elif damage != "link":
        path.write_bytes({"empty": b"", "text": b"no image", "truncated": path.read_bytes()[:5000]}[damage])
    with pytest.raises(BrokenExample, match=r"a\.png: \S"):
        source[0]
    assert source[1].key == "b.png"


def test_an_image_that_unpacks_to_more_than_pillow_allows_is_left_out(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.png", "a")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(BrokenExample, match=r"a\.png: Image size \(900000000 pixels\) exceeds limit"):
        read_image(path, 8)
