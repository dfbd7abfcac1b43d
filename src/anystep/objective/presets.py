"""Objectives by name: which pairs (t, r) a network learns, from what, and from which paper.

All of them train the same network with the same transport, and all are the transition objective with other parts: the
entries below name them by the fields of `anystep.training.config.ObjectiveConfig`. Fields that an entry leaves out are
those of the paper's transition objective, so that a comparison changes one thing. `sampling` is how a network trained
that way is meant to be sampled: `transition` by f(x_t, t, r), `instantaneous` by f(x_t, t, t) (Euler steps),
`consistency` by f(x_t, t, t_min) and fresh noise after every step but the last.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

ObjectiveKind = Literal[
    "transition", "any_step", "flow_matching", "consistency", "mean_flow", "improved_mean_flow", "alpha_flow", "soflow",
    "shortcut", "terminal", "self_evaluation",
]  # fmt: skip
Sampling = Literal["transition", "instantaneous", "consistency"]


@dataclass(frozen=True)
class ObjectivePreset:
    """An objective of the literature.

    Attributes:
        label: its name in figures.
        source: the paper, and the equation of the target.
        equation: the target where t > r, on straight lines (A = 1, B = r - t), with v = f(x_t, t, t).
        options: fields of `ObjectiveConfig`.
        sampling: how the network is sampled, as above.
    """

    label: str
    source: str
    equation: str
    options: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = "transition"


# options that several of them have
BY_FORWARD_MODE = {
    "derivative": "forward_mode", "diffusion_share": 0.75, "consistency_share": 0.0, "weight": "constant",
}  # fmt: skip
IMPLICIT = {"target": "implicit", "consistency_share": 0.0, "weight": "constant"}

OBJECTIVES: dict[ObjectiveKind, ObjectivePreset] = {
    # every pair t >= r, half of them t = r and a tenth of them r = t_min; df/dt by central differences
    "transition": ObjectivePreset(
        "transition (paper)", "TiM, arXiv 2509.04394, eq. 10", "F - (t - r) df/dt, f along (x, z)"
    ),
    # ours: t is a single draw where t = r, so that little noise is seen as often as much; nearly all samples are t = r,
    # so that v stays as good as flow matching's, and most others r = t_min; df/dt is taken along v, which is half of F
    "any_step": ObjectivePreset(
        "any-step (ours)",
        "this project, docs/results/objectives.md",
        "(F + v) / 2 - (t - r) df/dt, f along v",
        {
            "derivative": "one_sided",
            "along": "velocity",
            "velocity_share": 0.5,
            "diffusion_share": 0.97,
            "consistency_share": 0.02,
            "weight": "constant",
            "diffusion_times": {"mean": -0.4, "std": 1.2},
        },
    ),
    # t = r alone, where the identity is F = alpha_hat x + sigma_hat z
    "flow_matching": ObjectivePreset(
        "flow matching",
        "arXiv 2210.02747, eq. 14 (2209.03003 for straight lines)",
        "none: t = r alone",
        {"diffusion_share": 1.0, "consistency_share": 0.0},
        sampling="instantaneous",
    ),
    # r = t_min alone: the end of a transition stays the same along a trajectory, d/dt [A(t, 0) x_t + B(t, 0) f] = 0
    "consistency": ObjectivePreset(
        "consistency",
        "arXiv 2303.01469 in continuous time (2410.11081, eq. 6)",
        "F - t df/dt, r = t_min alone",
        {"diffusion_share": 0.0, "consistency_share": 1.0},
        sampling="consistency",
    ),
    # a quarter of the pairs with r < t (its table 1a), every interval weighted alike
    "mean_flow": ObjectivePreset(
        "MeanFlow",
        "arXiv 2505.13447, eq. 10",
        "F - (t - r) df/dt by forward mode, f along (x, z)",
        BY_FORWARD_MODE,
    ),
    # the derivative follows the network's own velocity, here f(x_t, t, t) (its boundary condition) and no second head
    "improved_mean_flow": ObjectivePreset(
        "improved MeanFlow",
        "arXiv 2512.02012",
        "F - (t - r) df/dt by forward mode, f along v",
        {**BY_FORWARD_MODE, "along": "velocity"},
    ),
    # from trajectory flow matching (ratio 1) along a logistic curve to 0.005, below which the paper takes MeanFlow's
    # derivative; the paper's weight, the ratio of what is not t = r, is left out
    "alpha_flow": ObjectivePreset(
        "alpha-Flow",
        "arXiv 2510.20771",
        "a F + (1 - a) f(x_s, s, r), s = a r + (1 - a) t",
        {**IMPLICIT, "ratio": (1.0, 0.005), "ratio_falls": "linear", "diffusion_share": 0.25},
    ),
    "soflow": ObjectivePreset(
        "SoFlow",
        "arXiv 2512.15657",
        "a F + (1 - a) f(x_s, s, r), s = a r + (1 - a) t",
        {**IMPLICIT, "ratio": (0.1, 0.002), "diffusion_share": 0.75},
    ),
    # one step must equal two of half its length. A quarter of the pairs with r < t (its section 3.2); an eighth of
    # these are the whole way to the data. The two steps are those of the average
    "shortcut": ObjectivePreset(
        "shortcut",
        "arXiv 2410.12557, eq. 5",
        "(f_1 + f_2) / 2, two steps of half the length",
        {
            "target": "self_consistency",
            "diffusion_share": 0.75,
            "consistency_share": 0.03125,
            "weight": "constant",
            "ema_teacher": True,
            # divided by itself, the tiny residual of the two steps would outweigh all that is learned from data
            "adaptive": 0.0,
        },
    ),
    # where a transition lands it moves with r as the velocity there says; three quarters of the pairs are t = r
    "terminal": ObjectivePreset(
        "Lagrangian (terminal velocity)",
        "arXiv 2505.18825; 2511.19797",
        "v(x_r, r) + (t - r) df/dr",
        {"target": "terminal", "diffusion_share": 0.75, "consistency_share": 0.0, "ema_teacher": True},
    ),
    # no identity: the network's own data, re-noised, is judged by its own velocity with and without the condition
    "self_evaluation": ObjectivePreset(
        "Self-E",
        "arXiv 2512.22374",
        "the F of x' ~ x + l (x^ + x~(c) - x~(null)), x~ at x^ re-noised to r, l = t / (1 - t) - r / (1 - r)",
        {"target": "self_evaluation", "consistency_share": 0.0, "weight": "constant"},
    ),
}
