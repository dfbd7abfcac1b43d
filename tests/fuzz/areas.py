"""What is fuzzed: for each area a valid input, and what reads it. All of it is small."""

import gzip
import io
import json
import random
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Area:
    """`make` writes a valid input into a folder, `act` reads it; `weight` is its share, by what it costs.

    `valid` says that what was made is read as it is; `own` that the folder is the command's output too, in which it may
    write.
    """

    make: Callable[[Path], None]
    act: Callable[[Path, Path, random.Random], Any]
    weight: float = 1.0
    seconds: int = 5
    own: bool = False
    valid: bool = True


def picture(size: int = 16, shade: int = 0) -> Any:
    from PIL import Image

    image = Image.new("RGB", (size, size), (shade % 256, 90, 200))
    image.paste((250, 20, 10), (2, 2, size // 2, size // 2))
    return image


def png(shade: int = 0, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture(shade=shade).save(out, form)
    return out.getvalue()


def read_source(spec: str) -> None:
    """As preparation does: some examples, and what tells that they changed."""
    from anystep.data.example import BrokenExample
    from anystep.data.sources import open_source

    source = open_source(spec, 16)
    for index in range(min(len(source), 8)):
        try:
            source[index]
            for name in ("stamp", "digest"):
                if hasattr(source, name):
                    getattr(source, name)(index)
        except BrokenExample:
            pass


def make_images(folder: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for form in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm", "ico", "tga", "dds", "jp2"):
        try:
            picture().save(folder / f"{form}.{form}", icc_profile=profile)
        except (OSError, KeyError, ValueError):
            picture().save(folder / f"{form}.{form}")
    picture().convert("P").save(folder / "palette.png", transparency=0)
    frames = [picture(shade=n) for n in (0, 99)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    for path in [*folder.iterdir()]:
        path.with_suffix(".txt").write_text("a thing\n")


def make_captions(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(f"a thing, number {number}\nanother line\n")


def make_lines(folder: Path) -> None:
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    rows = [{"file_name": f"{number}.png", "text": "a cat", "captions": ["x", "y"]} for number in range(3)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_classes(folder: Path) -> None:
    for number in range(4):
        (folder / f"class {number % 2}").mkdir(exist_ok=True)
        (folder / f"class {number % 2}" / f"{number}.png").write_bytes(png(number))


def make_tar(folder: Path) -> None:
    for shard in range(2):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as file:
            for number in range(3):
                about = json.dumps({"caption": "a cat", "label": number}).encode()
                for suffix, content in (("png", png(number)), ("txt", b"a dog\n"), ("json", about), ("cls", b"1")):
                    info = tarfile.TarInfo(f"{shard}{number}.{suffix}")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    (folder / "classes.txt").write_text("one\ntwo\nthree\n")


def make_parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows: dict[str, Any] = {
        "image": [{"bytes": png(number), "path": f"{number}.png"} for number in range(4)],
        "text": ["a cat", "a dog", "", "é"],
        "label": [0, 1, 0, 1],
    }
    for part in range(2):
        pyarrow.parquet.write_table(pyarrow.table(rows), folder / f"train-{part}.parquet")


def make_idx(folder: Path) -> None:
    pixels = struct.pack(">IIII", 2051, 5, 8, 8) + bytes(range(64)) * 5
    labels = struct.pack(">II", 2049, 5) + bytes([0, 1, 2, 1, 0])
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
    (folder / "train-labels-idx1-ubyte").write_bytes(labels)


def make_npz(folder: Path) -> None:
    import numpy as np

    np.savez(folder / "ref.npz", mu=np.zeros(8), sigma=np.eye(8))


def make_recipe(folder: Path) -> None:
    from anystep.plain_yaml import dump_yaml

    content = {
        "data": {"source": "builtin", "size": 64, "native": False, "limit": 10},
        "model": {
            "preset": "t2i-test",
            "options": {"hidden_size": 32, "depth": 2, "rope_grid": "row_major", "mlp_ratio": 2.0},
        },
        "transport": {"name": "ot_fm", "options": {"std": 1.0, "t_max": 1.0}},
        "objective": {"kind": "shortcut", "eps": 0.01, "guidance": {"w_gt": 1.0}},
        "optimizer": {"betas": [0.9, 0.99], "learning_rate": 1e-4},
        "run": {"steps": 3, "trackers": ["tensorboard"], "precision": "auto"},
        "ema_decay": [0.9, 0.99],
        "sample_prompts": ["a cat", "1e2"],
        "debug": {"run": {"steps": 2}},
    }
    (folder / "r.yaml").write_text(dump_yaml(content))


def read_recipe(folder: Path, out: Path, rng: random.Random) -> None:
    from anystep.compare import Comparison, variant_recipe
    from anystep.training.config import CodecRecipe, Recipe
    from anystep.training.recipe_files import dump, load_recipe

    if rng.random() < 0.6:
        recipe = load_recipe(folder / "r.yaml", Recipe, debug=rng.random() < 0.5)
        dump(recipe)
    elif rng.random() < 0.5:
        load_recipe(folder / "r.yaml", CodecRecipe)
    else:
        comparison = load_recipe(folder / "c.yaml", Comparison)
        for name in comparison.variants:
            variant_recipe(comparison, name, 0)


def make_recipes(folder: Path) -> None:
    from anystep.plain_yaml import dump_yaml

    make_recipe(folder)
    content = {
        "recipe": {"model": {"preset": "t2i-test"}, "data": {"source": "builtin"}},
        "variants": {"a": {"objective": {"kind": "transition"}}, "b": {"transport": {"name": "edm"}}},
        "evaluations": 1000, "seeds": [0, 1], "steps": [1, 2], "samples": 60, "metrics": ["kernel_distance"],
    }  # fmt: skip
    (folder / "c.yaml").write_text(dump_yaml(content))


def read_overrides(folder: Path, out: Path, rng: random.Random) -> None:
    """Odd words for overrides and for the values of a comparison's changes."""
    from anystep.compare import Comparison, vary
    from anystep.training.config import Recipe
    from anystep.training.recipe_files import load_recipe

    keys = [
        "run.steps",
        "run",
        "model.options.depth",
        "data.source",
        "a.b",
        "",
        ".",
        "objective.guidance.w_gt",
        "ema_decay",
    ]
    values = [
        "1",
        "1e2",
        "[",
        "{a: 1}",
        "nan",
        "-1",
        "!!python/name:os.system",
        "&a [*a]",
        "[" * 5000,
        "\0",
        "é",
        "",
        "~",
        "9" * 5000,
    ]
    words = [f"--{rng.choice(keys)}={rng.choice(values)}" for _ in range(rng.randrange(1, 3))]
    if rng.random() < 0.5:
        vary(Comparison(), [word[2:] for word in words])
    load_recipe(folder / "r.yaml", Recipe, words)


def make_benchmarks(folder: Path) -> None:
    rows = [
        {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
        {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}], "prompt": "a red car"},
        {"tag": "position", "prompt": "a dog above a cat",
         "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["above", 0]}]},
    ]  # fmt: skip
    (folder / "geneval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mjhq.json").write_text(
        json.dumps({"a": {"category": "animals", "prompt": "a cat"}, "b1": {"category": "art", "prompt": "x"}})
    )
    (folder / "prompts").mkdir()
    for name in ("a", "b"):
        (folder / "prompts" / f"{name}.txt").write_text(f"a long text about {name}\n")
    columns = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
    lines = [f"{columns},question_natural_language"]
    lines += [f"{name},t,k,{n},0,entity,whole,tuple,is there a cat?" for name in "ab" for n in (1, 2)]
    (folder / "questions.csv").write_text("\n".join(lines) + "\n")


def read_benchmarks(folder: Path, out: Path, rng: random.Random) -> None:
    from anystep.evaluation.benchmarks import dpg, geneval, mjhq

    entries = geneval.read_metadata(folder / "geneval.jsonl")
    geneval.classes(entries)
    geneval.generation_requests(entries, out, 2)
    mjhq.generation_requests(mjhq.read_metadata(folder / "mjhq.json"), out)
    prompts = dpg.read_prompts(folder / "prompts")
    dpg.check_questions(prompts, dpg.read_questions(folder / "questions.csv"))
    dpg.generation_requests(prompts, out)


def make_model(folder: Path) -> None:
    import torch

    from anystep.models import build_transformer
    from anystep.pipelines.scheduler import TransitionScheduler
    from anystep.pipelines.transition import TransitionPipeline
    from anystep.training.config import CodecModelConfig, CodecRecipe
    from anystep.training.train_codec import build_autoencoder

    torch.manual_seed(0)
    sizes = CodecModelConfig(latent_channels=4, widths=(8, 8), encoder_depths=(0, 1), decoder_depths=(0, 1))
    autoencoder = build_autoencoder(CodecRecipe(codec=sizes))
    autoencoder.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    network = build_transformer("c2i-test", hidden_size=16, sample_size=4, num_classes=3)
    pipeline = TransitionPipeline(
        transformer=network, scheduler=TransitionScheduler(base_size=8), vae=autoencoder, class_names=["a", "b", "c"],
        guidance_scale=1.5, license="none",
    )  # fmt: skip
    pipeline.save_pretrained(folder)


def read_model(folder: Path, out: Path, rng: random.Random) -> int:
    from anystep.cli import main

    if rng.random() < 0.3:
        return main(["info", "--model", str(folder)])
    return main(["generate", "a", "--steps", "1", "--model", str(folder), "--out", str(out / "x.png")])


def make_safetensors(folder: Path) -> None:
    from anystep.evaluation.benchmarks.scene_detector import SceneDetector
    from anystep.evaluation.caption_scores import AlignmentHeads

    SceneDetector(["a", "b"], 8, 1).save(folder / "detector.safetensors")
    heads = AlignmentHeads(8, 8, 4)
    with suppress(AssertionError):  # without a recall
        heads.save(folder / "heads.safetensors")


def read_safetensors(folder: Path, out: Path, rng: random.Random) -> None:
    from anystep.evaluation.benchmarks.scene_detector import SceneDetector
    from anystep.evaluation.caption_scores import AlignmentHeads

    for path in folder.iterdir():
        kind = SceneDetector if path.name.startswith("d") else AlignmentHeads
        kind.load(path)  # type: ignore[attr-defined]


def prepare_again(folder: Path) -> int:
    """Prepare the images beside a folder into it."""
    from anystep.cli import main

    options = ["--size", "16", "--codec", "identity", "--shard-size", "2"]
    return main(["data", "prepare", str(folder.parent / "images"), "--out", str(folder), *options])


def make_prepared(folder: Path) -> None:
    images = folder.parent / "images"
    images.mkdir()
    make_captions(images)
    assert prepare_again(folder) == 0


def read_prepared(folder: Path, out: Path, rng: random.Random) -> int | None:
    from anystep.data.latents import LatentSet, LatentShards

    if rng.random() < 0.2:
        return prepare_again(folder)
    data = LatentSet([LatentShards(str(folder))], broken_limit=1.0)
    data.read(list(range(min(8, len(data)))))
    return None


TINY = {
    "data": {"size": 8},
    "model": {"preset": "c2i-test", "codec": "identity", "options": {"hidden_size": 16, "depth": 1}},
    "run": {"steps": 2, "batch_size": 2, "checkpoint_every": 1, "sample_every": 0, "threads": 1, "log_every": 1},
    "sample_steps": [1],
}


def make_run(folder: Path) -> None:
    from anystep.cli import main
    from anystep.plain_yaml import dump_yaml

    images = folder.parent / "images"
    images.mkdir()
    make_classes(images)
    (folder.parent / "r.yaml").write_text(dump_yaml({**TINY, "data": {"source": f"classes:{images}", "size": 8}}))
    assert main(["train", str(folder.parent / "r.yaml"), "--out", str(folder)]) == 0


def resume_run(folder: Path, out: Path, rng: random.Random) -> int:
    from anystep.cli import main

    return main(["train", str(folder.parent / "r.yaml"), "--out", str(folder), "--run.steps", "3"])


EVALUATED = ["--images", "1={images}", "--data", "classes:{images}", "--samples", "60", "--metrics", "kernel_distance"]
COMPARED = {
    "recipe": {**TINY, "run": {**TINY["run"], "keep": 1}},
    "variants": {"one": {}, "two": {"objective": {"kind": "flow_matching"}}},
    "evaluations": 20, "steps": [1], "samples": 50, "metrics": ["kernel_distance"],
}  # fmt: skip


def make_many(folder: Path) -> Path:
    """Images of two classes, enough to be measured, beside a folder."""
    images = folder.parent / "images"
    for number in range(120):
        place = images / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(2 * number))
    return images


def make_report(folder: Path) -> None:
    make_many(folder)
    assert evaluate_again(folder, folder, random.Random(0)) == 0


def evaluate_again(folder: Path, out: Path, rng: random.Random) -> int:
    from anystep.cli import main

    words = [word.format(images=folder.parent / "images") for word in EVALUATED]
    return main(["evaluate", *words, "--out", str(folder)])


def make_comparison(folder: Path) -> None:
    from anystep.plain_yaml import dump_yaml

    images = make_many(folder)
    recipe = {**COMPARED["recipe"], "data": {"source": f"classes:{images}", "size": 8}}  # type: ignore[dict-item]
    (folder.parent / "r.yaml").write_text(dump_yaml({**COMPARED, "recipe": recipe}))
    assert compare_again(folder, folder, random.Random(0)) == 0


def compare_again(folder: Path, out: Path, rng: random.Random) -> int:
    from anystep.cli import main

    return main(["compare", str(folder.parent / "r.yaml"), "--out", str(folder)])


def act_on_values(folder: Path, out: Path, rng: random.Random) -> int:
    """Odd values for options of commands that then do little."""
    from anystep.cli import main

    number = ["0", "-1", "1", "nan", "inf", "1e30", "9" * 3000, "", "é", "1.5", "１"]
    device, size = (
        ["cpu", "meta", "cuda", "hpu", "\0", "", "auto", "cpu:3"],
        ["64x64", "0x0", "8x8", "x", "1048576x1048576", "9" * 500, "64x100000"],
    )
    name = [
        "builtin",
        "",
        "~",
        "/",
        ".",
        "nowhere",
        "../..",
        "\0",
        "x" * 5000,
        "a/b",
        "t2i-xl",
        "c2i-test",
        "https://x/y",
        "shards:",
        "idx:/",
        "classes:.",
        "parquet:/dev",
        "shards:/dev/zero",
    ]
    command = rng.choice(["plan", "info", "show", "recipes", "data", "train"])
    pick = rng.choice
    words = {
        "plan": [
            "plan",
            f"--model={pick(name)}",
            f"--size={pick(size)}",
            f"--steps={pick(number)}",
            *pick([[], ["--on", "H100"], ["--train", f"--batch={pick(number)}"]]),
        ],
        "info": ["info", f"--model={pick(name)}", f"--device={pick(device)}"],
        "show": ["recipes", "show", pick(name)],
        "recipes": ["recipes", pick(name)],
        "data": [
            "data",
            "show",
            pick(name),
            f"--count={pick(number)}",
            f"--size={pick(['16', *number])}",
            f"--out={out / 'x.png'}",
        ],
        "train": [
            "train",
            pick([*name, "emoji"]),
            "--dry-run",
            f"--run.steps={pick(number)}",
            f"--model.options.depth={pick(number)}",
            f"--run.device={pick(device)}",
        ],
    }[command]
    return main(words)


def source(prefix: str) -> Callable[[Path, Path, random.Random], None]:
    def act(folder: Path, out: Path, rng: random.Random) -> None:
        read_source(f"{prefix}{folder}")

    return act


def read_npz(folder: Path, out: Path, rng: random.Random) -> None:
    from anystep.evaluation.metrics.frechet_distance import Moments

    Moments.load(folder / "ref.npz")


AREAS = {
    "images": Area(make_images, source(""), 3),
    "captions": Area(make_captions, source(""), 2),
    "JSON lines": Area(make_lines, source(""), 2),
    "class folders": Area(make_classes, source("classes:"), 1),
    "tar": Area(make_tar, source("shards:"), 3, own=True),
    "Parquet": Area(make_parquet, source("parquet:"), 2),
    "IDX": Area(make_idx, source("idx:"), 2),
    "npz": Area(make_npz, read_npz, 2),
    "safetensors": Area(make_safetensors, read_safetensors, 2),
    "YAML": Area(make_recipes, read_recipe, 4),
    "overrides": Area(make_recipe, read_overrides, 1, valid=False),
    "benchmark files": Area(make_benchmarks, read_benchmarks, 2),
    "prepared folder": Area(make_prepared, read_prepared, 2, own=True),
    "model folder": Area(make_model, read_model, 1, seconds=10),
    "option values": Area(lambda folder: None, act_on_values, 1, seconds=15, valid=False),
    "report folder": Area(make_report, evaluate_again, 0.2, seconds=20, own=True),
    "comparison folder": Area(make_comparison, compare_again, 0.2, seconds=30, own=True),
    "run folder": Area(make_run, resume_run, 0.3, seconds=20, own=True),
}
