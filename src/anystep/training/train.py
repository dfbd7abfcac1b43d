"""Training a transition model: one script that reads from top to bottom.

Every draw of a step comes from a generator keyed by (seed, step), so a resumed run continues exactly.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anystep.conditioning import Conditioner, LabelEncoder
from anystep.conditioning.text import pad_states
from anystep.console import say
from anystep.contact_sheet import save_image
from anystep.data.latents import Encoded, LatentSet
from anystep.data_sheets import device_kind
from anystep.environment import peak_megabytes
from anystep.errors import InputError
from anystep.models.cost import ForwardFlops
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.objective import (
    GuidanceCondition,
    LossRecord,
    SelfEvaluation,
    TrainingBatch,
    TransitionObjective,
    derivative,
    residual_by_bin,
)
from anystep.ranks import Ranks
from anystep.sampling import resolution_shift
from anystep.training.assemble import (
    as_pipeline,
    export,
    prepare_data,
    prepare_network,
    reads_captions,
    sample_grid,
    sample_prompts,
)
from anystep.training.batch_samplers import (
    BatchSampler,
    FixedShapeBatchSampler,
    TokenBudgetBatchSampler,
    class_members,
    count_micro_batches,
)
from anystep.training.checkpoints import Checkpoints
from anystep.training.config import Recipe, RunConfig
from anystep.training.draws import Draws
from anystep.training.guard import LOST, Guard, diverged, listed
from anystep.training.loader import PrefetchingLoader
from anystep.training.objective import make_objective
from anystep.training.optimizers import make_adam, make_optimizers
from anystep.training.parallel import (
    all_finite,
    all_zero,
    average,
    average_gradients,
    check_parallel,
    gathered,
    mesh,
    shard,
    sync_gradients,
    whole,
    wrap,
)
from anystep.training.plan import check_fits
from anystep.training.run import (
    Progress,
    Run,
    interruptible,
    learning_rate,
    prepare,
    schedule_changes,
)
from anystep.training.snapshots import PowerAverages
from anystep.training.trainer_state import COUNTS, TrainingTensors
from anystep.transport import Transport


def choose_captions(examples: Sequence[Encoded], dropout: float, draws: Draws) -> list[int | None]:
    """For each sample which of its captions it is given, or None for the empty one, with probability `dropout`.

    Chosen once a step, so that every evaluation of the step sees the same. Classes are dropped alike.
    """
    dropped = (draws.drop < dropout).tolist()
    return [
        None if drop else int(share * max(1, len(example.captions)))
        for example, share, drop in zip(examples, draws.choice.tolist(), dropped, strict=True)
    ]


def encode_conditions(
    conditioner: Conditioner, examples: Sequence[Encoded], chosen: Sequence[int | None]
) -> tuple[Tensor, Tensor | None]:
    """Labels pass as they are, the null label included; captions are read from the data, or encoded."""
    pairs = list(zip(examples, chosen, strict=True))
    if isinstance(conditioner, LabelEncoder):
        null = len(conditioner.class_names)
        return torch.tensor([null if choice is None else example.label for example, choice in pairs]), None
    if any(example.text is None for example in examples):
        return conditioner(["" if choice is None else example.captions[choice] for example, choice in pairs])
    nothing = conditioner.null(1)[0][0]
    rows = [nothing if choice is None else (example.text or ())[choice] for example, choice in pairs]
    return pad_states(rows)


def interval_residuals(residual: Tensor, t: Tensor, r: Tensor) -> dict[str, float]:
    """Mean unweighted residual at t = r, and over the shorter and the longer half of the intervals."""
    interval = t - r
    middle = interval[interval > 0].median() if (interval > 0).any() else torch.tensor(0.0)
    groups = {
        "residual_diffusion": interval == 0,
        "residual_short": (interval > 0) & (interval <= middle),
        "residual_long": interval > middle,
    }
    return {name: residual[rows].nanmean().item() for name, rows in groups.items() if rows.any()}


def residual_bins(transport: Transport, t: Tensor, r: Tensor, residual: Tensor) -> dict[str, list[list[Any]]]:
    """Mean unweighted residual on a grid over (t, r), null where there was none, and how many samples each has."""
    sums, counts = residual_by_bin(transport, t, r, residual)
    means = [
        [total / count if count else None for total, count in zip(*pair, strict=True)]
        for pair in zip(sums.tolist(), counts.tolist(), strict=True)
    ]
    return {"residual_bins": means, "bin_counts": counts.tolist()}


def peak_flops(config: RunConfig, device: torch.device) -> float | None:
    """Operations a second of one device, if they are known."""
    if config.peak_tflops is not None:
        return 1e12 * config.peak_tflops
    kind = device_kind(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if kind is None else kind.flops


def utilisation(
    flops: int | float, evaluations: int | float, batch_size: int | float, seconds: float, peak: float
) -> float:
    """Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B): what the mathematics needs against the peak.

    Args:
        flops: of one evaluation of the network.
        evaluations: forwards of the step, with and without gradient.
        batch_size: backward passes, each of which counts as two forwards.
        peak: operations a second of all devices together.
    """
    return flops * (evaluations + 2 * batch_size) / seconds / peak


def parts_of(recipe: Recipe, processes: int) -> int:
    """How many parts a step has, of all processes together; raises InputError where these cannot share them."""
    config = recipe.run
    if not recipe.data.native:
        return count_micro_batches(config.batch_size, config.accumulate, processes)
    if config.micro_batches % processes:
        over = -(-config.micro_batches // processes) * processes
        raise InputError(
            f"run.micro_batches {config.micro_batches}: {processes} processes need a multiple, such as {over}"
        )
    return config.micro_batches


def make_batches(recipe: Recipe, data: LatentSet, parts: int, patch: int) -> BatchSampler:
    """Which examples each step sees."""
    config, shares = recipe.run, list(recipe.data.shares.values())
    if not recipe.data.native:
        members = [class_members(labels) for labels in data.labels] if recipe.data.balanced else None
        return FixedShapeBatchSampler(data.sizes, shares, config.batch_size, parts, config.seed, members)
    # at least the tokens of so many squares of data.size
    squares = max(1, config.batch_size // parts) * math.prod(data.shape[1:]) // patch**2
    room = config.tokens_per_micro_batch or squares
    return TokenBudgetBatchSampler(data.grids, shares, room, patch, parts, config.seed, config.packed)


def start_transitions(networks: Sequence[TransitionTransformer2DModel], ranks: Ranks) -> None:
    """Of networks with branches, that of transitions begins as a copy of what the velocity's has become.

    Only where it has learned nothing yet: then its interval is zero still.
    """
    for network in networks:
        embedding = network.interval_embed
        if network.transition_branch is not None and embedding is not None and all_zero(embedding.linear_2, ranks):
            network.start_transition_branch()


def train(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Train or resume in the run folder `out`; `out/pipeline` holds the EMA model. Returns the last log record."""
    ranks, config = Ranks(), recipe.run
    part_total = parts_of(recipe, ranks.count)
    check_parallel(recipe.parallel, ranks, config.shard_size)
    objective, device = make_objective(recipe), prepare(config)
    precision = pick_precision(config.precision, device)
    reads_captions(recipe)  # an unknown preset is said before anything is loaded
    check_fits(recipe, out, ranks.count, device, precision)
    with Run(out, recipe, ranks) as run:
        return _train(run, objective, device, precision, part_total)


