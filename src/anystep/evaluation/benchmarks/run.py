"""`anystep benchmark`: generate what a benchmark asks for at every number of steps, and score what can be scored."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.progress import Progress

from anystep.bounds import BatchSize, Count, SamplingSteps, Seed, Threads, check
from anystep.console import progress_bar
from anystep.device import pick_device
from anystep.environment import environment
from anystep.errors import InputError
from anystep.evaluation.benchmarks import dpg, geneval, imagenet, mjhq, scenes
from anystep.evaluation.benchmarks.detections import Detection
from anystep.evaluation.benchmarks.generate import Drawing, Order, agree, digest, draw, made_before, steps_folder
from anystep.evaluation.benchmarks.judges import CLIPColours, TransformersDetector, VisualQuestions
from anystep.evaluation.benchmarks.scene_detector import SceneDetector
from anystep.evaluation.benchmarks.scores import write_scores
from anystep.evaluation.caption_scores import CLIPScore
from anystep.evaluation.collect import try_scorers
from anystep.evaluation.evaluate import check_prompts
from anystep.evaluation.extractors.registry import load_extractor, try_extractor
from anystep.files import claimed, write_json
from anystep.pipelines.describe import model_digest
from anystep.pipelines.load import Model, load
from anystep.pipelines.scheduler import Planning
from anystep.ranks import Ranks

KIND = "benchmark"
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
    plan: Planning | None = None
    size: tuple[int, int] | None = None
    batch: int = 8
    threads: int = 1
    device: str = "auto"


@dataclass(frozen=True)
class Judge:
    """What scores a folder of images, and what it makes of pictures that are right, where that is known.

    `check` raises InputError for images of a width and height that it cannot read.
    """

    score: Callable[[Path], Scores]
    truth: Scores | None = None
    check: Callable[[int, int], object] = lambda width, height: None


def run(
    task: Task,
    benchmark: str,
    orders: Callable[[Path, Model], Sequence[Order]],
    load_judge: Callable[[], Judge] | None,
    notes: Sequence[str],
    content: Any,
    finish: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Generate at every number of steps what is not there yet, then score each; the report, or {} without a score.

    Args:
        load_judge: called before anything is generated, by the first process only.
        content: what is asked for; images of something else in `task.out` are refused.
        finish: what to do with the images of one number of steps before they are scored.
    """
    check_task(task)
    ranks = Ranks()
    if task.images is not None:
        if load_judge is None:
            raise InputError(
                f"nothing to do: --images {task.images} are to be scored, but nothing was given to score with"
            )
        if not task.images.is_dir():
            raise InputError(f"images {str(task.images)!r}: no such folder")
        if not ranks.is_main:
            return {}
        judge = load_judge()
        with claimed(task.out, KIND, made_before(task.out)):
            only = {"steps": None, "nfe": None, "scores": judge.score(task.images)}
            return write_scores(task.out, benchmark, str(task.images), [only], notes, seed=task.seed, truth=judge.truth)
    judged = None if load_judge is None else ranks.on_main(load_judge)
    model = load(task.model, pick_device(task.device))
    scale = model.pipeline.resolve_guidance(task.guidance)
    asked_for = settings(task, benchmark, model, scale, content)
    by_size: dict[tuple[int, int], list[Any]] = {}
    for order in orders(task.out, model):
        by_size.setdefault(order.size or task.size or (model.pipeline.base_size,) * 2, []).append(order.prompt)
    with ranks.together():
        for (width, height), prompts in by_size.items():
            check_prompts(model, prompts, width, height, max(task.steps), task.guidance)
            if judged is not None:
                judged.check(width, height)
    with ranks.claimed(task.out, KIND, made_before(task.out)), progress_bar(ranks.is_main) as bar:
        ranks.on_main(lambda: agree(task.out, asked_for))
        for steps in sorted(set(task.steps)):
            folder = steps_folder(task.out, steps)
            asked = orders(folder, model)
            drawing = Drawing(task.guidance, task.plan, task.size, task.batch, ranks)
            line = bar.add_task(f"{steps} steps", total=len(asked))
            advance = partial(_advance, bar, line, ranks.count)
            draw(model, asked, steps, replace(drawing, on_images=advance))
            ranks.on_main(partial(finish, folder))
        if judged is None:
            return {}
        points: list[dict[str, Any]] = [
            {
                "steps": steps,
                "nfe": model.pipeline.plan(steps, task.plan).steps * model.pipeline.evaluations_per_step(scale),
                "scores": judged.score(steps_folder(task.out, steps)),
            }
            for steps in sorted(set(task.steps))
        ]
        facts = {"guidance": scale, "seed": task.seed, "truth": judged.truth}
        return write_scores(task.out, benchmark, model.name, points, notes, **facts)


