"""The networks of a model as programs: plain tensors in, one tensor out, every size of a batch free.

ONNX is written by PyTorch's tracing exporter, which needs no further package; `torch.export` writes the network too.
Each is compared with the network itself at sizes that it was not traced at.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anystep.errors import InputError, refused
from anystep.pipelines.transition import TransitionPipeline

OPSET = 18
ONE_FILE = 1_900_000_000  # bytes of weights that a file of ONNX holds, a protocol buffer; beyond they lie beside it
# sizes that are traced at, and those that are compared at: images, tokens of a caption, rows and columns of tokens
TRACED = (2, 5, 6, 10)
COMPARED = ((1, 3, 8, 8), (3, 9, 12, 4))


@dataclass(frozen=True)
class Program:
    """A network to write.

    Attributes:
        name: of its files.
        module: from tensors to one tensor.
        inputs: their names, with the names of the dimensions that are free.
        output: its name and free dimensions.
        example: inputs of a size, as `TRACED` says it.
    """

    name: str
    module: nn.Module
    inputs: dict[str, dict[int, str]]
    output: tuple[str, dict[int, str]]
    example: Callable[[Sequence[int]], tuple[Tensor, ...]]


class ExportedNetwork(nn.Module):
    """f(x, t, r, condition, mask, guidance) of plain tensors, those of the last two that the network takes."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor, *more: Tensor) -> Tensor:
        more_names = [*(["condition_mask"] if self.network.config.text_width is not None else []), "guidance"]
        # a mask is followed as pipelines follow it: padding of released weights' captions is part of the condition
        options = {"mask_text": True, **dict(zip(more_names, more, strict=False))}
        if self.network.transition_branch is None:
            return self.network(x, t, r, condition, **options)
        # which images a branch runs on depends on data, so both run on all
        v, f = (self.network(x, t, r, condition, branch=branch, **options) for branch in ("velocity", "transition"))
        return torch.where((t == r)[:, None, None, None], v, f)


class Decoder(nn.Module):
    """Latents of zero mean and unit variance into images in [-1, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.autoencoder = codec.autoencoder
        self.register_buffer("mean", codec.mean)
        self.register_buffer("std", codec.std)

    def forward(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents * self.std + self.mean).sample


class Encoder(Decoder):
    """The way back; the mode of the posterior for a KL autoencoder."""

    def forward(self, images: Tensor) -> Tensor:
        output = self.autoencoder.encode(images)
        latents = output.latent if hasattr(output, "latent") else output.latent_dist.mode()
        return (latents - self.mean) / self.std


class TextStates(nn.Module):
    """Numbers of tokens into their last hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


def programs_of(pipeline: TransitionPipeline, text_encoder: bool) -> Iterator[Program]:
    """The networks of a pipeline: the transformer, those of its codec, and the text encoder where it is wanted."""
    config, codec = pipeline.transformer.config, pipeline.latent_codec
    text, patch, batch = config.text_width, config.patch_size, {0: "batch"}
    grid = {**batch, 2: "height", 3: "width"}
    tokens = {**batch, 1: "length"}
    inputs = {"x": grid, "t": batch, "r": batch, "condition": batch if text is None else tokens}
    inputs |= {} if text is None else {"mask": tokens}
    inputs |= {"guidance": batch} if config.guidance_embed else {}

    def network_example(size: Sequence[int]) -> tuple[Tensor, ...]:
        count, length, rows, columns = size
        x = torch.randn(count, config.in_channels, rows * patch, columns * patch)
        t = torch.linspace(0.4, 0.9, count)
        condition = (
            torch.arange(count) % (config.num_classes or 1) if text is None else torch.randn(count, length, text)
        )
        mask = () if text is None else (_mask(count, length),)
        # of the first image t = r, where the network has branches
        r = t * torch.arange(count).eq(0) + 0.1 * torch.arange(count).ne(0)
        return (x, t, r, condition, *mask, *([t + 1] if config.guidance_embed else []))

    yield Program("network", ExportedNetwork(pipeline.transformer), inputs, ("F", grid), network_example)
    if pipeline.vae is not None:
        for name, module, channels, factor, into, out in (
            ("decoder", Decoder(codec), codec.channels, 1, "latents", "images"),
            ("encoder", Encoder(codec), 3, codec.factor, "images", "latents"),
        ):
            yield Program(
                name, module, {into: grid}, (out, grid),
                lambda size, c=channels, k=factor: (torch.randn(size[0], c, size[2] * k, size[3] * k),),  # type: ignore[misc]
            )  # fmt: skip
    if text_encoder:
        encoder: Any = pipeline.conditioner
        words = encoder.model.config.vocab_size
        yield Program(
            "text_encoder", TextStates(encoder.model), {"ids": tokens, "mask": tokens}, ("states", tokens),
            lambda size: (torch.randint(words, tuple(size[:2])), _mask(*size[:2]).long()),
        )  # fmt: skip


