"""What a run will take, before it takes it: operations, memory, disk and days. Refuses what cannot fit."""

import shutil
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import torch

from anystep.codecs import load_codec
from anystep.data_sheets import DeviceKind
from anystep.device import memory_of
from anystep.errors import InputError
from anystep.models.cost import count_parameters, network_cost
from anystep.models.presets import depths_of, preset_option
from anystep.objective import GuidanceCondition, TimeDraws, target_cost
from anystep.training import adapt
from anystep.training.adapter import count_adapter
from anystep.training.config import ModelConfig, Recipe, RunConfig
from anystep.training.objective import make_objective, make_target, make_velocity
from anystep.training.objective_config import ObjectiveConfig
from anystep.training.snapshots import KEPT_AS

# a backward pass is counted as two forward ones
TRAINING_COST = 3
CAPTION_TOKENS = 256  # of the longest caption
PER_MACHINE = 8  # devices of a machine, where nobody says
LINK_EFFICIENCY = 0.7  # of a link's data sheet, by large messages
HOP_INSIDE, HOP_BETWEEN = 2e-6, 5e-6  # seconds from one device to the next
BUCKET = 25 * 2**20  # bytes of gradients that go together
WORTH_A_LOOK = 0.05  # of the memory: runs whose weights and moments take less are not planned before they start


def evaluations_per_sample(config: ObjectiveConfig, model: ModelConfig | None = None, guided: float = 1.0) -> float:
    """What a sample costs in a training step, on average over the run.

    Args:
        model: where it may have branches.
        guided: the share of samples whose target is guided, where any is.
    """
    velocity = None if model is None else make_velocity(config, model)
    branch = 0 if velocity is None else TRAINING_COST * velocity.cost  # the velocity's, forward and backward
    moving = (1 - config.diffusion_phase) * (1 - config.diffusion_share)
    target = target_cost(make_target(config), velocity, config.ema_teacher)
    return TRAINING_COST + moving * (target + branch) + 2 * guided * config.is_guided


def recipe_evaluations(recipe: Recipe) -> float:
    """`evaluations_per_sample` of a recipe, which says how many samples keep their condition and at which times."""
    objective, phase = make_objective(recipe), recipe.objective.diffusion_phase
    if not isinstance(objective.guidance, GuidanceCondition):
        return evaluations_per_sample(recipe.objective, recipe.model)
    guided = 0.0
    for share, draws in ((phase, TimeDraws(1.0, 0.0, objective.draws.diffusion)), (1 - phase, objective.draws)):
        t, _ = replace(objective, draws=draws).draw_times(10_000, torch.Generator().manual_seed(0))
        guided += share * objective.guidance.needs_evaluation(t, torch.full_like(t, 2.0)).double().mean().item()
    return evaluations_per_sample(recipe.objective, recipe.model, guided * (1 - recipe.condition_dropout))


@dataclass(frozen=True)
class Budget:
    """What one run takes.

    Attributes:
        parameters: number of weights of the network.
        tokens_per_image: number of positions of the transformer.
        images_at_once: number of images in a micro-batch; native ones are counted as squares of the largest area.
        tokens_per_step: number of tokens in a step of all devices.
        flops_per_step: operations of a step of all devices together, on average over the run.
        state_bytes: weights, gradients, moments and averages on one device.
        activation_bytes: the peak of a step in addition to them.
        checkpoint_bytes: size of one checkpoint.
        snapshot_bytes: size of one snapshot of averages, in half precision.
    """

    parameters: int
    tokens_per_image: int
    images_at_once: int
    tokens_per_step: int
    flops_per_step: float
    state_bytes: int
    activation_bytes: int
    checkpoint_bytes: int
    snapshot_bytes: int

    @property
    def device_bytes(self) -> int:
        return self.state_bytes + self.activation_bytes

    @property
    def images_per_step(self) -> float:
        return self.tokens_per_step / self.tokens_per_image


def latent_side(size: int, model: ModelConfig) -> int:
    """Side of the latents of square images of `size` pixels; that of the preset if the codec is not on this machine."""
    try:
        return size // load_codec(model.codec).factor
    except InputError:
        return preset_option(model.preset, model.options, "sample_size")


