"""Image files to RGB of a size, and RGB to tensors and back."""

import warnings
from contextlib import suppress
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from anystep.data.example import BrokenExample, Example
from anystep.data.sizing import Size, resize_and_crop, target_size
from anystep.errors import NO_MORE_FILES
from anystep.files import check_regular

ORIENTATION, BITS = ExifTags.Base.Orientation, ExifTags.Base.BitsPerSample
# Pillow recognises these but cannot draw them without further programs.
RECOGNISED_ONLY = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# of grey of fewer bits, what Pillow multiplies levels by while it decodes them, but not the transparent one
GREY_STEPS = {"1": 255, "L;2": 85, "L;4": 17}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# so much may the texts of a PNG hold together, and so may one alone: programs put how an image was made there
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# Pillow refuses images of twice its limit; what it warns of, large images and damaged EXIF data, is read all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow, with whatever plugins are installed, can read."""
    with suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
    for plugin in ("pillow_avif", "pillow_jxl"):
        with suppress(ImportError):
            __import__(plugin)
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, form in known if form in Image.OPEN and form not in RECOGNISED_ONLY)


def is_image(name: str) -> bool:
    """Whether a file of this name is an image that can be read."""
    return PurePosixPath(name).suffix.lower() in image_suffixes()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image; 1, upright, where the tag is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # readers of EXIF meet damage with exceptions of every type
        return 1
    return found if found in TURNS else 1


def _scale_clear_level(image: Image.Image) -> None:
    """Tell the transparent level of a grey PNG as its pixels will be, before it is loaded (reading EXIF does)."""
    if isinstance(image, PngImageFile) and image.tile:
        step = GREY_STEPS.get(str(image.tile[0][3]))
        if step is not None and 0 < image.info.get("transparency", 0) <= 255 // step:
            image.info["transparency"] *= step


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image once it is upright. A TIFF is loaded, since only then its size is certain."""
    if image.format == "TIFF":  # Pillow turns these while it loads them, and some versions tell the turned size before
        image.load()
    return image.size[::-1] if _orientation(image) >= 5 else image.size


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> tuple[Any, str]:
    """The transform from a colour profile and a mode to sRGB, and its name; None where nothing has to be done.

    The profile is judged by what it does and not by its name, which may be anything.
    """
    from PIL import ImageCms

    try:
        space = ImageCms.ImageCmsProfile(BytesIO(profile))
        kind = str(space.profile.xcolor_space).strip()
        given = "CMYK" if kind == "CMYK" else "L" if kind == "GRAY" else "RGB"
        if (given == "CMYK") != (mode == "CMYK") or kind not in ("CMYK", "GRAY", "RGB"):
            raise ValueError(kind)
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        srgb = ImageCms.createProfile("sRGB")
        turn = ImageCms.buildTransform(space, srgb, given, "RGB", intent, ImageCms.Flags.BLACKPOINTCOMPENSATION)
        if given == "CMYK":
            return turn, "colour profile to sRGB"
        levels = np.array([0, 32, 64, 128, 192, 255], np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(6, -1, 3)
        before = Image.fromarray(probe).convert(given)
        after = ImageCms.applyTransform(before, turn)
    except Exception:  # a profile may be damaged in every way
        return None, "a colour profile that cannot be used"
    moved = np.abs(np.asarray(before.convert("RGB"), np.int16) - np.asarray(after, np.int16)).max()
    return (None, "") if moved <= 2 else (turn, "colour profile to sRGB")


def _profile(image: Image.Image) -> tuple[Any, str]:
    """`_to_srgb` of an image; nothing where it has no profile."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return None, ""
    return _to_srgb(profile, "CMYK" if image.mode == "CMYK" else "RGB")


def _has_16_bits(image: Image.Image) -> bool:
    """Whether whole numbers as pixels go up to 65,535; Pillow's mode `I` may hold 32 bits, and TIFF's `I;16` 12."""
    if isinstance(image, TiffImageFile):
        return bool(image.tag_v2.get(BITS) == (16,))
    return image.mode != "I" or image.format in ("PNG", "PPM")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as sRGB: upright by its EXIF tag, its colour profile applied, 16 bits made 8, transparency on white."""
    turn: Any = _profile(image)[0]
    _scale_clear_level(image)
    image.load()  # Pillow turns a TIFF by it, and drops its tag
    if image.mode == "F" or (image.mode.startswith("I") and not _has_16_bits(image)):
        numbers = "floating-point numbers" if image.mode == "F" else "whole numbers of other than 16 bits"
        raise ValueError(f"pixels are {numbers}, whose range is anyone's guess; save it with 8 or 16 bits")
    if (orientation := _orientation(image)) != 1:
        image = image.transpose(TURNS[orientation])
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it at 255
        levels, clear = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((levels / 257).round().clip(0, 255).astype(np.uint8))
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if turn is not None:
        from PIL import ImageCms

        turned = ImageCms.applyTransform(image.convert(turn.input_mode), turn)
        assert turned is not None  # it is where it is not done in place
        image = turned
        if alpha is not None:
            image.putalpha(alpha)
    if alpha is not None:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def conversions(image: Image.Image) -> tuple[str, ...]:
    """What has to be done to an opened image to make it 8-bit sRGB, upright and opaque."""
    profile = _profile(image)[1]
    needed = (
        ("the first of several frames", getattr(image, "is_animated", False)),
        ("turned upright", _orientation(image) != 1),
        ("16 bits to 8", image.mode.startswith("I")),
        ("CMYK to RGB", image.mode == "CMYK"),
        (profile, bool(profile)),
        ("transparency on white", image.has_transparency_data),
    )
    return tuple(name for name, is_needed in needed if is_needed)


def read_example(
    file: Path | BytesIO,
    size: Size,
    key: str,
    captions: tuple[str, ...] = (),
    label: int | None = None,
    name: str = "",
) -> Example:
    """The example whose image is in a file, as sRGB of a size. Raises `BrokenExample`, which calls the file `name`."""
    name = name or str(file)
    image_suffixes()  # registers plugins
    try:
        if isinstance(file, Path):
            check_regular(file)
        with Image.open(file) as image:
            _scale_clear_level(image)
            done = conversions(image)  # before the size, which turns a TIFF
            original = upright_size(image)
            goal = target_size(*original, size)
            if size is not None:  # a large JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size
                wanted = goal if original == image.size else goal[::-1]
                image.draft(None, (2 * wanted[0], 2 * wanted[1]))
            picture = resize_and_crop(to_rgb(image), goal)
            return Example(key, picture, captions, label, original, done)
    except UnidentifiedImageError:
        raise BrokenExample(f"{name}: not an image that Pillow can read") from None
    except Exception as error:  # decoders meet damage with exceptions of every type
        if isinstance(error, OSError) and error.errno in NO_MORE_FILES:
            raise  # not the image's fault: left out, it would be missing for ever
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenExample(f"{name}: {reason}") from error


def read_image(file: Path | BytesIO, size: Size, name: str = "") -> Image.Image:
    """The RGB image in a file, given its size. Raises `BrokenExample`, which calls the file `name`."""
    return read_example(file, size, "", name=name).image


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """RGB in [-1, 1]."""
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).div_(127.5).sub_(1.0)


def to_pixels(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """RGB in 0..255."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def from_pixels(pixels: UInt8[Tensor, "3 height width"]) -> Image.Image:
    """The image of RGB in 0..255."""
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
