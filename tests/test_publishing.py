"""Folders are published whole, in place of what the same command has published, by one process at a time."""

import json
import os
from pathlib import Path

import pytest

from anystep.errors import InputError
from anystep.publishing import check_free, publish_folder, publishing


def publish(folder: Path, kind: str, **files: str) -> None:
    with publishing(folder, kind, lambda _: False) as part:
        part.mkdir()
        for name, text in files.items():
            (part / name).write_text(text)


def test_publishing_replaces_what_was_published_and_keeps_what_was_not(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    for names in (("old.bin", "both.bin"), ("both.bin", "deep/new.bin")):
        part = tmp_path / "part"
        for name in names:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_text(names[0])
        publish_folder(part, folder, "codec")
        (folder / "mine.txt").write_text("mine")
        if "old.bin" in names:
            (folder / "data").symlink_to(tmp_path)
            (folder / "later").symlink_to(tmp_path / "nowhere")
    assert [os.readlink(folder / name) for name in ("data", "later")] == [str(tmp_path), str(tmp_path / "nowhere")]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {".anystep.json", "both.bin", "deep/new.bin", "mine.txt"}
    assert (folder / "both.bin").read_text() == "both.bin"
    assert sorted(os.listdir(tmp_path)) == ["pipeline"]


def test_publishing_in_place_of_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    (tmp_path / "pipeline").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / "new.bin").write_text("x")
        publish_folder(tmp_path / "part", tmp_path / "pipeline", "codec")
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "pipeline"]
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["mine.txt"]
    assert (tmp_path / "pipeline" / "new.bin").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": 5}', "{}"])
def test_publishing_over_a_damaged_mark_takes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".anystep.json").write_text(content)
    (tmp_path / "mine" / "kept.txt").write_text("x")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "new.txt").write_text("x")
    publish_folder(tmp_path / "part", tmp_path / "mine", "codec")
    assert sorted(os.listdir(tmp_path / "mine")) == [".anystep.json", "kept.txt", "new.txt"]


def test_what_another_command_has_published_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    publish(folder, "converted model", weights="first")
    publish(folder, "converted model", weights="again")
    with pytest.raises(InputError, match="holds a converted model, not a model of an average: choose another --out"):
        publish(folder, "model of an average", weights="other")
    assert (folder / "weights").read_text() == "again"
    assert os.listdir(folder.parent) == ["out"]


def test_a_folder_from_before_marks_said_the_command_is_known_by_what_that_left(tmp_path: Path) -> None:
    mark = json.dumps({"kind": "published folder", "format": 1, "published": ["average.json"]})
    (tmp_path / ".anystep.json").write_text(mark)
    with pytest.raises(InputError, match="holds a published folder, not a model of an average"):
        check_free(tmp_path, "model of an average", lambda folder: (folder / "average.json").exists())
    (tmp_path / "average.json").touch()
    check_free(tmp_path, "model of an average", lambda folder: (folder / "average.json").exists())


def test_one_at_a_time_publishes_a_folder(tmp_path: Path) -> None:
    with publishing(tmp_path / "out", "codec") as part:
        part.mkdir()
        (part / "first").touch()
        refused = rf"out' is in use by process {os.getpid()} on .*: wait, or choose another --out"
        with pytest.raises(InputError, match=refused):
            publish(tmp_path / "out", "codec", second="x")
    assert sorted(os.listdir(tmp_path / "out")) == [".anystep.json", "first"]
    publish(tmp_path / "out", "codec", second="x")
    assert sorted(os.listdir(tmp_path / "out")) == [".anystep.json", "second"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    publish(tmp_path / "out", "codec", first="x")
    with (
        pytest.raises(InputError, match=r"cannot write to folder .*: No such file"),
        publishing(tmp_path / "out", "codec") as part,
    ):
        (part / "second").touch()
    assert sorted(os.listdir(tmp_path / "out")) == [".anystep.json", "first"]
    assert os.listdir(tmp_path) == ["out"]
