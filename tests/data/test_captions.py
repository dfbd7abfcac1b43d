"""Captions of others: rows of metadata.jsonl and text files."""

import json
from pathlib import Path

import pytest
from helpers import save_image

from anystep.data.example import BrokenExample
from anystep.data.folders import ImageFolderSource
from anystep.errors import InputError


def test_captions_from_metadata(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "deep/c.png"):
        save_image(tmp_path / name)
    save_image(tmp_path / "d.png", "of the text file")
    rows = [
        {"file_name": "a.png", "text": "one\u2028line"},
        {"file_name": "./b.png", "caption": "first"},
        {"file_name": "b.png", "caption": "second"},
        {"file_name": "deep/c.png", "captions": ["x", " ", "y"]},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(text, "utf-8")
    captions = {example.key: example.captions for example in ImageFolderSource(tmp_path, None)}
    assert captions == {
        "a.png": ("one\u2028line",),
        "b.png": ("first", "second"),
        "d.png": ("of the text file",),
        "deep/c.png": ("x", "y"),
    }


def test_metadata_of_each_folder_is_relative_to_it(tmp_path: Path) -> None:
    for name in ("a.png", "train/a.png", "train/deep/b.png", "train/c.png"):
        save_image(tmp_path / name)
    rows = {
        "": [("a.png", "root"), ("train/a.png", "from above")],
        "train": [("a.png", "here"), ("deep/b.png", "below"), ("c.png", ""), ("d.png", "gone")],
    }
    for folder, pairs in rows.items():
        text = "\n".join(json.dumps({"file_name": name, "text": caption}) for name, caption in pairs)
        (tmp_path / folder / "metadata.jsonl").write_text(text)
    source = ImageFolderSource(tmp_path, 8)
    captions = [("root",), ("from above", "here"), None, ("below",)]
    assert source.names == ["a.png", "train/a.png", "train/c.png", "train/deep/b.png"]
    assert [source.captions.get(name) for name in source.names] == captions
    with pytest.raises(BrokenExample, match=r"c\.png: its caption is empty, in its row of metadata\.jsonl"):
        source[2]
    there = {"images of metadata.jsonl that are not there": (1, "train/d.png")}
    assert source.passed_over == there
    (tmp_path / "a.txt").write_text("of the text")
    again = ImageFolderSource(tmp_path, 8)
    assert again.captions == source.captions
    assert again.passed_over == there | {"captions beside images of metadata.jsonl, which has theirs": (1, "a.txt")}


def test_metadata_of_another_kind_is_named(tmp_path: Path) -> None:
    save_image(tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "metadata.csv").write_text("file_name,text\na.png,x\n")
    with pytest.raises(InputError, match=r"no caption for sub/a\.png.*\(sub/metadata\.csv is not read\)"):
        ImageFolderSource(tmp_path, 8)
    (tmp_path / "sub" / "a.txt").write_text("x")
    passed = ImageFolderSource(tmp_path, 8).passed_over
    assert passed == {"metadata.csv, which is not read: metadata.jsonl is": (1, "sub/metadata.csv")}


@pytest.mark.parametrize("row", ["{", "[]", '{"text": "x"}', '{"file_name": 1, "text": "x"}', "[" * 100_000])
def test_bad_metadata_names_the_line(tmp_path: Path, row: str) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n" + row)
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 2: (expected|not JSON)"):
        ImageFolderSource(tmp_path, 8)


def test_metadata_of_images_that_are_not_there_are_counted(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", "x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "../a.png", "text": "x"}\n{"file_name": "b", "text": ""}')
    source = ImageFolderSource(tmp_path, 8)
    assert (len(source), source[0].captions) == (1, ("x",))
    assert source.passed_over == {"images of metadata.jsonl that are not there": (2, "../a.png")}


@pytest.mark.parametrize("text", [None, 5, [1], "", [], "a\0b", "\ud800", [["a"]], {}])
def test_an_image_whose_row_gives_no_caption_is_left_out(tmp_path: Path, text: object) -> None:
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name)
    rows = [{"file_name": "a.png", "text": text}, {"file_name": "b.png", "text": "b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = ImageFolderSource(tmp_path, 8)
    with pytest.raises(BrokenExample, match=r"a\.png: its caption .*, in its row of metadata\.jsonl"):
        source[0]
    assert source[1].captions == ("b",)
    (tmp_path / "b.png").unlink()
    with pytest.raises(InputError, match=r"can be used: a\.png: its caption"):
        ImageFolderSource(tmp_path, 8)


def test_caption_that_is_not_utf8(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"can be used: a\.png: its caption: not UTF-8 text, at byte 0"):
        ImageFolderSource(tmp_path, 8)
