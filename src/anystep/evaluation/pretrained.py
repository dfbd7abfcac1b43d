"""Models of transformers, as everything here loads them: never with code of others."""

from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from anystep.errors import InputError
from anystep.model_folder import check_part

# what a folder must hold, and what else may stand for it
NEEDED = {
    "config.json": (),
    "preprocessor_config.json": ("processor_config.json",),
    "model.safetensors": ("*.safetensors", "*.bin"),
}


def pretrained(kind: Any, name_or_path: str, purpose: str) -> Any:
    """A transformers class loaded by hub id or folder.

    Code beside the weights is refused; weights in `.bin` files are read by torch's reader of plain tensors, which is
    transformers' default.

    Raises:
        InputError: in one line, for whatever reason that fails.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        if Path(name_or_path).is_dir():
            check_part(Path(name_or_path), plain_pickles=True)
        return kind.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; all mean it is not usable
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run"
        raise InputError(f"no {purpose} at {name_or_path!r}: {_missing(name_or_path) or reason}") from error
    finally:
        logging.enable_progress_bar()


def _missing(name_or_path: str) -> str:
    """Which files are missing and where they belong; "" where all are there, and something else is wrong."""
    folder, (*files, last) = Path(name_or_path), NEEDED
    needed = f"{', '.join(files)} and {last}"
    if folder.is_dir():
        lacking = [
            name for name, others in NEEDED.items() if not any(any(folder.glob(pattern)) for pattern in (name, *others))
        ]
        return f"there is no {' and no '.join(lacking)} in {folder}; put that there" if lacking else ""
    if name_or_path.count("/") != 1 or name_or_path[0] in "./~":
        return f"no such folder; it should hold {needed}"
    if isinstance(try_to_load_from_cache(name_or_path, "config.json"), str):
        return ""
    return f"not in the cache and not to be had; download it, or give a folder that holds {needed}"
