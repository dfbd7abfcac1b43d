"""What tests of several modules make and compare."""

import argparse
import builtins
import io
import json
import math
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from anystep import TransitionPipeline
from anystep.cli import main
from anystep.data.encode import Encoders
from anystep.data.example import BrokenExample, Example
from anystep.data.npy import to_npy
from anystep.data.shard_files import Record, write_shard
from anystep.data.shard_index import INDEX, Index
from anystep.data.shards import Shards
from anystep.models import TransitionTransformer2DModel, build_transformer
from anystep.objective import TransitionPoints
from anystep.ranks import Ranks
from anystep.training.checkpoint_files import MANIFEST
from anystep.training.checkpoints import Checkpoints
from anystep.training.trainer_state import TrainingTensors
from anystep.transport import Transport

RED = (255, 0, 0)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The Fréchet distance of two sets of features, with a symmetric root in place of that of a product."""
    one, other = (torch.cov(each.double().T) for each in (x, y))
    values, vectors = torch.linalg.eigh(one)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    apart = (x.double().mean(0) - y.double().mean(0)).square().sum()
    return float(apart + one.trace() + other.trace() - 2 * cross)


def save_image(path: Path, caption: str | None = None, size: tuple[int, int] = (8, 6), colour: object = RED) -> Path:
    """An image of one colour, with its caption beside it where there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)  # type: ignore[arg-type]
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")
    return path


