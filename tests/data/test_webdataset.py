"""Images in tars with captions or classes beside them."""

import os
from pathlib import Path

import pytest
from helpers import png_bytes, save_tar

from anystep.data.example import BrokenExample
from anystep.data.overview import overview
from anystep.data.shards import Shards
from anystep.data.sources import open_source
from anystep.errors import InputError


@pytest.mark.parametrize("label", [b"cat", b"-1", b"1000000000", b"9" * 5000, b"", b"1.5", b"\xff", b"1_0", b"+1"])
def test_a_class_that_is_none_is_left_out(tmp_path: Path, label: bytes) -> None:
    files = [("a.png", png_bytes()), ("a.cls", label), ("b.png", png_bytes()), ("b.CLS", b"1\n")]
    source = open_source(f"shards:{save_tar(tmp_path / 'web' / '0.tar', files).parent}", 8)
    assert source.class_names == ["0", "1"]
    assert source[1].label == 1
    with pytest.raises(BrokenExample, match="is not the number of a class"):
        source[0]


def test_a_record_without_a_class_among_classes_is_left_out(tmp_path: Path) -> None:
    files = [("a.png", png_bytes()), ("b.png", png_bytes()), ("b.cls", b"1")]
    source = open_source(f"shards:{save_tar(tmp_path / 'web' / '0.tar', files).parent}", 8)
    assert source[1].label == 1
    with pytest.raises(BrokenExample, match="no class"):
        source[0]


@pytest.mark.parametrize(
    ("files", "captions"),
    [
        ({"txt": b"\xef\xbb\xbfa cat\r\n\r\na dog"}, ("a cat", "a dog")),
        ({"json": b'\xef\xbb\xbf{"caption": "a cat"}'}, ("a cat",)),
        ({"txt": b"caf\xe9"}, "its caption: not UTF-8 text, at byte 3"),
        ({"txt": b"\0a"}, "NUL characters"),
        ({"txt": b" \n"}, "its caption is empty"),
        ({"json": b'{"caption": null}'}, "its caption is no text"),
        ({"json": b'{"text": ["a", 5]}'}, "its caption is no text"),
        ({"json": b'{"text": "\\ud800"}'}, "half of a surrogate pair"),
        ({"json": b"[" * 100_000}, "nested too deeply"),
        ({"json": b"[1]"}, "expected a JSON dict"),
        ({"json": b"{"}, "not JSON"),
        ({}, "no caption"),
    ],
)
def test_captions_of_tars_come_in_by_the_same_door(
    tmp_path: Path, files: dict[str, bytes], captions: tuple[str, ...] | str
) -> None:
    beside = ((f"a.{name}", content) for name, content in files.items())
    entries = [("a.png", png_bytes()), *beside, ("b.png", png_bytes()), ("b.json", b'{"caption": "b"}')]
    source = open_source(f"shards:{save_tar(tmp_path / 'web' / '0.tar', entries).parent}", 8)
    assert source[1].captions == ("b",)
    if isinstance(captions, tuple):
        assert source[0].captions == captions
        return
    with pytest.raises(BrokenExample, match=captions):
        source[0]


def test_tars_without_captions_can_be_shown_and_side_files_are_named(tmp_path: Path) -> None:
    folder = save_tar(tmp_path / "web" / "0.tar", [("a.png", png_bytes())]).parent
    assert overview(f"shards:{folder}", 16, 3).shown == 1
    (folder / "classes.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"classes\.txt: not UTF-8 text, at byte 3"):
        open_source(f"shards:{folder}", 8)
    (folder / "classes.txt").unlink()
    os.mkfifo(folder / "classes.txt")
    with pytest.raises(InputError, match="it is a FIFO"):
        open_source(f"shards:{folder}", 8)
    os.mkfifo(folder / "1.tar")
    assert Shards(str(folder)).passed_over["folders, FIFOs and devices beside tars"] == (2, "1.tar")
