"""What detectors find, and the rules by which GenEval judges it (arXiv 2310.11513, section 3).

The rules are the paper's: exact counts against `include` and `exclude`, centres compared beyond a tenth of the two
boxes' sizes, the required colour on as many objects as are asked for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from PIL import Image

from anystep.errors import InputError

POSITION_THRESHOLD = 0.1  # of the summed sizes of two boxes: nearer centres stand in no relation
MAX_OBJECTS = 16  # of a class, the surest first
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@dataclass(frozen=True)
class Detection:
    """One object: its class, how sure the detector is, and its box (left, top, right, bottom) in pixels.

    `colour` is given by detectors that tell it themselves, else None.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    colour: str | None = None


# the objects of an image that have at least a score
Detector: TypeAlias = Callable[[Image.Image, float], list[Detection]]
# one of `COLOURS` for each detection
ColourClassifier: TypeAlias = Callable[[Image.Image, Sequence[Detection]], list[str]]


@dataclass(frozen=True)
class Judgement:
    """Whether an image fits its prompt, and why not."""

    correct: bool
    reason: str = ""


def relations(one: Detection, two: Detection) -> set[str]:
    """What of "left of", "right of", "above", "below" the first is to the second; none where they are too near."""
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (one.box, two.box)]
    sizes = [(box[2] - box[0], box[3] - box[1]) for box in (one.box, two.box)]
    offset = []
    for axis in range(2):
        distance = centres[0][axis] - centres[1][axis]
        clear = max(0.0, abs(distance) - POSITION_THRESHOLD * (sizes[0][axis] + sizes[1][axis]))
        offset.append(math.copysign(clear, distance))
    length = math.hypot(centres[0][0] - centres[1][0], centres[0][1] - centres[1][1])
    if max(map(abs, offset)) < 1e-3:
        return set()
    x, y = (value / length for value in offset)
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in named.items() if holds}


def evaluate_detections(
    metadata: Mapping[str, Any], found: Mapping[str, Sequence[Detection]], colours: Mapping[Detection, str]
) -> Judgement:
    """Whether what was found is what the metadata ask for.

    Args:
        metadata: `include` and `exclude` of a GenEval prompt.
        found: by class, the surest first.
        colours: of the detections whose colour matters.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.get("include", []):
        name, count = wanted["class"], wanted["count"]
        objects = found.get(name, [])[:count]
        problems = []
        if len(objects) < count:
            problems.append(f"{name}: expected at least {count}, found {len(objects)}")
        elif "color" in wanted:
            right = sum(colours[each] == wanted["color"] for each in objects)
            if right < count:
                seen = ", ".join(colours[each] for each in objects)
                problems.append(f"{name}: expected {count} {wanted['color']}, found {right} (seen as {seen})")
        if "position" in wanted and not problems:
            relation, place = wanted["position"]
            others = groups[place]
            if others is None:
                problems.append(f"{name}: nothing to be {relation}")
            elif any(relation not in relations(each, other) for each in objects for other in others):
                problems.append(f"{name}: not {relation} {others[0].name}")
        groups.append(None if problems else objects)
        reasons += problems
    for unwanted in metadata.get("exclude", []):
        name, count = unwanted["class"], unwanted["count"]
        if len(found.get(name, [])) >= count:
            reasons.append(f"{name}: expected fewer than {count}, found {len(found[name])}")
    return Judgement(not reasons, "; ".join(reasons))


def by_class(detections: Sequence[Detection]) -> dict[str, list[Detection]]:
    """The surest first, at most `MAX_OBJECTS` of a class."""
    found: dict[str, list[Detection]] = {}
    for each in sorted(detections, key=lambda detection: -detection.score):
        group = found.setdefault(each.name, [])
        if len(group) < MAX_OBJECTS:
            group.append(each)
    return found


def evaluate_image(
    image: Image.Image,
    metadata: Mapping[str, Any],
    detector: Detector,
    colour_of: ColourClassifier | None,
    min_score: float,
) -> Judgement:
    """Whether an image fits its prompt: objects are detected, and the colours that matter are named."""
    found = by_class(detector(image, min_score))
    colours: dict[Detection, str] = {}
    for wanted in metadata.get("include", []):
        objects = found.get(wanted["class"], [])[: wanted["count"]]
        if "color" in wanted and objects:
            if colour_of is None and any(each.colour is None for each in objects):
                raise InputError(
                    f"{metadata.get('prompt')!r} asks for a colour, and nothing is there to name it: --clip"
                )
            named = colour_of(image, objects) if colour_of is not None else [each.colour or "" for each in objects]
            colours |= dict(zip(objects, named, strict=True))
    return evaluate_detections(metadata, found, colours)
