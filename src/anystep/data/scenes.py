"""Scenes: captions in GenEval's six tasks (arXiv 2310.11513, table 1) drawn from the built-in art, their truth known.

The metadata of a scene are those of a GenEval prompt, so that one scorer serves both.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from anystep.bounds import Count, check
from anystep.data.art import (
    BACKGROUNDS,
    PLAIN,
    STYLES,
    Drawing,
    art_fingerprint,
    drawings,
    is_held_out,
    render,
    with_article,
)
from anystep.data.example import BaseSource, Example, digest_of
from anystep.data.sizing import CANVASES as ALL_CANVASES
from anystep.data.sizing import Fixed, ResolutionLimits, canvas, to_pair
from anystep.errors import InputError

Task = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
TASKS: tuple[Task, ...] = get_args(Task)
Relation = Literal["left of", "right of", "above", "below"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)

CONCEPTS = (
    "airplane", "ant", "backpack", "balloon", "banana", "bed", "bell", "bicycle", "bird", "camel", "camera", "candle",
    "car", "carrot", "cat", "chair", "clock", "crab", "crown", "dog", "door", "duck", "egg", "elephant", "frog",
    "guitar", "hammer", "hat", "helicopter", "horse", "house", "key", "kite", "lemon", "lion", "lobster", "owl",
    "pear", "pencil", "penguin", "pig", "pineapple", "pumpkin", "rabbit", "rocket", "rose", "sailboat", "snail",
    "spider", "tent", "tractor", "tree", "truck", "trumpet", "turtle", "umbrella", "whale", "zebra",
)  # fmt: skip
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (60, 170, 80),
    "blue": (50, 110, 230),
    "purple": (140, 70, 200),
}
PAPERS = ((255, 255, 255), PLAIN, (255, 248, 231), (232, 242, 252))
NUMBERS = ("one", "two", "three", "four")
CANVASES = ALL_CANVASES[:-1]  # the last is the first once more, larger
MIN_SIDE, MAX_SIDE = 0.34, 0.62  # of a drawing, in units of the base size


@dataclass(frozen=True)
class Thing:
    """A drawing on a canvas: its square's left and top edge and side in pixels, and the colour it was tinted with."""

    concept: str
    style: str
    colour: str | None
    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + self.side, self.top + self.side


@dataclass(frozen=True)
class Scene:
    """One caption and the picture that fits it."""

    task: Task
    prompt: str
    width: int
    height: int
    paper: tuple[int, int, int]
    things: tuple[Thing, ...]
    include: tuple[dict[str, Any], ...]
    exclude: tuple[dict[str, Any], ...] = ()

    @property
    def metadata(self) -> dict[str, Any]:
        """The scene as a line of GenEval's `evaluation_metadata.jsonl`."""
        content = {"tag": self.task, "include": list(self.include), "prompt": self.prompt}
        return {**content, "exclude": list(self.exclude)} if self.exclude else content

    def picture(self) -> Image.Image:
        canvas = Image.new("RGB", (self.width, self.height), self.paper)
        for thing in self.things:
            art = render(_drawing(thing.concept, thing.style), thing.side)
            art = art if thing.colour is None else tint(art, COLOURS[thing.colour])
            canvas.paste(art, (thing.left, thing.top), art)
        return canvas


@cache
def concepts() -> tuple[str, ...]:
    """The names among `CONCEPTS` that both styles draw and that training may see."""
    known = [{drawing.name for drawing in drawings() if drawing.style == style} for style in STYLES]
    return tuple(name for name in CONCEPTS if all(name in names for names in known) and not is_held_out(name))


@cache
def _drawing(concept: str, style: str) -> Drawing:
    return next(drawing for drawing in drawings() if (drawing.name, drawing.style) == (concept, style))


