"""Image files of every kind become RGB of a size."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import save_image
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from anystep.data.example import BrokenExample
from anystep.data.images import read_example, read_image, to_rgb
from anystep.data.sizing import resize_and_crop
from anystep.evaluation.image_files import image_header

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


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
        picture = read_example(tmp_path / name, None, "")
        np.testing.assert_allclose(picture.image.getpixel((4, 4)), expected, atol=6)
        assert picture.conversions == note
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    clear.save(tmp_path / "e.png", icc_profile=odd)
    found = read_image(tmp_path / "e.png", None)
    np.testing.assert_allclose(found.getpixel((0, 0)), BLUE, atol=6)
    assert found.getpixel((2, 2)) == WHITE
    Image.new("L", (4, 4), 99).save(tmp_path / "f.png", icc_profile=plain)  # of another kind than the pixels
    assert read_example(tmp_path / "f.png", None, "").image.getpixel((0, 0)) == (99, 99, 99)


def test_a_damaged_orientation_is_none(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), RED).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0")
    assert read_example(tmp_path / "a.png", 4, "").conversions == ()


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
    save_image(tmp_path / "a.png", size=shape)
    assert read_image(tmp_path / "a.png", 16).getcolors() == [(256, RED)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_images_are_turned_upright_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(pixels).save(path, exif=exif, lossless=True)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    found = read_example(path, None, "")
    np.testing.assert_array_equal(np.asarray(found.image), np.asarray(upright))
    assert found.original == image_header(path)[0] == upright.size
    assert found.conversions == (("turned upright",) if orientation > 1 else ())
    assert read_image(path, (4, 4)).tobytes() == resize_and_crop(upright, (4, 4)).tobytes()
    with Image.open(path) as lazy:
        assert to_rgb(lazy).tobytes() == upright.tobytes()


def grey16() -> Image.Image:
    return Image.fromarray(np.full((4, 4), 257 * 200, np.uint16))


MODES = {
    "rgb.jpg": (Image.new("RGB", (4, 4), (200, 200, 200)), (200, 200, 200)),
    "grey.png": (Image.new("L", (4, 4), 200), (200, 200, 200)),
    "grey16.png": (grey16(), (200, 200, 200)),
    "grey16.tif": (grey16(), (200, 200, 200)),
    "grey16.pgm": (grey16(), (200, 200, 200)),
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


def test_the_clear_level_of_16_bit_grey_is_white(tmp_path: Path) -> None:
    levels = np.array([[40_000, 40_001], [0, 65_535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey.png", transparency=40_000)
    pixels = np.asarray(read_image(tmp_path / "grey.png", None))
    assert pixels[..., 0].tolist() == [[255, 156], [0, 255]]


@pytest.mark.parametrize(("bits", "clear", "row"), [(1, 1, 0x40), (2, 1, 0x1B), (4, 5, 0x5A)])
def test_the_clear_level_of_grey_of_few_bits_is_white(tmp_path: Path, bits: int, clear: int, row: int) -> None:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tRNS", struct.pack(">H", clear)), (b"IDAT", zlib.compress(bytes([0, row]))))
    content = b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))
    (tmp_path / "grey.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    levels = [row >> (8 - bits) & (2**bits - 1), row >> (8 - 2 * bits) & (2**bits - 1)]
    expected = [255 if level == clear else level * 255 // (2**bits - 1) for level in levels]
    assert np.asarray(read_image(tmp_path / "grey.png", None))[0, :, 0].tolist() == expected
    assert clear in levels
    assert min(expected) < 255


def test_a_png_may_hold_a_long_text(tmp_path: Path) -> None:
    texts = PngInfo()
    texts.add_text("workflow", "a" * 3_000_000, zip=True)
    Image.new("RGB", (4, 4), BLUE).save(tmp_path / "a.png", pnginfo=texts)
    assert read_image(tmp_path / "a.png", None).getpixel((0, 0)) == BLUE


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), BLUE).quantize().save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png", None).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(("mode", "reason"), [("F", "floating-point numbers"), ("I", "whole numbers of other than 16")])
def test_pixels_of_no_known_range_are_refused(tmp_path: Path, mode: str, reason: str) -> None:
    Image.new(mode, (4, 4), 1).save(tmp_path / "a.tif")
    with pytest.raises(BrokenExample, match=f"pixels are {reason}.*8 or 16 bits"):
        read_image(tmp_path / "a.tif", 4)


def test_12_bits_are_not_taken_for_16(tmp_path: Path) -> None:
    grey16().save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    entry = struct.pack("<HHI", 258, 3, 1)  # bits of a sample: one number of two bytes
    assert content.count(entry + b"\x10") == 1
    (tmp_path / "a.tif").write_bytes(content.replace(entry + b"\x10", entry + b"\x0c"))
    with pytest.raises(BrokenExample, match="other than 16 bits"):
        read_image(tmp_path / "a.tif", 4)


def test_large_jpeg_is_decoded_small_but_right(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp[None, :, None], (768, 1024, 3)).copy()).save(tmp_path / "a.jpg", quality=95)
    pixels = np.asarray(read_image(tmp_path / "a.jpg", 64))[32, :, 0]
    np.testing.assert_allclose(pixels, ramp[128:896].reshape(64, 12).mean(1), atol=2)
