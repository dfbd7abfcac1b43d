"""An evaluation to look at: figures, tables and pictures of one report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from anystep.errors import InputError
from anystep.files import replacing, write_json, write_text

ARROWS = {"lower": "↓", "higher": "↑", "nearest 1": "→ 1"}


def markdown(report: dict[str, Any]) -> str:
    """Tables of all figures, the controls, the verdicts, and what to know before reading them."""
    lines = ["# Quality against network evaluations", ""]
    lines += [
        f"{report['samples']} images a step count, {report['real_images']} real images, seed {report['seed']}.",
        "",
    ]
    names = list(report["better"])
    for model in report["models"]:
        lines += [f"## {model['name']}", "", _row(["steps", "NFE", "s / image", *(_title(n, report) for n in names)])]
        lines += [_row(["--:"] * (3 + len(names)))]
        for point in model["points"]:
            seconds = f"{point['seconds_per_image']:.3f}" if point["seconds_per_image"] else ""
            figures = [_figure(point["metrics"][name]) for name in names]
            lines.append(_row([str(point["steps"]), str(point["nfe"]), seconds, *figures]))
        lines += ["", "Does quality rise with steps?", ""]
        for name, monotone in model["monotone"].items():
            chances = ", ".join(f"{chance:.2f}" for chance in monotone["probability"])
            lines.append(f"- {name}: {monotone['verdict']} (probability that each next is not worse: {chances or '-'})")
        lines.append("")
        if model["movement"]:
            kinds = [kind for kind in ("features", "pixels") if kind in model["movement"][0]]
            lines += ["How far does the picture of one seed move?", "", _row(["steps", *kinds])]
            lines += [_row(["---", *["--:"] * len(kinds)])]
            for moved in model["movement"]:
                lines.append(_row([f"{moved['from']} to {moved['to']}", *(_figure(moved[kind]) for kind in kinds)]))
            lines.append("")
    controls = report["controls"]
    measured = [name for name in names if all(name in figures for figures in controls.values())]
    lines += ["## Controls", "", _row(["", *measured]), _row(["---", *["--:"] * len(measured)])]
    lines += [_row([what, *(_figure(figures[name]) for name in measured)]) for what, figures in controls.items()]
    lines += ["", "## Notes", "", *(f"- {note}" for note in report["notes"]), ""]
    lines.append(f"Made with {', '.join(f'{k} {v}' for k, v in report['versions'].items() if v is not None)}.")
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _title(name: str, report: dict[str, Any]) -> str:
    return f"{name} {ARROWS[report['better'][name]]}"


def _figure(estimate: dict[str, float]) -> str:
    if not math.isfinite(estimate["value"]):
        return "not finite"
    digits = 3 if abs(estimate["value"]) < 10 else 1
    return f"{estimate['value']:.{digits}f} ± {estimate['high'] - estimate['value']:.{digits}f}"


def _drawable(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def check_drawing() -> None:
    """Raises InputError where curves cannot be drawn: better known before anything is measured."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("drawing curves needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")


def curve(report: dict[str, Any], path: Path) -> None:
    """Each metric against NFE with 95 % bands, a line a model; the controls as level lines."""
    check_drawing()
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    names = list(report["better"])
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(4.4 * columns, 3.4 * rows), squeeze=False, dpi=150)
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.axis("off")
            continue
        name = names[place]
        for number, model in enumerate(report["models"]):
            nfe = [point["nfe"] for point in model["points"]]
            figures = [point["metrics"][name] for point in model["points"]]
            value, low, high = ([_drawable(f[end]) for f in figures] for end in ("value", "low", "high"))
            line = axes.plot(nfe, value, "o-", ms=4, color=f"C{number}", label=model["name"])
            axes.fill_between(nfe, low, high, color=line[0].get_color(), alpha=0.18, lw=0)
        for (what, controls), style in zip(report["controls"].items(), ("--", ":", "-."), strict=False):
            if name in controls and math.isfinite(controls[name]["value"]):
                axes.axhline(controls[name]["value"], color="0.5", ls=style, lw=0.9, label=what)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(sorted({point["nfe"] for model in report["models"] for point in model["points"]}))
        axes.set_xlabel("network evaluations")
        axes.set_title(_title(name.replace("_", " "), {"better": {name.replace("_", " "): report["better"][name]}}))
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.03 + 0.05 * (-(-len(labels) // 2)) / rows, 1, 1))
    with replacing(path) as part, part.open("wb") as file:
        figure.savefig(file, format="png")
    pyplot.close(figure)


def write_report(report: dict[str, Any], folder: Path, sheet: Image.Image | None = None) -> None:
    """`report.json`, `report.md`, `curve.png` and, where there is one, `sheet.png`."""
    from anystep.contact_sheet import save_image

    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(report))
    curve(report, folder / "curve.png")
    if sheet is None:
        (folder / "sheet.png").unlink(missing_ok=True)  # of an earlier report
    else:
        save_image(sheet, folder / "sheet.png")
