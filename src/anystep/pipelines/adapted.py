"""Flow maps made of pipelines of diffusers: one file with an adapter and an embedding, on top of the original.

`anystep.load` draws with such a file as with any model, and `adapt` puts it on a pipeline that somebody has loaded.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from anystep import bounds
from anystep.bounds import check, check_options, shown
from anystep.codecs import load_codec
from anystep.errors import InputError, first_line, refused
from anystep.files import check_regular, parse_json
from anystep.flow_families import FAMILIES, family_of
from anystep.model_folder import count_tensors
from anystep.models.flow_map import (
    ADDED,
    FlowMapEmbedding,
    FlowMapOptions,
    FlowMapTransformer,
    add_interval,
    base_probe,
    embedding_of,
    plain_name,
)
from anystep.models.lora import PARTS, check_lora, is_fused, lora_of, parse_lora
from anystep.models.low_rank import add_terms
from anystep.models.weight_files import check_numbers
from anystep.pipelines.base_pipeline import BasePipeline, plain_config
from anystep.pipelines.scheduler import Planning, TransitionScheduler, plain_plans
from anystep.pipelines.transition import TransitionPipeline
from anystep.sampling import StepPlan

FLOW_MAP_FILE = "anystep.safetensors"
RUN_FOLDER = "adapted"  # of a training run, in which that file is
ABOUT = "anystep.flow_map"  # the entry of the file's metadata
PROBE, NETWORK = "base_probe", "transformer."
# largest difference of a probe, relative to it, that rounding explains: to 8 bits, and to 16
ROUNDING = {1: 0.1}
ROUNDED = 0.004


def is_flow_map(path: Path) -> bool:
    """Whether it is a file that `FlowMapFile` reads; nothing but its header is looked at."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return ABOUT in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def find_flow_map(model: str | Path) -> Path | None:
    """The file of a flow map: of itself, its folder or its training run; None where there is none."""
    place = Path(model).expanduser()
    candidates = (place, place / FLOW_MAP_FILE, place / RUN_FOLDER / FLOW_MAP_FILE)
    return next((each for each in candidates if is_flow_map(each)), None)


