"""Naming sources by a string."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anystep.data.art import ArtSource
from anystep.data.folders import ClassFolderSource, ImageFolderSource
from anystep.data.idx import IdxSource
from anystep.data.sources import ConcatSource, open_source
from anystep.errors import InputError


def test_builtin_with_options() -> None:
    source = open_source("builtin", 24, vocabulary="everyday", split="held_out", styles=("flat",))
    assert isinstance(source, ArtSource)
    assert source.size == 24
    assert {drawing.style for drawing in source.drawings} == {"flat"}
    assert "bus" in source.class_names
    assert "rocket" not in source.class_names


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 4)).save(tmp_path / "cat" / "1.png")
    (tmp_path / "cat" / "1.txt").write_text("a cat")
    captioned, classes = open_source(str(tmp_path), 16), open_source(f"classes:{tmp_path}", 16)
    assert isinstance(captioned, ImageFolderSource)
    assert captioned[0].captions == ("a cat",)
    assert isinstance(classes, ClassFolderSource)
    assert classes[0].label == 0
    assert captioned[0].image.size == classes[0].image.size == (16, 16)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(open_source(f"~/{tmp_path.name}", 16)) == 1


def test_idx_with_its_split(tmp_path: Path) -> None:
    for kind, array in (("images-idx3", np.zeros((2, 28, 28), np.uint8)), ("labels-idx1", np.zeros(2, np.uint8))):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / f"t10k-{kind}-ubyte").write_bytes(header + array.tobytes())
    source = open_source(f"idx:{tmp_path}", 32, split="test")
    assert isinstance(source, IdxSource)
    assert source[1].image.size == (32, 32)


@pytest.mark.parametrize("spec", ["nowhere", "", "idx:", "idx:nowhere", "classes:nowhere", "hub:cats", "Builtin"])
def test_unknown_spec_lists_what_is_possible(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        open_source(spec, 16)
    message = str(caught.value)
    assert repr(spec) in message
    assert all(possible in message for possible in ("builtin", "FOLDER", "classes:FOLDER", "idx:FOLDER"))
    assert "\n" not in message


def test_option_of_another_source_is_refused(tmp_path: Path) -> None:
    for spec, option in (
        (str(tmp_path), "vocabulary"), ("scenes", "split"), ("builtin", "count"), (f"shards:{tmp_path}", "split"),
        (f"classes:{tmp_path}", "split"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"data source '{spec}' takes no option '{option}', but "):
            open_source(spec, 16, **{option: "all"})
    with pytest.raises(InputError, match="style 'oil' is unknown"):
        open_source("builtin", 16, styles=["flat", "oil"])


@pytest.mark.parametrize("spec", ["builtin", "scenes", "folder", "classes:folder"])
def test_an_image_that_no_machine_holds_is_refused_before_anything_is_read(spec: str) -> None:
    with pytest.raises(InputError, match=r"size 1000000x1000000: one image would take 30,000 GB"):
        open_source(spec, 1_000_000)


def test_classes_of_several_sources_are_told_apart_by_name(tmp_path: Path) -> None:
    for place, names in enumerate((["cat", "ant"], ["bee", "cat"])):
        for name in names:
            (tmp_path / f"{place}" / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / f"{place}" / name / "0.png")
    sources = [open_source(f"classes:{tmp_path / str(place)}", 8) for place in (0, 1)]
    both = ConcatSource(sources)
    assert [both.class_names[both[index].label or 0] for index in range(4)] == ["ant", "cat", "bee", "cat"]
    assert len({both.stamp(index) for index in range(4)}) == 4
    assert [both.digest(index) for index in range(2, 4)] == [sources[1].digest(index) for index in range(2)]  # type: ignore[attr-defined]
    (alone,) = [ConcatSource(sources[:1])]
    assert (alone.class_names, alone[1].label) == (sources[0].class_names, 1)
