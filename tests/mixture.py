"""A mixture of two Gaussians on a line, for which the exact transition of every transport is known."""

from collections.abc import Callable

import torch
from torch import Tensor

from anystep.transport import Transport

Field = Callable[[Transport, Tensor, Tensor], Tensor]
WEIGHTS, MEANS, SPREAD = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 0.8]).double(), 0.4


def posterior(transport: Transport, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, mean, variance) of each component of p(x | x_t); x_t is (n,), the answers (n, 2) or (n, 1)."""
    c = transport.coefficients(t)
    alpha, sigma = c.alpha[:, None], c.sigma[:, None]
    total = (alpha * SPREAD) ** 2 + sigma**2
    gap = x_t[:, None] - alpha * MEANS
    weight = torch.softmax(WEIGHTS.log() - gap**2 / (2 * total), dim=1)
    mean = MEANS + alpha * SPREAD**2 / total * gap
    return weight, mean, SPREAD**2 * sigma**2 / total


def instantaneous(transport: Transport, x_t: Tensor, t: Tensor, component: int | None = None) -> Tensor:
    """f(x_t, t, t) = E[F | x_t], of the mixture or of one component alone."""
    weight, mean, _ = posterior(transport, x_t, t)
    x = (weight * mean).sum(1) if component is None else mean[:, component]
    c = transport.coefficients(t)
    return c.alpha_hat * x + c.sigma_hat * (x_t - c.alpha * x) / c.sigma


def guided(transport: Transport, x_t: Tensor, t: Tensor, component: int, scale: Tensor) -> Tensor:
    """Classifier-free guidance towards one component."""
    conditional, null = (instantaneous(transport, x_t, t, each) for each in (component, None))
    return scale * conditional + (1 - scale) * null


def exact_jump(
    transport: Transport, x_t: Tensor, t: Tensor, r: Tensor, steps: int = 25, field: Field = instantaneous
) -> Tensor:
    """f(x_t, t, r) along the trajectory of an instantaneous `field`, by default the probability flow's, by fourth-order
    Runge-Kutta in log time or time.
    """
    logarithmic = transport.t_max > 10

    def velocity(x: Tensor, u: Tensor) -> Tensor:
        time = u.exp() if logarithmic else u
        data, noise = transport.decompose(x, field(transport, x, time), time)
        rate = transport.rates(time)
        return (rate.alpha * data + rate.sigma * noise) * (time if logarithmic else 1.0)

    u, end = (t.log(), r.log()) if logarithmic else (t, r)
    h, x = (end - u) / steps, x_t
    for _ in range(steps):
        k1 = velocity(x, u)
        k2 = velocity(x + h / 2 * k1, u + h / 2)
        k3 = velocity(x + h / 2 * k2, u + h / 2)
        k4 = velocity(x + h * k3, u + h)
        x, u = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), u + h
    A, B = transport.transition_coefficients(t, r)
    return (x - A * x_t) / B
