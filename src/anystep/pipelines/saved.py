"""The folder of a pipeline: looked through before it is loaded, and read as earlier versions wrote it.

diffusers finds classes that are not its own by code in the folder (`trust_remote_code=True`). What is written here
imports a class from anystep and does nothing more; it is for `DiffusionPipeline.from_pretrained`, and nothing of ours
runs it. Lists of names are dicts by number in the index, because diffusers takes a list for a component and asks the
hub for its code.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline

import anystep
from anystep.bounds import shown
from anystep.codecs.codec import check_whole, load_autoencoder
from anystep.errors import InputError
from anystep.files import read_json, read_text, write_json, write_text
from anystep.model_folder import check_model_folder
from anystep.pipelines.inputs import NAMES, check_settings, in_order
from anystep.pipelines.model_card import TEMPLATE, model_card

CARD = "README.md"
EARLIER_VAE = "codec"  # what the component `vae` was called, and its folder
HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "variant",
               "use_safetensors")  # fmt: skip
PIPELINES = ("TransitionPipeline", "TransitionClassPipeline")
# component: (module beside its weights that diffusers imports, class of ours)
SHIMS = {
    "transformer": ("modeling", "TransitionTransformer2DModel"),
    "scheduler": ("scheduling", "TransitionScheduler"),
}
SHIM = """# for DiffusionPipeline.from_pretrained(folder, trust_remote_code=True), with anystep installed
from anystep import {name}  # noqa: F401
"""
Pipeline = TypeVar("Pipeline", bound="SavedPipeline")


def settings_of(folder: Path) -> dict[str, Any]:
    """What the index of a model's folder says, with lists of names as lists. Raises `InputError` where it cannot be."""
    index = read_json(folder / "model_index.json")
    check_settings(index)
    return {**index, **{name: in_order(index[name]) for name in NAMES if name in index}}


