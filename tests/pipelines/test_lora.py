"""LoRA on a pipeline: loaded, weighed, fused, saved, and what refuses to be loaded."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PROMPTS, assert_latents_close, offload_layers
from helpers import draw_latents as draw
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import anystep
from anystep import TransitionPipeline
from anystep.codecs.codec import AutoencoderCodec
from anystep.errors import InputError
from anystep.models.lora import LORA_FILE, adapter_parameters, add_lora, lora_of, write_lora
from anystep.pipelines.lora import find_lora
from anystep.sampling import guided, sample


def loaded(folder: Path) -> Any:
    return anystep.load(folder, "cpu").pipeline


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of two adapters of the tiny model that change what it draws."""
    files = []
    for seed, (rank, alpha, targets) in enumerate([(2, 8.0, ["to_q", "to_v"]), (3, 3.0, ["to_k", "mlp.up"])]):
        network = loaded(tiny_model).transformer
        add_lora(network, rank, alpha, targets)
        torch.manual_seed(seed)
        for value in adapter_parameters(network).values():
            torch.nn.init.normal_(value, std=0.3)
        files.append(tmp_path_factory.mktemp("adapter") / LORA_FILE)
        write_lora(lora_of(network), files[-1])
    return files


def test_adapters_are_loaded_weighed_and_unloaded(tiny_model: Path, adapters: list[Path]) -> None:
    pipeline = loaded(tiny_model)
    plain = draw(pipeline)
    pipeline.load_lora_weights(adapters[0])
    pipeline.load_lora_weights(adapters[1].parent, adapter_name="second")
    assert pipeline.get_list_adapters() == {"transformer": ["default_0", "second"]}
    drawn = {}
    for name, weights in (("first", ["default_0"]), ("second", ["second"]), ("both", ["default_0", "second"])):
        pipeline.set_adapters(weights)
        assert pipeline.get_active_adapters() == weights
        drawn[name] = draw(pipeline)
    assert len({tuple(each.flatten()[:20].tolist()) for each in [plain, *drawn.values()]}) == 4
    pipeline.set_adapters(["default_0", "second"], [1.0, 0.0])
    assert_latents_close(draw(pipeline), drawn["first"])
    pipeline.delete_adapters("default_0")
    pipeline.set_adapters("second")
    assert_latents_close(draw(pipeline), drawn["second"])
    pipeline.disable_lora()
    assert torch.equal(draw(pipeline), plain)
    pipeline.unload_lora_weights()
    assert torch.equal(draw(pipeline), plain)


