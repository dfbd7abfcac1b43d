"""Schedules, plans of a budget of evaluations, guidance, and the any-step sampler.

One set of weights serves every number of steps: each step is one transition x_t -> x_r (arXiv 2509.04394, algorithm 2).
What is best for 2 evaluations is not for 64: a `StepPlan` says what a budget is spent on.
`guided` makes a network, its condition and its guidance one function of (x, t, r), which `sample` asks at each step.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from anystep import bounds
from anystep.errors import InputError
from anystep.seeds import generator_of
from anystep.transport import Sample, Transport


class Prediction(NamedTuple):
    """The answer to one question of the sampler.

    Attributes:
        F: what the network predicts, guided.
        evaluations: of the network for one image.
        scale: of the guidance; 1 where there is none.
    """

    F: Sample
    evaluations: int = 1
    scale: float = 1.0


class Sampled(NamedTuple):
    """What `sample` returns: the sample (float32), transitions made, and network evaluations (NFE) for one image."""

    sample: Sample
    steps: int
    nfe: int


@dataclass(frozen=True)
class Step:
    """What a callback of `sample` sees of one transition.

    Attributes:
        index: of the step, from 0.
        t, r: the time that it began at, and the time that the sample is at now.
        x: the sample at r.
    """

    index: int
    t: float
    r: float
    x: Sample
    _clean: Callable[[], Sample]

    @property
    def clean(self) -> Sample:
        """The data that the sample at t stands for by what the network predicted there: a preview of the result."""
        return self._clean()


class StopSampling(Exception):
    """Raised by a callback of `sample` to end sampling where it stands."""


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
        u = torch.linspace(strength, 0, steps + 1, dtype=torch.float64, device="cpu")
    else:
        last = strength * bounds.check("tail", tail, bounds.InnerShare)
        u = torch.linspace(strength, last, steps, dtype=torch.float64, device="cpu")
        u = torch.cat([u, u.new_zeros(1)])
    return transport.shift(transport.t_min + (transport.t_max - transport.t_min) * u, shift).float()


def steps_label(steps: int) -> str:
    """A number of steps in words: `1 step`, `4 steps`."""
    return f"{steps} step{'s' * (steps > 1)}"


@dataclass(frozen=True)
class StepPlan:
    """What a budget of evaluations is spent on. Its times are unshifted: the shift of a model or size goes on top.

    Attributes:
        steps: transitions made, each one evaluation, or two where guided. It may be less than the budget.
        shift: of the uniform times (`Transport.shift`), beside the model's own.
        tail: where the last step begins, as a share of the time range, with all others alike; None: all are.
        stochasticity, velocity_below, memory: as `sample` takes them.
        guidance_share: how much of a guidance scale g steps take: 1 + share (g - 1).
        guided_above: the share of the time range below which no step is guided.

    Raises:
        InputError: a value that is none of its kind, in one line.
    """

    steps: bounds.SamplingSteps
    shift: bounds.TimeShift = 1.0
    tail: bounds.InnerShare | None = None
    stochasticity: bounds.Share = 0.0
    velocity_below: bounds.Share = 0.0
    memory: bool = False
    guidance_share: bounds.Share = 1.0
    guided_above: bounds.Share = 0.0

    def __post_init__(self) -> None:
        for name, value in bounds.check_options("plan", StepPlan, vars(self)).items():
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, name: str, fields: Any) -> "StepPlan":
        """Read a plan from plain values, such as those of a file. Raises `InputError` that begins with the `name`."""
        if not isinstance(fields, Mapping) or "steps" not in fields:
            raise InputError(f"{name} {bounds.shown(fields)}: expected the fields of a plan, `steps` among them")
        return cls(**bounds.check_options(name, cls, fields))

    def plain(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as `parse` reads them."""
        return {name: value for name, value in asdict(self).items() if value != getattr(StepPlan, name, None)}

    def __str__(self) -> str:
        """The plan in words, without defaults: `8 steps, tail 0.25, memory`."""
        said = {name.replace("_", " "): value for name, value in self.plain().items() if name != "steps"}
        words = [name if value is True else f"{name} {value:g}" for name, value in said.items()]
        return ", ".join([steps_label(self.steps), *words])

    def times(self, transport: Transport, shift: float = 1.0, strength: float = 1.0) -> Float[Tensor, " times"]:
        """The `schedule` of this plan, with a further shift."""
        return schedule(transport, self.steps, shift * self.shift, strength, self.tail)

    def guidance(self, scale: float) -> float:
        """The scale of guided steps, of the one that is asked for."""
        return 1 + self.guidance_share * (scale - 1) if is_guided(scale) else scale

    def guided_times(self, transport: Transport) -> tuple[float, float] | None:
        """The closed interval of t whose steps are guided; None where all are."""
        low = self.guided_above * (1 - 1e-5)  # a little lower: times in float32 that are the end of it are in it
        return (transport.t_min + low * (transport.t_max - transport.t_min), transport.t_max) if low else None


