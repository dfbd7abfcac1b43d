"""Images into latents and out of them: what a pipeline starts from, and what it shows."""

from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from anystep.bounds import shown
from anystep.codecs import AutoencoderCodec, Codec, IdentityCodec, to_uint8
from anystep.codecs.codec import downsampling_factor, load_autoencoder
from anystep.codecs.tiling import decode_tiled, encode_tiled
from anystep.data.images import to_rgb, to_tensor
from anystep.data.sizing import resize_and_crop
from anystep.errors import InputError, refused
from anystep.pipelines.inputs import check_finite

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
PIXELS = {"block_out_channels": [1]}  # what a config would say of a codec whose latents are the pixels
COMPUTED = (torch.float32, torch.bfloat16, torch.float16)  # other types store weights


def as_images(given: Any) -> list[Image.Image]:
    """Pictures from one, or several, of PIL, NumPy or PyTorch.

    Args:
        given: PIL images; arrays (height, width, 3) or with a batch before; tensors (3, height, width) or with a batch
            before. Whole numbers are from 0 to 255, others from 0 to 1.

    Raises:
        InputError: something else.
    """
    if isinstance(given, list | tuple):
        return [image for each in given for image in as_images(each)]
    if isinstance(given, Image.Image):
        return [given]
    if isinstance(given, Tensor):
        channels_last = given.detach().cpu().movedim(-3, -1) if given.ndim in (3, 4) else given
        given = channels_last.float().numpy() if given.is_floating_point() else channels_last.numpy()
    if not isinstance(given, np.ndarray):
        raise InputError(
            f"image {shown(type(given).__name__)}: expected a PIL image, an array or a tensor, or one for each prompt"
        )
    if given.ndim not in (3, 4) or given.shape[-1] != 3 or 0 in given.shape:
        raise InputError(f"image of shape {given.shape}: expected three colours, last in arrays and first in tensors")
    if given.dtype != np.uint8:
        if given.dtype.kind != "f" or not (np.isfinite(given).all() and given.min() >= 0 and given.max() <= 1):
            raise InputError(
                f"image of {given.dtype}: expected numbers from 0 to 1, or whole ones from 0 to 255 as uint8"
            )
        given = (given * 255).round().astype(np.uint8)
    return [Image.fromarray(pixels) for pixels in (given if given.ndim == 4 else given[None])]


class ImageCoding:
    """What a pipeline does with pixels, by its component `vae`."""

    vae: Any
    transformer: Any
    config: Any
    _vae_config: Any = PIXELS
    register_modules: Any
    _execution_device: Any

    @property
    def codec(self) -> Any:
        """The autoencoder under its earlier name."""
        return self.vae

    @property
    def latent_codec(self) -> Codec:
        """What encodes and decodes latents of zero mean and unit variance, which the network sees."""
        return IdentityCodec(self.transformer.config.in_channels) if self.vae is None else AutoencoderCodec(self.vae)

    def load_named_vae(self) -> None:
        """Load the autoencoder that the model names where `DiffusionPipeline.from_pretrained` has left it out."""
        if self.vae is None and (name := self.config.vae_name) is not None:
            dtype = self.transformer.dtype if self.transformer.dtype in COMPUTED else torch.float32
            self.register_modules(vae=load_autoencoder(name, dtype=dtype).to(self._execution_device))

    @property
    def factor(self) -> int:
        """Pixels of an image along the side of one pixel of its latents."""
        return downsampling_factor(self._vae_config if self.vae is None else self.vae.config)

    @property
    def image_processor(self) -> VaeImageProcessor:
        """That of diffusers, for code that reads or shows images itself: `image_processor.postprocess(images)`."""
        return VaeImageProcessor(vae_scale_factor=self.factor)

    @property
    def size_multiple(self) -> int:
        """Both sides of an image must be multiples of this."""
        return self.factor * int(self.transformer.config.patch_size)

    @property
    def base_size(self) -> int:
        """Side in pixels of the images the model was trained on."""
        return self.factor * int(self.transformer.config.sample_size)

    def sides(self, height: Any, width: Any, latents: Any = None) -> tuple[Any, Any]:
        """Height and width of a call in pixels: those given, by default of the training size.

        Raises:
            InputError: they are given, and the codec that says what latents are of that size is not there.
        """
        base, channels = self.base_size, self.transformer.config.in_channels
        sides = base if height is None else height, base if width is None else width
        if self.vae is not None or self._vae_config != PIXELS or channels in (1, 3):
            return sides
        if (height, width) == (None, None) and isinstance(latents, Tensor) and latents.ndim == 4:
            return latents.shape[-2], latents.shape[-1]
        if sides != (base, base):
            raise InputError(
                f"size {shown(width)}x{shown(height)}: without the codec it is unknown what latents that is: give "
                f"latents of (images, {channels}, rows, columns) in its place"
            )
        return sides

    @torch.no_grad()
    def encode(self, image: Any, height: int, width: int) -> Tensor:
        """The latent (1, channels, rows, columns) of an image, scaled until it covers that size, and cropped.

        Raises:
            InputError: no image, or one whose pixels cannot be read as RGB.
        """
        pictures = as_images(image)
        if len(pictures) != 1:
            raise InputError(f"{len(pictures)} images: expected one")
        with refused("image: cannot be read"):  # a file that PIL opens lazily
            pixels = to_tensor(resize_and_crop(to_rgb(pictures[0]), (width, height)))
        return encode_tiled(self.latent_codec, pixels[None].to(self._execution_device))

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images (batch, 3, height, width), about [-1, 1], of latents as `output_type="latent"` gives them.

        `vae.decode` alone takes latents of the autoencoder's own mean and deviation: with `latents_mean` and
        `latents_std` of its config, or `shift_factor` and `scaling_factor`, put back.

        Raises:
            InputError: the codec gives numbers that are not finite.
        """
        decoded = decode_tiled(self.latent_codec, latents)
        check_finite(decoded, "the codec")
        return decoded

    def _show(self, latents: Tensor, output_type: str) -> Any:
        """Images of latents; `to_uint8` is the one rule by which numbers become pixels."""
        if output_type == "latent":
            return latents
        pixels = to_uint8(self.decode_latents(latents))
        if output_type == "pil":
            return [Image.fromarray(each) for each in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        scaled = pixels.float() / 255
        return scaled if output_type == "pt" else scaled.permute(0, 2, 3, 1).cpu().numpy()

    def _encode_all(self, images: list[Any], height: int, width: int, count: int, repeats: int) -> Tensor:
        """The latents of one image for all, of one for each prompt, or of one for each of `count` images."""
        if len(images) not in (1, count // repeats, count):
            raise InputError(f"{len(images)} images to start from: expected one, or one for each of {count // repeats}")
        latents = torch.cat([self.encode(each, height, width) for each in images])
        return latents.repeat_interleave(count // len(images), dim=0)