@dataclass(frozen=True)
class FlowMapFile:
    """What was learned on top of a base, and how it is to be drawn with.

    Attributes:
        name: where it came from, for errors.
        tensors: embeddings by their names, LoRA layers or the weights of the whole network below `transformer.`, and
            the probe of the base.
        about: `base`, the configuration of its `network`, `options` of `FlowMapOptions`, `lora` as peft is told of it
            (None where all weights are here), `shift`, `guidance`, `sampling`, `caption_tokens` where they are not the
            default of its base, and `plans` where `anystep plan-steps` has chosen some.
    """

    name: str
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    @classmethod
    def of(cls, network: FlowMapTransformer, with_lora: bool, **about: Any) -> "FlowMapFile":
        """What a network has beside its base.

        Args:
            with_lora: whether it is an adapter that was trained; else all weights were.
            about: `base`, `shift`, `guidance`, `sampling` and `caption_tokens`.
        """
        transformer = network.transformer
        lora = lora_of(transformer) if with_lora else None
        own = plain_weights(transformer) if lora is None else lora.tensors
        tensors = {**network.added, PROBE: base_probe(transformer), **{NETWORK + name: own[name] for name in own}}
        said: dict[str, Any] = {"network": plain_config(transformer.config), "options": asdict(network.options)}
        said |= {"lora": None if lora is None else lora.config(), **about}
        return cls("it", {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, said)

    def write(self, path: Path) -> None:
        """Write it."""
        from safetensors.torch import save_file

        with refused(f"cannot write {str(path)!r}"):
            save_file(self.tensors, path, {"format": "pt", ABOUT: json.dumps(self.about, sort_keys=True)})

    @classmethod
    def read(cls, path: Path) -> "FlowMapFile":
        """Read one.

        Raises:
            InputError: unreadable, cut short, or something else.
        """
        check_regular(path)
        count_tensors(path)
        try:
            with safe_open(path, "pt") as file:
                said = parse_json((file.metadata() or {}).get(ABOUT, "{}"), str(path))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot read {str(path)!r}: {first_line(error)}") from None
        kinds = {"base": str, "network": dict, "options": dict, "shift": float, "guidance": float, "sampling": str}
        wrong = [name for name, kind in kinds.items() if not isinstance(said.get(name), kind)]
        if wrong or PROBE not in tensors or not isinstance(said.get("lora"), dict | None):
            missing = ", ".join(wrong) or "the probe of its base"
            raise InputError(f"{str(path)!r} is no flow map of anystep: it does not say {missing}")
        check_numbers(tensors, repr(str(path)))
        return cls(str(path), tensors, said)

    @property
    def options(self) -> FlowMapOptions:
        """Raises `InputError` for values out of bounds."""
        return FlowMapOptions(**check_options(self.name, FlowMapOptions, self.about["options"]))

    def scheduler(self) -> "FlowMapScheduler":
        """The times that it is drawn at."""
        shift = check("shift", self.about["shift"], bounds.PositiveCoefficient)
        return FlowMapScheduler(shift=shift, plans=self.about.get("plans"))

    def with_plans(self, plans: Mapping[int, StepPlan]) -> "FlowMapFile":
        """The same with other plans of steps."""
        return replace(self, about={**self.about, "plans": plain_plans(plans)})

    def check_base(self, transformer: nn.Module) -> None:
        """Raise `InputError` where a network is not the one that this was made of, in any precision."""
        base = f"{self.name!r} goes on top of {self.about['base']!r}"
        config, there = plain_config(transformer.config), self.about["network"]  # type: ignore[arg-type]
        if different := sorted(key for key in {*config, *there} if config.get(key) != there.get(key)):
            key = different[0]
            raise InputError(f"{base}: this network has another {key}, {shown(config.get(key))} for {shown(there[key])}"
                             if key in there else f"{base}: this network has a {key}")  # fmt: skip
        probe, expected = base_probe(transformer), self.tensors[PROBE].float()
        allowed = ROUNDING.get(min(weight.element_size() for weight in transformer.parameters()), ROUNDED)
        if self.about["lora"] is not None and (
            len(probe) != len(expected) or (probe - expected).abs().mean() > allowed * expected.abs().mean()
        ):
            raise InputError(f"{base}: this network has other weights")

    def fill(self, transformer: Any) -> None:
        """Give a network with an interval what was learned.

        Raises:
            InputError: tensors that do not go with it.
        """
        embedding = embedding_of(transformer)
        added = {name: value for name, value in self.tensors.items() if name.startswith(ADDED)}
        own = {name: value for name, value in embedding.state_dict().items() if name.startswith(ADDED)}
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in added.items()}:
            raise InputError(f"{self.name!r}: its embedding of the interval does not go with this network")
        embedding.load_state_dict(added, strict=False)
        learned = {
            name.removeprefix(NETWORK): value for name, value in self.tensors.items() if name.startswith(NETWORK)
        }
        if self.about["lora"] is None:
            wanted = {plain_name(name): name for name, _ in transformer.named_parameters() if not name.endswith(ADDED)}
            with refused(f"{self.name!r} does not go with this network"):
                transformer.load_state_dict({wanted[name]: value for name, value in learned.items()}, strict=False)
            return
        lora = parse_lora({name: value for name, value in learned.items() if name.endswith(PARTS)}, self.about["lora"])
        check_lora(lora, transformer, self.name)
        add_terms(transformer, lora)


def plain_weights(transformer: nn.Module) -> dict[str, Tensor]:
    """The weights of a network by the names that its base has for them."""
    named = transformer.named_parameters()
    return {plain_name(name): value for name, value in named if not any(added in name for added in ADDED)}


class FlowMapScheduler(TransitionScheduler):
    """A `TransitionScheduler` for pipelines of diffusers that know of flow matching alone."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
        height: int | None = None,
        width: int | None = None,
        plan: Planning | None = None,
        mu: float | None = None,
    ) -> None:
        """As of `TransitionScheduler`; `mu`, by which FLUX.1 shifts its times, is in `shift` already."""
        super().set_timesteps(num_inference_steps, device, sigmas, timesteps, height, width, plan)

    def targets_of(self, t: Tensor) -> Tensor:
        """Where the steps that begin at these times end; times may be rounded."""
        times = self.sigmas.to(t)
        return times[1:][(times[:-1] - t[:, None]).abs().argmin(1)]


class AdaptedPipeline(TransitionPipeline):
    """A flow map with the other parts of its base, to draw with in any number of steps."""

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Raises `InputError`: the file it was loaded from is what can be kept."""
        refuse_to_save()

    def load_lora_weights(self, *_: Any, **__: Any) -> None:
        """Raises `InputError`: adapters are for the pipeline that it is made of."""
        raise InputError(
            "a flow map takes no LoRA here: anystep.adapt(pipeline, file) puts it on the pipeline of diffusers, and "
            "that loads a LoRA beside it"
        )


