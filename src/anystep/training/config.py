"""Recipes: typed, checked, read from YAML, overridden from the command line.

A size, a default or a name is defined here once; a recipe file says what differs. Each recipe carries a `debug`
section, merged over the rest by `--debug`, that makes it a laptop-size run.
"""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from anystep.bounds import (
    Aspect,
    AverageLength,
    BatchSize,
    Coefficient,
    Count,
    Decay,
    Depth,
    Guidance,
    LearningRate,
    OptionalCount,
    PositiveCoefficient,
    PositiveShare,
    Real,
    SamplingSteps,
    Seed,
    Share,
    Side,
    Threads,
    Time,
    Width,
    check_name,
    check_options,
    check_text,
    cut,
    expectation,
    nearest,
    shown,
)
from anystep.data.example import Source
from anystep.data.sizing import Limits
from anystep.data.sources import FewerSource, open_source
from anystep.errors import InputError
from anystep.objective.presets import OBJECTIVES, ObjectiveKind
from anystep.plain_yaml import dump_yaml, parse_yaml, read_yaml
from anystep.training.recipes import find_recipe
from anystep.transport import make_transport

Name = Annotated[str, AfterValidator(check_name)]
Text = Annotated[str, AfterValidator(check_text)]
Parallel = Literal["none", "ddp", "fsdp", "hsdp"]


class Section(BaseModel):
    """A part of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: Any) -> Any:
        """Whole numbers are text where text is wanted; true and false are no numbers."""
        return _plainly(value, cls.model_fields[info.field_name or ""].annotation)


def _plainly(value: Any, annotation: Any) -> Any:
    kinds = _kinds(annotation)
    if isinstance(value, list | tuple):
        inner = next((each for each in kinds if get_origin(each) is tuple), None)
        places = (
            get_args(inner)[:1] * len(value) if inner is not None and get_args(inner)[-1] is ... else get_args(inner)
        )
        return [_plainly(*each) for each in zip(value, places, strict=True)] if len(places) == len(value) else value
    if isinstance(value, dict) and (inner := next((each for each in kinds if get_origin(each) is dict), None)):
        for key, each in value.items():
            if isinstance(each, bool) and {int, float} & set(_kinds(get_args(inner)[1])):
                raise ValueError(f"{cut(str(key))} {each}: expected a number, not true or false")
        return value
    numeric, text = {int, float} & set(kinds), str in kinds
    if isinstance(value, bool) and numeric and bool not in kinds:
        raise ValueError("expected a number, not true or false")
    return str(value) if type(value) is int and text and not numeric else value


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation allows, without bounds and None."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) if each is not NoneType for kind in _kinds(each)]
    return [annotation]


class DataConfig(Section):
    """Where examples come from: a spec of `anystep.data.sources.open_source`, or `shards:URL` of prepared latents.

    Several are given with their shares of every batch: `{builtin: 1, scenes: 2}`. `vocabulary` and `split` choose among
    the built-in art; the others are taken whole.
    """

    # Source specification, or a mapping from several specifications to their weights in every batch.
    source: Name | dict[Name, PositiveCoefficient] = "builtin"
    # Side of the square images in pixels; with `native`, that of a square of the largest area.
    size: Side = 64
    # Keep the shape of images: scale each down to the area of `size` squared and crop it to whole tokens.
    native: bool = False
    # With `native`, the most pixels along one side (null: no limit of its own).
    longest: Side | None = None
    # With `native`, the largest ratio of the longer to the shorter side.
    aspect: Aspect = 5.0
    # Of the built-in art, the everyday things or all of them.
    vocabulary: Literal["everyday", "all"] = "all"
    # Of the built-in art, the part to train on.
    split: Literal["train", "held_out", "both"] = "train"
    # Draw every class equally often, whatever its number of examples.
    balanced: bool = False
    # Mirror half of the images left to right.
    mirror: bool = False
    # Number of examples taken of each source, spread evenly over it, for quick trials (null: all).
    limit: Count | None = None
    # Share of the examples that may turn out unreadable before the run stops.
    broken_limit: Share = 0.01

    @model_validator(mode="after")
    def _some_source(self) -> "DataConfig":
        if not self.source:
            raise ValueError("data.source is empty: name a source")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Each source's share of a batch; they sum to 1."""
        weights = {self.source: 1.0} if isinstance(self.source, str) else self.source
        return {spec: weight / sum(weights.values()) for spec, weight in weights.items()}

    def sizing(self, multiple: int) -> int | Limits:
        """What images become, whose sides are to be multiples of that many pixels."""
        return Limits.within(multiple, self.size, self.longest, self.aspect) if self.native else self.size

    def open(self) -> list[Source]:
        """The sources as squares, in the order of `shares`."""
        return [self.open_one(spec, self.size) for spec in self.shares]

    def open_one(self, spec: str, size: int | Limits) -> Source:
        chosen = {"vocabulary": self.vocabulary, "split": self.split}
        source = open_source(spec, size, **(chosen if spec == "builtin" else {}))
        return source if self.limit is None else FewerSource(source, self.limit)


