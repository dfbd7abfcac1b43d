"""A batch of requests to images, each with the bits that it has alone, and what its file says of how it was made."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from anystep.conditioning import TextEncoder
from anystep.conditioning.text import States, pad_states
from anystep.contact_sheet import written_beside
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.pipelines.describe import model_digest
from anystep.pipelines.generate import Record, Start
from anystep.pipelines.image_model import Generated
from anystep.pipelines.inputs import CLEAN
from anystep.pipelines.load import Model
from anystep.sampling import StepPlan
from anystep.studio.batch_invariant import BatchInvariant, separately
from anystep.studio.request import ImageRequest

REMEMBERED = 256  # prompts whose states are kept
QUALITY = 95  # of JPEG and WebP


@dataclass(frozen=True)
class Drawn:
    """An image and what it cost.

    Attributes:
        steps, nfe: transitions made, and network evaluations spent on it.
        seconds: that its batch took.
        batch: images that were drawn together.
        texts: what its file says of how it was made; nothing where `anystep generate --like` could not do it again.
    """

    image: Image.Image
    request: ImageRequest
    steps: int
    nfe: int
    seconds: float
    batch: int
    texts: dict[str, str]

    def encoded(self, kind: str = "PNG", quality: int = QUALITY) -> bytes:
        """The content of its file: PNG, JPEG or WEBP."""
        return file_content(self.image, kind, quality, self.texts)


def file_content(image: Image.Image, kind: str = "PNG", quality: int = QUALITY, texts: Any = None) -> bytes:
    """The content of an image's file."""
    buffer = BytesIO()
    image.save(buffer, kind, quality=quality, **written_beside(kind, texts))
    return buffer.getvalue()


class SeparateCaptions(TextEncoder):
    """A text encoder whose states of a caption depend on no other caption, and which remembers some.

    Nothing is padded: captions of one length are encoded together.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        vars(self).update(vars(encoder))
        self._encoder, self._known, self._lock = encoder, OrderedDict[str, Tensor](), Lock()

    def __call__(self, prompts: Sequence[str], max_length: int | None = None) -> States:
        if max_length is not None:
            return self._encoder(prompts, max_length)
        with self._lock:
            states = {prompt: self._known[prompt] for prompt in prompts if prompt in self._known}
        by_length = defaultdict(list)
        for prompt in set(prompts) - set(states):
            by_length[self._encoder.length(prompt)].append(prompt)
        for alike in by_length.values():
            states |= zip(alike, self._encoder(alike)[0], strict=True)
        with self._lock:
            for prompt in states:
                self._known[prompt] = states[prompt]
                self._known.move_to_end(prompt)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return pad_states([states[prompt] for prompt in prompts])


class Painter:
    """A loaded model that draws batches of requests.

    Attributes:
        model: what was loaded, for this alone from now on.
        digest: what tells it from other models.
        batches: whether images that are drawn together have the bits that they have alone; else each is to be drawn
            alone. It is so of anystep's own networks.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.digest = model, model_digest(model)
        network = model.pipeline.transformer
        self.batches = isinstance(network, TransitionTransformer2DModel)
        if self.batches:
            network.encode_condition = separately(network.encode_condition)
        conditioner = model.pipeline.conditioner
        if isinstance(conditioner, TextEncoder):
            model.pipeline.conditioner = SeparateCaptions(conditioner)

    def draw(
        self, requests: Sequence[ImageRequest], on_transition: Callable[[int, int, Tensor | None], None] | None = None
    ) -> list[Drawn]:
        """The images of requests that may be drawn together (`ImageRequest.together`).

        Args:
            on_transition: called after each transition with its number from 0, how many there are, and the latents of
                the clean-image estimates where any request shows them. What it raises ends the batch.

        Raises:
            InputError: a sample that is not finite.
        """
        first, pipeline = requests[0], self.model.pipeline
        assert first.size is not None
        width, height = first.size
        negative = [request.negative_prompt for request in requests]

        def on_step_end(pipeline: Any, index: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if on_transition is not None:
                on_transition(index, pipeline.num_timesteps, tensors.get(CLEAN))
            return {}

        previews = any(request.previews != 0 for request in requests)
        options: dict[str, Any] = {}
        if first.image is not None:
            options = {"image": [request.image for request in requests], "strength": first.strength}
        begin = perf_counter()
        with BatchInvariant() if self.batches and pipeline.device.type == "cpu" else nullcontext():
            output: Any = pipeline(
                [request.prompt for request in requests], height, width, first.steps,
                guidance_scale=first.guidance, guidance_interval=first.guidance_interval,
                seeds=[request.seed for request in requests], stochasticity=first.stochasticity, shift=first.shift,
                plan=first.plan, rope_scaling=first.rope_scaling, key_grid=first.key_grid,
                negative_prompt=negative if any(negative) else None, finish_after=first.finish_after,
                output_type="latent", callback_on_step_end=on_step_end,
                callback_on_step_end_tensor_inputs=[CLEAN] * previews, **options,
            )  # fmt: skip
            images = [self.decode(latent) for latent in output.images]
        seconds = perf_counter() - begin
        made = Generated(images, output.steps, output.nfe, seconds)
        return [
            Drawn(image, request, made.steps, made.nfe, seconds, len(requests), self._texts(request, made))
            for request, image in zip(requests, images, strict=True)
        ]

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Image.Image:
        """The image of one latent (channels, rows, columns); convolutions are not the same in a batch."""
        (image,) = self.model.pipeline._show(latent[None], "pil")
        return image

    def _texts(self, request: ImageRequest, made: Generated) -> dict[str, str]:
        if request.negative_prompt:
            return {}
        plan: StepPlan = self.model.pipeline.plan(request.steps, request.plan, request.stochasticity, request.shift)
        start = Start()
        if request.image is not None:
            start = Start(request.image, "image", request.image_digest, request.strength)
        names = ("size", "guidance", "guidance_interval", "stochasticity", "rope_scaling", "key_grid", "finish_after")
        how = {name: getattr(request, name) for name in names}
        cell = Generated(made.images, made.steps, made.nfe, made.seconds, (request.seed,), request.steps, plan)
        return Record(self.model, self.digest, start, how).texts([str(request.prompt)], [request.seed], [cell])
