"""Preparing into a folder that holds something already: what changed is made again, what is damaged mended."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import fail_to_open, folder_bytes, save_image
from torch import Tensor

from anystep.data.encode import Encoders
from anystep.data.folders import ClassFolderSource, ImageFolderSource
from anystep.data.latents import LatentShards
from anystep.data.prepare import prepare
from anystep.errors import InputError
from anystep.files import MARKER, claimed


def put(folder: Path, name: str, level: int, caption: str = "a thing") -> None:
    save_image(folder / f"{name}.png", caption, (8, 8), (level, 0, 0))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(8):
        put(tmp_path / "p", f"{number}", 10 * number, f"number {number}")
    return tmp_path / "p"


class Counting:
    """An encoder that counts the images it was given, and stops after some."""

    def __init__(self, stop: int | None = None) -> None:
        self.count, self.stop = 0, stop

    def __call__(self, images: Tensor) -> Tensor:
        self.count += len(images)
        if self.stop is not None and self.count > self.stop:
            raise KeyboardInterrupt
        return images[:, :, ::4, ::4]


def made(folder: Path, out: Path, stop: int | None = None, **options: Any) -> tuple[int, list[str]]:
    """How many images were encoded, and what was said."""
    encoder, said = Counting(stop), list[str]()
    prepare(ImageFolderSource(folder, 8), out, Encoders(encoder, {"codec": "fourth"}, **options), shard_size=2,
            on_note=said.append)  # fmt: skip
    return encoder.count, said


def edit_caption(folder: Path) -> None:
    (folder / "5.txt").write_text("another")


def replace_image(folder: Path) -> None:
    put(folder, "5", 200, "number 5")


def add_at_the_end(folder: Path) -> None:
    put(folder, "9", 90)


def remove_the_first(folder: Path) -> None:
    (folder / "0.png").unlink()


def remove_the_last_two(folder: Path) -> None:
    for name in ("6.png", "7.png"):
        (folder / name).unlink()


def damage_an_image(folder: Path) -> None:
    (folder / "2.png").write_bytes(b"no image")


CHANGES: dict[Callable[[Path], None], tuple[int, str]] = {
    edit_caption: (2, "shards 2 of 4 are made again"),
    replace_image: (2, "shards 2 of 4 are made again"),
    add_at_the_end: (1, "shards 4 of 5 are made again"),
    remove_the_first: (7, "shards 0-3 of 4 are made again"),
    remove_the_last_two: (0, ""),
    damage_an_image: (1, "shards 1 of 4 are made again"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_in_the_source_is_made_again_and_nothing_else(
    pictures: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    assert made(pictures, tmp_path / "out") == (8, [])
    change(pictures)
    count, said = made(pictures, tmp_path / "out")
    made(pictures, tmp_path / "anew")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "anew")
    assert (count, len(said)) == (CHANGES[change][0], bool(CHANGES[change][1]))
    assert CHANGES[change][1] in "".join(said)
    assert made(pictures, tmp_path / "out") == (0, [])


@pytest.mark.parametrize("change", CHANGES)
def test_old_and_new_are_never_mixed_in_a_folder_that_was_not_finished(
    pictures: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(pictures, tmp_path / "out", stop=6)
    change(pictures)
    made(pictures, tmp_path / "out")
    made(pictures, tmp_path / "anew")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "anew")


def test_files_that_were_only_touched_or_copied_are_not_encoded_again(pictures: Path, tmp_path: Path) -> None:
    made(pictures, tmp_path / "out")
    before = folder_bytes(tmp_path / "out")
    for path in pictures.iterdir():
        os.utime(path, (1, 1))
    assert made(pictures, tmp_path / "out") == (0, [])
    after = folder_bytes(tmp_path / "out")
    assert before.pop(".stamps.json") != after.pop(".stamps.json")
    assert before == after


def test_an_image_that_could_not_be_read_is_tried_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(pictures, tmp_path / "anew")
    with monkeypatch.context() as patched:
        fail_to_open(patched, "5.png", PermissionError(errno.EACCES, "Permission denied"))
        for count in (7, 0):  # a second look changes nothing
            assert made(pictures, tmp_path / "out") == (count, [])
    reasons = LatentShards(str(tmp_path / "out")).stats.broken
    assert [reason.partition("5.png: ")[2] for reason in reasons] == ["Permission denied"]
    assert made(pictures, tmp_path / "out")[0] == 2
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "anew")


def test_an_interruption_while_changes_are_made_again_is_gone_on_with(pictures: Path, tmp_path: Path) -> None:
    made(pictures, tmp_path / "out")
    for name in ("1", "3", "7"):
        put(pictures, name, 250)
    with pytest.raises(KeyboardInterrupt):
        made(pictures, tmp_path / "out", stop=3)
    with pytest.raises(InputError, match="not finished"):
        LatentShards(str(tmp_path / "out"))
    assert made(pictures, tmp_path / "out")[0] == 4  # one of three shards is done already
    made(pictures, tmp_path / "anew")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "anew")


def test_another_order_of_classes_is_seen(tmp_path: Path) -> None:
    for name in ("b", "c"):
        put(tmp_path / "p" / name, "1", 100)

    def labels() -> list[int]:
        source = ClassFolderSource(tmp_path / "p", 8)
        shards = prepare(source, tmp_path / "out", Encoders(Counting(), {}), shard_size=1, on_note=lambda line: None)
        assert shards.class_names == source.class_names
        return [shards[number].label for number in range(len(shards))]

    assert labels() == [0, 1]
    put(tmp_path / "p" / "a", "1", 50)
    assert labels() == [0, 1, 2]


def as_before(folder: Path) -> None:
    """Make of a prepared folder what the versions before sources were noted wrote."""
    for name in (MARKER, ".lock", ".stamps.json"):
        (folder / name).unlink(missing_ok=True)
    about = json.loads((folder / "dataset.json").read_text())
    for name in ("shards", "passed_over"):
        about.pop(name, None)
    (folder / "dataset.json").write_text(json.dumps(about))
    for path in folder.glob(".*.part.json"):
        note = json.loads(path.read_text())
        path.write_text(json.dumps({name: value for name, value in note.items() if name not in ("digest", "stamp")}))


def test_folders_of_earlier_versions_are_read_and_gone_on_with(pictures: Path, tmp_path: Path) -> None:
    made(pictures, tmp_path / "out")
    as_before(tmp_path / "out")
    assert len(LatentShards(str(tmp_path / "out"))) == 8
    count, said = made(pictures, tmp_path / "out")
    assert count == 0
    assert "was prepared before sources were noted" in said[0]
    put(pictures, "9", 1)
    with pytest.raises(InputError, match=r"differ in examples \(8, not 9\)"):
        made(pictures, tmp_path / "out")
    (pictures / "9.png").unlink()
    with pytest.raises(KeyboardInterrupt):
        made(pictures, tmp_path / "half", stop=4)
    as_before(tmp_path / "half")
    count, said = made(pictures, tmp_path / "half")
    assert count == 4
    assert "shards 0-1 were made before sources were noted" in said[0]
    assert len(LatentShards(str(tmp_path / "half"))) == 8


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
@pytest.mark.parametrize("name", ["index.safetensors", "dataset.json", "000002.tar", ".stamps.json"])
def test_a_damaged_file_of_a_prepared_folder_is_named_and_mended(
    pictures: Path, tmp_path: Path, name: str, damage: bytes | None
) -> None:
    made(pictures, tmp_path / "out")
    before = folder_bytes(tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(damage if damage is not None else before[name][:-9])
    if name != ".stamps.json":
        with pytest.raises(InputError, match=r"run the same `anystep data prepare` again"):
            LatentShards(str(tmp_path / "out"))
    count, said = made(pictures, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == before
    assert count == {"dataset.json": 8, "000002.tar": 2}.get(name, 0)
    assert len(said) == (name != ".stamps.json")


@pytest.mark.parametrize("name", [".000000.part.safetensors", ".000000.part.json", "000000.tar"])
def test_a_damaged_part_of_a_folder_that_was_not_finished_is_made_again(
    pictures: Path, tmp_path: Path, name: str
) -> None:
    made(pictures, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        made(pictures, tmp_path / "out", stop=4)
    (tmp_path / "out" / name).write_bytes(b"")
    assert made(pictures, tmp_path / "out")[0] == 6
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


def test_a_folder_that_is_in_use_or_of_something_else_is_refused_and_left_alone(pictures: Path, tmp_path: Path) -> None:
    with claimed(tmp_path / "out", "prepared data set"), pytest.raises(InputError, match="in use by process"):
        made(pictures, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".000001.part.json").write_text("mine")
    (tmp_path / "mine" / "000000.tar").write_text("mine")
    with pytest.raises(InputError, match="which this command has not made"):
        made(pictures, tmp_path / "mine")
    assert folder_bytes(tmp_path / "mine") == {".000001.part.json": b"mine", "000000.tar": b"mine"}


def test_nothing_readable_leaves_nothing_and_can_be_mended(pictures: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(pictures, kept)
    for path in pictures.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"no example could be read; the first failure: .*0\.png: not an image"):
        made(pictures, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {MARKER, ".lock"}
    for path in kept.glob("*.png"):
        shutil.copy(path, pictures)
    assert made(pictures, tmp_path / "out")[0] == 8


def test_shards_beyond_the_end_of_the_source_go_also_where_the_description_is_damaged(
    pictures: Path, tmp_path: Path
) -> None:
    made(pictures, tmp_path / "out")
    remove_the_last_two(pictures)
    (tmp_path / "out" / "dataset.json").write_bytes(b"")
    assert made(pictures, tmp_path / "out")[0] == 6
    made(pictures, tmp_path / "anew")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "anew")
