"""Features of frozen image encoders, which representation alignment (REPA, arXiv 2410.06940) draws tokens towards.

They are made once, when data are prepared, and read with the latents: no encoder runs beside training.
"""

import inspect
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor

from anystep.errors import InputError, first_line
from anystep.fingerprint import encoder_digest
from anystep.pretrained import loading, pretrained_encoder

RADIO = "radio:"
RADIO_REPOSITORY = "NVlabs/RADIO"
ALLOW_CODE = "ANYSTEP_ALLOW_CODE"  # set to 1 by a user who trusts the code that comes with a model
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageEncoder:
    """Images to one vector for each token of a grid.

    Args:
        model: DINOv2, SigLIP, CLIP or another vision transformer of transformers; or a RADIO model.
        name: what it was loaded from.
        patch: pixels along one side of its own tokens.
        mean, std: what its images are normalised with, of values in [0, 1].
    """

    def __init__(
        self,
        model: Any,
        name: str,
        patch: int,
        mean: tuple[float, ...] = (0.0,) * 3,
        std: tuple[float, ...] = (1.0,) * 3,
    ) -> None:
        self.model, self.name, self.patch = model.eval().requires_grad_(False), name, patch
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
        takes = inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the features would: of the sizes, the configuration and all of the weights."""
        return encoder_digest(self.model, self.patch, self._mean.tolist(), self._std.tolist())

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], rows: int, columns: int
    ) -> Float[Tensor, "batch tokens depth"]:
        """Features of images in [-1, 1], resized so that the encoder's tokens are those of a rows x columns grid."""
        size = (rows * self.patch, columns * self.patch)
        pixels = functional.interpolate((images + 1) / 2, size, mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (pixels - self._mean.to(pixels)) / self._std.to(pixels)
        answer = self.model(pixels, **self._options)
        # RADIO gives (summary, features)
        states: Tensor = answer[1] if isinstance(answer, tuple) else answer.last_hidden_state
        if states.shape[1] < rows * columns:
            raise InputError(
                f"image encoder {self.name!r} gives {states.shape[1]} tokens for {size[1]}x{size[0]} pixels, "
                f"fewer than {rows * columns}"
            )
        return states[:, states.shape[1] - rows * columns :]  # class and register tokens come first


def load_image_encoder(spec: str) -> ImageEncoder:
    """A vision model of transformers by id or folder (DINOv2, SigLIP, CLIP), or `radio:VERSION` through RADIO's loader.

    `radio:FOLDER` is a checkout of RADIO's repository. Either runs that repository's Python code, which a user has to
    allow: `ANYSTEP_ALLOW_CODE=1`.

    Raises:
        InputError: nothing there, not such a model, code that is not allowed, or what `anystep.model_folder` refuses.
    """
    return _radio(spec.removeprefix(RADIO)) if spec.startswith(RADIO) else _transformers(spec)


def _radio(version: str) -> ImageEncoder:
    local = Path(version).is_dir()
    if os.environ.get(ALLOW_CODE) != "1":
        source = repr(version) if local else f"{RADIO_REPOSITORY!r} on GitHub"
        raise InputError(
            f"image encoder '{RADIO}{version}' runs Python code from {source}: if you trust it, set {ALLOW_CODE}=1"
        )
    options = {"source": "local"} if local else {"version": version, "progress": False, "skip_validation": True}
    with loading("image encoder", f"{RADIO}{version}"):
        model = torch.hub.load(version if local else RADIO_REPOSITORY, "radio_model", **options)
        return ImageEncoder(model, f"{RADIO}{version}", int(model.patch_size))


def _transformers(name: str) -> ImageEncoder:
    from transformers import AutoImageProcessor, AutoModel

    with loading("image encoder", name):
        model = pretrained_encoder(AutoModel, name, r"pooler\.|^text_")
    model = getattr(model, "vision_model", model)  # of SigLIP and CLIP
    if not isinstance(patch := getattr(model.config, "patch_size", None), int):
        raise InputError(f"image encoder {name!r} is a {type(model).__name__}, which has no patches")
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    except (OSError, ValueError, ImportError, AttributeError, TypeError) as error:
        if not model.config.model_type.startswith("dinov2"):  # others learned other numbers
            raise InputError(
                f"image encoder {name!r}: no preprocessor_config.json that says what its images are normalised with "
                f"(image_mean, image_std) can be read; put it beside the weights: {first_line(error)}"
            ) from None
        mean, std = IMAGENET
    return ImageEncoder(model, name, patch, mean, std)
