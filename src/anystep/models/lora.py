"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): on a network, and in files that are checked.

A linear layer W gains alpha / rank B A with A (rank, in) and B (out, rank), and W stays as it is. B begins at zero, so
that a new adapter changes nothing. Files are those of diffusers: safetensors with the names of the layers, and alpha in
their metadata.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from anystep.bounds import Real, check, shown
from anystep.errors import InputError, first_line, refused
from anystep.files import check_regular, parse_json, read_json
from anystep.model_folder import count_tensors
from anystep.models.flow_map import ADDED
from anystep.models.weight_files import check_numbers

LORA_FILE: str = LORA_WEIGHT_NAME_SAFE
PREFIX = "transformer."  # of the names in a file, which may be of a pipeline with several networks
PEFT_PREFIX = "base_model.model."  # of those of peft's own models
PEFT_CONFIG = "adapter_config.json"  # beside files of its own, which say nothing of alpha
PARTS = (".lora_A.weight", ".lora_B.weight")
LISTED = 3  # of the layers that differ, in a message


@dataclass(frozen=True)
class Lora:
    """An adapter: its tensors, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`, and the alpha of each layer."""

    tensors: dict[str, Tensor]
    alphas: dict[str, float]

    @property
    def layers(self) -> list[str]:
        """The names of the layers that it changes."""
        return sorted({name.removesuffix(part) for name in self.tensors for part in PARTS if name.endswith(part)})

    def rank(self, layer: str) -> int:
        return len(self.tensors[layer + PARTS[0]])

    def config(self) -> dict[str, Any]:
        """What peft is told of it, made of the tensors, so that nothing else in a file can say what is built."""
        ranks, layers = {layer: self.rank(layer) for layer in self.layers}, self.layers
        rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, self.alphas))
        return {
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": layers,
            "rank_pattern": {f"^{layer}": ranks[layer] for layer in layers if ranks[layer] != rank},
            "alpha_pattern": {f"^{layer}": self.alphas[layer] for layer in layers if self.alphas[layer] != alpha},
        }


def require_peft() -> None:
    """Raise `InputError` where peft, which puts adapters on networks, is not installed."""
    if find_spec("peft") is None:
        raise InputError("LoRA needs peft, which is not installed: pip install 'anystep[lora]'")


def add_lora(network: Any, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Put a new adapter on a network's linear layers and freeze all else; its answers are what they were.

    Args:
        targets: ends of the names of layers, such as `to_q` or `mlp.gate`.

    Raises:
        InputError: there is no such layer, or peft is not installed.
    """
    require_peft()
    from peft import LoraConfig

    for target in targets:
        if not target_layers(network, [target]):
            raise InputError(f"lora.targets {shown(target)}: no linear layer of this network has that name")
    network.requires_grad_(False)
    layers: Any = {"lora_alpha": alpha, "target_modules": target_layers(network, targets)}
    network.add_adapter(LoraConfig(r=rank, **layers))


def target_layers(network: nn.Module, targets: Sequence[str]) -> list[str]:
    """The names of the linear layers that end in one of these."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{target}") for target in targets)
    ]


def adapter_names(network: nn.Module) -> list[str]:
    """The adapters that a network carries, merged ones too."""
    return list(getattr(network, "peft_config", {}))


def adapter_state(network: nn.Module) -> tuple[Any, ...]:
    """What callbacks may change of a network's adapters: which there are, how scaled, active and merged."""
    if not adapter_names(network):
        return ()
    from peft.tuners.lora import LoraLayer

    return tuple(
        (each.disable_adapters, *_scales(each).items(), *each.active_adapters, None, *each.merged_adapters)
        for each in network.modules()
        if isinstance(each, LoraLayer)
    )


def is_fused(network: nn.Module) -> bool:
    """Whether adapters are merged into a network's weights."""
    return any(getattr(module, "merged_adapters", None) for module in network.modules())


def lora_of(network: Any, adapter: str | None = None) -> Lora:
    """The adapter that a network carries, by its name where there are several.

    Raises:
        InputError: no adapter of that name, none at all, or one that is more than a LoRA.
    """
    names = adapter_names(network)
    if adapter is None and len(names) == 1:
        adapter = names[0]
    if adapter not in names:
        known = ", ".join(names) or "none is loaded"
        raise InputError(f"adapter {shown(adapter)}: expected the name of one that the network carries ({known})")
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    state = get_peft_model_state_dict(network, None, adapter)
    lora = parse_lora({name: value.detach().cpu().contiguous() for name, value in state.items()}, None, adapter)
    for name, module in network.named_modules():
        layer = _plain(name)
        if isinstance(module, LoraLayer) and layer in lora.alphas:  # such that alpha over the tensors' rank scales it
            rank = math.sqrt(module.r[adapter]) if network.peft_config[adapter].use_rslora else module.r[adapter]
            lora.alphas[layer] = float(module.lora_alpha[adapter] * lora.rank(layer) / rank)
    return lora


