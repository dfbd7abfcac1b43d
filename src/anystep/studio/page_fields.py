"""What the page asks for, and what a picture's settings are in the fields of its form."""

import base64
import binascii
import secrets
from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, ConfigDict

from anystep import bounds
from anystep.errors import InputError
from anystep.pipelines.plan import check_room
from anystep.pipelines.scheduler import parse_plans
from anystep.pipelines.settings import Settings
from anystep.sampling import StepPlan
from anystep.studio.engine import Engine
from anystep.studio.openai_images import EditFields, Start
from anystep.studio.request import ImageRequest

MOST_STEP_COUNTS = 16
LARGEST_SEED = 2**53 - 1  # numbers of JavaScript are whole up to there


class PageFields(BaseModel):
    """The body of `POST /studio/draw`: the fields of an image, at several numbers of steps.

    Attributes:
        fields: as of `POST /v1/images/edits`; `user` tells tabs of one address from each other, who take turns, and
            `partial_images` is of how many transitions the estimate is sent (None: of every one).
        steps: each image is drawn in each of them, with the same noise.
        image: a file to start from, in base64.
        keep: whether the pictures go to the gallery.
    """

    model_config = ConfigDict(extra="forbid")

    fields: EditFields
    steps: Annotated[list[bounds.SamplingSteps], Len(1, MOST_STEP_COUNTS)]
    image: str | None = None
    keep: bool = True

    def requests(self, engine: Engine) -> list[ImageRequest]:
        """One request for each number of steps and image of it, the cheapest first.

        Raises:
            InputError: what the model cannot draw, or this machine has no memory for, or an image that is none.
        """
        start = None if self.image is None else Start.read(_decoded(self.image))
        seed = secrets.randbelow(2**32) if self.fields.seed is None else self.fields.seed
        each = [
            self.fields.model_copy(update={"steps": count, "num_inference_steps": None, "seed": seed, "stream": True})
            for count in sorted(set(self.steps))
        ]
        requests = [request for fields in each for request in fields.requests(engine, start, self.fields.strength)]
        first = requests[0]
        assert first.size is not None
        assert first.guidance is not None
        check_room(engine.model(first.model), *first.size, first.guidance, first.key_grid)
        return requests


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("image: expected a file in base64") from None


def recalled(settings: Settings, engine: Engine) -> dict[str, Any]:
    """The fields of the form that draw a picture again, and under `warnings` what will be otherwise.

    Raises:
        InputError: its plans are none.
    """
    warnings = []
    name = next((each for each in engine.painters if engine.painters[each].digest == settings.model_digest), None)
    if name is None:
        name = settings.model if settings.model in engine.painters else engine.default_model
        warnings.append(f"drawn by another model, {bounds.shown(settings.model)}")
    if len(settings.prompts) > 1:
        warnings.append(f"a sheet of {len(settings.prompts)} prompts: this is the first of them")
    if settings.image_digest is not None:
        warnings.append(f"begun with the image {bounds.shown(settings.image or '')}: drop that too")
    if settings.lora is not None:
        warnings.append(f"drawn with adapters: {bounds.shown(', '.join(each.name for each in settings.lora))}")
    if settings.rope_scaling is not None or settings.key_grid is not None:
        warnings.append("drawn with rope_scaling or key_grid, which this form lacks: the copied command has them")
    if settings.seeds[0] > LARGEST_SEED:
        warnings.append("its seed is larger than a page can hold: `anystep generate --like` draws it")
    model = engine.model(name)
    plans = parse_plans(settings.plans)
    kinds = {_plan_name(plans.get(count), settings, count, model) for count in settings.steps}
    if None in kinds:
        warnings.append("drawn by a sampling plan of its own")
    plain = settings.model_dump(mode="json", exclude_none=True)
    kept = ("guidance", "guidance_interval", "stochasticity", "strength", "finish_after", "rope_scaling", "key_grid")
    return {
        "prompt": settings.prompts[0],
        "model": name,
        "seed": settings.seeds[0],
        "n": min(len(settings.seeds), 4),
        "steps": list(settings.steps),
        "nfe": list(settings.nfe),
        "size": "x".join(map(str, settings.size)),
        **{field: plain[field] for field in kept if field in plain},
        **({} if settings.image_digest is None else {"start": settings.image}),
        "plan": next(iter(kinds)) if len(kinds) == 1 else None,
        "warnings": warnings,
    }


def _plan_name(drawn: StepPlan | None, settings: Settings, count: int, model: Any) -> str | None:
    """Which of the plans that can be asked for by a word a number of steps followed; None for neither."""
    for word in ("model", "uniform"):
        planned = model.pipeline.plan(count, word, settings.stochasticity)
        if planned == (drawn or model.pipeline.plan(count, "uniform", settings.stochasticity)):
            return word
    return None