def _mask(count: int, length: int) -> Tensor:
    """Captions of one token more each, from half of the length on."""
    return torch.arange(length) < (length // 2 + 1 + torch.arange(count)[:, None]).clamp(max=length)


@torch.no_grad()
def write_onnx(program: Program, path: Path) -> None:
    """Write a program as ONNX; weights that a file of ONNX cannot hold lie beside it in `NAME.onnx.data`."""
    name, free = program.output
    heavy = sum(each.nbytes for each in program.module.state_dict().values()) > ONE_FILE
    folder = path.with_suffix(".parts") if heavy else path.parent  # where PyTorch puts a file for each tensor
    folder.mkdir(exist_ok=True)
    with refused(f"{program.name} cannot be written as ONNX"), _quiet(), _PermuteForMovedim():
        torch.onnx.export(
            program.module.eval(), program.example(TRACED), str(folder / path.name), dynamo=False, opset_version=OPSET,
            input_names=list(program.inputs), output_names=[name], dynamic_axes={**program.inputs, name: free},
        )  # fmt: skip
    if heavy:
        import onnx

        model = onnx.load(folder / path.name)
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")
        for part in folder.iterdir():
            part.unlink()
        folder.rmdir()


@torch.no_grad()
def write_exported(program: Program, path: Path) -> None:
    """Write a program as `torch.export` does."""
    free = tuple(dict.fromkeys(each, torch.export.Dim.AUTO) for each in program.inputs.values())
    shapes: Any = (*free[:4], free[4:])  # the last of `ExportedNetwork.forward` are one argument
    with refused(f"{program.name} cannot be written by torch.export"), _quiet():
        exported = torch.export.export(program.module.eval(), program.example(TRACED), dynamic_shapes=shapes)
        torch.export.save(exported, path)


def difference(program: Program, run: Callable[..., Any]) -> float:
    """The largest difference of what is written from the network itself, in parts of its largest answer (1 at least).

    Args:
        run: what is written, as a function of the inputs.
    """
    found = 0.0
    for size in COMPARED:
        inputs = program.example(size)
        with torch.no_grad():
            wanted = program.module(*inputs)
            answer = torch.as_tensor(run(*inputs))
        apart = (answer - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        found = max(found, float(apart) if bool(apart.isfinite()) else torch.inf)
    return found


def onnx_runner(program: Program, path: Path) -> Callable[..., Any]:
    """A file of ONNX as a function of tensors.

    Raises:
        InputError: onnxruntime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with refused(f"{program.name}: onnxruntime does not run what was written"):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, dict(zip(program.inputs, (each.numpy() for each in inputs), strict=True)))[
        0
    ]


def require_runtime() -> None:
    """Raise `InputError` where what checks and writes ONNX is not installed."""
    try:
        import onnx
        import onnxruntime  # noqa: F401

        onnx.__version__  # noqa: B018
    except ImportError as error:
        raise InputError(f"export needs {error.name}, which is not installed: pip install 'anystep[export]'") from None


class _PermuteForMovedim(TorchFunctionMode):
    """`movedim` by `permute`, which the exporter also writes where it does not know the rank."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.movedim, torch.Tensor.movedim) and not kwargs and isinstance(args[1], int):
            x, source, destination = args
            order = list(range(x.ndim))
            order.insert(destination % x.ndim, order.pop(source % x.ndim))
            return x.permute(order)
        return function(*args, **(kwargs or {}))


@contextmanager
def _quiet() -> Iterator[None]:
    """While it lasts, PyTorch does not warn of what the comparison afterwards would find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