def noise(shape: Sequence[int], seeds: Sequence[int]) -> Float[Tensor, "batch *shape"]:
    """Standard normal noise, one CPU generator an image: a seed means the same noise on every device and in any batch.

    Args:
        shape: of one image.
        seeds: one an image.
    """
    return _noise(shape, [generator_of(seed) for seed in seeds])


def _noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    return torch.stack([torch.randn(tuple(shape), generator=each, **options) for each in generators])


def initial_sample(transport: Transport, z: Sample, time: float, init_latents: Sample | None = None) -> Sample:
    """The point of the path where sampling begins: noise alone, or clean data with the noise `z` of that time on it."""
    if init_latents is None:
        return z.float() * transport.coefficients(_times(time, 1)).sigma.item()
    return transport.interpolate(init_latents.to(z.device).float(), z.float(), _times(time, len(z), z.device))


def _times(value: float, count: int, device: torch.device | str = "cpu") -> Tensor:
    """A number for each of several samples, in float32, whatever this process makes tensors of by default."""
    return torch.full((count,), value, dtype=torch.float32, device=device)


def is_guided(scale: float) -> bool:
    """Whether a guidance scale asks for a second evaluation a step: 1 and below mean none, as in diffusers."""
    return scale > 1.0


def without_ends(transport: Transport, interval: tuple[float, float] | None = None) -> tuple[float, float]:
    """The closed interval of all times between the ends of one, by default those of the transport, but for the ends."""
    low, high = interval or (transport.t_min, transport.t_max)
    return math.nextafter(low, math.inf), math.nextafter(high, -math.inf)


def evaluations_per_step(guided: bool, embedded: bool) -> int:
    """Network evaluations of one image in a step: two where guided by a network that is not told the scale."""
    return 1 + (guided and not embedded)


