"""What was released with Transition Models (arXiv 2509.04394): the files, and what its network options say of others.

The facts are those of the reference implementation's configurations; the files are on the hub as `GoodEnough/TiM-T2I`
and `GoodEnough/TiM-C2I`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anystep.bounds import did_you_mean, shown
from anystep.errors import InputError
from anystep.files import parse_json, read_text
from anystep.models.presets import PRESETS
from anystep.plain_yaml import parse_yaml

DC_AE = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
SD_VAE = "stabilityai/sd-vae-ft-ema"
GEMMA = "google/gemma-3-1b-it"
SIZE = 16  # latent pixels along one side of the images of 512 x 512 that the networks of the DC-AE began with


@dataclass(frozen=True)
class Release:
    """A kind of released network: what a preset does not say.

    Attributes:
        preset: the sizes of its network.
        file: the name of the published weights, or None where there are none.
        sample_size: side in latent pixels of the images that it was trained on first.
        vae, text_encoder: hub ids of the parts around it.
        guidance_scale: that the reference's scripts draw with.
        encoder_depth: the block whose tokens the projector of training reads.
    """

    preset: str
    file: str | None
    sample_size: int
    vae: str
    text_encoder: str | None
    guidance_scale: float
    encoder_depth: int = 8


RELEASES = (
    Release("t2i-xl", "t2i_model.bin", SIZE, DC_AE, GEMMA, 2.5),
    Release("c2i-xl-2", "c2i_model_256.safetensors", 32, SD_VAE, None, 1.5),
    Release("c2i-xl-1", "c2i_model_512.safetensors", SIZE, DC_AE, None, 1.5),
    Release("c2i-b-4", None, 32, SD_VAE, None, 1.5, encoder_depth=4),
)

# options of the reference's networks -> ours; `use_new_embed` is the opposite of `shared_time_embedder`
OPTIONS = {
    **{
        name: name
        for name in (
            "in_channels", "patch_size", "hidden_size", "depth", "num_heads", "mlp_ratio", "num_classes",
            "class_dropout_prob", "qk_norm", "encoder_depth", "projector_dim", "z_dim",
        )
    },
    "input_size": "sample_size",
    "cap_feat_dim": "text_width",
    "lora_hidden_size": "modulation_rank",
    "new_condition": "interval_condition",
    "distance_aware": "interval_attention",
}  # fmt: skip
_FLAG = "use_new_embed"
_PASSED_OVER = ("use_checkpoint",)  # of training alone
_TRANSPORT = "OT_FM"  # of all that was released


def release_of(preset: str | None, weights: Path) -> Release | None:
    """The release of a preset, else of the name of a file; None where neither is known.

    Raises:
        InputError: a preset of which nothing was released.
    """
    if preset is None:
        return next((each for each in RELEASES if each.file == weights.name), None)
    names = [each.preset for each in RELEASES]
    if preset not in names:
        raise InputError(f"preset {shown(preset)}: {did_you_mean(preset, names)}expected one of {', '.join(names)}")
    return RELEASES[names.index(preset)]


def preset_options(release: Release) -> dict[str, Any]:
    """The sizes of a release's network, as `TransitionTransformer2DModel` takes them."""
    return {
        **PRESETS[release.preset],
        "sample_size": release.sample_size,
        "encoder_depth": release.encoder_depth,
        "interval_condition": "t-r",
    }


def network_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's network options as those of `TransitionTransformer2DModel`.

    Raises:
        InputError: no mapping, or an option that the reference does not have.
    """
    if not isinstance(options, Mapping):
        raise InputError(f"network options {shown(options)}: expected those of the released configuration, by name")
    known = [*OPTIONS, _FLAG]
    if unknown := sorted(map(str, options.keys() - {*known, *_PASSED_OVER})):
        raise InputError(f"unknown network options {unknown}; known are {sorted(known)}")
    ours = {OPTIONS[name]: value for name, value in options.items() if name in OPTIONS}
    return {**ours, "shared_time_embedder": not options.get(_FLAG, False)}


@dataclass(frozen=True)
class ReleasedConfig:
    """What a configuration of the reference says: the network's options as ours, and the parts around it.

    Attributes:
        network: options of `TransitionTransformer2DModel`.
        vae, text_encoder: hub ids or folders; None where it says nothing.
    """

    network: dict[str, Any]
    vae: str | None = None
    text_encoder: str | None = None


def read_config(path: Path) -> ReleasedConfig:
    """Read the YAML file that a network was trained with, or its network options alone, as JSON or YAML.

    The options are those of the file, or of `config`, `network.params` or `model.network.params` in it.

    Raises:
        InputError: unreadable, without network options, or with others than those of the reference.
    """
    text = read_text(path)
    content = parse_json(text, str(path)) if path.suffix == ".json" else parse_yaml(text, str(path))
    model = content.get("model") if isinstance(content, Mapping) else None
    model = model if isinstance(model, Mapping) else content
    found = next((each for each in _nested(model) if "hidden_size" in each or "depth" in each), None)
    if found is None:
        raise InputError(
            f"{str(path)!r} has no network options: expected depth, hidden_size, ... there or in model.network.params"
        )
    try:
        network = network_options(found)
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}") from None
    parts = {name: model.get(f"{name}_dir") for name in ("vae", "text_encoder")}
    for name, place in parts.items():
        if not isinstance(place, str | None):
            raise InputError(f"{str(path)!r}: {name}_dir {shown(place)}: expected a hub id or a folder")
    section = model.get("transport")
    transport = str(section.get("target") if isinstance(section, Mapping) else section or _TRANSPORT)
    if transport.rpartition(".")[2] != _TRANSPORT:
        raise InputError(f"{str(path)!r}: transport {shown(transport)}: expected {_TRANSPORT}, which all releases have")
    return ReleasedConfig(network, parts["vae"], parts["text_encoder"])


def _nested(model: Any) -> list[Mapping[str, Any]]:
    """Where network options may lie, the nearest first."""
    places = []
    for keys in ((), ("config",), ("network", "params"), ("network",)):
        place: Any = model
        for key in keys:
            place = place.get(key) if isinstance(place, Mapping) else None
        places += [place] if isinstance(place, Mapping) else []
    return places
