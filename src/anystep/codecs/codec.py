"""From images to unit-variance latents and back.

Images are float tensors in [-1, 1]; latents are what the transformer sees.
"""

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from anystep.device import execution_device
from anystep.errors import InputError, first_line
from anystep.fingerprint import text_digest, weights_digest
from anystep.model_folder import check_part
from anystep.weights import BUILTIN, shipped

Images = Float[Tensor, "batch 3 height width"]
Latents = Float[Tensor, "batch channels latent_height latent_width"]


@runtime_checkable
class Codec(Protocol):
    """The interface of an autoencoder for the trainer and the pipeline.

    `factor` is the number of image pixels per latent pixel along one side, `channels` that of a latent's channels.
    """

    factor: int
    channels: int

    @property
    def fingerprint(self) -> str:
        """A digest that differs where the latents of two codecs differ."""
        ...

    def encode(self, images: Images) -> Latents: ...

    def decode(self, latents: Latents) -> Images: ...


class IdentityCodec:
    """A codec whose latents are the pixels, for small images of one or three channels."""

    factor = 1

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self.fingerprint = "identity" if channels == 3 else "identity-gray"

    def encode(self, images: Images) -> Latents:
        return images.mean(1, keepdim=True) if self.channels == 1 else images

    def decode(self, latents: Latents) -> Images:
        return latents.expand(-1, 3, -1, -1)


def downsampling_factor(config: Mapping[str, Any]) -> int:
    """Image pixels per latent pixel along one side, from the config of an AutoencoderDC or AutoencoderKL."""
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return int(2 ** (len(blocks) - 1))


class AutoencoderCodec:
    """A diffusers `AutoencoderDC` or `AutoencoderKL` with latents normalised to zero mean and unit variance.

    Normalisation comes from the autoencoder's config: per-channel `latents_mean` and `latents_std` where it has them
    (ours do), else its scalar `shift_factor` and `scaling_factor` (the published DC-AE and SD-VAE).
    """

    def __init__(self, autoencoder: nn.Module) -> None:
        config: Any = autoencoder.config
        self.autoencoder: Any = autoencoder
        self.channels = int(config.latent_channels)
        self.factor = downsampling_factor(config)
        try:
            if config.get("latents_mean") is not None:
                mean, std = ([float(each) for each in config[name]] for name in ("latents_mean", "latents_std"))
            else:
                mean = [float(config.get("shift_factor") or 0.0)] * self.channels
                std = [1.0 / float(config.get("scaling_factor") or 1.0)] * self.channels
            if not (all(map(math.isfinite, [*mean, *std])) and min(std) > 0 and len(mean) == len(std) == self.channels):
                raise ValueError("neither means nor deviations")
        except (TypeError, ValueError, KeyError):
            raise InputError(
                f"latents_mean and latents_std, or shift_factor and scaling_factor, of the codec: expected finite "
                f"numbers, and deviations above 0, for {self.channels} channels"
            ) from None
        kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        self.mean, self.std = (torch.tensor(each, **kind).view(1, -1, 1, 1) for each in (mean, std))

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the weights and of the statistics that latents are normalised with."""
        return text_digest(f"{weights_digest(self.autoencoder)} {self.mean.tolist()} {self.std.tolist()}")

    def encode(self, images: Images) -> Latents:
        """Latents of images whose sides are multiples of `factor`; the mode of the posterior for a KL autoencoder."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(f"image size {width}x{height}: both sides must be multiples of {self.factor}")
        output = self.autoencoder.encode(images.to(execution_device(self.autoencoder), self.autoencoder.dtype))
        latents = output.latent if hasattr(output, "latent") else output.latent_dist.mode()
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def decode(self, latents: Latents) -> Images:
        """Images in [-1, 1] (not clamped)."""
        latents = latents.to(execution_device(self.autoencoder), self.autoencoder.dtype)
        images: Tensor = self.autoencoder.decode(latents * self.std.to(latents) + self.mean.to(latents)).sample
        return images


def load_codec(name_or_path: str | Path, device: str | torch.device = "cpu") -> Codec:
    """`builtin`, `identity`, `identity-gray`, or a folder or hub id of a diffusers AutoencoderDC or AutoencoderKL.

    Raises:
        InputError: nothing there, something else, damaged or refused (`anystep.model_folder`).
    """
    if str(name_or_path) in ("identity", "identity-gray"):
        return IdentityCodec(channels=3 if str(name_or_path) == "identity" else 1)
    if str(name_or_path) == BUILTIN:
        name_or_path = shipped(BUILTIN) / "vae"
    return AutoencoderCodec(load_autoencoder(name_or_path).eval().requires_grad_(False).to(device))


def load_autoencoder(name_or_path: str | Path, **options: Any) -> Any:
    """The autoencoder of a folder or hub id, with options of its `from_pretrained`; raises as `load_codec` does."""
    from diffusers import AutoencoderDC, AutoencoderKL

    kinds = {"AutoencoderDC": AutoencoderDC, "AutoencoderKL": AutoencoderKL}
    if Path(name_or_path).is_dir():
        check_part(Path(name_or_path))
    try:
        name = AutoencoderDC.load_config(name_or_path).get("_class_name")
        if name not in kinds:
            raise InputError(f"codec {str(name_or_path)!r} is a {name!r}, expected one of {sorted(kinds)}")
        autoencoder = kinds[name].from_pretrained(name_or_path, **{"use_safetensors": True, **options})
        check_whole(autoencoder)
    except InputError:
        raise
    except Exception as error:  # diffusers, safetensors and the hub raise many kinds; all mean it is not usable
        raise InputError(f"no autoencoder at {str(name_or_path)!r}: {first_line(error)}") from error
    return autoencoder


def check_whole(module: nn.Module) -> None:
    """Raises ValueError for a module that diffusers loaded from a file without some of its weights."""
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if missing:
        raise ValueError(f"{len(missing)} of its weights are not in the file, for example {missing[0]}")


def to_uint8(images: Images) -> UInt8[Tensor, "batch 3 height width"]:
    """Images in [-1, 1] as whole numbers from 0 to 255: scaled, rounded half to even, clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


# diffusers warns that `AutoencoderDC` does not expect the latent statistics we keep in its config
logging.getLogger("diffusers.configuration_utils").addFilter(lambda entry: "latents_mean" not in entry.getMessage())