class OptimizerConfig(Section):
    """Linear warm-up, then cosine decay to `final` of the peak learning rate. `name` is one of torch.optim.

    `muon` orthogonalises the updates of the blocks' matrices; AdamW takes all other weights.
    """

    # Optimizer of torch.optim; muon takes the matrices of the blocks and AdamW all other weights.
    name: Literal["adamw", "muon", "adafactor"] = "adamw"
    # Peak learning rate.
    learning_rate: LearningRate = 2e-4
    # Number of steps over which the learning rate rises linearly to its peak.
    warmup: OptionalCount = 100
    # Learning rate at the end of the cosine decay, as a share of the peak (1: constant).
    final: Share = 1.0
    # Decay rates of the two moments of AdamW.
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    # Decoupled weight decay.
    weight_decay: Coefficient = 0.0
    # Largest norm of the gradient of all weights together; a larger one is scaled down to it.
    clip: PositiveCoefficient = 1.0


class CodecModelConfig(Section):
    """Sizes of an AutoencoderDC of convolutions alone, so that it can be tiled exactly."""

    # Number of channels of the latents.
    latent_channels: Width = 32
    # Number of channels of each stage; every stage after the first halves the resolution.
    widths: Annotated[tuple[Width, ...], MinLen(1)] = (32, 32, 64, 128)
    # Number of residual blocks in each stage of the encoder.
    encoder_depths: tuple[Depth, ...] = (0, 1, 1, 1)
    # Number of residual blocks in each stage of the decoder.
    decoder_depths: tuple[Depth, ...] = (0, 1, 2, 2)
    # Range of the noise added to latents in training, relative to their standard deviation, drawn for each image.
    noise: tuple[Coefficient, Coefficient] = (0.03, 0.03)

    @model_validator(mode="after")
    def _alike(self) -> "CodecModelConfig":
        if not len(self.widths) == len(self.encoder_depths) == len(self.decoder_depths):
            raise ValueError("codec.widths, encoder_depths and decoder_depths: expected as many of each")
        return self


