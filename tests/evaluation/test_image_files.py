"""Image files that are measured."""

from pathlib import Path

import pytest
from PIL import Image

from anystep.errors import InputError
from anystep.evaluation.image_files import image_header, is_whole_image, open_image, write_image


@pytest.mark.parametrize("name", ["one.png", "one.jpg"])
def test_an_image_is_written_with_its_folder_and_read_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / "folder" / name
    write_image(Image.new("RGB", (12, 8), "red"), path)
    assert is_whole_image(path)
    assert open_image(path).size == (12, 8)
    assert image_header(path) == ((12, 8), "PNG" if name.endswith("png") else "JPEG")
    path.write_bytes(path.read_bytes()[:-20])
    assert not is_whole_image(path)


def test_the_size_of_a_turned_image_is_that_of_the_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert image_header(tmp_path / "turned.jpg") == ((8, 12), "JPEG")
    assert open_image(tmp_path / "turned.jpg").size == (8, 12)


def test_missing_and_damaged_images_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no image '.*none.png'"):
        open_image(tmp_path / "none.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    for read, message in ((open_image, "not an image that Pillow can read"), (image_header, "not an image")):
        with pytest.raises(InputError, match=message):
            read(tmp_path / "bad.png")
