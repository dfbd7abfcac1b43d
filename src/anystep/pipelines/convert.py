"""Released weights into a pipeline's folder and back, tensor by tensor: a file of any size takes little memory.

What released weights were trained with is recorded in the folder, and pipelines follow it: the rotary grid and unmasked
captions in the network's config, the guidance interval without its ends and escaped captions in the pipeline's, and
uniform times at every size in the scheduler's.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anystep.bounds import shown
from anystep.codecs.codec import load_autoencoder
from anystep.conditioning import load_text_encoder
from anystep.errors import InputError, first_line
from anystep.files import check_output, check_room, read_json, replacing
from anystep.model_folder import check_part
from anystep.models.reference import CHARACTERISTIC, fitted_network, restore_reference_names, untold_options
from anystep.models.released import ReleasedConfig, preset_options, read_config, release_of
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.models.weight_files import Weights, read_weights
from anystep.pipelines.classes import TransitionClassPipeline
from anystep.pipelines.load import find
from anystep.pipelines.scheduler import TransitionScheduler
from anystep.pipelines.transition import TransitionPipeline
from anystep.publishing import check_free, publishing

KIND = "converted model"  # of folders that it writes
# of every network that the reference has
REFERENCE = {
    "rope_grid": "reference", "mask_text": False, "branch_depth": 0, "guidance_embed": False, "max_time_frequency": 1.0,
    "position_embed": False, "caption_pool": False,
}  # fmt: skip
DEFAULTS = inspect.signature(TransitionTransformer2DModel.__init__).parameters


@dataclass(frozen=True)
class Request:
    """What to convert.

    Attributes:
        weights: the released file.
        out: the pipeline's folder.
        preset: sizes by name; those of the release of that file's name by default.
        options: the reference's configuration file, or the network's options alone, in place of a preset.
        section: which of several sets of weights in the file.
        vae, text_encoder: hub ids or folders; those of the release or the configuration by default.
        copy: both into the folder, rather than naming them there.
    """

    weights: Path
    out: Path
    preset: str | None = None
    options: Path | None = None
    section: str | None = None
    vae: str | None = None
    text_encoder: str | None = None
    copy: bool = False


@dataclass(frozen=True)
class Converted:
    """What was made: the number of parameters, and remarks for the reader."""

    parameters: int
    remarks: tuple[str, ...]


def convert_reference(request: Request) -> Converted:
    """Make a pipeline's folder of released weights, which keep the dtype they are stored in.

    Raises:
        InputError: weights that cannot be read or are not those said, a part that is missing or does not fit, or a
            folder that cannot be written.
    """
    if request.preset is not None and request.options is not None:
        raise InputError("--preset and --options: give one of them")
    out = request.out.resolve()
    check_free(out, KIND, _is_converted)
    release = release_of(request.preset, request.weights) if request.options is None else None
    config = read_config(request.options) if request.options is not None else None
    source = f"preset {release.preset}" if release else str(request.options or "")
    if config is None:
        config = ReleasedConfig({}) if release is None else ReleasedConfig(
            preset_options(release), release.vae, release.text_encoder
        )  # fmt: skip
    weights = read_weights(request.weights, request.section)
    network, converted = fitted_network(weights, config.network, source)
    parts = _parts(request, config, network.config)
    check_room(out, sum(tensor.nbytes for tensor in converted.values()))
    kind = TransitionClassPipeline if network.config.text_width is None else TransitionPipeline
    pipeline = kind(
        transformer=network,
        scheduler=TransitionScheduler(),
        guidance_scale=1.5 if release is None else release.guidance_scale,
        open_guidance_interval=True,
        escape_captions=network.config.text_width is not None,
        **parts,
    )
    with publishing(out, KIND, _is_converted) as part:
        pipeline.save_config(part)
        network.save_config(part / "transformer")
        pipeline.scheduler.save_pretrained(part / "scheduler")
        for name in ("vae", "text_encoder", "tokenizer"):
            if parts.get(name) is not None:
                parts[name].save_pretrained(part / name)
        with writing(part / "transformer" / SAFETENSORS_WEIGHTS_NAME) as file:
            save_file(converted, file, {"format": "pt"})
    assumed = {name: network.config[name] for name in untold_options(weights.shapes, config.network)}
    if release is None:
        assumed["guidance_scale"] = pipeline.config.guidance_scale
    return Converted(sum(tensor.numel() for tensor in converted.values()), tuple(_remarks(weights, parts, assumed)))


def _is_converted(folder: Path) -> bool:
    """No model that was trained here is guided so, and no average of one."""
    return bool(read_json(folder / "model_index.json").get("open_guidance_interval"))


def restore_reference(model: str, out: Path) -> int:
    """Write the network of a pipeline's folder as one file under the released names; returns the number of tensors.

    Raises:
        InputError: no such folder, a network that the reference does not have, or a file that cannot be written.
    """
    check_output(out, ".safetensors", _check_released)
    folder = Path(find(model)) / "transformer"
    if not folder.is_dir():
        raise InputError(f"model {shown(model)}: there is no folder {str(folder)!r}; download it first")
    check_part(folder)
    config = read_json(folder / "config.json")
    for name, wanted in REFERENCE.items():
        if config.get(name, DEFAULTS[name].default) != wanted:
            raise InputError(
                f"model {shown(model)}: {name} of its network is {shown(config.get(name))}, which the reference does "
                f"not have: expected {wanted!r}"
            )
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    if not weights:
        raise InputError(f"{str(folder)!r} holds no safetensors")
    restored = restore_reference_names(weights, int(config.get("patch_size", 2)))
    with writing(out) as file:
        save_file(restored, file, {"format": "pt"})
    return len(restored)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """`replacing`, where what safetensors raises, as for a full disk, is an `InputError`."""
    try:
        with replacing(path) as part:
            yield part
    except SafetensorError as error:
        raise InputError(f"cannot write {str(path)!r}: {first_line(error)}") from None


def _check_released(path: Path) -> None:
    if not set(CHARACTERISTIC) <= read_weights(path).tensors.keys():
        raise InputError(f"{str(path)!r} holds no released weights")


def _parts(request: Request, config: ReleasedConfig, network: Mapping[str, Any]) -> dict[str, Any]:
    """Codec and text encoder as the pipeline takes them: by name, or loaded so that they are saved with it."""
    vae, encoder = request.vae or config.vae, request.text_encoder or config.text_encoder
    if vae is None:
        raise InputError("--vae is missing: the folder or hub id of the autoencoder that these weights are for")
    vae = _placed(vae)
    if Path(vae).is_dir():
        _check_entry(vae, "vae", ("latent_channels",), network["in_channels"], "channels")
    parts: dict[str, Any] = {"vae": load_autoencoder(vae)} if request.copy else {"vae_name": vae}
    if network["text_width"] is None:
        if request.text_encoder is not None:
            raise InputError(f"--text-encoder {shown(encoder)}: these weights read classes")
        return parts
    if encoder is None:
        raise InputError("--text-encoder is missing: the folder or hub id of the one that these weights are for")
    encoder = _placed(encoder)
    if Path(encoder).is_dir():
        _check_entry(encoder, "text encoder", ("hidden_size", "d_model"), network["text_width"], "channels")
    if not request.copy:
        return {**parts, "text_encoder_name": encoder}
    loaded = load_text_encoder(encoder)
    return {**parts, "text_encoder": loaded.model, "tokenizer": loaded.tokenizer}


def _placed(name: str) -> str:
    """A hub id, or the whole path of a folder, which means the same wherever it is read."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _check_entry(folder: str, what: str, names: tuple[str, ...], wanted: int, unit: str) -> None:
    """Refuse a folder whose config says another number than the network's."""
    config = read_json(Path(folder) / "config.json")
    found = next((config[name] for name in names if name in config), wanted)
    if found != wanted:
        raise InputError(f"{what} {shown(folder)} has {shown(found)} {unit}, but the network reads {wanted}")


def _remarks(weights: Weights, parts: Mapping[str, Any], assumed: Mapping[str, Any]) -> Iterator[str]:
    if weights.section:
        yield f"read {weights.section!r} of {weights.path.name}"
    if weights.prefix:
        yield f"took {weights.prefix!r} off every name"
    if assumed:
        listed = ", ".join(f"{name} {value}" for name, value in assumed.items())
        yield f"assumed, as nothing told: {listed} (--preset tells, --options all but the guidance)"
    for name, what in (("vae_name", "autoencoder"), ("text_encoder_name", "text encoder")):
        if name in parts:
            yield f"the {what} is {parts[name]}, loaded from there whenever the model is (--copy puts it in)"
