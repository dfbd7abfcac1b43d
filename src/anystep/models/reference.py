"""Released Transition Models weights, under their own names, into our network and back."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anystep.bounds import check_options, shown
from anystep.errors import InputError, first_line, refused
from anystep.models.released import network_options, preset_options, release_of
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.models.weight_files import Weights, check_numbers, read_weights

# released name -> ours, part by part
_NAMES = [
    ("x_embedder.proj.", "patch_embed."),
    ("t_embedder.mlp.0.", "time_embed.linear_1."),
    ("t_embedder.mlp.2.", "time_embed.linear_2."),
    ("delta_embedder.mlp.0.", "interval_embed.linear_1."),
    ("delta_embedder.mlp.2.", "interval_embed.linear_2."),
    ("y_embedder.embedding_table.", "class_embed."),
    ("y_embedder.", "caption_projection."),
    (".adaLN_modulation.", ".modulation."),
    (".cross_attn.", ".caption_attn."),
    (".qkv_d.", ".interval_qkv."),
    (".q_norm.", ".norm_q."),
    (".k_norm.", ".norm_k."),
    (".proj.", ".to_out."),
    (".q.", ".to_q."),
    (".fc1_g.", ".gate."),
    (".fc1_x.", ".up."),
    (".fc2.", ".down."),
]
_FUSED = {".qkv.": (".to_q.", ".to_k.", ".to_v."), ".kv.": (".to_k.", ".to_v.")}
_PATCH = "x_embedder.proj.weight"  # a convolution there, the same map as a linear layer here
CHARACTERISTIC = (_PATCH, "final_layer.linear.weight", "blocks.0.attn.qkv.weight")  # of every released network
LISTED = 3  # names in a message about weights that do not fit


def convert_reference_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, and split the fused query-key-value projections so that LoRA finds its usual targets; without a copy."""
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name == _PATCH:
            tensor = tensor.flatten(1)
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        fused = next((part for part in _FUSED if part in name), "")
        parts = _FUSED.get(fused, (fused,))
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            converted[name.replace(fused, part)] = piece
    return converted


def restore_reference_names(weights: Mapping[str, Tensor], patch_size: int) -> dict[str, Tensor]:
    """The released names, with projections fused again: `convert_reference_names` undone."""
    pieces: dict[str, dict[int, Tensor]] = {}
    for name, tensor in weights.items():
        fused = ".kv." if ".caption_attn." in name else ".qkv."
        place = next((number for number, part in enumerate(_FUSED[fused]) if part in name), None)
        if place is not None:
            name = name.replace(_FUSED[fused][place], fused)
        for theirs, ours in _NAMES:
            name = name.replace(ours, theirs)
        pieces.setdefault(name, {})[place or 0] = tensor
    restored = {name: torch.cat([each[place] for place in sorted(each)]) for name, each in pieces.items()}
    restored[_PATCH] = restored[_PATCH].unflatten(1, (-1, patch_size, patch_size))
    return restored


