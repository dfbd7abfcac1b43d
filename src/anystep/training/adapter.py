"""Training a low-rank adapter (LoRA): the model that it is for decides all but the data and the objective."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from anystep import __version__
from anystep.bounds import shown
from anystep.codecs import load_codec
from anystep.errors import InputError
from anystep.files import read_json, write_text
from anystep.fingerprint import file_digest, text_digest
from anystep.model_folder import check_model_folder
from anystep.models.lora import LORA_FILE, adapter_parameters, add_lora, lora_of, target_layers, write_lora
from anystep.models.presets import PRESETS, build_transformer
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.pipelines.load import find
from anystep.pipelines.lora import RUN_FOLDER
from anystep.pipelines.model_card import card_fields
from anystep.pipelines.saved import EARLIER_VAE, settings_of
from anystep.pipelines.transition import TransitionPipeline
from anystep.publishing import publishing
from anystep.training.config import LoraConfig, Recipe
from anystep.training.section import explain
from anystep.training.trainer_state import TrainerState
from anystep.weights import BUILTIN

OPTIONS = tuple(signature(TransitionTransformer2DModel.__init__).parameters)[1:]


@dataclass(frozen=True)
class BaseModel:
    """What the folder of a model says: its settings, those of its network, and those of its scheduler."""

    name: str
    folder: Path
    settings: dict[str, Any]
    network: dict[str, Any]
    scheduler: dict[str, Any]

    @classmethod
    def open(cls, model: str) -> "BaseModel":
        """Read it by name.

        Raises:
            InputError: there is none, or it is refused (`anystep.model_folder`).
        """
        place = find(model)
        folder = Path(place if Path(place).is_dir() else TransitionPipeline.download(place, use_safetensors=True))
        check_model_folder(folder)
        network, scheduler = (
            read_json(folder / part) for part in ("transformer/config.json", "scheduler/scheduler_config.json")
        )
        options = {name: network[name] for name in OPTIONS if name in network}
        return cls(model, folder, settings_of(folder), options, scheduler)

    @property
    def digest(self) -> str:
        """What tells the weights from others of that name."""
        files = sorted((self.folder / "transformer").glob("*.safetensors"))
        return text_digest(" ".join(file_digest(each) for each in files))

    @property
    def preset(self) -> str:
        """The first preset of these sizes, else one that reads the same conditions."""
        agreeing = [name for name in PRESETS if self.is_preset(name)]
        return (agreeing or ["c2i-b-4" if self.network.get("text_width") is None else "t2i-emoji"])[0]

    def is_preset(self, name: str) -> bool:
        """Whether the network has the sizes of a preset."""
        return all(self.network.get(option) == value for option, value in PRESETS.get(name, {"": ""}).items())

    @property
    def codec(self) -> str:
        """What `load_codec` finds its autoencoder by."""
        if self.name == BUILTIN:
            return BUILTIN
        for part in ("vae", EARLIER_VAE):
            if (self.settings.get(part) or [None])[0] is not None:
                return str(self.folder / part)
        return self.settings.get("vae_name") or ("identity-gray" if self.network["in_channels"] == 1 else "identity")

    @property
    def text_encoder(self) -> str:
        """What `load_text_encoder` finds its text encoder by."""
        return self.settings.get("text_encoder_name") or str(self.folder)


def adapts_ours(recipe: Recipe) -> bool:
    """Whether it is an adapter of a transition model that a recipe trains."""
    return recipe.lora is not None and recipe.adapt is None


def on_base(recipe: Recipe) -> Recipe:
    """A recipe of an adapter with everything that the model it begins from decides; any other recipe as it is.

    Raises:
        InputError: no such model, or the recipe says something else of it.
    """
    if not adapts_ours(recipe):
        return recipe
    model, base = recipe.model, BaseModel.open(str(recipe.model.weights))
    if not base.is_preset(model.preset):
        check_unsaid(model, {"preset": base.preset}, "model")
    check_unsaid(model, {"codec": base.codec, "text_encoder": base.text_encoder}, "model")
    for name, value in model.options.items():
        if name in base.network and base.network[name] != value:
            raise _contradiction(f"model.options.{name}", value, base.network[name])
    transport = {"name": base.scheduler.get("transport", "ot_fm"), "base_size": base.scheduler.get("base_size")}
    check_unsaid(recipe.transport, transport, "transport")
    options = {**(base.scheduler.get("transport_options") or {}), **recipe.transport.options}
    size = base.network["sample_size"] * load_codec(base.codec).factor
    said = recipe.model_dump()
    said["model"] |= {"preset": base.preset, "options": {**model.options, **base.network}, "codec": base.codec}
    said["model"] |= {"text_encoder": base.text_encoder}
    said["transport"] |= {**transport, "options": options}
    if "size" not in recipe.data.model_fields_set:
        said["data"]["size"] = size
    return filled_in(said, str(model.weights))


def filled_in(said: Mapping[str, Any], model: str) -> Recipe:
    """A recipe with what the model that it begins from decides. Raises `InputError` where these do not go together."""
    try:
        return Recipe.model_validate(said)
    except ValidationError as error:
        raise InputError(f"the recipe on model.weights {shown(model)}: {explain(Recipe, error)}") from None


def check_unsaid(section: Any, wanted: Mapping[str, Any], what: str) -> None:
    """Raise `InputError` where a section says something else than what the model that it begins from decides."""
    for name, value in wanted.items():
        if name in section.model_fields_set and getattr(section, name) not in (value, None):
            raise _contradiction(f"{what}.{name}", getattr(section, name), value)


def _contradiction(name: str, given: Any, wanted: Any) -> InputError:
    return InputError(f"{name} {shown(given)}: an adapter takes that of model.weights, {shown(wanted)}; leave it out")


def put_adapter(network: nn.Module, config: LoraConfig) -> None:
    """Put a new adapter on a network, which is frozen otherwise."""
    add_lora(network, config.rank, float(config.rank if config.alpha is None else config.alpha), config.targets)


def frozen(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that training does not move."""
    return [weight for weight in network.parameters() if not weight.requires_grad]


