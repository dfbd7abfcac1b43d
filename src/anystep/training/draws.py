"""Everything random in training, keyed by the seed and the number of the sample.

Sample `number` is the row `number % batch` of step `number // batch`. What it draws depends on nothing else, so that a
resumed run, and one on another number of processes, continues exactly.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Draws(NamedTuple):
    """Of each sample: noise `z`, what its times come from, and uniform numbers that choose and drop its caption and
    mirror it, a guidance scale, and noise beside `z` where it was asked for.
    """

    z: list[Float[Tensor, "channels _height _width"]]
    normal: Float[Tensor, "batch 3"]
    uniform: Float[Tensor, "batch 5"]
    choice: Float[Tensor, " batch"]
    drop: Float[Tensor, " batch"]
    mirror: Float[Tensor, " batch"]
    guidance: Float[Tensor, " batch"]
    fresh: list[Float[Tensor, "channels _height _width"]]


def draw(seed: int, numbers: Sequence[int], shapes: Sequence[Sequence[int]], fresh: bool = False) -> Draws:
    """The draws of these samples, on the CPU, float32.

    Args:
        shapes: of the noise of each.
        fresh: whether each gets noise once more; else there is none.
    """
    normal = np.empty((len(numbers), 3), np.float32)
    uniform = np.empty((len(numbers), 9), np.float32)
    z, more = [], []
    for row, (number, shape) in enumerate(zip(numbers, shapes, strict=True)):
        # counter-based (Philox): every key is a stream of its own, in which newer draws come after older ones
        rng = np.random.Generator(np.random.Philox(key=[seed, number]))
        normals = rng.standard_normal(2 + int(np.prod(shape)), dtype=np.float32)
        normal[row, :2] = normals[:2]
        z.append(torch.from_numpy(normals[2:]).view(*shape))
        rng.random(out=uniform[row, :6], dtype=np.float32)
        normal[row, 2] = rng.standard_normal(dtype=np.float32)
        rng.random(out=uniform[row, 6:], dtype=np.float32)
        if fresh:
            more.append(torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32)))
    uniforms = torch.from_numpy(uniform)
    times = uniforms[:, [0, 1, 2, 6, 7]]
    return Draws(
        z, torch.from_numpy(normal), times, uniforms[:, 3], uniforms[:, 4], uniforms[:, 5], uniforms[:, 8], more
    )
