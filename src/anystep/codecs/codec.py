"""From images to unit-variance latents and back.

Images are float tensors in [-1, 1]; latents are what the transformer sees.
"""

import logging
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from anystep.errors import InputError
from anystep.fingerprint import weights_digest

Images = Float[Tensor, "batch 3 height width"]
Latents = Float[Tensor, "batch channels latent_height latent_width"]


@runtime_checkable
class Codec(Protocol):
    """What the trainer and the pipeline need to know of an autoencoder.

    `factor` is image pixels per latent pixel along one side, `channels` the depth of a latent.
    """

    factor: int
    channels: int

    @property
    def fingerprint(self) -> str:
        """Tells apart codecs whose latents differ."""
        ...

    def encode(self, images: Images) -> Latents: ...

    def decode(self, latents: Latents) -> Images: ...


class IdentityCodec:
    """Pixels are the latents: for small images of one or three channels."""

    factor = 1

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self.fingerprint = "identity" if channels == 3 else "identity-gray"

    def encode(self, images: Images) -> Latents:
        return images.mean(1, keepdim=True) if self.channels == 1 else images

    def decode(self, latents: Latents) -> Images:
        return latents.expand(-1, 3, -1, -1)


class AutoencoderCodec:
    """A diffusers `AutoencoderDC` or `AutoencoderKL` with its latents brought to zero mean and unit variance.

    Normalisation comes from the autoencoder's config: per-channel `latents_mean` and `latents_std` where it has them
    (ours do), else its scalar `shift_factor` and `scaling_factor` (the published DC-AE and SD-VAE).
    """

    def __init__(self, autoencoder: nn.Module) -> None:
        config: Any = autoencoder.config
        self.autoencoder: Any = autoencoder
        self.channels = int(config.latent_channels)
        blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
        self.factor = int(2 ** (len(blocks) - 1))
        if config.get("latents_mean") is not None:
            mean, std = torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"])
        else:
            mean = torch.full((self.channels,), float(config.get("shift_factor") or 0.0))
            std = torch.full((self.channels,), 1.0 / float(config.get("scaling_factor") or 1.0))
        self.mean, self.std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights, and of the numbers that latents are normalised with."""
        numbers = f"{self.mean.tolist()} {self.std.tolist()}"
        return sha256(f"{weights_digest(self.autoencoder)} {numbers}".encode()).hexdigest()[:16]

    def encode(self, images: Images) -> Latents:
        """Latents of images whose sides are multiples of `factor`; the mode of the posterior for a KL autoencoder."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise InputError(f"image size {width}x{height}: both sides must be multiples of {self.factor}")
        output = self.autoencoder.encode(images.to(self.autoencoder.dtype))
        latents = output.latent if hasattr(output, "latent") else output.latent_dist.mode()
        return (latents - self.mean.to(latents)) / self.std.to(latents)

    def decode(self, latents: Latents) -> Images:
        """Images in [-1, 1] (not clamped)."""
        latents = latents.to(self.autoencoder.device, self.autoencoder.dtype)
        images: Tensor = self.autoencoder.decode(latents * self.std.to(latents) + self.mean.to(latents)).sample
        return images


def load_codec(name_or_path: str | Path) -> Codec:
    """`identity`, `identity-gray`, or a folder or hub id of a diffusers AutoencoderDC or AutoencoderKL."""
    if str(name_or_path) == "identity":
        return IdentityCodec()
    if str(name_or_path) == "identity-gray":
        return IdentityCodec(channels=1)
    from diffusers import AutoencoderDC, AutoencoderKL

    kinds = {"AutoencoderDC": AutoencoderDC, "AutoencoderKL": AutoencoderKL}
    try:
        name = AutoencoderDC.load_config(name_or_path)["_class_name"]
        autoencoder = kinds[name].from_pretrained(name_or_path)
        check_whole(autoencoder)
    except (OSError, ValueError) as error:
        raise InputError(f"no autoencoder at {str(name_or_path)!r}: {str(error).splitlines()[0]}") from error
    except KeyError as error:
        raise InputError(f"codec {str(name_or_path)!r} is a {error}, expected one of {sorted(kinds)}") from error
    return AutoencoderCodec(autoencoder.eval().requires_grad_(False))


def check_whole(module: nn.Module) -> None:
    """Raises ValueError for a module that diffusers loaded from a file without some of its weights."""
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if missing:
        raise ValueError(f"{len(missing)} of its weights are not in the file, for example {missing[0]}")


def to_uint8(images: Images) -> UInt8[Tensor, "batch 3 height width"]:
    """The one rule from [-1, 1] to 0..255: scale, round half to even, clamp."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class _KnownConfigKeys(logging.Filter):
    """diffusers warns that `AutoencoderDC` does not expect the latent statistics we keep in its config."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "latents_mean" not in record.getMessage()


logging.getLogger("diffusers.configuration_utils").addFilter(_KnownConfigKeys())
