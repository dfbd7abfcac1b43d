"""The program of NumPy that draws: its mathematics is that of the package, number for number."""

import json
import math
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import lively
from PIL import Image
from tokenizers import Tokenizer

import anystep.sampling
from anystep.conditioning import load_text_encoder
from anystep.export import sample
from anystep.export.export import settings_of
from anystep.pipelines.load import load
from anystep.pipelines.scheduler import TransitionScheduler
from anystep.pipelines.transition import TransitionPipeline
from anystep.sampling import Prediction, StepPlan, noise
from anystep.seeds import generator_of
from anystep.transport import TRANSPORTS, Transport, make_transport


def plain(transport: Transport) -> dict[str, Any]:
    return {"name": transport.name, **vars(transport)}


def middle(transport: Transport) -> list[float]:
    """Times of a transport, ends among them."""
    return [transport.t_min + (transport.t_max - transport.t_min) * u for u in (0.0, 0.1, 0.6, 1.0)]


@pytest.mark.parametrize("name", TRANSPORTS)
def test_transports_are_those_of_the_package(name: str) -> None:
    transport = make_transport(name)
    x, F = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    for t in middle(transport):
        time = torch.tensor([t], dtype=torch.float64)
        assert sample.coefficients(plain(transport), t) == pytest.approx(
            [float(c) for c in transport.coefficients(time)]
        )
        assert sample.c_noise(plain(transport), t) == pytest.approx(float(transport.c_noise(time)), abs=1e-12)
        r = torch.tensor([transport.t_min], dtype=torch.float64)
        carried = sample.transition(plain(transport), x.numpy(), F.numpy(), t, transport.t_min)
        np.testing.assert_allclose(carried, transport.transition(x, F, time, r), rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(
            sample.decompose(plain(transport), x.numpy(), F.numpy(), t), transport.decompose(x, F, time), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [7, 2**40 + 7])
@pytest.mark.parametrize("shape", [(32, 8, 8), (3, 5, 7), (1, 4, 4)])
def test_a_seed_means_the_noise_that_it_means_in_pytorch(shape: tuple[int, ...], seed: int) -> None:
    generator, ours = generator_of(seed), sample.Noise(seed)
    for _ in range(2):  # the stream goes on where it was
        np.testing.assert_allclose(ours.draw(shape), torch.randn(shape, generator=generator), atol=1e-6)


def test_a_caption_becomes_the_tokens_of_the_library() -> None:
    encoder = load_text_encoder("builtin")
    folder = Path(encoder.tokenizer.name_or_path)
    tokenize = sample.tokenizer_of(folder / "tokenizer.json")
    assert isinstance(tokenize, sample.WordPiece)
    captions = [
        "a red apple", "", "An E-MAIL, (sent) twice!", "naïve café Ünïcödé", "苹果 and 日本", "x" * 150,
        "a\u0000b\u200dc", "tab\tand\nline", "$5 + 3 = 8 ~ ^", "word " * 200, "“quotes” — dashes…",
        "🍎 apple", "unaffable zyzzyva", "[SEP]", "a [MASK]ed[UNK] [CLS]", "[sep] [ SEP ] [[PAD]]",
    ]  # fmt: skip
    for caption in captions:
        wanted = encoder.tokenizer(caption, truncation=True, max_length=encoder.max_length)["input_ids"]
        assert tokenize(caption, encoder.max_length) == wanted, caption


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("rule", [
    {}, {"strip_accents": False}, {"strip_accents": True}, {"handle_chinese_chars": False}, {"clean_text": False}
], ids=str)  # fmt: skip
def test_a_tokenizer_with_rules_of_its_own_is_heard(lowercase: bool, rule: dict[str, bool], tmp_path: Path) -> None:
    content = json.loads((Path(load_text_encoder("builtin").tokenizer.name_or_path) / "tokenizer.json").read_text())
    content["normalizer"] |= {"lowercase": lowercase, **rule}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    library, tokenize = Tokenizer.from_file(str(path)), sample.tokenizer_of(path)
    library.no_padding()
    library.enable_truncation(64)
    for caption in (
        "a red apple",
        "Ein grüner Käfer, ÀÉÎ",
        "façade e\u0301",
        "苹果 and 日本語",
        "a\u200bb\u00adc\x00d\te",
    ):
        assert tokenize(caption, 64) == library.encode(caption).ids, caption


PLANS = {
    2: {"steps": 2, "tail": 0.3, "guidance_share": 0.4},
    6: {"steps": 4, "shift": 1.7, "memory": True, "velocity_below": 1.0, "guided_above": 0.6},
}


def a_pipeline(sampling: str = "transition", plans: Any = None, **options: Any) -> TransitionPipeline:
    scheduler = TransitionScheduler(base_size=16, shift=1.2, plans=plans, **options)
    return TransitionPipeline(
        lively("c2i-test"),
        scheduler,
        guidance_scale=1.5,
        sampling=sampling,
        open_guidance_interval=sampling != "transition",
    )


@pytest.mark.parametrize("sampling", ["transition", "consistency", "instantaneous"])
def test_plans_and_times_are_those_of_the_pipeline(sampling: str) -> None:
    for plans in (None, PLANS):
        pipeline = a_pipeline(sampling, plans)
        settings = settings_of(pipeline)
        for steps in (1, 2, 3, 6, 9):
            plan = pipeline.plan(steps)
            found = sample.plan_of(settings, steps)
            assert StepPlan(**found) == plan
            for height, width in ((16, 16), (32, 48)):
                wanted = pipeline.schedule.times(plan, height, width)
                assert sample.times_of(settings, found, height, width) == pytest.approx(wanted.tolist(), abs=1e-7)


@pytest.mark.parametrize("name", ["ot_fm", "trigflow", "edm"])
@pytest.mark.parametrize(
    "plan", [StepPlan(5), StepPlan(5, stochasticity=0.7), StepPlan(6, memory=True, velocity_below=1.0)], ids=str
)
def test_the_loop_is_that_of_the_package(name: str, plan: StepPlan) -> None:
    transport, seeds = make_transport(name), [3, 4]
    x, times = (
        noise((4, 4, 4), seeds) * transport.coefficients(torch.tensor([transport.t_max])).sigma,
        plan.times(transport),
    )

    def f(x: Any, t: float, r: float) -> Any:
        return x * math.sin(1 + t) + 0.3 * r / transport.t_max

    wanted = anystep.sampling.sample(
        lambda x, t, r: Prediction(f(x, t, r)), transport, x, times, seeds=seeds, stochasticity=plan.stochasticity,
        velocity_below=plan.velocity_below, memory=plan.memory,
    ).sample  # fmt: skip
    fields = {"stochasticity": plan.stochasticity, "velocity_below": plan.velocity_below, "memory": plan.memory}
    found = sample.sample(lambda x, t, r: (f(x, t, r), 1.0), plain(transport), x.numpy(), times.tolist(), fields, seeds)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


class InPyTorch(sample.Model):
    """The program, with the network of a pipeline in place of the exported one."""

    def __init__(self, pipeline: TransitionPipeline, folder: Path) -> None:
        (folder / "model.json").write_text(json.dumps(settings_of(pipeline)))
        super().__init__(folder)
        self.network = pipeline.transformer

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.no_grad():
            answer: np.ndarray = self.network(**given).numpy()
        return answer


@pytest.mark.parametrize("told", [False, True])
def test_what_is_guided_away_from_is_that_of_the_pipeline(told: bool, tmp_path: Path) -> None:
    network = lively("c2i-test", num_classes=3, guidance_embed=told)
    pipeline = TransitionPipeline(network, TransitionScheduler(), class_names=["ant", "bee", "cat"])
    model, kept = InPyTorch(pipeline, tmp_path), {"num_inference_steps": 2, "seeds": [1], "output_type": "latent"}
    drawn = {}
    for negative in (None, "cat", 0):
        wanted = pipeline("bee", guidance_scale=3.0, negative_prompt=negative, **kept).images
        drawn[negative] = model.draw("bee", 2, [1], guidance=3.0, negative=negative)
        np.testing.assert_allclose(drawn[negative], wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(drawn["cat"] - drawn[None]).max() > 0.001
    assert (model.draw("bee", 2, [1], guidance=3.0, negative=" ") == drawn[None]).all()
    with pytest.raises(ValueError, match="negative 'cat': guidance 1 leads away from nothing"):
        model.draw("bee", 2, [1], guidance=1.0, negative="cat")
    assert model.draw("bee", 2, [1], guidance=1.0, negative="").shape == (1, *wanted.shape[1:])


def test_an_image_is_written_as_png(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    sample.write_png(tmp_path / "x.png", pixels)
    assert (np.asarray(Image.open(tmp_path / "x.png")) == pixels).all()


def test_bad_input_is_told_apart(tmp_path: Path) -> None:
    model = InPyTorch(a_pipeline(), tmp_path)
    assert (sample.size_of("96X64"), sample.size_of("64")) == ((96, 64), (64, 64))
    for call, words in (
        (lambda: model.draw(0, steps=0), "steps 0: expected 1 to 10000"),
        (lambda: model.draw("whale"), "class 'whale': expected a name, or a number from 0 to 9"),
        (lambda: model.draw(10), "class '10': expected"),
        (lambda: model.draw(np.zeros((1, 3, 8))), "class '.*: expected"),
        (lambda: model.draw(0, size=(5, 8)), "size 5x8: expected multiples of 2, one at most 5 times the other"),
        (lambda: model.draw(0, size=(0, 8)), "size 0x8: expected"),
        (lambda: model.draw(0, size=(48, 8)), "size 48x8: expected"),
        (lambda: model.draw(0, guidance=math.nan), "guidance nan: expected 0 to 100"),
        (lambda: model.draw(0, guidance=-3), "guidance -3: expected"),
        (lambda: model.draw(0, seeds=[0, -1]), "seed -1: expected 0 to"),
        (lambda: model.draw(0, seeds=[2**62]), "seed 4611686018427387904: expected"),
        (lambda: sample.size_of("64x"), "size '64x': expected WIDTHxHEIGHT"),
        (lambda: sample.Noise(0).draw((3, 5)), "below 16 numbers"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    model.network = lambda x, **inputs: x * math.inf
    with pytest.raises(ValueError, match="numbers that are not finite"):
        model.draw(0)


@pytest.fixture(scope="module")
def captions(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that reads captions, without its networks, and files of states of captions."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copyfile(sample.__file__, folder / "sample.py")
    (folder / "model.json").write_text(json.dumps(settings_of(load(tiny_model, "cpu").pipeline)))
    (folder / "text.npy").write_text("no array")
    (folder / "empty.npy").touch()
    states = np.ones((5, 384), np.float32)
    for name, content in (
        ("null_states", states[None]), ("good", states), ("narrow", states[:, :7]), ("flat", states[0]),
        ("none", states[:0]), ("nan", states * np.nan), ("long", np.ones((1000, 384))), ("words", np.array(["a"])),
    ):  # fmt: skip
        np.save(folder / f"{name}.npy", content)
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["  "], "empty prompt: say what to draw"),
        (["a whale", "--out", "x.jpg"], "out 'x.jpg': expected a name that ends in .png"),
        (["a whale", "--out", "nowhere/x.png"], "in a folder that is there"),
        (["--states", "gone.npy"], "No such file"),
        (["--states", "text.npy"], "states 'text.npy': expected a .npy file of numbers"),
        (["--states", "empty.npy"], "states 'empty.npy': expected a .npy file of numbers"),
        (["--states", "words.npy"], "states 'words.npy': expected a .npy file of numbers"),
        (["--states", "narrow.npy"], "states (5, 7): expected finite numbers, 1 to "),
        (["--states", "flat.npy"], "states (384,): expected"),
        (["--states", "none.npy"], "states (0, 384): expected"),
        (["--states", "long.npy"], "states (1000, 384): expected"),
        (["--states", "nan.npy"], "states (5, 384): expected finite"),
        (["--states", "good.npy", "--size", "0"], "size 0x0: expected"),
        (["--states", "good.npy", "--seed", "-1"], "seed -1: expected"),
        (["--states", "good.npy", "--negative", "blue", "--guidance", "1"], "negative 'blue': guidance 1 leads away"),
        (["--states", "good.npy", "--size", "80000000"], "Unable to allocate"),
        (["--states", "good.npy"], "onnxruntime is not installed: pip install onnxruntime"),
    ],
)
def test_bad_input_is_one_line(
    captions: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(captions)
    monkeypatch.setattr("sys.argv", ["sample.py", *words])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    before = sorted(captions.iterdir())
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(captions / "sample.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in said
    assert (said.count("\n"), said.startswith("sample.py: ")) == (1, True)
    assert sorted(captions.iterdir()) == before
