"""Figures of a report are drawn whatever they are."""

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from anystep.evaluation.report import curve


def test_curves_of_many_models_and_figures_that_are_none_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figure(value: float, half: float = 0.5) -> dict[str, float]:
        return {"value": value, "low": value - half, "high": value + half}

    def model(number: int) -> dict[str, Any]:
        values = (10 / (1 + step) + number if number else math.nan for step in range(3))
        points = [
            {"nfe": 2**step, "steps": 2**step, "metrics": {"distance": figure(value, 20.0), "sharpness": figure(0.9)}}
            for step, value in enumerate(values)
        ]
        moved = [{"from": n, "to": 2 * n, "features": figure(0.3)} for n in (1, 2)]
        return {"name": f"model {number}", "points": points, "movement": moved}

    report: dict[str, Any] = {
        "models": [model(number) for number in range(12)],
        "better": {"distance": "lower", "sharpness": "nearest 1"},
        "controls": {"real": {"distance": figure(3.0), "sharpness": figure(1.0)}},
    }
    report["models"][1]["name"] = "_mine"  # matplotlib takes such a label for none
    report["models"][2]["name"] = r"$\no$"  # and this for mathematics
    legends: list[list[str]] = []
    legend = Figure.legend

    def listing(figure: Figure, handles: list[Any], labels: list[str], **options: Any) -> Any:
        legends.append(labels)
        return legend(figure, handles, labels, **options)

    monkeypatch.setattr(Figure, "legend", listing)
    curve(report, tmp_path / "curve.png")
    assert legends == [[*(each["name"] for each in report["models"]), "real"]]
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.width > drawn.height > 300