def test_fused_draws_as_unfused_and_is_taken_out_again(tiny_model: Path, adapters: list[Path], tmp_path: Path) -> None:
    pipeline = loaded(tiny_model)
    plain = draw(pipeline)
    pipeline.load_lora_weights(adapters[0])
    expected = draw(pipeline)
    pipeline.fuse_lora()
    assert pipeline.num_fused_loras == 1
    torch.testing.assert_close(draw(pipeline), expected, atol=1e-5, rtol=1e-5)
    pipeline.unfuse_lora()
    torch.testing.assert_close(draw(pipeline), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"carries the adapter 'default_0'.*fuse_lora\(\).*save_lora_weights"):
        pipeline.save_pretrained(tmp_path / "refused")
    pipeline.fuse_lora(lora_scale=0.5)
    half = draw(pipeline)
    assert not torch.allclose(half, expected, atol=1e-2)
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    torch.testing.assert_close(draw(loaded(tmp_path / "fused")), half, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(half, plain, atol=1e-2)


def test_what_was_fused_in_part_counts_as_before_once_it_is_taken_out(tiny_model: Path, adapters: list[Path]) -> None:
    pipeline = loaded(tiny_model)
    pipeline.load_lora_weights(adapters[0])
    whole, half = draw(pipeline), draw(pipeline, attention_kwargs={"scale": 0.5})
    for again in (False, True):
        pipeline.fuse_lora(lora_scale=0.5)
        if again:  # what is merged stays as it is
            pipeline.fuse_lora(lora_scale=0.5)
            pipeline.set_adapters("default_0", 3.0)
        torch.testing.assert_close(draw(pipeline), half, atol=1e-5, rtol=1e-5)
        pipeline.unfuse_lora()
        pipeline.set_adapters("default_0")
        torch.testing.assert_close(draw(pipeline), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_an_adapter_takes_the_place_of_another_with_its_strength(
    tiny_model: Path, adapters: list[Path], tmp_path: Path, padded: bool
) -> None:
    pipeline, fresh = loaded(tiny_model), loaded(tiny_model)
    if padded:
        pipeline.enable_lora_hotswap(target_rank=5, check_compiled="ignore")
    pipeline.load_lora_weights(adapters[0], adapter_name="a")
    tensors = {name: value[:, :1] if "lora_B" in name else value[:1] for name, value in
               fresh.lora_state_dict(adapters[0]).items() if "to_q" in name}  # fmt: skip
    other = {"metadata": {"lora_alpha": 5, "alpha_pattern": {"blocks.0.attn.to_q": 3}}}
    fresh.load_lora_weights(tensors, **other)
    expected = draw(fresh)
    pipeline.load_lora_weights(tensors, adapter_name="a", hotswap=True, **other)
    assert_latents_close(draw(pipeline), expected)
    half = draw(pipeline, attention_kwargs={"scale": 0.5})
    assert_latents_close(half, draw(fresh, attention_kwargs={"scale": 0.5}))
    pipeline.set_adapters("a", 1.0)
    assert_latents_close(draw(pipeline), expected)
    pipeline.save_lora_weights(tmp_path, pipeline.transformer)
    fresh.unload_lora_weights()
    fresh.load_lora_weights(tmp_path)
    assert_latents_close(draw(fresh), expected)


def test_an_adapter_that_cannot_take_the_place_of_another_changes_nothing(
    tiny_model: Path, adapters: list[Path]
) -> None:
    pipeline = loaded(tiny_model)
    for name, file in zip("ab", adapters, strict=True):
        pipeline.load_lora_weights(file, adapter_name=name)
    pipeline.set_adapters(["a", "b"], [0.5, 1.5])
    expected = draw(pipeline)
    more = {**pipeline.lora_state_dict(adapters[0]), **pipeline.lora_state_dict(adapters[1])}
    for name, message in (
        ("b", r"changes '.*', which the adapter 'b' does not: load it without hotswap=True"),
        ("c", r"adapter_name 'c': expected that of an adapter to swap \(a, b\)"),
        (None, r"adapter_name None: expected that of an adapter"),
    ):
        with pytest.raises(InputError, match=message):
            pipeline.load_lora_weights(more, adapter_name=name, hotswap=True)
    assert pipeline.get_active_adapters() == ["a", "b"]
    assert torch.equal(draw(pipeline), expected)
    pipeline.fuse_lora()
    with pytest.raises(InputError, match=r"adapter_name 'b': that adapter is merged.*unfuse_lora\(\) first"):
        pipeline.load_lora_weights(adapters[1], adapter_name="b", hotswap=True)


def test_a_call_scales_adapters_for_itself_alone(tiny_model: Path, adapters: list[Path]) -> None:
    pipeline = loaded(tiny_model)
    plain = draw(pipeline)
    pipeline.load_lora_weights(adapters[0])
    whole = draw(pipeline)
    pipeline.set_adapters("default_0", 0.5)
    half = draw(pipeline)
    pipeline.set_adapters("default_0")
    assert torch.equal(draw(pipeline, attention_kwargs={"scale": 0.0}), plain)
    assert torch.equal(draw(pipeline, attention_kwargs={"scale": 0.5}), half)
    assert torch.equal(draw(pipeline, attention_kwargs={"scale": 1.0}), whole)
    assert torch.equal(draw(pipeline, attention_kwargs={}), whole)
    pipeline.set_adapters("default_0", 0.25)
    assert torch.equal(draw(pipeline, attention_kwargs={"scale": 2.0}), half)
    assert torch.equal(draw(type(pipeline).from_pipe(pipeline), attention_kwargs={"scale": 2.0}), half)


@pytest.mark.parametrize("layers", [["caption_attn.to_k", "caption_attn.to_v"], ["to_q", "to_k"]])
def test_a_callback_may_change_adapters(tiny_model: Path, layers: list[str]) -> None:
    """The steps after it are those of a call that goes on from there with such adapters."""
    pipeline = loaded(tiny_model)
    add_lora(pipeline.transformer, 2, 8.0, layers)
    for value in adapter_parameters(pipeline.transformer).values():
        torch.nn.init.normal_(value, std=0.3)
    changes = {
        "weighed": lambda pipe: pipe.set_adapters(["default"], [-0.5]),
        "off": lambda pipe: pipe.disable_lora(),
        "on": lambda pipe: pipe.enable_lora(),
        "merged": lambda pipe: pipe.fuse_lora(),
        "gone": lambda pipe: (pipe.unfuse_lora(), pipe.unload_lora_weights()),
    }
    for name, change in changes.items():
        between: list[torch.Tensor] = []

        def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
            if step == 0:
                between.append(tensors["latents"])  # noqa: B023
                change(pipe)  # noqa: B023

        times = pipeline.schedule.times(2, plan="uniform").tolist()
        found = draw(pipeline, sigmas=times[:-1], callback_on_step_end=look)
        embeds = pipeline.encode_prompt(PROMPTS)
        predict = guided(pipeline.transformer, pipeline.schedule.transport, embeds[:2], embeds[2:], 1.5, mask_text=True)
        wanted = sample(predict, pipeline.schedule.transport, between[0], times[1:]).sample
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, msg=name)


def test_a_scale_of_a_fused_adapter_is_refused(tiny_model: Path, adapters: list[Path]) -> None:
    pipeline = loaded(tiny_model)
    pipeline.load_lora_weights(adapters[0])
    pipeline.fuse_lora()
    assert torch.equal(draw(pipeline, attention_kwargs={"scale": 1.0}), draw(pipeline))
    with pytest.raises(InputError, match=r"scale 0: the LoRA is fused: unfuse_lora\(\) first"):
        draw(pipeline, attention_kwargs={"scale": 0.0})


def test_threads_with_other_scales_do_not_see_each_other(tiny_model: Path, adapters: list[Path]) -> None:
    pipeline = loaded(tiny_model)
    pipeline.load_lora_weights(adapters[0])
    scales = [0.0, 0.5, 1.0, 0.5]
    expected = [draw(pipeline, attention_kwargs={"scale": scale}) for scale in scales]
    found: dict[int, torch.Tensor] = {}

    def work(place: int) -> None:
        for _ in range(3):
            found[place] = draw(pipeline, attention_kwargs={"scale": scales[place]})

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[place], each) for place, each in enumerate(expected))

    def nested(inner: Any, *_: Any) -> dict[str, Any]:
        draw(inner, attention_kwargs={"scale": 0.5})
        return {}

    with pytest.raises(InputError, match=r"scale 0\.5: the call around this one has 1"):
        draw(pipeline, callback_on_step_end=nested)
    assert torch.equal(draw(pipeline), expected[2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": "large"}, r"attention_kwargs scale 'large': expected a number"),
        ({"scales": 1}, r"unknown attention_kwargs 'scales', did you mean scale\?"),
        ({"scale": True}, r"attention_kwargs scale True: expected a number"),
        ({"scale": 0.5}, r"no LoRA is loaded"),
    ],
)
def test_what_is_no_scale_of_a_call_is_refused(pipeline: TransitionPipeline, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(pipeline, attention_kwargs=given)


def test_what_peft_has_put_on_the_transformer_is_saved_with_its_alpha(tiny_model: Path, tmp_path: Path) -> None:
    pipeline = loaded(tiny_model)
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=7, target_modules=["to_q", "mlp.down"], init_lora_weights=False)
    pipeline.transformer.add_adapter(config)
    expected = draw(pipeline)
    pipeline.save_lora_weights(tmp_path / "whole", pipeline.transformer)
    layers = get_peft_model_state_dict(pipeline.transformer, adapter_name="default")
    said = {"transformer_lora_adapter_metadata": {"lora_alpha": 7}}
    TransitionPipeline.save_lora_weights(tmp_path / "layers", layers, weight_name="a.safetensors", **said)
    pipeline.transformer.save_lora_adapter(tmp_path / "theirs")
    given = {"safe_serialization": True, "save_function": save_file, "weight_name": "a.safetensors"}
    pipeline.save_lora_weights(tmp_path / "by theirs", pipeline.transformer, **given)
    by_theirs = load_file(tmp_path / "by theirs" / "a.safetensors")
    assert all(torch.equal(by_theirs[f"transformer.{name}"], value) for name, value in layers.items())
    for name in ("whole", "layers", "theirs"):
        again = loaded(tiny_model)
        again.load_lora_weights(tmp_path / name)
        assert torch.equal(draw(again), expected), name
    again.unload_lora_weights()
    again.load_lora_weights(again.lora_state_dict(tmp_path / "whole"), metadata={"lora_alpha": 7})
    assert torch.equal(draw(again), expected)


