"""Pipelines of diffusers as baselines: their own images, at their true cost, and bad folders in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, HeunDiscreteScheduler
from helpers import refused
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from anystep.cli import main
from anystep.errors import InputError
from anystep.pipelines import load_image_model as module
from anystep.pipelines.baselines import Baseline
from anystep.pipelines.load import Model
from anystep.pipelines.load_image_model import load_image_model, placed

SIZE = (32, 32)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def models(baselines: dict[str, Path]) -> Callable[[str], Baseline]:
    """Loads a baseline by its name and options, once."""
    loaded: dict[str, Any] = {}

    def load(spec: str) -> Baseline:
        name, mark, options = spec.partition("?")
        if spec not in loaded:
            loaded[spec] = load_image_model(f"{baselines[name]}{mark}{options}", "cpu")
        found = loaded[spec]
        assert isinstance(found, Baseline)
        return found

    return load


@pytest.mark.parametrize(
    ("spec", "each"),
    [
        ("sd3", 2),  # a doubled batch
        ("sd3?guidance_scale=0", 1),
        ("sd3?skip_guidance_layers=[0]&skip_layer_guidance_start=-1&skip_layer_guidance_stop=1", 3),
        ("flux", 1),  # the network is told the scale
        ("flux?true_cfg_scale=4&negative_prompt=blue", 2),  # one call after the other
        ("sana", 2),
        ("sana-sprint", 1),
        ("sdxl", 2),
        ("sdxl?guidance_scale=1", 1),
        ("lcm", 1),
    ],
)
def test_evaluations_are_those_that_the_network_made(models: Callable[[str], Baseline], spec: str, each: int) -> None:
    model = models(spec)
    for steps in (1, 2, 3):
        assert model.generate(["a whale", "a red apple"], steps, size=SIZE).nfe == each * steps
        assert model.nfe(steps) == each * steps


def test_a_solver_of_second_order_costs_what_it_asks_for(baselines: dict[str, Path]) -> None:
    pipeline = DiffusionPipeline.from_pretrained(baselines["sdxl"])
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    model = Baseline("heun", pipeline)
    assert model.nfe(4) == 2 * (2 * 4 - 1)  # two evaluations a step but in the last, each guided
    assert model.nfe(4, guidance=1.0) == 2 * 4 - 1


@pytest.mark.parametrize("name", ["sd3", "flux", "sdxl", "sana-sprint"])
def test_images_are_those_of_the_pipeline_itself(
    models: Callable[[str], Baseline], baselines: dict[str, Path], name: str
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(baselines[name])
    more = {"use_resolution_binning": False} if name == "sana-sprint" else {}
    theirs = pipeline(
        "a red apple", width=32, height=32, num_inference_steps=2, generator=torch.Generator().manual_seed(3), **more
    ).images[0]
    assert models(name)("a red apple", 2, seed=3, size=SIZE)[0].tobytes() == theirs.tobytes()


def test_a_seed_is_the_same_image_in_every_batch(models: Callable[[str], Baseline]) -> None:
    for name in ("sd3", "lcm"):  # the second draws fresh noise between its steps
        several = models(name).draw(["a whale", "a red apple"], *SIZE, 2, [4, 5], output_type="pt").images
        alone = models(name).draw(["a red apple"], *SIZE, 2, [5], output_type="pt").images
        torch.testing.assert_close(several[1:], alone, atol=1e-5, rtol=0)
    assert models("sd3").generate("a whale", 1, 7, SIZE, num_images_per_prompt=2).seeds == (7, 8)


def test_uniform_times_spend_no_step_on_the_end(models: Callable[[str], Baseline]) -> None:
    own, uniform = models("sd3"), models("sd3?plan=uniform")

    def sigmas(model: Baseline, **options: Any) -> list[float]:
        model.draw(["a whale"], *SIZE, 4, [0], **options)
        times: list[float] = model.pipeline.scheduler.sigmas.tolist()
        return times

    even = [3 * u / (1 + 2 * u) for u in (1, 0.75, 0.5, 0.25, 0)]  # shifted by 3
    assert sigmas(own)[3] == pytest.approx(0.009, abs=1e-3)  # the pipeline's own last step is of no use
    assert sigmas(uniform) == sigmas(own, plan="uniform") == pytest.approx(even)
    assert own.plan_settings(None) != own.plan_settings("uniform") == uniform.plan_settings(None)
    with pytest.raises(InputError, match="EulerDiscreteScheduler, which has its own times only"):
        models("sdxl").draw(["a whale"], *SIZE, 2, [0], plan="uniform")


def test_options_may_be_longer_than_a_name() -> None:
    told = "+".join(["blue"] * 100)
    assert module.split_options(f"sd3?negative_prompt={told}") == ("sd3", {"negative_prompt": told.replace("+", " ")})


def test_a_published_name_is_asked_as_its_card_says(baselines: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "stable-diffusion-3.5-large-turbo"
    shutil.copytree(baselines["sd3"], folder)
    turbo = load_image_model(str(folder), "cpu")
    assert (turbo.resolve_guidance(None), turbo.resolve_guidance(4.0)) == (0.0, 4.0)
    assert turbo.generate("a whale", 2, size=SIZE).nfe == 2
    said = load_image_model(f"{folder}?guidance_scale=3", "cpu")
    assert said.resolve_guidance(None) == said.resolve_guidance(4.0) == 3.0  # what a model is given is its own


def test_a_digest_tells_weights_and_options_apart(
    models: Callable[[str], Baseline], baselines: dict[str, Path]
) -> None:
    same = load_image_model(str(baselines["flux"]), "cpu")
    assert same.digest == models("flux").digest != models("flux?max_sequence_length=8").digest
    other = Baseline("other", DiffusionPipeline.from_pretrained(baselines["flux"]))
    with torch.no_grad():
        next(other.pipeline.transformer.parameters()).mul_(2)
    assert other.digest != same.digest
    before, shifted = other.digest, {**other.pipeline.scheduler.config, "shift": 7.0}
    other.pipeline.scheduler = type(other.pipeline.scheduler).from_config(shifted)
    assert other.digest != before


def test_an_image_is_drawn_again_from_itself(baselines: dict[str, Path], tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    asked = ["generate", "a whale", "--model", f"{baselines['sd3']}?guidance_scale=2", "--size", "32", "--steps", "2"]
    assert main([*asked, "--seed", "3", "--plan", "uniform", "--out", str(first)]) == 0
    assert main(["generate", "--like", str(first), "--out", str(again)]) == 0
    assert Image.open(first).tobytes() == Image.open(again).tobytes()
    assert Image.open(again).info["anystep"] == Image.open(first).info["anystep"]
    assert "Sampler: StableDiffusion3Pipeline" in Image.open(first).info["parameters"]


def test_transition_models_come_by_the_same_door(tiny_model: Path) -> None:
    assert isinstance(load_image_model(str(tiny_model), "cpu"), Model)
    with pytest.raises(InputError, match="a transition model takes its options from the command"):
        load_image_model(f"{tiny_model}?guidance_scale=2")


def test_weights_of_a_variant_alone_are_found(baselines: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "half"
    DiffusionPipeline.from_pretrained(baselines["flux"]).save_pretrained(folder, variant="fp16")
    assert load_image_model(str(folder), "cpu")("a whale", 1, size=SIZE)[0].size == SIZE


def test_a_pipeline_may_be_saved_without_one_of_its_encoders(baselines: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(baselines["sd3"], tmp_path / "sd3")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    model = load_image_model(f"{folder}?max_sequence_length=4", "cpu")
    assert isinstance(model, Baseline)
    assert model.pipeline.text_encoder_3 is None
    assert model.generate("a red apple", 1, size=SIZE).nfe == 2


def test_parts_come_to_a_small_device_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipeline:
        def __init__(self) -> None:
            self.components, self.asked = {"transformer": nn.Linear(100, 100), "scheduler": None}, list[str]()

        def to(self, device: torch.device) -> "Pipeline":
            self.asked.append(f"to {device}")
            return self

        def enable_model_cpu_offload(self, device: torch.device) -> None:
            self.asked.append(f"offload to {device}")

    for memory, asked in ((1e6, "to cuda"), (4e4, "offload to cuda")):
        monkeypatch.setattr(module, "memory_of", lambda device, memory=memory: memory)
        assert placed(Pipeline(), torch.device("cuda")).asked == [asked]


def index(**entries: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return damage


def cut(folder: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def without_a_weight(part: str, name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (path,) = (folder / part).glob("*.safetensors")
        tensors = load_file(path)
        del tensors[next(key for key in tensors if key.endswith(name))]
        save_file(tensors, path, {"format": "pt"})

    return damage


def pickled(folder: Path) -> None:
    path = folder / "vae" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (index(_class_name="StableDiffusion3Img2ImgPipeline"), "it is a StableDiffusion3Img2ImgPipeline, which does"),
        (index(_class_name="AnyFlowPipeline"), "it is a AnyFlowPipeline, which does not draw captions alone"),
        (index(_class_name="StableAudioPipeline"), "it is a StableAudioPipeline, which does not draw captions alone"),
        (index(_class_name="MyPipeline"), "it is a 'MyPipeline', which diffusers "),
        (index(_class_name=["mine", "MyPipeline"]), "is code of its own, which is never run"),
        (index(vae=["mine", "Mine"]), "cannot load model"),
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "has no folder 'text_encoder_2', in which its"),
        (cut, "is damaged: it ends before its tensor"),
        (pickled, "is a pickle, which can run code when it is opened"),
        (without_a_weight("transformer", "norm_out.linear.bias"), "1 of its weights are not in the file"),
        (without_a_weight("text_encoder", "final_layer_norm.bias"), "1 weights are missing, the first "),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json"),
    ],
)
def test_a_bad_folder_is_one_line(
    baselines: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Any],
    message: str,
) -> None:
    folder = tmp_path / "sd3"
    shutil.copytree(baselines["sd3"], folder)
    damage(folder)
    out = tmp_path / "out.png"
    assert message in refused(capsys, "generate", "a whale", "--model", folder, "--size", "32", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("sd3?guidance=3", (), "unknown option 'guidance', did you mean guidance_scale?"),
        ("sd3?callback_on_step_end=1", (), "unknown option 'callback_on_step_end'"),
        ("sd3?guidance_scale=much", (), "guidance_scale 'much': expected"),
        ("sd3?guidance_scale", (), "expected NAME?OPTION=VALUE&OPTION=VALUE"),
        ("sd3?plan=mine", (), "has its own schedule (model), or uniform"),
        ("sd3", ("--size", "33"), "both sides must be multiples of 2"),
        ("flux", ("--size", "34"), "both sides must be multiples of 4"),
        ("sd3", ("--size", "64"), "cannot be greater than `pos_embed_max_size`"),
        ("sd3", ("--shift", "2"), "shift 2.0: goes with transition models"),
        ("sd3", ("--guidance-interval", "0", "1"), "goes with transition models"),
        ("sd3", ("--lora", "some.safetensors"), "--lora some.safetensors: goes with transition models"),
        ("lcm", ("--steps", "128"), "cannot make 128 steps: "),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    baselines: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spec: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    name, mark, query = spec.partition("?")
    asked = ["generate", "a whale", "--model", f"{baselines[name]}{mark}{query}", "--size", "32", "--steps", "1"]
    assert message in refused(capsys, *asked, *options, "--out", tmp_path / "out.png")
    assert not list(tmp_path.iterdir())


def test_other_commands_say_who_draws_with_a_baseline(
    baselines: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, "info", "--model", baselines["flux"])
    assert "it is a 'FluxPipeline', not a TransitionPipeline; generate, evaluate and benchmark alone draw" in told
    told = refused(capsys, "plan", "--model", baselines["flux"])
    assert "its network is a 'FluxTransformer2DModel', and transition models are planned" in told
