"""PIL images to tensors."""

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Float[Tensor, "3 height width"]:
    """RGB in [-1, 1]."""
    pixels = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).div_(127.5).sub_(1.0)
