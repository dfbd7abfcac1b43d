"""Schedules and the any-step sampler.

One set of weights serves every number of steps: each step is one transition x_t -> x_r (arXiv 2509.04394, algorithm 2).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def schedule(transport: Transport, steps: int, shift: float = 1.0, strength: float = 1.0) -> Float[Tensor, " times"]:
    """`steps + 1` strictly decreasing times from t_max to t_min, uniform and then shifted (`Transport.shift`).

    With a `strength` below 1 they begin at that share of the interval: from an image that is given. Computed in float64
    on the CPU, returned in float32, whatever the network's dtype.
    """
    steps = bounds.check("steps", steps, bounds.SamplingSteps)
    shift = bounds.check("shift", shift, bounds.PositiveCoefficient)
    strength = bounds.check("strength", strength, bounds.PositiveShare)
    u = torch.linspace(strength, 0, steps + 1, dtype=torch.float64)
    return transport.shift(transport.t_min + (transport.t_max - transport.t_min) * u, shift).float()


def noise(shape: Sequence[int], seeds: Sequence[int]) -> Float[Tensor, "batch *shape"]:
    """Standard normal noise, one CPU generator an image: a seed means the same noise on every device and in any batch.

    Args:
        shape: of one image.
        seeds: one an image.
    """
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


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
    shift: float = 1.0,
    stochasticity: float = 0.0,
    instantaneous: bool = False,
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
        stochasticity: 0 is deterministic. With c > 0 each step but the last jumps below its target r, to
            r - c (r - t_min), and re-noises to r with fresh noise; 1 is multistep consistency sampling.
        instantaneous: ask the network for f(x_t, t, t) and carry that to r: an Euler step on straight lines, for
            networks that know nothing else.
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

    if is_guided(scale()) and null_condition is None:
        raise InputError(f"guidance {scale()} needs null_condition")
    stochasticity = bounds.check("stochasticity", stochasticity, bounds.Share)
    if stochasticity and (seeds is None or len(seeds) != len(z)):
        raise InputError(f"stochastic sampling needs one seed an image, got {bounds.shown(seeds)}")
    low, high = guidance_interval or (-math.inf, math.inf)

    encode = getattr(network, "encode_condition", lambda condition, mask: condition)
    condition = encode(condition, condition_mask)
    null_encoded: Any = None
    generators = [torch.Generator().manual_seed(seed ^ 0x5EED) for seed in seeds or []]

    def evaluate(x: Tensor, t: Tensor, r: Tensor, condition: Any, mask: Tensor | None) -> Tensor:
        goal = transport.network_time(t if instantaneous else r)
        answer: Tensor = network(x, transport.network_time(t), goal, condition, mask, **(network_options or {}))
        return answer.float()

    batch, nfe, made = len(z), 0, 0
    if given is None:
        x = z.float() * transport.coefficients(times[:1]).sigma.item()
    else:
        x = transport.path(given.to(z.device).float(), z.float(), times[:1].to(z.device).expand(batch))
    trajectory = [x]
    for i, (now, goal) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        last = i == len(times) - 2
        landing = goal if last else goal - stochasticity * (goal - transport.t_min)
        t, r = torch.full((batch,), now, device=z.device), torch.full((batch,), landing, device=z.device)
        F = evaluate(x, t, r, condition, condition_mask)
        nfe += 1
        if null_condition is not None and is_guided(scale()) and low <= now <= high:
            if null_encoded is None:
                null_encoded = encode(null_condition, null_mask)
            null = evaluate(x, t, r, null_encoded, null_mask)
            F = null + scale() * (F - null)
            nfe += 1
        made += 1
        x = transport.transition(x, F, t, r)
        if landing < goal:
            fresh = torch.stack([torch.randn(x.shape[1:], generator=generator) for generator in generators])
            x = transport.renoise(x, r, torch.full_like(r, goal), fresh.to(x))
        stop = False
        if on_step is not None:
            try:
                replaced = on_step(i, goal, x)
                x = x if replaced is None else replaced
            except StopSampling:
                stop = True
        if return_trajectory:
            trajectory.append(x)
        if stop:
            break
    return Sampled(x, made, nfe, torch.stack(trajectory) if return_trajectory else None)
