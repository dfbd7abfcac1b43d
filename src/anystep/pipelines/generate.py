"""`anystep generate`: from what was asked for, or an image that says how it was made, to images that say it too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from anystep import __version__
from anystep.bounds import Seed, check, shown
from anystep.console import progress_bar
from anystep.contact_sheet import check_writable, save_image
from anystep.data.example import BrokenExample
from anystep.data.images import read_image
from anystep.errors import InputError
from anystep.fingerprint import file_digest
from anystep.pipelines.baselines import Baseline
from anystep.pipelines.image_model import Generated, ImageModel
from anystep.pipelines.inputs import STRENGTH, check_prompts
from anystep.pipelines.load import BUILTIN, Model, find
from anystep.pipelines.load_image_model import load_image_model, split_options
from anystep.pipelines.lora import find_lora
from anystep.pipelines.plan import check_room
from anystep.pipelines.scheduler import Planning, parse_plans
from anystep.pipelines.settings import Adapter, Settings, read_settings
from anystep.pipelines.step_sheet import AnyStepSheet, any_step_sheet, blank_sheet
from anystep.pipelines.vocabulary import unknown
from anystep.sampling import StepPlan

MOST_IMAGES = 1000  # of one call, which holds them all


@dataclass(frozen=True)
class Request:
    """The options of the command; `anystep generate --help` says what they mean. None is as in the image `like`.

    The picture is not written to `out`, but it is drawn only if it can be.
    """

    prompts: Sequence[str] = ()
    like: Path | None = None
    model: str | None = None
    lora: Sequence[tuple[str, float]] | None = None
    device: str = "auto"
    precision: str | None = None
    steps: Sequence[int] | None = None
    seed: int | None = None
    count: int | None = None
    seeds: Sequence[int] | None = None
    size: tuple[int, int] | None = None
    guidance: float | None = None
    guidance_interval: Sequence[float] | None = None
    stochasticity: float | None = None
    shift: float | None = None
    plan: Planning | None = None
    rope_scaling: str | None = None
    key_grid: int | None = None
    finish_after: int | None = None
    image: Path | None = None
    strength: float | None = None
    out: Path | None = None
    separate: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Drawn:
    """The images of a request.

    Attributes:
        sheet: all of them, with what they cost.
        texts: what the picture of the sheet says of how it was made.
        separate: the files of single images that were written.
        refused: why some of the prompts were not drawn.
    """

    sheet: AnyStepSheet
    texts: dict[str, str]
    separate: list[Path]
    refused: list[str]


def generate(request: Request, on_warning: Callable[[str], None] = lambda message: None) -> Drawn:
    """Draw every prompt with every seed at every number of steps, and write the images asked for one by one.

    Raises:
        InputError: nothing of it can be drawn, options do not go together, or a file of others would be overwritten.
    """
    like = None if request.like is None else read_settings(request.like)

    def setting(name: str, default: Any = None) -> Any:
        """As given, else as in the image that is to be like, else the default."""
        return next((each for each in (getattr(request, name), getattr(like, name, None)) if each is not None), default)

    prompts = list(request.prompts or (like.prompts if like else ()))
    if not prompts:
        raise InputError('required: PROMPT, what to draw, for example "a red apple"; or --prompts-file, or --like')
    seeds, steps = _seeds(request, like), setting("steps", [1, 2, 4, 8])
    _check_images(len(prompts) * len(seeds) * len(steps))
    start = _start(request, like, on_warning)
    precision = request.precision or ("auto" if like is None else like.precision or "float32")
    model = load_image_model(_model_name(request, like), request.device, precision=precision)
    digest = model.digest  # of the model without adapters
    adapters = _put_adapters(model, request, like, on_warning)
    if like is not None and like.model_digest != digest:
        _check_other_model(request, like, model, on_warning)
    width, height = setting("size") or (model.base_size,) * 2
    for count in steps:
        model.check(["a prompt"], width, height, count)
    prompts, refused = _known_prompts(model, prompts, request.force, on_warning)
    how = {name: setting(name) for name in ("stochasticity", "rope_scaling", "key_grid", "finish_after")}
    how["guidance_interval"] = tuple(setting("guidance_interval", ())) or None
    how |= {"size": (width, height), "guidance": model.resolve_guidance(setting("guidance"))}
    check_room(model, width, height, how["guidance"], how["key_grid"])
    if request.out is not None:
        check_writable(request.out, blank_sheet(prompts, seeds, steps, (width, height)).size)
    plans = _plans(request, like, steps, model, digest)
    how_drawn = {**how, "lora": adapters or None}
    record = Record(model, digest, start, how_drawn, model.plan_settings(plans.get(steps[0])))
    files = _separate_files(request.separate, len(prompts), seeds, steps)
    with progress_bar() as bar:
        task = bar.add_task("drawing", total=len(prompts) * len(seeds) * len(steps))

        def keep(cell: Generated, row: int, place: int) -> None:
            bar.advance(task)
            if (path := files.get((row, seeds[place], cell.asked))) is not None:
                save_image(cell.images[0], path, record.texts([prompts[row]], [seeds[place]], [cell]))

        options = {**how, **start.options, "shift": request.shift}
        sheet = any_step_sheet(model, prompts, steps, seeds, keep, plans, **options)
    texts = record.texts(prompts, seeds, [cells[0] for cells in sheet.columns])
    return Drawn(sheet, texts, list(files.values()), refused)


@dataclass(frozen=True)
class Start:
    """An image to start from and what tells it from others; noise alone where there is none."""

    image: Image.Image | None = None
    name: str | None = None
    digest: str | None = None
    strength: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Of `Model.generate`."""
        return {} if self.image is None else {"image": self.image, "strength": self.strength}


