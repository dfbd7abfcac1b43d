"""`integrations/comfyui`: the folder as ComfyUI loads it, and workflows that draw what the pipeline draws."""

import copy
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_contract import Interrupted, ProgressBar, SaveImage, run

import anystep

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
WORKFLOW: dict[str, Any] = json.loads((FOLDER / "workflows" / "any-step-api.json").read_text())


def changed(**inputs: Any) -> dict[str, Any]:
    """The workflow that is shipped, with other inputs of its sampler."""
    workflow = copy.deepcopy(WORKFLOW)
    workflow["3"]["inputs"].update(inputs)
    return workflow


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return anystep.load("builtin", "cpu").pipeline


def test_the_workflow_draws_the_images_of_the_pipeline(comfy_nodes: dict[str, Any], pipeline: Any) -> None:
    ProgressBar.seen.clear()
    done = run(WORKFLOW, comfy_nodes)
    wanted = pipeline(
        "a red apple on a blue background", num_inference_steps=4, seeds=[0, 1, 2, 3], num_images_per_prompt=4,
        output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(done["3"][0]["samples"], wanted, rtol=1e-5, atol=1e-5)
    pictures = torch.from_numpy(pipeline._show(wanted, "np"))
    assert (SaveImage.saved[-1] - pictures).abs().max() <= 1 / 255 + 1e-6
    assert ProgressBar.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_negatives_times_and_images_reach_the_pipeline(comfy_nodes: dict[str, Any], pipeline: Any) -> None:
    model, caption = pipeline, "a whale"
    encode, sampler = comfy_nodes["AnystepEncode"]().encode, comfy_nodes["AnystepSampler"]()
    positive, negative = encode(model, caption)[0], encode(model, "blue")[0]
    given = {"seed": 5, "steps": 3, "guidance": 2.0, "width": 96, "height": 64, "batch_size": 1, "plan": "uniform"}
    common = {"height": 64, "width": 96, "guidance_scale": 2.0, "seeds": [5], "output_type": "latent"}
    image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    for inputs, options in (
        ({"negative": negative}, {"num_inference_steps": 3, "plan": "uniform", "negative_prompt": "blue"}),
        ({"negative": encode(model, " ")[0]}, {"num_inference_steps": 3, "plan": "uniform"}),
        ({"sigmas": torch.tensor([1.0, 0.4, 0.0])}, {"sigmas": [1.0, 0.4]}),
        (
            {"image": 1.2 * image - 0.1, "denoise": 0.5},
            {
                "num_inference_steps": 3,
                "plan": "uniform",
                "strength": 0.5,
                "image": (1.2 * image - 0.1).clamp(0, 1).movedim(-1, 1),
            },
        ),
        (
            {"image": image, "denoise": 0.5},
            {"num_inference_steps": 3, "plan": "uniform", "image": image.movedim(-1, 1), "strength": 0.5},
        ),
    ):
        found = sampler.sample(model, positive, **given, **inputs)[0]["samples"]
        wanted = pipeline(caption, **common, **options).images
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_blank_text_is_the_empty_condition(comfy_nodes: dict[str, Any], pipeline: Any) -> None:
    ((states, more),) = comfy_nodes["AnystepEncode"]().encode(pipeline, "")[0]
    given = {"seed": 5, "steps": 2, "guidance": 1.0, "width": 64, "height": 64, "batch_size": 1, "plan": "model"}
    found = comfy_nodes["AnystepSampler"]().sample(pipeline, [[states, more]], **given)[0]["samples"]
    empty = pipeline.encode_prompt("a whale", do_classifier_free_guidance=True)
    wanted = pipeline(
        prompt_embeds=empty.negative_prompt_embeds, prompt_attention_mask=empty.negative_prompt_attention_mask,
        num_inference_steps=2, guidance_scale=1.0, seeds=[5], output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def joined(one: Any, other: Any) -> Any:
    """ConditioningConcat of ComfyUI, which copies what else a condition says."""
    return [[torch.cat((states, other[0][0]), 1), more.copy()] for states, more in one]


def averaged(one: Any, other: Any) -> Any:
    """ConditioningAverage of ComfyUI, in equal parts."""
    (states, more), second = one[0], other[0][0][:, : one[0][0].shape[1]]
    return [[(states + torch.nn.functional.pad(second, (0, 0, 0, states.shape[1] - second.shape[1]))) / 2, more.copy()]]


@pytest.mark.parametrize("way", [joined, averaged])
def test_what_was_made_of_the_empty_condition_is_not_empty(
    comfy_nodes: dict[str, Any], pipeline: Any, way: Any
) -> None:
    encode, sample = comfy_nodes["AnystepEncode"]().encode, comfy_nodes["AnystepSampler"]().sample
    positive, blank, other = (encode(pipeline, text)[0] for text in ("a whale", "", "blue"))
    call = (5, 1, 2.0, 64, 64, 1, "uniform")
    plain = sample(pipeline, positive, *call)[0]["samples"]
    assert torch.equal(sample(pipeline, positive, *call, negative=averaged(blank, blank))[0]["samples"], plain)
    found = sample(pipeline, positive, *call, negative=way(blank, other))[0]["samples"]
    wanted = pipeline(
        "a whale", negative_prompt_embeds=way(blank, other)[0][0], num_inference_steps=1, guidance_scale=2.0,
        plan="uniform", seeds=[5], output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (found - plain).abs().max() > 0.01


def test_classes_are_drawn_away_from_a_class(comfy_nodes: dict[str, Any], tiny_classes: Path) -> None:
    model = anystep.TransitionClassPipeline.from_pretrained(tiny_classes)
    encode, sample = comfy_nodes["AnystepEncode"]().encode, comfy_nodes["AnystepSampler"]().sample
    ant, bee, blank = (encode(model, text)[0] for text in ("ant", "bee", " "))
    call = (5, 2, 3.0, 8, 8, 1, "uniform")
    common = {"num_inference_steps": 2, "guidance_scale": 3.0, "plan": "uniform", "seeds": [5], "output_type": "latent"}
    for negative, options in ((bee, {"negative_prompt": "bee"}), (blank, {}), (None, {})):
        found = sample(model, ant, *call, negative=negative)[0]["samples"]
        torch.testing.assert_close(found, model("ant", **common, **options).images, rtol=1e-5, atol=1e-5)
    for positive, message in ((ant + bee, "2 conditions were combined"), (blank, "blank text is no class to draw")):
        with pytest.raises(ValueError, match=message):
            sample(model, positive, *call)


def test_models_below_the_folder_of_models_are_offered(
    comfy_nodes: dict[str, Any], comfy_models: Path, tiny_classes: Path
) -> None:
    shutil.copytree(tiny_classes, comfy_models / "anystep" / "insects")
    assert comfy_nodes["AnystepLoader"].INPUT_TYPES()["required"]["name"] == (["builtin", "insects"],)
    workflow = changed(width=8, height=8, batch_size=2, steps=2, guidance=1.5)
    workflow["1"]["inputs"]["name"], workflow["2"]["inputs"]["text"] = "insects", "bee"
    done = run(workflow, comfy_nodes)
    wanted = anystep.TransitionClassPipeline.from_pretrained(tiny_classes)(
        "bee", num_inference_steps=2, guidance_scale=1.5, seeds=[0, 1], num_images_per_prompt=2, output_type="latent"
    ).images
    torch.testing.assert_close(done["3"][0]["samples"], wanted, rtol=1e-5, atol=1e-5)


def test_the_button_that_interrupts_ends_sampling_at_the_next_step(comfy_nodes: dict[str, Any]) -> None:
    sys.modules["comfy.model_management"].interrupt_current_processing()
    with pytest.raises(Interrupted):
        run(WORKFLOW, comfy_nodes)


def test_bad_input_is_one_line(comfy_nodes: dict[str, Any], pipeline: Any) -> None:
    for inputs, words in (({"steps": 0}, "steps: 0 is out of 1 to"), ({"plan": "best"}, "value not in list")):
        with pytest.raises(ValueError, match=words):
            run(changed(**inputs), comfy_nodes)
    sample, one = comfy_nodes["AnystepSampler"]().sample, [torch.zeros(1, 2, 384), {}]
    with pytest.raises(ValueError, match="size 64x68: both sides must be multiples of 8"):
        sample(pipeline, [one], 0, 1, 1.0, 64, 68, 1, "model")
    for sigmas in ([1.0, 0.75, 0.5], [0.0], []):
        with pytest.raises(ValueError, match="expected two or more that end at 0"):
            sample(pipeline, [one], 0, 1, 1.0, 64, 64, 1, "model", sigmas=torch.tensor(sigmas))
    with pytest.raises(ValueError, match=r"denoise 0\.2: sigmas say where to begin"):
        sample(
            pipeline, [one], 0, 1, 1.0, 64, 64, 1, "model", sigmas=torch.tensor([1.0, 0.0]),
            image=torch.zeros(1, 64, 64, 3), denoise=0.2,
        )  # fmt: skip
    with pytest.raises(ValueError, match="2 conditions were combined"):
        sample(pipeline, [one, one], 0, 1, 1.0, 64, 64, 1, "model")


def test_the_workflow_of_the_page_is_that_of_the_api(comfy_nodes: dict[str, Any]) -> None:
    page = json.loads((FOLDER / "workflows" / "any-step.json").read_text())
    sampler = comfy_nodes["AnystepSampler"].INPUT_TYPES()
    links = {number: (str(source), place) for number, source, place, *_ in page["links"]}
    for number, source, place, target, slot, kind in page["links"]:
        one, other = (next(each for each in page["nodes"] if each["id"] == end) for end in (source, target))
        assert one["outputs"][place]["type"] == other["inputs"][slot]["type"] == kind
        assert number in one["outputs"][place]["links"]
        assert other["inputs"][slot]["link"] == number
    found: dict[str, Any] = {}
    for node in page["nodes"]:
        declared = comfy_nodes[node["type"]].INPUT_TYPES()
        values, inputs = list(node["widgets_values"]), {}
        for name, (kind, *more) in {**declared["required"], **declared.get("optional", {})}.items():
            if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING"):
                inputs[name] = values.pop(0)
                if more and more[0].get("control_after_generate"):
                    values.pop(0)
        assert not values, node["type"]
        inputs |= {each["name"]: list(links[each["link"]]) for each in node["inputs"] if each["link"] is not None}
        found[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    for name in ("denoise", "guide_from", "guide_to"):  # as they are where nobody says
        assert found["3"]["inputs"].pop(name) == sampler["optional"][name][1]["default"]
    assert found == WORKFLOW
