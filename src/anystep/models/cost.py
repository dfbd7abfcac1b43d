"""What a network costs before it runs: operations, memory and time, counted on tensors without data.

The network runs on fake tensors, which have shapes but no memory, while its operations and live memory are counted.
Blocks are alike, so it is built with one and with two of them, and the difference is multiplied; in a network with
branches, that of the blocks of the trunk and that of the blocks of a branch.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from anystep.models.presets import PRESETS, build_transformer, depths_of


class LiveMemoryTracker(TorchDispatchMode):
    """Counts the bytes of storages that operations inside allocate and that are still referenced, now and at the peak.

    Args:
        known: tensors whose storages are not counted.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._note(each.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def flop_counter() -> FlopCounterMode:
    """A counter of operations, with the formula for attention on the CPU that PyTorch lacks."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    formula = {kernel: lambda q, k, v, *_, **__: int(sdpa_flop_count(q, k, v))}
    return FlopCounterMode(display=False, custom_mapping=formula)


@dataclass(frozen=True)
class NetworkCost:
    """The cost of one network on one batch.

    Attributes:
        parameters: number of weights of the whole network.
        flops: operations of one forward; a multiplication and an addition are two.
        forward_bytes: peak memory of a forward without gradient, beside the weights.
        saved_bytes: memory that a forward keeps for the backward pass, of both branches where there are two.
        training_bytes: peak memory of forward and backward, beside weights and gradients.
    """

    parameters: int
    flops: int
    forward_bytes: int
    saved_bytes: int
    training_bytes: int


def count_parameters(preset: str, **options: Any) -> int:
    """The number of weights of a preset, without allocating them. Raises `InputError` as `build_transformer` does."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_transformer(preset, **options).parameters())


def weight_bytes(preset: str, precision: torch.dtype, **options: Any) -> int:
    """Memory of the weights of a preset: four bytes each in layers that are kept in float32, whatever the precision."""
    with torch.device("meta"):
        network = build_transformer(preset, **options)
    kept = set(network._keep_in_fp32_modules)
    return sum(
        weight.numel() * (4 if kept & set(name.split(".")) else precision.itemsize)
        for name, weight in network.named_parameters()
    )


def extrapolated(preset: str, options: dict[str, Any], measure: Callable[[dict[str, Any]], Sequence[int]]) -> list[int]:
    """What `measure` gives for a network, from networks with one or two blocks in the trunk and in a branch."""
    depth, branch = depths_of(preset, options)

    def shallow(trunk: int, branch: int) -> Sequence[int]:
        return measure({**options, "depth": trunk + branch, "branch_depth": branch, "encoder_depth": 1})

    branches = min(branch, 1)
    one, two = shallow(1, branches), shallow(2, branches)
    whole = [first + (second - first) * (depth - branch - 1) for first, second in zip(one, two, strict=True)]
    if branch > 1:
        further = zip(whole, one, shallow(1, 2), strict=True)
        whole = [total + (second - first) * (branch - 1) for total, first, second in further]
    return whole


def network_cost(
    preset: str,
    batch: int,
    rows: int,
    columns: int,
    text_length: int = 256,
    precision: torch.dtype = torch.float32,
    checkpointing: bool = False,
    **options: Any,
) -> NetworkCost:
    """The cost of a preset on `batch` latents of rows x columns.

    Args:
        text_length: tokens of a caption, for a text-conditional network.
        precision: dtype of the blocks, by autocast.
        checkpointing: whether activations are computed again in the backward pass instead of being kept.
        options: options of the network, which replace those of the preset.

    Raises:
        InputError: an unknown preset or option.
    """

    def measure(options: dict[str, Any]) -> list[int]:
        fake = FakeNetwork(preset, options, InputShape(batch, rows, columns, text_length), precision, checkpointing)
        forward = fake.forward()
        return [forward.flops, forward.peak, *fake.training()]

    return NetworkCost(count_parameters(preset, **options), *extrapolated(preset, options, measure))


def forward_flops(preset: str, **options: Any) -> Callable[[int, int, int], int]:
    """Operations of one forward on one latent, from its rows, its columns and the tokens of its caption.

    They are a polynomial in its tokens N and those of its caption, L: every token costs the same, self-attention costs
    N², cross-attention N L, and the caption's projection L; so five points of small networks tell all other sizes
    exactly. Raises `InputError` on an unknown preset or option.
    """
    patch = int({**PRESETS.get(preset, {}), **options}["patch_size"])

    def measure(options: dict[str, Any]) -> list[int]:
        fake, counted = FakeNetwork(preset, options, InputShape(1, patch, patch, 1)), []
        for tokens, caption in ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2)):
            fake.set_shape(InputShape(1, patch, tokens * patch, caption))
            counted.append(fake.forward().flops)
        return counted

    f11, f21, f31, f12, f22 = extrapolated(preset, options, measure)
    square, both = (f31 - 2 * f21 + f11) // 2, f22 - f21 - f12 + f11
    caption, along = f12 - f11 - both, f21 - f11 - 3 * square - both
    once = f11 - along - square - caption - both

    def flops(rows: int, columns: int, text_length: int) -> int:
        tokens = rows * columns // patch**2
        return once + along * tokens + square * tokens**2 + text_length * (caption + both * tokens)

    return flops


