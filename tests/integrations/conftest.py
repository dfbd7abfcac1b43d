"""The classes of `integrations/diffusers`, at the places in diffusers that they are made for."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

INTEGRATIONS = Path(__file__).parents[2] / "integrations"
PLACES = {
    "TransitionTransformer2DModel": ("models.transformers", "transformer_transition"),
    "TransitionScheduler": ("schedulers", "scheduling_transition"),
    "TransitionPipeline": ("pipelines", "transition.pipeline_transition"),
}


@pytest.fixture(scope="session")
def upstream() -> Iterator[SimpleNamespace]:
    """The three classes, loaded as parts of the diffusers that is installed, with all that they import of it."""
    import diffusers

    found, extended = {}, []
    for name, (package, module) in PLACES.items():
        parent = importlib.import_module(f"diffusers.{package}")
        parent.__path__.append(str(INTEGRATIONS / "diffusers" / "src" / "diffusers" / package.replace(".", "/")))
        extended.append(parent)
        found[name] = getattr(importlib.import_module(f"diffusers.{package}.{module}"), name)
        setattr(diffusers, name, found[name])
    yield SimpleNamespace(**found)
    for parent in extended:
        parent.__path__.pop()
    for name, (package, module) in PLACES.items():
        delattr(diffusers, name)
        sys.modules.pop(f"diffusers.{package}.{module}", None)
