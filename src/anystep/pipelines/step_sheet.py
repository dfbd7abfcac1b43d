"""One set of weights at many step counts: prompts down, steps or seeds across, one noise for all steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from PIL import Image

from anystep.contact_sheet import contact_sheet, layout
from anystep.pipelines.image_model import Generated, ImageModel
from anystep.pipelines.scheduler import Planning
from anystep.sampling import StepPlan, steps_label

LARGE = 512 * 512  # pixels of images whose first call is not made twice to be timed
CELL = 1024  # the longest side of an image on a sheet
ACROSS = 8  # most seeds beside each other


@dataclass(frozen=True)
class AnyStepSheet:
    """Every image by the steps that were asked for, and for each by prompt and then by seed."""

    prompts: list[str]
    seeds: list[int]
    columns: list[list[Generated]]

    def costs(self) -> list[tuple[int, int, float]]:
        """(steps asked for, NFE, median milliseconds an image) of each step count."""
        return [(cells[0].asked, cells[0].nfe, 1000 * median(cell.seconds for cell in cells)) for cells in self.columns]

    def labels(self) -> list[str]:
        """Of each step count; where a plan makes fewer steps it says how many."""
        firsts = [cells[0] for cells in self.columns]
        return [steps_label(each.asked) + f", {each.steps} made" * (each.steps < each.asked) for each in firsts]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        rows, down, across, cell, title = self._arranged()
        if len(rows) == len(rows[0]) == 1:
            return rows[0][0].size
        return layout([[image.size for image in row] for row in rows], down, across, cell, title).size

    def picture(self) -> Image.Image:
        """The labelled sheet, or one image alone as it is."""
        rows, down, across, cell, title = self._arranged()
        return rows[0][0] if len(rows) == len(rows[0]) == 1 else contact_sheet(rows, down, across, cell, title)

    def _arranged(self) -> tuple[list[list[Image.Image]], list[str], list[str] | None, int | None, str | None]:
        """The arguments of `contact_sheet`."""
        across = [
            f"{label}\n{nfe} NFE, {ms:.0f} ms" for label, (_, nfe, ms) in zip(self.labels(), self.costs(), strict=True)
        ]
        images = [[cell.images[0] for cell in cells] for cells in self.columns]
        count = len(self.seeds)
        down: list[str] = []
        title: str | None = None
        column_labels: list[str] | None = across
        if len(images) == 1 and count > 1:  # seeds across, in several rows where they are many
            rows, title, column_labels = [], across[0].replace("\n", ", "), [f"seed {seed}" for seed in self.seeds]
            for row, prompt in enumerate(self.prompts):
                for first in range(0, count, ACROSS):
                    chosen = self.seeds[first : first + ACROSS]
                    rows.append(images[0][row * count + first : row * count + first + len(chosen)])
                    down.append(prompt if count <= ACROSS else f"{prompt}\nseeds {', '.join(map(str, chosen))}")
            if count > ACROSS:
                column_labels = None
        else:
            rows = [list(row) for row in zip(*images, strict=True)]
            down = [
                prompt if count == 1 else f"{prompt}\nseed {seed}" for prompt in self.prompts for seed in self.seeds
            ]
        longest = max(max(image.size) for row in rows for image in row)
        return rows, down, column_labels, CELL if longest > CELL else None, title


def blank_sheet(
    prompts: Sequence[str], seeds: Sequence[int], steps: Sequence[int], size: tuple[int, int]
) -> AnyStepSheet:
    """A sheet with one white image of `size` in all places, to say beforehand how large a picture it is."""
    white = Image.new("1", size, 1)
    count = len(prompts) * len(seeds)
    return AnyStepSheet(
        list(prompts), list(seeds), [[Generated([white], each, each, 1.0, asked=each)] * count for each in steps]
    )


def any_step_sheet(
    model: ImageModel,
    prompts: Sequence[str],
    steps: Sequence[int],
    seeds: int | Sequence[int] = 0,
    on_image: Callable[[Generated, int, int], None] = lambda drawn, prompt, seed: None,
    plans: Mapping[int, StepPlan | Planning] | None = None,
    **options: Any,
) -> AnyStepSheet:
    """Generate one image at a time, as a user waiting for it would.

    Args:
        seeds: of the images of each prompt.
        on_image: called with each image and the places of its prompt and seed, when it is there.
        plans: of some of the steps, in place of the model's.
        options: those of `ImageModel.generate`.
    """
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    width, height = options.get("size") or (0, 0)
    if width * height <= LARGE:
        whole = {name: value for name, value in options.items() if name != "finish_after"}
        model.generate(prompts[0], 1, seeds[0], **whole)  # the first call pays for allocations
    columns = []
    for count in steps:
        cells = []
        for row, prompt in enumerate(prompts):
            for place, seed in enumerate(seeds):
                cells.append(model.generate(prompt, count, seed, plan=(plans or {}).get(count), **options))
                on_image(cells[-1], row, place)
        columns.append(cells)
    return AnyStepSheet(list(prompts), seeds, columns)


def models_sheet(
    models: Sequence[tuple[str, ImageModel, Sequence[str | int]]],
    steps: Sequence[int],
    seeds: int | Sequence[int],
    costs: bool = False,
    **options: Any,
) -> Image.Image:
    """A sheet of several models: for each a row a prompt, numbers of steps across, and one seed along a row.

    Args:
        models: each with what stands before its prompts, and these.
        costs: whether network evaluations stand below the numbers of steps.
        options: those of `ImageModel.generate`.
    """
    rows, labels, columns = [], [], [steps_label(count) for count in steps]
    for name, model, prompts in models:
        made = [model.generate(list(prompts), count, seeds, **options) for count in steps]
        rows += [list(row) for row in zip(*(each.images for each in made), strict=True)]
        labels += [f"{name}{model.words(prompt)}" for prompt in prompts]
        if costs:
            columns = [f"{steps_label(each.asked)}\n{each.nfe} NFE" for each in made]
    return contact_sheet(rows, labels, columns)