def read_lora(path: Path) -> Lora:
    """Read an adapter from a safetensors file.

    Raises:
        InputError: unreadable, cut short, a pickle, or no LoRA; one line that says which.
    """
    check_regular(path)
    if path.suffix != ".safetensors":
        raise InputError(f"LoRA {str(path)!r}: expected .safetensors; a pickle can run code when it is opened")
    count_tensors(path)
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"cannot read LoRA {str(path)!r}: {first_line(error)}") from None
    settings = None if said is None else parse_json(said, f"the metadata of {str(path)!r}")
    if said is None and any(name.startswith(PEFT_PREFIX) for name in tensors):
        settings = read_json(path.with_name(PEFT_CONFIG))
    return parse_lora(tensors, settings, str(path))


def parse_lora(tensors: Mapping[str, Any], said: Mapping[str, Any] | None = None, source: str = "given") -> Lora:
    """An adapter from tensors by name, with or without the prefix of the network and that of peft's own models.

    Args:
        said: what a file says of it: `lora_alpha` and the like, with the same prefix. Without, alpha is the rank.
        source: where it comes from, for errors.

    Raises:
        InputError: tensors that are no LoRA, or none of a transformer's linear layers.
    """
    plain = {_plain(str(name)): tensor for name, tensor in tensors.items()}
    strange = [name for name in plain if not name.endswith(PARTS)]
    if not plain or strange:
        found = f"its tensor {shown(strange[0])} is none" if strange else "it is empty"
        raise InputError(f"{shown(source)} is no LoRA of a transformer in diffusers' form: {found}")
    layers = {name.removesuffix(part) for name in plain for part in PARTS if name.endswith(part)}
    for layer in sorted(layers):
        down, up = (plain.get(layer + part) for part in PARTS)
        whole = isinstance(down, Tensor) and isinstance(up, Tensor) and down.ndim == up.ndim == 2
        if not whole or down.shape[0] != up.shape[1] or 0 in down.shape:  # type: ignore[union-attr]
            raise InputError(f"LoRA {shown(source)}: A and B of its layer {shown(layer)} do not go together")
    check_numbers(plain, f"LoRA {shown(source)}")
    settings = {_plain(str(name)): value for name, value in (said or {}).items()}
    ranks = {layer: len(plain[layer + PARTS[0]]) for layer in layers}
    return Lora(plain, {layer: _alpha(layer, rank, settings, source) for layer, rank in ranks.items()})


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX).removeprefix(PEFT_PREFIX)


def _alpha(layer: str, rank: int, settings: Mapping[str, Any], source: str) -> float:
    """The alpha of a layer, by what a file says; such that alpha over rank is the scaling."""
    if settings.get("use_dora"):
        raise InputError(f"LoRA {shown(source)}: it is a DoRA, which has more than A and B: expected a LoRA")
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"\^?[\w.]+", name) for name in patterns):
        raise InputError(f"LoRA {shown(source)}: alpha_pattern {shown(patterns)}: expected numbers by names of layers")
    named = (value for name, value in patterns.items() if f".{layer}".endswith(f".{name.removeprefix('^')}"))
    alpha = next(named, settings.get("lora_alpha"))
    alpha = float(rank) if alpha is None else float(check(f"LoRA {shown(source)}: lora_alpha", alpha, Real))
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def check_lora(lora: Lora, network: nn.Module, source: str = "given") -> None:
    """Raise `InputError` for an adapter of another network: it names the layers and their shapes."""
    modules, wrong = dict(network.named_modules()), list[str]()
    for layer in lora.layers:
        module = getattr(modules.get(layer), "base_layer", modules.get(layer))
        sides = tuple(getattr(module, side, None) for side in ("in_features", "out_features"))
        found = tuple(lora.tensors[layer + part].shape[1 - place] for place, part in enumerate(PARTS))
        if sides != found:
            has = "no such layer" if None in sides else f"{sides[0]} x {sides[1]} here"
            wrong.append(f"{layer} ({found[0]} x {found[1]} there, {has})")
    if wrong:
        more = f" and {len(wrong) - LISTED} more" * (len(wrong) > LISTED)
        raise InputError(f"LoRA {shown(source)} is of another network: {', '.join(wrong[:LISTED])}{more}")


def named_tensors(lora: Lora) -> dict[str, Tensor]:
    """The tensors of an adapter by their names in a file."""
    return {f"{PREFIX}{name}": tensor for name, tensor in lora.tensors.items()}


