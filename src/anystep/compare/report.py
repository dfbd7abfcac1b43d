"""A comparison to read."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from anystep.markdown import markdown_table
from anystep.sampling import steps_label


def markdown(figures: Mapping[str, Any]) -> str:
    """A table a metric, and where the first variant is better than the others."""
    steps = [point["steps"] for point in figures["models"][0]["points"]]
    first = figures["models"][0]["name"]
    lines = [
        "# Objectives side by side",
        "",
        f"Each run spends {figures['evaluations']:,} network evaluations in training (a backward pass counts as two); "
        f"{_seeds(figures)}. {figures['samples']} images at each number of steps, "
        f"{figures['real_images']} real ones.",
        "",
        *_trainings(figures["models"]),
    ]
    for metric, better in figures["better"].items():
        lines += ["", f"## {metric} ({better if better == 'nearest 1' else f'{better} is better'})", ""]
        lines += _table(figures, metric, steps)
        lines += ["", f"{first} against each, at each number of steps:", ""]
        for other in dict.fromkeys(each["other"] for each in figures["against"]):
            words = [
                each["verdict"] for each in figures["against"] if each["other"] == other and each["metric"] == metric
            ]
            told = ", ".join(f"{count}: {word}" for count, word in zip(steps, words, strict=True))
            lines.append(f"- {other}: {told}")
        if len(steps) > 1:
            lines += ["", "From each number of steps to the next:", ""]
            lines += [f"- {model['name']}: {_changes(model['doublings'][metric])}" for model in figures["models"]]
    lines += _movement(figures["models"])
    if figures["milestones"]:
        lines += _time_to_quality(figures["milestones"])
    lines += _plans(figures["plans"])
    lines += [line for note in figures["notes"] for line in ("", note)]
    lines += ["", "## Controls", ""]
    for what, controls in figures["controls"].items():
        lines.append(f"- {what}: " + ", ".join(f"{name} {figure['value']:.4g}" for name, figure in controls.items()))
    lines += [
        "",
        "± is a 95 % interval: of the mean over seeds where there are several, else of the redrawn images. "
        "Bold is best or level: the interval of the difference from the best, paired over the seeds that both have, "
        "does not exclude zero (Student's t; it tells little of two seeds, so that variants of two are not ranked "
        "where others have more). The score is the mean over step counts of the logarithm. "
        "`better` and `worse` are differences whose interval excludes zero; one in twenty such differences does so by "
        "chance. All runs are measured with the same captions, noise and real images, whose own draw no interval "
        "includes.",
        "",
    ]
    if figures["command"]:
        minutes = sum(model["training"]["seconds"] for model in figures["models"]) / 60
        lines += [
            f"Made with `{figures['command']}`: {minutes:.0f} minutes of training for one seed of each, "
            f"on {figures['versions']['cuda'] or figures['versions']['cpu']}, torch {figures['versions']['torch']}.",
            "",
        ]
    return "\n".join(lines)


def _trainings(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the training of each variant took."""
    rows = []
    for model in models:
        training = model["training"]
        evaluations, minutes = f"{training['evaluations_per_sample']:.2f}", f"{training['seconds'] / 60:.1f}"
        rows.append([model["name"], len(model["seeds"]), training["steps"], evaluations, minutes])
    return markdown_table([None, "seeds", "training steps", "evaluations a sample", "minutes a run"], rows)


def _seeds(figures: Mapping[str, Any]) -> str:
    """Which, where all variants have the same."""
    told = {tuple(model["seeds"]) for model in figures["models"]}
    return "its own seeds each" if len(told) > 1 else f"seeds {', '.join(map(str, told.pop()))}"


def _cell(estimate: Mapping[str, float], bold: bool = False) -> str:
    text = f"{estimate['value']:.4g} ± {estimate['high'] - estimate['value']:.2g}"
    return f"**{text}**" if bold else text


