"""What the page shows of a model: what it can be asked for, in the sizes it draws."""

import math
from typing import Any

from anystep.conditioning import TextEncoder
from anystep.pipelines.inputs import STRENGTH
from anystep.pipelines.load import Model
from anystep.pipelines.transition import TransitionPipeline
from anystep.studio.request import ImageRequest, Limits

ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:4": 3 / 4, "3:2": 3 / 2, "2:3": 2 / 3, "16:9": 16 / 9, "9:16": 9 / 16}
EXAMPLES = 6
# of the concepts of a model those that show it well, where it has them
SHOWN = ("red apple", "dog face", "rocket", "smiling face with sunglasses", "tractor", "whale")
SURROUNDINGS = ("a {}", "a {}", "a {} on a blue background, flat style")


def model_card(name: str, model: Model, limits: Limits) -> dict[str, Any]:
    """Plain values for the page."""
    pipeline = model.pipeline
    config, transport = pipeline.config, pipeline.schedule.transport
    unguided = pipeline.transformer.config.num_classes is not None and not (
        pipeline.transformer.config.class_dropout_prob
    )
    return {
        "name": name,
        "source": model.name,
        "parameters": sum(each.numel() for each in pipeline.transformer.parameters()),
        "license": config.license,
        "reads_text": pipeline.transformer.config.num_classes is None,
        "examples": examples(pipeline),
        "concepts": list(config.concepts or config.class_names or ()),
        "sizes": sizes(pipeline, limits),
        "multiple": pipeline.size_multiple,
        "guidance": pipeline.resolve_guidance(None),
        "can_guide": not unguided,
        "times": [transport.t_min, transport.t_max],
        "plans": sorted(pipeline.schedule.plans),
        "steps": ImageRequest.steps,
        "max_steps": limits.steps,
        "strength": STRENGTH,
    }


def examples(pipeline: TransitionPipeline) -> list[str]:
    """Prompts that the model knows."""
    known = list(pipeline.config.concepts or ())
    if known and isinstance(pipeline.conditioner, TextEncoder):
        spread = known[len(known) // (2 * EXAMPLES) :: max(1, len(known) // EXAMPLES)]
        chosen = [*(each for each in SHOWN if each in known), *spread][:EXAMPLES]
        return [SURROUNDINGS[place % len(SURROUNDINGS)].format(concept) for place, concept in enumerate(chosen)]
    named = list(pipeline.config.class_names or map(str, range(pipeline.transformer.config.num_classes or 0)))
    return named[:: max(1, len(named) // EXAMPLES)][:EXAMPLES]


def sizes(pipeline: TransitionPipeline, limits: Limits) -> list[dict[str, Any]]:
    """The trained shapes, and other aspects of about the area of the first, each a width and a height in pixels."""
    base, multiple = pipeline.base_size, pipeline.size_multiple
    trained = [_sides(shape) for shape in pipeline.config.trained_shapes or [f"{base}x{base}"]]
    area = math.prod(trained[0])
    found = dict.fromkeys(trained, True)
    for scale in (1, 2):
        for aspect in ASPECTS.values():
            side = scale * math.sqrt(area)
            exact = (side * math.sqrt(aspect), side / math.sqrt(aspect))
            shape = tuple(max(multiple, round(each / multiple) * multiple) for each in exact)
            if math.prod(shape) <= limits.pixels:
                found.setdefault((shape[0], shape[1]), False)
    return [
        {"width": width, "height": height, "aspect": _aspect(width, height), "trained": is_trained}
        for (width, height), is_trained in found.items()
    ]


def _sides(shape: str) -> tuple[int, int]:
    width, height = map(int, shape.split("x"))
    return width, height


def _aspect(width: int, height: int) -> str:
    """The nearest of the usual aspects, by its name."""
    return min(ASPECTS, key=lambda name: abs(math.log(width / height / ASPECTS[name])))