def check_task(task: Task) -> None:
    """Raises InputError for what no benchmark takes; other numbers of threads change last bits."""
    if not task.steps:
        raise InputError("no steps: expected at least one number of them")
    for steps in task.steps:
        check("steps", steps, SamplingSteps)
    check("seed", task.seed, Seed)
    check("batch", task.batch, BatchSize)
    torch.set_num_threads(check("threads", task.threads, Threads))


def settings(task: Task, benchmark: str, model: Model, guidance: float, content: Any) -> dict[str, Any]:
    """What fixes an image beside the number of steps."""
    return {
        "benchmark": benchmark,
        "model": model_digest(model),
        "guidance": guidance,
        "plans": None if task.plan == "uniform" else model.pipeline.scheduler.config.plans,
        "seed": task.seed,
        "size": list(task.size) if task.size else None,
        "prompts": digest(content),
    }


def run_geneval(task: Task, metadata: Path, samples: int, detector: str | None, clip: str | None) -> dict[str, Any]:
    check("samples", samples, Count)
    entries = geneval.read_metadata(metadata)
    theirs = geneval.read_folder(task.images) if detector and task.images and task.images.is_dir() else None
    if theirs is not None:  # what was asked for is what lies beside the images
        entries = [entry for _, entry in theirs]

    def judge() -> Judge:
        assert detector is not None
        if geneval.coloured(entries) and clip is None:
            raise InputError("these prompts ask for colours: --clip needs a CLIP model, by id or folder")
        device = pick_device(task.device)
        found, colours = TransformersDetector(detector, device), CLIPColours(clip, device) if clip else None
        found.check_knows(geneval.classes(entries))
        try_judge(f"detector {detector}", lambda image: found(image, geneval.THRESHOLD))
        if colours is not None:
            try_judge(f"CLIP model {clip}", lambda image: colours(image, [Detection("dog", 1.0, (0, 0, 32, 32))]))

        def score(folder: Path) -> Scores:
            name = "results.jsonl" if theirs else f"results-{folder.name}.jsonl"
            return geneval.score(theirs or geneval.places(entries, folder), found, colours, task.out / name)

        return Judge(score)

    drawn = f"{samples} images of each of {len(entries)} prompts" if task.images is None else f"{len(entries)} prompts"
    notes = (
        f"{drawn}; overall is the mean over tasks.",
        f"Objects by {detector}, colours of cropped boxes by {clip}: scores of other judges are not comparable.",
    )
    return run(
        task,
        "GenEval",
        lambda folder, model: geneval.orders(entries, folder, samples, task.seed),
        None if detector is None else judge,
        notes,
        [entries, samples],
        lambda folder: geneval.write_metadata(entries, folder),
    )


def run_dpg(task: Task, prompts: Path, questions: Path | None, vqa: str | None) -> dict[str, Any]:
    asked = dpg.read_prompts(prompts)
    if vqa is not None and questions is None:
        raise InputError("scoring needs --questions, the published dpg_bench.csv")

    def judge() -> Judge:
        assert vqa is not None
        assert questions is not None
        known = dpg.read_questions(questions)
        dpg.check_questions(asked, known)
        answer = VisualQuestions(vqa, pick_device(task.device))
        try_judge(f"question answering model {vqa}", lambda image: answer(image, ["is there a dog?"]))
        return Judge(lambda folder: dpg.score(folder, asked, known, answer))

    notes = (
        f"{len(asked)} prompts, four images each; overall is the mean over prompts of the share of questions answered "
        "with yes, a question counting only where those it depends on do. Categories take each answer as it was given.",
        f"Questions answered by {vqa}: scores of other models are not comparable.",
    )
    return run(
        task,
        "DPG-Bench",
        lambda folder, model: dpg.orders(asked, folder, task.seed),
        None if vqa is None else judge,
        notes,
        asked,
        lambda folder: dpg.assemble(asked, folder),
    )


