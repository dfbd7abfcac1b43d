"""Models of transformers, as everything here loads them: never with code of others; failure is one line."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from anystep.errors import InputError, one_line
from anystep.model_folder import check_part

# what the folder of a judge must hold, and what else may stand for it
JUDGE = {
    "config.json": (),
    "preprocessor_config.json": ("processor_config.json",),
    "model.safetensors": ("*.safetensors", "*.bin"),
}


def may_be_hub_id(name: str) -> bool:
    """Whether a name that is no folder may be `owner/model` of the hub; not where there is a folder `owner`."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).parent.is_dir()


@contextmanager
def loading(
    what: str, name_or_path: str, files: Mapping[str, tuple[str, ...]] | None = None, plain_pickles: bool = False
) -> Iterator[None]:
    """A block that loads a model by hub id or folder; the folder is looked through first.

    Args:
        what: the model is, for errors.
        files: which the folder must hold, each with patterns of what may stand for it; errors say which are missing.
        plain_pickles: as `check_part` takes it.

    Raises:
        InputError: in one line, for whatever reason loading fails.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        if Path(name_or_path).is_dir():
            check_part(Path(name_or_path), plain_pickles=plain_pickles)
        yield
    except Exception as error:  # transformers, tokenizers, safetensors and torch.hub raise many kinds
        reason = str(error) if isinstance(error, InputError) else one_line(str(error) or type(error).__name__, 160)
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run"
        missing = "" if files is None else _missing(name_or_path, files)
        raise InputError(f"no {what} at {name_or_path!r}: {missing or reason}") from error
    finally:
        logging.enable_progress_bar()


def pretrained(kind: Any, name_or_path: str, what: str) -> Any:
    """A class of transformers, or its processor, by hub id or folder.

    Weights in `.bin` files are read by torch's reader of plain tensors, which is transformers' default.
    """
    with loading(what, name_or_path, JUDGE, plain_pickles=True):
        return kind.from_pretrained(name_or_path, trust_remote_code=False)


def caption_options(model: Any) -> dict[str, Any]:
    """How the processor of a CLIP-like model makes tokens of captions: each the same whatever others it is among.

    They are cut at the positions that the model has, which not every tokenizer knows, and padded to all of these where
    it learned that, as SigLIP did: it reads a caption off the last position.
    """
    text = getattr(model.config, "text_config", model.config)
    padding = "max_length" if model.config.model_type.startswith("siglip") else True
    return {"padding": padding, "truncation": True, "max_length": text.max_position_embeddings}


def pretrained_encoder(kind: Any, name_or_path: str | None, unused: str, **options: Any) -> Any:
    """A model from safetensors alone, with all of its weights: transformers draws missing ones at random.

    Args:
        name_or_path: None where the options give its `config` and `state_dict`.
        unused: a pattern of the weights that may be missing.
        options: further arguments of `from_pretrained`.

    Raises:
        InputError: others are missing; `loading` says of what.
    """
    model, found = kind.from_pretrained(
        name_or_path, output_loading_info=True, trust_remote_code=False, use_safetensors=True, **options
    )
    if missing := sorted(key for key in found["missing_keys"] if not re.search(unused, key)):
        raise InputError(f"{len(missing)} weights are missing, the first {missing[0]}")
    return model


def _missing(name_or_path: str, files: Mapping[str, tuple[str, ...]]) -> str:
    """Which files are missing and where they belong; "" where all are there, and something else is wrong."""
    folder, (*names, last) = Path(name_or_path), files
    needed = f"{', '.join(names)} and {last}"
    if folder.is_dir():
        lacking = [
            name for name, others in files.items() if not any(any(folder.glob(pattern)) for pattern in (name, *others))
        ]
        return f"there is no {' and no '.join(lacking)} in {folder}; put that there" if lacking else ""
    if not may_be_hub_id(name_or_path):
        return f"no such folder; it should hold {needed}"
    if isinstance(try_to_load_from_cache(name_or_path, "config.json"), str):
        return ""
    return f"not in the cache and not to be had; download it, or give a folder that holds {needed}"