class RunConfig(Section):
    """How long, how often, and on what. `batch_size` is that of all processes together, `accumulate` its parts.

    With `data.native` a step has `parts`, of all processes together, of `tokens_per_part` each: images of one shape, or
    packed, of any.
    """

    # Number of optimizer steps of the whole run.
    steps: Count = 1000
    # Number of images in a step, of all processes together.
    batch_size: BatchSize = 64
    # Number of micro-batches that each process divides its images of a step into.
    accumulate: BatchSize = 1
    # With `data.native`, tokens of a part (null: those of `batch_size` squares over `parts`).
    tokens_per_part: Count | None = None
    # With `data.native`, number of parts of a step, of all processes together.
    parts: BatchSize = 1
    # With `data.native`, put images of different shapes into one sequence.
    packed: bool = False
    # Seed of the weights, of the order of the data, and of all noise, times and dropped conditions.
    seed: Seed = 0
    # Device to train on: auto, cpu, cuda, cuda:N or mps.
    device: Name = "auto"
    # Number of CPU threads of PyTorch (null: as PyTorch chooses).
    threads: Threads | None = None
    # Number of steps between two lines of the progress display.
    log_every: Count = 10
    # Number of steps between two checkpoints.
    checkpoint_every: Count = 500
    # Number of steps between two grids of samples (0: none).
    sample_every: OptionalCount = 1000
    # Number of the newest checkpoints that are kept.
    keep: Count = 2
    # Checkpoints at multiples of this step are kept for good (0: none).
    keep_every: OptionalCount = 0
    # Precision of the blocks' computations; auto is bfloat16 where the device has units for it.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # Compile the blocks of the network with torch.compile.
    compile: bool = False
    # With `parallel: hsdp`, number of processes that share one copy of the weights (null: those of one machine).
    shard_size: Count | None = None
    # Experiment trackers that get the figures of metrics.jsonl too.
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    # Peak of one device in 10^12 operations a second, for the logged utilisation (null: known for common GPUs).
    peak_tflops: PositiveCoefficient | None = None
    # Number of steps of which a trace is written into `profile/` (0: none).
    profile: OptionalCount = 0


class GuardConfig(Section):
    """What ends a run, or turns it back, before its weights are lost."""

    # Number of steps in a row with a loss or gradient that is not finite (each is skipped) before the run stops.
    patience: Count = 10
    # A gradient norm of more than this many medians of the last 100 counts as a spike and is reported.
    spike: PositiveCoefficient = 10.0
    # Number of times that a spike takes the run back to the last checkpoint, to go on with other samples.
    rollbacks: OptionalCount = 0


class CodecOptimizerConfig(OptimizerConfig):
    """Of `anystep train-codec`: other defaults."""

    # Peak learning rate.
    learning_rate: LearningRate = 3e-3
    # Learning rate at the end of the cosine decay, as a share of the peak.
    final: Share = 0.01


class CodecRunConfig(RunConfig):
    """Of `anystep train-codec`: other defaults."""

    # Number of images in a step.
    batch_size: BatchSize = 16
    # Not used: training a codec draws no samples.
    sample_every: OptionalCount = 0


class CodecRecipe(Section):
    """`anystep train-codec`."""

    # Images to train on.
    data: DataConfig = DataConfig()
    # Architecture of the autoencoder.
    codec: CodecModelConfig = CodecModelConfig()
    # Optimizer and learning-rate schedule.
    optimizer: CodecOptimizerConfig = CodecOptimizerConfig()
    # Length of the run, batch size, device, checkpoints and log.
    run: CodecRunConfig = CodecRunConfig()
    # Autoencoder to go on from with its encoder frozen, so that its latents stay valid (null: begin anew).
    refine: Name | None = None


class TransportConfig(Section):
    # Path from data to noise, together with what the network predicts.
    name: Literal["ot_fm", "trigflow", "edm", "vp", "ve"] = "ot_fm"
    # Parameters of the transport in place of its defaults, such as sigma_data of edm.
    options: dict[Name, Real] = {}
    # Side in pixels of the square above whose area times are shifted towards noise (null: data.size).
    base_size: Side | None = None

    @model_validator(mode="after")
    def _exists(self) -> "TransportConfig":
        make_transport(self.name, **self.options)
        return self


class TimeConfig(Section):
    """A distribution of training times: `anystep.objective.TimeDistribution`."""

    # Mean of the normal variable that is mapped to a time.
    mean: Annotated[float, Ge(-100), Le(100)] = -0.4
    # Standard deviation of the normal variable that is mapped to a time.
    std: Annotated[float, Gt(0), Le(100)] = 1.2
    # Share of the times that are drawn uniformly instead.
    uniform: Share = 0.0