def guided(
    network: Any,
    transport: Transport,
    condition: tuple[Any, Tensor | None],
    null: tuple[Any, Tensor | None] | None = None,
    scale: float | Callable[[], float] = 1.0,
    interval: tuple[float, float] | None = None,
    embedded: bool = False,
    one_batch: bool = True,
    state: Callable[[], Hashable] = lambda: None,
    **options: Any,
) -> Callable[[Sample, float, float], Prediction]:
    """The function f(x, t, r) of a network with its condition and classifier-free guidance.

    Args:
        network: `network(x, c_noise(t), c_noise(r), condition, mask, **options)` -> F. If it has `encode_condition(
            condition, mask)`, that is called once for each `state`, and its answer stands for the condition.
        condition, null: the condition and the empty one, one row a sample, each with its mask or None. The empty one is
            needed where the scale is above 1.
        scale: g in F_null + g (F_cond - F_null); 1 and below mean unguided, at one evaluation. Or a function that gives
            g for the next evaluation.
        interval: closed interval of t in which to guide; all of it by default.
        embedded: whether the network takes the scale of each image as `guidance`, and answers as if guided: then a
            guided step costs one evaluation, and no null condition is needed. Where one is given, such as a negative
            prompt, it is guided away from as in other networks, with both evaluations told a scale of 1.
        one_batch: evaluate the condition and the empty one of a guided step as one batch where they can be (see
            `joined`), which is faster for few tokens; else one after the other, in half the memory.
        state: gives what the network is like now, as far as it may change on the way, such as its adapters.

    Raises:
        InputError: by f: no scale, or one above 1 without a null condition.
    """
    low, high = interval or (-math.inf, math.inf)
    encode = getattr(network, "encode_condition", lambda condition, mask: condition)
    both = joined(network, condition, null) if one_batch and null is not None else None

    @lru_cache(2)  # a call makes two kinds of evaluations at most
    def encoded(which: str, now: Hashable) -> tuple[Any, Tensor | None]:
        states, mask = {"condition": condition, "null": null, "both": both}[which] or condition
        return encode(states, mask), mask

    def f(x: Sample, t: float, r: float) -> Prediction:
        g = float(bounds.check("guidance", scale() if callable(scale) else scale, bounds.Guidance))
        if is_guided(g) and null is None and not embedded:
            raise InputError(f"guidance {g:g} needs a null condition: a call that begins with 1 or below has none")
        g = g if is_guided(g) and low <= t <= high else 1.0
        at_once = embedded and null is None

        def evaluate(which: str, x: Sample) -> Tensor:
            told = {"guidance": _times(g if at_once else 1.0, len(x), x.device)} if embedded else {}
            times = [transport.c_noise(_times(time, len(x), x.device)) for time in (t, r)]
            caching = getattr(network, "is_cache_enabled", False)  # of diffusers, by the name of the evaluation
            with network.cache_context(which) if caching else nullcontext():
                answer: Tensor = network(x, *times, *encoded(which, state()), **options, **told)
            return answer.float()

        if at_once or not is_guided(g):
            return Prediction(evaluate("condition", x), 1, g)
        if both is not None:
            F, F_null = evaluate("both", torch.cat([x, x])).chunk(2)
        else:
            F, F_null = evaluate("condition", x), evaluate("null", x)
        return Prediction(F_null + g * (F - F_null), 2, g)

    return f


def joined(
    network: Any, condition: tuple[Any, Tensor | None], null: tuple[Any, Tensor | None]
) -> tuple[Tensor, Tensor | None] | None:
    """A condition and the empty one as one batch, that of the condition first.

    None where they cannot be: they are no tensors of the same number of rows, or must be padded to one length although
    the network does not say (`config.mask_text`) that it leaves padding out.
    """
    states, masks = zip(condition, null, strict=True)
    if not all(isinstance(each, Tensor) for each in states) or states[0].shape[:1] != states[1].shape[:1]:
        return None
    if states[0].shape == states[1].shape and masks == (None, None):
        return torch.cat(states), None
    if any(each.ndim != 3 for each in states) or states[0].shape[2:] != states[1].shape[2:]:
        return None
    pads = [max(other.shape[1] for other in states) - each.shape[1] for each in states]
    if any(pads) and not getattr(getattr(network, "config", None), "mask_text", False):
        return None
    whole = tuple(
        torch.ones(each.shape[:2], dtype=torch.bool, device=each.device) if mask is None else mask
        for each, mask in zip(states, masks, strict=True)
    )
    return (
        torch.cat([pad(each, (0, 0, 0, more)) for each, more in zip(states, pads, strict=True)]),
        torch.cat([pad(each, (0, more)) for each, more in zip(whole, pads, strict=True)]),
    )


class Memory(NamedTuple):
    """What the velocity jump before this one left behind: the data and noise it stood for, and when and how guided."""

    data: Sample
    noise: Sample
    t: float
    scale: float


def extrapolated(transport: Transport, F: Sample, t: float, r: float, before: Memory) -> Sample:
    """F in the middle of the jump from t to r, to first order: the two-step Adams-Bashforth method.

    F = alpha_hat x + sigma_hat z changes with its coefficients, which the transition follows exactly, and with the data
    x and the noise z that the network has in mind. How fast these change is told from what was in mind at the velocity
    jump before, so that the error of a jump is of third order in its length on every transport, and nothing where the
    true F is linear in time on straight lines (there F + (t - r) / (2 (t_before - t)) (F - F_before)).
    """
    there = torch.full((len(F),), t, dtype=before.data.dtype, device=F.device)
    return F + (t - r) / (2 * (before.t - t)) * (F - transport.target(before.data, before.noise, there))