def tokens_of_step(run: RunConfig, native: bool, processes: int, tokens: int) -> tuple[int, int]:
    """Tokens of a micro-batch, and those of a whole step, of squares of so many tokens each."""
    if not native:
        return tokens * max(1, run.batch_size // (processes * run.accumulate)), tokens * run.batch_size
    micro_batch = run.tokens_per_micro_batch or tokens * max(1, run.batch_size // run.micro_batches)
    return micro_batch, micro_batch * run.micro_batches


def weight_copies(recipe: Recipe) -> int:
    """Number of values kept for each weight: itself, its gradient, two moments, and its averages."""
    return 4 + len(recipe.ema_decays) + len(recipe.ema_lengths)


def count_weights(recipe: Recipe) -> tuple[int, int]:
    """Numbers of weights that stay as they are, and that are trained.

    Raises:
        InputError: an unknown preset or option.
    """
    if recipe.adapt is not None:
        return adapt.count_weights(recipe)
    parameters = count_parameters(recipe.model.preset, **recipe.model.options)
    return (0, parameters) if recipe.lora is None else (parameters, count_adapter(recipe))


def kept_values(recipe: Recipe, frozen: int, trained: int) -> int:
    """Number of values of 32 bits kept in memory."""
    half = recipe.adapt is not None and recipe.adapt.storage == "bfloat16"
    return frozen // (1 + half) + trained * weight_copies(recipe)


def saved_values(recipe: Recipe, trained: int) -> int:
    """Number of values in a checkpoint."""
    return trained * (weight_copies(recipe) - 1)


def shard_count(recipe: Recipe, processes: int) -> int:
    """Number of devices over which one copy of the weights is sharded."""
    spread = {"fsdp": processes, "hsdp": recipe.run.shard_size or min(PER_MACHINE, processes)}
    return spread.get(recipe.parallel, 1)


def budget(
    recipe: Recipe, processes: int = 1, precision: torch.dtype = torch.float32, caption_tokens: int = CAPTION_TOKENS
) -> Budget:
    """What the recipe takes on so many devices.

    Raises:
        InputError: an unknown preset or option.
    """
    options = dict(recipe.model.options)
    side = latent_side(recipe.data.size, recipe.model)
    tokens = (side // preset_option(recipe.model.preset, options, "patch_size")) ** 2
    at_once, of_step = tokens_of_step(recipe.run, recipe.data.native, processes, tokens)
    micro = -(-at_once // tokens)
    try:
        cost = network_cost(
            recipe.model.preset, micro, side, side, caption_tokens, precision, recipe.model.gradient_checkpointing,
            **options,
        )  # fmt: skip
        # the derivative evaluates both sides of every sample that moves, at worst all, while the forward's graph waits
        target = 0
        if recipe.objective.diffusion_share < 1:
            both = network_cost(recipe.model.preset, 2 * micro, side, side, caption_tokens, precision, **options)
            target = both.forward_bytes
    except ValueError as error:
        raise InputError(f"model: {error}") from None
    shards, counts = shard_count(recipe, processes), count_weights(recipe)
    # a block, the one after it that is gathered meanwhile, and the gradients of one
    blocks = sum(depths_of(recipe.model.preset, options))
    gathered = 3 * 4 * cost.parameters // blocks if shards > 1 else 0
    evaluations = recipe_evaluations(recipe) + recipe.model.gradient_checkpointing
    return Budget(
        parameters=cost.parameters,
        tokens_per_image=tokens,
        images_at_once=micro,
        tokens_per_step=of_step,
        flops_per_step=cost.flops / micro * of_step / tokens * evaluations,
        state_bytes=4 * kept_values(recipe, *counts) // shards + gathered,
        activation_bytes=max(cost.training_bytes, cost.saved_bytes + target),
        checkpoint_bytes=4 * saved_values(recipe, counts[1]),
        snapshot_bytes=KEPT_AS.itemsize * cost.parameters * len(recipe.ema_lengths),
    )


@dataclass(frozen=True)
class Communication:
    """What one device sends in a step, in rings over all devices that share something.

    Attributes:
        inside: bytes to the next device of its machine.
        between: bytes to another machine, through the adapter of this device.
        hops_inside, hops_between: messages that wait for one another.
    """

    inside: float = 0.0
    between: float = 0.0
    hops_inside: int = 0
    hops_between: int = 0

    def __add__(self, other: "Communication") -> "Communication":
        return Communication(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def seconds(self, kind: DeviceKind, efficiency: float = LINK_EFFICIENCY) -> float:
        """Seconds that it takes where nothing else is sent.

        Args:
            efficiency: share of the rate in their data sheet that links reach.

        Raises:
            InputError: a kind whose machines are not connected.
        """
        if self.between and kind.network is None:
            raise InputError("the network between machines of these devices is not known: plan with one machine")
        longest = max(self.inside / kind.link, self.between / (kind.network or 1.0)) / efficiency
        return longest + HOP_INSIDE * self.hops_inside + HOP_BETWEEN * self.hops_between


def all_gather(size: float, devices: int, machines: int, messages: int) -> Communication:
    """Every one of `devices` gets all `size` bytes, of which each has its part; or adds them up and keeps its part.

    A ring passes through every device of a machine before it leaves it, and there are as many rings as adapters.
    """
    each = devices // machines
    return Communication(
        inside=size * (devices - 1) / devices if each > 1 else 0.0,
        between=size * (machines - 1) / machines / each,
        hops_inside=messages * (devices - machines),
        hops_between=messages * (machines - 1),
    )


def communication(recipe: Recipe, processes: int, per_machine: int = PER_MACHINE) -> Communication:
    """Of a training step: gradients of 32 bits are added up, and where weights are sharded they are gathered again for
    every forward and for the backward pass.
    """
    if processes == 1:
        return Communication()
    size = 4.0 * count_parameters(recipe.model.preset, **recipe.model.options)
    machines = -(-processes // per_machine)
    if recipe.parallel not in ("fsdp", "hsdp"):
        buckets = ceil(size / BUCKET)
        once = all_gather(size, processes, machines, 1)
        # scattered and gathered; buckets follow each other through the ring without waiting
        return once + once + Communication(hops_between=buckets)
    depth = sum(depths_of(recipe.model.preset, recipe.model.options))  # all are gathered in every forward
    shared = shard_count(recipe, processes)
    one = all_gather(size, shared, max(1, shared // per_machine), depth)
    forwards = 1 + (recipe.objective.diffusion_share < 1) + 2 * recipe.objective.is_guided
    rounds = max(1, recipe.run.micro_batches // processes) if recipe.data.native else recipe.run.accumulate
    gathered = rounds * (forwards + 1)  # once more for the backward pass
    total = sum([one] * gathered, start=one)  # and the gradients, of which each device keeps its part
    if (copies := processes // shared) > 1:
        part = all_gather(size / shared, copies, min(copies, machines), depth)
        total = total + part + part
    return total


def check_fits(recipe: Recipe, out: Path, processes: int, device: torch.device, precision: torch.dtype) -> None:
    """Before anything is loaded.

    Raises:
        InputError: more memory or disk than there is; says how much, and what would fit.
    """
    counts = count_weights(recipe)
    state, saved, parameters = 4 * kept_values(recipe, *counts), 4 * saved_values(recipe, counts[1]), sum(counts)
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    snapshots = recipe.ema_snapshots if recipe.ema_lengths else 0
    kept = snapshots * KEPT_AS.itemsize * parameters * len(recipe.ema_lengths)
    disk, free = saved * (recipe.run.keep + 1) + kept, shutil.disk_usage(place).free
    if disk > free:
        beside, or_fewer = (f" and {snapshots} snapshots", " or ema_snapshots") if kept else ("", "")
        raise InputError(
            f"{recipe.run.keep + 1} checkpoints{beside} take up to {disk / 1e9:.3g} GB, {place} has "
            f"{free / 1e9:.3g} GB left: make room, lower run.keep{or_fewer}, or choose another --out"
        )
    memory = memory_of(device)
    if recipe.adapt is not None:
        if (state := state // shard_count(recipe, processes)) > memory:
            raise InputError(
                f"weights, gradients, moments and averages take {state / 1e9:.1f} GB on each device, there are "
                f"{memory / 1e9:.1f} GB: set lora, adapt.storage bfloat16, or parallel fsdp on more devices"
            )
    elif state >= WORTH_A_LOOK * memory:
        check_memory(recipe, processes, memory, precision)


def check_memory(recipe: Recipe, processes: int, memory: float, precision: torch.dtype) -> Budget:
    """The budget of a recipe, if it fits into the memory of a device.

    Raises:
        InputError: it does not; names the largest batch that would.
    """
    found = budget(recipe, processes, precision)
    if found.device_bytes > memory:
        fitting = int((memory - found.state_bytes) / (found.activation_bytes / found.images_at_once))
        tokens = fitting * found.tokens_per_image
        more = f"lower run.tokens_per_micro_batch to {tokens}" if recipe.data.native else "raise run.accumulate"
        hint = (
            f"{fitting} image{'s' * (fitting > 1)} at a time would fit: {more}"
            if fitting >= 1
            else "the weights and what is kept for each do not fit: parallel fsdp on more devices, or a smaller preset"
        )
        raise InputError(
            f"a step takes {found.device_bytes / 1e9:.1f} GB on each device ({found.state_bytes / 1e9:.1f} GB for "
            f"weights, gradients, moments and averages), there are {memory / 1e9:.1f} GB; {hint}"
        )
    return found