def base_settings(recipe: Recipe) -> dict[str, Any]:
    """How the model that an adapter is for draws: settings of its pipeline. None of a recipe without an adapter."""
    if not adapts_ours(recipe):
        return {}
    settings = BaseModel.open(str(recipe.model.weights)).settings
    return {name: settings[name] for name in ("sampling", "open_guidance_interval", "escape_captions")
            if name in settings}  # fmt: skip


def check_classes(recipe: Recipe, names: Sequence[str]) -> None:
    """Raise `InputError` where an adapter's data have other classes than the model that it is for."""
    if not adapts_ours(recipe):
        return
    base = BaseModel.open(str(recipe.model.weights))
    count, known = base.network.get("num_classes"), base.settings.get("class_names")
    if len(names) != count or (known is not None and list(known) != list(names)):
        wanted = f"{count} classes" if known is None else f"{count} classes {shown(list(known), 100)}"
        raise InputError(f"the data have {len(names)} classes {shown(list(names), 100)}: the model knows {wanted}")


def check_base(recipe: Recipe, state: TrainerState, found: str) -> None:
    """Note which weights an adapter is trained on.

    Args:
        found: their digest; "" where all weights are trained.

    Raises:
        InputError: a run that goes on with others than it was begun with.
    """
    if state.base not in ("", found):
        raise InputError(
            f"model.weights {shown(recipe.model.weights)} holds other weights than the run was begun with: choose "
            "another --out, or put them back"
        )
    state.base = found


def count_adapter(recipe: Recipe) -> int:
    """Number of weights of a recipe's adapter."""
    config = recipe.lora
    if config is None:
        return 0
    with torch.device("meta"):
        return adapter_size(build_transformer(recipe.model.preset, **recipe.model.options), config)


def adapter_size(network: nn.Module, config: LoraConfig) -> int:
    """Number of weights of an adapter of a network."""
    layers: list[Any] = [network.get_submodule(name) for name in target_layers(network, config.targets)]
    return sum(config.rank * (layer.in_features + layer.out_features) for layer in layers)


def trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that training moves, or an average follows: those of the adapter where there is one, else all."""
    return list(adapter_parameters(network).values()) or list(network.parameters())


def export_adapter(run: Path, recipe: Recipe, network: nn.Module) -> None:
    """Write the adapter of a network into `run / "lora"`, with a page that says how to draw with it."""
    base = BaseModel.open(str(recipe.model.weights))
    assert recipe.lora is not None
    about = {"base_model": base.name, "base_digest": base.digest, "anystep": __version__}
    with publishing(run / RUN_FOLDER, "LoRA") as part:
        part.mkdir(parents=True, exist_ok=True)
        write_lora(lora_of(network), part / LORA_FILE, about)
        write_text(part / "README.md", card(base, recipe))


def card(base: BaseModel, recipe: Recipe) -> str:
    """The page of an adapter."""
    config, prompt = recipe.lora, " ".join(next(iter(recipe.sample_prompts), "...").split())
    assert config is not None
    fields = {"license": base.settings.get("license") or None, "base_model": base.name, "library_name": "diffusers"}
    lines = [
        *card_fields({**fields, "tags": ["lora", "anystep", "text-to-image"]}), "# A low-rank adapter", "",
        f"Of rank {config.rank}, for the transition model `{base.name}` (weights {base.digest}), trained for "
        f"{recipe.run.steps} steps of {recipe.run.batch_size} images with anystep {__version__}.", "",
        f"    anystep generate {quote(prompt)} --model {quote(base.name)} --lora THIS_FOLDER", "",
        "```python", "import anystep", "", f"pipe = anystep.load({base.name!r}).pipeline",
        'pipe.load_lora_weights("THIS_FOLDER")', f"pipe({prompt!r}, num_inference_steps=4).images[0]", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
