"""`anystep benchmark`: generate what a benchmark asks for at every number of steps, and score what can be scored."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from anystep.device import pick_device, pick_precision
from anystep.environment import environment
from anystep.errors import InputError, first_line
from anystep.evaluation.benchmarks import dpg, geneval, imagenet, mjhq, scenes
from anystep.evaluation.benchmarks.detections import Detection
from anystep.evaluation.benchmarks.generate import (
    GenerationRequest,
    digest,
    generate_missing,
    keep_settings,
    made_before,
    steps_folder,
)
from anystep.evaluation.benchmarks.judges import CLIPColours, TransformersDetector, VisualQuestions
from anystep.evaluation.benchmarks.scene_detector import SceneDetector
from anystep.evaluation.benchmarks.scores import write_scores
from anystep.evaluation.collect import try_scorers
from anystep.evaluation.evaluate import check_prompts
from anystep.evaluation.extractors.registry import try_extractor
from anystep.evaluation.metrics.caption_scores import CLIPScore
from anystep.evaluation.metrics.frechet_distance import FrechetDistance
from anystep.evaluation.settings import (
    Evaluation,
    GenerationSettings,
    MeasurementSettings,
    image_counter,
    output_folder,
    step_counts,
)
from anystep.files import claimed, write_json
from anystep.pipelines.dry_run import dry_run
from anystep.pipelines.image_model import ImageModel
from anystep.pipelines.load import load
from anystep.pipelines.load_image_model import load_image_model
from anystep.ranks import Ranks

KIND = "benchmark"
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest(GenerationSettings):
    """The options that every benchmark has; with `images`, made elsewhere in its layout, nothing is generated."""

    out: Path
    model: str = "builtin"
    steps: Sequence[int] = (1, 2, 4, 8)
    images: Path | None = None
    batch: int = 8


@dataclass(frozen=True)
class BenchmarkScorer:
    """What scores a folder of images, and what it makes of pictures that are right, where that is known.

    `check` raises InputError for images of a width and height that it cannot read.
    """

    score: Callable[[Path], Scores]
    truth: Scores | None = None
    check: Callable[[int, int], object] = lambda width, height: None


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark asks for, and how its images are scored.

    Attributes:
        requests: the images of a folder.
        load_scorer: called before anything is generated, by the first process only; gives None to score nothing.
        content: what is asked for; images of something else in the folder of the benchmark are refused.
        finish: what to do with the images of one number of steps before they are scored.
    """

    name: str
    requests: Callable[[Path, ImageModel], Sequence[GenerationRequest]]
    load_scorer: Callable[[], BenchmarkScorer | None]
    notes: Sequence[str]
    content: Any
    finish: Callable[[Path], None] = lambda folder: None


def run(request: BenchmarkRequest, benchmark: Benchmark) -> dict[str, Any]:
    """Generate at every number of steps what is not there yet, then score each; the report, or {} without a score."""
    steps, device, ranks = step_counts(request.steps), request.begin(), Ranks()
    if request.images is not None:
        return _score_images(request.images, request, benchmark, ranks)
    scorer = ranks.on_main(benchmark.load_scorer)
    model = load_image_model(request.model, device, request.dry_run, request.precision)
    by_size: dict[tuple[int, int], list[str | int]] = {}
    for each in benchmark.requests(request.out, model):
        by_size.setdefault(each.size or request.size or (model.base_size,) * 2, []).append(each.prompt)
    with ranks.together():
        for (width, height), prompts in by_size.items():
            check_prompts(model, prompts, width, height, max(steps), request.guidance)
            if scorer is not None:
                scorer.check(width, height)
    if request.dry_run:
        return dry_run([model], steps, next(iter(by_size)), request.guidance, request.plan)
    with _generating(request, benchmark.name, model, benchmark.content, ranks) as advance:
        for count in steps:
            folder = steps_folder(request.out, count)
            wanted = benchmark.requests(folder, model)
            generate_missing(model, wanted, count, request, ranks, partial(advance, count, len(wanted)))
            ranks.on_main(partial(benchmark.finish, folder))
        if scorer is None:
            return {}
        points: list[dict[str, Any]] = [
            {
                "steps": count,
                "nfe": model.nfe(count, request.guidance, request.plan),
                "scores": scorer.score(steps_folder(request.out, count)),
            }
            for count in steps
        ]
        told = {**model.facts(), "guidance": model.resolve_guidance(request.guidance), "seed": request.seed}
        return write_scores(
            request.out,
            benchmark.name,
            model.name,
            points,
            [*benchmark.notes, *[model.note] * bool(model.note)],
            **told,
            truth=scorer.truth,
        )


