"""`integrations/diffusers`: in diffusers' own style, without anystep, and with anystep's numbers."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import diffusers
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers import save_guided
from hypothesis import given

import anystep
from anystep.pipelines.scheduler import TransitionScheduler
from anystep.sampling import noise
from anystep.transport import TRANSPORTS

FOLDER = Path(__file__).parents[2] / "integrations" / "diffusers"


@pytest.fixture(scope="module")
def ours() -> Any:
    return anystep.load("builtin", "cpu").pipeline


@pytest.fixture(scope="module")
def theirs(ours: Any, upstream: Any) -> Any:
    """The built-in model's own weights in the classes that are to be offered."""
    network = upstream.TransitionTransformer2DModel.from_config(ours.transformer.config)
    network.load_state_dict(ours.transformer.state_dict())
    scheduler = upstream.TransitionScheduler.from_config(ours.scheduler.config)
    encoder = ours.conditioner
    pipeline = upstream.TransitionPipeline(
        encoder.tokenizer, encoder.model, ours.vae, network.eval(), scheduler, ours.config.guidance_scale
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("prompts", "steps", "options"),
    [
        (["a red apple"], 1, {}),
        (["a whale", "a tractor on a blue background"], 4, {"guidance_scale": 2.5}),
        (["a whale"], 3, {"guidance_scale": 1.0, "height": 96, "width": 64}),
        (["a dog", "a rocket"], 2, {"negative_prompt": ["a blue background", "red"], "guidance_interval": (0.0, 0.6)}),
    ],
    ids=["one step", "guided batch", "unguided and large", "negative prompts"],
)  # fmt: skip
def test_the_built_in_model_draws_the_same_latents(
    ours: Any, theirs: Any, prompts: list[str], steps: int, options: dict[str, Any]
) -> None:
    seeds = list(range(len(prompts)))
    wanted = ours(prompts, num_inference_steps=steps, seeds=seeds, output_type="latent", **options).images
    options["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    found = theirs(prompts, num_inference_steps=steps, output_type="latent", **options).images
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # a sharp network carries rounding on


@pytest.mark.parametrize("options", [{"guidance_scale": 2.0}, {"guidance_scale": 2.0, "negative_prompt": "red"}])
def test_a_network_that_reads_the_scale_is_guided_alike(
    upstream: Any, tiny_model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    network = save_guided(tiny_model, tmp_path, max_time_frequency=20, position_embed=True, caption_pool=True)
    ours = anystep.load(tmp_path, "cpu").pipeline
    copy = upstream.TransitionTransformer2DModel.from_config(network.config)
    copy.load_state_dict(network.state_dict())
    scheduler, encoder = upstream.TransitionScheduler.from_config(ours.scheduler.config), ours.conditioner
    theirs = upstream.TransitionPipeline(encoder.tokenizer, encoder.model, ours.vae, copy.eval(), scheduler, 1.5)
    theirs.set_progress_bar_config(disable=True)
    evaluations: list[int] = []
    copy.register_forward_hook(
        lambda module, given, told, out: evaluations.append(len(told["timestep"])), with_kwargs=True
    )
    words = {"num_inference_steps": 2, "output_type": "latent", **options}
    found = theirs("a whale", generator=torch.Generator().manual_seed(3), **words).images
    torch.testing.assert_close(found, ours("a whale", seeds=[3], **words).images, rtol=1e-5, atol=1e-5)
    assert evaluations == ([2, 2] if "negative_prompt" in options else [1, 1])


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        *((steps, {}) for steps in (1, 2, 4, 9)),
        *((steps, {"guidance_interval": (0.3, 1.0)}) for steps in (3, 4, 5)),
        *((steps, {"negative_prompt": "a dog"}) for steps in (2, 4)),
    ],
)
def test_plans_are_followed(
    ours: Any, theirs: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch, steps: int, told: dict[str, Any]
) -> None:
    plans = {
        "1": {"steps": 1, "velocity_below": 1.0},
        "2": {"steps": 2, "shift": 1.4, "guidance_share": 0.4},
        "4": {"steps": 4, "velocity_below": 1.0, "memory": True, "tail": 0.25, "guided_above": 0.5},
        "5": {"steps": 4, "velocity_below": 0.3, "memory": True},
    }
    for pipe, kind in ((ours, TransitionScheduler), (theirs, upstream.TransitionScheduler)):
        monkeypatch.setattr(pipe, "scheduler", kind.from_config(pipe.scheduler.config, plans=plans))
    words = {"num_inference_steps": steps, "output_type": "latent", "guidance_scale": 2.0, **told}
    wanted = ours("a whale", seeds=[2], **words).images
    found = theirs("a whale", generator=torch.Generator().manual_seed(2), **words).images
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert len(theirs.scheduler.timesteps) == ours.plan(steps).steps
    assert not torch.allclose(wanted, ours("a whale", seeds=[2], plan="uniform", **words).images, atol=1e-2)


