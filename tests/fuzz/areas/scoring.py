"""What evaluations read: reference statistics, networks that score, and the files of benchmarks."""

import json
import random
from contextlib import suppress
from pathlib import Path

from areas.area import Area


def make_npz(folder: Path) -> None:
    import numpy as np

    np.savez(folder / "ref.npz", mu=np.zeros(8), sigma=np.eye(8))


def read_npz(folder: Path, out: Path, rng: random.Random) -> None:
    from anystep.evaluation.metrics.frechet_distance import Moments

    Moments.load(folder / "ref.npz")


def make_safetensors(folder: Path) -> None:
    from anystep.evaluation.benchmarks.scene_detector import SceneDetector
    from anystep.evaluation.metrics.caption_scores import AlignmentHeads

    SceneDetector(["a", "b"], 8, 1).save(folder / "detector.safetensors")
    heads = AlignmentHeads(8, 8, 4)
    with suppress(AssertionError):  # without a recall
        heads.save(folder / "heads.safetensors")


def read_safetensors(folder: Path, out: Path, rng: random.Random) -> None:
    from anystep.evaluation.benchmarks.scene_detector import SceneDetector
    from anystep.evaluation.metrics.caption_scores import AlignmentHeads

    for path in folder.iterdir():
        kind = SceneDetector if path.name.startswith("d") else AlignmentHeads
        kind.load(path)  # type: ignore[attr-defined]


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


AREAS = {
    "npz": Area(make_npz, read_npz, 2),
    "safetensors": Area(make_safetensors, read_safetensors, 2),
    "benchmark files": Area(make_benchmarks, read_benchmarks, 2),
}