@torch.no_grad()
def sample(
    f: Callable[[Sample, float, float], Prediction],
    transport: Transport,
    x: Sample,
    times: int | Sequence[float] | Tensor,
    *,
    stochasticity: float = 0.0,
    velocity_below: float = 0.0,
    memory: bool = False,
    seeds: Sequence[int] | None = None,
    callback: Callable[[Step], Sample | None] | None = None,
) -> Sampled:
    """Carry noise to data in any number of transitions.

    Args:
        f: what the network predicts at t for the transition to r, and at what cost: see `guided`.
        x: where the path begins, at the first of the times: see `initial_sample`.
        times: the decreasing times, or a number of uniform steps from t_max to t_min.
        stochasticity: 0 is deterministic. With c > 0 each step but the last jumps below its target r, to
            r - c (r - t_min), and re-noises to r with fresh noise; 1 is multistep consistency sampling.
        velocity_below: jumps of at most this share of the time range ask the network for the velocity f(x_t, t, t) and
            carry that to r, an Euler step on straight lines. 0: none does; 1: all, for networks that know nothing else.
        memory: carry along a velocity jump that follows another what F is in its middle (`extrapolated`).
        seeds: of the fresh noise, one an image, which follows upon the `noise` that their images begin with.
        callback: called after each step; a tensor it returns takes the place of x_r. It may raise `StopSampling`.

    Raises:
        InputError: a schedule that does not decrease, an option that is none of its kind, stochasticity without seeds.
    """
    times = _decreasing(times if hasattr(times, "__len__") else schedule(transport, times))
    stochasticity = bounds.check("stochasticity", stochasticity, bounds.Share)
    share = bounds.check("velocity_below", velocity_below, bounds.Share)
    short = share * (transport.t_max - transport.t_min) * (1 + 1e-5)  # of equal jumps in float32 all are, or none is
    if stochasticity and (seeds is None or len(seeds) != len(x)):
        raise InputError(f"stochastic sampling needs one seed an image, got {bounds.shown(seeds)}")
    generators = [generator_of(seed) for seed in seeds or []] if stochasticity else []
    _ = [_noise(x.shape[1:], [each]) for each in generators]  # what their images begin with
    at = partial(_times, count=len(x), device=x.device)
    x, nfe, before = x.float(), 0, None
    for i, (t, t_next) in enumerate(pairwise(times)):
        r = t_next if i == len(times) - 2 else t_next - stochasticity * (t_next - transport.t_min)
        velocity = t - r <= short
        F, evaluations, scale = f(x, t, t if velocity else r)
        nfe += evaluations
        jump = Memory(*transport.decompose(x, F, at(t)), t, scale) if memory and velocity else None
        if jump and before and before.scale == scale:
            F = extrapolated(transport, F, t, r, before)
        estimate = partial(_data, transport, x, F, at(t))
        x, before = transport.transition(x, F, at(t), at(r)), jump
        if r < t_next:  # fresh noise makes another path
            fresh = _noise(x.shape[1:], generators).to(x)
            x, before = transport.renoise(x, at(r), at(t_next), fresh), None
        if callback is not None:
            kept = x.clone() if before else None  # the callback may write into x
            try:
                changed = callback(Step(i, t, t_next, x, estimate))
            except StopSampling:
                return Sampled(x, i + 1, nfe)
            x = x if changed is None else changed
            before = before if kept is not None and torch.equal(x, kept) else None
    return Sampled(x, len(times) - 1, nfe)


def _data(transport: Transport, x_t: Sample, F: Sample, t: Tensor) -> Sample:
    return transport.decompose(x_t, F, t)[0]


def _decreasing(times: Any) -> list[float]:
    """The times in float32. Raises `InputError` where they do not decrease."""
    listed: list[float] = torch.as_tensor(times, dtype=torch.float32, device="cpu").tolist()
    if len(listed) < 2 or not all(t > r for t, r in pairwise(listed)):
        raise InputError(f"times must decrease and number at least two, got {bounds.shown(listed)}")
    return listed
