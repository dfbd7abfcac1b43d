"""The text encoders of a pipeline as one: what they give is what the pipeline gives its network."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from anystep.conditioning import CachedTextEncoder, Conditioner, PipelineTextEncoder, load_caption_encoder
from anystep.conditioning.text import States
from anystep.errors import InputError
from anystep.files import read_json, write_json

PROMPTS = ["a red apple", "a whale on a blue background"]


def encoder_of(folder: Path) -> PipelineTextEncoder:
    encoder = load_caption_encoder(folder)
    assert isinstance(encoder, PipelineTextEncoder)
    assert isinstance(encoder, Conditioner)
    return encoder


def test_stable_diffusion_3_and_flux_read_a_pooled_state_before_those_of_tokens(baselines: dict[str, Path]) -> None:
    for name in ("sd3", "flux"):
        pipeline: Any = DiffusionPipeline.from_pretrained(str(baselines[name]))
        options: dict[str, Any] = {"prompt_2": None}
        if name == "sd3":
            options |= {"prompt_3": None, "do_classifier_free_guidance": False}
        with torch.no_grad():
            found = pipeline.encode_prompt(PROMPTS, **options)
        states, pooled = (found[0], found[2]) if name == "sd3" else found[:2]
        encoder = encoder_of(baselines[name])
        condition, mask = encoder(PROMPTS)
        assert mask is None
        assert condition.shape == (2, 1 + states.shape[1], encoder.width)
        assert torch.equal(condition[:, 1:, : states.shape[2]], states)
        assert torch.equal(condition[:, 0, : pooled.shape[1]], pooled)
        assert encoder.null(3)[0].shape == (3, *condition.shape[1:])


def test_sana_rewrites_captions_but_not_the_empty_one(baselines: dict[str, Path]) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(str(baselines["sana"]))
    encoder = encoder_of(baselines["sana"])
    condition, mask = encoder(PROMPTS)
    assert mask is not None
    instruction = signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    states, masks, null, null_mask = pipeline.encode_prompt(PROMPTS, complex_human_instruction=instruction)
    torch.testing.assert_close(condition, states)
    assert torch.equal(mask, masks.bool())
    empty, empty_mask = encoder.null(2)
    torch.testing.assert_close(empty, null)
    assert torch.equal(empty_mask, null_mask.bool())


def test_they_are_loaded_when_needed_and_released(baselines: dict[str, Path], tmp_path: Path) -> None:
    encoder = encoder_of(baselines["sd3"])
    cached = CachedTextEncoder(encoder, tmp_path / "text.sqlite")
    assert encoder._pipeline is None
    cached.fill(PROMPTS)
    assert encoder._pipeline is not None
    encoder.release()
    first, _ = cached(PROMPTS)
    assert encoder._pipeline is None
    torch.testing.assert_close(first, encoder(PROMPTS)[0], rtol=1e-3, atol=1e-3)
    assert encoder.fingerprint == encoder_of(baselines["sd3"]).fingerprint != encoder_of(baselines["flux"]).fingerprint


def test_captions_may_be_shorter_and_stable_diffusion_3_may_lack_its_third_encoder(
    baselines: dict[str, Path], tmp_path: Path
) -> None:
    short = load_caption_encoder(f"{baselines['sd3']}?max_sequence_length=5")
    for wrong in ("", "0", "-1", "many"):
        with pytest.raises(InputError, match="max_sequence_length"):
            load_caption_encoder(f"{baselines['sd3']}?max_sequence_length={wrong}")
    assert short(PROMPTS)[0].shape[1] == encoder_of(baselines["sd3"])(PROMPTS)[0].shape[1] - 256 + 5
    folder = shutil.copytree(baselines["sd3"], tmp_path / "sd3")
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {**index, "text_encoder_3": [None, None], "tokenizer_3": [None, None]})
    pipeline: Any = DiffusionPipeline.from_pretrained(str(folder), text_encoder_3=None, tokenizer_3=None)
    with torch.no_grad():
        states = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)[0]
    assert torch.equal(encoder_of(folder)(PROMPTS)[0][:, 1:, : states.shape[2]], states)


def test_one_thread_at_a_time_encodes(baselines: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, within, most = PipelineTextEncoder(baselines["sd3"]), list[str](), list[int]()

    def encode(captions: list[str], length: int) -> States:
        within.append(captions[0])
        most.append(len(within))
        time.sleep(0.01)
        within.remove(captions[0])
        return torch.zeros(1, 2, 32), None

    monkeypatch.setattr(encoder, "_states", encode)
    with ThreadPoolExecutor(4) as threads:
        assert len(list(threads.map(lambda number: encoder([str(number)]), range(8)))) == 8
    assert most == [1] * 8


def test_a_pipeline_without_text_encoders_is_refused(baselines: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(baselines["sd3"], tmp_path / "sd3")
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", {key: [None, None] if key[:4] == "text" else index[key] for key in index})
    with pytest.raises(InputError, match="has no text encoder"):
        load_caption_encoder(folder)
