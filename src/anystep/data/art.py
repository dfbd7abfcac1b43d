"""The built-in captioned vector art: emoji drawings of two styles, rendered at any size.

The archive is made by `scripts/build_art.py`; NOTICE carries the licences (Fluent: MIT, Noto: Apache-2.0, names from
emojibase: MIT). A *concept* is what a drawing shows ("red apple"); a *style* is which set drew it.
"""

import hashlib
import io
import json
import lzma
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal, get_args

from PIL import Image, ImageOps

from anystep.data.cache import cache_folder
from anystep.data.example import BaseSource, Example, digest_of
from anystep.data.sizing import CANVASES, Fixed, ResolutionLimits, canvas
from anystep.errors import InputError
from anystep.files import read_bytes, replacing
from anystep.fingerprint import file_digest

ARCHIVE = Path(__file__).parent / "art"
STYLES = ("flat", "noto")
BACKGROUNDS = {
    "white": (255, 255, 255),
    "yellow": (255, 221, 89),
    "orange": (255, 159, 67),
    "red": (220, 70, 70),
    "pink": (255, 175, 204),
    "purple": (142, 108, 208),
    "blue": (84, 160, 240),
    "green": (96, 190, 110),
}
PLAIN = (244, 244, 244)  # the ground where a caption names none, so that a caption determines its picture
HELD_OUT_SHARE = 0.05
MARGIN = 0.05  # of the canvas, on each side of a drawing
MIRRORED = ("animals-nature", "food-drink")  # categories of what looks to the left as often as to the right
SHIFTS = (-1 / 16, 0.0, 1 / 16)  # of a smaller drawing from the middle, in shorter sides of the canvas

Vocabulary = Literal["everyday", "all"]
Split = Literal["train", "held_out", "both"]


@dataclass(frozen=True)
class Drawing:
    """One SVG body and what it shows. `size` is the side of its square view box."""

    style: str
    name: str
    keywords: tuple[str, ...]
    category: str
    subcategory: str
    size: int
    body: str

    @property
    def key(self) -> str:
        return f"{self.style}-{self.name.replace(' ', '_').replace('/', '_')}"


@cache
def drawings() -> tuple[Drawing, ...]:
    """All drawings of the archive, sorted by style and name."""
    rows = lzma.decompress((ARCHIVE / "art.jsonl.xz").read_bytes()).decode().splitlines()
    return tuple(Drawing(**{**(row := json.loads(line)), "keywords": tuple(row["keywords"])}) for line in rows)


@cache
def everyday_concepts() -> tuple[str, ...]:
    """The few hundred concepts that the built-in model knows best."""
    return tuple((ARCHIVE / "everyday.txt").read_text("utf-8").split("\n")[:-1])


def is_held_out(concept: str) -> bool:
    """Whether a concept is kept out of training, in every style; fixed for ever by a hash of its name."""
    digest = hashlib.sha256(f"held-out/{concept}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def with_article(concept: str) -> str:
    """ "a whale", "an owl", "an hourglass", "grapes"."""
    head = re.split(r" (?:with|without|in|on|of|from) ", concept)[0]
    if head.endswith("s") and not head.endswith(("ss", "us", "is", "os")):
        return concept
    vowel = re.match(r"(?!uni|eu|ewe|one)[aeiou]|hour", concept.lower())
    return f"{'an' if vowel else 'a'} {concept}"


def caption(concept: str, background: str | None = None, style: str | None = None) -> str:
    """`caption("red apple", "blue", "flat")` is "a red apple on a blue background, flat style"."""
    ground = f" on {with_article(background)} background" if background else ""
    return f"{with_article(concept)}{ground}" + (f", {style} style" if style else "")


@cache
def art_fingerprint() -> str:
    """What tells this archive of drawings from another."""
    return file_digest(ARCHIVE / "art.jsonl.xz")[:8]


@lru_cache(maxsize=8192)
def render(drawing: Drawing, side: int) -> Image.Image:
    """The drawing alone as a `side x side` RGBA picture, rendered once per size and then read from the disk cache.

    The cache may be damaged, full or not to be written: then the picture is rendered again.
    """
    path = cache_folder() / f"art-{art_fingerprint()}" / str(side) / f"{drawing.key}.png"
    with suppress(InputError, OSError, ValueError, SyntaxError):  # the last is Pillow's word for damage
        return Image.open(io.BytesIO(read_bytes(path))).convert("RGBA")
    import resvg_py

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {drawing.size} {drawing.size}">{drawing.body}</svg>'
    )
    content = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(content)
    return Image.open(io.BytesIO(content)).convert("RGBA")


