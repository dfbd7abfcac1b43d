"""The sections of a recipe: what they hold, what its default is, and what goes together.

The sentence above a field is what `anystep train RECIPE --help` says of it.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import field_validator, model_validator

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
    Width,
    check_options,
)
from anystep.data.example import Source
from anystep.data.sizing import ResolutionLimits
from anystep.data.sources import SubsetSource, open_source
from anystep.training.adapter_config import AdaptConfig, LoraConfig, check_adapt
from anystep.training.objective_config import ObjectiveConfig, check_guidance
from anystep.training.old_names import current_recipe
from anystep.training.section import Name, Section, Text
from anystep.transport import TransportName, make_transport

Parallel = Literal["none", "ddp", "fsdp", "hsdp"]


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

    def sizing(self, multiple: int) -> int | ResolutionLimits:
        """What images become, whose sides are to be multiples of that many pixels."""
        return ResolutionLimits.within(multiple, self.size, self.longest, self.aspect) if self.native else self.size

    def open(self) -> list[Source]:
        """The sources as squares, in the order of `shares`."""
        return [self.open_one(spec, self.size) for spec in self.shares]

    def open_one(self, spec: str, size: int | ResolutionLimits) -> Source:
        chosen = {"vocabulary": self.vocabulary, "split": self.split}
        source = open_source(spec, size, **(chosen if spec == "builtin" else {}))
        return source if self.limit is None else SubsetSource(source, self.limit)


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


class RunConfig(Section):
    """Length, batches, device, checkpoints and log of a run.

    With `data.native` a step has `micro_batches` of at most `tokens_per_micro_batch` each: images of one shape or,
    `packed`, of any.
    """

    # Number of optimizer steps of the whole run.
    steps: Count = 1000
    # Number of images in a step, of all processes together.
    batch_size: BatchSize = 64
    # Number of micro-batches that each process divides its images of a step into.
    accumulate: BatchSize = 1
    # With `data.native`, most tokens of a micro-batch (null: those of `batch_size` squares over `micro_batches`).
    tokens_per_micro_batch: Count | None = None
    # With `data.native`, number of micro-batches of a step, of all processes together.
    micro_batches: BatchSize = 1
    # With `data.native`, put images of different shapes into one sequence.
    packed: bool = False
    # Seed of the weights, of the order of the data, and of all noise, times and dropped conditions.
    seed: Seed = 0
    # Device to train on: auto, cpu, cuda, cuda:N or mps.
    device: Name = "auto"
    # Number of CPU threads of PyTorch (null: as PyTorch chooses).
    threads: Threads | None = None
    # Number of steps between two lines of progress, with which the figures of all steps since are written to the log.
    log_every: Count = 10
    # Number of steps between two checkpoints.
    checkpoint_every: Count = 500
    # Number of steps between two grids of samples (0: none).
    sample_every: OptionalCount = 1000
    # Number of the newest checkpoints that are kept.
    keep: Count = 2
    # Checkpoints at multiples of this step, or at each of several, are made and kept for good (0: none).
    keep_every: OptionalCount | tuple[Count, ...] = 0
    # Precision of the blocks' computations; auto is bfloat16 on GPUs with units for it, else float32; on a CPU that has
    # them, ask for bfloat16.
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

    @model_validator(mode="before")
    @classmethod
    def _current_names(cls, given: Any) -> Any:
        return current_recipe({"run": given})["run"]


class GuardConfig(Section):
    """What ends a run, or turns it back, before its weights are lost."""

    # Number of steps in a row with a loss or gradient that is not finite (each is skipped) before the run stops.
    patience: Count = 10
    # A gradient norm of more than this many medians of the last 100 counts as a spike and is reported.
    spike: PositiveCoefficient = 10.0
    # Number of times that a spike takes the run back to the last checkpoint, to go on with other samples.
    rollbacks: OptionalCount = 0


class TransportConfig(Section):
    # Path from data to noise, together with what the network predicts.
    name: TransportName = "ot_fm"
    # Parameters of the transport in place of its defaults, such as sigma_data of edm.
    options: dict[Name, Real] = {}
    # Side in pixels of the square above whose area times are shifted towards noise (null: data.size).
    base_size: Side | None = None

    @model_validator(mode="after")
    def _exists(self) -> "TransportConfig":
        make_transport(self.name, **self.options)
        return self


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
    # Train a low-rank adapter of `model.weights` alone (null: the whole network).
    lora: LoraConfig | None = None
    # Make a flow-matching pipeline of diffusers, `model.weights`, draw in any number of steps (null: no).
    adapt: AdaptConfig | None = None
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
    # Probability that a sample is trained with the empty caption or class, which guidance above 1 and in targets needs.
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
        run = self.run
        most = self.data.longest, run.tokens_per_micro_batch
        if not self.data.native and (run.packed or run.micro_batches > 1 or most != (None, None)):
            raise ValueError("run.micro_batches, tokens_per_micro_batch, packed, data.longest are for data.native")
        if self.data.native and run.accumulate > 1:
            raise ValueError("run.accumulate is for squares: data.native has run.micro_batches")
        if self.data.native and self.data.balanced:
            raise ValueError("data.balanced is for squares: data.native sees shapes in proportion to their tokens")
        return self

    @model_validator(mode="after")
    def _adapters_go_together(self) -> "Recipe":
        if self.adapt is not None and self.model.weights is None:
            raise ValueError("adapt needs model.weights: the folder or hub id of a pipeline of diffusers")
        check_adapt(self)
        if self.lora is None:
            return self
        if self.model.weights is None:
            raise ValueError("lora needs model.weights: the model that the adapter is for, such as builtin")
        for name in ("alignment", "ema_lengths"):
            if getattr(self, name):
                raise ValueError(f"{name} is for whole networks: leave it out, or lora")
        return self

    @model_validator(mode="after")
    def _optimizer_goes_together(self) -> "Recipe":
        if self.optimizer.name == "adafactor" and self.parallel in ("fsdp", "hsdp"):
            raise ValueError(
                f"optimizer.name adafactor: PyTorch's cannot update weights that parallel {self.parallel} shards; use "
                "ddp, or adamw"
            )
        return self

    @model_validator(mode="after")
    def _guidance_goes_together(self) -> "Recipe":
        check_guidance(self)
        return self

    @property
    def ema_decays(self) -> tuple[float, ...]:
        return self.ema_decay if isinstance(self.ema_decay, tuple) else (self.ema_decay,)
