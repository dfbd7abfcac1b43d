"""Objectives by name: which pairs (t, r) a network learns, and from what.

All of them train the same network on the same path, and all are the transition objective with other settings: the
entries below say which, in the words of `ObjectiveConfig`. What is not said stays as the transition objective has it,
so that a comparison changes one thing. `sampling` is how a network trained that way is meant to be asked:
`transition` for f(x_t, t, r), `instantaneous` for f(x_t, t, t) (an Euler step), `consistency` for f(x_t, t, t_min) and
fresh noise after every step but the last.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

ObjectiveKind = Literal["transition", "flow_matching", "consistency", "mean_flow", "shortcut"]
Sampling = Literal["transition", "instantaneous", "consistency"]


@dataclass(frozen=True)
class ObjectivePreset:
    """`label` for figures; `options` of the transition objective; `sampling` as above."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    sampling: Sampling = "transition"


OBJECTIVES: dict[ObjectiveKind, ObjectivePreset] = {
    # arXiv 2509.04394, eq. 10: every pair t >= r, half of them t = r and a tenth of them r = t_min;
    #   f(x_t, t, r) <- F + (B / dB/dt) (dF/dt - df/dt),   df/dt by central differences
    "transition": ObjectivePreset("transition (DDE)"),
    # arXiv 2210.02747, eq. 14 (2209.03003 for straight lines): t = r alone, where the identity is
    #   f(x_t, t, t) <- F = alpha_hat x + sigma_hat z
    "flow_matching": ObjectivePreset(
        "flow matching", {"diffusion_share": 1.0, "consistency_share": 0.0}, sampling="instantaneous"
    ),
    # arXiv 2303.01469 in continuous time (2410.11081, eq. 6): r = t_min alone. That x(x_t, t) does not change along a
    # path, d/dt [A(t, 0) x_t + B(t, 0) f] = 0, is the identity at r = t_min
    "consistency": ObjectivePreset(
        "consistency", {"diffusion_share": 0.0, "consistency_share": 1.0}, sampling="consistency"
    ),
    # arXiv 2505.13447, eq. 10: u(x_t, t, r) <- v - (t - r) du/dt by forward-mode differentiation, a quarter of the
    # pairs with r < t (its table 1a), every interval weighted alike. Written for straight lines; here on every path
    "mean_flow": ObjectivePreset(
        "MeanFlow",
        {"derivative": "forward_mode", "diffusion_share": 0.75, "consistency_share": 0.0, "weight": "constant"},
    ),
    # arXiv 2410.12557, eq. 5: one step must equal two of half its length, f <- (f_1 + f_2) / 2 on straight lines.
    # A quarter of the pairs with r < t (its section 3.2); an eighth of these are the whole way to the data
    "shortcut": ObjectivePreset(
        "shortcut",
        {
            "target": "self_consistency",
            "diffusion_share": 0.75,
            "consistency_share": 0.03125,
            "weight": "constant",
            # divided by itself, the tiny residual of the two steps would outweigh all that is learned from data
            "adaptive": False,
        },
    ),
}
