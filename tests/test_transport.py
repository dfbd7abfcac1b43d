"""The algebra of transports, exact for all of them and for every sigma_data."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixture import exact_jump, posterior
from numpy.polynomial.hermite_e import hermegauss
from safetensors.torch import load_file
from torch import Tensor

from anystep.errors import InputError
from anystep.objective import ModelGuidance
from anystep.transport import TRANSPORTS, Transport, TransportName, make_transport

NAMES = list(TRANSPORTS)
SIGMAS = [0.5, 1.0, 2.0]
EVERY = [(name, sigma) for name in NAMES for sigma in SIGMAS]
units = st.floats(0, 1, allow_nan=False)


def place(transport: Transport, unit: float) -> Tensor:
    """A time inside the range, away from its ends, spread evenly in log time where the range spans decades."""
    low, high = transport.t_min + 0.01 * (transport.t_max - transport.t_min), transport.t_max * 0.99
    if transport.t_max > 10:
        return torch.tensor([math.exp(math.log(0.05) + unit * math.log(high / 0.05))], dtype=torch.float64)
    return torch.tensor([low + unit * (high - low)], dtype=torch.float64)


def draws(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


def training_times(transport: Transport, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return transport.times(torch.randn(count, generator=generator), torch.rand(count, generator=generator))


def scale_of(transport: Transport, t: Tensor) -> float:
    return max(1.0, float(transport.coefficients(t).sigma.abs()))


@pytest.mark.parametrize(("name", "sigma"), EVERY)
@given(a=units, b=units, seed=st.integers(0, 1000))
def test_a_transition_lands_at_the_interpolation(name: str, sigma: float, a: float, b: float, seed: int) -> None:
    transport = make_transport(name, sigma_data=sigma)
    t, r = place(transport, max(a, b)), place(transport, min(a, b))
    x, z = draws(seed)
    landed = transport.transition(transport.interpolate(x, z, t), transport.target(x, z, t), t, r)
    assert (landed - transport.interpolate(x, z, r)).abs().max() <= 1e-10 * scale_of(transport, t)


@pytest.mark.parametrize(("name", "sigma"), EVERY)
@given(a=units, b=units, c=units, seed=st.integers(0, 1000))
def test_two_transitions_are_one(name: str, sigma: float, a: float, b: float, c: float, seed: int) -> None:
    transport = make_transport(name, sigma_data=sigma)
    r, s, t = (place(transport, unit) for unit in sorted((a, b, c)))
    x, z = draws(seed)
    x_t = transport.interpolate(x, z, t)
    halfway = transport.transition(x_t, transport.target(x, z, t), t, s)
    through = transport.transition(halfway, transport.target(x, z, s), s, r)
    direct = transport.transition(x_t, transport.target(x, z, t), t, r)
    assert (through - direct).abs().max() <= 1e-10 * scale_of(transport, t)


@pytest.mark.parametrize(("name", "sigma"), EVERY)
@given(a=units, seed=st.integers(0, 1000))
def test_at_t_equal_r_the_target_is_the_diffusion_target(name: str, sigma: float, a: float, seed: int) -> None:
    transport = make_transport(name, sigma_data=sigma)
    t = place(transport, a)
    x, z = draws(seed)
    target = transport.transition_target(x, z, t, t, derivative=1e3 * torch.ones_like(x))
    torch.testing.assert_close(target, transport.target(x, z, t))


@pytest.mark.parametrize(("name", "sigma"), EVERY)
@given(a=units, seed=st.integers(0, 1000))
def test_decompose_inverts_interpolate_and_target(name: str, sigma: float, a: float, seed: int) -> None:
    transport = make_transport(name, sigma_data=sigma)
    t = place(transport, a)
    x, z = draws(seed)
    back = transport.decompose(transport.interpolate(x, z, t), transport.target(x, z, t), t)
    # x is what is left of x_t when the noise, larger by sigma / alpha, is taken away
    c = transport.coefficients(t)
    tolerance = 1e-12 * max(1.0, float(c.sigma / c.alpha))
    assert (back[0] - x).abs().max() <= tolerance
    assert (back[1] - z).abs().max() <= 1e-10


@pytest.mark.parametrize(("name", "sigma"), EVERY)
@given(a=units, b=units)
def test_identity_scale_agrees_with_autodiff_of_b(name: str, sigma: float, a: float, b: float) -> None:
    transport = make_transport(name, sigma_data=sigma)
    t, r = place(transport, max(a, b)), place(transport, min(a, b))
    _, B = transport.transition_coefficients(t, r)
    time = t.clone().requires_grad_()
    (rate,) = torch.autograd.grad(transport.transition_coefficients(time, r)[1].sum(), time)
    torch.testing.assert_close(transport.identity_scale(t, r), B / rate, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("sigma", SIGMAS)
@given(a=units, b=units)
def test_edm_has_its_closed_form_for_every_sigma_data(sigma: float, a: float, b: float) -> None:
    transport = make_transport("edm", sigma_data=sigma)
    t, r = place(transport, max(a, b)), place(transport, min(a, b))
    A, B = transport.transition_coefficients(t, r)
    n_t, n_r = ((time**2 + sigma**2).sqrt() for time in (t, r))
    torch.testing.assert_close(A, (sigma**2 + t * r) / (n_t * n_r))
    torch.testing.assert_close(B, sigma * (t - r) / (n_t * n_r), atol=1e-12, rtol=1e-7)


def test_ot_fm_and_trigflow_reduce_to_their_published_targets() -> None:
    x, z = (torch.randn(5, 4, dtype=torch.float64) for _ in range(2))
    slope, r = torch.randn(5, 4, dtype=torch.float64), torch.linspace(0.1, 0.4, 5, dtype=torch.float64)
    t = r + 0.3
    flow = make_transport("ot_fm").transition_target(x, z, t, r, slope)
    torch.testing.assert_close(flow, z - x - (t - r)[:, None] * slope)
    trig = make_transport("trigflow")
    expected = trig.target(x, z, t) - (t - r).tan()[:, None] * (trig.interpolate(x, z, t) + slope)
    torch.testing.assert_close(trig.transition_target(x, z, t, r, slope), expected)


# ----------------------------------------------------------------------------------------------------------------------
# On a Gaussian mixture the exact transition is known, and it is what the target has for its mean


@pytest.mark.parametrize(("name", "sigma"), [(name, sigma) for name, sigma in EVERY if name == "edm" or sigma == 1.0])
def test_the_mean_of_the_target_is_the_exact_transition(name: str, sigma: float) -> None:
    transport = make_transport(name, sigma_data=sigma)
    t_at, r_at = {"edm": (1.5, 0.3), "ve": (1.5, 0.3), "trigflow": (1.1, 0.4)}.get(name, (0.6, 0.25))
    x_t = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64)
    t, r = torch.full_like(x_t, t_at), torch.full_like(x_t, r_at)
    h = 1e-4
    f, later, earlier, right, left = exact_jump(
        transport, torch.cat([x_t, x_t, x_t, x_t + h, x_t - h]), torch.cat([t, t + h, t - h, t, t]), r.repeat(5)
    ).chunk(5)
    d_time, d_place = (later - earlier) / (2 * h), (right - left) / (2 * h)

    weight, mean, variance = posterior(transport, x_t, t)
    nodes, mass = (torch.from_numpy(part) for part in hermegauss(9))  # Gaussian quadrature over each component
    c, rate = transport.coefficients(t), transport.rates(t)
    total = torch.zeros_like(x_t)
    for component in range(2):
        for node, share in zip(nodes, mass, strict=True):
            x = mean[:, component] + variance[:, 0].sqrt() * node
            z = (x_t - c.alpha * x) / c.sigma
            slope = d_time + d_place * (rate.alpha * x + rate.sigma * z)
            total += (
                weight[:, component] * share / math.sqrt(2 * math.pi) * transport.transition_target(x, z, t, r, slope)
            )
    torch.testing.assert_close(total, f, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Draws, noise, names


@pytest.mark.parametrize("name", NAMES)
def test_training_times_stay_in_the_range(name: str) -> None:
    transport = make_transport(name)
    t = training_times(transport, 20_000)
    assert t.dtype == torch.float32
    assert t.min() >= transport.t_min
    assert t.max() <= transport.t_max
    assert t.std() > 0


def test_ot_fm_times_are_logit_normal() -> None:
    t = training_times(make_transport("ot_fm", mean=-0.4, std=1.0), 50_000)
    logit = torch.logit(t.double())
    assert logit.mean().item() == pytest.approx(-0.4, abs=0.02)
    assert logit.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
@given(a=units, b=units)
def test_renoising_keeps_the_marginal(name: str, a: float, b: float) -> None:
    transport = make_transport(name)
    s, r = place(transport, min(a, b)), place(transport, max(a, b))
    at_s, at_r = transport.coefficients(s), transport.coefficients(r)
    one, none = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    data = transport.renoise(at_s.alpha.view(1, 1) * one, s, r, none)
    old, fresh = transport.renoise(at_s.sigma.view(1, 1) * one, s, r, none), transport.renoise(none, s, r, one)
    torch.testing.assert_close(data, at_r.alpha.view(1, 1))
    torch.testing.assert_close((old**2 + fresh**2).sqrt(), at_r.sigma.view(1, 1), rtol=1e-7, atol=1e-9)


def test_every_transport_is_one_that_recipes_know() -> None:
    assert list(get_args(TransportName)) == NAMES


def test_bad_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown transport 'flow'.*ot_fm"):
        make_transport("flow")
    with pytest.raises(ValueError, match="sigma"):
        make_transport("edm", sigma=1.0)
    with pytest.raises(ValueError, match="t_min"):
        make_transport("ot_fm", t_min=1.0)
    with pytest.raises(ValueError, match="sigma_data"):
        make_transport("edm", sigma_data=0.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ve", {"t_min": 0}, "t_min 0: expected a number from 1e-06"),
        ("edm", {"t_min": 0.0}, "t_min 0: expected a number from 1e-06"),
        ("vp", {"t_min": 0.0}, "t_min 0: expected a number above 0"),
        ("ot_fm", {"t_max": 2.0}, "t_max 2: expected"),
        ("trigflow", {"t_max": 1.6}, r"t_max 1\.6: expected"),
        ("ot_fm", {"std": math.nan}, "std nan: expected"),
        ("ot_fm", {"mean": math.inf}, "mean inf: expected"),
        ("edm", {"sigma_data": 1e-300}, "sigma_data 1e-300: expected"),
        ("ve", {"t_max": 1e300}, "t_max 1.*: expected"),
        ("ve", {"t_min": "0.1"}, r"t_min '0\.1': expected"),
        ("vp", {"beta_d": 1000.0}, "no finite path in float32"),
        ("ot_fm", {"t_min": 0.5, "t_max": 0.5 + 1e-12}, r"t_min 0\.5 must be below"),
    ],
)
def test_a_transport_states_what_its_options_may_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_transport(name, **options)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_whatever_a_transport_takes_leaves_a_finite_path(name: str, data: st.DataObject) -> None:
    ends = sorted([data.draw(st.floats(0, 100)), data.draw(st.floats(0, 100))])
    options = {"t_min": ends[0], "t_max": ends[1], "sigma_data": data.draw(st.floats(1e-4, 1e4))}
    try:
        transport = make_transport(name, **options)
    except InputError:
        return
    t = torch.linspace(transport.t_min, transport.t_max, 9)
    for numbers in (
        transport.coefficients(t),
        transport.rates(t),
        transport.transition_coefficients(t, t[0].expand(9)),
    ):
        assert all(each.isfinite().all() for each in numbers)
    assert transport.c_noise(t).isfinite().all()
    assert training_times(transport, 16).isfinite().all()


# ----------------------------------------------------------------------------------------------------------------------
# The reference's numbers


@pytest.mark.parametrize(
    ("key", "name"), [("edm_sigma_data_1", "edm"), *((name, name) for name in NAMES if name != "edm")]
)
def test_the_reference_gives_the_same_numbers(numbers: Path, key: str, name: str) -> None:
    stored = {k.removeprefix(f"{key}."): v for k, v in load_file(numbers / "transports.safetensors").items()}
    transport = make_transport(name, sigma_data=1.0)
    t, r = stored["t"].flatten(), stored["r"].flatten()
    x, z = stored["x"], stored["z"]
    ours = {
        "alpha": transport.coefficients(t).alpha.view(-1, 1, 1, 1),
        "d_sigma": transport.rates(t).sigma.view(-1, 1, 1, 1),
        "x_t": transport.interpolate(x, z, t),
        "x_r": transport.transition(stored["x_t"], stored["F"], t, r),
        "target": transport.transition_target(x, z, t, r, stored["dF"]),
        "c_noise": transport.c_noise(t).view(-1, 1, 1, 1),
    }
    guided = "target_guided_wgt1_wcond0.75_0.3to0.8"
    if guided in stored:
        F = ModelGuidance(1.0, 0.75, 0.3, 0.8)(transport.target(x, z, t), t, stored["F_cond"], stored["F_uncond"])
        ours[guided] = transport.transition_target(x, z, t, r, stored["dF"], F)
    for what, value in ours.items():
        torch.testing.assert_close(
            value, stored[what], rtol=1e-9, atol=1e-9, msg=lambda text, what=what: f"{what}: {text}"
        )
