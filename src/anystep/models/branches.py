"""Networks whose last blocks exist twice: one branch predicts the velocity, another transitions over an interval.

A branch runs on its own images alone: their number depends on the data, as that of the derivative's does, and most
images of a training batch have no interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from anystep.models.blocks import BlockInputs, FinalLayer
from anystep.models.layers import Tokens

Run = Callable[[nn.Module, Tensor, BlockInputs, Any], Tensor]  # run(block, tokens, inputs, caption) -> tokens
Images = Int[Tensor, " _chosen"]  # indices of images, of which each branch has its own number


class Branch(NamedTuple):
    """Blocks and the final layer after them."""

    blocks: Sequence[nn.Module]
    final_layer: nn.Module


class TransitionBranch(nn.Module):
    """The second copy of the last blocks and the final layer, for transitions over an interval."""

    def __init__(self, blocks: nn.ModuleList, final_layer: FinalLayer) -> None:
        super().__init__()
        self.blocks, self.final_layer = blocks, final_layer


def run_branches(
    run: Run,
    branches: tuple[Branch, Branch],
    tokens: Tokens,
    inputs: BlockInputs,
    has_interval: Bool[Tensor, " images"] | bool,
    all_velocities: bool,
    run_both: bool,
    trunk_share: float,
) -> tuple[Tensor, Tensor | None]:
    """The output for each image from its own branch, and the velocity of all images where it is wanted.

    Args:
        branches: that of transitions and that of the velocity.
        has_interval: whether r < t; a truth value is that of all images, without a look at the device.
        run_both: whether each branch must run, on the first image where none needs it.
        trunk_share: factor on the gradient from the branch of transitions into what both share.
    """
    every = torch.arange(inputs.c.shape[0], device=inputs.c.device)  # no len(), which exporters take for a constant
    moving, still = _branch_images(has_interval, every, all_velocities, run_both)
    depth, transition, velocity = len(branches[0].blocks), None, None
    if still.shape[0]:
        own = replace(inputs, captions=inputs.captions[-2 * depth : -depth])
        velocity = _run_branch(run, branches[1], still, tokens, own)
    if moving.shape[0]:
        captions = inputs.captions[-depth:]
        if isinstance(captions[0], Tensor):
            captions = [scale_gradient(captions[0], trunk_share)] * depth
        own = replace(inputs, c=scale_gradient(inputs.c, trunk_share) + inputs.interval, captions=captions)
        transition = _run_branch(run, branches[0], moving, scale_gradient(tokens, trunk_share), own)
    if transition is None or velocity is None:
        out = velocity if transition is None else transition
        assert out is not None
        return out, out if all_velocities else None
    if isinstance(has_interval, bool):
        has_interval = torch.full_like(every, has_interval, dtype=torch.bool)
    mask = has_interval[:, None, None]
    if inputs.packing is not None:
        mask = has_interval[inputs.packing.index_on(has_interval.device)][None, :, None]
    return torch.where(mask, transition, velocity), velocity if all_velocities else None


def _branch_images(
    has_interval: Bool[Tensor, " images"] | bool, every: Images, all_velocities: bool, run_both: bool
) -> tuple[Images, Images]:
    """The images that each branch runs on, that of transitions first."""
    if isinstance(has_interval, bool):
        moving, still = (every, every[:0]) if has_interval else (every[:0], every)
    else:
        moving, still = has_interval.nonzero()[:, 0], (~has_interval).nonzero()[:, 0]
    still = every if all_velocities else still
    if run_both:
        moving, still = (images if len(images) else every[:1] for images in (moving, still))
    return moving, still


def _run_branch(run: Run, branch: Branch, images: Images, tokens: Tensor, inputs: BlockInputs) -> Tensor:
    """The output of a branch for these images, with zeros for all others."""
    own, x = inputs, tokens
    if images.shape[0] < inputs.c.shape[0]:
        own, x = inputs.select(images), inputs.gather(tokens, images)
    for block, caption in zip(branch.blocks, own.captions, strict=True):
        x = run(block, x, own, caption)
    return inputs.scatter(branch.final_layer(x, own.c, own.packing), images, tokens)


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """The value itself, through which the gradient flows multiplied by `factor`."""
    # without gradients tangents may be asked for, which detach() would cut
    return torch.lerp(value.detach(), value, factor) if factor < 1 and torch.is_grad_enabled() else value
