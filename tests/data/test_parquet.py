"""Parquet files as Hugging Face writes them, and others."""

import io
import json
import os
from pathlib import Path

import pytest
from helpers import png_bytes
from PIL import Image

from anystep.data.example import BrokenExample
from anystep.data.parquet import UNREAD_TEXT, split_of
from anystep.data.sources import open_source
from anystep.errors import InputError


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


SPLIT_NAMES = {
    "train": ("train-00000-of-00001.parquet", "default/train/0.parquet", "data-train-0.parquet", "Training/a.parquet"),
    "validation": ("dev.parquet", "plain/validation/0.parquet", "my_val_0.parquet"),
    "test": ("train/test/0.parquet", "x/test2007.parquet"),
    None: ("0000.parquet", "default/latest.parquet", "devices/0.parquet"),
}


@pytest.mark.parametrize(("split", "names"), SPLIT_NAMES.items())
def test_a_split_is_a_word_of_the_path(split: str | None, names: tuple[str, ...]) -> None:
    assert [split_of(name, "train") for name in names] == [split] * len(names)


def test_only_files_of_the_split_are_taken(tmp_path: Path) -> None:
    for name in ("train", "test"):
        parquet_of(tmp_path / "both" / name / "0.parquet", image=[png_bytes()] * len(name), label=[0] * len(name))
    for split in ("train", "test"):
        assert len(open_source(f"parquet:{tmp_path / 'both'}", 8, split=split)) == len(split)
    with pytest.raises(InputError, match="no Parquet file of split validation, but of test, train"):
        open_source(f"parquet:{tmp_path / 'both'}", 8, split="val")
    assert len(open_source(f"parquet:{tmp_path / 'both' / 'test'}", 8)) == 4  # nothing else is there
    parquet_of(tmp_path / "alone" / "val-0.parquet", image=[png_bytes()], label=[0])
    assert len(open_source(f"parquet:{tmp_path / 'alone'}", 8)) == 1
    with pytest.raises(InputError, match="no Parquet file of split test, but of validation"):
        open_source(f"parquet:{tmp_path / 'alone'}", 8, split="test")
    parquet_of(tmp_path / "plain" / "a.parquet", image=[png_bytes()], label=[0])
    assert len(open_source(f"parquet:{tmp_path / 'plain'}", 8)) == 1


def parquet_of(path: Path, **columns: object) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
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


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
@pytest.mark.parametrize("image", ["binary", "large_binary", "binary_view", "dictionary"])
def test_every_type_of_text_and_bytes_is_read(tmp_path: Path, kind: str, image: str) -> None:
    import pyarrow as pa

    text = getattr(pa, kind)()
    pictures = pa.array([png_bytes()] * 2)
    pictures = (
        pictures.dictionary_encode() if image == "dictionary" else pa.array(pictures.to_pylist(), getattr(pa, image)())
    )
    for place, captions in enumerate(
        (
            pa.array(["a", "b"], text),
            pa.array([["a"], ["b"]], pa.list_(text)),
            pa.array([["a"], ["b"]], pa.list_(text, 1)),
        )
    ):
        folder = parquet_of(tmp_path / str(place) / "train-0.parquet", image=pictures, text=captions)
        assert [each.captions for each in open_source(f"parquet:{folder}", 8)] == [("a",), ("b",)]


def test_columns_that_are_not_read_are_counted(tmp_path: Path) -> None:
    folder = parquet_of(tmp_path / "p" / "train-0.parquet", jpg=[png_bytes()], txt=["a"], key=["1"], width=[8])
    source = open_source(f"parquet:{folder}", 8)
    assert source.passed_over == {UNREAD_TEXT: (2, "txt"), "Parquet columns that are not read": (1, "width")}  # type: ignore[attr-defined]


def test_labels_that_no_number_of_64_bits_holds_are_one_line(tmp_path: Path) -> None:
    import pyarrow as pa

    labels = pa.array([0, 2**63], pa.uint64())
    folder = parquet_of(tmp_path / "p" / "train-0.parquet", image=[png_bytes()] * 2, label=labels)
    with pytest.raises(InputError, match="column label cannot be read: Integer value 9223372036854775808"):
        open_source(f"parquet:{folder}", 8)


def test_parquet_rows_that_are_wrong_are_left_out(tmp_path: Path) -> None:
    image = png_bytes()
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
