"""What a seed of any size makes of PyTorch's CPU generator, which reads the low 32 bits alone."""

import torch


def mixed(seed: int) -> int:
    """A seed of 32 bits: itself below 2**32, and else all its bits, since 0 and 2**32 are not the same seed."""
    return (seed ^ (seed >> 32) * 0x9E3779B1) % 2**32  # the golden ratio's odd number, so that no two k * 2**32 meet


def generator_of(seed: int) -> torch.Generator:
    """A CPU generator at the beginning of what a seed stands for."""
    return torch.Generator().manual_seed(mixed(seed))


def drawn_seeds(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[int]:
    """One seed an image: from one generator for all, PyTorch's own where it is None, or from the generator of each."""
    each = generator if isinstance(generator, list) else [generator] * count
    devices = ["cpu" if one is None else one.device for one in each]
    drawn = [torch.randint(2**62, (1,), generator=one, device=on) for one, on in zip(each, devices, strict=True)]
    return [int(number) % 2**32 for number in drawn]
