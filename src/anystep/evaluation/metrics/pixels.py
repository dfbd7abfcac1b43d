"""What images say of themselves, without the features of any network: their pixels, and how sharp they are."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from anystep.errors import InputError
from anystep.evaluation.metrics.base import BootstrapWeights, Direction, ImageFeatures, Images, Replicates
from anystep.evaluation.metrics.frechet_distance import FrechetDistance

SIDE = 32  # larger images are averaged to it: a covariance has the square of the pixels
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
FINE = 0.25  # cycles a pixel, half of what pixels can hold
ROUNDING = 1 / 255**2 / 12  # variance of a level that is rounded
Pixels = Float[Tensor, "count channels area"]
AnyPixels = Float[Tensor, "_ _ _"]


def small_pixels(images: Images) -> Pixels:
    """Levels from 0 to 255 in half precision, which holds whole ones exactly; sides above `SIDE` are area-averaged.

    Images that are grey, all of them, have one channel.
    """
    grey = bool((images == images[:, :1]).all())
    levels = (images[:, :1] if grey else images).float()
    height, width = (min(side, SIDE) for side in levels.shape[-2:])
    if levels.shape[-2:] != (height, width):
        levels = interpolate(levels, (height, width), mode="area")
    return levels.flatten(2).half().cpu()


def fine_energy(images: Images) -> Float[Tensor, " batch"]:
    """Of each image: the mean square of its luminance in [0, 1] above `FINE` cycles a pixel, in any direction.

    The image is mirrored at its edges, so that opposite edges that differ are no edge in the picture.
    """
    weight = torch.tensor(LUMINANCE, dtype=torch.float64, device=images.device)
    energies = []
    for image in images:  # a large image's spectrum fills much memory
        picture = torch.tensordot(weight, image.double() / 255, 1)
        whole = torch.cat([picture, picture.flip(-1)], -1)
        whole = torch.cat([whole, whole.flip(-2)], -2)
        spectrum = torch.fft.fft2(whole, norm="forward").abs().square()
        rows, columns = (torch.fft.fftfreq(side, device=images.device, dtype=torch.float64) for side in whole.shape)
        energies.append((spectrum * (rows[:, None].hypot(columns) > FINE)).sum())  # Parseval: the mean square
    return torch.stack(energies).float().cpu()


def same_channels(one: AnyPixels, other: AnyPixels) -> tuple[AnyPixels, AnyPixels]:
    """Both with three channels where one of them has: grey is a colour like others there."""
    channels = max(one.shape[1], other.shape[1])
    first, second = (each if each.shape[1] == channels else each.expand(-1, channels, -1) for each in (one, other))
    return first, second


class PixelFrechetDistance:
    """The Fréchet distance of the pixels themselves, in [0, 1], summed over places and averaged over channels.

    Pixels of a place count whole and channels by their mean, so that grey images have the same distance as one channel
    and as three that are alike. Sides above 32 pixels are area-averaged to 32 first. Blind to what pictures show, it
    knows no favourite of a network either: it sees mean, contrast and the correlations of every two places.
    """

    name = "pixel_frechet_distance"
    direction: Direction = "lower"
    min_images = FrechetDistance.min_images
    replicates = FrechetDistance.replicates

    def __init__(self) -> None:
        self._frechet = FrechetDistance()

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        if real.pixels is None or generated.pixels is None:
            raise InputError(f"{self.name} needs the pixels of the images")
        x, y = same_channels(real.pixels, generated.pixels)
        if x.shape[1:] != y.shape[1:]:
            raise InputError(f"{self.name}: the real images have {x.shape[2]} places, the generated ones {y.shape[2]}")
        return self._frechet.distances(x.flatten(1), y.flatten(1), weights.generated) / (255**2 * x.shape[1])


class Sharpness:
    """The spectral energy of fine detail over that of the real images: 1 is as sharp as they are.

    The energy is the mean square of the luminance above half the Nyquist frequency, and that of rounding to 256 levels,
    so that flat images have a figure too. Below 1 images are blurred, above it they are noisy or have hard edges that
    real ones have not.
    """

    name = "sharpness"
    direction: Direction = "nearest 1"
    min_images = 2
    replicates = 200

    def __call__(self, real: ImageFeatures, generated: ImageFeatures, weights: BootstrapWeights) -> Replicates:
        if real.fine_energy is None or generated.fine_energy is None:
            raise InputError(f"{self.name} needs the spectral energy of the images")
        energy = weights.generated @ generated.fine_energy.double() / weights.generated.sum(1)
        reference = weights.real @ real.fine_energy.double() / weights.real.sum(1)
        return (energy + ROUNDING) / (reference + ROUNDING)
