"""One set of weights at many step counts: prompts down, steps across, one noise for all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from PIL import Image

from anystep.contact_sheet import contact_sheet
from anystep.pipelines.load import Generated, Model

LARGE = 512 * 512  # pixels of images whose first call is not made twice to be timed
CELL = 1024  # the longest side of an image on a sheet


@dataclass(frozen=True)
class AnyStepSheet:
    """Every image by prompt and step count, and one row of the cost table a step count."""

    prompts: list[str]
    columns: list[list[Generated]]

    def costs(self) -> list[tuple[int, int, float]]:
        """(steps, NFE, median milliseconds an image) of each column."""
        return [(cells[0].steps, cells[0].nfe, 1000 * median(cell.seconds for cell in cells)) for cells in self.columns]

    def picture(self) -> Image.Image:
        """The labelled sheet, or one image alone as it is."""
        labels = [f"{steps} step{'s' * (steps > 1)}\n{nfe} NFE, {ms:.0f} ms" for steps, nfe, ms in self.costs()]
        rows = [[cells[row].images[0] for cells in self.columns] for row in range(len(self.prompts))]
        if len(self.prompts) == len(self.columns) == 1:
            return rows[0][0]
        longest = max(max(image.size) for row in rows for image in row)
        return contact_sheet(rows, self.prompts, labels, cell=CELL if longest > CELL else None)


def any_step_sheet(
    model: Model,
    prompts: Sequence[str],
    steps: Sequence[int],
    seed: int = 0,
    on_image: Callable[[], None] = lambda: None,
    **options: Any,
) -> AnyStepSheet:
    """Generate one image at a time, as a user waiting for it would; `options` are those of `Model.generate`."""
    width, height = options.get("size") or (0, 0)
    if width * height <= LARGE:
        model.generate(prompts[0], 1, seed, **options)  # the first call pays for allocations
    columns = []
    for count in steps:
        cells = []
        for prompt in prompts:
            cells.append(model.generate(prompt, count, seed, **options))
            on_image()
        columns.append(cells)
    return AnyStepSheet(list(prompts), columns)
