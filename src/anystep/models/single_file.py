"""`TransitionTransformer2DModel.from_single_file`: a network of one file of weights.

The mixin of diffusers knows the classes in its own table alone. Here the names of the tensors tell whether a file holds
released weights or ours.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import FromOriginalModelMixin

from anystep.bounds import shown
from anystep.errors import InputError, refused
from anystep.files import read_json


class SingleFileLoading(FromOriginalModelMixin):
    """That of diffusers, for released weights and for ours."""

    _keep_in_fp32_modules: Any

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path,
        config: str | Path | Mapping[str, Any] | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> Any:
        """The network of a `.safetensors`, `.bin` or `.pt` file, ready to predict.

        Args:
            pretrained_model_link_or_path_or_dict: a file of this machine.
            config: of weights of ours, the `config.json` beside them, its folder or its content: by default that of
                the file's folder. Of released weights, their options (`load_reference_transformer`); by default what
                the name of the file or the shapes of the tensors tell.
            torch_dtype: of the blocks; times, modulation and head stay in float32.

        Raises:
            InputError: a file that cannot be read, or is of another network; one line that says which.
        """
        from anystep.models.reference import CHARACTERISTIC, load_reference_transformer
        from anystep.models.weight_files import read_weights

        path = Path(pretrained_model_link_or_path_or_dict)
        weights = read_weights(path)
        if set(CHARACTERISTIC) <= weights.tensors.keys():
            said = config if isinstance(config, Mapping | None) else read_json(Path(config))
            network: Any = load_reference_transformer(path, said)
        else:
            network = cls._of_ours(path, weights.tensors, path.parent if config is None else config)
        for name, weight in network.named_parameters():
            if torch_dtype is not None and not set(name.split(".")) & set(cls._keep_in_fp32_modules):
                weight.data = weight.data.to(torch_dtype)
        return network.eval()

    @classmethod
    def _of_ours(cls, path: Path, tensors: Mapping[str, Any], config: str | Path | Mapping[str, Any]) -> Any:
        said = config if isinstance(config, Mapping) else _read_config(path, Path(config))
        options = {name: value for name, value in said.items() if not name.startswith("_")}
        with refused(f"{shown(str(path))} is not of the network that config says"):
            network: Any = cls(**options)
            network.load_state_dict(dict(tensors))
        return network


def _read_config(path: Path, config: Path) -> dict[str, Any]:
    place = config / "config.json" if config.is_dir() else config
    if not place.is_file():
        raise InputError(f"{shown(str(path))} does not say its sizes: give config, the config.json of its model")
    return read_json(place)
