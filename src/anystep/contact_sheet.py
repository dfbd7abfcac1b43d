"""Labelled grids of images, and images on disk."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from anystep.errors import InputError
from anystep.files import replacing

PAPER, INK, FAINT = "#f5f6f8", "#24292f", "#6b737d"  # white images stand out from the paper
SMALLEST_CELL = 160  # of a sheet whose cell size is not given: labels need that much room
LEADING = 1.3  # from line to line, in font sizes
# characters of Pillow's built-in font
BUILT_IN = frozenset({chr(code) for code in range(32, 127)} | set("“”‘’…"))
DASHES = str.maketrans("×–—", "x--")


@dataclass(frozen=True)
class Line:
    """One line of text, in Pillow's built-in font unless a font file is named."""

    text: str
    size: int
    colour: str
    font_file: str | None = None

    @property
    def font(self) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(self.size) if self.font_file is None else _font(self.font_file, self.size)

    @property
    def width(self) -> int:
        return ceil(self.font.getlength(self.text))

    @property
    def height(self) -> int:
        return round(LEADING * self.size)


_font = lru_cache(maxsize=64)(ImageFont.truetype)


def legible(text: str) -> str:
    """`text` without the accents and dashes that the built-in font, which is ASCII and quotes, shows as boxes.

    Other scripts stay as they are.
    """
    kept = ""
    for each in unicodedata.normalize("NFC", text.translate(DASHES)):
        base = "".join(part for part in unicodedata.normalize("NFKD", each) if not unicodedata.combining(part))
        plain = BUILT_IN.issuperset(base) and (base or not kept or kept[-1] in BUILT_IN)
        kept += base if plain else each
    return kept


def spelt(text: str) -> str:
    """`text` with what the built-in font does not have by name, as "[whale]", or letters by number, as "\\u9cb8"."""
    words = ""
    for each in text:
        if each in BUILT_IN or each.isspace():
            words += each
        elif unicodedata.category(each)[0] in "LMN":
            words += each.encode("unicode_escape").decode()
        elif unicodedata.category(each) not in ("Cf", "Mn"):  # joiners and variants of what is beside them
            words += f"[{unicodedata.name(each, f'U+{ord(each):04X}').lower()}]"
    return words


@lru_cache(maxsize=256)
def font_with(characters: frozenset[str]) -> str | None:
    """A font file of this machine that has all of the characters; None where there is none.

    That which comes with matplotlib is looked into first, and then upright ones of usual weight.
    """
    from matplotlib.font_manager import FontEntry, fontManager, get_font

    def styled(font: FontEntry) -> bool:
        return (font.style, font.variant, font.stretch, font.weight) != ("normal", "normal", "normal", 400)

    codes = set(map(ord, characters))
    for font in sorted(fontManager.ttflist, key=lambda font: (font.name != "DejaVu Sans", styled(font), font.fname)):
        with suppress(OSError, RuntimeError):  # damaged, or not there any more
            if codes <= get_font(font.fname).get_charmap().keys():
                return str(font.fname)
    return None


def wrap(text: str, size: int, width: int, colour: str = INK) -> list[Line]:
    """`text` in lines of which none but a single long word is wider than `width` pixels."""
    text, font_file = legible(text), None
    seen = frozenset(each for each in text if not each.isspace() and unicodedata.category(each) not in ("Cf", "Mn"))
    if not seen <= BUILT_IN:
        font_file = font_with(seen)
        text = spelt(text) if font_file is None else text
    lines: list[Line] = []
    for paragraph in text.split("\n"):
        line = Line("", size, colour, font_file)
        for word in paragraph.split():
            longer = replace(line, text=f"{line.text} {word}".strip())
            if line.text and longer.width > width:
                lines.append(line)
                longer = replace(line, text=word)
            line = longer
        lines.append(line)
    return lines


