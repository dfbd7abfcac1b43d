"""The sections of a recipe that begin with a model that is there: `lora` and `adapt`."""

from typing import Annotated, Any, Literal

from annotated_types import MinLen

from anystep.bounds import Count, Guidance, PositiveCoefficient, PositiveShare, Width
from anystep.flow_families import Family
from anystep.training.section import Name, Section


class LoraConfig(Section):
    """A low-rank adapter of `model.weights`, which stay as they are: alpha / rank B A beside each chosen layer."""

    # Rank of A and B.
    rank: Width = 16
    # Factor on B A, over the rank (null: the rank, so that the factor is 1).
    alpha: PositiveCoefficient | None = None
    # Ends of the names of the linear layers that it changes.
    targets: Annotated[tuple[Name, ...], MinLen(1)] = (
        "to_q", "to_k", "to_v", "to_out", "mlp.gate", "mlp.up", "mlp.down"
    )  # fmt: skip


class AdaptConfig(Section):
    """A flow-matching pipeline of diffusers, `model.weights`, made a flow map; `lora: null` trains all its weights."""

    # Kind of pipeline that `model.weights` is: Stable Diffusion 3, FLUX.1 or SANA.
    family: Family = "sd3"
    # Share of the blocks, the last ones, that are given the interval (1: all).
    interval_share: PositiveShare = 1.0
    # Follow the velocity of the frozen pipeline in place of that of the data; guidance in the target is its own.
    teacher: bool = False
    # Give the network a guidance scale, which objective.guidance_condition trains.
    guidance_embed: bool = False
    # Guidance scale that a network which reads one already, as FLUX.1-dev does, is trained at.
    base_guidance: Guidance = 3.5
    # Tokens of a caption that are read, `max_sequence_length` of the pipeline's calls (null: its default).
    caption_tokens: Count | None = None
    # Precision that frozen weights are kept in; what is trained is kept in float32.
    storage: Literal["float32", "bfloat16"] = "float32"


def check_adapt(recipe: Any) -> None:
    """Raise `ValueError` for a recipe whose section `adapt` does not go with the others."""
    adapt, objective = recipe.adapt, recipe.objective
    if adapt is None:
        return
    for name in ("preset", "options"):
        if getattr(recipe.model, name) != type(recipe.model).model_fields[name].default:
            raise ValueError(f"model.{name}: adapt takes the network of model.weights, leave it out")
    if recipe.transport.name != "ot_fm":
        raise ValueError(f"transport.name {recipe.transport.name}: flow-matching pipelines are of ot_fm")
    if objective.derivative == "forward_mode" and objective.target == "identity" and objective.diffusion_share < 1:
        raise ValueError("objective.derivative forward_mode: adapt needs ordinary forwards, central or one_sided")
    for name, value in (("alignment", recipe.alignment), ("ema_lengths", recipe.ema_lengths),
                        ("run.packed", recipe.run.packed)):  # fmt: skip
        if value:
            raise ValueError(f"{name} is for transition transformers: leave it out, or adapt")
    if recipe.lora is None and (adapt.teacher or adapt.storage != "float32"):
        name = "teacher" if adapt.teacher else "storage"
        raise ValueError(f"adapt.{name} is of weights that stay frozen: set lora")
    if adapt.storage != "float32" and recipe.parallel in ("fsdp", "hsdp"):
        raise ValueError(f"adapt.storage {adapt.storage}: parallel {recipe.parallel} shards weights of one precision")
