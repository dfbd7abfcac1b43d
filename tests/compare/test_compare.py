"""Comparisons spend equal evaluations, resume, and say in one line what is wrong."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anystep.cli import main
from anystep.compare import Comparison, choose, variant_recipe, vary
from anystep.compare.milestones import keeping, kept_steps, reached
from anystep.compare.paired import best_or_level, gain, student, verdict_of
from anystep.errors import InputError
from anystep.evaluation.extractors.registry import load_extractor, try_extractor
from anystep.files import claimed
from anystep.objective.presets import OBJECTIVES
from anystep.pipelines.load import load
from anystep.training.config import RunConfig
from anystep.training.objective import make_objective
from anystep.training.objective_config import ObjectiveConfig
from anystep.training.plan import evaluations_per_sample
from anystep.training.recipe_files import load_recipe

CONFIGS = Path(__file__).parent.parent.parent / "configs" / "compare"


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred and forty images of ten classes of stripes, in the layout of Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("fashion")
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 240), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 10
        rows = (np.arange(28)[None, :, None] * (labels[:, None, None] + 1) // 7) % 2
        images = (rows * 200 + generator.integers(0, 50, (count, 28, 28))).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
            header = bytes((0, 0, 8, array.ndim)) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            (folder / name).write_bytes(gzip.compress(header + array.tobytes()))
    return folder


@pytest.fixture(scope="module")
def small(fashion: Path, tmp_path_factory: pytest.TempPathFactory, pooled: Path) -> Path:
    """A comparison of two objectives that takes seconds."""
    content = yaml.safe_load((CONFIGS / "fashion-mnist.yaml").read_text())
    debug = content.pop("debug")
    content["recipe"]["data"]["source"] = f"idx:{fashion}"
    content["recipe"]["model"]["options"] |= debug["recipe"]["model"]["options"]
    content["recipe"]["run"] |= {"batch_size": 8}
    content |= {"evaluations": 240, "seeds": [0, 1], "steps": [1, 2], "samples": 60, "extractor": str(pooled)}
    content["plans"] = False
    content["variants"] = {
        "transition": {},
        "flow matching": {"objective": {"kind": "flow_matching"}},
    }
    content["metrics"] = ["kernel_distance", "frechet_distance", "sharpness"]
    path = tmp_path_factory.mktemp("comparison") / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    assert main(["compare", "--allow-code", str(small), "--out", str(out), "--jobs", "2"]) == 0
    return out


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def test_a_comparison_has_a_curve_a_variant_over_all_seeds(finished: Path) -> None:
    report = read(finished)
    assert [model["name"] for model in report["models"]] == ["transition", "flow matching"]
    assert [(point["steps"], point["nfe"]) for point in report["models"][0]["points"]] == [(1, 1), (2, 2)]
    for model in report["models"]:
        for point in model["points"]:
            figure = point["metrics"]["frechet_distance_pooled"]
            seeds = point["seeds"]["frechet_distance_pooled"]
            assert len(seeds) == 2
            assert figure["value"] == pytest.approx(sum(seeds) / 2)
            assert figure["low"] <= min(seeds)
            assert figure["high"] >= max(seeds)
    assert len(report["runs"]) == 4
    assert len(report["against"]) == 6
    assert {each["verdict"] for each in report["against"]} <= {"better", "level", "worse"}
    assert "transition against each" in (finished / "report.md").read_text()
    assert {"curve.png", "sheet.png"} <= {path.name for path in finished.iterdir()}


def test_a_report_says_who_is_best_or_level_with_a_score_and_how_pictures_move(finished: Path) -> None:
    report = read(finished)
    name = "frechet_distance_pooled"
    best = report["best_or_level"][name]
    assert list(best["steps"]) == ["1", "2"]
    for place, leaders in enumerate(best["steps"].values()):
        values = {model["name"]: model["points"][place]["metrics"][name]["value"] for model in report["models"]}
        assert min(values, key=lambda each: values[each]) in leaders
    for model in report["models"]:
        seeds = [point["seeds"][name] for point in model["points"]]
        scores = [(math.log(one) + math.log(two)) / 2 for one, two in zip(*seeds, strict=True)]
        assert model["scores"][name]["value"] == pytest.approx(sum(scores) / 2)
        (doubled,) = model["doublings"][name]
        gains = [one - two for one, two in zip(*seeds, strict=True)]
        assert (doubled["from"], doubled["to"]) == (1, 2)
        assert doubled["gain"]["value"] == pytest.approx(sum(gains) / 2)
        (moved,) = model["movement"]
        assert 0 < moved["features"]["value"] < 2
        assert 0 < moved["pixels"]["value"] < 1
    page = (finished / "report.md").read_text()
    for words in ("| score |", "- 2 steps: ", "From each number of steps to the next:", "picture of one seed moves"):
        assert words in page
    row = next(line for line in page.splitlines() if line.startswith(f"| {best['steps']['1'][0]} |") and "±" in line)
    assert row.count("**") >= 2


def seeded(values: dict[int, float], spread: float = 0.0) -> dict[int, torch.Tensor]:
    noise = spread * torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return {seed: torch.cat([torch.zeros(1).double(), noise]) + value for seed, value in values.items()}


def test_level_is_what_paired_differences_cannot_tell() -> None:
    """Seeds differ by far more than variants; with paired seeds the small difference is sure all the same."""
    ours = seeded({0: 10.0, 1: 20.0, 2: 30.0})
    near = seeded({0: 9.8, 1: 20.3, 2: 30.1})
    far = seeded({0: 11.0, 1: 21.1, 2: 30.9, 7: 0.0})
    losses = {"ours": ours, "near": near, "far": far}
    assert gain(ours, far)["value"] == pytest.approx(1.0)
    half = student(2) * 0.1 / 3**0.5
    assert gain(ours, far)["low"] == pytest.approx(1 - half)
    assert verdict_of(gain(ours, far)) == "better"
    assert verdict_of(gain(far, ours)) == "worse"
    assert best_or_level({name: losses[name] for name in ("ours", "near")}) == ["ours", "near"]
    assert best_or_level({**losses, "far": {seed: far[seed] for seed in (0, 1, 2)}}) == ["ours", "near"]


def test_of_one_seed_the_redrawn_images_tell() -> None:
    sure, unsure = seeded({0: 1.0}), seeded({0: 1.2}, spread=1.0)
    assert best_or_level({"a": sure, "b": seeded({0: 1.2}, spread=0.01)}) == ["a"]
    assert best_or_level({"a": sure, "b": unsure}) == ["a", "b"]
    assert best_or_level({"a": sure, "b": seeded({0: math.nan})}) == ["a"]
    assert best_or_level({"b": seeded({0: math.nan})}) == []


def test_a_variant_may_have_seeds_of_its_own(small: Path, tmp_path: Path) -> None:
    variants = "{transition: {seeds: [3, 0]}, flow matching: {objective: {kind: flow_matching}}}"
    command = ["compare", "--allow-code", str(small), "--out", str(tmp_path), "--variants", variants]
    assert main([*command, "--seeds", "[0]", "--steps", "[1]"]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"transition-0", "transition-3", "flow-matching-0"}
    report = read(tmp_path)
    assert [model["seeds"] for model in report["models"]] == [[3, 0], [0]]
    assert "its own seeds each" in (tmp_path / "report.md").read_text()


@given(
    steps=st.integers(1, 5000),
    every=st.integers(1, 600),
    shares=st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.75, 0.99, 1.0]), min_size=1, unique=True),
)
def test_a_checkpoint_is_kept_at_each_milestone(steps: int, every: int, shares: list[float]) -> None:
    run = keeping(RunConfig(steps=steps, checkpoint_every=every), shares)
    again = keeping(RunConfig(steps=steps, checkpoint_every=every), shares)
    assert run == again
    assert run.checkpoint_every <= every
    milestones = kept_steps(RunConfig(steps=steps, checkpoint_every=every), shares)
    assert milestones == kept_steps(run, shares)  # what is kept is what is looked for
    for step in milestones:
        assert step == steps or (step % run.keep_every == 0 and step % run.checkpoint_every == 0)
    if steps > 100 * every:
        for share, step in zip(sorted(shares), milestones, strict=True):
            assert step == pytest.approx(share * steps, rel=0.35)


def test_the_cost_of_a_distance_is_interpolated() -> None:
    costs, distances = [100.0, 200.0, 400.0], [30.0, 20.0, 10.0]
    assert reached(costs, distances, 20.0) == pytest.approx(200)
    assert reached(costs, distances, 15.0) == pytest.approx(200 * 2**0.5)
    assert reached(costs, distances, 31.0) == 100
    assert reached(costs, distances, 9.0) is None
    assert reached([1.0, 2.0, 4.0], [5.0, 7.0, 3.0], 4.0) == pytest.approx(2 * 2**0.75)
    assert reached([], [], 9.0) is None


def test_milestones_tell_what_a_distance_costs_and_are_kept(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--allow-code", str(small), "--out", str(tmp_path), "--seeds", "[0]", "--steps", "[1]"]
    command += ["--milestones", "[0.5, 1]", "--milestone_steps", "[1, 2]", "--milestone_samples", "50"]
    assert main(command) == 0, capsys.readouterr().err
    told = read(tmp_path)["milestones"]
    assert (told["samples"], told["steps"]) == (50, [1, 2])
    for variant in told["variants"]:
        half, end = variant["points"]
        assert end["step"] == read(tmp_path)["models"][told["variants"].index(variant)]["training"]["steps"]
        assert end["evaluations"] == pytest.approx(240, rel=0.15)
        assert half["evaluations"] == pytest.approx(end["evaluations"] * half["step"] / end["step"], rel=0.25)
        assert 0 < half["seconds"] < end["seconds"]
        assert half["distances"] != end["distances"]
        assert set(end["distances"]) == {"kernel_distance_pooled", "frechet_distance_pooled"}
    assert [(goal["other"], goal["steps"]) for goal in told["goals"]] == [
        ("flow matching", 1),
        ("flow matching", 2),
    ] * 2
    page = (tmp_path / "report.md").read_text()
    assert "## Time to quality" in page
    assert "What transition needs until it has what each other one has at its end" in page
    chunks = {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluation").rglob("*.safetensors")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluation").rglob("*.safetensors")} == chunks
    assert read(tmp_path)["milestones"] == told


def test_every_run_spends_the_same_evaluations(finished: Path) -> None:
    for folder in (finished / "runs").iterdir():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        # a forward a sample is counted in the log; the backward pass costs two more
        spent = sum(line["evaluations"] + 2 * 8 for line in lines)
        assert spent == pytest.approx(240, rel=0.15)


def test_finished_runs_are_kept(finished: Path, small: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")}
    assert before
    figures = read(finished)["models"]
    assert main(["compare", "--allow-code", str(small), "--out", str(finished)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("manifest.json")} == before
    for old, new in zip(figures, read(finished)["models"], strict=True):
        assert [point["metrics"] for point in old["points"]] == [point["metrics"] for point in new["points"]]


@pytest.mark.slow
def test_a_comparison_measures_every_run_with_plans_of_its_own(small: Path, tmp_path: Path) -> None:
    words = ["compare", "--allow-code", str(small), "--out", str(tmp_path), "--seeds", "[0]"]
    words += ["--metrics", "[kernel_distance]", "--steps", "[1, 2, 4]"]
    assert main([*words, "--plans", "true"]) == 0
    planned = read(tmp_path)
    assert list(planned["plans"]) == ["transition, seed 0", "flow matching, seed 0"]
    for model in planned["models"]:
        rows = planned["plans"][f"{model['name']}, seed 0"]
        figures = [row["planned"] for row in rows]
        assert figures == sorted(figures, reverse=True)
        folder = tmp_path / "runs" / f"{model['name'].replace(' ', '-')}-0"
        scheduler = load(folder, "cpu").pipeline.scheduler
        assert [str(scheduler.plan(row["budget"])) for row in rows] == [row["plan"] for row in rows]
        assert [point["nfe"] for point in model["points"]] == [scheduler.plan(count).steps for count in (1, 2, 4)]
    assert "## Plans" in (tmp_path / "report.md").read_text()
    assert main(words) == 0  # the runs have plans now, but they are not asked for
    uniform = read(tmp_path)
    assert uniform["plans"] == {}
    assert [point["nfe"] for point in uniform["models"][0]["points"]] == [1, 2, 4]
    assert main([*words, "--plans", "true"]) == 0
    for old, new in zip(planned["models"], read(tmp_path)["models"], strict=True):
        assert [point["metrics"] for point in old["points"]] == [point["metrics"] for point in new["points"]]


def test_validation_that_is_too_small_is_told_before_anything_is_trained(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--allow-code", str(small), "--out", str(tmp_path / "out"), "--plans", "true"]
    assert main([*words, "--recipe.data.limit", "160"]) == 2
    assert "kernel_distance needs at least 50 images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_finished_runs_of_other_values_are_refused(
    finished: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, key in (
        (["--evaluations", "2400"], "run.steps"),
        (["--recipe.optimizer.learning_rate", "0.5"], "optim"),
    ):
        assert main(["compare", "--allow-code", str(small), "--out", str(finished), *extra]) == 2
        assert key in (error := capsys.readouterr().err)
        assert "choose another --out" in error


def test_only_and_vary_together_keep_the_new_variants(small: Path) -> None:
    comparison = choose(load_recipe(small, Comparison), ["transition"])
    assert list(vary(comparison, ["objective.eps=0.01"]).variants) == ["transition", "eps 0.01"]


@pytest.mark.parametrize("name", ["trigflow", "edm", "vp", "ve"])
def test_another_transport_starts_from_its_own_options(name: str) -> None:
    comparison = Comparison.model_validate({"recipe": {"transport": {"options": {"mean": 0.0, "std": 1.2}}}})
    recipe = variant_recipe(vary(comparison, [f"transport.name={name}"]), f"name {name}", 0)
    assert recipe.transport.options == {}
    objective = make_objective(recipe)
    t, r = objective.draw_times(2000, torch.Generator().manual_seed(0))
    assert objective.weighting(objective.transport, t, r, torch.ones_like(t)).isfinite().all()


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (9, 2.262), (10, 2.2281), (15, 2.1314), (30, 2.0423)])
def test_students_quantiles(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, abs=4e-3)


def test_each_variant_is_its_own_kind_whatever_the_recipe_says() -> None:
    comparison = Comparison.model_validate({"recipe": {"objective": {"kind": "mean_flow", "eps": 0.1}}})
    for kind, preset in OBJECTIVES.items():
        expected = ObjectiveConfig.model_validate({"kind": kind, "eps": 0.1})
        assert variant_recipe(comparison, preset.label, 0).objective == expected


def test_costs_of_a_sample() -> None:
    def cost(**options: Any) -> float:
        return evaluations_per_sample(ObjectiveConfig.model_validate(options))

    assert cost(kind="flow_matching") == 3
    assert cost(kind="transition") == 4
    assert cost(kind="transition", derivative="one_sided") == 3.5
    assert cost(kind="transition", diffusion_phase=0.5) == 3.5
    assert cost(kind="consistency") == 5
    assert cost(kind="mean_flow") == cost(kind="shortcut") == 3.5
    assert cost(kind="flow_matching", guidance={"w_cond": 0.5}) == 5


def test_ablations_are_variants_of_the_first() -> None:
    comparison = vary(Comparison(evaluations=4096), ["objective.eps=0.001,0.02", "model.options.interval_condition=r"])
    assert list(comparison.variants)[-3:] == ["eps 0.001", "eps 0.02", "interval_condition r"]
    recipe = variant_recipe(comparison, "eps 0.02", 7)
    assert (recipe.objective.kind, recipe.objective.eps, recipe.run.seed) == ("transition", 0.02, 7)
    assert recipe.run.steps == 4096 // (64 * 4)
    assert variant_recipe(comparison, "interval_condition r", 0).model.options == {"interval_condition": "r"}
    with pytest.raises(InputError, match=r"--vary 'eps': expected KEY=VALUE"):
        vary(comparison, ["eps"])
    nested = vary(comparison, ["objective.guidance={w_gt: 1, w_cond: 0.5}", "a.std=1", "b.std=1"])
    assert list(nested.variants)[-3:] == ['guidance {"w_gt": 1, "w_cond": 0.5}', "std 1", "b.std 1"]
    with pytest.raises(InputError, match="is not YAML"):
        vary(comparison, ["objective.eps={"])
    with pytest.raises(InputError, match=r"variant 'epz 1'.*objective\.epz"):
        variant_recipe(vary(comparison, ["objective.epz=1"]), "epz 1", 0)


@pytest.mark.parametrize("section", [None, 3, "edm", [], True])
def test_a_variant_whose_section_is_none_is_one_line(section: Any) -> None:
    comparison = Comparison.model_validate({"variants": {"a": {"transport": section}}})
    with pytest.raises(InputError, match="variant 'a': transport"):
        variant_recipe(comparison, "a", 0)


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (["--only", "diffusion"], "--only 'diffusion': expected some of transition, flow matching"),
        (["--metrics", "[fid]"], "unknown metric fid"),
        (["--samples", "many"], "samples: "),
        (["--recipe.data.source", "idx:nowhere"], "no such folder"),
        (["--samples", "20"], "samples 20: kernel_distance needs at least 50 images"),
        (["--metrics", "[inception_score]"], "inception_score needs a classifier"),
        (["--seeds", "[]"], "seeds: "),
        (["--variants", "{a: {seeds: [0, 0]}}"], "variant 'a': seeds [0, 0] name one twice"),
        (["--variants", "{a: {seeds: 3}}"], "variant 'a': seeds 3: expected a list"),
        (["--variants", "{a: {seeds: [-1]}}"], "variant 'a': seeds -1: expected"),
        (
            ["--variants", "{flow matching: {seeds: [7]}}"],
            "variants 'transition' and 'flow matching': seeds that have none in common",
        ),
        (["--seeds", "[3, 3]"], "name one twice"),
        (["--steps", "[]"], "steps: "),
        (["--milestones", "[0.5, 0.5]"], "name one twice"),
        (["--milestones", "[0.333]"], "milestones 0.333: expected hundredths"),
        (["--milestones", "[0]"], "milestones"),
        (["--milestones", "[1]", "--milestone_samples", "20"], "milestone_samples 20: kernel_distance needs at least"),
        (["--milestones", "[1]", "--metrics", "[precision]"], "milestones need a metric that is lower"),
        (["--vary", "data.size=14"], "variant 'size 14' changes data or model.codec"),
        (["--vary", "transport.options.sigma=1"], "variant 'sigma 1'"),
        (["--variants", "{a b: {}, A-B: {}}"], "two names are alike but for signs"),
        (["--extractor", "gone.pt"], "feature extractor 'gone.pt': no such file"),
    ],
)
def test_bad_input_is_one_line(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], line: str
) -> None:
    assert main(["compare", "--allow-code", str(small), "--out", str(tmp_path / "out"), *extra]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_classifier_learns_its_classes(fashion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train-classifier", f"idx:{fashion}", "--out", str(tmp_path / "f.safetensors"), "--epochs", "40"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert float(shown.split("right on ")[1].split("%")[0]) > 80
    extractor = load_extractor(str(tmp_path / "f.safetensors"))
    assert (extractor.classifies, try_extractor(extractor, 28, 28)) == (True, 128)
    assert main(["train-classifier", str(fashion), "--out", str(tmp_path / "f.safetensors")]) == 2
    (tmp_path / "diary.safetensors").write_text("mine")
    for name in ("f.pt", "diary.safetensors"):
        assert main(["train-classifier", f"idx:{fashion}", "--out", str(tmp_path / name)]) == 2
    assert (tmp_path / "diary.safetensors").read_text() == "mine"


@pytest.mark.parametrize(("name", "count"), [("fashion-mnist", 11), ("emoji", 6), ("objectives", 12), ("ablation", 16),
                                            ("objectives-mnist", 4), ("objectives-long", 3)])  # fmt: skip
def test_the_comparisons_that_come_with_the_project_are_sound(name: str, count: int) -> None:
    from anystep.training.recipe_files import load_recipe

    comparison = load_recipe(CONFIGS / f"{name}.yaml", Comparison)
    assert len(comparison.variants) == count
    comparison.check_seeds()
    for variant in comparison.variants:
        assert variant_recipe(comparison, variant, 0).run.steps > 600


def test_a_plan_of_an_older_version_and_what_changes_nothing_learned_resume(
    finished: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in finished.rglob("planned.yaml"):
        plan = yaml.safe_load(path.read_text())
        plan["data"].pop("aspect")
        plan.pop("guard", None)
        path.write_text(yaml.safe_dump(plan))
    for name in (".anystep.json", ".lock"):  # folders were not marked then either
        (finished / name).unlink()
    command = ["compare", "--allow-code", str(small), "--out", str(finished), "--recipe.run.log_every", "7"]
    assert main([*command, "--recipe.sample_steps", "[1]"]) == 0, capsys.readouterr().err
    (finished / "planned.yaml").write_text("{")
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "planned.yaml" in error
    assert "choose another --out" in error


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        (["--variants", "{a: {}, b: {model: {options: {hidden_size: 7}}}}"], "variant 'b': "),
        (["--variants", "{a: {}, b: {run: {batch_size: 1000}}}"], "variant 'b': 240 samples are fewer than one batch"),
        (["--steps", "[1, 1]"], "name one twice"),
        (["--samples", "90"], "kernel_distance needs at least 50"),
        (["--recipe.data.limit", "60"], "samples 30: "),
        (["--variants", "{" + "x" * 300 + ": {}}"], "cannot name a file"),
    ],
)
def test_what_is_wrong_with_the_last_variant_is_said_before_the_first_is_trained(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], line: str
) -> None:
    command = ["compare", "--allow-code", str(small), "--out", str(tmp_path / "out"), *extra]
    if line == "kernel_distance needs at least 50":
        command += ["--recipe.data.limit", "60"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.slow
def test_runs_end_with_the_process_that_began_them_and_go_on(small: Path, tmp_path: Path) -> None:
    """Killed, nobody holds the folders; terminated, the runs save what they have."""
    command = [sys.executable, "-m", "anystep", "compare", "--allow-code", str(small), "--out", str(tmp_path / "out")]
    command += ["--jobs", "2", "--seeds", "[0]", "--evaluations", "40000", "--recipe.run.log_every", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    logs = tmp_path / "out" / "runs"
    for how, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)):
        before = {path: path.stat().st_mtime_ns for path in logs.rglob("metrics.jsonl")}
        child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while child.poll() is None and {p: p.stat().st_mtime_ns for p in logs.rglob("metrics.jsonl")} == before:
            time.sleep(0.05)
        child.send_signal(how)
        told = child.communicate()[1]  # of a killed one Python's tracker of resources tells
        assert how == signal.SIGKILL or ("interrupted\n" in told and "Traceback" not in told)
        assert child.returncode == code
        for folder in logs.iterdir():
            for _ in range(600):  # the processes of a killed one need a moment
                with suppress(InputError), claimed(folder, "training run"):
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(f"{folder} is still held")
    assert list(logs.rglob("checkpoints/step-*"))