def _table(figures: Mapping[str, Any], metric: str, steps: Sequence[int]) -> list[str]:
    """Variants down, step counts across, best-or-level cells in bold; with scores where there are; who leads where."""
    best = figures["best_or_level"][metric]
    scored = bool(best["score"])
    spent = zip(*([point["nfe"] for point in model["points"]] for model in figures["models"]), strict=True)
    nfe = [str(low) if (low := min(each)) == max(each) else f"{low}-{max(each)}" for each in spent]
    rows = [["NFE", *nfe, *[""] * scored]]
    for model in figures["models"]:
        name = model["name"]
        cells = [
            _cell(point["metrics"][metric], name in best["steps"][str(point["steps"])]) for point in model["points"]
        ]
        if scored:
            cells.append(_cell(model["scores"][metric], name in best["score"]))
        rows.append([name, *cells])
    led = [(steps_label(count), best["steps"][str(count)]) for count in steps]
    if scored:
        led.append(("score", best["score"]))
    return [
        *markdown_table(["steps", *map(str, steps), *["score"] * scored], rows),
        "",
        "Best or level:",
        "",
        *(f"- {where}: {', '.join(names) or 'none, their figures are not finite'}" for where, names in led),
    ]


def _changes(doublings: Sequence[Mapping[str, Any]]) -> str:
    """`better` and so on, neighbours with the same word together."""
    told = []
    for word, same in groupby(doublings, key=lambda each: each["verdict"]):
        each = list(same)
        told.append(f"{word} from {each[0]['from']} to {each[-1]['to']}")
    return ", ".join(told)


def _plans(plans: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What each run spent its steps on, and the figures on the validation half that chose it."""
    if not plans:
        return []
    rows = [
        [run, row["budget"], f"{row['uniform']:.4g}", f"{row['planned']:.4g}", row["plan"]]
        for run, planned in plans.items()
        for row in planned
    ]
    return [
        "",
        "## Plans",
        "",
        "Searched for each run on real images, captions and seeds that nothing above was measured with; NFE above is "
        "what they spend. The figures are those that chose.",
        "",
        *markdown_table(["run", "steps", "uniform", "planned", "plan"], rows, "lrrrl"),
    ]


def _movement(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Two tables: how far the picture of one seed moves in features and in pixels."""
    lines: list[str] = []
    titles = {
        "features": "distance of features over that of two different images",
        "pixels": "root mean square of the difference of pixels in [0, 1]",
    }
    moves = models[0]["movement"]
    for what, title in titles.items():
        if moves and what in moves[0]:
            heads = ["steps", *(f"{moved['from']} to {moved['to']}" for moved in moves)]
            rows = [[model["name"], *(_cell(moved[what]) for moved in model["movement"])] for model in models]
            lines += ["", f"## How far the picture of one seed moves: {title}", "", *markdown_table(heads, rows)]
    return lines


def _time_to_quality(figures: Mapping[str, Any]) -> list[str]:
    """Distances along the training, and what the first variant spends to have what others have at their end."""
    heads = [steps_label(count) for count in figures["steps"]]
    first = figures["variants"][0]
    lines = ["", "## Time to quality", "", f"Distances along the training, of {figures['samples']} images each."]
    # of one variant alone, which reaches no goal of another, the metrics of its first point
    alone = first["points"][0]["distances"] if first["points"] else ()
    for metric in dict.fromkeys(goal["metric"] for goal in figures["goals"]) or alone:
        rows = [
            [
                variant["name"],
                f"{point['evaluations']:,.0f}",
                f"{point['seconds'] / 60:.1f}",
                *(f"{distance:.4g}" for distance in point["distances"][metric]),
            ]
            for variant in figures["variants"]
            for point in variant["points"]
        ]
        lines += ["", *markdown_table([metric, "evaluations", "minutes", *heads], rows)]
        goals = [goal for goal in figures["goals"] if goal["metric"] == metric]
        if goals:
            told = (
                f"What {first['name']} needs until it has what each other one has at its end, of what that one spent:"
            )
            others = dict.fromkeys(goal["other"] for goal in goals)
            rows = [[other, *(_goal(goal) for goal in goals if goal["other"] == other)] for other in others]
            lines += ["", told, "", *markdown_table([None, *heads], rows)]
    return lines


def _goal(goal: Mapping[str, Any]) -> str:
    if goal["evaluations_share"] is None or goal["seconds_share"] is None:
        return "not reached"
    sign = "≤ " * goal["at_most"]
    return f"{sign}{goal['evaluations_share']:.0%} of evaluations, {sign}{goal['seconds_share']:.0%} of seconds"