def run_mjhq(
    task: Task,
    metadata: Path,
    real: Path | None,
    extractor: str,
    clip: str | None,
    count: int | None,
    allow_code: bool = False,
) -> dict[str, Any]:
    if count is not None:
        check("count", count, Count)
    entries = dict(list(mjhq.read_metadata(metadata).items())[:count])

    def judge() -> Judge:
        assert real is not None
        mjhq.check_real(real, entries)
        device = pick_device(task.device)
        features = load_extractor(extractor, device if device.type == "cuda" else "cpu", allow_code)
        scorers = [] if clip is None else [CLIPScore(clip, device)]
        work, alone = task.out / "work", Ranks.single()
        return Judge(
            lambda folder: mjhq.score(folder, real, entries, features, work, scorers, alone),
            check=lambda width, height: try_scorers(scorers, try_extractor(features, width, height), width, height),
        )

    notes = (
        f"{len(entries)} images. Real images are resized to the generated ones' size, with a minimal centre crop; the "
        "published figures are taken at 1024x1024 with another resize, and only `inception` at that size is near them.",
        "Fréchet distances in single categories rest on few images and are biased upwards. Only `inception` is FID.",
    )
    return run(
        task,
        "MJHQ-30K",
        lambda folder, model: mjhq.orders(entries, folder, task.seed),
        None if real is None else judge,
        notes,
        entries,
    )


def run_scenes(task: Task, each: int, detector: str) -> dict[str, Any]:
    check("each", each, Count)
    drawn = scenes.draw_scenes(each, task.seed)

    def judge() -> Judge:
        found = SceneDetector.load(detector)

        def score(folder: Path) -> Scores:
            return scenes.score(drawn, scenes.read_images(drawn, scenes.orders(drawn, folder)), found)

        return Judge(score, scenes.score(drawn, [scene.picture() for scene in drawn], found))

    def orders(folder: Path, model: Model) -> list[Order]:
        return scenes.orders(drawn, folder, task.seed, model.pipeline.base_size)

    notes = (
        f"{each} scenes of each task on canvases of {len(scenes.CANVASES)} shapes, judged at {scenes.BASE} pixels on "
        "the shorter side.",
        "`true pictures` is what the detector makes of the scenes as they are: what it misses there is its own error.",
    )
    return run(task, "Scenes", orders, judge, notes, [scene.metadata for scene in drawn])


def run_imagenet(task: Task, samples: int, classes: str) -> list[Path]:
    """Also writes `report.json`: what each `.npz` took."""
    if classes not in ("balanced", "random"):
        raise InputError(f"classes {classes!r}: expected balanced or random")
    check("samples", samples, Count)
    check_task(task)
    ranks, model = Ranks(), load(task.model, pick_device(task.device))
    names = model.pipeline.config.class_names
    if not names:
        raise InputError(f"model {task.model!r} is not class-conditional")
    labels = imagenet.draw_labels(samples, len(names), classes, task.seed)  # type: ignore[arg-type]
    scale = model.pipeline.resolve_guidance(task.guidance)
    asked_for = settings(task, "ImageNet", model, scale, labels)
    with ranks.claimed(task.out, KIND, made_before(task.out)), progress_bar(ranks.is_main) as bar:
        ranks.on_main(lambda: agree(task.out, asked_for))
        points, earlier = [], imagenet.read_points(task.out / "report.json")
        for steps in sorted(set(task.steps)):
            line = bar.add_task(f"{steps} steps", total=samples)
            advance = partial(_advance, bar, line, ranks.count)
            begin, there = time.perf_counter(), any(steps_folder(task.out, steps).glob("*.npz"))
            path = imagenet.sample_imagenet(
                model, steps_folder(task.out, steps), labels, steps, task.seed, task.guidance, task.plan, ranks, advance
            )
            made, seconds = model.pipeline.plan(steps, task.plan).steps, time.perf_counter() - begin
            nfe = made * model.pipeline.evaluations_per_step(scale)
            point = {"steps": steps, "nfe": nfe, "seconds": seconds, "file": str(path.relative_to(task.out))}
            points.append(earlier.get(steps, point) if there else point)  # what is there took its time back then
        if ranks.is_main:
            report = {
                "benchmark": "ImageNet", "model": model.name, "samples": samples, "classes": classes, "guidance": scale,
                "seed": task.seed, "points": points, "versions": environment(),
            }  # fmt: skip
            write_json(task.out / "report.json", report)
    return [task.out / str(point["file"]) for point in points]


def try_judge(name: str, judge: Callable[[Image.Image], object]) -> None:
    """Raise `InputError`, before anything is drawn, for a model of transformers that cannot judge images."""
    try:
        judge(Image.new("RGB", (64, 64), "grey"))
    except Exception as error:  # transformers raises many kinds; all mean it is not usable
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} cannot judge images: {type(error).__name__}: {reason}") from None


def _advance(bar: Progress, line: Any, processes: int, images: int) -> None:
    bar.advance(line, images * processes)