def test_diffusers_reads_what_is_saved(tiny_model: Path, adapters: list[Path]) -> None:
    """Its own loader, by the prefix of its files, on the network."""
    ours, theirs = loaded(tiny_model), loaded(tiny_model)
    ours.load_lora_weights(adapters[0])
    theirs.transformer.load_lora_adapter(adapters[0].parent, prefix="transformer", weight_name=LORA_FILE)
    assert torch.equal(draw(theirs), draw(ours))


def test_an_adapter_of_another_network_changes_nothing(tiny_classes: Path, adapters: list[Path]) -> None:
    pipeline = loaded(tiny_classes)
    before = draw(pipeline, ["ant"])
    with pytest.raises(InputError, match=r"is of another network: blocks\.0\.caption_attn\.to_q \(.*no such layer"):
        pipeline.load_lora_weights(adapters[0])
    assert torch.equal(draw(pipeline, ["ant"]), before)
    assert not pipeline.get_list_adapters()


def test_classes_are_adapted_too(tiny_classes: Path, tmp_path: Path) -> None:
    pipeline = loaded(tiny_classes)
    plain = draw(pipeline, ["ant", "bee"])
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    expected = draw(pipeline, ["ant", "bee"])
    pipeline.save_lora_weights(tmp_path, pipeline.transformer)
    again = loaded(tiny_classes)
    again.load_lora_weights(tmp_path)
    assert torch.equal(draw(again, ["ant", "bee"]), expected)
    assert torch.equal(draw(again, ["ant", "bee"], attention_kwargs={"scale": 0.0}), plain)


