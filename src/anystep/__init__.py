"""Transition models: one network that jumps from any noise level to any lower one, in any number of steps.

The names below load on first use, so that `import anystep` and `anystep --help` do not wait for torch.
"""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from anystep.models.transformer import TransitionTransformer2DModel as TransitionTransformer2DModel
    from anystep.pipelines.adapted import adapt as adapt
    from anystep.pipelines.classes import TransitionClassPipeline as TransitionClassPipeline
    from anystep.pipelines.load import load as load
    from anystep.pipelines.scheduler import TransitionScheduler as TransitionScheduler
    from anystep.pipelines.transition import TransitionPipeline as TransitionPipeline
    from anystep.sampling import sample as sample
    from anystep.transport import make_transport as make_transport

try:
    __version__ = _version("anystep")
except _PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.0.0"

_WHERE = {
    "TransitionTransformer2DModel": "anystep.models.transformer",
    "TransitionPipeline": "anystep.pipelines.transition",
    "TransitionClassPipeline": "anystep.pipelines.classes",
    "TransitionScheduler": "anystep.pipelines.scheduler",
    "adapt": "anystep.pipelines.adapted",
    "load": "anystep.pipelines.load",
    "make_transport": "anystep.transport",
    "sample": "anystep.sampling",
}
__all__ = ["__version__", *_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]
# diffusers checks a component's class against these bases, looked up in the module that `model_index.json` names
_WHERE |= {"ModelMixin": "diffusers", "SchedulerMixin": "diffusers"}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> _Any:
    if name in _WHERE:
        return getattr(_import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'anystep' has no attribute {name!r}")