def detect_options(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What the shapes of released tensors say of their network, as options of `TransitionTransformer2DModel`.

    They do not tell all (`untold_options`). `num_classes` counts the null class.

    Raises:
        InputError: tensors of another kind of network.
    """
    if missing := [name for name in CHARACTERISTIC if name not in shapes]:
        raise InputError(f"no Transition Models weights: there is no {missing[0]} among {len(shapes)} tensors")
    try:
        width, channels, patch, _ = shapes[_PATCH]
        hidden = shapes["blocks.0.mlp.fc1_g.weight"][0]
        found: dict[str, Any] = {
            "hidden_size": width,
            "in_channels": channels,
            "patch_size": patch,
            "depth": 1 + max(int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))),
            "mlp_ratio": (hidden * 3 + 1) // 2 / width,  # the inverse of int(width ratio) 2 // 3
            "modulation_rank": shapes["blocks.0.adaLN_modulation.fc1_g.weight"][0],
            "shared_time_embedder": "delta_embedder.mlp.0.weight" not in shapes,
            "interval_attention": "blocks.0.attn.qkv_d.weight" in shapes,
            "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
            "z_dim": 0,
        }
        if found["qk_norm"]:
            found["num_heads"] = width // shapes["blocks.0.attn.q_norm.weight"][0]
        if "projector.4.weight" in shapes:
            found["z_dim"], found["projector_dim"] = shapes["projector.4.weight"]
        if "y_embedder.norm.weight" in shapes:
            found["text_width"] = shapes["y_embedder.norm.weight"][0]
        else:
            found["num_classes"] = shapes["y_embedder.embedding_table.weight"][0]
    except (KeyError, ValueError, ZeroDivisionError, IndexError) as error:
        raise InputError(
            f"no Transition Models weights: there is no {first_line(error)} of the shape expected"
        ) from None
    return found


def untold_options(shapes: Mapping[str, Sequence[int]], said: Mapping[str, Any]) -> list[str]:
    """The options that neither the shapes of released tensors tell nor what is said of their network."""
    found = detect_options(shapes)
    told = {"num_heads": found["qk_norm"], "encoder_depth": not found["z_dim"],
            "class_dropout_prob": "num_classes" not in found}  # fmt: skip
    return [name for name in ("interval_condition", "sample_size", *told) if name not in said and not told.get(name)]


def fitted_options(shapes: Mapping[str, Sequence[int]], said: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The options of a network with tensors of these shapes: what is said of it, and what they tell beside that.

    Args:
        source: who says it, for errors.

    Raises:
        InputError: the two contradict each other; one line that says where.
    """
    found = detect_options(shapes)
    options = {**found, "encoder_depth": min(8, found["depth"]), **said}
    if "num_classes" in found:
        found["num_classes"] -= int(options.get("class_dropout_prob", 0.1) > 0)
        options["num_classes"] = found["num_classes"]
    hidden = shapes["blocks.0.mlp.fc1_g.weight"][0]
    if int(found["hidden_size"] * options["mlp_ratio"]) * 2 // 3 == hidden:
        found["mlp_ratio"] = options["mlp_ratio"]
    told = {name: value for name, value in said.items() if value is not None}
    wrong = [f"{name} {shown(value)}, not {shown(told[name])}" for name, value in found.items()
             if told.get(name, value) != value]  # fmt: skip
    wrong += [f"no {name}" for name in ("text_width", "num_classes") if name in told and name not in found]
    if wrong:
        more = f" and {len(wrong) - LISTED} more" * (len(wrong) > LISTED)
        raise InputError(f"these weights are not those of {source}: they have {', '.join(wrong[:LISTED])}{more}")
    return options


def fitted_network(
    weights: Weights, said: Mapping[str, Any], source: str
) -> tuple[TransitionTransformer2DModel, dict[str, Tensor]]:
    """The network of released weights, on the meta device, and its weights under our names, of which none is copied.

    Args:
        said, source: as `fitted_options` takes them.

    Raises:
        InputError: options, names or shapes do not fit; the message lists them. Or numbers that are no weights.
    """
    said = fitted_options(weights.shapes, said, source)
    options = check_options("network", TransitionTransformer2DModel.__init__, said)
    with refused("network options"), torch.device("meta"):
        network = TransitionTransformer2DModel(**{**options, "rope_grid": "reference", "mask_text": False})
    converted, expected = convert_reference_names(weights.tensors), network.state_dict()
    missing, extra = sorted(expected.keys() - converted.keys()), sorted(converted.keys() - expected.keys())
    wrong = [
        f"{name} {tuple(converted[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & converted.keys())
        if converted[name].shape != expected[name].shape
    ]
    if missing or extra or wrong:
        lists = {"missing": missing, "unknown": extra, "wrong shape": wrong}
        told = "; ".join(f"{what} {_few(names)}" for what, names in lists.items() if names)
        raise InputError(f"{weights.path.name} does not fit: {told}")
    check_numbers(weights.tensors, weights.path.name)
    return network, converted


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" * (len(names) > LISTED)
    return f"[{', '.join(map(repr, names[:LISTED]))}]{more}"


def load_reference_transformer(
    weights: str | Path, options: Mapping[str, Any] | None = None
) -> TransitionTransformer2DModel:
    """A network with released weights, giving the numbers that the released code gives.

    Args:
        weights: a `.safetensors`, `.bin` or `.pt` file (the last two read with `weights_only=True`).
        options: the released network options (`depth`, `hidden_size`, `cap_feat_dim`, `new_condition`, ...). By
            default they are those of the release of that file's name, else what the tensors' shapes tell, and for the
            rest (`untold_options`) the defaults of `TransitionTransformer2DModel`.

    Raises:
        InputError: unknown options, unreadable file, or names or shapes that do not fit; the message lists them.
    """
    path = Path(weights)
    release = release_of(None, path)
    said, source = ({}, "") if release is None else (preset_options(release), f"preset {release.preset}")
    if options is not None:
        said, source = network_options(options), "the options"
    network, converted = fitted_network(read_weights(path), said, source)
    network.to_empty(device="cpu").load_state_dict(converted)
    return network.eval()
