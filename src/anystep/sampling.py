"""Schedules, plans of a budget of evaluations, and the any-step sampler.

One set of weights serves every number of steps: each step is one transition x_t -> x_r (arXiv 2509.04394, algorithm 2).
What is best for 2 evaluations is not for 64: a `StepPlan` says what a budget is spent on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anystep import bounds
from anystep.errors import InputError
from anystep.transport import Sample, Transport


@dataclass(frozen=True)
class Sampled:
    """What `sample` returns.

    Attributes:
        sample: the final sample, (batch, ...), float32.
        steps: transitions made.
        nfe: network evaluations for one image. A guided step costs 2.
        trajectory: (steps + 1, batch, ...) from noise to sample, or None if it was not asked for.
    """

    sample: Tensor
    steps: int
    nfe: int
    trajectory: Tensor | None = None


class StopSampling(Exception):
    """Raised by an `on_step` callback to end sampling where it stands."""


def resolution_shift(height: int, width: int, base: int | float) -> float:
    """s = sqrt(H W / base^2) for areas above the training base, else 1 (arXiv 2509.04394, section 4.1)."""
    return max(1.0, math.sqrt(height * width) / base)


def schedule(
    transport: Transport, steps: int, shift: float = 1.0, strength: float = 1.0, tail: float | None = None
) -> Float[Tensor, " times"]:
    """`steps + 1` strictly decreasing times from t_max to t_min, uniform and then shifted (`Transport.shift`).

    With a `strength` below 1 they begin at that share of the interval: from an image that is given. With a `tail` the
    last step goes to t_min from that share of what is gone through, and the others are alike. Computed in float64 on
    the CPU, returned in float32, whatever the network's dtype.
    """
    steps = bounds.check("steps", steps, bounds.SamplingSteps)
    shift = bounds.check("shift", shift, bounds.PositiveCoefficient)
    strength = bounds.check("strength", strength, bounds.PositiveShare)
    if tail is None:
        u = torch.linspace(strength, 0, steps + 1, dtype=torch.float64)
    else:
        tail = bounds.check("tail", tail, bounds.InnerShare)
        u = torch.linspace(strength, strength * tail, steps, dtype=torch.float64)
        u = torch.cat([u, torch.zeros(1, dtype=torch.float64)])
    return transport.shift(transport.t_min + (transport.t_max - transport.t_min) * u, shift).float()


UNSAID = ("steps", "memory")  # of a plan's numbers, in words


@dataclass(frozen=True)
class StepPlan:
    """What a budget of evaluations is spent on. Its times are unshifted: the shift of a model or size goes on top.

    Attributes:
        steps: transitions made, each one evaluation, or two where guided. It may be less than the budget.
        shift: of the uniform times (`Transport.shift`), beside the model's own.
        tail: where the last step begins, as a share of the time range, with all others alike; None: all are.
        stochasticity: of `sample`.
        velocity_below: of `sample`.
        memory: of `sample`.

    Raises:
        InputError: a value that is none of its kind, in one line.
    """

    steps: bounds.SamplingSteps
    shift: bounds.TimeShift = 1.0
    tail: bounds.InnerShare | None = None
    stochasticity: bounds.Share = 0.0
    velocity_below: bounds.Share = 0.0
    memory: bool = False

    def __post_init__(self) -> None:
        for name, value in bounds.check_options("plan", StepPlan, vars(self)).items():
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, name: str, fields: Any) -> "StepPlan":
        """From plain values, such as those of a file. Raises `InputError` that begins with the `name`."""
        if not isinstance(fields, Mapping) or "steps" not in fields:
            raise InputError(f"{name} {bounds.shown(fields)}: expected the fields of a plan, `steps` among them")
        return cls(**bounds.check_options(name, cls, fields))

    def plain(self) -> dict[str, Any]:
        """What `parse` reads: the fields that are not as they are by default."""
        return {name: value for name, value in asdict(self).items() if value != getattr(StepPlan, name, None)}

    def __str__(self) -> str:
        """In words, what is as by default left out: `8 steps, tail 0.25, memory`."""
        words = [f"{name.replace('_', ' ')} {value:g}" for name, value in self.plain().items() if name not in UNSAID]
        return ", ".join([f"{self.steps} step{'s' * (self.steps > 1)}", *words, *["memory"] * self.memory])

    def times(self, transport: Transport, shift: float = 1.0, strength: float = 1.0) -> Float[Tensor, " times"]:
        """`schedule` of this plan, with a further shift."""
        return schedule(transport, self.steps, shift * self.shift, strength, self.tail)


def noise(shape: Sequence[int], seeds: Sequence[int]) -> Float[Tensor, "batch *shape"]:
    """Standard normal noise, one CPU generator an image: a seed means the same noise on every device and in any batch.

    Args:
        shape: of one image.
        seeds: one an image.
    """
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class Memory(NamedTuple):
    """What the velocity jump before this one left behind: the data and noise it stood for, and when and how guided."""

    data: Sample
    noise: Sample
    t: float
    guidance: float


def extrapolated(transport: Transport, F: Sample, t: float, r: float, before: Memory) -> Sample:
    """F in the middle of the jump from t to r, to first order: the two-step Adams-Bashforth method.

    F = alpha_hat x + sigma_hat z changes with its coefficients, which the transition follows exactly, and with the data
    x and the noise z that the network has in mind. How fast these change is told from what was in mind at the velocity
    jump before, so that the error of a jump is of third order in its length on every transport, and nothing where the
    true F is linear in time on straight lines (there F + (t - r) / (2 (t_before - t)) (F - F_before)).
    """
    there = torch.full((len(F),), t, dtype=before.data.dtype, device=F.device)
    return F + (t - r) / (2 * (before.t - t)) * (F - transport.target(before.data, before.noise, there))


def is_guided(scale: float) -> bool:
    """Whether a guidance scale asks for a second evaluation a step: 1 and below mean none, as in diffusers."""
    return scale > 1.0


@torch.no_grad()
def sample(
    network: Any,
    transport: Transport,
    z: Sample,
    condition: Any,
    steps: int | Sequence[float] | Tensor,
    *,
    condition_mask: Tensor | None = None,
    null_condition: Any = None,
    null_mask: Tensor | None = None,
    guidance: float | Callable[[], float] = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    guidance_embedded: bool = False,
    shift: float = 1.0,
    stochasticity: float = 0.0,
    velocity_below: float = 0.0,
    memory: bool = False,
    given: Sample | None = None,
    seeds: Sequence[int] | None = None,
    return_trajectory: bool = False,
    on_step: Callable[[int, float, Tensor], Tensor | None] | None = None,
    network_options: Mapping[str, Any] | None = None,
) -> Sampled:
    """Carry noise to data in any number of transitions.

    Args:
        network: `network(x, t, r, condition, condition_mask)` -> F. If it has `encode_condition(condition, mask)`,
            that is called once and its answer stands for the condition in every step.
        z: (batch, ...) noise at t_max; scaled to the path there.
        steps: a number of steps, or the decreasing times themselves.
        null_condition, null_mask: the empty condition, one row a sample; needed where `guidance` is above 1.
        guidance: g in F_null + g (F_cond - F_null); 1 and below mean unguided, at one evaluation a step. Or a function
            that gives g for the next step.
        guidance_interval: closed interval of t in which to guide; all of it by default.
        guidance_embedded: whether the network takes the scale of each image as `guidance`, and answers as if guided:
            then a guided step costs one evaluation, and no null condition is needed.
        stochasticity: 0 is deterministic. With c > 0 each step but the last jumps below its target r, to
            r - c (r - t_min), and re-noises to r with fresh noise; 1 is multistep consistency sampling.
        velocity_below: jumps of at most this share of the time range ask the network for the velocity f(x_t, t, t) and
            carry that to r, an Euler step on straight lines. 0: none does; 1: all, for networks that know nothing else.
        memory: carry along a velocity jump that follows another what F is in its middle (`extrapolated`).
        given: clean data to start from instead of pure noise: `z` is laid on it as at the first of the times.
        seeds: of the fresh noise, one an image.
        on_step: called as `on_step(i, r, x_r)` after step i; a tensor it returns takes the place of x_r.
            It may raise `StopSampling`.
        network_options: further arguments of the network, in every evaluation.

    Raises:
        InputError: a schedule that does not decrease, guidance without a null condition, stochasticity without seeds.
    """
    times = torch.as_tensor(steps).float() if hasattr(steps, "__len__") else schedule(transport, steps, shift)
    if len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
        raise InputError(f"times must decrease and number at least two, got {bounds.shown(times.tolist())}")

    def scale() -> float:
        return float(bounds.check("guidance", guidance() if callable(guidance) else guidance, bounds.Guidance))

    if is_guided(scale()) and null_condition is None and not guidance_embedded:
        raise InputError(f"guidance {scale()} needs null_condition")
    stochasticity = bounds.check("stochasticity", stochasticity, bounds.Share)
    share = bounds.check("velocity_below", velocity_below, bounds.Share)
    short = share * (transport.t_max - transport.t_min) * (1 + 1e-5)  # of equal jumps in float32 all are, or none is
    if stochasticity and (seeds is None or len(seeds) != len(z)):
        raise InputError(f"stochastic sampling needs one seed an image, got {bounds.shown(seeds)}")
    low, high = guidance_interval or (-math.inf, math.inf)

    encode = getattr(network, "encode_condition", lambda condition, mask: condition)
    condition = encode(condition, condition_mask)
    null_encoded: Any = None
    generators = [torch.Generator().manual_seed(seed ^ 0x5EED) for seed in seeds or []]

    def evaluate(x: Tensor, t: Tensor, r: Tensor, condition: Any, mask: Tensor | None, told: float = 1.0) -> Tensor:
        times = transport.c_noise(t), transport.c_noise(r)
        options = {**(network_options or {}), **({"guidance": torch.full_like(t, told)} if guidance_embedded else {})}
        answer: Tensor = network(x, *times, condition, mask, **options)
        return answer.float()

    batch, nfe, made = len(z), 0, 0
    before: Memory | None = None
    if given is None:
        x = z.float() * transport.coefficients(times[:1]).sigma.item()
    else:
        x = transport.interpolate(given.to(z.device).float(), z.float(), times[:1].to(z.device).expand(batch))
    trajectory = [x]
    for i, (now, goal) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        last = i == len(times) - 2
        landing = goal if last else goal - stochasticity * (goal - transport.t_min)
        t, r = torch.full((batch,), now, device=z.device), torch.full((batch,), landing, device=z.device)
        velocity = now - landing <= short
        asked = t if velocity else r
        guides = guidance_embedded or null_condition is not None
        used = scale() if guides and is_guided(scale()) and low <= now <= high else 1.0
        F = evaluate(x, t, asked, condition, condition_mask, used)
        nfe += 1
        if is_guided(used) and not guidance_embedded:
            if null_encoded is None:
                null_encoded = encode(null_condition, null_mask)
            null = evaluate(x, t, asked, null_encoded, null_mask)
            F = null + used * (F - null)
            nfe += 1
        made += 1
        told = Memory(*transport.decompose(x, F, t), now, used) if memory and velocity else None
        if told is not None and before is not None and before.guidance == used:
            F = extrapolated(transport, F, now, landing, before)
        before = told
        x = transport.transition(x, F, t, r)
        if landing < goal:
            fresh = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
            x = transport.renoise(x, r, torch.full_like(r, goal), fresh.to(x))
            before = None  # which was of another path
        stop = False
        if on_step is not None:
            try:
                replaced = on_step(i, goal, x)
                if replaced is not None and replaced is not x:
                    x, before = replaced, None
            except StopSampling:
                stop = True
        if return_trajectory:
            trajectory.append(x)
        if stop:
            break
    return Sampled(x, made, nfe, torch.stack(trajectory) if return_trajectory else None)