@dataclass(frozen=True)
class Record:
    """What images say of how they were made."""

    model: ImageModel
    digest: str
    start: Start
    how: dict[str, Any]
    planned: Any = None

    def texts(self, prompts: Sequence[str], seeds: Sequence[int], cells: Sequence[Generated]) -> dict[str, str]:
        """Of these prompts and seeds, at the numbers of steps of the cells."""
        model, start = self.model, self.start
        same = {"plan": "uniform", "stochasticity": self.how["stochasticity"]}
        uniform = {cell.asked: model.followed_plan(cell.asked, **same) for cell in cells}
        if isinstance(model, Baseline):
            told = {"pipeline": type(model.pipeline).__name__, "pipeline_plan": self.planned}
        else:
            told = {}
        special = {cell.asked: cell.plan.plain() for cell in cells if cell.plan and cell.plan != uniform[cell.asked]}
        precision = "bfloat16" if str(model.dtype) == "torch.bfloat16" else None
        return Settings(
            version=__version__, model=model.name, model_digest=self.digest, precision=precision,
            prompts=tuple(prompts), seeds=tuple(seeds), steps=tuple(cell.asked for cell in cells),
            nfe=tuple(cell.nfe for cell in cells),
            plans=special or None, strength=start.strength, image=start.name, image_digest=start.digest, **told,
            **self.how,
        ).texts()  # fmt: skip


def _seeds(request: Request, like: Settings | None) -> list[int]:
    for name in ("seed", "count"):
        if request.seeds is not None and getattr(request, name) is not None:
            raise InputError(f"--{name} {getattr(request, name)}: --seeds names them all, give one of the two")
    recorded = list(like.seeds) if like else [0]
    if request.seed is None and request.count is None:
        return list(request.seeds or recorded)
    first = recorded[0] if request.seed is None else request.seed
    return [check("--seed", first + number, Seed) for number in range(_check_images(request.count or 1))]


def _check_images(count: int) -> int:
    if count > MOST_IMAGES:
        raise InputError(f"{count:,} images: expected at most {MOST_IMAGES:,} of one call, prompts x seeds x steps")
    return count


def _start(request: Request, like: Settings | None, on_warning: Callable[[str], None]) -> Start:
    """What is started from; a file is opened only where the user names it."""
    if request.image is None:
        if like is not None and like.image_digest is not None:
            raise InputError(
                f"{shown(str(request.like))} was begun with the image {shown(like.image or '')}: give it with --image"
            )
        if request.strength is not None:
            raise InputError(f"--strength {request.strength}: goes with --image only")
        return Start()
    try:
        image = read_image(request.image, None)
    except BrokenExample as error:
        raise InputError(f"--image {error}") from None
    digest = file_digest(request.image)
    if like is not None and like.image_digest not in (None, digest):
        other = f"the image that {shown(str(request.like))} was begun with"
        on_warning(f"--image {shown(str(request.image))} is not {other}")
    given = (request.strength, like.strength if like else None, STRENGTH)
    return Start(image, request.image.name, digest, next(each for each in given if each is not None))


def _model_name(request: Request, like: Settings | None) -> str:
    """The model that was named, else that of the image to be like: a hub id in a file of others fetches nothing."""
    if request.model is not None or like is None:
        return request.model or BUILTIN
    try:
        if Path(find(split_options(like.model)[0])).is_dir():
            return like.model
    except InputError:
        pass
    raise InputError(
        f"{shown(str(request.like))} was drawn by model {shown(like.model)}, which is not here: name it with --model"
    )


def _check_other_model(request: Request, like: Settings, model: ImageModel, on_warning: Callable[[str], None]) -> None:
    """Another model than that of the image to be like is refused, unless it or its precision was named, or forced."""
    told = f"{shown(str(request.like))} was drawn by another model than {shown(model.name)} is now"
    if request.precision not in (None, like.precision or "float32"):
        told += f" in {request.precision}"
    elif request.model is None and not request.force:
        raise InputError(f"{told}: --model names the right one, --force draws with this one")
    on_warning(told)


