"""The gallery: files that hold their settings, in order, and nothing outside of the folder."""

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from anystep.errors import InputError
from anystep.pipelines.settings import read_settings
from anystep.studio.draw import Drawn
from anystep.studio.gallery import Gallery
from anystep.studio.request import ImageRequest

from .conftest import Engines


@pytest.fixture
def drawn(engines: Engines) -> Drawn:
    engine = engines()
    (job,) = engine.submit([ImageRequest("a whale", "tiny", steps=2, seed=7, finish_after=0)])
    engine.drain()
    return job.result()


def test_a_kept_picture_is_the_file_and_is_there_for_the_next_gallery(drawn: Drawn, tmp_path: Path) -> None:
    content = drawn.encoded()
    name = Gallery(tmp_path / "new").keep(drawn, content)
    assert re.fullmatch(r"\d{8}-\d{6}-\d{6}-seed-7-steps-002\.png", name)
    assert (tmp_path / "new" / name).read_bytes() == content
    (found,) = Gallery(tmp_path / "new").latest()
    assert found.name == name
    assert found.settings == read_settings(tmp_path / "new" / name)
    assert (found.settings.prompts, found.settings.seeds, found.settings.steps) == (("a whale",), (7,), (2,))
    assert found.settings.finish_after == 0


def test_pictures_come_latest_first_and_in_parts(drawn: Drawn, tmp_path: Path) -> None:
    gallery, content = Gallery(tmp_path), drawn.encoded()
    with ThreadPoolExecutor(8) as threads:
        names = sorted(threads.map(lambda _: gallery.keep(drawn, content), range(20)), reverse=True)
    assert len(set(names)) == 20
    first = [each.name for each in islice(gallery.latest(), 7)]
    rest = [each.name for each in gallery.latest(first[-1])]
    assert [*first, *rest] == names


def test_what_cannot_be_deleted_is_one_line(drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = Gallery(tmp_path)
    name = gallery.keep(drawn, drawn.encoded())

    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", forbid)
    with pytest.raises(InputError, match=f"cannot delete '{re.escape(name)}': Operation not permitted"):
        gallery.remove(name)


def test_other_files_of_the_folder_are_left_out_and_stay(drawn: Drawn, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "mine.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    gallery = Gallery(tmp_path)
    name = gallery.keep(drawn, drawn.encoded())
    assert [each.name for each in gallery.latest()] == [name]
    with pytest.raises(InputError, match="does not say how it was made"):
        gallery.remove("mine.png")
    gallery.remove(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "mine.png"]
    assert list(Gallery(tmp_path / "nothing").latest()) == []


@pytest.mark.parametrize(
    "name", ["../secret.png", "..", "/etc/passwd", "a/b.png", "link.png", "", "x.txt", ".hidden.png"]
)
def test_nothing_outside_of_the_folder_is_reached(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    inside = tmp_path / "gallery"
    inside.mkdir()
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / ".hidden.png").write_bytes(b"hidden")
    (inside / "x.txt").write_bytes(b"text")
    with pytest.raises(InputError, match="is no picture of the gallery"):
        Gallery(inside).path(name)
