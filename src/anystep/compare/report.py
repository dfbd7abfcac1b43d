"""A comparison to read."""

from collections.abc import Mapping
from typing import Any


def markdown(figures: Mapping[str, Any]) -> str:
    """A table a metric, and where the first variant is better than the others."""
    steps = [point["steps"] for point in figures["models"][0]["points"]]
    first = figures["models"][0]["name"]
    lines = [
        "# Objectives side by side",
        "",
        f"Each run spends {figures['evaluations']:,} network evaluations in training (a backward pass counts as two); "
        f"seeds {', '.join(map(str, figures['seeds']))}. {figures['samples']} images at each number of steps, "
        f"{figures['real_images']} real ones.",
        "",
        "| | training steps | evaluations a sample | minutes a run |",
        "| --- | --: | --: | --: |",
    ]
    for model in figures["models"]:
        training = model["training"]
        lines.append(
            f"| {model['name']} | {training['steps']} | {training['evaluations_per_sample']:.2f} "
            f"| {training['seconds'] / 60:.1f} |"
        )
    for metric, better in figures["better"].items():
        lines += ["", f"## {metric} ({better} is better)", ""]
        lines += [f"| steps | {' | '.join(map(str, steps))} |", f"| --- | {' | '.join('--:' for _ in steps)} |"]
        lines += [f"| NFE | {' | '.join(str(point['nfe']) for point in figures['models'][0]['points'])} |"]
        for model in figures["models"]:
            cells = []
            for place, point in enumerate(model["points"]):
                values = [each["points"][place]["metrics"][metric]["value"] for each in figures["models"]]
                estimate = point["metrics"][metric]
                text = f"{estimate['value']:.4g} ± {estimate['high'] - estimate['value']:.2g}"
                best = min(values) if better == "lower" else max(values)
                cells.append(f"**{text}**" if estimate["value"] == best else text)
            lines.append(f"| {model['name']} | {' | '.join(cells)} |")
        lines += ["", f"{first} against each, at each number of steps:", ""]
        for other in dict.fromkeys(each["other"] for each in figures["against"]):
            words = [
                each["verdict"] for each in figures["against"] if each["other"] == other and each["metric"] == metric
            ]
            told = ", ".join(f"{count}: {word}" for count, word in zip(steps, words, strict=True))
            lines.append(f"- {other}: {told}")
    lines += ["", "## Controls", ""]
    for what, controls in figures["controls"].items():
        lines.append(f"- {what}: " + ", ".join(f"{name} {figure['value']:.4g}" for name, figure in controls.items()))
    lines += [
        "",
        "± is a 95 % interval: of the mean over seeds where there are several, else of the redrawn images. "
        "`better` and `worse` are differences whose interval excludes zero; one in twenty such differences does so by "
        "chance. All runs are measured with the same captions, noise and real images, whose own draw no interval "
        "includes.",
        "",
    ]
    if figures["command"]:
        minutes = sum(model["training"]["seconds"] for model in figures["models"]) / 60
        lines += [
            f"Made with `{figures['command']}`: {minutes:.0f} minutes of training for each seed, "
            f"on {figures['versions']['cuda'] or figures['versions']['cpu']}, torch {figures['versions']['torch']}.",
            "",
        ]
    return "\n".join(lines)
