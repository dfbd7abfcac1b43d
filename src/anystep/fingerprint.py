"""What tells one network, or one file, from another of the same name."""

import hashlib
from pathlib import Path

from torch import nn


def weights_digest(network: nn.Module) -> str:
    """Of all tensors of a network and their names."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Of all that a file says."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