class GuidanceConditionConfig(Section):
    """Guidance of any scale up to `w_max`, which the network is told: `anystep.objective.GuidanceCondition`."""

    # Largest guidance scale; scales from 1 to this are trained.
    w_max: Annotated[float, Gt(1), Le(100)] = 8.0
    # Closed interval of t in which guidance acts (null: everywhere).
    interval: tuple[Time, Time] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "GuidanceConditionConfig":
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"interval {list(self.interval)}: expected the lower time first")
        return self


class ObjectiveConfig(Section):
    """`kind` sets what is not given here to the values of that objective in `anystep.objective.presets`."""

    # Published objective that sets the defaults of this section.
    kind: ObjectiveKind = "transition"
    # Target of the network where t > r.
    target: Literal["identity", "self_consistency", "implicit", "terminal", "self_evaluation"] = "identity"
    # Estimator of df/dt, for target identity.
    derivative: Literal["central", "forward_mode", "one_sided"] = "central"
    # Trajectory of the derivative: the path of data and noise, or the network's velocity.
    along: Literal["path", "velocity"] = "path"
    # Share of the target F that the network's own velocity replaces.
    velocity_share: Share = 0.0
    # Half the width of the finite difference, or the whole width for target terminal (null: chosen by the method).
    eps: PositiveShare | None = None
    # For target implicit, the ratio of the intermediate step at the start and at the end of the run.
    ratio: tuple[PositiveShare, PositiveShare] = (0.5, 0.005)
    # Take velocities in targets from the first EMA network instead of the trained one.
    ema_teacher: bool = False
    # Share of the samples with t = r.
    diffusion_share: Share = 0.5
    # Share of the samples with r at the data.
    consistency_share: Share = 0.1
    # Distribution of t where t = r (null: the larger of two draws of the transport's own).
    diffusion_times: TimeConfig | None = None
    # Distribution of the first of the two draws of which the larger is t and the smaller r (null: the transport's).
    later_times: TimeConfig | None = None
    # Distribution of the second of those two draws (null: the transport's).
    earlier_times: TimeConfig | None = None
    # Loss weight w(t, r) of the interval.
    weight: Literal["sqrt", "constant", "reciprocal", "square", "soft_min_snr"] = "sqrt"
    # Measure the interval in the tangent of t and r in the loss weight.
    tangent: bool = True
    # Power of its own residual that each sample's loss is divided by (true: 1, false: 0).
    adaptive: Share | bool = 1.0
    # Residuals are divided by their running mean at (t, r) (with adaptive 0), or by a learned uncertainty (below 1).
    normalise: Literal["none", "running_mean", "uncertainty"] = "none"
    # Add the cosine distance of prediction and target to the squared error.
    direction: bool = True
    # Loss weight of the velocity where t > r, for a network with branches.
    velocity_weight: Coefficient = 1.0
    # Share of the run, at its start, in which every sample has t = r.
    diffusion_phase: Share = 0.0
    # Model guidance in the target, from the EMA network: w_gt, w_cond, start and end (null: none).
    guidance: dict[Literal["w_gt", "w_cond", "start", "end"], Real] | None = None
    # Guidance of every scale in one network, which is given the scale (null: none).
    guidance_condition: GuidanceConditionConfig | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> "ObjectiveConfig":
        if self.guidance is not None and self.guidance_condition is not None:
            raise ValueError("guidance and guidance_condition both guide the target: set one of them")
        if self.target == "self_evaluation" and (self.guidance is not None or self.guidance_condition is not None):
            raise ValueError("target self_evaluation compares the condition with none itself: set no guidance")
        if self.normalise == "running_mean" and self.adaptive != 0:
            raise ValueError(
                f"normalise running_mean has log(1 + l / m) in place of an adaptive power: set adaptive 0, not "
                f"{self.adaptive:g}"
            )
        if self.normalise == "uncertainty" and self.adaptive == 1:
            raise ValueError("normalise uncertainty has nothing to learn where adaptive is 1: set it below 1")
        return self

    @field_validator("adaptive", mode="before")
    @classmethod
    def _power(cls, value: Any) -> Any:
        return float(value) if isinstance(value, bool) else value

    @model_validator(mode="wrap")
    @classmethod
    def _fill(cls, given: Any, validate: ModelWrapValidatorHandler["ObjectiveConfig"]) -> "ObjectiveConfig":
        kind = given.get("kind") if isinstance(given, dict) else None
        if not isinstance(kind, str) or kind not in OBJECTIVES:
            return validate(given)
        config = validate({**OBJECTIVES[kind].options, **given})
        # what the kind has set was not given: another kind sets it anew
        object.__setattr__(config, "__pydantic_fields_set__", set(given))
        return config