def write_lora(lora: Lora, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write an adapter as `load_lora_weights` of diffusers reads it; `about` goes into the file's metadata."""
    from safetensors.torch import save_file

    said = {f"{PREFIX}{name}": value for name, value in lora.config().items()}
    metadata = {"format": "pt", **(about or {}), LORA_ADAPTER_METADATA_KEY: json.dumps(said, indent=2, sort_keys=True)}
    with refused(f"cannot write {str(path)!r}"):
        save_file(named_tensors(lora), path, metadata)


def adapter_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the adapters that a network carries, by name, with the embeddings of a flow map beside them.

    Empty where it carries none: then all its parameters are its own.
    """
    found = {name: value for name, value in network.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    added = {name: value for name, value in network.named_parameters() if any(each in name for each in ADDED)}
    return {**found, **added} if found else {}


def _layers(network: nn.Module) -> list[Any]:
    """Those of a network that adapters change."""
    if not adapter_names(network):
        return []
    from peft.tuners.lora import LoraLayer

    return [module for module in network.modules() if isinstance(module, LoraLayer)]


def _scales(layer: Any) -> dict[str, float]:
    """By adapter; they are tensors where adapters may be swapped in what is compiled."""
    return {name: float(scale) for name, scale in layer.scaling.items()}


def _rescale(layer: Any, scales: Mapping[str, float]) -> None:
    for name, scale in scales.items():
        if name not in layer.scaling:  # taken off by now
            continue
        if isinstance(layer.scaling[name], Tensor):
            layer.scaling[name].fill_(scale)
        else:
            layer.scaling[name] = scale


def set_lora_scale(network: nn.Module, scale: float) -> list[tuple[Any, dict[str, float]]]:
    """Multiply the scaling of the active adapters; returns what `restore_lora_scale` undoes it by."""
    before = [(layer, _scales(layer)) for layer in _layers(network)]
    for layer, _ in before:
        layer.scale_layer(scale)
    return before


def restore_lora_scale(before: list[tuple[Any, dict[str, float]]]) -> None:
    """Undo `set_lora_scale`, exactly."""
    for layer, scales in before:
        _rescale(layer, scales)


@contextmanager
def merging(network: nn.Module) -> Iterator[None]:
    """A block that merges adapters or takes them out again: their scaling is what it was before, afterwards.

    What is merged is taken out at the scaling that it was merged at, whatever it is by then.
    """
    before = []
    for layer in _layers(network):
        scales, noted = _scales(layer), getattr(layer, "merged_at", {})
        merged = {name: noted.get(name, scale) for name, scale in scales.items() if name in layer.merged_adapters}
        _rescale(layer, merged)
        before.append((layer, scales, merged))
    try:
        yield
    finally:
        for layer, scales, merged in before:
            now = {**_scales(layer), **merged}
            layer.merged_at = {name: scale for name, scale in now.items() if name in layer.merged_adapters}
            _rescale(layer, scales)


@contextmanager
def swapping(lora: Lora, network: Any, adapter: str | None, source: str) -> Iterator[None]:
    """A block that puts an adapter in the place of the one of that name.

    Raises:
        InputError: there is none, it is merged, or more than a LoRA, or does not change all those layers: before the
            block, for where peft fails at it, diffusers takes off the one that is there.
    """
    from peft import LoraConfig

    if adapter not in adapter_names(network):
        listed = ", ".join(adapter_names(network)) or "none is loaded"
        raise InputError(f"adapter_name {shown(adapter)}: expected that of an adapter to swap ({listed})")
    if any(adapter in layer.merged_adapters for layer in _layers(network)):
        raise InputError(f"adapter_name {shown(adapter)}: that adapter is merged into the weights: unfuse_lora() first")
    _ = lora_of(network, adapter)
    layers = {layer: network.get_submodule(layer) for layer in lora.layers}
    if lacking := [layer for layer, module in layers.items() if adapter not in getattr(module, "lora_A", ())]:
        raise InputError(
            f"LoRA {shown(source)} changes {shown(lacking[0])}, which the adapter {shown(adapter)} does not: load it "
            "without hotswap=True"
        )
    network.peft_config[adapter] = LoraConfig(**lora.config())  # peft swaps like for like
    yield
    for layer, module in layers.items():
        rank, alpha = lora.rank(layer), lora.alphas[layer]
        module.r[adapter], module.lora_alpha[adapter] = rank, alpha
        getattr(module, "use_rslora", {})[adapter] = False  # which earlier versions of peft do not keep there
        _rescale(module, {adapter: alpha / rank})
