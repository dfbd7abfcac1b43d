"""Makes the files beside it. They were made once, by anystep 0.1.0 at commit 13b45dd, and are kept: see README.md.

From the root of the repository, with that version: `python tests/data/earlier/make.py NEW_FOLDER`.
"""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
SMALL = {"hidden_size": 16, "depth": 2, "num_heads": 2, "modulation_rank": 4, "mlp_ratio": 1.0}
LENGTH = "0.1"  # of the run's power-function average
AFTER = 6  # the step that the run is stopped after
TINY = {**SMALL, "hidden_size": 8, "depth": 1, "num_heads": 1, "patch_size": 2}
CLASSES = {
    "data": {"source": "idx:data", "size": 8, "limit": 32},
    "model": {"preset": "c2i-test", "codec": "identity-gray", "options": TINY},
    "objective": {"kind": "any_step", "diffusion_share": 0.5, "guidance": {"w_gt": 1.0, "w_cond": 0.8}},
    "optimizer": {"learning_rate": 1e-2, "warmup": 2, "final": 0.1},
    "run": {"steps": 10, "batch_size": 8, "checkpoint_every": AFTER, "sample_every": 0, "threads": 1, "device": "cpu",
            "keep": 3, "log_every": 1},
    "ema_decay": [0.9, 0.99],
    "ema_lengths": [0.1],
    "ema_snapshots": 2,
}  # fmt: skip
CAPTIONS = {
    "data": {"source": "shards:prepared", "size": 16},
    "model": {"preset": "t2i-test", "codec": "codec", "text_encoder": "text", "options": {**SMALL, "text_width": 16}},
    "optimizer": {"learning_rate": 1e-2, "warmup": 2},
    "run": {"steps": 60, "batch_size": 8, "checkpoint_every": 100, "sample_every": 0, "threads": 1, "device": "cpu"},
    "ema_decay": 0.9,
    "guidance": 2.0,
}
COMPARISON = {
    "recipe": {
        "data": {"source": "idx:data", "size": 8},
        "model": {"preset": "c2i-test", "codec": "identity-gray", "options": TINY},
        "transport": {"name": "ot_fm", "options": {"mean": 0.0, "std": 1.2}},
        "optimizer": {"learning_rate": 1e-2, "warmup": 2},
        "run": {"batch_size": 16, "checkpoint_every": 100, "sample_every": 0, "threads": 1, "device": "cpu"},
        "ema_decay": 0.9,
        "guidance": 1.0,
    },
    "variants": {
        "ours": {"objective": {"kind": "any_step"}},
        "flow matching": {"objective": {"kind": "flow_matching"}},
    },
    "evaluations": 1600,
    "steps": [1, 2],
    "samples": 50,
    "metrics": ["frechet_distance", "pixel_frechet_distance", "sharpness"],
    "extractor": "classifier.safetensors",
    "plans": True,
}  # fmt: skip
# plans as `anystep plan-steps` writes them
PLANS = {
    "4": {"steps": 4, "shift": 1.5, "tail": 0.4, "velocity_below": 0.3, "memory": True},
    "8": {"steps": 6, "stochasticity": 0.2},
}
WEIGHTS = ["--model.weights", "pipeline"]
# what is trained for a few steps beside every objective by its name
VARIANTS = {
    "trigflow with guidance": [
        "--transport.name", "trigflow",
        "--objective.guidance", "{w_gt: 1.0, w_cond: 0.8, start: 0.1, end: 0.9}", *WEIGHTS,
    ],
    "edm with running means": [
        "--transport.name", "edm", "--objective.normalise", "running_mean", "--objective.adaptive", "0", *WEIGHTS,
    ],
    "vp with uncertainty and Muon": [
        "--transport.name", "vp", "--objective.normalise", "uncertainty", "--objective.adaptive", "0.5",
        "--optimizer.name", "muon", *WEIGHTS,
    ],
    "ve after plain diffusion": ["--transport.name", "ve", "--objective.diffusion_phase", "0.5", *WEIGHTS],
    "told guidance": ["--objective.guidance_condition", "{w_max: 6.0}", "--model.options.guidance_embed", "true"],
    "branches": ["--model.options.branch_depth", "1"],
}  # fmt: skip
PROMPTS = ["a red apple", "a blue whale"]
SEEDS = {"prompt": PROMPTS, "seeds": [3, 4], "plan": "uniform"}
CALLS: dict[str, dict[str, Any]] = {
    **{f"guided-{steps}": {**SEEDS, "num_inference_steps": steps} for steps in (1, 2, 4)},
    **{f"unguided-{steps}": {**SEEDS, "num_inference_steps": steps, "guidance_scale": 1.0} for steps in (1, 2, 4)},
    "stochastic-4": {**SEEDS, "num_inference_steps": 4, "stochasticity": 0.5},
    "interval-4": {**SEEDS, "num_inference_steps": 4, "guidance_interval": [0.2, 0.7]},
    "shifted-4": {**SEEDS, "num_inference_steps": 4, "shift": 2.0},
    "planned-4": {"prompt": PROMPTS, "seeds": [3, 4], "num_inference_steps": 4},
    "planned-8": {"prompt": PROMPTS, "seeds": [3, 4], "num_inference_steps": 8},
    "image-4": {**SEEDS, "num_inference_steps": 4, "image": "images/05.png", "strength": 0.5},
    "wide-2": {**SEEDS, "num_inference_steps": 2, "width": 24, "height": 16},
    "pixels-4": {**SEEDS, "num_inference_steps": 4, "output_type": "pt"},
    "wide-pixels-2": {**SEEDS, "num_inference_steps": 2, "width": 24, "height": 16, "output_type": "pt"},
}
DRAWN = ["generate", PROMPTS[0], "--model", "pipeline", "--steps", "4", "--seed", "2", "--guidance", "3"]
REPORTED = [
    ["train-classifier", "idx:data", "--size", "8", "--epochs", "6", "--out", "classifier.safetensors"],
    ["compare", "comparison.yaml", "--out", "compare"],
    ["evaluate", "--model", "compare/runs/ours-0", "--data", "idx:data", "--steps", "1", "2", "--samples", "50",
     "--extractor", "classifier.safetensors", "--out", "report"],
]  # fmt: skip