def _score_images(folder: Path, request: BenchmarkRequest, benchmark: Benchmark, ranks: Ranks) -> dict[str, Any]:
    """The report of images that were made elsewhere."""
    if not folder.is_dir():
        raise InputError(f"images {str(folder)!r}: no such folder")
    if not ranks.is_main:
        return {}
    if (scorer := benchmark.load_scorer()) is None:
        raise InputError(f"nothing to do: --images {folder} are to be scored, but nothing was given to score with")
    with claimed(request.out, KIND, made_before(request.out)):
        points = [{"steps": None, "nfe": None, "scores": scorer.score(folder)}]
        facts = {"seed": request.seed, "truth": scorer.truth}
        return write_scores(request.out, benchmark.name, str(folder), points, benchmark.notes, **facts)


@contextmanager
def _generating(
    request: BenchmarkRequest, benchmark: str, model: ImageModel, content: Any, ranks: Ranks
) -> Iterator[Callable[[int, int, int], None]]:
    """The folder of a benchmark, held, for images of these settings alone.

    Yields what is told of images that are done: the number of steps, how many images it has, and how many are done.
    """
    settings = {  # what fixes an image beside the number of steps
        "benchmark": benchmark,
        "model": model.digest,
        "dtype": str(model.dtype).removeprefix("torch."),
        "guidance": model.resolve_guidance(request.guidance),
        "plans": model.plan_settings(request.plan),
        "seed": request.seed,
        "size": list(request.size) if request.size else None,
        "prompts": digest(content),
    }
    with output_folder(ranks, request.out, KIND, made_before(request.out)) as bar:
        ranks.on_main(lambda: keep_settings(request.out, settings))
        count = image_counter(bar, ranks)
        yield lambda steps, total, images: count(f"{steps} steps", total, images)


def run_geneval(
    request: BenchmarkRequest, metadata: Path, samples: int, detector: str | None, clip: str | None
) -> dict[str, Any]:
    entries = geneval.read_metadata(metadata)
    theirs = geneval.read_folder(request.images) if detector and request.images and request.images.is_dir() else None
    if theirs is not None:  # what was asked for is what lies beside the images
        entries = [entry for _, entry in theirs]

    def load_scorer() -> BenchmarkScorer | None:
        if detector is None:
            return None
        if geneval.coloured(entries) and clip is None:
            raise InputError("these prompts ask for colours: --clip needs a CLIP model, by id or folder")
        device = pick_device(request.device)
        found, colours = TransformersDetector(detector, device), CLIPColours(clip, device) if clip else None
        found.check_knows(geneval.classes(entries))
        check_usable(f"detector {detector}", lambda image: found(image, geneval.THRESHOLD))
        if colours is not None:
            check_usable(f"CLIP model {clip}", lambda image: colours(image, [Detection("dog", 1.0, (0, 0, 32, 32))]))

        def score(folder: Path) -> Scores:
            name = "results.jsonl" if theirs else f"results-{folder.name}.jsonl"
            return geneval.score(theirs or geneval.places(entries, folder), found, colours, request.out / name)

        return BenchmarkScorer(score)

    drawn = (
        f"{samples} images of each of {len(entries)} prompts" if request.images is None else f"{len(entries)} prompts"
    )
    notes = (
        f"{drawn}; overall is the mean over tasks.",
        f"Objects by {detector}, colours of cropped boxes by {clip}: scores of other judges are not comparable.",
    )
    return run(
        request,
        Benchmark(
            "GenEval",
            lambda folder, model: geneval.generation_requests(entries, folder, samples, request.seed),
            load_scorer,
            notes,
            [entries, samples],
            lambda folder: geneval.write_metadata(entries, folder),
        ),
    )


def run_dpg(request: BenchmarkRequest, prompts: Path, questions: Path | None, vqa: str | None) -> dict[str, Any]:
    asked = dpg.read_prompts(prompts)
    if vqa is not None and questions is None:
        raise InputError("scoring needs --questions, the published dpg_bench.csv")

    def load_scorer() -> BenchmarkScorer | None:
        if vqa is None or questions is None:
            return None
        known = dpg.read_questions(questions)
        dpg.check_questions(asked, known)
        answer = VisualQuestions(vqa, pick_device(request.device))
        check_usable(f"question answering model {vqa}", lambda image: answer(image, ["is there a dog?"]))
        return BenchmarkScorer(lambda folder: dpg.score(folder, asked, known, answer))

    notes = (
        f"{len(asked)} prompts, four images each; overall is the mean over prompts of the share of questions answered "
        "with yes, a question counting only where those it depends on do. Categories take each answer as it was given.",
        f"Questions answered by {vqa}: scores of other models are not comparable.",
    )
    return run(
        request,
        Benchmark(
            "DPG-Bench",
            lambda folder, model: dpg.generation_requests(asked, folder, request.seed),
            load_scorer,
            notes,
            asked,
            lambda folder: dpg.assemble(asked, folder),
        ),
    )


