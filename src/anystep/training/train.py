"""Training a transition model: one loop that reads from top to bottom, over parts that have files of their own.

Every draw of a step comes from a generator keyed by the seed and the number of the sample, so a resumed run continues
exactly.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anystep.console import say
from anystep.contact_sheet import save_image
from anystep.device import pick_precision
from anystep.environment import peak_megabytes
from anystep.models.flow_map import Network
from anystep.models.initialise import start_transition_branch
from anystep.models.transformer import TransitionTransformer2DModel
from anystep.objective import RunningMean, SelfEvaluation, TransitionObjective
from anystep.ranks import Ranks
from anystep.training.adapt import base_digest, on_pipeline
from anystep.training.adapter import check_base, on_base, trained
from anystep.training.assemble import (
    as_pipeline,
    export,
    prepare_data,
    prepare_networks,
    reads_captions,
    release_text_encoder,
    sample_grid,
    sample_prompts,
)
from anystep.training.batch_samplers import count_micro_batches, make_batch_sampler
from anystep.training.checkpoint_files import recorded
from anystep.training.checkpoints import Checkpoints, is_kept
from anystep.training.config import Recipe
from anystep.training.ema import ExponentialAverages
from anystep.training.guard import Guard, check_finite, diverged, listed
from anystep.training.loader import PrefetchingLoader
from anystep.training.objective import check_differences, make_objective
from anystep.training.optimizers import learning_rate, make_adam, make_optimizers, unfinished_warmup
from anystep.training.parallel import (
    all_zero,
    average_gradients,
    check_parallel,
    full_tensor,
    make_mesh,
    unsharded,
    wrap,
)
from anystep.training.plan import check_fits
from anystep.training.run import Progress, Run, interruptible, profiling, schedule_changes, set_up_device
from anystep.training.snapshots import PowerAverages
from anystep.training.step import StepEvaluator
from anystep.training.step_metrics import StepLosses, StepMetrics, gathered_samples, peak_flops
from anystep.training.trainer_state import TrainerState, TrainingTensors

DATA = "data"  # in a manifest
SHOWN = ("residual", "residual_short", "residual_long")  # in the line of progress


def train(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Train or resume in the run folder `out`; `out/pipeline` holds the EMA model. Returns the last log record."""
    recipe = on_pipeline(on_base(recipe))
    ranks, config = Ranks(), recipe.run
    micro_batches = count_micro_batches(recipe.data, config, ranks.count)
    check_parallel(recipe.parallel, ranks, config.shard_size)
    objective, device = make_objective(recipe), set_up_device(config)
    precision = pick_precision(config.precision, device)
    check_differences(objective, recipe.objective, precision)
    reads_captions(recipe.model)  # an unknown preset is said before anything is loaded
    check_fits(recipe, out, ranks.count, device, precision)
    with Run(out, recipe, ranks) as run:
        trainer = Trainer(run, recipe, objective, device, precision, micro_batches)
        record = trainer.train()
        trainer.finish()
    return record


