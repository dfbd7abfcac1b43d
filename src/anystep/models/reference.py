"""Released Transition Models weights, under their own names, into our network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from anystep.bounds import shown
from anystep.errors import InputError, first_line
from anystep.files import check_regular
from anystep.model_folder import count_tensors
from anystep.models.transformer import TransitionTransformer2DModel

_SAME_OPTIONS = (
    "in_channels", "patch_size", "hidden_size", "depth", "num_heads", "mlp_ratio", "num_classes", "class_dropout_prob",
    "qk_norm", "encoder_depth", "projector_dim", "z_dim",
)  # fmt: skip
# released option -> ours
_OPTIONS = {
    **{name: name for name in _SAME_OPTIONS},
    "input_size": "sample_size",
    "cap_feat_dim": "text_width",
    "lora_hidden_size": "modulation_rank",
    "new_condition": "interval_condition",
    "distance_aware": "interval_attention",
}

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


def convert_reference_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename, and split the fused query-key-value projections so that LoRA finds its usual targets."""
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name == "x_embedder.proj.weight":  # a convolution there, the same map as a linear layer here
            tensor = tensor.flatten(1)
        for theirs, ours in _NAMES:
            name = name.replace(theirs, ours)
        fused = next((part for part in _FUSED if part in name), "")
        parts = _FUSED.get(fused, (fused,))
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            converted[name.replace(fused, part)] = piece
    return converted


def _read(path: Path) -> dict[str, Tensor]:
    check_regular(path)
    try:
        if path.suffix == ".safetensors":
            count_tensors(path)
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError) as error:
        raise InputError(f"cannot read weights {str(path)!r}: {first_line(error)}") from error
    except Exception as error:  # pickle raises many kinds; all of them mean the file is not plain weights
        raise InputError(
            f"{str(path)!r} is not a plain file of weights ({type(error).__name__}): a pickle can run code when it is "
            "opened, so that nothing else is read from it"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(each, Tensor) for each in content.values()):
        raise InputError(f"{str(path)!r} does not hold tensors by name")
    return dict(content)


def load_reference_transformer(weights: str | Path, options: Mapping[str, Any]) -> TransitionTransformer2DModel:
    """A network with released weights, giving the numbers that the released code gives.

    Args:
        weights: a `.safetensors`, `.bin` or `.pt` file (the last two read with `weights_only=True`).
        options: the released network options (`depth`, `hidden_size`, `cap_feat_dim`, `new_condition`, ...).

    Raises:
        InputError: unknown options, unreadable file, or names or shapes that do not fit; the message lists them.
    """
    if not isinstance(options, Mapping):
        raise InputError(f"network options {shown(options)}: expected those of the released configuration, by name")
    options = dict(options)
    shared = not options.pop("use_new_embed", False)
    if unknown := sorted(options.keys() - _OPTIONS.keys()):
        raise InputError(f"unknown network options {unknown}; known are {sorted([*_OPTIONS, 'use_new_embed'])}")
    network = TransitionTransformer2DModel(
        **{_OPTIONS[key]: value for key, value in options.items()},
        shared_time_embedder=shared,
        rope_grid="reference",
        mask_text=False,
    )
    converted, expected = convert_reference_names(_read(Path(weights))), network.state_dict()
    missing, extra = sorted(expected.keys() - converted.keys()), sorted(converted.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(converted[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & converted.keys())
        if converted[name].shape != expected[name].shape
    ]
    if missing or extra or shapes:
        raise InputError(f"{weights} does not fit: missing {missing}; unknown {extra}; wrong shape {shapes}")
    network.load_state_dict(converted)
    return network.eval()