def shorten(lines: list[Line], height: int) -> list[Line]:
    """The lines that fit into `height` pixels, one at least; an ellipsis says that there were more."""
    fitting = max(1, height // lines[0].height)
    if len(lines) <= fitting:
        return lines
    return [*lines[: fitting - 1], replace(lines[fitting - 1], text=lines[fitting - 1].text.rstrip(" ,.;") + "...")]


def extent(lines: Sequence[Line]) -> tuple[int, int]:
    """Width and height of lines below each other, in pixels."""
    return max((line.width for line in lines), default=0), sum(line.height for line in lines)


def write(draw: ImageDraw.ImageDraw, lines: Sequence[Line], x: int, y: int, centred: bool = False) -> None:
    """Draw lines from height `y` downward, to the right of `x` or centred on it."""
    for line in lines:
        # an anchor on the baseline keeps "go" and "do" level
        draw.text((x, y + line.size), line.text, line.colour, line.font, anchor="ms" if centred else "ls")
        y += line.height


def scale(image: Image.Image, side: int) -> Image.Image:
    """An RGB image whose longer side has `side` pixels."""
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """A mask with round corners, which are smooth since it is drawn four times as large."""
    mask = Image.new("L", (4 * size[0], 4 * size[1]))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 4 * radius, 255)
    return mask.reduce(4)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] | None,
    column_labels: Sequence[str] | None,
    cell: int | None = None,
    title: str | None = None,
) -> Image.Image:
    """A grid of images with labels at its left and above it, as RGB.

    Args:
        rows: images, row by row; a short row leaves its last cells empty.
        row_labels: one for each row, wrapped at words and shortened to the height of the row.
        column_labels: one for each column; what follows the first line is smaller and fainter.
        cell: to how many pixels the longer side of every image is scaled; by default the longest side there is.
        title: above everything.

    Raises:
        ValueError: no image, or not one label for each row or column.
    """
    count = max((len(row) for row in rows), default=0)
    if not count:
        raise ValueError("a contact sheet needs an image")
    for labels, wanted in ((row_labels, len(rows)), (column_labels, count)):
        if labels is not None and len(labels) != wanted:
            raise ValueError(f"expected {wanted} labels, got {len(labels)}: {list(labels)}")

    side = cell or max(SMALLEST_CELL, *(max(image.size) for row in rows for image in row))
    gap, aside, radius = max(4, round(0.07 * side)), max(10, round(0.145 * side)), round(0.04 * side)
    margin = max(12, round(0.18 * side))
    large, medium, small = max(16, round(0.155 * side)), max(12, round(0.11 * side)), max(11, round(0.094 * side))

    images = [[scale(image, side) for image in row] for row in rows]
    widths = [max(row[column].width for row in images if column < len(row)) for column in range(count)]
    heights = [max((image.height for image in row), default=0) for row in images]
    grid_width, grid_height = sum(widths) + gap * (count - 1), sum(heights) + gap * (len(rows) - 1)

    labels_beside = zip(row_labels or (), heights, strict=False)
    beside = [shorten(wrap(label, medium, round(1.3 * side)), height) for label, height in labels_beside]
    above = []
    for label, width in zip(column_labels or (), widths, strict=False):
        first, *rest = label.split("\n", 1)
        above.append(wrap(first, medium, width) + [line for more in rest for line in wrap(more, small, width, FAINT)])
    stub = max(extent(lines)[0] for lines in beside) + aside if beside else 0
    header = max(extent(lines)[1] for lines in above) + gap // 2 if above else 0
    heading = wrap(title, large, stub + grid_width) if title else []
    left, below = margin + stub, margin + (extent(heading)[1] + aside if heading else 0)
    top = below + header

    sheet = Image.new("RGB", (left + grid_width + margin, top + grid_height + margin), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, heading, margin, margin)
    lefts = [left + sum(widths[:column]) + gap * column for column in range(count)]
    tops = [top + sum(heights[:row]) + gap * row for row in range(len(rows))]
    for lines, x, width in zip(above, lefts, widths, strict=False):
        write(draw, lines, x + width // 2, below, centred=True)
    for lines, y, height in zip(beside, tops, heights, strict=False):
        write(draw, lines, margin, y + (height - extent(lines)[1]) // 2)
    for row, y, height in zip(images, tops, heights, strict=True):
        for image, x, width in zip(row, lefts, widths, strict=False):
            place = x + (width - image.width) // 2, y + (height - image.height) // 2
            sheet.paste(image, place, rounded(image.size, radius))
    return sheet


def check_writable(path: str | Path) -> None:
    """Raise `InputError` where `save_image` would, before the images are made."""
    path = Path(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"cannot write {path}: suffix {path.suffix!r} is no image format; use .png, .jpg or .webp")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'no permission'}")


def free_name(path: Path) -> Path:
    """`path`, or where something is there already the first of `path-1`, `path-2`, ... that is free."""
    number, free = 0, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def save_image(
    image: Image.Image, path: str | Path, texts: Mapping[str, str] | None = None, software: str = ""
) -> None:
    """Write an image whole or not at all, in the format that the suffix of `path` names.

    Args:
        texts: written beside the pixels: as text chunks of a PNG, the first as EXIF's description of a JPEG or WebP.
            Other formats hold none.
        software: what the file says that made it, in its EXIF data.

    Raises:
        InputError: it cannot be written.
    """
    check_writable(path)
    path = Path(path)
    kind = Image.registered_extensions()[path.suffix.lower()]
    beside = written_beside(kind, texts, software)
    try:
        with replacing(path) as part, part.open("xb") as file:
            # Pillow's quality of 75 shows around text and flat colours; lossless formats ignore it
            image.save(file, kind, quality=95, **beside)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def written_beside(kind: str, texts: Mapping[str, str] | None, software: str = "") -> dict[str, Any]:
    """Options with which Pillow writes these texts into a file of that format: see `save_image`."""
    beside: dict[str, Any] = {}
    exif = Image.Exif()
    if software:
        exif[ExifTags.Base.Software] = software
    if texts and kind == "PNG":
        beside["pnginfo"] = PngInfo()
        for name, text in texts.items():
            beside["pnginfo"].add_text(name, text)
    elif texts and kind in ("JPEG", "WEBP"):
        first = next(iter(texts.values()))
        if kind == "WEBP" or len(first) < 60_000:  # a segment of a JPEG holds 64 kB
            exif[ExifTags.Base.ImageDescription] = first
    if exif:
        beside["exif"] = exif
    return beside