class Trainer:
    """A run in one process: what it trains, what it reads and what it writes.

    Args:
        recipe: that of the run.
        micro_batches: number of micro-batches in a step, of all processes together.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        objective: TransitionObjective,
        device: torch.device,
        precision: torch.dtype,
        micro_batches: int,
    ) -> None:
        self.run, self.recipe, self.ranks, config = run, recipe, run.ranks, recipe.run
        self.inputs = inputs = prepare_data(recipe, run.folder, device, run.ranks)
        inputs.check_batch()
        folder = run.folder / "checkpoints"
        changes = [inputs.check_resumed(recorded(folder, DATA))]
        mesh = make_mesh(recipe.parallel, run.ranks, device, config.shard_size)
        self.objective = objective = replace(objective, synchronised_forwards=mesh is not None)
        self.network, self.averages = network, averages = prepare_networks(inputs, device, mesh)
        self.normaliser = objective.weighting.normaliser
        optimizers = make_optimizers(network, recipe.optimizer, device)
        normaliser_optimizers = (
            [] if self.normaliser is None else make_adam(self.normaliser.to(device), recipe.optimizer)
        )
        self.optimizers = [*optimizers, *normaliser_optimizers]
        self.tensors = TrainingTensors(network, averages, optimizers, self.normaliser, normaliser_optimizers)
        until = 0.0 if recipe.alignment is None else recipe.alignment.until
        wrapped = wrap(network, run.ranks, find_unused=0 < until < 1)

        # where the run is
        self.checkpoints = Checkpoints(folder, run.ranks, config.keep, config.keep_every, recipe)
        self.state = state = TrainerState.of(self.checkpoints.load(self.tensors))
        check_base(recipe, state, base_digest(recipe))
        self.guard = Guard(recipe.guard, state)
        self.weights = trained(network)
        exponential = len(recipe.ema_decays)
        self.ema = ExponentialAverages(averages[:exponential], recipe.ema_decays)
        self.powers = PowerAverages(run.folder, recipe, averages[exponential:], run.ranks)
        self.cut(state.step)
        changes.append(schedule_changes(run.before, recipe, state.step))
        changes.append(unfinished_warmup(recipe.optimizer, config.steps))
        for each in filter(None, changes if run.ranks.is_main else ()):
            say(each, error=True)

        # what cannot be drawn is said before the first step
        self.pipeline = as_pipeline(inputs, averages[0])
        if config.sample_every:
            sample_prompts(inputs, self.pipeline)
        release_text_encoder(inputs)

        patch, fresh = int(network.config.patch_size), isinstance(objective.target, SelfEvaluation)
        sampler = make_batch_sampler(recipe.data, config, inputs.data, micro_batches, patch)
        self.loader = PrefetchingLoader(inputs.data, sampler, run.ranks, patch, config.seed, recipe.data.mirror, fresh)
        self.evaluate = StepEvaluator(inputs, objective, wrapped, averages[0], run.ranks, device, precision)
        peak = peak_flops(config, device) if recipe.adapt is None else None
        self.metrics = StepMetrics(objective, recipe.model, self.loader, run.ranks, until > 0, peak)
        self.rate = learning_rate(recipe.optimizer, state.step, config.steps)
        self.record: dict[str, Any] = {"step": state.step}

    def train(self) -> dict[str, Any]:
        """Make the steps that are left, or those until a signal; returns the last log record."""
        config, ranks, folder = self.recipe.run, self.ranks, self.run.folder
        step = start = self.state.step
        last = step >= config.steps
        with (
            interruptible() as interrupted,
            Progress(config.steps, start, quiet=not ranks.is_main) as progress,
            profiling(config.profile, folder / "profile", ranks) as profiled,
            self.loader,
            self.checkpoints,
        ):
            while not last:
                # --- evaluate -----------------------------------------------------------------------------------------
                begin = time.perf_counter()
                self.start_step(step, learning_rate(self.recipe.optimizer, step, config.steps))
                position = step + self.state.data_offset
                micro_batches = self.loader.take(position)
                waited = time.perf_counter() - begin
                # the gradients of a process that is to stop tell all others: nothing else is shared in every step
                stops = ranks.count > 1 and step > start
                losses = self.evaluate(micro_batches, step, abandon=stops and bool(interrupted))
                norm = full_tensor(nn.utils.clip_grad_norm_(self.weights, self.recipe.optimizer.clip)).item()
                if stops and not math.isfinite(norm) and ranks.any(bool(interrupted)):
                    self.log(progress, step, shown=True)
                    self.save(step, last=True)
                    break

                # --- update -------------------------------------------------------------------------------------------
                self.update(step, norm, losses, position)
                spiked = math.isfinite(norm) and self.guard.spiked(norm)
                if spiked and (before := self.turn_back(step, norm, position)) is not None:
                    step = before
                    continue
                step += 1

                # --- log ----------------------------------------------------------------------------------------------
                last = step == config.steps or (ranks.count == 1 and bool(interrupted))
                saving, shown = last or self.saves(step), last or step % config.log_every == 0
                binned = step == config.steps or step % config.log_every == 0  # not where somebody happened to stop it
                logging = shown or saving or self.metrics.full
                if logging:
                    self.loader.share_unreadable()
                losses = replace(losses, waited=losses.waited + waited)
                self.metrics.add(position, losses, self.figures(step, norm, time.perf_counter() - begin), binned)
                if logging:
                    self.log(progress, step, shown)
                else:
                    progress.update(step)

                # --- save ---------------------------------------------------------------------------------------------
                if saving or self.powers.due(step) or (config.sample_every and step % config.sample_every == 0):
                    self.save(step, last)
                profiled()
        return self.record

    def start_step(self, step: int, rate: float) -> None:
        """Set the learning rate, and begin the branch of transitions where the phase of plain diffusion has ended."""
        self.rate = rate
        for group in (group for each in self.optimizers for group in each.param_groups):
            group["lr"] = rate
        if step == math.ceil(self.recipe.objective.diffusion_phase * self.recipe.run.steps):
            start_transitions([self.network, *self.averages], self.ranks)

    def update(self, step: int, norm: float, losses: StepLosses, position: int) -> None:
        """Move the weights and their averages; where the gradient is not finite, say so and leave them as they are.

        Raises:
            InputError: the weights are not finite, or too many steps in a row were not.
        """
        named: list[int] = []
        if not math.isfinite(norm):
            residual, _, _ = gathered_samples(losses.losses, self.ranks, self.metrics.capacity)
            named = self.metrics.nonfinite(position, residual) or self.loader.examples(position)
            check_finite([self.network], self.ranks, step + 1, self.rate)
        if self.guard.accepts(step + 1, norm, named):
            if self.normaliser is not None:
                average_gradients(self.normaliser, self.ranks)
            for each in self.optimizers:
                each.step()
            self.ema.update(self.weights, step)
        elif self.ranks.is_main:
            say(f"step {step + 1}: not finite, samples {listed(named)}, step skipped", error=True)
        self.powers.update(self.weights, step + 1)
        for each in self.optimizers:
            each.zero_grad()
        if isinstance(self.normaliser, RunningMean):
            residual, t, r = gathered_samples(losses.losses, self.ranks, self.metrics.capacity)
            self.normaliser.update(self.objective.transport, t, r, residual)

    def turn_back(self, step: int, norm: float, position: int) -> int | None:
        """Say that the gradient stood out, and go back to the last checkpoint if the guard has it so.

        Returns its step, from which the run goes on with samples that it has not met; None where it does not go back.
        """
        turning = self.state.rollbacks < self.recipe.guard.rollbacks
        self.checkpoints.finish()
        before = self.checkpoints.load(self.tensors) if turning else None
        if self.ranks.is_main:
            remedy = "on with its step, there is no checkpoint to go back to" if turning else "see guard.rollbacks"
            remedy = remedy if before is None else "back to the last checkpoint"
            say(f"step {step + 1}: the gradient norm {norm:.3g} is a spike, {remedy}", error=True)
        if before is None:
            return None
        back = int(before["step"])
        self.state.data_offset, self.state.rollbacks = position + 1 - back, self.state.rollbacks + 1
        self.metrics.flush()  # of steps that are made again
        self.cut(back)
        self.guard.forget()
        return back

    def cut(self, step: int) -> None:
        """Drop what is written of later steps: they are about to be made again."""
        self.run.cut_log(step)
        self.powers.cut(step)

    def figures(self, step: int, norm: float, seconds: float) -> dict[str, Any]:
        """What is logged of a step in addition to its losses."""
        return {
            "step": step,
            "gradient_norm": norm,
            "learning_rate": self.rate,
            "skipped_steps": self.state.skipped,
            "spikes": self.state.spikes,
            "skipped_examples": len(self.inputs.data.left_out) + len(self.inputs.data.broken),
            "seconds": seconds,
            "memory_megabytes": peak_megabytes(),
        }

    def log(self, progress: Progress, step: int, shown: bool) -> None:
        """Write the records of the steps since the last time, and show the last one."""
        for record in self.metrics.flush():
            self.run.log(record)
            self.record = record
        progress.update(step, {name: self.record[name] for name in SHOWN if name in self.record} if shown else None)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after a step."""
        config = self.recipe.run
        return step % config.checkpoint_every == 0 or is_kept(step, config.keep_every)

    def save(self, step: int, last: bool) -> None:
        """Write what is due after a step: a checkpoint, a snapshot of averages, a grid of samples.

        Raises:
            InputError: weights that are not finite, which are never saved.
        """
        config, ranks, averages = self.recipe.run, self.ranks, self.averages
        saving, due = last or self.saves(step), self.powers.due(step)
        if saving or due:
            check_finite([self.network, *averages], ranks, step, self.rate)
        if due:
            self.powers.save(step)
        if saving:
            self.state.reach(step, self.metrics.any_finite)
            manifest = {**asdict(self.state), DATA: self.inputs.data.identity}
            self.checkpoints.save(step, self.tensors.state_dict(), manifest)
        if config.sample_every and (step % config.sample_every == 0 or last):
            with unsharded(averages[0]) as together:
                if ranks.is_main or together:
                    grid = sample_grid(self.inputs, self.pipeline)
                if ranks.is_main:
                    save_image(grid, self.run.folder / "samples" / f"step-{step:08d}.png")

    def finish(self) -> None:
        """Export the model and say what was left out.

        Raises:
            InputError: the run has diverged.
        """
        if self.state.diverged:
            raise diverged(self.state.step, "loss and gradient are", self.rate)
        self.ranks.on_main(lambda: export(self.run.folder, self.inputs))
        data = self.inputs.data
        if (reasons := [*data.left_out, *data.broken.values()]) and self.ranks.is_main:
            say(f"skipped {len(reasons)} unreadable examples: {'; '.join(reasons[:5])}")


def start_transitions(networks: Sequence[Network], ranks: Ranks) -> None:
    """Let the transitions' branch of networks with branches begin as a copy of the velocity's.

    Only where it has learned nothing yet: then its interval embedding is still zero.
    """
    for network in networks:
        if not isinstance(network, TransitionTransformer2DModel):
            continue
        embedding = network.interval_embed
        if network.transition_branch is not None and embedding is not None and all_zero(embedding.linear_2, ranks):
            start_transition_branch(network)
