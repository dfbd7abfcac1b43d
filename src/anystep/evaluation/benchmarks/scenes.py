"""Scenes: GenEval's six tasks in the built-in art, on canvases of several shapes, judged by a detector made for it."""

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from anystep.data.scenes import CANVASES, TASKS, Scene, draw_scene
from anystep.evaluation.benchmarks.detections import examine
from anystep.evaluation.benchmarks.draw import Order, open_image
from anystep.evaluation.benchmarks.scene_detector import SceneDetector
from anystep.evaluation.benchmarks.scores import over_groups

THRESHOLD = 0.3


def draw_scenes(each: int, base: int, seed: int = 0) -> list[Scene]:
    """`each` scenes of every task, the canvases in turn; none that a detector or a model was trained on."""
    return [
        draw_scene(task, random.Random(f"benchmark/{seed}/{task}/{number}"), base, CANVASES[number % len(CANVASES)])
        for task in TASKS
        for number in range(each)
    ]


def orders(scenes: Sequence[Scene], folder: Path, seed: int = 0) -> list[Order]:
    """One image of each scene's prompt, on its canvas."""
    return [
        Order(folder / f"{number:05d}.png", scene.prompt, seed + number, (scene.width, scene.height))
        for number, scene in enumerate(scenes)
    ]


def score(
    scenes: Sequence[Scene], images: Sequence[Image.Image], detector: SceneDetector
) -> dict[str, dict[str, float]]:
    """By task and overall."""
    groups: dict[str, list[float]] = {task: [] for task in TASKS}
    for scene, image in zip(scenes, images, strict=True):
        groups[scene.task].append(float(examine(image, scene.metadata, detector, None, THRESHOLD).correct))
    return over_groups(groups)


def read_images(placed: Sequence[Order]) -> list[Image.Image]:
    return [open_image(order.path) for order in placed]