SET_BY_KINDS = {"kind"}.union(*(preset.options for preset in OBJECTIVES.values()))


class ModelConfig(Section):
    """A preset and what differs from it."""

    # Name of the network's preset in anystep.models.presets.
    preset: Name = "t2i-emoji"
    # Options of the network in place of the preset's.
    options: dict[Name, Any] = {}
    # Model whose transformer the run starts from: builtin, a run, a pipeline folder or a hub id (null: random).
    weights: Name | None = None
    # Autoencoder of the images: builtin, identity, identity-gray, a folder or a hub id.
    codec: Name = "builtin"
    # Text encoder of the captions: builtin, a folder or a hub id.
    text_encoder: Name = "builtin"
    # Compute the blocks again in the backward pass instead of storing their activations.
    gradient_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _known_options(cls, given: Any) -> Any:
        if not (isinstance(given, dict) and isinstance(options := given.get("options"), dict)):
            return given
        from anystep.models.transformer import TransitionTransformer2DModel

        return {**given, "options": check_options("model.options", TransitionTransformer2DModel.__init__, options)}


class AlignmentConfig(Section):
    """Representation alignment: tokens after block `depth` are drawn towards the features of a frozen image encoder."""

    # Frozen image encoder: a vision model of transformers by folder or hub id, or radio:VERSION.
    encoder: Name
    # Weight of the alignment loss.
    coefficient: PositiveCoefficient = 1.0
    # Share of the run after which alignment is switched off.
    until: PositiveShare = 1.0
    # Block after which tokens are compared with the features of the encoder.
    depth: Annotated[Depth, Ge(1)] = 8
    # Width of the projector from tokens to features.
    projector_dim: Width = 2048