def tint(art: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The drawing in shades of one colour, its transparency as it was."""
    pixels = np.asarray(art, dtype=np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    seen = light[pixels[..., 3] > 128]
    low, high = np.percentile(seen, [5, 95]) if len(seen) else (0.0, 255.0)
    shade = np.clip((light - low) / max(1.0, high - low), 0, 1)[..., None]
    shaded = np.array(colour, dtype=np.float32) * (0.7 + 0.3 * shade) + 40 * np.maximum(0, shade - 0.75)
    return Image.fromarray(np.concatenate([shaded.clip(0, 255), pixels[..., 3:]], -1).astype(np.uint8), "RGBA")


def plural(concept: str) -> str:
    """ "owls", "foxes"."""
    return concept + ("es" if concept.endswith(("s", "x", "ch", "sh")) else "s")


def draw_scene(
    task: Task, rng: random.Random, base: int = 64, canvas: tuple[float, float] | None = None, grid: int = 1
) -> Scene:
    """A scene of a task on a canvas of `base` times a proportion of `CANVASES`, or that of `canvas`.

    Args:
        grid: pixels that all edges and sides of the drawings' squares are multiples of.
    """
    wide, high = canvas or rng.choice(CANVASES)
    width, height = round(wide * base), round(high * base)
    first, second = rng.sample(concepts(), 2)
    red, blue = rng.sample(list(COLOURS), 2)
    wanted: list[tuple[str, str | None]] = [(first, None), (second, None)]
    if task in ("colors", "color_attr"):
        wanted = [(first, red), (second, blue)]
    if task in ("single_object", "counting", "colors"):
        wanted.pop()
    include: list[dict[str, Any]] = [
        {"class": concept, "count": 1} | ({"color": colour} if colour else {}) for concept, colour in wanted
    ]
    prompt = " and ".join(with_article(f"{colour} {concept}" if colour else concept) for concept, colour in wanted)
    exclude: list[dict[str, Any]] = []
    relation: Relation | None = None
    if task == "counting":
        count = rng.randint(1, 4)
        wanted *= count
        include[0]["count"] = count
        exclude = [{"class": first, "count": count + 1}]
        prompt = f"{NUMBERS[count - 1]} {first if count == 1 else plural(first)}"
    elif task == "position":
        relation = rng.choice(RELATIONS)
        # the second stands in the named relation to the first, as GenEval writes it
        include[1]["position"] = [relation, 0]
        prompt = f"{with_article(second)} {relation} {with_article(first)}"
    things = _place(wanted, relation, width, height, base, rng, grid)
    return Scene(task, prompt, width, height, rng.choice(PAPERS), things, tuple(include), tuple(exclude))


def _place(
    wanted: Sequence[tuple[str, str | None]],
    relation: Relation | None,
    width: int,
    height: int,
    base: int,
    rng: random.Random,
    grid: int,
) -> tuple[Thing, ...]:
    """Squares that do not overlap, smaller ones where larger ones do not fit."""
    for attempt in range(10_000):
        max_side = MAX_SIDE + (MIN_SIDE - MAX_SIDE) * min(1.0, attempt / 40) if len(wanted) > 1 else 0.8
        min_side = max(0.3, MIN_SIDE - 0.0002 * attempt)
        things = []
        for concept, colour in wanted:
            side = grid * round(base * rng.uniform(min_side, max(min_side, max_side)) / grid)
            left, top = (grid * rng.randint(0, (whole - side) // grid) for whole in (width, height))
            things.append(Thing(concept, rng.choice(STYLES), colour, left, top, side))
        if all(_apart(one, two) for place, one in enumerate(things) for two in things[:place]) and (
            relation is None or _stands(things[1], relation, things[0])
        ):
            return tuple(things)
    raise RuntimeError(f"no room for {len(wanted)} drawings on {width}x{height}")


def _apart(one: Thing, two: Thing) -> bool:
    a, b = one.box, two.box
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _stands(one: Thing, relation: Relation, two: Thing) -> bool:
    """Clear of the other on the named side, and more so than on any other axis."""
    x = (one.left + one.side / 2) - (two.left + two.side / 2)
    y = (one.top + one.side / 2) - (two.top + two.side / 2)
    ahead = {"left of": -x, "right of": x, "above": -y, "below": y}[relation]
    across = abs(y) if relation in ("left of", "right of") else abs(x)
    return ahead >= (one.side + two.side) / 2 and ahead > 1.5 * across


class SceneSource(BaseSource):
    """Scenes of all tasks but the first in turn, each fixed by its number: what a model trains on.

    What a single thing looks like, the built-in drawings themselves teach, in the middle of their canvas: a scene of
    it anywhere would have the same caption.

    On square canvases of `size`; or, within limits, from 1:2 to 2:1 with squares of two areas. Three of four have the
    plain ground, the others one of `BACKGROUNDS` that the caption names. Drawings stand on the grid of the network's
    tokens, or one of an eighth of the shorter side where that is finer, so that one drawing has few different latents.
    """

    def __init__(self, size: Fixed | ResolutionLimits = 64, count: int = 20_000) -> None:
        super().__init__()
        if (side := round(math.sqrt(size.area)) if isinstance(size, ResolutionLimits) else min(to_pair(size))) < 32:
            raise InputError(f"scenes of {side} pixels: expected at least 32")
        self.size, self._count = size, check("count", count, Count)
        self.class_names: Sequence[str] = concepts()

    def __len__(self) -> int:
        return self._count

    def scene(self, index: int) -> Scene:
        rng, task = random.Random(f"scene/{index}"), TASKS[1 + index % (len(TASKS) - 1)]
        width, height = canvas(rng.choice(ALL_CANVASES), self.size)
        base = min(width, height)
        grid = min(base // 8, self.size.multiple if isinstance(self.size, ResolutionLimits) else base)
        scene = draw_scene(task, rng, base, (width / base, height / base), grid)
        ground = rng.choice(list(BACKGROUNDS)) if rng.random() < 0.25 else None
        if ground is None:
            return replace(scene, paper=PLAIN)
        prompt = f"{scene.prompt} on {with_article(ground)} background"
        return replace(scene, paper=BACKGROUNDS[ground], prompt=prompt)

    def _read(self, index: int) -> Example:
        scene = self.scene(index)
        return Example(f"scene-{index:06d}", scene.picture(), (scene.prompt,))

    def stamp(self, index: int) -> str:
        return digest_of(art_fingerprint(), "on tokens", index)
