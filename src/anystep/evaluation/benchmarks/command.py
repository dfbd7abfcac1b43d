"""`anystep benchmark`: generate what a benchmark asks for at every number of steps, and score what can be scored."""

import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from anystep.device import pick_device
from anystep.errors import InputError
from anystep.evaluation.alignment import CLIPScore
from anystep.evaluation.benchmarks import dpg, geneval, imagenet, mjhq, scenes
from anystep.evaluation.benchmarks.draw import Drawing, Order, draw, steps_folder
from anystep.evaluation.benchmarks.judges import CLIPColours, TransformersDetector, VisualQuestions
from anystep.evaluation.benchmarks.scene_detector import SceneDetector
from anystep.evaluation.benchmarks.scores import write_scores
from anystep.evaluation.features import load_extractor
from anystep.pipelines.load import Model, load
from anystep.ranks import Ranks

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Task:
    """The options that every benchmark has.

    Attributes:
        images: a folder made elsewhere in the benchmark's layout; nothing is generated then.
    """

    out: Path
    model: str = "builtin"
    steps: Sequence[int] = (1, 2, 4, 8)
    images: Path | None = None
    seed: int = 0
    guidance: float | None = None
    size: tuple[int, int] | None = None
    batch: int = 8
    device: str = "auto"


def run(
    task: Task,
    benchmark: str,
    orders: Callable[[Path, Model | None], Sequence[Order]],
    score: Callable[[Path], Scores] | None,
    notes: Sequence[str],
    finish: Callable[[Path], None] = lambda folder: None,
    **facts: Any,
) -> dict[str, Any]:
    """Generate at every number of steps what is not there yet, then score each; the report, or {} without a score."""
    ranks = Ranks()
    if task.images is not None:
        if score is None:
            raise InputError(
                f"nothing to do: --images {task.images} are to be scored, but nothing was given to score with"
            )
        if not task.images.is_dir():
            raise InputError(f"images {str(task.images)!r}: no such folder")
        only = {"steps": None, "nfe": None, "scores": score(task.images)}
        return write_scores(_made(task.out), benchmark, str(task.images), [only], notes, **facts)
    for steps in task.steps:
        if steps < 1:
            raise InputError(f"steps {steps}: expected a whole number of at least 1")
    model = load(task.model, pick_device(task.device))
    _made(task.out)
    with _progress(ranks) as bar:
        for steps in sorted(set(task.steps)):
            folder = steps_folder(task.out, steps)
            asked = orders(folder, model)
            drawing = Drawing(task.guidance, task.size, task.batch, ranks)
            line = bar.add_task(f"{steps} steps", total=len(asked))
            advance = partial(_advance, bar, line, ranks.count)
            draw(model, asked, steps, replace(drawing, on_images=advance))
            if ranks.first:
                finish(folder)
            ranks.wait()
    if score is None:
        return {}
    scale = float(model.pipeline.config.guidance_scale if task.guidance is None else task.guidance)
    points: list[dict[str, Any]] = [
        {"steps": steps, "nfe": steps * (1 + (scale != 1.0)), "scores": score(steps_folder(task.out, steps))}
        for steps in sorted(set(task.steps))
    ]
    if not ranks.first:
        return {}
    return write_scores(task.out, benchmark, model.name, points, notes, guidance=scale, **facts)


def run_geneval(task: Task, metadata: Path, samples: int, detector: str | None, clip: str | None) -> dict[str, Any]:
    entries = geneval.read_metadata(metadata)
    coloured = any("color" in wanted for entry in entries for wanted in entry["include"])
    judge = None
    if detector is not None:
        if coloured and clip is None:
            raise InputError("these prompts ask for colours: --clip needs a CLIP model, by id or folder")
        device = pick_device(task.device)
        found, colours = TransformersDetector(detector, device), CLIPColours(clip, device) if clip else None

        def judge(folder: Path) -> Scores:
            return geneval.score(folder, found, colours)

    notes = (
        f"{samples} images of each of {len(entries)} prompts; overall is the mean over tasks.",
        f"Objects by {detector}, colours of cropped boxes by {clip}: scores of other judges are not comparable.",
    )
    return run(task, "GenEval", lambda folder, model: geneval.orders(entries, folder, samples, task.seed), judge, notes)


