"""Folders of captioned images and of classes."""

import errno
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from anystep.cli import main
from anystep.data.example import BrokenExample
from anystep.data.folders import ClassFolderSource, ImageFolderSource, read_image, read_picture
from anystep.errors import InputError
from anystep.files import MARKER

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


@pytest.mark.parametrize("row", ["{", "[]", '{"text": "x"}', '{"file_name": 1, "text": "x"}', "[" * 100_000])
def test_bad_metadata_names_the_line(tmp_path: Path, row: str) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text("\n" + row)
    with pytest.raises(InputError, match=r"metadata\.jsonl, line 2: (expected|not JSON)"):
        ImageFolderSource(tmp_path, 8)


def test_metadata_of_images_that_are_not_there_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "x")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "../a.png", "text": "x"}\n{"file_name": "b", "text": ""}')
    source = ImageFolderSource(tmp_path, 8)
    assert (len(source), source[0].captions) == (1, ("x",))
    assert source.passed_over == {"images of metadata.jsonl that are not there": (2, "../a.png")}


@pytest.mark.parametrize("text", [None, 5, [1], "", [], "a\0b", "\ud800", [["a"]], {}])
def test_an_image_whose_row_gives_no_caption_is_left_out(tmp_path: Path, text: object) -> None:
    for name in ("a.png", "b.png"):
        put(tmp_path / name)
    rows = [{"file_name": "a.png", "text": text}, {"file_name": "b.png", "text": "b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = ImageFolderSource(tmp_path, 8)
    with pytest.raises(BrokenExample, match=r"a\.png: its caption .*, in its row of metadata\.jsonl"):
        source[0]
    assert source[1].captions == ("b",)
    (tmp_path / "b.png").unlink()
    with pytest.raises(InputError, match="none of 1 images has a caption that can be used: its caption"):
        ImageFolderSource(tmp_path, 8)


def test_everything_in_a_folder_is_used_or_counted(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "p", tmp_path / "elsewhere"
    put(folder / "a.png", "a")
    put(folder / "deep" / "b.png").with_suffix(".TXT").write_text("b")
    put(elsewhere / "c.png", "c")
    (folder / "linked").symlink_to("../elsewhere")
    (folder / "again").symlink_to("deep")
    (elsewhere / "loop").symlink_to("../p")
    (folder / "self").symlink_to("self")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "d.cr2", "notes.md", ".DS_Store"):
        (folder / name).write_bytes(b"?")
    (folder / "IMG_1.txt").write_text("of a photograph")
    os.mkfifo(folder / "pipe.png")
    put(folder / "made" / "picture.png")
    (folder / "made" / MARKER).write_text('{"kind": "report", "format": 1}')
    source = ImageFolderSource(folder, 8)
    assert [example.captions for example in source] == [("a",), ("b",), ("c",)]
    assert source.names == ["a.png", "deep/b.png", "linked/c.png"]
    assert source.passed_over == {
        ".heic images, which pillow-heif reads (pip install pillow-heif)": (2, "IMG_1.HEIC"),
        ".cr2 images, which rawpy develops: save them as PNG or JPEG": (1, "d.cr2"),
        ".md files": (1, "notes.md"),
        "other files": (1, "self"),
        "captions without an image that can be read": (1, "IMG_1.txt"),
        "hidden files and folders": (1, ".DS_Store"),
        "FIFOs, sockets and devices": (1, "pipe.png"),
        "folders that anystep made": (1, "made/"),
        "links to folders that are read already": (2, "again/"),
    }
    (folder / "a.png").unlink()
    classes = ClassFolderSource(tmp_path, 8)
    assert classes.class_names == ["elsewhere", "p"]
    assert classes.names == ["elsewhere/c.png", "p/deep/b.png"]  # neither is in both, whatever the links say
    assert classes.passed_over["other files"] == (1, "p/self")


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "a")
    put(tmp_path / "b.png")
    os.mkfifo(tmp_path / "pipe")
    for name in ("c.png", "b.txt"):
        (tmp_path / name).symlink_to("pipe")
    with pytest.raises(InputError, match=r"no caption for b\.png"):  # its text is none
        ImageFolderSource(tmp_path, 8)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "b.txt").write_text("b")
    source = ImageFolderSource(tmp_path, 8)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("pipe")
    with pytest.raises(BrokenExample, match="it is a FIFO"):
        source[0]
    assert source.stamp(0) != source.stamp(1)
    assert source.digest(0) != source.digest(1)
    os.mkfifo(tmp_path / "metadata.jsonl")
    assert source.names == ["a.png", "b.png"]


