"""Names of folders and of tars in them."""

from pathlib import Path

import fsspec
import pytest
from helpers import png_bytes, save_shards, save_tar

from anystep.data.shards import Shards
from anystep.data.sources import open_source
from anystep.errors import InputError


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
    save_shards(tmp_path, 2)
    with pytest.raises(InputError, match="hold no images, but npy, txt"):
        open_source(f"shards:{tmp_path}", 8)


@pytest.mark.parametrize("name", ["{0..1}", "a {b,c} #%[x]?é"])
def test_folders_may_be_called_anything(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "tars"
    folder.parent.mkdir()
    save_tar(folder / "0.tar", [("a.png", png_bytes()), ("a.txt", b"a")])
    for url in (folder, folder / "0.tar", folder / "{0..0}.tar"):
        assert [each.captions for each in open_source(f"shards:{url}", 8)] == [("a",)]


def test_a_pattern_may_be_longer_than_a_name(tmp_path: Path) -> None:
    save_tar(tmp_path / "part-000.tar", [("a.png", png_bytes())])
    save_tar(tmp_path / "part-059.tar", [("a.png", png_bytes())])
    pattern = ",".join(f"part-{number:03d}" for number in range(60))
    with pytest.raises(InputError, match="part-001"):  # and not that a name is too long
        Shards(f"{tmp_path}/{{{pattern}}}.tar")
    with pytest.raises(InputError, match="no such folder"):
        open_source("x" * 300, 8)


def test_one_tar_and_several_by_a_pattern(tmp_path: Path) -> None:
    for name in ("part-000", "part-001", "part-002", "test"):
        save_tar(tmp_path / "web" / f"{name}.tar", [(f"{name}.png", png_bytes())])
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
