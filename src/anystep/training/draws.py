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
    mirror it.
    """

    z: Float[Tensor, "batch *shape"]
    normal: Float[Tensor, "batch 2"]
    uniform: Float[Tensor, "batch 3"]
    choice: Float[Tensor, " batch"]
    drop: Float[Tensor, " batch"]
    mirror: Float[Tensor, " batch"]


def draw(seed: int, numbers: Sequence[int], shape: Sequence[int]) -> Draws:
    """The draws of these samples, on the CPU, float32."""
    size = int(np.prod(shape))
    normal = np.empty((len(numbers), 2 + size), np.float32)
    uniform = np.empty((len(numbers), 6), np.float32)
    for row, number in enumerate(numbers):
        # counter-based (Philox): every key is a stream of its own
        dice = np.random.Generator(np.random.Philox(key=[seed, number]))
        dice.standard_normal(out=normal[row], dtype=np.float32)
        dice.random(out=uniform[row], dtype=np.float32)
    normals, uniforms = torch.from_numpy(normal), torch.from_numpy(uniform)
    return Draws(
        normals[:, 2:].unflatten(1, tuple(shape)).contiguous(),
        normals[:, :2],
        uniforms[:, :3],
        uniforms[:, 3],
        uniforms[:, 4],
        uniforms[:, 5],
    )
