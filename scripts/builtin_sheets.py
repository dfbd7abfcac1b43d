"""The sheets of the built-in model's card: `python scripts/builtin_sheets.py [MODEL]`, into docs/images.

builtin-prompts.webp   48 prompts, the first of a fixed shuffle of the vocabulary, in 1, 2, 4 and 8 steps
builtin-sizes.webp     four prompts on canvases of five sizes
builtin-unnamed.webp   prompts that name no background, in 1 to 32 steps of one seed
--numbered FILE       the 48 pictures in 4 steps with numbers in place of names, for somebody to name them
"""

import argparse
import random
from pathlib import Path

from PIL import Image

import anystep
from anystep.contact_sheet import contact_sheet
from anystep.data.art import is_held_out, with_article
from anystep.pipelines.load import Model
from anystep.pipelines.step_sheet import models_sheet

OUT = Path(__file__).parent.parent / "docs" / "images"
STEPS = (1, 2, 4, 8)
SIZES = ((64, 64), (96, 64), (64, 96), (128, 64), (96, 96))
COUNT, BLOCKS, CELL = 48, 3, 96


def prompts(model: Model) -> list[str]:
    """The first of the vocabulary's fixed shuffle: chosen by nobody."""
    concepts = sorted(name for name in model.pipeline.config.concepts if not is_held_out(name))
    random.Random(0).shuffle(concepts)
    return [with_article(name) for name in concepts[:COUNT]]


def beside(sheets: list[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (sum(sheet.width for sheet in sheets), max(sheet.height for sheet in sheets)), "#f5f6f8")
    left = 0
    for sheet in sheets:
        whole.paste(sheet, (left, 0))
        left += sheet.width
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--numbered", type=Path)
    options = parser.parse_args()
    model = anystep.load(options.model)
    texts = prompts(model)
    drawn = {steps: model.generate(texts, steps, 0).images for steps in STEPS}
    if options.numbered is not None:
        images, across = drawn[4], 8
        cells = [images[first : first + across] for first in range(0, COUNT, across)]
        names = [f"{row * across + 1} to {row * across + across}" for row in range(len(cells))]
        contact_sheet(cells, names, None, cell=2 * CELL).save(options.numbered)
        return
    rows = list(zip(*drawn.values(), strict=True))
    each = COUNT // BLOCKS
    labels = [f"{steps} step{'s' * (steps > 1)}" for steps in STEPS]
    blocks = [
        contact_sheet(rows[first : first + each], texts[first : first + each], labels, cell=CELL)
        for first in range(0, COUNT, each)
    ]
    beside(blocks).save(options.out / "builtin-prompts.webp", quality=85, method=6)
    shown = ["a red apple", "a whale on a yellow background", "a tractor", "a panda, flat style"]
    sizes = [model.generate(shown, 4, 0, size=size).images for size in SIZES]
    shapes = [f"{width}x{height}" for width, height in SIZES]
    # each at the same scale: what is twice as wide is shown twice as wide
    whole = contact_sheet([list(row) for row in zip(*sizes, strict=True)], shown, shapes, cell=2 * CELL)
    whole.save(options.out / "builtin-sizes.webp", quality=85, method=6)
    unnamed = models_sheet(
        [("", model, ["a whale", "a dog face", "a rocket", "grapes"])], (1, 2, 4, 8, 16, 32), 0, costs=True
    )
    unnamed.save(options.out / "builtin-unnamed.webp", quality=85, method=6)


if __name__ == "__main__":
    main()
