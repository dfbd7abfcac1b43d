"""The pipeline of class-conditional models."""

from typing import Any

from anystep.bounds import shown
from anystep.errors import InputError
from anystep.pipelines.inputs import listed
from anystep.pipelines.transition import TransitionPipeline


class TransitionClassPipeline(TransitionPipeline):
    """Class-to-image generation with a transition model: that of diffusers' `DiTPipeline`, in any number of steps.

    Its arguments are those of `TransitionPipeline`, whose text encoder it has no use for.
    """

    @property
    def labels(self) -> dict[str, int]:
        """The class indices by name."""
        return {name: index for index, name in enumerate(self.classes)}

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """The indices of classes by name.

        Raises:
            InputError: a name that is none of them.
        """
        unknown = [name for name in listed(label) if name not in self.labels]
        if unknown:
            raise InputError(f"unknown class {shown(unknown[0])}: one of {shown(list(self.labels), 200)}")
        return [self.labels[name] for name in listed(label)]

    def __call__(self, class_labels: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        """Images of classes: a `TransitionPipelineOutput`, or a tuple where `return_dict` is false.

        Args:
            class_labels: class indices or names, or one; a list, an array or a tensor.
            arguments, options: those of `TransitionPipeline.__call__` after its prompt.

        Raises:
            InputError: what cannot be generated, in one line.
        """
        if self.network_config.num_classes is None:
            raise InputError("this network reads captions and no classes: a TransitionPipeline draws with it")
        return super().__call__(class_labels, *arguments, **options)


TransitionClassPipeline.__module__ = "anystep"