def run_mjhq(
    request: BenchmarkRequest,
    metadata: Path,
    real: Path | None,
    extractor: str,
    clip: str | None,
    count: int | None,
    allow_code: bool = False,
) -> dict[str, Any]:
    entries = dict(list(mjhq.read_metadata(metadata).items())[:count])

    def load_scorer() -> BenchmarkScorer | None:
        if real is None:
            return None
        mjhq.check_real(real, entries)
        device = pick_device(request.device)
        settings = MeasurementSettings(
            out=request.out / "work", samples=len(entries), extractor=extractor, allow_code=allow_code
        )
        measuring = Evaluation.open(settings, device, [FrechetDistance.name])
        scorers = [] if clip is None else [CLIPScore(clip, device)]
        measuring, features = replace(measuring, scorers=scorers, ranks=Ranks.single()), measuring.extractor
        return BenchmarkScorer(
            lambda folder: mjhq.score(folder, real, entries, measuring),
            check=lambda width, height: try_scorers(scorers, try_extractor(features, width, height), width, height),
        )

    notes = (
        f"{len(entries)} images. Real images are resized to the generated ones' size, with a minimal centre crop; the "
        "published figures are taken at 1024x1024 with another resize, and only `inception` at that size is near them.",
        "Fréchet distances in single categories rest on few images and are biased upwards. Only `inception` is FID.",
    )
    return run(
        request,
        Benchmark(
            "MJHQ-30K",
            lambda folder, model: mjhq.generation_requests(entries, folder, request.seed),
            load_scorer,
            notes,
            entries,
        ),
    )


def run_scenes(request: BenchmarkRequest, each: int, detector: str) -> dict[str, Any]:
    drawn = scenes.draw_scenes(each, request.seed)

    def load_scorer() -> BenchmarkScorer:
        found = SceneDetector.load(detector)

        def score(folder: Path) -> Scores:
            return scenes.score(drawn, scenes.read_images(drawn, scenes.generation_requests(drawn, folder)), found)

        return BenchmarkScorer(score, scenes.score(drawn, [scene.picture() for scene in drawn], found))

    def requests(folder: Path, model: ImageModel) -> list[GenerationRequest]:
        return scenes.generation_requests(drawn, folder, request.seed, model.base_size)

    notes = (
        f"{each} scenes of each task on canvases of {len(scenes.CANVASES)} shapes, judged at {scenes.BASE} pixels on "
        "the shorter side.",
        "`true pictures` is what the detector makes of the scenes as they are: what it misses there is its own error.",
    )
    content = [scene.metadata for scene in drawn]
    if request.images is not None:
        scenes.check_metadata(content, request.images)
    finish = partial(scenes.write_metadata, content)
    return run(request, Benchmark("Scenes", requests, load_scorer, notes, content, finish))


def run_imagenet(request: BenchmarkRequest, samples: int, classes: Literal["balanced", "random"]) -> list[Path]:
    """Also writes `report.json`: what each `.npz` took."""
    steps, ranks, device = step_counts(request.steps), Ranks(), request.begin()
    model = load(request.model, device, pick_precision(request.precision, device))
    names = model.class_names
    if names is None:
        raise InputError(f"model {request.model!r} is not class-conditional")
    labels = imagenet.draw_labels(samples, len(names), classes, request.seed)
    points, earlier = [], imagenet.read_points(request.out / "report.json")
    with _generating(request, "ImageNet", model, labels, ranks) as advance:
        for count in steps:
            folder = steps_folder(request.out, count)
            path = imagenet.sample_imagenet(
                model, folder, labels, count, request, ranks, partial(advance, count, samples)
            )
            seconds = imagenet.read_seconds(folder / imagenet.SECONDS)
            if seconds is None:  # not kept by an earlier version, or damaged
                seconds = earlier.get(count, {}).get("seconds")
                if ranks.is_main:
                    imagenet.write_seconds(folder / imagenet.SECONDS, seconds)
            point = {
                "steps": count,
                "nfe": model.nfe(count, request.guidance, request.plan),
                "seconds": seconds,
                "file": str(path.relative_to(request.out)),
            }
            points.append(point)
        if ranks.is_main:
            report = {
                "benchmark": "ImageNet", "model": model.name, "samples": samples, "classes": classes,
                "guidance": model.pipeline.resolve_guidance(request.guidance), "seed": request.seed, "points": points,
                "versions": environment(),
            }  # fmt: skip
            write_json(request.out / "report.json", report)
    return [request.out / str(point["file"]) for point in points]


def check_usable(name: str, judge: Callable[[Image.Image], object]) -> None:
    """Raise `InputError`, before anything is drawn, for a model of transformers that cannot judge images."""
    try:
        judge(Image.new("RGB", (64, 64), "grey"))
    except Exception as error:  # transformers raises many kinds; all mean it is not usable
        raise InputError(f"{name} cannot judge images: {type(error).__name__}: {first_line(error)}") from None
