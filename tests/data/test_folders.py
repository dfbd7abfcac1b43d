"""Folders of captioned images and of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anystep.data.example import BrokenExample
from anystep.data.folders import ClassFolderSource, ImageFolderSource, read_image
from anystep.errors import InputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def put(path: Path, caption: str | None = None, size: tuple[int, int] = (8, 6), colour: object = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")
    return path


def test_captions_beside_images(tmp_path: Path) -> None:
    put(tmp_path / "b.png", "a red field\n\n  all red \r\n")
    put(tmp_path / "a" / "z.PNG", "\ufeffa piñata")
    put(tmp_path / "a" / "..hidden.png")
    put(tmp_path / ".thumbnails" / "b.png")
    (tmp_path / "notes.md").write_text("no image")
    source = ImageFolderSource(tmp_path, 4)
    assert [example.key for example in source] == ["a/z.PNG", "b.png"]
    assert source[0].captions == ("a piñata",)
    assert source[1].captions == ("a red field", "all red")
    assert source[1].image.size == (4, 4)
    assert source[1].label is None
    assert list(source.class_names) == []


def test_captions_from_metadata(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "deep/c.png"):
        put(tmp_path / name)
    put(tmp_path / "d.png", "of the text file")
    rows = [
        {"file_name": "a.png", "text": "one\u2028line"},
        {"file_name": "./b.png", "caption": "first"},
        {"file_name": "b.png", "caption": "second"},
        {"file_name": "deep/c.png", "captions": ["x", " ", "y"]},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "metadata.jsonl").write_text(text, "utf-8")
    captions = {example.key: example.captions for example in ImageFolderSource(tmp_path, None)}
    assert captions == {
        "a.png": ("one\u2028line",),
        "b.png": ("first", "second"),
        "d.png": ("of the text file",),
        "deep/c.png": ("x", "y"),
    }


@pytest.mark.parametrize("row", ["{", "[]", '{"text": "x"}', '{"file_name": "a.png"}', '{"file_name": 1, "text": "x"}',
                                 '{"file_name": "a.png", "captions": [1]}'])  # fmt: skip
def test_bad_metadata_names_the_line(tmp_path: Path, row: str) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n" + row)
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 2: expected"):
        ImageFolderSource(tmp_path, 8)


def test_metadata_of_images_that_are_not_there(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "../a.png", "text": "x"}')
    with pytest.raises(InputError, match=r"\.\./a\.png named there, but no such image"):
        ImageFolderSource(tmp_path, 8)


def test_missing_captions_are_one_line_with_a_count(tmp_path: Path) -> None:
    put(tmp_path / "sub" / "a.png", "  \n")
    with pytest.raises(InputError, match=r"no caption for sub/a\.png; write sub/a\.txt .*metadata\.jsonl$"):
        ImageFolderSource(tmp_path, 8)
    for name in "bcd":
        put(tmp_path / "sub" / f"{name}.png")
    with pytest.raises(InputError, match=r"no caption for sub/a\.png and 3 more; ") as caught:
        ImageFolderSource(tmp_path, 8)
    assert "\n" not in str(caught.value)


def test_caption_that_is_not_utf8(tmp_path: Path) -> None:
    put(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"a\.txt"):
        ImageFolderSource(tmp_path, 8)


@pytest.mark.parametrize("source", [ImageFolderSource, ClassFolderSource])
@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_nothing_there(tmp_path: Path, source: type, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=folder):
        source(tmp_path / folder, 8)


def test_classes_are_sorted_subfolders(tmp_path: Path) -> None:
    put(tmp_path / "dog" / "1.png", colour=RED)
    put(tmp_path / "cat" / "2.png", colour=GREEN)
    put(tmp_path / "cat" / "young" / "1.png", colour=BLUE)
    put(tmp_path / ".cache" / "1.png")
    put(tmp_path / "stray.png")
    source = ClassFolderSource(tmp_path, 8)
    assert list(source.class_names) == ["cat", "dog"]
    assert [(example.key, example.label) for example in source] == [
        ("cat/2.png", 0), ("cat/young/1.png", 0), ("dog/1.png", 1),
    ]  # fmt: skip
    assert source[2].captions == ()
    (tmp_path / "bird").mkdir()
    with pytest.raises(InputError, match="bird: no image"):
        ClassFolderSource(tmp_path, 8)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "vanished", "link"])
def test_damaged_image_is_one_broken_example(tmp_path: Path, damage: str) -> None:
    path = put(tmp_path / "a.png", "x")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if damage == "link":
        path.unlink()
        path.symlink_to(tmp_path / "nowhere.png")
    put(tmp_path / "b.png", "y")
    source = ImageFolderSource(tmp_path, 8)
    if damage == "vanished":
        path.unlink()
    elif damage != "link":
        path.write_bytes({"empty": b"", "text": b"no image", "truncated": path.read_bytes()[:5000]}[damage])
    with pytest.raises(BrokenExample, match=r"a\.png: \S"):
        source[0]
    assert source[1].key == "b.png"


@pytest.mark.parametrize(("width", "height"), [(90, 30), (30, 90), (6, 2), (12, 12)])
def test_fit_is_a_resize_of_equal_factors_and_a_centre_crop(tmp_path: Path, width: int, height: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    factor = 12 / min(width, height)
    whole = Image.fromarray(noise).resize((round(factor * width), round(factor * height)), Image.Resampling.LANCZOS)
    left, top = (whole.width - 12) // 2, (whole.height - 12) // 2
    expected = np.asarray(whole.crop((left, top, left + 12, top + 12)), np.int16)
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "a.png", 12), np.int16), expected, atol=1)
    assert read_image(tmp_path / "a.png", None).size == (width, height)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (37, 61)])
def test_fit_of_odd_shapes(tmp_path: Path, shape: tuple[int, int]) -> None:
    put(tmp_path / "a.png", size=shape)
    assert read_image(tmp_path / "a.png", 16).getcolors() == [(256, RED)]


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = RED
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png", None)
    assert image.size == (16, 32)
    assert image.getpixel((8, 4)) == RED
    assert image.getpixel((8, 28)) == (0, 0, 0)


def grey16() -> Image.Image:
    return Image.fromarray(np.full((4, 4), 257 * 200, np.uint16))


MODES = {
    "rgb.jpg": (Image.new("RGB", (4, 4), (200, 200, 200)), (200, 200, 200)),
    "grey.png": (Image.new("L", (4, 4), 200), (200, 200, 200)),
    "grey16.png": (grey16(), (200, 200, 200)),
    "grey16.tif": (grey16(), (200, 200, 200)),
    "bits.png": (Image.new("1", (4, 4), 1), WHITE),
    "palette.gif": (Image.new("RGB", (4, 4), BLUE).quantize(), BLUE),
    "cmyk.tif": (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), RED),
    "clear.png": (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), WHITE),
    "half.png": (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), (255, 127, 127)),
    "half.webp": (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), WHITE),
    "grey-alpha.png": (Image.new("LA", (4, 4), (0, 0)), WHITE),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_becomes_rgb(tmp_path: Path, name: str) -> None:
    image, expected = MODES[name]
    image.save(tmp_path / name)
    found = read_image(tmp_path / name, 2)
    assert found.mode == "RGB"
    np.testing.assert_allclose(found.getpixel((1, 1)), expected, atol=1)


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), BLUE).quantize().save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png", None).getpixel((0, 0)) == WHITE


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(BrokenExample, match="8 or 16 bits"):
        read_image(tmp_path / "a.tif", 4)


def test_large_jpeg_is_decoded_small_but_right(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp[None, :, None], (768, 1024, 3)).copy()).save(tmp_path / "a.jpg", quality=95)
    pixels = np.asarray(read_image(tmp_path / "a.jpg", 64))[32, :, 0]
    np.testing.assert_allclose(pixels, ramp[128:896].reshape(64, 12).mean(1), atol=2)
