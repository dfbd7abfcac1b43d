"""What size an image is given: never stretched, both sides multiples of what the network needs, within limits."""

import math
from dataclasses import dataclass

from PIL import Image, ImageOps

from anystep.data.example import BrokenExample
from anystep.environment import machine_memory
from anystep.errors import InputError


@dataclass(frozen=True)
class ResolutionLimits:
    """What images that keep their shape are resized and cropped to.

    Attributes:
        multiple: both sides are multiples of it: the pixels along one side of a token of the network.
        area: the largest number of pixels.
        side: the largest number of pixels along one side.
        aspect: the largest ratio of the longer side to the shorter.
    """

    multiple: int
    area: int
    side: int
    aspect: float = 5.0

    @classmethod
    def within(cls, multiple: int, size: int, longest: int | None, aspect: float | None) -> "ResolutionLimits":
        """Limits of the area of a `size x size` square; `longest` is by default what area and aspect allow."""
        aspect = aspect or cls.aspect
        return cls(multiple, size**2, longest or round(size * math.sqrt(aspect)), aspect)

    def __str__(self) -> str:
        return f"own shape, {self.area} pixels, sides of {self.side}, {self.aspect:g}:1, multiples of {self.multiple}"

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height for an image of that size: nothing is enlarged, and little is cropped.

        Raises:
            BrokenExample: too small for one token, or too long and narrow; says which.
        """
        if min(width, height) < self.multiple:
            raise BrokenExample(f"{width}x{height} is smaller than the {self.multiple} pixels of a token")
        if max(width, height) > self.aspect * min(width, height):
            ratio = max(width, height) / min(width, height)
            raise BrokenExample(f"{width}x{height} is {ratio:.3g} times as long as wide, the limit is {self.aspect:g}")
        scale = min(1.0, math.sqrt(self.area / (width * height)), self.side / max(width, height))
        fitting = [
            (across * self.multiple, down * self.multiple)
            for across in _near(width * scale / self.multiple)
            for down in _near(height * scale / self.multiple)
            if across <= width // self.multiple
            and down <= height // self.multiple
            and across * down * self.multiple**2 <= self.area
            and max(across, down) * self.multiple <= self.side
        ]
        if not fitting:
            raise BrokenExample(
                f"{width}x{height} does not fit into {self.area:,} pixels with sides of {self.multiple} or more"
            )
        # what is cropped is lost, what is scaled down only coarser
        whole = width * height * scale**2
        return min(fitting, key=lambda size: cropped((width, height), size) - size[0] * size[1] / whole / 2)


def _near(exact: float) -> set[int]:
    """The whole number above it, and two below, that are at least one."""
    below = math.floor(exact + 1e-9)
    return {max(1, number) for number in (below - 1, below, math.ceil(exact - 1e-9))}


def covering(size: tuple[int, int], target: tuple[int, int]) -> float:
    """How many times as large an image is where it covers the target; less than one where it is made smaller."""
    return max(target[0] / size[0], target[1] / size[1])


def cropped(size: tuple[int, int], target: tuple[int, int]) -> float:
    """The share of an image that is lost when it is scaled until it covers the target, and cropped."""
    return max(0.0, 1 - target[0] * target[1] / (size[0] * size[1] * covering(size, target) ** 2))


# a square of that side; that width and height; its own shape within limits; or as it is
Fixed = int | tuple[int, int]
Size = Fixed | ResolutionLimits | None


def target_size(width: int, height: int, size: Size) -> tuple[int, int]:
    """What an image of that width and height becomes. Raises BrokenExample where it cannot be used."""
    if isinstance(size, ResolutionLimits):
        return size.target_size(width, height)
    return (width, height) if size is None else to_pair(size)


def to_pair(size: Fixed) -> tuple[int, int]:
    """Width and height."""
    return (size, size) if isinstance(size, int) else size


def resize_and_crop(image: Image.Image, goal: tuple[int, int]) -> Image.Image:
    """The image scaled until it covers the goal, then cropped at the centre; one of that size as it is."""
    return image if image.size == goal else ImageOps.fit(image, goal, Image.Resampling.LANCZOS)


# of a pixel while an image is scaled, turned into numbers and encoded: three colours as bytes twice, as floats twice
PIXEL_BYTES = 30


def check_memory(size: Fixed) -> None:
    """Raise `InputError` where a single image of that size would not fit into the machine's memory."""
    width, height = to_pair(size)
    if (needed := PIXEL_BYTES * width * height) > (memory := machine_memory()):
        raise InputError(
            f"size {width}x{height}: one image would take {needed / 1e9:,.0f} GB, there are {memory / 1e9:,.0f}: "
            f"choose at most {int((memory / PIXEL_BYTES) ** 0.5)}"
        )


# width and height of drawn canvases in units of their base: two areas of squares, and between them from 1:2 to 2:1
CANVASES = ((1.0, 1.0), (1.5, 1.0), (1.0, 1.5), (2.0, 1.0), (1.0, 2.0), (1.5, 1.5))


def canvas(shape: tuple[float, float], size: Fixed | ResolutionLimits) -> tuple[int, int]:
    """Width and height of a picture that is drawn: one of `CANVASES` where sizes may differ, the largest the square."""
    if not isinstance(size, ResolutionLimits):
        return to_pair(size)
    base = math.sqrt(size.area) / max(max(each) for each in CANVASES if each[0] == each[1])
    return size.target_size(round(shape[0] * base), round(shape[1] * base))
