"""What tells one network, or one file, from another of the same name."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn


def weights_digest(network: nn.Module, ignored: str | None = None) -> str:
    """A digest of all tensors of a network and their names, but for those whose names begin with `ignored`."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if ignored is not None and name.startswith(ignored):
            continue
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().view(-1).numpy())
    return digest.hexdigest()[:16]


def encoder_digest(model: Any, *beside: Any) -> str:
    """A digest of all that the last hidden states of a model of transformers depend on, and of `beside`.

    Neither the name of its folder nor the release of transformers that wrote it counts, nor a pooler, which comes after
    those states and is drawn at random where a file has none.
    """
    config = getattr(model, "config", None)
    settings = {} if config is None else json.loads(config.to_json_string())
    settings = {name: value for name, value in settings.items() if name[:1] != "_" and name != "transformers_version"}
    text = json.dumps([weights_digest(model, "pooler."), settings, *beside], sort_keys=True, default=str)
    return text_digest(text)


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of all that decides how a tokenizer of transformers cuts text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        settings: Any = [type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.special_tokens_map]
    else:  # how it pads and cuts is remembered from its last call
        settings = {
            key: value for key, value in json.loads(backend.to_str()).items() if key not in ("padding", "truncation")
        }
    return text_digest(json.dumps(settings, sort_keys=True, default=str))


def text_digest(text: str) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a text."""
    return bytes_digest(text.encode("utf-8", "surrogatepass"))


def bytes_digest(content: bytes) -> str:
    """What `file_digest` says of a file of this content."""
    return hashlib.sha256(content).hexdigest()[:16]


def sampled_digest(path: Path, samples: int = 64, size: int = 4096) -> str:
    """A digest of the size of a file and of samples spread evenly over it, which is quick for gigabytes of weights."""
    length = path.stat().st_size
    digest = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        for place in range(samples):
            file.seek(max(0, length - size) * place // max(1, samples - 1))
            digest.update(file.read(size))
            if length <= size:
                break
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
