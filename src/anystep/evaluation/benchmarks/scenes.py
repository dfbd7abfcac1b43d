"""Scenes: GenEval's six tasks in the built-in art, on canvases of several shapes, judged by a detector made for it."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from anystep.data.scenes import CANVASES, TASKS, Scene, draw_scene
from anystep.errors import InputError
from anystep.evaluation.benchmarks.detections import evaluate_image
from anystep.evaluation.benchmarks.generate import GenerationRequest
from anystep.evaluation.benchmarks.scene_detector import SceneDetector
from anystep.evaluation.benchmarks.scores import over_groups
from anystep.evaluation.image_files import open_image
from anystep.files import parse_json, read_text, write_text

THRESHOLD = 0.3
METADATA = "metadata.jsonl"
BASE = 64  # pixels on the shorter side of a canvas, as the detector was trained


def draw_scenes(each: int, seed: int = 0) -> list[Scene]:
    """`each` scenes of every task, the canvases in turn; none that a detector or a model was trained on."""
    return [
        draw_scene(task, random.Random(f"benchmark/{seed}/{task}/{number}"), BASE, CANVASES[number % len(CANVASES)])
        for task in TASKS
        for number in range(each)
    ]


def generation_requests(
    scenes: Sequence[Scene], folder: Path, seed: int = 0, base: int = BASE
) -> list[GenerationRequest]:
    """One image of each scene's prompt, on its canvas at `base` pixels."""
    return [
        GenerationRequest(
            folder / f"{number:05d}.png",
            scene.prompt,
            seed + number,
            (scene.width * base // BASE, scene.height * base // BASE),
        )
        for number, scene in enumerate(scenes)
    ]


def write_metadata(content: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """What each image is to show, a line an image, beside the images."""
    write_text(folder / METADATA, "".join(json.dumps(each) + "\n" for each in content))


def check_metadata(content: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Raises InputError for images that were drawn of other scenes, where something beside them says of which."""
    if not (path := folder / METADATA).exists():
        return
    there = [parse_json(line, str(path)) for line in read_text(path).splitlines()]
    if there != json.loads(json.dumps(content)):
        raise InputError(f"{path}: other scenes than these: give the --each and --seed that they were drawn with")


def score(
    scenes: Sequence[Scene], images: Sequence[Image.Image], detector: SceneDetector
) -> dict[str, dict[str, float]]:
    """By task and overall."""
    groups: dict[str, list[float]] = {task: [] for task in TASKS}
    for scene, image in zip(scenes, images, strict=True):
        groups[scene.task].append(float(evaluate_image(image, scene.metadata, detector, None, THRESHOLD).correct))
    return over_groups(groups)


def read_images(scenes: Sequence[Scene], requests: Sequence[GenerationRequest]) -> list[Image.Image]:
    """Each at the size of its scene, which is what the detector knows; the rules do not depend on it.

    Raises `InputError`: an image that is missing, or whose sides are not in its scene's proportion.
    """
    images = []
    for scene, request in zip(scenes, requests, strict=True):
        image = open_image(request.path)
        if image.width * scene.height != image.height * scene.width:
            raise InputError(
                f"{request.path}: {image.width}x{image.height}, but its scene is {scene.width}x{scene.height}"
            )
        whole = image.size == (scene.width, scene.height)
        images.append(image if whole else image.resize((scene.width, scene.height), Image.Resampling.LANCZOS))
    return images