class Recipe(Section):
    """`anystep train`."""

    # Images to train on, with captions or classes.
    data: DataConfig = DataConfig()
    # Network, autoencoder and text encoder.
    model: ModelConfig = ModelConfig()
    # Path from data to noise.
    transport: TransportConfig = TransportConfig()
    # What is learned, and how it is weighted.
    objective: ObjectiveConfig = ObjectiveConfig()
    # Optimizer and learning-rate schedule.
    optimizer: OptimizerConfig = OptimizerConfig()
    # Length of the run, batch size, device, checkpoints and log.
    run: RunConfig = RunConfig()
    # What stops a run or takes it back before its weights are lost.
    guard: GuardConfig = GuardConfig()
    # Representation alignment to an image encoder (null: none).
    alignment: AlignmentConfig | None = None
    # How several processes share the work: replicated (ddp), sharded (fsdp), sharded within a machine (hsdp).
    parallel: Parallel = "ddp"
    # Probability that a sample is trained with the empty caption or class, which guidance needs.
    condition_dropout: Share = 0.1
    # Decay of the moving average of the weights; of several, the first samples, guides and is exported.
    ema_decay: Decay | Annotated[tuple[Decay, ...], MinLen(1)] = 0.9995
    # Relative lengths of power-function averages kept in snapshots, from which `anystep average` rebuilds others.
    ema_lengths: tuple[AverageLength, ...] = ()
    # Number of snapshots of the `ema_lengths`, spread evenly over the run.
    ema_snapshots: Annotated[int, Ge(1), Le(1000)] = 32
    # Numbers of sampling steps in the columns of sample grids.
    sample_steps: Annotated[tuple[SamplingSteps, ...], MinLen(1)] = (1, 2, 4, 8)
    # Captions, or classes by name or index, in the rows of sample grids (none: the first of the data).
    sample_prompts: tuple[Text, ...] = ()
    # Guidance scale of sample grids, and default of the exported pipeline.
    guidance: Guidance = 1.5

    @field_validator("ema_lengths")
    @classmethod
    def _lengths_differ(cls, lengths: tuple[float, ...]) -> tuple[float, ...]:
        if len({round(length, 4) for length in lengths}) < len(lengths):
            raise ValueError("expected lengths that differ by 0.0001 and more")
        return lengths

    @model_validator(mode="after")
    def _native_goes_together(self) -> "Recipe":
        if not self.data.native and (self.run.packed or self.run.parts > 1 or self.run.tokens_per_part is not None):
            raise ValueError("run.parts, tokens_per_part and packed are for data.native")
        if self.data.native and self.run.accumulate > 1:
            raise ValueError("run.accumulate is for squares: data.native has run.parts")
        if self.data.native and self.data.balanced:
            raise ValueError("data.balanced is for squares: data.native sees shapes in proportion to their tokens")
        return self

    @model_validator(mode="after")
    def _guidance_goes_together(self) -> "Recipe":
        conditioned, told = self.objective.guidance_condition is not None, self.model.options.get("guidance_embed")
        if conditioned and not told:
            raise ValueError(
                "objective.guidance_condition needs a network that is told it: model.options.guidance_embed"
            )
        if told and not conditioned:
            raise ValueError("model.options.guidance_embed is learned by objective.guidance_condition, which is null")
        asks_null = "guidance_condition" if conditioned else "target self_evaluation"
        empty = self.condition_dropout and self.model.options.get("class_dropout_prob", 1)
        if (conditioned or self.objective.target == "self_evaluation") and not empty:
            raise ValueError(f"objective.{asks_null} needs the empty condition: set condition_dropout above 0")
        return self

    @property
    def ema_decays(self) -> tuple[float, ...]:
        return self.ema_decay if isinstance(self.ema_decay, tuple) else (self.ema_decay,)


R = TypeVar("R", bound=Section)


def load_recipe(path: str | Path, kind: type[R], overrides: Sequence[str] = (), debug: bool = False) -> R:
    """A checked recipe from a YAML file, its `debug` section if asked for, and `--section.key value` overrides.

    Raises:
        InputError: in one line: a missing file, a key that does not exist (with the nearest that does), a wrong type.
    """
    content = _with_base(Path(path))
    laptop = content.pop("debug", None)
    if debug:
        if not isinstance(laptop, dict):
            raise InputError(f"recipe {str(path)!r} has no debug section")
        content = merged(content, laptop)
    for key, value in _pairs(overrides):
        content = merged(content, set_path(key, value))
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"recipe {shown(str(path))}: {explain(kind, error)}") from None


def _with_base(path: Path, *above: Path) -> dict[str, Any]:
    """The content of a recipe file, over that of the recipe that its `base` names, if it has one.

    Args:
        above: the files that led here.
    """
    content = read_yaml(path)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise InputError(f"{shown(str(path))}: base {shown(base)}: expected a recipe's name or the path of a file")
    beside = (path.parent / base, path.parent / f"{base}.yaml")
    found = next((file for file in beside if file.is_file()), None) or find_recipe(base)
    if found.resolve() in {each.resolve() for each in (path, *above)}:
        raise InputError(f"{shown(str(path))}: base {shown(base)} leads back to itself: a base must come to an end")
    return merged(_with_base(found, path, *above), content)


