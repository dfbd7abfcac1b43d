"""The folder of a pipeline: looked through before it is loaded, and read as earlier versions wrote it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline

from anystep.bounds import shown
from anystep.codecs.codec import check_whole, load_autoencoder
from anystep.errors import InputError
from anystep.files import read_json
from anystep.model_folder import check_model_folder
from anystep.pipelines.inputs import check_settings

EARLIER_VAE = "codec"  # what the component `vae` was called, and its folder
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "variant",
               "use_safetensors")  # fmt: skip
Pipeline = TypeVar("Pipeline", bound="SavedPipeline")


class SavedPipeline(DiffusionPipeline):
    """Loading of diffusers with checks before and after it."""

    @classmethod
    def from_pretrained(cls: type[Pipeline], pretrained_model_name_or_path: str | Path, **options: Any) -> Pipeline:
        """That of diffusers, of a folder that was looked through before (`anystep.model_folder`).

        Raises:
            InputError: what is missing, damaged or refused, in one line.
        """
        name = str(pretrained_model_name_or_path)
        options.setdefault("use_safetensors", True)
        try:
            hub = {key: value for key, value in options.items() if key in HUB_OPTIONS}
            folder = Path(name if Path(name).is_dir() else cls.download(name, **hub))
            check_model_folder(folder, options)
            index = read_json(folder / "model_index.json")
            if index.get("_class_name") != cls.__name__:
                raise InputError(f"it is a {shown(index.get('_class_name'))}, not a {cls.__name__}")
            check_settings(index)
            if (index.get(EARLIER_VAE) or [None])[0] is not None and "vae" not in options:
                options["vae"] = _load_vae(folder / EARLIER_VAE, options)
            if index.get("vae_name") and (index.get("vae") or [None])[0] is None and "vae" not in options:
                options["vae"] = _load_vae(index["vae_name"], options)
            pipeline: Any = super().from_pretrained(str(folder), **options)
            for part in pipeline.components.values():
                if isinstance(part, torch.nn.Module):
                    check_whole(part)
            _ = pipeline.latent_codec
        except Exception as error:  # diffusers, safetensors and the hub raise many kinds; all mean it is not usable
            reason = " ".join(str(error).split()).replace(f"{name}/", "")
            if not isinstance(error, InputError):
                reason = f"{type(error).__name__}: {reason[:200]}"
                if not Path(name).exists():  # a folder's mistyped name looks like a hub id
                    reason = f"there is no such folder, and no model of that name came from the hub ({reason[:120]})"
            raise InputError(f"cannot load model {name!r}: {reason}") from error
        return pipeline

    @classmethod
    def load_config(cls, *arguments: Any, **options: Any) -> Any:
        """That of diffusers, in the words of today."""
        loaded = super().load_config(*arguments, **options)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if EARLIER_VAE in config:
            config["vae"] = config.pop(EARLIER_VAE)
        return loaded

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """That of diffusers. Raises `InputError` before anything is written where it could not be loaded."""
        self.transformer.check_saveable()
        super().save_pretrained(save_directory, *arguments, **options)

    def __repr__(self) -> str:
        """The parts by their classes, and plain settings; lists by their lengths, since errors of Python show it."""
        parts = [f"{name}={type(part).__name__}" for name, part in self.components.items() if part is not None]
        settings = {name: value for name, value in self.config.items() if name not in self.components}
        said = [
            f"{name}=<{len(value)}>" if isinstance(value, list) else f"{name}={value!r}"
            for name, value in settings.items()
            if value is not None and not name.startswith("_")
        ]
        return f"{type(self).__name__}({', '.join([*parts, *said])})"


def _load_vae(place: str | Path, options: Mapping[str, Any]) -> Any:
    """The autoencoder of a folder or hub id, as the options of `from_pretrained` say."""
    dtype = options.get("dtype", options.get("torch_dtype"))
    if isinstance(dtype, Mapping):
        dtype = dtype.get("vae", dtype.get("default", torch.float32))
    more = {name: options[name] for name in ("use_safetensors", "variant") if name in options}
    return load_autoencoder(place, dtype=dtype, **more)
