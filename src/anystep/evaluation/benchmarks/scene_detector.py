"""A small detector of the drawings of scenes: class, box and colour of each (centre points, arXiv 1904.07850)."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from PIL import Image, ImageFilter
from torch import Tensor, nn

from anystep.data.images import to_tensor
from anystep.data.scenes import CANVASES, COLOURS, TASKS, Scene, concepts, draw_scene
from anystep.errors import InputError
from anystep.evaluation.benchmarks.detections import Detection
from anystep.evaluation.small_networks import fit, load_network, save_half
from anystep.seeds import mixed
from anystep.weights import BUILTIN, shipped

STRIDE = 4
NAMED = (None, *COLOURS)


class SceneDetector(nn.Module):
    """On a grid of a quarter of the image's sides: a score a class, a side, the centre within the cell, a colour."""

    def __init__(self, classes: Sequence[str], width: int = 56, depth: int = 5) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.SiLU(),
            nn.Conv2d(32, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.SiLU(),
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.heat = nn.Conv2d(width, len(self.classes), 1)
        self.rest = nn.Conv2d(width, 3 + len(NAMED), 1)
        nn.init.constant_(self.heat.get_parameter("bias"), -4.6)  # a hundredth, so that empty cells cost little

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch classes rows columns"], Float[Tensor, "batch rest rows columns"]]:
        """Logits of the classes; (log side / 32, centre x, centre y, colour logits)."""
        x = self.stem(images)
        for block in self.blocks:
            x = functional.silu(x + block(x))
        return self.heat(x), self.rest(x)

    @torch.no_grad()
    def __call__(self, image: Image.Image, min_score: float = 0.3) -> list[Detection]:
        """Raises InputError: an image whose sides are no multiples of 4."""
        if image.width % STRIDE or image.height % STRIDE:
            raise InputError(f"image of {image.width}x{image.height}: both sides must be multiples of {STRIDE}")
        heat, rest = (answer[0] for answer in self.forward(to_tensor(image)[None]))
        scores = heat.sigmoid()
        # one drawing is one class: the best of a cell, where it is the best of its neighbours
        best, kinds = scores.max(0)
        peak = functional.max_pool2d(best[None, None], 3, 1, 1)[0, 0]
        rows, columns = ((best == peak) & (best >= min_score)).nonzero(as_tuple=True)
        found: list[Detection] = []
        for row, column in sorted(zip(rows.tolist(), columns.tolist(), strict=True), key=lambda at: -best[at].item()):
            side = 32 * rest[0, row, column].exp().item()
            x = (column + rest[1, row, column].item()) * STRIDE
            y = (row + rest[2, row, column].item()) * STRIDE
            box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
            if any(_overlap(box, other.box) > 0.4 for other in found):
                continue
            colour = NAMED[int(rest[3:, row, column].argmax())] or "as drawn"
            found.append(Detection(self.classes[int(kinds[row, column])], best[row, column].item(), box, colour))
        return found

    def save(self, path: Path) -> None:
        """Half-precision weights and the classes."""
        save_half(self, path, {"classes": "\n".join(self.classes)})

    @classmethod
    def load(cls, spec: str | Path = BUILTIN) -> "SceneDetector":
        """`builtin`, or a file of `anystep train-scene-detector`. Raises InputError: a missing or damaged one."""
        path = shipped("scenes.safetensors") if spec == BUILTIN else Path(spec)

        def build(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> SceneDetector:
            depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
            return cls(metadata["classes"].split("\n"), state["heat.weight"].shape[1], depth)

        return load_network(path, "scene detector", "anystep train-scene-detector", build)


def _overlap(one: Sequence[float], two: Sequence[float]) -> float:
    """Shared area over that of both."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return width * height / (sum(areas) - width * height)


def train_scene_detector(
    steps: int = 4000,
    batch: int = 16,
    base: int = 64,
    seed: int = 0,
    on_step: Callable[[int, int, float], None] = lambda done, total, loss: None,
    device: str | torch.device = "cpu",
) -> SceneDetector:
    """A detector trained on scenes drawn as it goes, blurred and noisy by turns, as generated images are.

    Args:
        base: pixels on the shorter side of a scene.
        on_step: called with the steps that are done, all of them, and the loss.
        device: to train on; the detector comes back to the CPU.
    """
    torch.manual_seed(mixed(seed))
    rng = random.Random(f"detector/{seed}")
    detector = SceneDetector(concepts()).to(device)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)

    def loss() -> Tensor:
        canvas = rng.choice(CANVASES)
        scenes = [draw_scene(rng.choice(TASKS), rng, base, canvas) for _ in range(batch)]
        return detection_loss(detector, torch.stack([_worn(scene, rng) for scene in scenes]).to(device), scenes)

    return fit(detector, schedule, steps, loss, on_step, max_norm=5.0)


def _worn(scene: Scene, rng: random.Random) -> Float[Tensor, "3 height width"]:
    image = scene.picture()
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0)))
    tensor = to_tensor(image)
    return tensor + rng.uniform(0, 0.15) * torch.randn(tensor.shape) if rng.random() < 0.5 else tensor


def detection_loss(
    detector: SceneDetector, images: Float[Tensor, "batch 3 height width"], scenes: Sequence[Scene]
) -> Tensor:
    """Focal loss on the centres (arXiv 1904.07850, eq. 1), L1 on side and centre, cross-entropy on the colour."""
    heat, rest = detector.forward(images)
    target = torch.zeros_like(heat)
    rows, columns = (torch.arange(side, device=heat.device) for side in heat.shape[2:])
    places, sides, colours = [], [], []
    for number, scene in enumerate(scenes):
        for thing in scene.things:
            x, y = ((thing.left + thing.side / 2) / STRIDE, (thing.top + thing.side / 2) / STRIDE)
            spread = max(0.5, thing.side / STRIDE / 8)
            bump = torch.exp(-((rows[:, None] + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2) / (2 * spread**2))
            kind = detector.classes.index(thing.concept)
            target[number, kind] = torch.maximum(target[number, kind], bump)
            row, column = min(int(y), heat.shape[2] - 1), min(int(x), heat.shape[3] - 1)
            target[number, kind, row, column] = 1
            places.append((number, row, column))
            sides.append([torch.tensor(thing.side / 32).log().item(), x - column, y - row])
            colours.append(NAMED.index(thing.colour))
    log_yes, log_no = functional.logsigmoid(heat), functional.logsigmoid(-heat)
    likely = heat.sigmoid()
    hit = target == 1
    focal = -torch.where(hit, (1 - likely) ** 2 * log_yes, (1 - target) ** 4 * likely**2 * log_no).sum() / max(
        1, len(places)
    )
    numbers, at_rows, at_columns = torch.tensor(places).T
    answers = rest[numbers, :, at_rows, at_columns]
    shape = functional.l1_loss(answers[:, :3], torch.tensor(sides, device=heat.device))
    return focal + shape + 0.5 * functional.cross_entropy(answers[:, 3:], torch.tensor(colours, device=heat.device))