def test_fresh_noise_of_a_plan_belongs_to_the_generator(
    theirs: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = upstream.TransitionScheduler(plans={"2": {"steps": 2, "stochasticity": 0.3}})
    monkeypatch.setattr(theirs, "scheduler", scheduler)
    words = {"num_inference_steps": 2, "output_type": "latent", "latents": noise((32, 8, 8), [5])}
    drawn = [theirs("a whale", generator=torch.Generator().manual_seed(seed), **words).images for seed in (1, 1, 2)]
    torch.testing.assert_close(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2], atol=1e-2)


def test_pictures_and_what_callbacks_see_are_the_same(ours: Any, theirs: Any) -> None:
    seen: list[Any] = []

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, float(timestep), sorted(tensors)))
        return {}

    options = {"num_inference_steps": 2, "output_type": "np", "callback_on_step_end": look}
    names = ["latents", "prompt_embeds"]
    z = noise((32, 8, 8), [5])
    found = theirs("a red apple", latents=z, callback_on_step_end_tensor_inputs=names, **options).images
    wanted = ours("a red apple", latents=z, callback_on_step_end_tensor_inputs=names, **options).images
    assert abs(found - wanted).max() <= 1 / 255
    begins = ours.schedule.times(2)[:-1] * 1000
    assert seen[:2] == seen[2:] == [(step, float(t), names) for step, t in enumerate(begins)]