@dataclass(frozen=True)
class Placement:
    """How a drawing stands on its canvas.

    Attributes:
        side: of its square, as a share of the shorter side of the canvas.
        right, down: how far its centre is from that of the canvas, in the same unit.
        mirrored: left to right.
    """

    side: float = 1 - 2 * MARGIN
    right: float = 0.0
    down: float = 0.0
    mirrored: bool = False

    @classmethod
    def draw(cls, drawing: Drawing, rng: random.Random) -> "Placement":
        """Most large and in the middle, a quarter smaller, a little off it, and mirrored where that is as good."""
        if rng.random() < 0.75:
            return cls()
        mirrored = drawing.category in MIRRORED and rng.random() < 0.5
        return cls(0.75, rng.choice(SHIFTS), rng.choice(SHIFTS), mirrored)


def compose(
    drawing: Drawing, background: str | None, width: int, height: int, placement: Placement = Placement()
) -> Image.Image:
    """The drawing on a canvas of one background colour, the plain one where it is None, as RGB."""
    canvas = Image.new("RGB", (width, height), PLAIN if background is None else BACKGROUNDS[background])
    unit = min(width, height)
    art = render(drawing, max(1, round(unit * placement.side)))
    art = ImageOps.mirror(art) if placement.mirrored else art
    left = (width - art.width) // 2 + round(unit * placement.right)
    canvas.paste(art, (left, (height - art.height) // 2 + round(unit * placement.down)), art)
    return canvas


GROUNDS = (*BACKGROUNDS, None, None, None, None)  # of each drawing's examples: a third of the captions names none
# how often each of `sizing.CANVASES` is drawn on, where sizes may differ: squares most, as users ask for them
CANVAS_WEIGHTS = (8, 2, 2, 1, 1, 6)


class ArtSource(BaseSource):
    """Every chosen drawing on every background, as captioned `size x size` examples, or on canvases of many shapes.

    A third of the examples have the plain ground, which their captions do not name; all others are captioned with
    theirs. So a caption determines the ground, and a seed the drawing's size, place and direction (`Placement`). One
    caption of an example names its style, the other does not.
    """

    def __init__(
        self,
        size: Fixed | ResolutionLimits = 64,
        vocabulary: Vocabulary = "all",
        split: Split = "both",
        styles: Sequence[str] = STYLES,
    ) -> None:
        super().__init__()
        for name, value, kind in (("split", split, Split), ("vocabulary", vocabulary, Vocabulary)):
            if value not in get_args(kind):
                raise InputError(f"built-in data: {name} {value!r} is none of {', '.join(get_args(kind))}")
        if unknown := [style for style in styles if style not in STYLES]:
            raise InputError(f"built-in data: style {unknown[0]!r} is unknown; styles are {', '.join(STYLES)}")
        chosen = set(everyday_concepts()) if vocabulary == "everyday" else None
        self.size = size
        self.drawings = [
            drawing
            for drawing in drawings()
            if drawing.style in styles
            and (chosen is None or drawing.name in chosen)
            and (split == "both" or is_held_out(drawing.name) == (split == "held_out"))
        ]
        if not self.drawings:
            raise InputError(f"no built-in drawing is of {vocabulary} words, styles {list(styles)} and split {split}")
        self.class_names = sorted({drawing.name for drawing in self.drawings})
        self._label = {name: label for label, name in enumerate(self.class_names)}

    def __len__(self) -> int:
        return len(self.drawings) * len(GROUNDS)

    def _read(self, index: int) -> Example:
        drawing, place = self.drawings[index // len(GROUNDS)], index % len(GROUNDS)
        ground, rng = GROUNDS[place], random.Random(f"art/{drawing.key}/{place}")
        shape = rng.choices(CANVASES, CANVAS_WEIGHTS)[0]
        return Example(
            key=f"{drawing.key}-{ground or f'plain-{place - len(BACKGROUNDS)}'}",
            image=compose(drawing, ground, *canvas(shape, self.size), Placement.draw(drawing, rng)),
            captions=(caption(drawing.name, ground, drawing.style), caption(drawing.name, ground)),
            label=self._label[drawing.name],
        )

    def stamp(self, index: int) -> str:
        drawing = self.drawings[index // len(GROUNDS)]
        place, label = index % len(GROUNDS), self._label[drawing.name]
        return digest_of(art_fingerprint(), "mostly squares", drawing.key, place, label)
