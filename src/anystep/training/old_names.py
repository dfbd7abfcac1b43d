"""Names that earlier versions wrote, and what they are called now: the only place that knows them."""

from collections.abc import Mapping
from typing import Any

RECIPE_KEYS = {  # of a section
    ("run", "parts"): "micro_batches",
    ("run", "tokens_per_part"): "tokens_per_micro_batch",
}
MANIFEST_KEYS = {"ahead": "data_offset"}


def current_recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a recipe, or some sections of one, by its current keys."""
    found = dict(content)
    for (section, old), new in RECIPE_KEYS.items():
        keys = found.get(section)
        if isinstance(keys, Mapping) and old in keys and new not in keys:
            found[section] = {new if key == old else key: value for key, value in keys.items()}
    return found


def current_manifest(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's manifest by its current keys."""
    return {MANIFEST_KEYS.get(key, key): value for key, value in content.items()}