class SavedPipeline(DiffusionPipeline):
    """Loading of diffusers with checks before and after it, and folders that its own loader takes too."""

    transformer: Any
    text_encoder: Any
    conditioner: Any
    _network_config: Any = None

    @classmethod
    def from_pretrained(cls: type[Pipeline], pretrained_model_name_or_path: str | Path, **options: Any) -> Pipeline:
        """That of diffusers, of a folder that was looked through before (`anystep.model_folder`).

        The pipeline is of the class that was saved, where that is this one or one made of it. No code of a folder is
        run, whatever `trust_remote_code` says. With `transformer=None` it encodes and decodes, and draws nothing; with
        `vae=None` it draws latents.

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
            kind = _class_to_load(cls, _plain_name(index.get("_class_name")))
            check_settings(index)
            if (index.get(EARLIER_VAE) or [None])[0] is not None and "vae" not in options:
                options["vae"] = _load_vae(folder / EARLIER_VAE, options)
            if index.get("vae_name") and (index.get("vae") or [None])[0] is None and "vae" not in options:
                options["vae"] = _load_vae(index["vae_name"], options)
            options.pop("trust_remote_code", None)
            with _without_reports_of_poolers():
                pipeline: Any = super(SavedPipeline, kind).from_pretrained(str(folder), **options)
            for part in pipeline.components.values():
                if isinstance(part, torch.nn.Module):
                    check_whole(part)
            for part in ("vae", EARLIER_VAE):
                if (folder / part / "config.json").exists():  # which is needed once the codec is taken out
                    pipeline._vae_config = read_json(folder / part / "config.json")
            if pipeline.transformer is None:
                pipeline._network_config = _config_alone(folder / "transformer")
            else:
                _ = pipeline.latent_codec
        except Exception as error:  # diffusers, safetensors and the hub raise many kinds; all mean it is not usable
            reason = " ".join(str(error).split()).replace(f"{name}/", "")
            if not isinstance(error, InputError):
                reason = f"{type(error).__name__}: {reason[:200]}"
                if not Path(name).exists():  # a folder's mistyped name looks like a hub id
                    reason = f"there is no such folder, and no model of that name came from the hub ({reason[:120]})"
            raise InputError(f"cannot load model {name!r}: {reason}") from error
        return pipeline

    @property
    def network_config(self) -> Any:
        """The configuration of the transformer, also of a pipeline that was loaded without it."""
        if self.transformer is None and self._network_config is None:
            self.require_transformer()
        return self._network_config if self.transformer is None else self.transformer.config

    def require_transformer(self) -> None:
        """Raise `InputError` where there is none."""
        if self.transformer is None:
            raise InputError("this pipeline has no transformer: load it without transformer=None")

    @classmethod
    def load_config(cls, *arguments: Any, **options: Any) -> Any:
        """That of diffusers, in the words of today, with classes of ours by the name of the package."""
        loaded = super().load_config(*arguments, **options)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if EARLIER_VAE in config:
            config["vae"] = config.pop(EARLIER_VAE)
        for part, (module, name) in SHIMS.items():
            if list(config.get(part) or ()) == [module, name]:
                config[part] = ["anystep", name]
        config |= {name: in_order(config[name]) for name in NAMES if name in config}
        return loaded

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict[str, Any]:
        """What diffusers reads of a config file, without the code that stands for the pipeline's class there."""
        config: dict[str, Any] = super()._dict_from_json_file(json_file)
        config["_class_name"] = _plain_name(config.get("_class_name"))
        return config

    def save_pretrained(
        self,
        save_directory: Any,
        safe_serialization: bool = True,
        *arguments: Any,
        carry_text_encoder: bool = False,
        **options: Any,
    ) -> None:
        """That of diffusers, with what `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` asks for.

        Args:
            carry_text_encoder: put the text encoder into the folder, where it was given by name.

        Raises:
            InputError: what is saved could not be loaded; before anything is written.
        """
        if not safe_serialization:
            raise InputError("safe_serialization=False: pickles are not loaded again, since they can run code")
        self.require_transformer()
        self.transformer.check_saveable()
        if carry_text_encoder:
            return self._with_text_encoder().save_pretrained(save_directory, True, *arguments, **options)
        return super().save_pretrained(save_directory, True, *arguments, **options)

    def _with_text_encoder(self) -> Any:
        """The same pipeline with its text encoder as a component."""
        encoder: Any = self.conditioner
        if self.text_encoder is not None or self.transformer.config.num_classes is not None:
            return self
        parts = {**self.components, "text_encoder": encoder.model, "tokenizer": encoder.tokenizer}
        settings = {name: self.config[name] for name in self._optional_settings() if name != "text_encoder_name"}
        return type(self)(**parts, **settings)

    @classmethod
    def _optional_settings(cls) -> list[str]:
        parts, settings = cls._get_signature_keys(cls)
        return [name for name in settings if name not in parts]

    def save_config(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """The index of the folder, and what finds our classes for it."""
        super().save_config(save_directory, *arguments, **options)
        folder = Path(save_directory)
        index = read_json(folder / "model_index.json")
        ours = {getattr(anystep, name): name for name in PIPELINES}  # a subclass is saved as what it is made of
        index["_class_name"] = ["pipeline", next(ours[kind] for kind in type(self).__mro__ if kind in ours)]
        index |= {name: dict(enumerate(index[name])) for name in NAMES if index.get(name) is not None}
        write_text(folder / "pipeline.py", SHIM.format(name=", ".join(PIPELINES)))
        for part, (module, name) in SHIMS.items():
            if index.get(part) == ["anystep", name]:
                index[part] = [module, name]
                (folder / part).mkdir(exist_ok=True)
                write_text(folder / part / f"{module}.py", SHIM.format(name=name))
        write_json(folder / "model_index.json", index)
        if not (folder / CARD).exists():  # one that somebody has written stays
            write_text(folder / CARD, model_card(self))

    def _upload_folder(self, working_dir: Any, *arguments: Any, **options: Any) -> Any:
        """That of diffusers, which has put a card there that says nothing where the hub has none of the model yet."""
        page = Path(working_dir) / CARD
        if TEMPLATE in read_text(page):
            write_text(page, model_card(self))
        return super()._upload_folder(working_dir, *arguments, **options)

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


@contextmanager
def _without_reports_of_poolers() -> Iterator[None]:
    """While it lasts, transformers does not report encoders that were saved without the pooler, which nothing asks."""

    def worth_telling(entry: logging.LogRecord) -> bool:
        rows = [line.split("|")[0].strip() for line in entry.getMessage().splitlines() if "| MISSING |" in line]
        return not rows or not all("pooler." in row for row in rows)

    reports = logging.getLogger("transformers.modeling_utils")
    reports.addFilter(worth_telling)
    try:
        yield
    finally:
        reports.removeFilter(worth_telling)


def _plain_name(name: Any) -> Any:
    """The name of a class, of an entry that may say its module too."""
    return name[-1] if isinstance(name, list | tuple) and name else name


def _class_to_load(asked: type[Pipeline], name: Any) -> type[Pipeline]:
    """The class of a folder that names it, as it was asked for."""
    if name not in PIPELINES:
        hint = "; generate, evaluate and benchmark alone draw with others" if str(name).endswith("Pipeline") else ""
        raise InputError(f"it is a {shown(name)}, not a {asked.__name__}{hint}")
    saved: type[Pipeline] = getattr(anystep, name)
    return saved if issubclass(saved, asked) else asked


def _config_alone(folder: Path) -> Any:
    """The configuration of a transformer's folder, as the transformer would have it."""
    with torch.device("meta"):
        return anystep.TransitionTransformer2DModel.from_config(read_json(folder / "config.json")).config


def _load_vae(place: str | Path, options: Mapping[str, Any]) -> Any:
    """The autoencoder of a folder or hub id, as the options of `from_pretrained` say."""
    dtype = options.get("dtype", options.get("torch_dtype"))
    if isinstance(dtype, Mapping):
        dtype = dtype.get("vae", dtype.get("default", torch.float32))
    more = {name: options[name] for name in ("use_safetensors", "variant") if name in options}
    return load_autoencoder(place, dtype=dtype, **more)
