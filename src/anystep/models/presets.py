"""Sizes by name. Parameter counts are without the projector; the published ones from arXiv 2509.04394, table 8."""

from typing import Any

from anystep.bounds import check_options, shown
from anystep.errors import InputError
from anystep.models.transformer import TransitionTransformer2DModel

_XL = {"hidden_size": 1152, "depth": 28, "num_heads": 16, "modulation_rank": 384}
_B = {"hidden_size": 768, "depth": 12, "num_heads": 12, "modulation_rank": 256}

# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    "t2i-xl":   {**_XL, "in_channels": 32, "patch_size": 1, "sample_size": 32, "text_width": 1152},  # 864,978,080
    # the same network wider and deeper, to plan with: nobody has trained it
    "t2i-8b":   {"hidden_size": 3072, "depth": 37, "num_heads": 24, "modulation_rank": 1024,
                 "in_channels": 32, "patch_size": 1, "sample_size": 32, "text_width": 1152},  # 8,023,050,528
    "c2i-xl-2": {**_XL, "in_channels": 4,  "patch_size": 2, "sample_size": 32, "num_classes": 1000},  # 664,128,016
    "c2i-xl-1": {**_XL, "in_channels": 32, "patch_size": 1, "sample_size": 16, "num_classes": 1000},  # 664,164,896
    "c2i-b-4":  {**_B,  "in_channels": 4,  "patch_size": 4, "sample_size": 32, "num_classes": 1000},  # 128,828,224
    "t2i-emoji": {"hidden_size": 192, "depth": 7, "num_heads": 4, "mlp_ratio": 3.0, "modulation_rank": 64,
                  "in_channels": 32, "patch_size": 1, "sample_size": 8, "text_width": 384},
    "t2i-test": {"hidden_size": 32, "depth": 2, "num_heads": 2, "modulation_rank": 16,
                 "in_channels": 4, "patch_size": 1, "sample_size": 8, "text_width": 16},
    "c2i-test": {"hidden_size": 32, "depth": 2, "num_heads": 2, "modulation_rank": 16,
                 "in_channels": 4, "patch_size": 2, "sample_size": 8, "num_classes": 10},
}
# fmt: on


def preset_option(preset: str, options: dict[str, Any], name: str) -> int:
    """A size of a preset, or the option that replaces it.

    Raises:
        InputError: the option is no whole number, or out of bounds.
    """
    given = {name: {**PRESETS[preset], **options}[name]}
    return int(check_options("model.options", TransitionTransformer2DModel.__init__, given)[name])


def depths_of(preset: str, options: dict[str, Any]) -> tuple[int, int]:
    """The number of blocks that one evaluation runs, and of those among them that exist twice."""
    whole = {**PRESETS.get(preset, {}), **options}
    return int(whole.get("depth", 28)), int(whole.get("branch_depth", 0))


def build_transformer(preset: str, **options: Any) -> TransitionTransformer2DModel:
    """A freshly initialised network of a preset's size; `options` override its entries.

    Raises:
        InputError: unknown preset or option.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {shown(preset)}: choose one of {', '.join(PRESETS)}")
    options = check_options("model.options", TransitionTransformer2DModel.__init__, options)
    try:
        return TransitionTransformer2DModel(**{**PRESETS[preset], **options})
    except ValueError as error:
        raise InputError(f"preset {preset!r}: {error}") from None
