"""OpenAI's images API: its fields, with ours beside them, as requests of the engine."""

import math
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.datastructures import UploadFile

from anystep import bounds
from anystep.bounds import shown
from anystep.data.images import upright_size
from anystep.errors import InputError, refused
from anystep.fingerprint import bytes_digest
from anystep.models.rotary import RotaryScaling
from anystep.pipelines.inputs import STRENGTH
from anystep.pipelines.load import Model
from anystep.pipelines.scheduler import Planning
from anystep.studio.engine import Engine
from anystep.studio.request import ImageRequest

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
START_PIXELS = 4096 * 4096  # most of an image to start from
MOST_IMAGES = 10  # of one request
PAIRS = {"guidance_interval"}  # fields of two numbers
Size = Annotated[str, Field(pattern=r"^(auto|[1-9][0-9]{0,5}x[1-9][0-9]{0,5})$")]
Text = Annotated[str, Len(0, bounds.MAX_TEXT)]


class ImageFields(BaseModel):
    """Fields of both kinds of requests. A field that OpenAI's API has and that means nothing here is taken as it is.

    Attributes:
        n: images, with seeds that follow each other.
        size: WIDTHxHEIGHT, or `auto` for the training size.
        num_inference_steps, steps: numbers of steps, the same under two names; so with guidance.
        seed: of the first image; drawn by chance where none is given, and told in the answer.
        stream, partial_images: answer with events: of so many transitions, every one by default, the estimate of the
            clean image, and the image.
        deadline: seconds after which nobody waits for the answer.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    prompt: Annotated[Text, Len(1)]
    model: Annotated[str, Len(1, 1000)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    size: Size | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: bounds.OptionalCount | None = None
    # ours, under the names that other servers use
    negative_prompt: Text | None = None
    num_inference_steps: bounds.SamplingSteps | None = None
    steps: bounds.SamplingSteps | None = None
    guidance_scale: bounds.Guidance | None = None
    guidance: bounds.Guidance | None = None
    seed: bounds.Seed | None = None
    guidance_interval: tuple[bounds.Time, bounds.Time] | None = None
    stochasticity: bounds.Share | None = None
    shift: bounds.TimeShift | None = None
    plan: Literal[get_args(Planning)] | None = None  # type: ignore[valid-type]
    rope_scaling: Literal[get_args(RotaryScaling)] | None = None  # type: ignore[valid-type]
    key_grid: bounds.KeyGrid | None = None
    finish_after: bounds.OptionalCount | None = None
    deadline: bounds.Seconds | None = None
    # of OpenAI's models
    quality: Literal["auto", "standard", "hd", "low", "medium", "high", "xhigh", "max"] | None = None
    background: Literal["auto", "opaque"] | None = None
    user: Annotated[str, Len(0, 1000)] | None = None
    safety_identifier: Annotated[str, Len(0, 1000)] | None = None

    @model_validator(mode="after")
    def _one_name_each(self) -> "ImageFields":
        for name, alias in (("num_inference_steps", "steps"), ("guidance_scale", "guidance")):
            if getattr(self, name) is not None and getattr(self, alias) is not None:
                raise ValueError(f"{name} and {alias} are the same: give one of them")
        return self

    @property
    def form(self) -> str:
        """The format of the files."""
        return self.output_format or "png"

    def requests(
        self, engine: Engine, start: "Start | None" = None, strength: float | None = None
    ) -> list[ImageRequest]:
        """One request for each image, checked.

        Raises:
            InputError: what the model cannot draw, or an unknown model.
        """
        name = self.model or engine.default_model
        steps = self.num_inference_steps or self.steps
        request = ImageRequest(
            self.prompt, name, self.negative_prompt or "",
            steps=ImageRequest.steps if steps is None else steps,
            size=self._size(engine.model(name), start),
            guidance=self.guidance if self.guidance_scale is None else self.guidance_scale,
            guidance_interval=self.guidance_interval, stochasticity=self.stochasticity, shift=self.shift,
            plan=self.plan, rope_scaling=self.rope_scaling, key_grid=self.key_grid,
            image=None if start is None else start.image, image_digest=None if start is None else start.digest,
            strength=STRENGTH if strength is None else strength, finish_after=self.finish_after,
            previews=self.partial_images if self.stream else 0,
        )  # fmt: skip
        first = secrets.randbelow(2**32) if self.seed is None else self.seed
        return [engine.check(replace(request, seed=first + number)) for number in range(self.n or 1)]

    def _size(self, model: Model, start: "Start | None") -> tuple[int, int] | None:
        """The size asked for; else the trained shape that is most like the image to start from."""
        if self.size not in (None, "auto"):
            width, height = map(int, self.size.split("x"))
            return width, height
        shapes = [tuple(map(int, shape.split("x"))) for shape in model.pipeline.config.get("trained_shapes") or ()]
        if start is None or not shapes:
            return None
        wide, high = upright_size(start.image)
        aspect = math.log(wide / high)
        width, height = min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - aspect))
        return width, height


class GenerationFields(ImageFields):
    """The body of `POST /v1/images/generations`."""

    style: Literal["vivid", "natural"] | None = None
    moderation: Literal["auto", "low"] | None = None


class EditFields(ImageFields):
    """The fields of `POST /v1/images/edits` beside the image: `strength` is how far back from it to begin."""

    strength: bounds.PositiveShare | None = None
    input_fidelity: Literal["high", "low"] | None = None


@dataclass(frozen=True)
class Start:
    """An image to start from, and the digest of its file."""

    image: Image.Image
    digest: str

    @classmethod
    def read(cls, content: bytes) -> "Start":
        """From the content of a file. Raises `InputError` for what is no image, or a larger one than is taken."""
        with refused("image: expected a PNG, JPEG or WebP file"):
            image = Image.open(BytesIO(content), formats=list(FORMATS.values()))
            if image.width * image.height > START_PIXELS:
                raise InputError(f"image of {image.width}x{image.height}: expected at most {START_PIXELS:,} pixels")
            image.load()
        return cls(image, bytes_digest(content))


def parse_form(items: Iterable[tuple[str, Any]]) -> tuple[EditFields, UploadFile]:
    """The fields and the image of a multipart form; a field of two numbers is given twice, with or without `[]` behind.

    Raises:
        InputError: not one image, a mask, or a field given twice.
        ValidationError: a field that is none of its kind.
    """
    fields: dict[str, Any] = {}
    images: list[UploadFile] = []
    for name, value in items:
        plain = name.removesuffix("[]")
        several = plain != name or plain in PAIRS
        if plain == "image" and isinstance(value, UploadFile):
            images.append(value)
        elif isinstance(value, UploadFile):
            raise InputError(
                f"file {shown(name)}: expected an image alone; the whole image is drawn anew, without mask"
            )
        elif not several and plain not in fields:
            fields[plain] = value
        elif several and isinstance(fields.setdefault(plain, []), list):
            fields[plain].append(value)
        else:
            raise InputError(f"{shown(plain)} is given twice")
    for name in PAIRS & fields.keys():
        if len(fields[name]) != 2:
            raise InputError(f"{name} {shown(', '.join(fields[name]))}: expected the field twice, a number each")
    edit = EditFields.model_validate(fields)
    if len(images) != 1:
        raise InputError(f"{len(images)} files as image: expected one")
    return edit, images[0]