def _pairs(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if len(words) % 2 or any(not word.startswith("--") for word in words[::2]):
        raise InputError(f"expected --section.key value pairs, got {shown(' '.join(overrides), 160)}")
    pairs = zip(words[::2], words[1::2], strict=True)
    return [(key[2:].replace("-", "_"), parse_yaml(value, shown(f"{key} {value}", 160))) for key, value in pairs]


def set_path(key: str, value: Any) -> dict[str, Any]:
    """`a.b.c` and a value as nested sections."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `over`, section by section; another kind of objective sets its own values."""
    both = dict(base)
    kind = base.get("kind")
    if base.keys() >= SET_BY_KINDS and kind in list(OBJECTIVES) and over.get("kind", kind) != kind:
        # a section that says every value was dumped, not written: those that its kind has set go with the kind
        filled = ObjectiveConfig.model_validate({"kind": kind}).model_dump(mode="json")
        both = {key: value for key, value in base.items() if key not in SET_BY_KINDS or value != filled[key]}
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both


def explain(kind: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with a recipe, as a line: field, value, and what was expected, once a field."""
    told: dict[str, str] = {}
    for each in error.errors():
        where, annotation, known = _place(kind, each["loc"])
        message = each["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        if each["type"] == "extra_forbidden":
            told[where] = f"unknown key {cut(where)}{nearest(str(each['loc'][-1]), known)}"
        elif each["type"] == "value_error" and isinstance(each["input"], dict | BaseModel):
            told[where] = f"{cut(where)}: {message}" if where and where not in message else message
        else:
            if expected := [expectation(kind) for kind in _bounded(annotation)]:
                message = f"expected {' or '.join(expected)}"
            got = "" if message.startswith(shown(each["input"])) else f", got {shown(each['input'])}"
            told.setdefault(where, f"{cut(where)}: {message[:1].lower()}{message[1:]}{got}")
    lines = list(told.values())
    return "; ".join(lines[:2]) + (f"; and {len(lines) - 2} more" if len(lines) > 2 else "")


def _place(kind: type[BaseModel], path: Sequence[str | int]) -> tuple[str, Any, list[str]]:
    """Of the place of an error: its name in the recipe, the annotation there, and the keys that are known beside it."""
    names: list[str] = []
    annotation: Any = kind
    known: list[str] = []
    parts = list(path)
    while parts:
        kinds = _kinds(annotation)
        if len(kinds) > 1:  # pydantic names the alternative that it tried
            tag = str(parts.pop(0))
            origin = {"tuple": tuple, "dict": dict}.get(tag.split("[")[0])
            if origin is None or not parts:
                break
            annotation = next((each for each in kinds if get_origin(each) is origin), None)
            continue
        (single,) = kinds
        part = parts.pop(0)
        names.append(str(part))
        if isinstance(single, type) and issubclass(single, BaseModel):
            known = list(single.model_fields)
            annotation = _whole(single.model_fields[part]) if part in single.model_fields else None
        elif get_origin(single) is tuple:
            inner = get_args(single)
            annotation = inner[0] if inner[-1] is ... or not isinstance(part, int) else inner[min(part, len(inner) - 1)]
        elif get_origin(single) is dict:
            annotation = None if parts[:1] == ["[key]"] else get_args(single)[1]
        else:
            annotation = None
    return ".".join(names), annotation, known


def _whole(field: FieldInfo) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _bounded(annotation: Any) -> list[Any]:
    """The kinds of numbers among what an annotation allows."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) for kind in _bounded(each)]
    return [annotation] if get_origin(annotation) is Annotated and get_args(annotation)[0] in (int, float) else []


def dump(recipe: Section) -> str:
    """The recipe as YAML that `load_recipe` reads back."""
    return dump_yaml(recipe.model_dump(mode="json"))
