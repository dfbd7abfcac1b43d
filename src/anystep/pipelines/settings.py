"""How an image was made, written into its file, so that it can be drawn again.

A PNG holds it in two text chunks: `anystep`, a JSON object with the fields of `Settings`, and `parameters`, a few lines
for people in the form that other programs write. JPEG and WebP hold the object in EXIF's image description.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from PIL import ExifTags, Image
from pydantic import BaseModel, ConfigDict, ValidationError

from anystep.bounds import Guidance, OptionalCount, PositiveShare, Real, SamplingSteps, Seed, Share, Side, Time, shown
from anystep.errors import InputError, refused
from anystep.files import check_regular, parse_json
from anystep.models.rotary import RotaryScaling

KEY = "anystep"
LONGEST = 500_000  # characters: readers refuse text chunks of more than a megabyte
FORMATS = ("PNG", "JPEG", "WEBP")

Name = Annotated[str, Len(1, 1000)]
Prompt = Annotated[str, Len(1, 100_000)]


class Adapter(BaseModel):
    """An adapter (LoRA) that an image was drawn with: its name, the digest of its file, and how much of it."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    name: Name
    digest: Name
    scale: Real


class Settings(BaseModel):
    """How an image, or a sheet of them, was made. None stands for the model's own setting.

    Attributes:
        format: version of this record.
        version: version of anystep.
        model, model_digest: its name, and what tells its weights and configuration from all others.
        precision: of its weights, where it is not float32.
        prompts, seeds, steps: every prompt is drawn with every seed at every number of steps.
        nfe: network evaluations at each of the step counts.
        lora: the adapters that were on the model.
        plans: of the step counts whose times were not uniform, the fields of their `StepPlan`.
        size: width and height in pixels.
        finish_after: transitions after which it went to the end in one more; None: it made them all.
        pipeline, pipeline_plan: the class of a pipeline that is no transition model, and the plan it was asked for.
        image, image_digest, strength: the name and content of a file that was started from, and how far back.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    format: Literal[1] = 1
    version: Name
    model: Name
    model_digest: Name
    precision: Literal["bfloat16"] | None = None
    prompts: Annotated[tuple[Prompt, ...], Len(1, 10_000)]
    seeds: Annotated[tuple[Seed, ...], Len(1, 10_000)]
    steps: Annotated[tuple[SamplingSteps, ...], Len(1, 10_000)]
    nfe: Annotated[tuple[int, ...], Len(1, 10_000)]
    plans: dict[SamplingSteps, dict[str, Any]] | None = None
    guidance: Guidance
    guidance_interval: tuple[Time, Time] | None = None
    stochasticity: Share | None = None
    size: tuple[Side, Side]
    image: Name | None = None
    image_digest: Name | None = None
    strength: PositiveShare | None = None
    pipeline: Name | None = None
    pipeline_plan: Literal["uniform"] | None = None
    rope_scaling: Literal[get_args(RotaryScaling)] | None = None  # type: ignore[valid-type]
    key_grid: Side | None = None
    finish_after: OptionalCount | None = None
    lora: Annotated[tuple[Adapter, ...], Len(1, 100)] | None = None

    def texts(self) -> dict[str, str]:
        """The text chunks; none where they would be too long to be read."""
        record = json.dumps(self.model_dump(mode="json", exclude_none=True))
        texts = {KEY: record, "parameters": self._for_people()}
        return texts if sum(map(len, texts.values())) <= LONGEST else {}

    def _for_people(self) -> str:
        def several(values: tuple[Any, ...]) -> str:
            return " ".join(map(str, values))

        said = {
            "Steps": several(self.steps),
            "Sampler": (self.pipeline or "transition")
            + (f", stochasticity {self.stochasticity:g}" if self.stochasticity else ""),
            "CFG scale": f"{self.guidance:g}",
            "Seed": several(self.seeds),
            "Size": f"{self.size[0]}x{self.size[1]}",
            "Model hash": self.model_digest,
            "Model": self.model,
            "NFE": several(self.nfe),
            "Finished after": self.finish_after,
            "Lora": None if self.lora is None else several(tuple(f"{each.name}:{each.scale:g}" for each in self.lora)),
            "Denoising strength": None if self.strength is None else f"{self.strength:g}",
            "Version": f"anystep {self.version}",
        }
        line = ", ".join(f"{name}: {value}" for name, value in said.items() if value is not None)
        return "\n".join([*self.prompts, line])


def read_settings(path: Path) -> Settings:
    """What an image of anystep says of how it was made. The pixels are not read.

    Raises:
        InputError: no image, none of ours, or settings that cannot be.
    """
    check_regular(path)
    return settings_in(path, shown(str(path)))


def settings_in(file: Path | BytesIO, name: str) -> Settings:
    """`read_settings` of an open file, which messages call by that name."""
    with refused(f"cannot read {name} as a PNG, JPEG or WebP"), Image.open(file, formats=FORMATS) as image:
        text = image.info.get(KEY) or image.getexif().get(ExifTags.Base.ImageDescription)
    if not isinstance(text, str) or not text.startswith("{"):
        raise InputError(f"{name} does not say how it was made: expected an image that anystep has written")
    content = parse_json(text, f"the settings in {name}")
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where, value = ".".join(map(str, first["loc"])), first["input"]
        wrong = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        what = "" if first["type"] == "missing" else f", got {shown(value)}"
        raise InputError(f"the settings in {name}: {where}: {wrong}{what}") from None
