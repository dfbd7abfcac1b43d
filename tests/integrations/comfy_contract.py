"""ComfyUI's contract with nodes, as its documentation has it, for want of a package that carries its engine.

Modules that nodes import, loading of a folder below `custom_nodes`, and running a workflow in the API's format: inputs
are checked against `INPUT_TYPES`, links against the types they join, and each node runs once, after what it needs.
"""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch


class Interrupted(Exception):
    """What ComfyUI raises in a node when somebody presses the button."""


class ProgressBar:
    seen: list[tuple[int, int]] = []

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.seen.append((value, total or self.total))


class SaveImage:
    """The node of ComfyUI that ends a workflow."""

    RETURN_TYPES, FUNCTION, OUTPUT_NODE = (), "save", True
    saved: list[torch.Tensor] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save(self, images: torch.Tensor, filename_prefix: str) -> dict[str, Any]:
        assert images.ndim == 4
        assert images.shape[-1] == 3
        assert images.dtype == torch.float32
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        self.saved.append(images)
        return {"ui": {"images": []}}


def stand_ins(models: Path) -> dict[str, types.ModuleType]:
    """The modules of ComfyUI that nodes import, by name."""
    places: dict[str, list[str]] = {}
    management, utils, paths, comfy = (
        types.ModuleType(name) for name in ("comfy.model_management", "comfy.utils", "folder_paths", "comfy")
    )
    stopped = {"interrupt": False}

    def check() -> None:
        if stopped["interrupt"]:
            stopped["interrupt"] = False
            raise Interrupted

    vars(management).update(
        get_torch_device=lambda: torch.device("cpu"), throw_exception_if_processing_interrupted=check,
        interrupt_current_processing=lambda value=True: stopped.update(interrupt=value),
    )  # fmt: skip
    vars(utils).update(ProgressBar=ProgressBar)
    vars(paths).update(
        models_dir=str(models), get_folder_paths=lambda name: list(places[name]),
        add_model_folder_path=lambda name, path: places.setdefault(name, []).append(path),
    )  # fmt: skip
    vars(comfy).update(__path__=[], model_management=management, utils=utils)
    return {each.__name__: each for each in (comfy, management, utils, paths)}


def load_custom_nodes(folder: Path) -> dict[str, Any]:
    """The nodes of a folder by name, loaded as ComfyUI does: by path, under a name that is no package's."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    nodes: dict[str, Any] = module.NODE_CLASS_MAPPINGS
    assert set(module.NODE_DISPLAY_NAME_MAPPINGS) == set(nodes)
    return {**nodes, "SaveImage": SaveImage}


def check_value(name: str, value: Any, kind: Any, options: dict[str, Any]) -> None:
    """Raises ValueError for a widget's value that ComfyUI would refuse."""
    if isinstance(kind, list):
        if value not in kind:
            raise ValueError(f"{name}: value not in list: {value!r} not in {kind}")
        return
    python = {"INT": int, "FLOAT": (int, float), "STRING": str}[kind]
    if not isinstance(value, python) or isinstance(value, bool):
        raise ValueError(f"{name}: {value!r} is no {kind}")
    if ("min" in options and value < options["min"]) or ("max" in options and value > options["max"]):
        raise ValueError(f"{name}: {value} is out of {options['min']} to {options['max']}")


def validate(workflow: dict[str, Any], nodes: dict[str, Any]) -> None:
    """Raises ValueError for a workflow that ComfyUI refuses before it runs anything."""
    for entry in workflow.values():
        declared = nodes[entry["class_type"]].INPUT_TYPES()
        known = {**declared["required"], **declared.get("optional", {})}
        if missing := declared["required"].keys() - entry["inputs"].keys():
            raise ValueError(f"{entry['class_type']}: required input is missing: {sorted(missing)}")
        for name, value in entry["inputs"].items():
            wanted, options = known[name][0], known[name][1] if len(known[name]) > 1 else {}
            if not isinstance(value, list):
                check_value(name, value, wanted, options)
                continue
            source, place = value
            found = nodes[workflow[source]["class_type"]].RETURN_TYPES[place]
            if found != wanted:
                raise ValueError(f"{entry['class_type']}.{name}: {found} is no {wanted}")


def run(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """The outputs of every node that an output node needs, by its id."""
    validate(workflow, nodes)
    done: dict[str, Any] = {}

    def evaluate(number: str) -> Any:
        if number not in done:
            entry = workflow[number]
            kind = nodes[entry["class_type"]]
            given = {
                name: evaluate(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in entry["inputs"].items()
            }
            answer = done[number] = getattr(kind(), kind.FUNCTION)(**given)
            if not getattr(kind, "OUTPUT_NODE", False):
                assert isinstance(answer, tuple)
                assert len(answer) == len(kind.RETURN_TYPES)
        return done[number]

    for number, entry in workflow.items():
        if getattr(nodes[entry["class_type"]], "OUTPUT_NODE", False):
            evaluate(number)
    return done