def run_dpg(task: Task, prompts: Path, questions: Path | None, vqa: str | None) -> dict[str, Any]:
    asked = dpg.read_prompts(prompts)
    judge = None
    if vqa is not None:
        if questions is None:
            raise InputError("scoring needs --questions, the published dpg_bench.csv")
        known, answer = dpg.read_questions(questions), VisualQuestions(vqa, pick_device(task.device))

        def judge(folder: Path) -> Scores:
            return dpg.score(folder, asked, known, answer)

    notes = (
        f"{len(asked)} prompts, four images each; overall is the mean over prompts of the share of questions answered "
        "with yes, a question counting only where those it depends on are.",
        f"Questions answered by {vqa}: scores of other models are not comparable.",
    )
    return run(
        task, "DPG-Bench", lambda folder, model: dpg.orders(asked, folder, task.seed), judge, notes,
        lambda folder: dpg.assemble(asked, folder),
    )  # fmt: skip


def run_mjhq(
    task: Task, metadata: Path, real: Path | None, extractor: str, clip: str | None, count: int | None
) -> dict[str, Any]:
    entries = dict(list(mjhq.read_metadata(metadata).items())[:count])
    judge = None
    if real is not None:
        if not real.is_dir():
            raise InputError(f"real images {str(real)!r}: no such folder")
        device = pick_device(task.device)
        features = load_extractor(extractor, device if device.type == "cuda" else "cpu")
        scorers = [] if clip is None else [CLIPScore(clip, device)]

        def judge(folder: Path) -> Scores:
            return mjhq.score(folder, real, entries, features, scorers)

    notes = (
        f"{len(entries)} images. Real images are resized to the generated ones' size, with a minimal centre crop.",
        "Fréchet distances in single categories rest on few images and are biased upwards. Only `inception` is FID.",
    )
    return run(task, "MJHQ-30K", lambda folder, model: mjhq.orders(entries, folder, task.seed), judge, notes)


def run_scenes(task: Task, each: int, detector: str) -> dict[str, Any]:
    judge = SceneDetector.load(detector)
    base = 64 if task.images is not None else load(task.model, "cpu").pipeline.base_size
    drawn = scenes.draw_scenes(each, base, task.seed)
    truth = scenes.score(drawn, [scene.picture() for scene in drawn], judge)

    def score(folder: Path) -> Scores:
        return scenes.score(drawn, scenes.read_images(scenes.orders(drawn, folder)), judge)

    notes = (
        f"{each} scenes of each task on canvases of {len(scenes.CANVASES)} shapes, {base} pixels on the shorter side.",
        "The detector's own score on the true pictures of the same scenes, which bounds what it can find: "
        + ", ".join(f"{name} {value['value']:.3f}" for name, value in truth.items())
        + ".",
    )
    return run(
        task,
        "Scenes",
        lambda folder, model: scenes.orders(drawn, folder, task.seed),
        score,
        notes,
        detector=truth,
    )


def run_imagenet(task: Task, samples: int, classes: str) -> list[Path]:
    if classes not in ("balanced", "random"):
        raise InputError(f"classes {classes!r}: expected balanced or random")
    if samples < 1:
        raise InputError(f"samples {samples}: expected a whole number of at least 1")
    ranks, model = Ranks(), load(task.model, pick_device(task.device))
    names = model.pipeline.config.class_names
    if not names:
        raise InputError(f"model {task.model!r} is not class-conditional")
    labels = imagenet.draw_labels(samples, len(names), classes, task.seed)  # type: ignore[arg-type]
    _made(task.out)
    written = []
    with _progress(ranks) as bar:
        for steps in sorted(set(task.steps)):
            line = bar.add_task(f"{steps} steps", total=samples)
            advance = partial(_advance, bar, line, ranks.count)
            written.append(
                imagenet.sample_imagenet(
                    model, steps_folder(task.out, steps), labels, steps, task.seed, task.guidance, ranks,
                    advance,
                )
            )  # fmt: skip
    return written


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to folder {str(folder)!r}: {error.strerror}") from None
    return folder


def _advance(bar: Progress, line: Any, processes: int, images: int) -> None:
    bar.advance(line, images * processes)


@contextmanager
def _progress(ranks: Ranks) -> Any:
    quiet = not (ranks.first and sys.stderr.isatty())
    with Progress(transient=True, disable=quiet, console=Console(stderr=True)) as bar:
        yield bar