def test_files_that_are_not_there_or_not_one_are_said(tiny_model: Path, adapters: list[Path], tmp_path: Path) -> None:
    pipeline = loaded(tiny_model)
    for given, message in (
        (tmp_path, r"there is none in it; expected pytorch_lora_weights"),
        (tmp_path / "nothing", r"expected a \.safetensors file, a folder with one, or a hub id"),
        ("owner/name", r"no LoRA 'owner/name' came from the hub"),
    ):
        with pytest.raises(InputError, match=message):
            pipeline.load_lora_weights(given)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(adapters[0].read_bytes())
    with pytest.raises(InputError, match="holds 2 files"):
        find_lora(tmp_path)
    assert find_lora(tmp_path, weight_name="b.safetensors").name == "b.safetensors"
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name="a")
    with pytest.raises(InputError, match="adapter_name 'a' is taken"):
        pipeline.load_lora_weights(adapters[1], adapter_name="a")
    with pytest.raises(InputError, match=r"adapter 'b': expected the name of one that the network carries \(a\)"):
        pipeline.save_lora_weights(tmp_path, pipeline.transformer, adapter_name="b")
    with pytest.raises(InputError, match="no LoRA of a transformer"):
        pipeline.save_lora_weights(tmp_path, {})
    for wrong, message in (
        ({"weight_name": "a.bin"}, r"weight_name 'a.bin': expected a name that ends in \.safetensors"),
        ({"safe_serialization": False}, r"safe_serialization=False: pickles are not loaded again"),
    ):
        with pytest.raises(InputError, match=message):
            pipeline.save_lora_weights(tmp_path / "none", pipeline.transformer, **wrong)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("way", ["casting before", "casting after", "group", "model", "sequential"])
def test_an_adapter_goes_with_offloading_and_casting(
    way: str, tiny_model: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoencoderCodec, "fingerprint", "")  # which jaxtyping's check of the protocol computes
    plain, pipeline = loaded(tiny_model), loaded(tiny_model)
    plain.load_lora_weights(adapters[0])
    expected, atol = draw(plain), 1e-5

    def load() -> None:
        pipeline.load_lora_weights(adapters[0])

    def prepare() -> None:
        if way == "group":
            pipeline.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
        elif way == "model":
            pipeline.enable_model_cpu_offload(device="cpu")
        elif way == "sequential":
            offload_layers(pipeline)
        else:
            pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)

    last = way in ("casting after", "model", "sequential")  # diffusers puts the last two back for an accelerator
    for act in (prepare, load)[:: -1 if last else 1]:
        act()
    if "casting" in way:
        atol = 0.1
        assert pipeline.transformer.blocks[0].mlp.gate.weight.dtype == torch.float16
    torch.testing.assert_close(draw(pipeline), expected, atol=atol, rtol=atol)
    assert not torch.allclose(draw(pipeline, attention_kwargs={"scale": 0.0}), expected, atol=0.3)


def test_without_peft_one_line_says_what_to_install(
    pipeline: TransitionPipeline, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anystep.models.lora.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'anystep\[lora\]'"):
        pipeline.load_lora_weights(adapters[0])