def fail_to_open(patched: pytest.MonkeyPatch, name: str, error: Exception, *modules: ModuleType) -> None:
    """Let `open` of these modules, by default of all, raise for files whose path ends so."""
    real = open

    def act(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(file).endswith(name):
            raise error
        return real(file, *arguments, **options)

    for module in modules or (builtins, io):
        patched.setattr(module, "open", act)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """The content of every file of a folder by its name, but for the picture of sizes, which libraries draw."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "sizes.png"}


class Colours(Sequence[Example]):
    """Forty plain images; every tenth is broken."""

    class_names = ["even", "odd"]

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if index % 10 == 9:
            raise BrokenExample(f"{index}.png: broken")
        captions = () if index == 4 else (f"number {index}", f"{index}, a comma\tand a tab")
        image = Image.new("RGB", (4, 4), (index, 0, 255))
        image.putpixel((0, 0), (200, 0, 0))
        return Example(str(index), image, captions, index % 2)


def encode(images: Tensor) -> Tensor:
    """Two channels of every third pixel."""
    return images[:, :2, ::3, ::3]


def encoders(**options: Any) -> Encoders:
    """Encoders whose codec is `encode`."""
    return Encoders(encode, {"codec": "every third"}, **options)


def shard_records(count: int, first: int = 0) -> list[Record]:
    """Records of an array and a text, labelled 0, 1 and 2 in turn."""
    return [
        Record(f"{first + n:04d}", {"npy": to_npy(np.full(3, first + n)), "txt": b"x" * (n % 7)}, n % 3)
        for n in range(count)
    ]


def save_shards(folder: Path, *counts: int) -> Shards:
    """A folder of one shard for each count, with its index."""
    parts = [write_shard(folder / f"{n}.tar", shard_records(count, 100 * n)) for n, count in enumerate(counts)]
    Index.concatenate(parts).save(folder / INDEX)
    return Shards(str(folder))


def png_bytes(level: int = 7) -> bytes:
    """The content of a PNG file of 20 x 12 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def save_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    """A tar of these files."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def save_picture_tars(folder: Path) -> Path:
    """Two tars as other tools write them: folders in names, captions in two kinds, one without."""
    folder.mkdir(exist_ok=True)
    for place in range(2):
        with tarfile.open(folder / f"part-{place}.tar", "w") as tar:
            for n in range(5):
                buffer = io.BytesIO()
                Image.new("RGB", (20, 12), (40 * n, 100 * place, 7)).save(buffer, "PNG")
                files = {"png": buffer.getvalue(), "cls": str(n % 2).encode()}
                files |= {"txt": f"one {n}\ntwo {n}\n".encode()} if n else {"json": b'{"caption": "from json"}'}
                for extension, content in files.items():
                    entry = tarfile.TarInfo(f"sub/img{place}{n}.{extension}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return folder


def lively(preset: str, **options: Any) -> TransitionTransformer2DModel:
    """A small network with no parameter at zero, as after training."""
    torch.manual_seed(0)
    network = build_transformer(preset, **options)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def text_inputs(count: int = 2, length: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, t, r and caption states for the preset t2i-test."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, 6, 10, generator=generator)
    t, r = torch.full((count,), 0.8), torch.full((count,), 0.3)
    return x, t, r, torch.randn(count, length, 16, generator=generator)


def latent_batch(count: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, z, t, r and labels, every sample with t > r."""
    generator = torch.Generator().manual_seed(1)
    x, z = (torch.randn(count, 4, 8, 8, generator=generator) for _ in range(2))
    t = torch.linspace(0.3, 0.9, count)
    return x, z, t, t - 0.25, torch.arange(count) % 10


def at_points(
    transport: Transport, x: Tensor, z: Tensor, t: Tensor, r: Tensor, f: Tensor, index: Tensor | None = None
) -> TransitionPoints:
    """Points of samples of their own, where the network answers f."""
    x_t, F = transport.interpolate(x, z, t), transport.target(x, z, t)
    return TransitionPoints(transport, x, z, F, t, r, torch.arange(len(x)) if index is None else index, x_t, f)


def time_of(transport: Transport, c_noise: Tensor) -> Tensor:
    """The time t whose `c_noise` a network is given."""
    inverses = {"edm": lambda c: (4 * c).exp(), "vp": lambda c: c / 999, "ve": lambda c: 2 * c.exp()}
    return inverses.get(transport.name, lambda c: c)(c_noise)


def convergence_order(steps: Sequence[float], errors: Sequence[float]) -> float:
    """The slope of the logarithm of the error over that of the step, by least squares."""
    points = torch.tensor([[math.log(step), 1.0] for step in steps], dtype=torch.float64)
    logs = torch.tensor([[math.log(error)] for error in errors], dtype=torch.float64)
    return float(torch.linalg.lstsq(points, logs).solution[0, 0])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a command refused with."""
    try:
        code: object = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2, captured.out
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words of every command, and its parser."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below or not below[0].required:
        yield words, parser
    for action in below:
        for name, each in action.choices.items():
            yield from leaves(each, (*words, name))


def training_tensors(seed: int, trained: bool = True) -> TrainingTensors:
    """A small network that has made a step, its average and its optimizer."""
    torch.manual_seed(seed)
    network, average = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    if trained:
        network(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    return TrainingTensors(network, [average], [optimizer])


def saved_checkpoints(folder: Path, steps: tuple[int, ...] = (1, 2), **options: Any) -> Checkpoints:
    """Checkpoints of these steps, each of `training_tensors` of its step."""
    checkpoints = Checkpoints(folder, Ranks(), **options)
    for step in steps:
        checkpoints.save(step, training_tensors(step).state_dict(), {"data_offset": step})
    checkpoints.finish()
    return checkpoints


def write_recipe(folder: Path, text: str) -> Path:
    """A recipe file."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def losses(run: Path) -> list[float]:
    """The loss of every step in the log of a run."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def manifest_with(folder: Path, **changes: object) -> None:
    """Change what the manifest of step 2 says."""
    path = folder / "step-00000002" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


PROMPTS = ["a red apple", "a whale on a blue background", "a tractor"]


def draw_latents(pipeline: Any, prompts: Any = PROMPTS, steps: int = 2, **options: Any) -> torch.Tensor:
    if not options.keys() & {"generator", "latents", "seeds"}:
        count = (1 if isinstance(prompts, str) else len(prompts)) * options.get("num_images_per_prompt", 1)
        options["seeds"] = list(range(count))
    images = pipeline(prompts, num_inference_steps=steps, **{"output_type": "latent", **options}).images
    assert isinstance(images, torch.Tensor)
    return images


@contextmanager
def tensor_defaults(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[None]:
    """A process that makes tensors of another type, or on another device, wherever nobody says.

    Nothing can be computed of what is made on the device `meta`.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def assert_latents_close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def offload_layers(pipeline: Any) -> None:
    """`enable_sequential_cpu_offload` of diffusers, with the CPU for an accelerator: weights come for one layer."""
    from accelerate import cpu_offload

    for part in (part for part in pipeline.components.values() if isinstance(part, nn.Module)):
        cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert {part.device.type for part in (pipeline.transformer, pipeline)} == {"meta"}


def weights(run: Path, folder: str = "checkpoints", place: int = -1) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint: `network.NAME`, `ema-0.NAME`, `optimizer.NAME`; but its step."""
    newest = sorted((run / folder).glob("step-*"))[place]
    reader = dcp.FileSystemReader(newest)
    wanted = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in wanted.items()
        if isinstance(entry, TensorStorageMetadata) and name != "step"
    }
    dcp.load(state, storage_reader=reader, no_dist=True)
    return state


@contextmanager
def interrupted_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ctrl-C that arrives in the given step of training."""
    from anystep.training import train as module

    caught: list[int] = []

    @contextmanager
    def interruptible() -> Iterator[list[int]]:
        yield caught

    real = module.learning_rate

    def learning_rate(config: Any, step: int, total: int) -> float:
        if step + 1 == steps:
            caught.append(2)
        return real(config, step, total)

    with monkeypatch.context() as patched:
        patched.setattr(module, "interruptible", interruptible)
        patched.setattr(module, "learning_rate", learning_rate)
        yield


REFERENCE_NETWORKS = ["t2i", "c2i", "c2i_shared_r"]  # of the reference numbers
TRAJECTORIES = [  # of the fixture: steps, scale, and the guidance interval
    ("steps1_cfg1.0_0.0to1.0", 1, 1.0, None),
    ("steps4_cfg1.0_0.0to1.0", 4, 1.0, None),
    ("steps5_cfg2.5_0.0to1.0", 5, 2.5, None),
    ("steps8_cfg2.5_0.0to0.6", 8, 2.5, (0.0, 0.6)),
]


class GivenStates:
    """A conditioner that has the states of the fixture."""

    def __init__(self, states: Tensor, null: Tensor) -> None:
        self.states, self.empty = states, null

    def __call__(self, prompts: Any) -> tuple[Tensor, None]:
        return self.states, None

    def null(self, count: int) -> tuple[Tensor, None]:
        return self.empty, None

    def padded_null(self, length: int) -> Tensor:
        return self.empty[:, :length]


def opened(folder: Path, **options: Any) -> TransitionPipeline:
    pipeline: TransitionPipeline = TransitionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference_options(numbers: Path, folder: Path, name: str) -> Path:
    """The reference's network options of a network, as a file."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(json.loads((numbers / "meta.json").read_text())[name]["config"]))
    return path


def check_continues_exactly(recipe: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    """A run of four steps that is stopped in its third ends with the losses, weights and written file of another."""
    from anystep.training.train import train

    straight, broken = folder / "straight", folder / "broken"
    train(recipe, straight)
    with interrupted_after(3, monkeypatch):
        assert train(recipe, broken)["step"] == 3
    assert train(recipe, broken)["step"] == 4
    assert losses(broken) == losses(straight)
    for expected, found in (
        (weights(straight), weights(broken)),
        [load_file(run / written) for run in (straight, broken)],
    ):
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def save_guided(model: Path, folder: Path, **options: Any) -> nn.Module:
    """Save a pipeline as another with a network of random weights that reads a guidance scale; returns that network."""
    from anystep.models import build_transformer
    from anystep.pipelines.transition import TransitionPipeline

    torch.manual_seed(1)
    network = build_transformer("t2i-test", sample_size=4, text_width=384, guidance_embed=True, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    pipeline = TransitionPipeline.from_pretrained(model)
    pipeline.register_modules(transformer=network)
    pipeline.save_pretrained(folder)
    return network
