"""LoRA on a pipeline, by the names that users of diffusers know: load, weigh, fuse, unload and save adapters."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from diffusers.loaders.lora_base import LoraBaseMixin
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from anystep.bounds import Real, check, nearest, shown
from anystep.errors import InputError, refused
from anystep.files import replacing
from anystep.models.lora import (
    LORA_FILE,
    Lora,
    adapter_names,
    check_lora,
    is_fused,
    lora_of,
    merging,
    named_tensors,
    parse_lora,
    read_lora,
    require_peft,
    restore_lora_scale,
    set_lora_scale,
    swapping,
    write_lora,
)
from anystep.pretrained import may_be_hub_id

RUN_FOLDER = "lora"  # of a training run, in which its adapter is


class LoraLoading(LoraBaseMixin):
    """Adapters of the transformer. `fuse_lora`, `set_adapters` and the others not named here are those of diffusers."""

    _lora_loadable_modules = ["transformer"]
    transformer: Any

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: Any, return_lora_metadata: bool = False, **options: Any
    ) -> Any:
        """The tensors of an adapter by the names of the transformer's layers, as `load_lora_weights` finds it.

        Returns:
            The tensors, or with `return_lora_metadata` a tuple of them and what peft is told of them.
        """
        lora = _read(pretrained_model_name_or_path_or_dict, options)
        return (lora.tensors, lora.config()) if return_lora_metadata else lora.tensors

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **options: Any,
    ) -> None:
        """Put an adapter on the transformer, beside those that it has.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder with one, a training run of an adapter,
                a hub id, or tensors by name.
            adapter_name: what it is called from now on; `default_0` and so on by default.
            hotswap: put it in the place of the adapter of that name, which changes the same layers or more.
            options: `weight_name` and `subfolder` of the file, `metadata` of tensors, and those of the hub.

        Raises:
            InputError: unreadable, a pickle, no LoRA, or one of another network; nothing is changed then.
        """
        require_peft()
        source = pretrained_model_name_or_path_or_dict
        low = {name: options.pop(name) for name in ("low_cpu_mem_usage",) if name in options}
        lora = _read(source, options)
        named = "given" if isinstance(source, Mapping) else str(source)
        check_lora(lora, self.transformer, named)
        if not hotswap and adapter_name in adapter_names(self.transformer):
            raise InputError(f"adapter_name {shown(adapter_name)} is taken: choose another, or hotswap=True")
        swap = swapping(lora, self.transformer, adapter_name, named) if hotswap else nullcontext()
        with swap, refused(f"cannot load LoRA {shown(named)}"):
            self.transformer.load_lora_adapter(
                dict(lora.tensors), prefix=None, metadata=lora.config(), adapter_name=adapter_name, hotswap=hotswap,
                _pipeline=self, **low,
            )  # fmt: skip

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        transformer_lora_layers: Mapping[str, Any] | nn.Module,
        is_main_process: bool = True,
        weight_name: str | None = None,
        adapter_name: str | None = None,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
        save_function: Callable[[dict[str, Tensor], str], object] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write an adapter into a folder, as safetensors that `load_lora_weights` of diffusers reads.

        Args:
            transformer_lora_layers: the transformer that carries it, also inside a model of peft, or its tensors by
                name. Tensors alone do not say their alpha, which is then the rank.
            weight_name: of the file, `pytorch_lora_weights.safetensors` by default.
            adapter_name: which of several that the transformer carries.
            transformer_lora_adapter_metadata: what the configuration of peft says of tensors, `lora_alpha` among it.
            save_function: what writes tensors by name to a path, in place of safetensors' own; alpha is not in its
                file.
            safe_serialization: only True.

        Raises:
            InputError: no adapter, one that is more than a LoRA, another kind of file, or a folder that cannot be
                written.
        """
        if not safe_serialization:
            raise InputError("safe_serialization=False: pickles are not loaded again, since they can run code")
        name = weight_name or LORA_FILE
        if not name.endswith(".safetensors"):
            raise InputError(f"weight_name {shown(name)}: expected a name that ends in .safetensors")
        if isinstance(transformer_lora_layers, nn.Module):
            lora = lora_of(transformer_lora_layers, adapter_name)
        else:
            lora = parse_lora(transformer_lora_layers, transformer_lora_adapter_metadata)
        if is_main_process:
            folder = Path(save_directory)
            with refused(f"cannot write to {str(folder)!r}"):
                folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name) as part:
                if save_function is None:
                    write_lora(lora, part)
                else:
                    save_function(named_tensors(lora), str(part))

    def fuse_lora(self, components: Sequence[str] = ("transformer",), *arguments: Any, **options: Any) -> None:
        """Merge adapters into the weights: as fast as without any. Arguments are those of diffusers."""
        with merging(self.transformer):
            super().fuse_lora(list(components), *arguments, **options)

    def unfuse_lora(self, components: Sequence[str] = ("transformer",), **options: Any) -> None:
        """Take them out of the weights again, up to rounding: they count as before they were merged."""
        with merging(self.transformer):
            super().unfuse_lora(list(components), **options)

    def lora_scale_of(self, attention_kwargs: Any) -> float | None:
        """The `scale` of a call's `attention_kwargs`; None where none is given.

        Raises:
            InputError: anything else in there, no number, no adapter that it could scale, or one that is fused.
        """
        if attention_kwargs is None:
            return None
        if not isinstance(attention_kwargs, Mapping):
            raise InputError(f'attention_kwargs {shown(attention_kwargs)}: expected a dict such as {{"scale": 0.5}}')
        for name in attention_kwargs:
            if name != "scale":
                raise InputError(f"unknown attention_kwargs {shown(name)}{nearest(str(name), ['scale'])}")
        if attention_kwargs.get("scale") is None:
            return None
        scale = float(check("attention_kwargs scale", attention_kwargs["scale"], Real))
        if not adapter_names(self.transformer):
            raise InputError(f"attention_kwargs scale {scale:g}: no LoRA is loaded that it could scale")
        if scale != 1.0 and is_fused(self.transformer):
            how = "unfuse_lora() first, or fuse_lora(lora_scale=...)"
            raise InputError(f"attention_kwargs scale {scale:g}: the LoRA is fused: {how}")
        return scale

    def lora_scaled(self, scale: float | None) -> Any:
        """A block in which active adapters count so many times what they do; None leaves all as it is."""
        network = self.transformer
        with _OPENING:
            state = _SCALES.setdefault(network, _Scale())
        return state.held(network, 1.0 if scale is None else scale)