def anystep(*words: str) -> None:
    from anystep.cli import main

    assert main(list(words)) == 0, words


def make_sources() -> None:
    """240 images of 8 x 8 in ten classes as IDX, 24 captioned images of 16 x 16, and a tiny text encoder."""
    import tokenizers
    import transformers

    dice = np.random.default_rng(0)
    Path("data").mkdir()
    for prefix, count in (("train", 240), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        rows = (np.arange(8)[None, :, None] * (labels[:, None, None] + 1) // 7) % 2
        images = (rows * 200 + dice.integers(0, 50, (count, 8, 8))).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
            header = bytes((0, 0, 8, array.ndim)) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            Path("data", name).write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
    Path("images").mkdir()
    for number in range(24):
        colour, thing = ("red", "blue")[number % 2], ("apple", "whale")[number // 2 % 2]
        pixels = np.full((16, 16, 3), 255, np.uint8)
        pixels[number % 8 : 8 + number % 8, 2 + number % 6 : 10] = (220, 30, 30) if number % 2 == 0 else (30, 30, 220)
        Image.fromarray(pixels).save(f"images/{number:02d}.png")
        Path(f"images/{number:02d}.txt").write_text(f"a {colour} {thing}\n{thing} on flat background\n")

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "blue", "apple", "whale", "on", "background", "flat"]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, words.index(word)) for word in ("[CLS]", "[SEP]")]
    )
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=32, max_position_embeddings=12)
    transformers.BertModel(config).save_pretrained("text")
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        "text"
    )