def _train(
    run: Run, objective: TransitionObjective, device: torch.device, precision: torch.dtype, part_total: int
) -> dict[str, Any]:
    recipe, out, ranks = run.recipe, run.folder, run.ranks
    assert isinstance(recipe, Recipe)
    config = recipe.run
    codec, data, conditioner = prepare_data(recipe, out, device, ranks)
    if len(data) < config.batch_size and not recipe.data.native:
        raise InputError(f"{len(data)} samples are fewer than one batch of {config.batch_size}: lower run.batch_size")

    network = prepare_network(recipe, codec, data, conditioner).to(device)
    kept = (*recipe.ema_decays, *recipe.ema_lengths)
    averages = [copy.deepcopy(network).eval().requires_grad_(False) for _ in kept]
    if recipe.model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if config.compile:
        network.compile_repeated_blocks()
    over = mesh(recipe.parallel, ranks, device, config.shard_size)
    for each in (network, *averages):
        shard(each, over, trained=each is network)
    objective = replace(objective, synchronised_forwards=over is not None)
    aligned_until = 0.0 if recipe.alignment is None else recipe.alignment.until
    wrapped = wrap(network, ranks, find_unused=0 < aligned_until < 1)
    optimizers = make_optimizers(network, recipe.optimizer, device)
    normaliser = objective.weighting.normaliser
    beside = [] if normaliser is None else make_adam(normaliser.to(device), recipe.optimizer)
    state = TrainingTensors(network, averages, optimizers, normaliser, beside)
    optimizers = [*optimizers, *beside]
    saved = recipe.model_dump(mode="json")
    checkpoints = Checkpoints(out / "checkpoints", ranks, config.keep, config.keep_every, saved)
    facts: dict[str, Any] = {**dict.fromkeys(COUNTS, 0), "diverged": False}
    facts = {name: value for name, value in {**facts, **(checkpoints.load(state) or {})}.items() if name in facts}
    weights = list(network.parameters())  # those of a network are walked through once: it takes as long as to average
    exponential = [list(each.parameters()) for each in averages[: len(recipe.ema_decays)]]
    powers = PowerAverages(out, recipe, averages[len(recipe.ema_decays) :], ranks)
    run.cut_log(facts["step"])
    powers.cut(facts["step"])
    if ranks.is_main and (changes := schedule_changes(run.before, recipe, facts["step"])):
        say(changes, error=True)
    guard = Guard(recipe.guard, facts["skipped"], facts["spikes"], facts["skipped_in_a_row"])
    pipeline = as_pipeline(recipe, averages[0], codec, data)
    if config.sample_every:  # what cannot be drawn is said before the first step
        sample_prompts(recipe, pipeline, conditioner, data)
    null, _ = conditioner.null(1)
    patch = int(network.config.patch_size)
    batches = make_batches(recipe, data, part_total, patch)
    base = (recipe.transport.base_size or recipe.data.size) / codec.factor  # in latent pixels

    step: int = facts["step"]
    record: dict[str, Any] = {"step": step}
    probe = derivative(recipe.objective.derivative, recipe.objective.eps, widened=2.0)
    peak = peak_flops(config, device)
    forward_flops = ForwardFlops.of(recipe.model.preset, **recipe.model.options) if peak else None
    rate = learning_rate(recipe.optimizer, step, config.steps)
    judges = isinstance(objective.target, SelfEvaluation)
    announced = 0  # unreadable examples that all processes know of

    with (
        interruptible() as interrupted,
        Progress(config.steps, step, quiet=not ranks.is_main) as progress,
        profiling(config.profile, out / "profile", ranks) as profiled,
        PrefetchingLoader(data, batches, ranks, patch, config.seed, recipe.data.mirror, judges) as feed,
        checkpoints,
    ):
        while step < config.steps:
            begin = time.perf_counter()
            rate = learning_rate(recipe.optimizer, step, config.steps)
            for group in (group for each in optimizers for group in each.param_groups):
                group["lr"] = rate
            warming = step < recipe.objective.diffusion_phase * config.steps
            if step == math.ceil(recipe.objective.diffusion_phase * config.steps):
                start_transitions([network, *averages], ranks)
            pairs = replace(objective.draws, diffusion_share=1.0, consistency_share=0.0) if warming else objective.draws
            current = replace(objective, draws=pairs)
            if (step + 1) % config.log_every == 0:
                current = replace(current, probe=probe)
            # samples are numbered on when a run turns back, so that it does not meet the same ones again
            position = step + facts["data_offset"]
            clock = time.perf_counter()
            parts = feed.take(position)
            waited = time.perf_counter() - clock

            losses: list[LossRecord] = []
            flops = 0.0
            for part in parts:
                clock = time.perf_counter()
                chosen = choose_captions(part.examples, recipe.condition_dropout, part.draws)
                condition, mask = encode_conditions(conditioner, part.examples, chosen)
                if forward_flops is not None:
                    length = condition.shape[1] if condition.ndim == 3 else 0
                    flops += sum(forward_flops(*each, length) for each in part.shapes)
                shift = torch.tensor([resolution_shift(*each, base) for each in part.shapes])
                t, r = current.times(part.draws.normal, part.draws.uniform, shift if (shift > 1).any() else None)
                asks_average = current.guidance is not None or current.ema_teacher or judges
                scale = None
                if isinstance(current.guidance, GuidanceCondition):
                    dropped = torch.tensor([caption is None for caption in chosen])
                    scale = current.guidance.scales(part.draws.guidance).where(~dropped, 1.0)
                aligned = part.features is not None and step < aligned_until * config.steps
                batch = TrainingBatch(
                    part.x, part.z, t, r, condition, mask,
                    null_condition=null.expand(len(condition), *null.shape[1:]) if asks_average else None,
                    guidance=scale, features=part.features if aligned else None, fresh_noise=part.fresh,
                    packing=part.packing,
                ).to(device)  # fmt: skip
                waited += time.perf_counter() - clock
                sync_gradients(wrapped, part is parts[-1])
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
                    loss = current.evaluate(
                        wrapped, batch, averages[0] if asks_average else None, progress=step / config.steps
                    )
                (loss.loss * part.chosen.loss_weight * ranks.count).backward()  # gradients are averaged over processes
                losses.append(loss)
            norm = whole(nn.utils.clip_grad_norm_(weights, recipe.optimizer.clip)).item()

            # gradients are shared, so that one process's bad sample makes the norm bad in every one
            bad = [
                part.chosen.examples[row] for part, loss in zip(parts, losses, strict=True) for row in loss.nonfinite
            ]
            named: list[int] = []
            if ranks.any(bool(bad) or len(data.broken) > announced):
                told = ranks.all_gather_object((bad, dict(data.broken)))
                named = sorted({index for some, _ in told for index in some})
                for _, broken in told:
                    data.broken.update(broken)
                announced = len(data.broken)
                data.check_broken()

            def everybody(position: int = position) -> list[int]:
                return [number for part in batches.step(position) for number in part.examples]

            if not math.isfinite(norm) and not all_finite([network], ranks):
                raise diverged(step + 1, "the weights are", rate)
            if guard.accepts(step + 1, norm, named or everybody()):
                if normaliser is not None:
                    average_gradients(normaliser, ranks)
                for each in optimizers:
                    each.step()
                decays = [min(decay, (1 + step) / (10 + step)) for decay in recipe.ema_decays]
                average(exponential, weights, decays)
            powers.update(weights, step + 1)
            for each in optimizers:
                each.zero_grad()
            if ranks.is_main and (named or not math.isfinite(norm)):
                skipped = "" if math.isfinite(norm) else ", step skipped"
                say(f"step {step + 1}: not finite, samples {listed(named or everybody())}{skipped}", error=True)
            if math.isfinite(norm) and guard.spiked(norm):
                turning = facts["rollbacks"] < recipe.guard.rollbacks
                checkpoints.finish()
                before = checkpoints.load(state) if turning else None
                if ranks.is_main:
                    back = (
                        "on with its step, there is no checkpoint to go back to" if turning else "see guard.rollbacks"
                    )
                    back = back if before is None else "back to the last checkpoint"
                    say(f"step {step + 1}: the gradient norm {norm:.3g} is a spike, {back}", error=True)
                if before is not None:
                    ahead = position + 1 - before["step"]
                    facts = {**facts, "step": before["step"], "data_offset": ahead, "rollbacks": facts["rollbacks"] + 1}
                    step = facts["step"]
                    run.cut_log(step)
                    powers.cut(step)
                    guard.forget()
                    continue

            step += 1
            last = step == config.steps or ranks.any(bool(interrupted))
            residual, weighed, t, r = gathered_samples(losses, ranks, batches.max_images * len(parts))
            if normaliser is not None:
                normaliser.update(objective.transport, t, r, weighed)
            pixels = [each for part in parts for each in part.shapes]
            sums = [
                sum(part.chosen.loss_weight * loss.loss.item() for part, loss in zip(parts, losses, strict=True)),
                float(sum(loss.evaluations for loss in losses)),
                float(sum(rows * columns for rows, columns in pixels)) / patch**2,
                float(flops),
                sum(part.chosen.loss_weight * loss.alignment.item() for part, loss in zip(parts, losses, strict=True)),
                *derivative_sums(losses),
            ]
            summed = ranks.gather(torch.tensor([sums], dtype=torch.float64)).sum(0).tolist()
            total, evaluated, tokens, flops, alignment, squares, moving, noise, noted = summed
            seconds, images, learned = time.perf_counter() - begin, len(t), float(len(t))
            if objective.velocity is not None:  # its branch is learned beside that of transitions
                learned += objective.velocity.cost * int((t > r).sum())
            record = {
                "step": step,
                "loss": total,
                "residual": residual.nanmean().item(),
                **interval_residuals(residual, t, r),
                **({"alignment": alignment} if aligned_until else {}),
                **residual_bins(objective.transport, t, r, residual),
                "derivative_norm": math.sqrt(squares / moving) if moving else 0.0,
                "gradient_norm": norm,
                "learning_rate": rate,
                "evaluations": int(evaluated) if evaluated.is_integer() else evaluated,
                "nonfinite": len(named),
                "skipped_steps": guard.skipped,
                "spikes": guard.spikes,
                "skipped_examples": len(data.left_out) + len(data.broken),
                "seconds": seconds,
                "images_per_second": images / seconds,
                "tokens_per_second": tokens / seconds,
                "data_wait": waited / seconds,
                "memory_megabytes": peak_megabytes(),
            }
            if noted:
                record["derivative_noise"] = noise / noted
            if peak:
                record["mfu"] = utilisation(flops / images, evaluated, learned, seconds, peak * ranks.count)
            run.log(record)
            shown: dict[str, float] = {
                name: record[name] for name in ("residual", "residual_short", "residual_long") if name in record
            }
            progress.update(step, shown if step % config.log_every == 0 or last else None)
            facts = {
                **facts, "step": step, "skipped": guard.skipped, "skipped_in_a_row": guard.row, "spikes": guard.spikes,
                "diverged": guard.row >= LOST or not bool(residual.isfinite().any()),
            }  # fmt: skip
            saving = step % config.checkpoint_every == 0 or last
            if (saving or powers.due(step)) and not all_finite([network, *averages], ranks):
                raise diverged(step, "the weights are", rate)
            if powers.due(step):
                powers.save(step)
            if saving:
                checkpoints.save(step, state, facts)
            if config.sample_every and (step % config.sample_every == 0 or last):
                with gathered(averages[0]) as everywhere:
                    if ranks.is_main or everywhere:
                        grid = sample_grid(recipe, pipeline, conditioner, data)
                    if ranks.is_main:
                        save_image(grid, out / "samples" / f"step-{step:08d}.png")
            profiled()
            if last:
                break
    if facts["diverged"]:
        raise diverged(step, "loss and gradient are", rate)
    ranks.on_main(lambda: export(out, recipe, codec, data, conditioner))
    if (reasons := [*data.left_out, *data.broken.values()]) and ranks.is_main:
        say(f"skipped {len(reasons)} unreadable examples: {'; '.join(reasons[:5])}")
    return record