def test_memory_of_a_plan_is_forgotten_where_a_callback_changes_latents(
    theirs: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edits(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 0.9}

    def edits_in_place(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        tensors["latents"].mul_(0.9)
        return {}

    def copies(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"].clone()}

    plan = {"steps": 3, "velocity_below": 1.0, "memory": True}
    monkeypatch.setattr(theirs, "scheduler", upstream.TransitionScheduler(plans={"3": plan}))
    words = {"num_inference_steps": 3, "output_type": "latent", "latents": noise((32, 8, 8), [5])}
    callbacks = (None, copies, edits, edits_in_place)
    plain, copied, edited, in_place = (
        theirs("a whale", callback_on_step_end=each, **words).images for each in callbacks
    )
    assert torch.equal(plain, copied)
    assert torch.equal(edited, in_place)


def test_what_is_saved_by_one_is_loaded_by_diffusers(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    drawn = [
        pipe("a whale", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="latent").images
        for pipe in (theirs, loaded)
    ]
    torch.testing.assert_close(*drawn)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_schedulers_make_the_same_times_and_steps(name: str, upstream: Any) -> None:
    settings = {"transport": name, "shift": 1.3, "base_size": 16}
    one, other = TransitionScheduler(**settings), upstream.TransitionScheduler(**settings)
    x, F = torch.randn(2, 3, 4, 4, 4)
    for asked in ({"num_inference_steps": 5, "height": 32, "width": 16}, {"sigmas": one.time_range[::-1][:1]}):
        for each in (one, other):
            each.set_timesteps(**asked)
        torch.testing.assert_close(other.sigmas, one.sigmas)
        for t in one.timesteps:
            made = [each.step(F, t, x).prev_sample for each in (one, other)]
            torch.testing.assert_close(made[1], made[0])
            torch.testing.assert_close(other.c_noise(t), one.transport.c_noise(t / 1000))
    with pytest.raises(ValueError, match="must decrease"):
        other.set_timesteps(sigmas=[one.time_range[0], one.time_range[1]])


def test_bad_input_is_refused(theirs: Any) -> None:
    for options, words in (
        ({"height": 63}, "divisible by 8"),
        ({"prompt_embeds": torch.zeros(1, 2, 384)}, "one of `prompt`"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "callback_on_step_end_tensor_inputs"),
        ({"latents": torch.zeros(1, 32, 4, 4)}, "latents shape"),
        ({"prompt": []}, "at least one prompt"),
        ({"prompt": ["a whale"] * 4, "negative_prompt": ["red", "blue"]}, "one for each of 4 prompts, but got 2"),
        ({"negative_prompt": ["red", "blue"], "num_images_per_prompt": 2}, "one for each of 1 prompts, but got 2"),
        ({"negative_prompt_embeds": torch.zeros(2, 3, 384)}, "one for each of 1 prompts, but got 2"),
        ({"negative_prompt": 5}, "`negative_prompt` has to be of type"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` has to be a finite number from 0 but is nan"),
        ({"guidance_scale": -1.0}, "`guidance_scale` has to be a finite number from 0 but is -1"),
        ({"num_inference_steps": 0}, "`num_inference_steps` has to be at least 1 but is 0"),
        ({"sigmas": []}, "`sigmas` has to hold at least one time"),
        ({"timesteps": [5000, 500]}, "from 0.0 to 1000.0 but begins with 5000.0 and ends with 500.0"),
    ):
        with pytest.raises(ValueError, match=words):
            theirs(**{"prompt": "a whale", "num_inference_steps": 1, **options})


@pytest.mark.parametrize("name", TRANSPORTS)
@given(data=st.data())
def test_times_beyond_those_of_the_transport_are_refused(name: str, upstream: Any, data: st.DataObject) -> None:
    scheduler = upstream.TransitionScheduler(name)
    low, high = scheduler.t_min, scheduler.t_max
    scheduler.set_timesteps(sigmas=[float(np.float32(high)), (low + high) / 2])  # rounded to float32 they are in it
    assert float(scheduler.sigmas.max()) <= np.float32(high)
    beyond = data.draw(st.floats(1e-3, 10) | st.floats(-10, -1e-3)) * (high - low)
    with pytest.raises(ValueError, match="has to be in the range"):
        scheduler.set_timesteps(sigmas=[beyond + (high if beyond > 0 else low)])


def test_guidance_that_a_call_began_without_cannot_be_raised(theirs: Any) -> None:
    def raise_it(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 3.0
        return {}

    words = {"negative_prompt": "red", "num_inference_steps": 2, "output_type": "latent"}
    with pytest.raises(ValueError, match="cannot be guided later"):
        theirs("a whale", guidance_scale=1.0, callback_on_step_end=raise_it, **words)


def test_a_blank_negative_prompt_is_none(theirs: Any) -> None:
    plain, blank, other = (
        theirs(
            "a whale", num_inference_steps=2, output_type="latent", negative_prompt=negative,
            generator=torch.Generator().manual_seed(0),
        ).images
        for negative in (None, [" "], "red")
    )  # fmt: skip
    assert torch.equal(plain, blank)
    assert not torch.allclose(plain, other, atol=1e-3)


def test_nothing_of_anystep_is_imported() -> None:
    for path in (FOLDER / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("anystep")], path


def test_its_own_tests_pass(upstream: Any, tiny_text_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of `tests/pipelines/transition` but for the mixin of diffusers' suite, which is in no package."""
    import transformers

    stand_ins = {
        "testing_utils": {
            "enable_full_determinism": lambda: None,
            "require_peft_backend": lambda test: test,
        },
        "pipelines.pipeline_params": dict.fromkeys(
            ("TEXT_TO_IMAGE_BATCH_PARAMS", "TEXT_TO_IMAGE_IMAGE_PARAMS", "TEXT_TO_IMAGE_PARAMS"), frozenset()
        ),
        "pipelines.test_pipelines_common": {"PipelineTesterMixin": type("Mixin", (), {})},
    }
    for name in ("suite", "suite.pipelines", "suite.pipelines.transition"):
        package = types.ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    for name, content in stand_ins.items():
        module = types.ModuleType(f"suite.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_text_models["t5"])
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    path = FOLDER / "tests" / "pipelines" / "transition" / "test_transition.py"
    spec = importlib.util.spec_from_file_location("suite.pipelines.transition.test_transition", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    assert suite.countTestCases() == 5
    result = unittest.TextTestRunner(verbosity=0).run(suite)
    assert result.wasSuccessful()


def test_registrations_fit_the_diffusers_that_is_installed(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("apply", FOLDER / "apply.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    package = Path(diffusers.__file__).parent
    for name, lines in module.REGISTRATIONS.items():
        once = module.registered((package / name).read_text("utf-8"), lines, name)
        ast.parse(once)
        assert module.registered(once, lines, name) == once
        assert all(new in [row.strip() for row in once.split("\n")] for new in lines.values())
    with pytest.raises(SystemExit, match="no source of diffusers"):
        module.apply(tmp_path)


@pytest.mark.slow
def test_a_clone_that_it_was_applied_to_loads_and_draws(theirs: Any, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(diffusers.__file__).parent, tmp_path / "clone" / "src" / "diffusers", ignore=ignored)
    command = [sys.executable, str(FOLDER / "apply.py"), str(tmp_path / "clone")]
    for _ in range(2):
        subprocess.run(command, check=True)
    theirs.save_pretrained(tmp_path / "model")
    code = f"""
import sys
sys.modules["anystep"] = None
import diffusers, torch
assert diffusers.__file__.startswith({str(tmp_path)!r})
from diffusers import DiffusionPipeline, TransitionPipeline, TransitionScheduler, TransitionTransformer2DModel
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "model")!r})
assert type(pipe) is TransitionPipeline
pipe("a whale", num_inference_steps=1).images[0].save({str(tmp_path / "whale.png")!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "clone" / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (tmp_path / "whale.png").stat().st_size > 100
