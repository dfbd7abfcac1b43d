"""`--dry-run` of commands that draw with models: what each of them is and costs, without its weights where it can be.

Whatever else a command checks it has checked by then. Pipelines of diffusers are gone through with hollow networks
(`anystep.pipelines.hollow`), so that their network evaluations are counted here too.
"""

from collections.abc import Sequence
from typing import Any

from anystep.markdown import markdown_table
from anystep.pipelines.image_model import ImageModel
from anystep.pipelines.scheduler import Planning
from anystep.sampling import StepPlan

HALF = 2  # bytes of a number of bfloat16, which weights have on a GPU


def dry_run(
    models: Sequence[ImageModel],
    steps: Sequence[int],
    size: tuple[int, int],
    guidance: float | None = None,
    plan: StepPlan | Planning | None = None,
) -> dict[str, Any]:
    """What drawing takes with each of the models, as plain values.

    Raises:
        InputError: one of them cannot draw so.
    """
    told = []
    for model in models:
        for count in steps:
            model.check(None, *size, count)
        facts = model.facts()
        told.append({
            "name": model.name,
            **facts,
            "guidance": model.resolve_guidance(guidance),
            "plan": plan.plain() if isinstance(plan, StepPlan) else plan,
            "size": list(size),
            "nfe": {str(count): model.nfe(count, guidance, plan) for count in steps},
            "bfloat16_bytes": HALF * sum(facts["parameters"].values()),
        })  # fmt: skip
    return {"dry_run": told}


def describe(found: dict[str, Any]) -> str:
    """The same as a page to read."""
    rows = []
    for model in found["dry_run"]:
        parameters = ", ".join(f"{name} {count / 1e6:,.1f}M" for name, count in model["parameters"].items())
        size, costs = "x".join(map(str, model["size"])), " ".join(map(str, model["nfe"].values()))
        memory = f"{model['bfloat16_bytes'] / 1e9:.1f} GB"
        rows.append([model["name"], model["pipeline"], size, f"{model['guidance']:g}", costs, parameters, memory])
    steps = " ".join(found["dry_run"][0]["nfe"]) if rows else ""
    heads = ["model", "pipeline", "size", "guidance", f"NFE at {steps} steps", "parameters", "weights in bfloat16"]
    return "\n".join([*markdown_table(heads, rows, "llrrrlr"), "", "dry run: nothing was drawn"])
