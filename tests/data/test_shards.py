"""Tars that are read by number: ours, other people's, local and remote, whole and damaged."""

import os
from pathlib import Path

import fsspec
import pytest
import torch
from helpers import encoders, png_bytes, save_picture_tars, save_shards, save_tar

from anystep.data.example import BrokenExample
from anystep.data.folders import ImageFolderSource
from anystep.data.npy import from_npy
from anystep.data.prepare import prepare
from anystep.data.shard_index import INDEX
from anystep.data.shards import Shards
from anystep.data.sources import open_source
from anystep.errors import InputError


def test_a_flipped_bit_and_a_cut_are_broken_examples(tmp_path: Path) -> None:
    shards = save_shards(tmp_path, 3)
    path, offset = tmp_path / "0.tar", int(shards.index.offsets[1, 0])
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 1
    path.write_bytes(content)
    again = Shards(str(tmp_path))
    assert again.read(0)
    with pytest.raises(BrokenExample, match=r"0\.tar, record 1: npy is damaged"):
        again.read(1)
    path.write_bytes(content[:offset])
    with pytest.raises(InputError, match=r"0\.tar: not a whole, uncompressed tar: it ends in the middle of 0001\.npy"):
        Shards(str(tmp_path))


def test_what_others_wrote_is_indexed_once_and_seen_as_images(tmp_path: Path) -> None:
    folder = save_picture_tars(tmp_path / "web")
    source = open_source(f"shards:{folder}", 8)
    assert len(source) == 10
    assert source[0].captions == ("from json",)
    assert source[3].captions == ("one 3", "two 3")
    assert [source[n].label for n in range(5)] == [0, 1, 0, 1, 0]
    assert source.class_names == ["0", "1"]
    assert source[7].image.getpixel((4, 4)) == (80, 100, 7)
    assert (folder / INDEX).exists()
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert open_source(f"shards:{folder}", 8).class_names == ["cat", "dog"]


def test_tars_are_read_from_anywhere_that_fsspec_opens(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    save_shards(tmp_path, 3, 2)
    memory.put(str(tmp_path), "/ours", recursive=True)
    shards = Shards("memory://ours")
    assert not shards.folder.local
    assert [from_npy(shards.read(n)["npy"])[0] for n in range(5)] == [0, 1, 2, 100, 101]
    memory.put(str(save_picture_tars(tmp_path / "web")), "/theirs", recursive=True)
    source = open_source("shards:memory://theirs", 8)
    assert (len(source), source[6].captions) == (10, ("one 1", "two 1"))


def test_records_are_read_where_the_system_cannot_read_at_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [save_shards(tmp_path, 3).read(number) for number in (2, 0, 1)]
    monkeypatch.delattr(os, "pread")
    assert [Shards(str(tmp_path)).read(number) for number in (2, 0, 1)] == expected


def test_an_index_of_tars_that_changed_is_made_again(tmp_path: Path) -> None:
    path = save_tar(tmp_path / "web" / "0.tar", [("a.png", png_bytes(1)), ("b.png", png_bytes(2))])
    assert len(open_source(f"shards:{path.parent}", 8)) == 2
    size = path.stat().st_size
    save_tar(path, [("a.png", png_bytes(9)), ("a.txt", b"a"), ("c.png", png_bytes(2)), ("c.txt", b"c")])
    assert path.stat().st_size == size
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    source = open_source(f"shards:{path.parent}", 8)
    assert [source[n].captions for n in range(2)] == [("a",), ("c",)]
    # an index that is not ours stays as it is
    (path.parent / INDEX).write_bytes(b"somebody's")
    assert len(open_source(f"shards:{path.parent}", 8)) == 2
    assert (path.parent / INDEX).read_bytes() == b"somebody's"


@pytest.mark.parametrize("table", ["offsets", "sizes", "shard", "labels"])
def test_an_index_that_leads_outside_is_not_used(tmp_path: Path, table: str) -> None:
    from dataclasses import replace

    shards = save_shards(tmp_path, 3)
    changed = getattr(shards.index, table).clone()
    changed[0] = 2**40 if changed.dtype != torch.int32 else 7
    if table == "labels":
        changed = changed[:1]
    replace(shards.index, **{table: changed}).save(tmp_path / INDEX)
    assert from_npy(Shards(str(tmp_path)).read(2)["npy"]).tolist() == [2, 2, 2]
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"is damaged: its? .*: run the same `anystep data prepare` again"):
        Shards(str(tmp_path))


def test_readers_do_not_wait_for_each_other_and_close_what_they_opened(captioned_folder: Path, tmp_path: Path) -> None:
    prepare(ImageFolderSource(captioned_folder, 8), tmp_path / "out", encoders(), shard_size=2)
    shards = Shards(str(tmp_path / "out"))
    real, held = os.pread, []

    def pread(*arguments: int) -> bytes:
        held.append(shards._lock.locked())
        return real(*arguments)

    before = len(os.listdir("/proc/self/fd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        patch.setattr("anystep.data.shards.OPEN_FILES", 2)
        for number in range(8):
            shards.read(number)
    assert held
    assert not any(held)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    shards._files.clear()
    assert len(os.listdir("/proc/self/fd")) == before
