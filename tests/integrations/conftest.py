"""What `integrations/` has for diffusers and for ComfyUI, loaded as these load it."""

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from comfy_contract import load_custom_nodes, stand_ins

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


@pytest.fixture(scope="session")
def comfy_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folder of models."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def comfy_nodes(comfy_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The nodes of a copy of `integrations/comfyui` below `custom_nodes`, by name."""
    modules = stand_ins(comfy_models)
    sys.modules.update(modules)
    folder = tmp_path_factory.mktemp("custom_nodes") / "comfyui-anystep"
    shutil.copytree(INTEGRATIONS / "comfyui", folder)
    yield load_custom_nodes(folder)
    for name in modules:
        del sys.modules[name]
