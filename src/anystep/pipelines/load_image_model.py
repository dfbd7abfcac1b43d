"""Whatever commands draw with, by its name: a transition model, a flow map, or a pipeline of diffusers."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import diffusers
import huggingface_hub
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_log
from torch import nn
from transformers.utils import logging as transformers_log

from anystep.bounds import shown
from anystep.codecs.codec import check_whole
from anystep.device import memory_of, pick_device, pick_precision
from anystep.errors import InputError, one_line, refused
from anystep.files import read_json
from anystep.model_folder import check_model_folder
from anystep.pipelines.adapted import find_flow_map
from anystep.pipelines.baselines import Baseline, check_text_to_image
from anystep.pipelines.hollow import computing_on_cpu, hollow_networks, network_classes
from anystep.pipelines.image_model import ImageModel
from anystep.pipelines.load import find, load
from anystep.pipelines.saved import PIPELINES
from anystep.pretrained import pretrained_encoder

LOGS = (diffusers_log, transformers_log)
FULL = 0.9  # the share of a device's memory that weights may take before parts are brought there one after the other


def load_image_model(
    model: str, device: str | torch.device = "auto", hollow: bool = False, precision: str = "auto"
) -> ImageModel:
    """A transition model as `anystep.load` has it, or any text-to-image pipeline of diffusers.

    Args:
        model: `builtin`, a folder, a training run or a hub id. Options of a pipeline of diffusers may follow: arguments
            of its `__call__`, and `plan`, as in `folder?guidance_scale=0&plan=uniform`.
        hollow: leave the weights of a pipeline of diffusers where they are, which need not be there: see
            `anystep.pipelines.hollow`.
        precision: `float32`, `bfloat16`, or `auto`, as `pick_precision` takes them.

    Raises:
        InputError: there is none, or it cannot be drawn with; in one line.
    """
    place, options = split_options(model)
    where, device = find(place), pick_device(str(device))
    dtype = pick_precision(precision, device)

    def transition_model() -> ImageModel:
        if options:
            raise InputError(f"model {shown(model)}: a transition model takes its options from the command")
        return load(place, device, dtype)

    if find_flow_map(where) is not None:
        return transition_model()
    try:
        index = read_json(Path(where) / "model_index.json") if Path(where).is_dir() else _index_of(where)
    except InputError:
        raise
    except Exception:  # `load` says what is wrong
        return load(place, device, dtype)
    named = index.get("_class_name")
    if (named[-1] if isinstance(named, list) and named else named) in PIPELINES:
        return transition_model()
    try:
        kind = _class_of(named)
        for log in LOGS:
            log.disable_progress_bar()
        pipeline = _load(kind, where, index, device, dtype, hollow)
        return Baseline(model, pipeline, options, hollow)
    except Exception as error:  # diffusers, transformers, safetensors and the hub raise many kinds
        if isinstance(error, InputError) and str(error).startswith("model "):
            raise
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {one_line(str(error), 200)}"
        raise InputError(f"cannot load model {place!r}: {reason.replace(f'{where}/', '')}") from error
    finally:
        for log in LOGS:
            log.enable_progress_bar()


def split_options(model: str) -> tuple[str, dict[str, Any]]:
    """A name and the options behind its question mark: JSON, or text."""
    place, mark, query = model.partition("?")
    if not mark or os.path.exists(model):  # `Path` would not have names as long as options may be
        return model, {}
    with refused(f"model {shown(model)}: expected NAME?OPTION=VALUE&OPTION=VALUE"):
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    return place, {key: _plain(value) for key, value in pairs}


def _plain(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _index_of(hub_id: str) -> dict[str, Any]:
    """The index of a pipeline on the hub."""
    try:
        path = huggingface_hub.hf_hub_download(hub_id, "model_index.json")
    except huggingface_hub.errors.GatedRepoError:
        raise InputError(
            f"model {hub_id!r} is given to those who have agreed to its licence: do so at huggingface.co/{hub_id} and "
            "log in (`hf auth login`), or name a folder"
        ) from None
    return read_json(Path(path))


def _class_of(name: Any) -> Any:
    if isinstance(name, list):
        raise InputError(f"its class {shown(name)} is code of its own, which is never run")
    kind = getattr(diffusers, str(name), None) if str(name).endswith("Pipeline") else None
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)):
        raise InputError(f"it is a {shown(name)}, which diffusers {diffusers.__version__} does not have")
    check_text_to_image(kind)
    return kind


def _load(
    kind: Any, where: str, index: Mapping[str, Any], device: torch.device, dtype: torch.dtype, hollow: bool
) -> Any:
    """The pipeline of a folder or hub id, all of whose weights were there."""
    folder = Path(where)
    if not folder.is_dir():
        configs = ["*.json", "*/*.json", "*/*.txt", "*/*.model"]
        folder = Path(
            huggingface_hub.snapshot_download(where, allow_patterns=configs) if hollow else kind.download(where)
        )
    check_model_folder(folder)
    if hollow:
        return computing_on_cpu(kind).from_pretrained(str(folder), **hollow_networks(folder, index))
    options = {"dtype": dtype, "variant": _only_variant(folder)}
    # what a pipeline is saved without, as Stable Diffusion 3 may be without T5
    absent = [name for name, entry in index.items() if isinstance(entry, list) and entry and entry[-1] is None]
    parts: dict[str, nn.Module | None] = dict.fromkeys(absent)
    for part, network in network_classes(index).items():
        if network.__module__.startswith("transformers"):  # diffusers would let it draw missing weights at random
            parts[part] = pretrained_encoder(network, str(folder / part), r"pooler\.|position_ids", **options)
    pipeline = kind.from_pretrained(str(folder), use_safetensors=True, **options, **parts)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            check_whole(part)
    return placed(pipeline, device)


def placed(pipeline: Any, device: torch.device) -> Any:
    """The pipeline on a device, or with hooks that bring each part there when it is needed."""
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    held = sum(weight.nbytes for network in networks for weight in network.parameters())
    if device.type == "cuda" and held > FULL * memory_of(device):
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def _only_variant(folder: Path) -> str | None:
    """The variant of the weights of a folder that has no others."""
    middles = {path.name.split(".")[1].split("-")[0] for path in folder.glob("*/*.safetensors")}
    return middles.pop() if len(middles) == 1 and middles != {"safetensors"} else None