class InputShape(NamedTuple):
    """A batch of latents of rows x columns, with captions of `text_length` tokens where the network reads them."""

    batch: int
    rows: int
    columns: int
    text_length: int = 256


class ForwardCost(NamedTuple):
    """Operations of a forward, those of them that are attention, and its peak memory beside weights and inputs."""

    flops: int
    attention: int
    peak: int


class FakeNetwork:
    """A network and its inputs without data.

    Args:
        options: options of the network, which replace those of the preset.
        precision: dtype of the blocks, by autocast.
        checkpointing: whether activations are computed again in the backward pass.
        key_grid: that of the network's `forward`.
    """

    def __init__(
        self, preset: str, options: dict[str, Any], shape: InputShape, precision: torch.dtype = torch.float32,
        checkpointing: bool = False, key_grid: int | None = None,
    ) -> None:  # fmt: skip
        self._mode, self._precision, self._key_grid = FakeTensorMode(), precision, key_grid
        with self._mode:
            self._network = build_transformer(preset, **options)
            for part in self._network.modules():  # whatever backend a program has chosen, none may store N x N
                if hasattr(part, "processor"):
                    part.processor._attention_backend = AttentionBackendName.NATIVE
            if checkpointing:
                self._network.enable_gradient_checkpointing()
        self.set_shape(shape)

    def set_shape(self, shape: InputShape) -> None:
        """Replace the inputs by ones of another shape."""
        config, (batch, rows, columns, text_length) = self._network.config, shape
        with self._mode:
            condition = (
                torch.zeros(batch, dtype=torch.long)
                if config.text_width is None
                else torch.empty(batch, text_length, config.text_width)
            )
            self._inputs = (torch.empty(batch, config.in_channels, rows, columns), torch.empty(batch), condition)

    def _forward(self) -> Tensor:
        """The output of the branch of transitions, where there is one; in training the velocity's is added to it."""
        x, t, condition = self._inputs
        options: dict[str, Any] = {}
        if self._network.transition_branch is not None:
            options = {"branch": "transition", "return_velocity": torch.is_grad_enabled()}
        with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == torch.bfloat16):
            found: Any = self._network(x, t, t, condition, key_grid=self._key_grid, **options)
        answer: Tensor = found[0] + found[1] if isinstance(found, tuple) else found
        return answer

    def forward(self) -> ForwardCost:
        """What a forward without gradient costs."""
        known = [*self._network.parameters(), *self._inputs]
        with self._mode, torch.no_grad(), flop_counter() as counter, LiveMemoryTracker(known) as memory:
            self._forward()
        kinds = counter.get_flop_counts()["Global"]
        attention = sum(count for kind, count in kinds.items() if "attention" in str(kind))
        return ForwardCost(int(counter.get_total_flops()), int(attention), memory.peak)

    def training(self) -> tuple[int, int]:
        """What a forward with gradient keeps, and the peak of it and its backward, beside weights and gradients."""
        known = [*self._network.parameters(), *self._inputs]
        with self._mode:
            for weight in self._network.parameters():
                weight.grad = torch.empty_like(weight)  # gradients are no part of the peak
                known.append(weight.grad)
            with LiveMemoryTracker(known) as memory:
                answer = self._forward()
                saved = memory.live
                answer.sum().backward()
        return saved, memory.peak