def _put_adapters(
    model: ImageModel, request: Request, like: Settings | None, on_warning: Callable[[str], None]
) -> tuple[Adapter, ...]:
    """Load the adapters that were named, and tell them from others; those of an image to be like must be named."""
    if not isinstance(model, Model):
        if request.lora:
            raise InputError(f"--lora {request.lora[0][0]}: goes with transition models, and {model.name!r} is none")
        return ()
    recorded = like.lora or () if like is not None else ()
    if request.lora is None and recorded:
        told = " ".join(f"{each.name}:{each.scale:g}" for each in recorded)
        raise InputError(f"{shown(str(request.like))} was drawn with --lora {shown(told, 100)}: name them again")
    names: list[str] = []
    found: list[Adapter] = []
    for number, (source, scale) in enumerate(request.lora or ()):
        file = find_lora(source)
        model.pipeline.load_lora_weights(file, adapter_name=f"lora-{number}")
        names.append(f"lora-{number}")
        found.append(Adapter(name=source, digest=file_digest(file), scale=scale))
    if found:
        model.pipeline.set_adapters(names, [each.scale for each in found])
    if recorded and [each.digest for each in recorded] != [each.digest for each in found]:
        on_warning(f"--lora: not the adapters that {shown(str(request.like))} was drawn with")
    return tuple(found)


def _known_prompts(
    model: ImageModel, prompts: Sequence[str], force: bool, on_warning: Callable[[str], None]
) -> tuple[list[str], list[str]]:
    """Those that can be drawn, and what is wrong with the others; all that can be said without stopping is a warning.

    Raises:
        InputError: none can be drawn.
    """
    good, wrong = [], []
    told = unknown(model.pipeline, prompts) if isinstance(model, Model) else [None] * len(prompts)
    for prompt, said in zip(prompts, told, strict=True):
        try:
            check_prompts([prompt], reads_text=model.class_names is None)
            if model.class_names is not None:
                model.check_conditions([prompt])
            if said is not None and not force:
                raise InputError(f"{said}; --force draws it")
        except InputError as error:
            wrong.append(str(error))
            continue
        if said is not None:
            on_warning(said)
        good.append(prompt)
    if not good:
        raise InputError(wrong[0] + f" (and {len(wrong) - 1} more prompts that cannot be drawn)" * (len(wrong) > 1))
    return good, wrong


def _plans(
    request: Request, like: Settings | None, steps: Sequence[int], model: ImageModel, digest: str
) -> dict[int, StepPlan | Planning]:
    """The plans of some of the steps that are not to be the model's: as given, else as in the image to be like.

    Numbers of steps that the image was not drawn in are planned as those that it was: by the model or uniformly, with
    the same shift.
    """
    if request.plan is not None:
        return dict.fromkeys(steps, request.plan)
    if like is None:
        return {}
    if isinstance(model, Baseline):
        return dict.fromkeys(steps, like.pipeline_plan or "model")
    try:
        recorded = parse_plans(like.plans)
    except InputError as error:
        raise InputError(f"the settings in {shown(str(request.like))}: {error}") from None
    known: dict[int, StepPlan | Planning] = {count: recorded.get(count, "uniform") for count in like.steps}
    others = [count for count in steps if count not in known]
    if not others or like.model_digest != digest:
        return known

    def followed(counts: Sequence[int], **options: Any) -> dict[int, StepPlan]:
        plans = {count: model.followed_plan(count, stochasticity=like.stochasticity, **options) for count in counts}
        return {count: plan for count, plan in plans.items() if plan is not None}

    drawn = followed(like.steps, plan="uniform") | recorded
    for plan, shift in product(("model", "uniform"), (None, *{each.shift for each in recorded.values()})):
        if drawn == followed(like.steps, plan=plan, shift=shift):
            return known | followed(others, plan=plan, shift=shift)
    raise InputError(
        f"{shown(str(request.like))} was drawn by plans of its own, which say nothing of {others[0]} steps: "
        "choose --plan too"
    )


def _separate_files(
    folder: Path | None, prompts: int, seeds: Sequence[int], steps: Sequence[int]
) -> dict[tuple[int, int, int], Path]:
    """The file of every image, by the number of its prompt, its seed and its steps; none without a folder.

    Raises:
        InputError: a file that anystep has not drawn has the name of one of them.
    """
    files: dict[tuple[int, int, int], Path] = {}
    if folder is None:
        return files
    for row, seed, count in product(range(prompts), seeds, steps):
        path = folder / f"{row:02d}{f'-seed-{seed}' * (len(seeds) > 1)}-steps-{count:03d}.png"
        try:
            if path.exists():
                read_settings(path)
        except InputError as error:
            raise InputError(f"{shown(str(path))} would be overwritten, choose another --separate: {error}") from None
        files[row, seed, count] = path
    return files