def write(path: str, content: Any) -> None:
    Path(path).write_text(
        yaml.safe_dump(content, sort_keys=False) if path.endswith("yaml") else json.dumps(content, indent=1) + "\n"
    )


def records(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """What the log says of the mathematics of a step."""
    names = ("loss", "residual", "residual_diffusion", "residual_short", "residual_long", "derivative_norm",
             "gradient_norm", "learning_rate", "evaluations")  # fmt: skip
    return {name: record[name] for name in names if name in record}


def sums(model: str) -> dict[str, list[float]]:
    """Of every tensor of a model's network, in float64: the sum of its values, and of their squares."""
    tensors = load_file(Path(model, "transformer", "diffusion_pytorch_model.safetensors"))
    return {name: [each.double().sum().item(), each.double().square().sum().item()] for name, each in tensors.items()}


def make_run() -> None:
    """A run that was killed after step 6, and what it comes to."""
    write("run.yaml", CLASSES)
    anystep("train", "run.yaml", "--out", "run")
    anystep("average", "run", "--length", LENGTH, "--out", "average")
    later = [{"step": each["step"], **figures(each)} for each in records("run") if each["step"] > AFTER]
    expected = {"length": LENGTH, "after": later, "sums": sums("run/pipeline"), "average": sums("average")}
    shutil.rmtree("run/pipeline")
    shutil.rmtree("average")
    for path in [*Path("run/checkpoints").iterdir(), *Path("run").glob("*/*step-*")]:
        if path.exists() and int(path.name.split("-")[-1].split(".")[0]) > AFTER:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = Path("run/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("run/metrics.jsonl").write_text("".join(lines[: AFTER + 1]))  # a step that was not saved
    write("run/expected.json", expected)


def make_pipeline() -> None:
    """A model with its codec, text encoder and plans, and what it draws."""
    import anystep as library

    write("codec.yaml", {
        "data": {"source": "images", "size": 16},
        "codec": {"latent_channels": 4, "widths": [8, 8, 8], "encoder_depths": [0, 1, 1], "decoder_depths": [0, 1, 1]},
        "run": {"steps": 20, "batch_size": 8, "checkpoint_every": 100, "threads": 1, "device": "cpu"},
    })  # fmt: skip
    anystep("train-codec", "codec.yaml", "--out", "codec-run")
    shutil.copytree("codec-run/codec", "codec")
    anystep("data", "prepare", "images", "--out", "prepared", "--size", "16", "--codec", "codec", "--text-encoder",
            "text", "--mirror", "--shard-size", "12")  # fmt: skip
    write("captions.yaml", CAPTIONS)
    anystep("train", "captions.yaml", "--out", "captions-run")
    shutil.copytree("captions-run/pipeline", "pipeline")
    scheduler = Path("pipeline/scheduler/scheduler_config.json")
    write(str(scheduler), {**json.loads(scheduler.read_text()), "plans": PLANS})
    model = library.load("pipeline")
    images = {}
    for name, call in CALLS.items():
        opened = {"image": Image.open(call["image"])} if "image" in call else {}
        images[name] = model.pipeline(**{"output_type": "latent", **call, **opened}).images.contiguous()
    save_file(images, "pipeline/expected.safetensors")
    write("pipeline/calls.json", CALLS)
    anystep(*DRAWN, "--out", "drawn.png")


def make_prepared() -> None:
    """The rows of the prepared folder: captions, labels, and sums of what is read of each."""
    from anystep.data.latents import LatentShards

    data = LatentShards("prepared")
    rows = [
        {
            "captions": list(row.captions),
            "latent": [list(row.latent.shape), row.latent.double().sum().item(), squares(row.latent)],
            "mirrored": squares(row.mirrored),
            "text": [[*each.shape, squares(each)] for each in row.text],
        }
        for row in (data[number] for number in range(len(data)))
    ]  # fmt: skip
    write("prepared/expected.json", {"channels": data.channels, "captioned": data.captioned, "rows": rows})


def squares(values: Any) -> float:
    return float(values.double().square().sum())


def make_losses() -> None:
    """A few steps of every objective, and of what stands beside them, from the weights of the pipeline."""
    from anystep.objective.presets import OBJECTIVES

    told = {kind: ["--objective.kind", kind, *WEIGHTS] for kind in OBJECTIVES} | VARIANTS
    kept = {}
    for name, overrides in told.items():
        short = ["--run.steps", "4", "--optimizer.learning_rate", "3e-3"]
        anystep("train", "captions.yaml", "--out", f"losses/{name}", *short, *overrides)
        kept[name] = {"overrides": [*short, *overrides], "steps": [figures(each) for each in records(f"losses/{name}")]}
    shutil.rmtree("losses")
    write("losses.json", kept)


def make_reports() -> None:
    """An evaluation, and a comparison that was killed before its second run."""
    write("comparison.yaml", COMPARISON)
    for words in REPORTED:
        anystep(*words)
    kept = {name: json.loads(Path(name, "report.json").read_text()) for name in ("report", "compare")}
    figures = {name: {key: repeatable(value[key]) for key in KEPT if key in value} for name, value in kept.items()}
    write("report.json", {"commands": REPORTED, "figures": figures})
    for name in ("report.json", "report.md", "curve.png", "sheet.png", "evaluation"):
        path = Path("compare", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    finished, planned = Path("compare/runs/ours-0"), Path("compare/runs/flow-matching-0")
    assert (finished / "done").exists()
    shutil.rmtree(finished / "checkpoints")  # of a run that is done they are not needed
    for made in planned.iterdir():
        if made.name not in ("planned.yaml", ".anystep.json"):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
    for encoded in Path("compare").rglob("latents-0"):  # these are made again
        shutil.rmtree(encoded)


def repeatable(figures: Any) -> Any:
    """Without how long things took, and how much memory."""
    if isinstance(figures, list):
        return [repeatable(each) for each in figures]
    if not isinstance(figures, dict):
        return figures
    return {
        name: repeatable(each)
        for name, each in figures.items()
        if not {"seconds", "second", "megabytes"} & set(name.split("_"))
    }


KEPT = ("models", "controls", "better", "runs", "plans", "against", "best_or_level", "samples", "real_images", "seed")


def make_values() -> None:
    """What the recipes say: what is written in them, and all of their objectives."""
    from anystep.compare import Comparison
    from anystep.training.codec_config import CodecRecipe
    from anystep.training.config import Recipe
    from anystep.training.recipe_files import load_recipe

    values = {}
    for path in sorted(Path("recipes").glob("*.yaml")):
        kind = {"codec": CodecRecipe, "comparison": Comparison}.get(path.stem, Recipe)
        written = yaml.safe_load(path.read_text())
        given = load_recipe(path, kind).model_dump(mode="json")
        kept = {key: chosen(given[key], part) for key, part in written.items() if key in given}
        values[path.stem] = kept | ({"objective": given["objective"]} if kind is Recipe else {})
    write("recipes/values.json", values)


def chosen(given: Any, written: Any) -> Any:
    """The part of a value that was written."""
    if not (isinstance(given, dict) and isinstance(written, dict)):
        return given
    return {key: chosen(given[key], part) for key, part in written.items()}


def make(out: Path) -> None:
    out.mkdir(parents=True)
    os.chdir(out)
    os.environ["ANYSTEP_CACHE"] = str(out / "cache")
    torch.set_num_threads(1)
    shutil.copytree(HERE / "recipes", "recipes")
    make_sources()
    make_run()
    make_pipeline()
    make_prepared()
    make_losses()
    make_reports()
    make_values()
    for name in ("cache", "captions-run", "codec-run", "report", "classifier.safetensors", "prepared/sizes.png"):
        path = Path(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [*Path().rglob(".stamps.json"), *Path().rglob(".lock")]:
        path.unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
