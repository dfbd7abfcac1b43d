"""Tars that are read by number: ours, other people's, local and remote, whole and damaged."""

import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anystep.data.example import BrokenExample
from anystep.data.shards import INDEX, Record, Shards, from_npy, to_npy, write_shard
from anystep.data.sources import open_source
from anystep.errors import InputError


def records(count: int, first: int = 0) -> list[Record]:
    return [
        Record(f"{first + n:04d}", {"npy": to_npy(np.full(3, first + n)), "txt": b"x" * (n % 7)}, n % 3)
        for n in range(count)
    ]


def written(folder: Path, *counts: int) -> Shards:
    from anystep.data.shards import Index

    parts = [write_shard(folder / f"{n}.tar", records(count, 100 * n)) for n, count in enumerate(counts)]
    Index.joined(parts).save(folder / INDEX)
    return Shards(str(folder))


def pictures(folder: Path) -> Path:
    """Two tars as other tools write them: folders in names, captions in two kinds, one without."""
    folder.mkdir(exist_ok=True)
    for place in range(2):
        with tarfile.open(folder / f"part-{place}.tar", "w") as tar:
            for n in range(5):
                buffer = io.BytesIO()
                Image.new("RGB", (20, 12), (40 * n, 100 * place, 7)).save(buffer, "PNG")
                files = {"png": buffer.getvalue(), "cls": str(n % 2).encode()}
                files |= {"txt": f"one {n}\ntwo {n}\n".encode()} if n else {"json": b'{"caption": "from json"}'}
                for extension, content in files.items():
                    entry = tarfile.TarInfo(f"sub/img{place}{n}.{extension}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return folder


@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_every_record_comes_back_and_tar_reads_it_too(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    shards = written(folder, *counts)
    assert len(shards) == sum(counts)
    wanted = [record for n, count in enumerate(counts) for record in records(count, 100 * n)]
    for number, record in enumerate(wanted):
        assert shards.read(number) == record.fields
        assert int(shards.index.labels[number]) == record.label
    with tarfile.open(folder / "0.tar") as tar:
        opened = tar.extractfile("0000.npy")
        assert opened is not None
        assert from_npy(opened.read()).tolist() == [0, 0, 0]


def test_a_shard_depends_on_its_records_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shard(tmp_path / f"{name}.tar", records(4))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_a_flipped_bit_and_a_cut_are_broken_examples(tmp_path: Path) -> None:
    shards = written(tmp_path, 3)
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
    folder = pictures(tmp_path / "web")
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
    written(tmp_path, 3, 2)
    memory.put(str(tmp_path), "/ours", recursive=True)
    shards = Shards("memory://ours")
    assert not shards.local
    assert [from_npy(shards.read(n)["npy"])[0] for n in range(5)] == [0, 1, 2, 100, 101]
    memory.put(str(pictures(tmp_path / "web")), "/theirs", recursive=True)
    source = open_source("shards:memory://theirs", 8)
    assert (len(source), source[6].captions) == (10, ("one 1", "two 1"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no .tar file in it"),
        (
            lambda folder: (folder / "a.tar").write_bytes(b"no tar at all" * 100),
            r"a\.tar: not a whole, uncompressed tar",
        ),
    ],
)
def test_no_shards_are_one_line(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        Shards(str(tmp_path))


def test_a_missing_folder_an_unknown_protocol_and_tars_without_images_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shards '/nowhere/at/all'"):
        Shards("/nowhere/at/all")
    with pytest.raises(InputError, match="shards 'nonsense://a'"):
        Shards("nonsense://a")
    written(tmp_path, 2)
    with pytest.raises(InputError, match="hold no images, but npy, txt"):
        open_source(f"shards:{tmp_path}", 8)


def test_parquet_files_as_hugging_face_writes_them(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def rows(first: int) -> pa.Table:
        images = []
        for n in range(first, first + 5):
            buffer = io.BytesIO()
            Image.new("RGB", (10, 10), (n, 0, 0)).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue() if n != 3 else b"broken", "path": None})
        features = {"info": {"features": {"label": {"names": ["tench", "goldfish"], "_type": "ClassLabel"}}}}
        table = pa.table({"image": images, "label": [n % 2 for n in range(first, first + 5)]})
        return table.replace_schema_metadata({"huggingface": json.dumps(features)})

    for place in range(2):
        parquet.write_table(rows(5 * place), tmp_path / f"train-{place}.parquet", row_group_size=2)
    parquet.write_table(rows(50), tmp_path / "test-0.parquet")
    source = open_source(f"parquet:{tmp_path}", 8)
    assert (len(source), source.class_names) == (10, ["tench", "goldfish"])
    assert [source[n].image.getpixel((0, 0))[0] for n in (0, 4, 5, 9)] == [0, 4, 5, 9]  # type: ignore[index]
    assert source[7].label == 1
    with pytest.raises(BrokenExample, match="row 3: not an image"):
        source[3]
    with pytest.raises(InputError, match=r"no \.parquet file"):
        open_source(f"parquet:{(tmp_path / 'empty').mkdir() or tmp_path / 'empty'}", 8)
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "empty" / "x.parquet")
    with pytest.raises(InputError, match="no column image among a"):
        open_source(f"parquet:{tmp_path / 'empty'}", 8)