def test_names_that_are_no_utf8_and_captions_that_are_none(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    put(tmp_path / odd, "a cup")
    put(tmp_path / "b.png").with_suffix(".txt").write_bytes("a tea pot".encode("utf-16-le"))
    source = ImageFolderSource(tmp_path, 8)
    assert (source[1].key, source[1].captions) == ("caf\\udce9.png", ("a cup",))
    with pytest.raises(BrokenExample, match="NUL characters"):
        source[0]
    (tmp_path / odd).write_bytes(b"")
    with pytest.raises(BrokenExample, match=r"caf\\udce9\.png: not an image"):
        source[1]


def test_our_own_sheet_and_prepared_folder_are_no_data(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    put(folder / "a.png", "a thing", (64, 64))
    for name in ("sheet.png", "sheet.jpg", "sheet.webp"):
        for _ in range(2):
            assert main(["data", "show", str(folder), "--out", str(folder / name)]) == 0
    words = ["data", "prepare", str(folder), "--out", str(folder / "made"), "--size", "64", "--codec", "identity"]
    assert main(words) == main(words) == 0
    source = ImageFolderSource(folder, 8)
    assert source.names == ["a.png"]
    assert source.passed_over == {
        "contact sheets that anystep drew": (3, "sheet.jpg"), "folders that anystep made": (1, "made/"),
    }  # fmt: skip
    assert main(["data", "show", str(folder / "made"), "--out", str(tmp_path / "no.png")]) == 2


def test_an_image_is_not_left_out_because_files_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageFolderSource(put(tmp_path / "a.png", "a").parent, 8)

    def no_more(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", no_more)
    with pytest.raises(OSError, match="Too many open files"):
        source[0]


def profile(*swapped: bytes) -> bytes:
    """An sRGB profile, in which two primaries are exchanged."""
    found = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", found[128:132])[0]
    tags = {
        bytes(found[at : at + 4]): struct.unpack(">II", found[at + 4 : at + 12])
        for at in range(132, 132 + 12 * count, 12)
    }
    if swapped:
        (one, size), (other, _) = (tags[name] for name in swapped)
        found[one : one + size], found[other : other + size] = found[other : other + size], found[one : one + size]
    return bytes(found)


def test_colour_profiles_are_applied_and_damaged_ones_are_no_reason(tmp_path: Path) -> None:
    odd, plain = profile(b"rXYZ", b"bXYZ"), profile()
    for name, icc, expected, note in (
        ("a.png", odd, BLUE, ("colour profile to sRGB",)),
        ("a.jpg", odd, BLUE, ("colour profile to sRGB",)),
        ("b.png", plain, RED, ()),
        ("c.png", odd[:500], RED, ("a colour profile that cannot be used",)),
        ("d.png", b"?" * 200, RED, ("a colour profile that cannot be used",)),
    ):
        Image.new("RGB", (16, 16), RED).save(tmp_path / name, icc_profile=icc)
        picture = read_picture(tmp_path / name, None)
        np.testing.assert_allclose(picture.image.getpixel((4, 4)), expected, atol=6)
        assert picture.notes == note
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.save(tmp_path / "e.png", icc_profile=odd)
    found = read_image(tmp_path / "e.png", None)
    np.testing.assert_allclose(found.getpixel((0, 0)), BLUE, atol=6)
    assert found.getpixel((2, 2)) == WHITE
    Image.new("L", (4, 4), 99).save(tmp_path / "f.png", icc_profile=plain)  # of another kind than the pixels
    assert read_picture(tmp_path / "f.png", None).image.getpixel((0, 0)) == (99, 99, 99)


def test_a_damaged_orientation_is_none(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), RED).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0")
    assert read_picture(tmp_path / "a.png", 4).notes == ()


def test_missing_captions_are_one_line_with_a_count(tmp_path: Path) -> None:
    put(tmp_path / "sub" / "a.png", "  \n")
    with pytest.raises(InputError, match="none of 1 images has a caption that can be used: its caption is empty"):
        ImageFolderSource(tmp_path, 8)
    for name in "bcd":
        put(tmp_path / "sub" / f"{name}.png")
    with pytest.raises(InputError, match=r"no caption for sub/b\.png and 2 more; write sub/b\.txt") as caught:
        ImageFolderSource(tmp_path, 8)
    assert "\n" not in str(caught.value)


def test_caption_that_is_not_utf8(tmp_path: Path) -> None:
    put(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="its caption: not UTF-8 text, at byte 0"):
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


def test_an_image_that_unpacks_to_more_than_pillow_allows_is_left_out(tmp_path: Path) -> None:
    path = put(tmp_path / "a.png", "a")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(BrokenExample, match=r"a\.png: Image size \(900000000 pixels\) exceeds limit"):
        read_image(path, 8)