@dataclass
class _Scale:
    """The scale that the calls that draw with one network have now: calls with others wait for these to end."""

    scale: float = 1.0
    threads: list[int] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    before: list[Any] = field(default_factory=list)

    @contextmanager
    def held(self, network: nn.Module, scale: float) -> Iterator[None]:
        own = threading.get_ident()
        with self.changed:
            if own in self.threads and scale != self.scale:
                raise InputError(f"attention_kwargs scale {scale:g}: the call around this one has {self.scale:g}")
            self.changed.wait_for(lambda: not self.threads or self.scale == scale)
            if not self.threads and scale != 1.0:
                self.before = set_lora_scale(network, scale)
            self.scale = scale
            self.threads.append(own)
        try:
            yield
        finally:
            with self.changed:
                self.threads.remove(own)
                if not self.threads:
                    restore_lora_scale(self.before)
                    self.before = []
                self.changed.notify_all()


_OPENING = threading.Lock()
_SCALES: WeakKeyDictionary[nn.Module, _Scale] = WeakKeyDictionary()


def _read(source: Any, options: dict[str, Any]) -> Lora:
    if isinstance(source, Mapping):
        return parse_lora(source, options.pop("metadata", None))
    return read_lora(find_lora(source, **options))


def find_lora(source: str | Path, weight_name: str | None = None, subfolder: str | None = None, **hub: Any) -> Path:
    """The file of an adapter: of a file, a folder, a training run or a hub id.

    Args:
        hub: options of `huggingface_hub.hf_hub_download`, such as `revision` and `token`.

    Raises:
        InputError: there is none, or it cannot be told which.
    """
    place = Path(source).expanduser()
    if place.is_file():
        return place
    name = str(source)
    if place.is_dir():
        folder = place / (subfolder or "")
        for file in (folder / (weight_name or LORA_FILE), folder / RUN_FOLDER / (weight_name or LORA_FILE)):
            if file.is_file():
                return file
        files = sorted(folder.glob("*.safetensors")) if weight_name is None else []
        if len(files) == 1:
            return files[0]
        missing = f"it holds {len(files)} files of safetensors, name one" if files else "there is none in it"
        raise InputError(f"no LoRA in {shown(name)}: {missing}; expected {weight_name or LORA_FILE}")
    if not may_be_hub_id(name):
        raise InputError(f"no LoRA at {shown(name)}: expected a .safetensors file, a folder with one, or a hub id")
    hub.pop("use_safetensors", None)
    with refused(f"no LoRA {shown(name)} came from the hub"):
        return Path(hf_hub_download(name, weight_name or LORA_FILE, subfolder=subfolder, **hub))
