"""Tars that are read by number: ours, other people's, local and remote, whole and damaged."""

import io
import json
import os
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from anystep.data.example import BrokenExample
from anystep.data.overview import overview
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


def picture(level: int = 7) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


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
    path = tar_of(tmp_path / "web" / "0.tar", [(f"{n}.png", picture(n)) for n in range(12)])
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[3].offset
    path.write_bytes(damage(bytearray(path.read_bytes()), offset))
    with pytest.raises(InputError, match=rf"web/0\.tar: not a whole, uncompressed tar: .*({message})"):
        open_source(f"shards:{path.parent}", 8)
    assert not (path.parent / INDEX).exists()


def test_headers_that_lead_back_or_nowhere_end(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "web" / "0.tar", [("a.png", picture()), ("b.png", picture())])
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
    folder = tar_of(
        tmp_path / "web" / "0.tar",
        [
            ("a.png", picture(1)), ("a.txt", text),
            *((f"photo.{n}.{extension}", content) for n in (1, 2) for extension, content in
              (("png", picture(10 + n)), ("TXT", text))),
            ("b.png", picture(2)), ("b.txt", text), ("b.seg.png", picture(3)), ("b.v2.npy", b"?"),
            ("c.png", picture(4)), ("c.txt", text), ("c.large.png", picture(5)), ("c.large.txt", text),
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


def test_what_is_no_plain_file_in_a_tar_is_counted_and_never_followed(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "web" / "0.tar", [("../../up.png", picture(1)), ("/abs/a.png", picture(2)), ("._a.png", b"")]
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


def test_an_index_of_tars_that_changed_is_made_again(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "web" / "0.tar", [("a.png", picture(1)), ("b.png", picture(2))])
    assert len(open_source(f"shards:{path.parent}", 8)) == 2
    size = path.stat().st_size
    tar_of(path, [("a.png", picture(9)), ("a.txt", b"a"), ("c.png", picture(2)), ("c.txt", b"c")])
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

    shards = written(tmp_path, 3)
    changed = getattr(shards.index, table).clone()
    changed[0] = 2**40 if changed.dtype != torch.int32 else 7
    if table == "labels":
        changed = changed[:1]
    replace(shards.index, **{table: changed}).save(tmp_path / INDEX)
    assert from_npy(Shards(str(tmp_path)).read(2)["npy"]).tolist() == [2, 2, 2]
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match=r"is damaged: its? .*: run the same `anystep data prepare` again"):
        Shards(str(tmp_path))


def test_one_tar_and_several_by_a_pattern(tmp_path: Path) -> None:
    for name in ("part-000", "part-001", "part-002", "test"):
        tar_of(tmp_path / "web" / f"{name}.tar", [(f"{name}.png", picture())])
    (tmp_path / "web" / "more.tar.gz").write_bytes(b"")
    folder = tmp_path / "web"
    assert len(Shards(str(folder))) == 4
    assert Shards(str(folder)).passed_over == {"compressed tars, which must be unpacked": (1, "more.tar.gz")}
    assert list(Shards(f"{folder}/part-001.tar").index.shards) == ["part-001.tar"]
    assert list(Shards(f"{folder}/part-{{000..002}}.tar").index.shards) == [f"part-{n:03}.tar" for n in range(3)]
    assert list(Shards(f"{folder}/{{test,part-000}}.tar").index.shards) == ["test.tar", "part-000.tar"]
    fsspec.filesystem("memory").put(f"{folder}/test.tar", "/lone/test.tar")
    assert len(Shards("memory://lone/test.tar")) == 1
    for pattern, message in (
        ("part-{000..003}.tar", r"no part-003\.tar there \(1 of 4 are missing\)"),
        ("nothing.tar", r"no nothing\.tar there"),
        ("part-{5..1}.tar", "counts no tars"),
        ("part-{0..999999999}.tar", "counts no tars, or more than"),
        ("{1..1000}{1..1000}{1..1000}.tar", "more than 1,000,000 tars"),
        ("part-{00", "is no pattern"),
        ("{a,b}/0.tar", "braces may stand in the names of tars alone"),
    ):
        with pytest.raises(InputError, match=message):
            Shards(f"{folder}/{pattern}")


@pytest.mark.parametrize("label", [b"cat", b"-1", b"1000000000", b"9" * 5000, b"", b"1.5", b"\xff", b"1_0", b"+1"])
def test_a_class_that_is_none_is_left_out(tmp_path: Path, label: bytes) -> None:
    files = [("a.png", picture()), ("a.cls", label), ("b.png", picture()), ("b.CLS", b"1\n")]
    source = open_source(f"shards:{tar_of(tmp_path / 'web' / '0.tar', files).parent}", 8)
    assert source.class_names == ["0", "1"]
    assert source[1].label == 1
    with pytest.raises(BrokenExample, match="is not the number of a class"):
        source[0]


def test_a_record_without_a_class_among_classes_is_left_out(tmp_path: Path) -> None:
    files = [("a.png", picture()), ("b.png", picture()), ("b.cls", b"1")]
    source = open_source(f"shards:{tar_of(tmp_path / 'web' / '0.tar', files).parent}", 8)
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
    entries = [("a.png", picture()), *((f"a.{name}", content) for name, content in files.items()), ("b.png", picture()),
               ("b.json", b'{"caption": "b"}')]  # fmt: skip
    source = open_source(f"shards:{tar_of(tmp_path / 'web' / '0.tar', entries).parent}", 8)
    assert source[1].captions == ("b",)
    if isinstance(captions, tuple):
        assert source[0].captions == captions
        return
    with pytest.raises(BrokenExample, match=captions):
        source[0]


def test_tars_without_captions_can_be_shown_and_side_files_are_named(tmp_path: Path) -> None:
    folder = tar_of(tmp_path / "web" / "0.tar", [("a.png", picture())]).parent
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


def headed(kind: str, shape: str) -> bytes:
    """Eight bytes as a `.npy` file that says something else of them."""
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0v\0" + header.encode() + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x93NUMPY", to_npy(np.zeros(3))[:-1], to_npy(np.zeros(3)) + b"x", b"\x93NUMPY\x03\0" + bytes(99),
        to_npy(np.zeros(10**6))[:128], to_npy(np.array(["text"])),
        headed("'<f8'", "(1000000, 500000)"), headed("'|O'", "(1,)"), headed("'<f8'", "(-1, -1)"), headed("'<f8'", "x"),
    ],
)  # fmt: skip
def test_a_damaged_array_makes_nothing_larger_than_itself(content: bytes) -> None:
    with pytest.raises(ValueError, match="array"):
        from_npy(content)


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float16), np.ones((2, 3), order="F"), np.arange(6, dtype=">i4")])
def test_arrays_come_back_as_they_were(array: np.ndarray) -> None:
    found = from_npy(to_npy(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def parquet_of(path: Path, **columns: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table(columns), path)
    return path.parent


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["x/1.png"], "text": ["a"]}, "column image holds string, expected the bytes of image files"),
        ({"image": [b"x"], "text": [5]}, "column text holds int64, expected text"),
        ({"image": [b"x"], "label": ["cat"]}, "column label holds string, expected whole numbers"),
        ({"image": [{"path": "a"}]}, "column image holds struct<path: string>"),
    ],
)
def test_parquet_columns_of_other_types_are_one_line(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(f"parquet:{parquet_of(tmp_path / 'p' / 'train-0.parquet', **columns)}", 8)


def test_parquet_rows_that_are_wrong_are_left_out(tmp_path: Path) -> None:
    image = picture()
    folder = parquet_of(
        tmp_path / "p" / "train-0.parquet", image=[image] * 6, label=[0, 1, None, -1, 10**9, 1],
        text=["a", None, "c", "d", "e", "a\0b"],
    )  # fmt: skip
    source = open_source(f"parquet:{folder}", 8)
    assert (source.class_names, source[0].label, source[0].captions) == (["0", "1"], 0, ("a",))
    reasons = ["its caption is empty", "class None", "class -1", "class 1000000000", "NUL characters"]
    for number, reason in enumerate(reasons, 1):
        with pytest.raises(BrokenExample, match=f"row {number}: .*{reason}"):
            source[number]
    parquet_of(folder / "train-1.parquet", image=[image], label=[0])
    with pytest.raises(InputError, match=r"train-1\.parquet: no column text, which train-0\.parquet has"):
        open_source(f"parquet:{folder}", 8)
    (folder / "train-1.parquet").unlink()
    (folder / "more").symlink_to("..")
    os.mkfifo(folder / "train-2.parquet")
    parquet_of(folder / "test-0.parquet", image=[image])
    assert open_source(f"parquet:{folder}", 8).passed_over == {  # type: ignore[attr-defined]
        "FIFOs, sockets and devices": (1, "train-2.parquet"),
        "links to folders that are read already": (1, "more/p/"),
        "Parquet files of other splits": (1, "test-0.parquet"),
    }
    (folder / "train-0.parquet").write_bytes((folder / "train-0.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"train-0\.parquet: not a Parquet file that can be read"):
        open_source(f"parquet:{folder}", 8)
