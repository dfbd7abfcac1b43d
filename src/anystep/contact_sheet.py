"""Labelled grids of images, and images on disk."""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from anystep.bounds import shown
from anystep.errors import InputError, refused
from anystep.files import part_of, replacing

PAPER, INK, FAINT = "#f5f6f8", "#24292f", "#6b737d"  # white images stand out from the paper
SMALLEST_CELL = 160  # of a sheet whose cell size is not given: labels need that much room
LEADING = 1.3  # from line to line, in font sizes
# characters of Pillow's built-in font
BUILT_IN = frozenset({chr(code) for code in range(32, 127)} | set("“”‘’…"))
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LONGEST = {"JPEG": 65_500, "WEBP": 16_383}  # pixels along a side, by the libraries that write them
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
        return math.ceil(self.font.getlength(self.text))

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

    That which comes with matplotlib is looked into first, and then upright ones of usual weight. A last resort, which
    has a box for every character, is none.
    """
    from matplotlib.font_manager import FontEntry, fontManager, get_font

    def styled(font: FontEntry) -> bool:
        return (font.style, font.variant, font.stretch, font.weight) != ("normal", "normal", "normal", 400)

    codes = set(map(ord, characters))
    fonts = [font for font in fontManager.ttflist if "lastresort" not in font.name.replace(" ", "").lower()]
    for font in sorted(fonts, key=lambda font: (font.name != "DejaVu Sans", styled(font), font.fname)):
        with suppress(OSError, RuntimeError):  # damaged, or not there any more
            if codes <= get_font(font.fname).get_charmap().keys():
                return str(font.fname)
    return None


def wrap(text: str, size: int, width: int, colour: str = INK) -> Iterator[Line]:
    """`text` in lines of at most `width` pixels; words are broken only where one alone is wider."""
    text, font_file = legible(text), None
    seen = frozenset(each for each in text if not each.isspace() and unicodedata.category(each) not in ("Cf", "Mn"))
    if not seen <= BUILT_IN:
        font_file = font_with(seen)
        text = spelt(text) if font_file is None else text
    for paragraph in text.split("\n"):
        line = Line("", size, colour, font_file)
        for word in paragraph.split():
            longer = replace(line, text=f"{line.text} {word}".strip())
            if longer.width <= width:
                line = longer
                continue
            if line.text:
                yield line
            line = replace(line, text="")
            for letter in word:
                longer = replace(line, text=line.text + letter)
                if line.text and longer.width > width:
                    yield line
                    longer = replace(line, text=letter)
                line = longer
        yield line


def shorten(lines: Iterable[Line], height: int) -> list[Line]:
    """The lines that fit into `height` pixels, one at least; an ellipsis says that there were more."""
    kept: list[Line] = []
    for line in lines:  # which are measured as they come: those of a page of text take seconds
        if kept and (len(kept) + 1) * line.height > height:
            return [*kept[:-1], replace(kept[-1], text=kept[-1].text.rstrip(" ,.;") + "...")]
        kept.append(line)
    return kept


def extent(lines: Sequence[Line]) -> tuple[int, int]:
    """Width and height of lines below each other, in pixels."""
    return max((line.width for line in lines), default=0), sum(line.height for line in lines)


def write(draw: ImageDraw.ImageDraw, lines: Sequence[Line], x: int, y: int, centred: bool = False) -> None:
    """Draw lines from height `y` downward, to the right of `x` or centred on it."""
    for line in lines:
        # an anchor on the baseline keeps "go" and "do" level
        draw.text((x, y + line.size), line.text, line.colour, line.font, anchor="ms" if centred else "ls")
        y += line.height


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of the same shape, of which the longer is `side`."""
    width, height = (max(1, round(each * (side / max(size)))) for each in size)
    return width, height


def scale(image: Image.Image, side: int) -> Image.Image:
    """An RGB image whose longer side has `side` pixels."""
    return image.convert("RGB").resize(scaled_size(image.size, side), Image.Resampling.LANCZOS)


def rounded(size: tuple[int, int], radius: int) -> Image.Image:
    """A mask with round corners, which are smooth since it is drawn four times as large."""
    mask = Image.new("L", (4 * size[0], 4 * size[1]))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 4 * radius, 255)
    return mask.reduce(4)


@dataclass(frozen=True)
class Layout:
    """Where everything of a contact sheet is, in pixels.

    Attributes:
        size: width and height of the sheet.
        side: of an image, the longer one.
        radius: of the corners of images.
        margin: around everything.
        heading, above, beside: the lines of the title, of each column's label and of each row's.
        below: the height where the columns' labels begin.
        columns, rows: of each the left or upper end and the width or height.
    """

    size: tuple[int, int]
    side: int
    radius: int
    margin: int
    heading: list[Line]
    above: list[list[Line]]
    beside: list[list[Line]]
    below: int
    columns: list[tuple[int, int]]
    rows: list[tuple[int, int]]


