"""Transition models: one network that jumps from any noise level to any lower one, in any number of steps.

The names below load on first use, so that `import anystep` and `anystep --help` do not wait for torch.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("anystep")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

_WHERE = {
    "TransitionTransformer2DModel": "anystep.models.transformer",
    "TransitionPipeline": "anystep.pipelines.transition",
    "TransitionScheduler": "anystep.pipelines.scheduler",
    "load": "anystep.pipelines.load",
    "make_transport": "anystep.transport",
    "sample": "anystep.sampling",
}
__all__ = ["__version__", *_WHERE]
# diffusers checks a component's class against these bases, looked up in the module that `model_index.json` names
_WHERE |= {"ModelMixin": "diffusers", "SchedulerMixin": "diffusers"}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'anystep' has no attribute {name!r}")
