"""The page of a model, README.md in its folder: what it is, how to draw with it, its licence and its settings."""

from collections.abc import Mapping
from shlex import quote
from typing import Any

from anystep.errors import one_line
from anystep.markdown import markdown_table
from anystep.plain_yaml import dump_yaml

# what the card of diffusers says that is written where nobody has written one
TEMPLATE = "has been automatically generated"
WHAT = (
    "It draws in any number of steps: one network that jumps from any noise level to any lower one (Transition Models,",
    "[arXiv 2509.04394](https://arxiv.org/abs/2509.04394)), made with anystep.",
)
OF_DIFFUSERS = (
    'With anystep installed, `DiffusionPipeline.from_pretrained("THIS_MODEL", trust_remote_code=True)` is the same.'
)


def model_card(pipeline: Any) -> str:
    """The card of a pipeline, in Markdown with the fields that model hubs read."""
    network, config = pipeline.transformer.config, pipeline.config
    classes = network.num_classes is not None
    example = _example(config)
    kind = type(pipeline).__name__
    fields = {
        "license": one_line(config.license or "").lower() or None,
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation" if classes else "text-to-image",
    }
    rows = [(name, one_line(str(value))) for name, value in _facts(pipeline).items() if value is not None]
    lines = [
        *card_fields({**fields, "tags": ["anystep", f"diffusers:{kind}"]}),
        f"# A transition model of {'classes' if classes else 'captions'}", "", *WHAT, "",
        "```python", f"from anystep import {kind}", "", f'pipe = {kind}.from_pretrained("THIS_MODEL")',
        f"pipe({'class_labels=[0]' if classes else repr(example)}, num_inference_steps=4).images[0]", "```", "",
        *([] if classes else [f"    anystep generate {quote(example)} --model THIS_MODEL --steps 1 2 4 8", ""]),
        OF_DIFFUSERS, "", *markdown_table(["setting", "value"], rows, "ll"), "",
    ]  # fmt: skip
    return "\n".join(lines)


def card_fields(fields: Mapping[str, Any]) -> list[str]:
    """The lines before a page that model hubs read; a field that is None is left out."""
    said = dump_yaml({name: value for name, value in fields.items() if value is not None})
    return ["---", *said.splitlines(), "---", ""]


def _example(config: Any) -> str:
    return f"a {one_line(config.concepts[0], 60)}" if config.concepts else "a red apple on a blue background"


def _facts(pipeline: Any) -> dict[str, Any]:
    """The settings that somebody who draws wants to know."""
    network, schedule, base = pipeline.transformer, pipeline.schedule, pipeline.base_size
    plans = [f"{budget}: {plan}" for budget, plan in schedule.plans.items()]
    return {
        "parameters of the transformer": f"{sum(each.numel() for each in network.parameters()):,}",
        "trained size": ", ".join(pipeline.config.trained_shapes or [f"{base}x{base}"]),
        "sides are multiples of": f"{pipeline.size_multiple} pixels",
        "guidance": f"{pipeline.config.guidance_scale:g}",
        "transport": schedule.config.transport,
        "steps are spent on": "; ".join(plans) or "uniform times",
        "text encoder": pipeline.config.text_encoder_name or ("in this folder" if pipeline.text_encoder else None),
        "autoencoder": pipeline.config.vae_name or ("in this folder" if pipeline.vae is not None else "none: pixels"),
        "classes": network.config.num_classes,
        "licence": pipeline.config.license or "not said",
    }