def layout(
    sizes: Sequence[Sequence[tuple[int, int]]],
    row_labels: Sequence[str] | None,
    column_labels: Sequence[str] | None,
    cell: int | None = None,
    title: str | None = None,
) -> Layout:
    """The layout of a `contact_sheet` of images of these widths and heights, row by row."""
    count = max((len(row) for row in sizes), default=0)
    if not count:
        raise ValueError("a contact sheet needs an image")
    for labels, wanted in ((row_labels, len(sizes)), (column_labels, count)):
        if labels is not None and len(labels) != wanted:
            raise ValueError(f"expected {wanted} labels, got {len(labels)}: {list(labels)}")

    side = cell or max(SMALLEST_CELL, *(max(size) for row in sizes for size in row))
    gap, aside = max(4, round(0.07 * side)), max(10, round(0.145 * side))
    margin = max(12, round(0.18 * side))
    large, medium, small = max(16, round(0.155 * side)), max(12, round(0.11 * side)), max(11, round(0.094 * side))

    scaled = [[scaled_size(size, side) for size in row] for row in sizes]
    widths = [max(row[column][0] for row in scaled if column < len(row)) for column in range(count)]
    heights = [max((height for _, height in row), default=0) for row in scaled]
    grid_width, grid_height = sum(widths) + gap * (count - 1), sum(heights) + gap * (len(sizes) - 1)

    labels_beside = zip(row_labels or (), heights, strict=False)
    beside = [shorten(wrap(label, medium, round(1.3 * side)), height) for label, height in labels_beside]
    above = []
    for label, width in zip(column_labels or (), widths, strict=False):
        first, *rest = label.split("\n", 1)
        above.append(
            [*wrap(first, medium, width), *(line for more in rest for line in wrap(more, small, width, FAINT))]
        )
    stub = max(extent(lines)[0] for lines in beside) + aside if beside else 0
    header = max(extent(lines)[1] for lines in above) + gap // 2 if above else 0
    heading = list(wrap(title, large, stub + grid_width)) if title else []
    left, below = margin + stub, margin + (extent(heading)[1] + aside if heading else 0)
    top = below + header
    return Layout(
        size=(left + grid_width + margin, top + grid_height + margin), side=side, radius=round(0.04 * side),
        margin=margin, heading=heading, above=above, beside=beside, below=below,
        columns=[(left + sum(widths[:each]) + gap * each, widths[each]) for each in range(count)],
        rows=[(top + sum(heights[:each]) + gap * each, heights[each]) for each in range(len(sizes))],
    )  # fmt: skip


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
    plan = layout([[image.size for image in row] for row in rows], row_labels, column_labels, cell, title)
    sheet = Image.new("RGB", plan.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, plan.heading, plan.margin, plan.margin)
    for lines, (x, width) in zip(plan.above, plan.columns, strict=False):
        write(draw, lines, x + width // 2, plan.below, centred=True)
    for lines, (y, height) in zip(plan.beside, plan.rows, strict=False):
        write(draw, lines, plan.margin, y + (height - extent(lines)[1]) // 2)
    for row, (y, height) in zip(rows, plan.rows, strict=True):
        for whole, (x, width) in zip(row, plan.columns, strict=False):
            image = scale(whole, plan.side)
            place = x + (width - image.width) // 2, y + (height - image.height) // 2
            sheet.paste(image, place, rounded(image.size, plan.radius))
    return sheet


def check_writable(path: str | Path, size: tuple[int, int] = (1, 1)) -> None:
    """Raise `InputError` where `save_image` of an image of that width and height would, before it is made."""
    path, cannot = Path(path), f"cannot write {path}"
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{cannot}: suffix {shown(path.suffix)}: expected {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"{cannot}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{cannot}: it is a folder")
    most = LONGEST.get(kind, math.inf)
    if max(size) > most:
        told = f"its {size[0]}x{size[1]} pixels are more than the {most} along a side that {kind} holds"
        raise InputError(f"{cannot}: {told}; use .png, or fewer or smaller images")
    with refused(cannot):
        part = part_of(path)
        part.touch()
        part.unlink()


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
        software: what the file says that made it, in its EXIF data.

    Raises:
        InputError: it cannot be written.
    """
    check_writable(path, image.size)
    path = Path(path)
    kind = FORMATS[path.suffix.lower()]
    beside = written_beside(kind, texts, software)
    with refused(f"cannot write {path}"), replacing(path) as part, part.open("xb") as file:
        # Pillow's quality of 75 shows around text and flat colours; lossless formats ignore it
        image.save(file, kind, quality=95, **beside)


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
    elif texts:
        first = next(iter(texts.values()))
        if kind == "WEBP" or len(first) < 60_000:  # a segment of a JPEG holds 64 kB
            exif[ExifTags.Base.ImageDescription] = first
    if exif:
        beside["exif"] = exif
    return beside
