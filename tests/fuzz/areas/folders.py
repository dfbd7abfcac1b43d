"""Folders that commands make and go on from: prepared data, models, runs, reports and comparisons."""

import random
from pathlib import Path

from areas.area import TINY, Area, make_captions, make_classes, png


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


def make_model(folder: Path) -> None:
    import torch

    from anystep.models import build_transformer
    from anystep.pipelines.scheduler import TransitionScheduler
    from anystep.pipelines.transition import TransitionPipeline
    from anystep.training.codec_config import CodecModelConfig, CodecRecipe
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


EVALUATED = [
    "--images", "1={beside}/images", "--data", "classes:{beside}/images", "--samples", "60",
    "--metrics", "kernel_distance", "--extractor", "{beside}/extractor.safetensors",
]  # fmt: skip
COMPARED = {
    "recipe": {**TINY, "run": {**TINY["run"], "keep": 1}},
    "variants": {"one": {}, "two": {"objective": {"kind": "flow_matching"}}},
    "evaluations": 20, "steps": [1], "samples": 50, "metrics": ["kernel_distance"],
}  # fmt: skip


def make_many(folder: Path) -> Path:
    """Images of two classes, enough to be measured, beside a folder, and a small extractor to measure them with."""
    import torch

    from anystep.evaluation.extractors.classifier import SmallClassifier, save_classifier

    torch.manual_seed(0)
    save_classifier(SmallClassifier(2), folder.parent / "extractor.safetensors")
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

    words = [word.format(beside=folder.parent) for word in EVALUATED]
    return main(["evaluate", *words, "--out", str(folder)])


def make_comparison(folder: Path) -> None:
    from anystep.plain_yaml import dump_yaml

    images = make_many(folder)
    recipe = {**COMPARED["recipe"], "data": {"source": f"classes:{images}", "size": 8}}  # type: ignore[dict-item]
    extractor = str(folder.parent / "extractor.safetensors")
    (folder.parent / "r.yaml").write_text(dump_yaml({**COMPARED, "recipe": recipe, "extractor": extractor}))
    assert compare_again(folder, folder, random.Random(0)) == 0


def compare_again(folder: Path, out: Path, rng: random.Random) -> int:
    from anystep.cli import main

    return main(["compare", str(folder.parent / "r.yaml"), "--out", str(folder)])


AREAS = {
    "prepared folder": Area(make_prepared, read_prepared, 2, own=True),
    "model folder": Area(make_model, read_model, 1, seconds=10),
    "report folder": Area(make_report, evaluate_again, 0.2, seconds=20, own=True),
    "comparison folder": Area(make_comparison, compare_again, 0.2, seconds=30, own=True),
    "run folder": Area(make_run, resume_run, 0.3, seconds=20, own=True),
}