def derivative_sums(losses: Sequence[LossRecord]) -> list[float]:
    """What gives the derivative's root mean square and noise over all micro-batches: sums over samples with t > r."""
    squares, moving, noise, noted = 0.0, 0, 0.0, 0
    for loss in losses:
        count = int((loss.t > loss.r).sum())
        squares, moving = squares + count * loss.derivative_norm.item() ** 2, moving + count
        if loss.derivative_noise is not None:
            noise, noted = noise + count * loss.derivative_noise.item(), noted + count
    return [squares, float(moving), noise, float(noted)]


def gathered_samples(losses: Sequence[LossRecord], ranks: Ranks, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residual, that as it was weighed, t and r of every sample of all processes, of which each has at most `most`."""
    names = ("residual", "weighted_residual", "t", "r")
    rows = torch.stack([torch.cat([getattr(loss, name) for loss in losses]) for name in names]).T
    padded = rows.new_full((most, len(names)), torch.nan)
    padded[: len(rows)] = rows
    found = ranks.gather(padded).cpu()
    residual, weighed, t, r = found[~found[:, -1].isnan()].T
    return residual, weighed, t, r


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """What the blocks compute in; on CUDA what stays in float32 may use TF32."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and fast) else torch.float32


@contextmanager
def profiling(steps: int, folder: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """To be called after every step; the first `steps` after one of warm-up go into a trace, a file a process."""
    if not steps:
        yield lambda: None
        return
    from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    trace = tensorboard_trace_handler(str(folder), f"rank-{ranks.rank}")
    with profile(
        activities=kinds, schedule=schedule(wait=0, warmup=1, active=steps, repeat=1), on_trace_ready=trace
    ) as on:
        yield on.step
