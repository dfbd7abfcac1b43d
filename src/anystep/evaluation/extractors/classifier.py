"""Features of a small classifier of the data itself, for images that ImageNet features say little about."""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from anystep.data.example import BrokenExample, Source
from anystep.data.images import to_pixels
from anystep.data.sources import open_source
from anystep.device import memory_of
from anystep.errors import InputError
from anystep.evaluation.small_networks import fit, load_network
from anystep.files import write_tensors
from anystep.seeds import mixed

WIDTH = 128
MADE_BY = "anystep train-classifier"


class SmallClassifier(nn.Module):
    """Three convolutions, their mean, a layer of `WIDTH` features and the classes.

    `forward` gives the features, `classify` the logits.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.BatchNorm2d(128), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, WIDTH), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images.float() / 127.5 - 1)
        return features

    def classify(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits


def train_classifier(
    spec: str, size: int, epochs: int = 3, batch: int = 128, seed: int = 0, device: str | torch.device = "cpu"
) -> tuple[SmallClassifier, float]:
    """A classifier of a labelled source and its accuracy on a held-out part.

    Args:
        spec: of `open_source`; `idx:` sources are tested on their test files, others on every tenth example.
        size: side of the images in pixels.
        device: to train on; the classifier comes back to the CPU.

    Raises:
        InputError: the source has no classes.
    """
    source = open_source(spec, size)
    if not source.class_names:
        raise InputError(f"data {spec!r} has no classes: a classifier needs classes:FOLDER or idx:FOLDER")
    images, labels = _read(source, size)
    if spec.startswith("idx:"):
        held_images, held_labels = _read(open_source(spec, size, split="test"), size)
    else:
        held = torch.arange(len(labels)) % 10 == 0
        held_images, held_labels = images[held], labels[held]
        images, labels = images[~held], labels[~held]
        if not len(images):
            raise InputError(f"data {spec!r} has one image: a classifier needs more, every tenth of which is held out")
    torch.manual_seed(mixed(seed))
    network = SmallClassifier(len(source.class_names)).to(device)
    steps = max(1, epochs * len(images) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)

    def loss() -> Tensor:
        rows = torch.randint(len(images), (batch,))
        return cross_entropy(network.classify(network(images[rows].to(device))), labels[rows].to(device))

    fit(network, schedule, steps, loss)
    with torch.no_grad():
        answers = torch.cat([network.classify(network(part)).argmax(1) for part in held_images.split(500)])
    return network, float((answers == held_labels).float().mean())


def save_classifier(network: SmallClassifier, path: Path) -> None:
    """As safetensors, which `--extractor FILE.safetensors` reads."""
    write_tensors(path, network.state_dict(), {"made_by": MADE_BY})


def load_classifier(path: Path) -> SmallClassifier:
    """What `save_classifier` has written. Raises `InputError`: something else, or damaged."""

    def build(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> SmallClassifier:
        if metadata.get("made_by") != MADE_BY:
            raise InputError(f"{path}: not made by {MADE_BY}")
        return SmallClassifier(len(state["head.bias"]))

    return load_network(path, "classifier", MADE_BY, build)


def _read(source: Source, size: int) -> tuple[UInt8[Tensor, "count 3 height width"], Int[Tensor, " count"]]:
    """All that can be read. Raises `InputError`: nothing, labels without a class, or more than memory would hold."""
    needed, memory = 3 * size**2 * len(source), memory_of(torch.device("cpu"))
    if needed > memory / 2:
        raise InputError(
            f"{len(source)} images of side {size} take {needed / 2**30:.0f} GiB of memory: a smaller --size"
        )
    images, labels = [], []
    for index in range(len(source)):
        try:
            example = source[index]
        except BrokenExample:
            continue
        if example.label is None or not 0 <= example.label < len(source.class_names):
            raise InputError(f"{example.key}: label {example.label}, of {len(source.class_names)} classes")
        images.append(to_pixels(example.image))
        labels.append(example.label)
    if not images:
        raise InputError("none of the images can be read")
    return torch.stack(images), torch.tensor(labels)