def refuse_to_save(*_: Any, **__: Any) -> None:
    """Raises `InputError`: nothing could load what would be saved."""
    raise InputError("a flow map of a pipeline of diffusers is kept as its file, on top of that pipeline")


def load_adapted(path: Path, dtype: torch.dtype = torch.float32) -> AdaptedPipeline:
    """A pipeline of a flow map's file and of the base that it names.

    Raises:
        InputError: it cannot be read, or its base is not there, or another one.
    """
    file = FlowMapFile.read(path)
    try:
        base = BasePipeline.open(file.about["base"])
    except InputError as error:
        raise InputError(
            f"{str(path)!r} goes on top of {file.about['base']!r} ({error}); on one that is elsewhere "
            "anystep.adapt(pipeline, file) puts it"
        ) from None
    transformer = base.transformer(dtype)
    file.check_base(transformer)
    network = FlowMapTransformer(transformer, file.options)
    file.fill(transformer)
    return as_pipeline(base, network.eval(), file.scheduler(), load_codec(base.codec), file.about)


def as_pipeline(
    base: BasePipeline,
    network: FlowMapTransformer,
    scheduler: TransitionScheduler,
    codec: Any,
    about: Mapping[str, Any],
) -> AdaptedPipeline:
    """A flow map as it is drawn with.

    Args:
        codec: that of the base, loaded.
        about: `guidance`, `sampling` and `caption_tokens`, as a `FlowMapFile` says them.
    """
    tokens = about.get("caption_tokens")
    if tokens is not None:
        check("caption_tokens", tokens, bounds.Count)
    pipeline = AdaptedPipeline(
        transformer=network, scheduler=scheduler, vae=codec.autoencoder, text_encoder_name=base.text_encoder(tokens),
        guidance_scale=about["guidance"], sampling=about["sampling"],
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def adapt(pipeline: Any, file: str | Path, guidance: float = 1.0) -> Any:
    """Make a loaded Stable Diffusion 3, FLUX.1 or SANA pipeline of diffusers draw in any number of steps.

    Its transformer gets the interval and what was learned of it, and its scheduler is one that says where steps end;
    all else of the pipeline stays as it is: what was learned is no adapter, so that LoRA files of your own are loaded,
    weighed, merged and unloaded beside it. Offload after this, not before.

    Args:
        pipeline: the loaded pipeline, which is changed.
        file: of the flow map, its folder, or its training run.
        guidance: the scale that a network which learned to be given one is given.

    Returns:
        The same pipeline.

    Raises:
        InputError: no such file, one that was made of another base, a value out of bounds, or a LoRA that is merged:
            the pipeline is as it was. Or tensors that do not go with it, after which the pipeline must be loaded anew.
    """
    path = find_flow_map(file)
    if path is None:
        raise InputError(f"no flow map at {shown(str(file))}: expected a file that `anystep train adapt-sd3` writes")
    read, transformer = FlowMapFile.read(path), getattr(pipeline, "transformer", None)
    family_of(transformer)
    options = read.options
    if isinstance(getattr(transformer, FAMILIES[family_of(transformer)].embedding), FlowMapEmbedding):
        raise InputError("the pipeline is a flow map already: load it anew")
    if is_fused(transformer):  # type: ignore[arg-type]
        raise InputError(
            "a LoRA is merged into the transformer, which cannot be told then: unfuse_lora(), adapt, fuse again"
        )
    read.check_base(transformer)  # type: ignore[arg-type]
    scheduler, scale = read.scheduler(), float(check("guidance", guidance, bounds.Guidance))
    add_interval(transformer, options)
    read.fill(transformer)
    embedding = embedding_of(transformer)  # type: ignore[arg-type]
    embedding.schedule, embedding.guidance = scheduler, scale
    pipeline.register_modules(scheduler=scheduler)
    pipeline.save_pretrained = transformer.save_pretrained = refuse_to_save  # type: ignore[union-attr]
    return pipeline
