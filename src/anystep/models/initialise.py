"""The weights of a transformer before training."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from anystep.models.layers import Modulation

if TYPE_CHECKING:
    from anystep.models.transformer import TransitionTransformer2DModel


def initialise(network: "TransitionTransformer2DModel") -> None:
    """Random weights with which blocks are the identity, the prediction is zero, and what the paper lacks is silent."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    interval, guidance = network.interval_embed, network.guidance_embedding
    small = [network.time_embed, interval, guidance, network.caption_projection, network.class_embed]
    for module in (part for whole in small if whole is not None for part in whole.modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    silent = [network.final_layer.linear, *(each.down for each in network.modules() if isinstance(each, Modulation))]
    if network.config.zero_init_interval and interval is not None:
        silent.append(interval.linear_2)  # interval_qkv has no bias, so that it is silent too
    if guidance is not None:
        silent.append(guidance.linear_2)
    if network.caption_pooling is not None:
        silent.append(network.caption_pooling.linear_2)
    if network.position_embedding is not None:
        silent.append(network.position_embedding.linear)
    for parameter in (parameter for linear in silent for parameter in linear.parameters()):
        nn.init.zeros_(parameter)


@torch.no_grad()
def start_transition_branch(network: "TransitionTransformer2DModel") -> None:
    """Make the branch of transitions a copy of the velocity's, with a zero interval: then f(x, t, r) = v(x, t)."""
    branch = network.transition_branch
    assert branch is not None
    assert network.interval_embed is not None
    for parameter in network.interval_embed.linear_2.parameters():
        parameter.zero_()
    own = nn.ModuleList([*network.blocks[-network.config.branch_depth :], network.final_layer])
    copy = nn.ModuleList([*branch.blocks, branch.final_layer])
    copy.load_state_dict(own.state_dict(), strict=False)  # interval_qkv has no part while the interval is zero
