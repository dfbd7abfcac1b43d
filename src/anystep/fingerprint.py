"""What tells one network, or one file, from another of the same name."""

import hashlib
import inspect
import json
from pathlib import Path
from types import CodeType
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


def module_digest(network: nn.Module) -> str:
    """A digest of a network of somebody's own: its weights, layers, plain attributes, and the code of its classes.

    What these classes call elsewhere, in functions of a module for one, is no part of it.
    """
    modules = list(network.modules())
    kinds = dict.fromkeys(kind for module in modules for kind in type(module).__mro__)
    own = [kind for kind in kinds if kind.__module__.split(".")[0] not in ("torch", "builtins")]
    functions = [inspect.unwrap(getattr(each, "__func__", each)) for kind in own for each in vars(kind).values()]
    plain = [
        {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        for module in modules
    ]
    codes = [_plain_code(each.__code__) for each in functions if inspect.isfunction(each)]
    return text_digest(json.dumps([weights_digest(network), repr(network), plain, codes]))


def _plain_code(code: CodeType) -> list[Any]:
    """What a function does, wherever it stands."""
    constants = [_plain_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


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
