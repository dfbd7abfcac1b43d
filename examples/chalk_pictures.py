"""Twenty captioned pictures of a style that the built-in model has never seen: chalk on a blackboard.

    python examples/chalk_pictures.py chalk
    anystep train lora --out runs/chalk --data.source chalk

The outlines of twenty built-in drawings become strokes of chalk, and each caption says so.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from anystep.data.art import compose, drawings, with_article

THINGS = (
    "banana", "bell", "butterfly", "cat face", "crown", "elephant", "fish", "fox", "guitar", "house",
    "mushroom", "owl", "pear", "pizza", "rocket", "sailboat", "strawberry", "teddy bear", "turtle", "umbrella",
)  # fmt: skip
BOARD, CHALK = np.array([38.0, 66.0, 58.0]), np.array([240.0, 238.0, 225.0])


def chalk(picture: Image.Image, seed: int) -> Image.Image:
    """Strokes of chalk along the outlines of a picture, with the grain of a board."""
    generator = np.random.default_rng(seed)
    grey = picture.convert("L").filter(ImageFilter.GaussianBlur(0.6))
    edges = np.asarray(grey.filter(ImageFilter.FIND_EDGES), np.float64)
    edges[[0, -1], :] = edges[:, [0, -1]] = 0
    strokes = np.clip(edges / 60, 0, 1) * generator.uniform(0.75, 1.0, edges.shape)
    board = BOARD + generator.normal(0, 3, edges.shape)[..., None]
    pixels = board + strokes[..., None] * (CHALK - board)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw(folder: Path, size: int = 64) -> int:
    """Write pictures and captions; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [drawing for drawing in drawings() if drawing.style == "flat" and drawing.name in THINGS]
    for number, drawing in enumerate(chosen):
        chalk(compose(drawing, "white", size, size), number).save(folder / f"{drawing.key}.png")
        (folder / f"{drawing.key}.txt").write_text(f"a chalk drawing of {with_article(drawing.name)}\n")
    return len(chosen)


if __name__ == "__main__":
    print(f"{draw(Path(sys.argv[1]))} pictures in {sys.argv[1]}")
