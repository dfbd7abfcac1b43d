"""Plans of images: exact counts, memory against what tensors really take, and a refusal that says what would fit."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anystep.cli import build_parser, main
from anystep.codecs import AutoencoderCodec, load_codec
from anystep.data_sheets import DEVICES
from anystep.errors import InputError
from anystep.models.cost import LiveMemoryTracker
from anystep.models.presets import PRESETS, build_transformer
from anystep.pipelines import plan
from anystep.pipelines.load import load
from anystep.pipelines.plan import ModelSpec, check_fits, plan_generation


def test_parameters_are_those_of_the_model() -> None:
    plan = plan_generation(ModelSpec.of("t2i-xl"), 1024, 1024, 8)
    assert (plan.parameters, plan.tokens, plan.evaluations) == (864_978_080, 1024, 8)
    assert 300e6 < plan.codec_parameters < 340e6  # DC-AE f32 is published with 323M
    builtin = plan_generation(ModelSpec.of("builtin"), 128, 64, 4, guided=True)
    assert (builtin.parameters, builtin.tokens, builtin.evaluations) == (6_579_232, 128, 4)


def test_a_loaded_model_is_planned_as_its_folder(tiny_model: Path) -> None:
    loaded, named = ModelSpec.of(load(tiny_model)), ModelSpec.of(str(tiny_model))
    assert (loaded.network, loaded.factor, loaded.multiple) == (named.network, named.factor, named.multiple)
    assert plan_generation(loaded, 16, 16, 2) == plan_generation(named, 16, 16, 2)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan(name: str) -> None:
    model = ModelSpec.of(name)
    side = int(model.network["sample_size"]) * model.factor
    assert plan_generation(model, side, side, 1).flops > 0


def test_attention_is_counted_and_grows_with_the_square_of_the_tokens_and_memory_with_the_tokens() -> None:
    model = ModelSpec.of("builtin")
    small, large = (plan_generation(model, side, side, 1, caption_tokens=8) for side in (512, 1024))
    assert large.tokens == 4 * small.tokens
    assert small.attention_flops == 4 * small.tokens**2 * 192 * 7 + 4 * small.tokens * 8 * 192 * 7
    assert large.attention_flops == pytest.approx(16 * small.attention_flops, rel=0.01)
    assert large.sampling_bytes == pytest.approx(4 * small.sampling_bytes, rel=0.05)  # no N x N matrix is stored
    few = plan_generation(model, 1024, 1024, 1, key_grid=32, caption_tokens=8)
    assert few.attention_flops < large.attention_flops / 10


def test_memory_is_that_of_real_tensors() -> None:
    """Of a forward and of decoding in tiles, within 15 %."""
    model = ModelSpec.of("builtin")
    plan = plan_generation(model, 1280, 192, 1, caption_tokens=8)
    network = build_transformer("t2i-emoji").eval()
    x, t, text = torch.randn(1, 32, 24, 160), torch.rand(1), torch.randn(1, 8, 384)
    with torch.no_grad(), LiveMemoryTracker([*network.parameters(), x, t, text]) as living:
        network(x, t, t, text)
    assert plan.sampling_bytes == pytest.approx(living.peak, rel=0.15)
    codec = load_codec("builtin", torch.device("cpu"))
    from anystep.codecs import to_uint8
    from anystep.codecs.tiling import decode_tiled

    with torch.no_grad(), LiveMemoryTracker([*codec.autoencoder.parameters(), x]) as decoding:  # type: ignore[attr-defined]
        to_uint8(decode_tiled(codec, x))
    assert plan.decode_bytes == pytest.approx(decoding.peak, rel=0.15)


def test_thousands_of_tiles_are_planned_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, decoded = AutoencoderCodec.decode, []

    def counted(codec: AutoencoderCodec, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(latents.shape)
        assert len(decoded) <= 2
        return decode(codec, latents)

    monkeypatch.setattr(AutoencoderCodec, "decode", counted)
    model = ModelSpec.of("builtin")
    small, large = (plan_generation(model, side, side, 1, key_grid=8, caption_tokens=8) for side in (8192, 65_536))
    assert large.decode_bytes == pytest.approx(64 * small.decode_bytes, rel=0.1)
    assert large.decode_flops == pytest.approx(64 * small.decode_flops, rel=0.1)


def test_what_does_not_fit_is_refused_with_the_number_and_what_would() -> None:
    model = ModelSpec.of("builtin")
    whole = plan_generation(model, 1024, 512, 2).peak_bytes
    assert check_fits(model, 1024, 512, 2, 1.01 * whole).peak_bytes == whole
    message = r"size 1024x512 takes 0\.\d\d GB, there are 0\.\d\d GB: \d+x\d+ would fit"
    with pytest.raises(InputError, match=message) as caught:
        check_fits(model, 1024, 512, 2, 0.6 * whole)
    width, height = (int(side) for side in str(caught.value).split()[-3].split("x"))
    assert width / height == pytest.approx(2, rel=0.05)
    assert 0.4 * whole < plan_generation(model, width, height, 2).peak_bytes <= 0.6 * whole
    with pytest.raises(InputError, match="not even the smallest image would fit"):
        check_fits(model, 64, 64, 1, 1e6)
    with pytest.raises(InputError, match="size 65x64: both sides must be multiples of 8"):
        plan_generation(model, 65, 64, 1)
    with pytest.raises(InputError, match="key_grid 0: expected a whole number from 2"):
        plan_generation(model, 64, 64, 1, key_grid=0)


@pytest.mark.parametrize(
    ("size", "fits"), [((2**20, 2**20), (13768, 13768)), ((2**20, 2**20), (8, 8)), ((4096, 1024), (1600, 400))], ids=str
)
def test_the_largest_image_that_fits_is_told_to_the_multiple(
    size: tuple[int, int], fits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    area = lambda model, width, height, steps: SimpleNamespace(peak_bytes=width * height)  # noqa: E731
    monkeypatch.setattr(plan, "plan_generation", area)
    with pytest.raises(InputError, match=f": {fits[0]}x{fits[1]} would fit"):
        check_fits(ModelSpec.of("builtin"), *size, 1, float(fits[0] * fits[1]))


def test_the_command_plans_images_and_training(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "t2i-xl", "--size", "2048x1024", "--on", "H100"]
    assert main([*words, "--steps", "8"]) == 0
    shown = capsys.readouterr().out
    for part in ("864,978,080", "2,048 in one sequence", "8 of 2.", "GB while decoding", "text encoder", "s an image"):
        assert part in shown
    assert main([*words, "--train", "--batch", "64", "--devices", "64", "--parallel", "fsdp", "--checkpointing"]) == 0
    shown = capsys.readouterr().out
    assert "2,025 an image" in shown
    assert "communication" in shown
    assert main(["plan", "--model", "nothing"]) == 2
    assert main(["plan", "--train", "--model", "builtin"]) == 2
    assert main(["plan", "--steps", "0"]) == 2
    for option in (["--batch", "3"], ["--devices", "2"], ["--parallel", "fsdp"], ["--checkpointing"]):
        assert main([*words, *option]) == 2
        assert f"{option[0]}" in capsys.readouterr().err
    assert main([*words, "--train", "--steps", "8"]) == 2
    assert main(["plan", "--model", "t2i-test", "--utilisation", "0.5"]) == 2
    assert "this machine's is measured" in capsys.readouterr().err
    for name in DEVICES:
        build_parser().parse_args(["plan", "--on", name])
