"""A transition model of a two-dimensional spiral, trained in about a minute on a laptop: `python examples/toy_2d.py`.

Shows the three public pieces at work on a network of your own: a transport, the objective, the any-step sampler.
"""

import argparse
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from anystep.contact_sheet import contact_sheet, save_image
from anystep.objective import TransitionObjective
from anystep.sampling import guided, sample
from anystep.transport import make_transport


def spiral(count: int, generator: torch.Generator) -> Tensor:
    """(count, 2) points with about unit variance."""
    turn = torch.rand(count, generator=generator).sqrt() * 3 * math.pi
    points = torch.stack([turn * turn.cos(), turn * turn.sin()], dim=1) / 4.5
    return points + 0.03 * torch.randn(count, 2, generator=generator)


class Network(nn.Module):
    """Any callable `network(x, t, r, condition, condition_mask)` will do; this one ignores the condition."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + 2 * (6 + 8), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        times = torch.stack([t, t - r], dim=1)[:, :, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])
        places = x[:, :, None] * torch.tensor([2.0, 4.0, 8.0])
        waves = torch.cat([times.flatten(1), places.flatten(1)], dim=1)
        return self.layers(torch.cat([x, waves.cos(), waves.sin()], dim=1))


def plot(points: Tensor, side: int = 240) -> Image.Image:
    """The points as dots on white."""
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    for x, y in ((points / 2.6 + 1) / 2 * side).tolist():
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill="#4078c0")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--out", type=Path, default=Path("toy_2d.png"))
    options = parser.parse_args()

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = Network()
    # two coordinates are a point, not a direction
    objective = TransitionObjective(make_transport("ot_fm", mean=0.0, std=1.4), direction=False)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for step in range(options.steps):
        batch = objective.draw_batch(spiral(512, generator), torch.zeros(512, 1), generator)
        record = objective.evaluate(network, batch)
        optimizer.zero_grad()
        record.loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 500 == 0:
            print(f"step {step + 1}: residual {record.denoising.item():.4f}")

    noise = torch.randn(3000, 2, generator=generator)
    counts = (1, 2, 4, 8, 32)
    predict = guided(network, objective.transport, (torch.zeros(3000, 1), None))
    pictures = [plot(sample(predict, objective.transport, noise, n).sample) for n in counts]
    labels = [f"{n} step{'s' * (n > 1)}" for n in counts]
    save_image(contact_sheet([[*pictures, plot(spiral(3000, generator))]], None, [*labels, "data"]), options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
