"""An evaluation to look at: figures, tables and pictures of one report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from anystep.errors import InputError
from anystep.files import replacing, write_json, write_text
from anystep.markdown import markdown_table

ARROWS = {"lower": "↓", "higher": "↑", "nearest 1": "→ 1"}
# of Okabe and Ito, and of Tol: told apart by all kinds of eyes, together with the markers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
CONTROLS = ("--", ":", "-.")
BANDS = 4  # models, the first, whose intervals are drawn where there are many
FAR = 1.5  # a control beyond this many times what models have would squeeze their curves
Line: TypeAlias = tuple[list[int], list[float], list[float], list[float]]


def markdown(report: dict[str, Any]) -> str:
    """Tables of all figures, the controls, the verdicts, and what to know before reading them."""
    names, controls = list(report["better"]), report["controls"]
    measured = [name for name in names if all(name in figures for figures in controls.values())]
    rows = [[what, *(_figure(figures[name]) for name in measured)] for what, figures in controls.items()]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version is not None)
    lines = [
        "# Quality against network evaluations",
        "",
        f"{report['samples']} images a step count, {report['real_images']} real images, seed {report['seed']}.",
        "",
        *(line for model in report["models"] for line in _model_section(model, report["better"])),
        *["## Controls", "", *markdown_table(["", *measured], rows)],
        *["", "## Notes", "", *(f"- {note}" for note in report["notes"]), ""],
        f"Made with {versions}.",
    ]
    return "\n".join(lines) + "\n"


def _model_section(model: dict[str, Any], better: dict[str, str]) -> list[str]:
    """The figures of one model, whether they rise with steps, and how far its pictures move."""
    rows = []
    for point in model["points"]:
        seconds = f"{point['seconds_per_image']:.3f}" if point["seconds_per_image"] else ""
        rows.append([point["steps"], point["nfe"], seconds, *(_figure(point["metrics"][name]) for name in better)])
    heads = ["steps", "NFE", "s / image", *(_title(*each) for each in better.items())]
    lines = [f"## {model['name']}", "", *markdown_table(heads, rows, "r"), "", "Does quality rise with steps?", ""]
    for name, monotone in model["monotone"].items():
        chances = ", ".join(f"{chance:.2f}" for chance in monotone["probability"])
        lines.append(f"- {name}: {monotone['verdict']} (probability that each next is not worse: {chances or '-'})")
    if moves := model["movement"]:
        kinds = [kind for kind in ("features", "pixels") if kind in moves[0]]
        rows = [[f"{moved['from']} to {moved['to']}", *(_figure(moved[kind]) for kind in kinds)] for moved in moves]
        lines += ["", "How far does the picture of one seed move?", "", *markdown_table(["steps", *kinds], rows)]
    return [*lines, ""]


def _title(name: str, better: str) -> str:
    return f"{name} {ARROWS[better]}"


def _figure(estimate: dict[str, float]) -> str:
    if not math.isfinite(estimate["value"]):
        return "not finite"
    digits = 3 if abs(estimate["value"]) < 10 else 1
    return f"{estimate['value']:.{digits}f} ± {estimate['high'] - estimate['value']:.{digits}f}"


def check_drawing() -> None:
    """Raises InputError where curves cannot be drawn: better known before anything is measured."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("drawing curves needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")


def curve(report: dict[str, Any], path: Path) -> None:
    """Each metric against NFE, a line a model, and how far pictures move; the controls as level lines.

    The first models have 95 % bands, and all where they are few. Distances and sharpness have logarithmic axes.
    """
    check_drawing()
    from matplotlib import pyplot

    models = report["models"]
    panels = [
        (_title(name.replace("_", " "), report["better"][name]), name, [_points(model, name) for model in models])
        for name in report["better"]
    ]
    if all(model["movement"] for model in models):
        panels.append(("how far a picture moves from the steps before", "", [_moved(model) for model in models]))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(rows, columns, figsize=(4.4 * columns, 3.5 * rows), squeeze=False, dpi=150)
    for axes in list(grid.flat)[len(panels) :]:
        axes.axis("off")
    legend: dict[str, Any] = {}  # matplotlib's own leaves out names that begin with an underscore
    for axes, (title, name, lines) in zip(grid.flat, panels, strict=False):
        better = report["better"].get(name, "")
        for number, (model, line) in enumerate(zip(models, lines, strict=True)):
            main = number < BANDS or len(models) <= BANDS + 1
            style = {"color": COLOURS[number % len(COLOURS)], "ls": "-" if number < len(COLOURS) else "--"}
            nfe, value, low, high = line
            legend[model["name"]], = axes.plot(
                nfe, value, marker=MARKERS[number % len(MARKERS)], ms=4.5, lw=1.8 if main else 1.1,
                zorder=3 if main else 2, **style,
            )  # fmt: skip
            if main:
                axes.fill_between(nfe, low, high, color=style["color"], alpha=0.16, lw=0, zorder=1)
        level = {
            what: controls[name]["value"]
            for what, controls in report["controls"].items()
            if name in controls and math.isfinite(controls[name]["value"])
        }
        for (what, value), dashes in zip(level.items(), CONTROLS, strict=False):
            legend[what] = axes.axhline(value, color="0.55", ls=dashes, lw=1, zorder=0)
        drawn = [value for _, values, *_ in lines for value in values if math.isfinite(value)]
        if better in ("lower", "nearest 1") and drawn and min(drawn) > 0:
            bands = [end for _, _, low, high in lines[:BANDS] for end in (*low, *high)]
            near = [end for end in (*level.values(), *bands) if min(drawn) / FAR < end < max(drawn) * FAR]
            _logarithmic(axes, [*drawn, *near])
        _steps_axis(axes, sorted({count for nfe, *_ in lines for count in nfe}))
        axes.set_title(title, fontsize=10, parse_math=False)
    figure.tight_layout()
    beside: Any = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False, "fontsize": 9}
    for text in figure.legend(list(legend.values()), list(legend), **beside).get_texts():
        text.set_parse_math(False)  # a name may have dollars
    with replacing(path) as part, part.open("wb") as file:
        figure.savefig(file, format="png", bbox_inches="tight")
    pyplot.close(figure)


def _points(model: dict[str, Any], name: str) -> Line:
    """NFE, figure, and both ends of its interval."""
    return _line([(point["nfe"], point["metrics"][name]) for point in model["points"]])


def _moved(model: dict[str, Any]) -> Line:
    nfe = {point["steps"]: point["nfe"] for point in model["points"]}
    return _line([(nfe[moved["to"]], moved["features"]) for moved in model["movement"]])


def _line(figures: Sequence[tuple[int, dict[str, float]]]) -> Line:
    value, low, high = (
        [each[end] if math.isfinite(each[end]) else math.nan for _, each in figures] for end in ("value", "low", "high")
    )
    return [nfe for nfe, _ in figures], value, low, high


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """With round numbers along it; the bands may end beyond it, or have no logarithm."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log", nonpositive="clip")
    wide = max(values) > 4 * min(values)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)) if wide else MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(min(values) / 1.1, max(values) * 1.1)


def _steps_axis(axes: Any, counts: Sequence[int]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(counts)
    axes.set_xlabel("network evaluations")
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


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
