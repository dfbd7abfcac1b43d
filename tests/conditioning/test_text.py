"""Text encoders: the shipped one and any of transformers', whatever a caption's batch mates are."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from anystep.conditioning import Conditioner, TextEncoder, load_text_encoder
from anystep.errors import InputError

CAPTIONS = ["whale", "a red apple on a blue background", "", "a red whale"]
KINDS = ["bert", "t5", "gemma3"]


def check_rows_equal_single_captions(encoder: TextEncoder, captions: list[str]) -> None:
    states, mask = encoder(captions)
    assert mask is not None
    assert states.shape == (*mask.shape, encoder.width)
    for row, caption in enumerate(captions):
        alone, alone_mask = encoder([caption])
        assert alone_mask is None
        assert mask[row].tolist() == [place < alone.shape[1] for place in range(mask.shape[1])]
        torch.testing.assert_close(states[row, mask[row]], alone[0], atol=1e-5, rtol=0)


def test_the_shipped_encoder_gives_one_state_a_token(minilm: TextEncoder) -> None:
    assert isinstance(minilm, Conditioner)
    states, mask = minilm(["a red apple", "a blue whale"])
    assert states.shape == (2, 5, 384)  # [CLS] and [SEP] around three words
    assert states.dtype == torch.float32
    assert mask is None
    assert states.isfinite().all()


def test_a_shipped_encoder_without_one_of_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "encoder.layer.0.attention.self.query.bias"
    monkeypatch.setattr(
        "safetensors.torch.load_file",
        lambda path: {name: tensor for name, tensor in load_file(path).items() if name != missing},
    )
    with pytest.raises(InputError, match=f"1 weights are missing, the first {missing}"):
        load_text_encoder()


def test_the_shipped_encoder_gives_padded_captions_what_it_gives_single_ones(minilm: TextEncoder) -> None:
    check_rows_equal_single_captions(minilm, CAPTIONS)


def test_the_shipped_encoder_knows_what_words_mean(minilm: TextEncoder) -> None:
    def mean(caption: str) -> Tensor:
        return minilm([caption])[0][0].mean(0)

    whale = mean("a whale")
    assert cosine_similarity(whale, mean("a dolphin"), dim=0) > 0.5 > cosine_similarity(whale, mean("a tractor"), dim=0)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_transformers_load_from_their_folder(tiny_text_models: dict[str, Path], kind: str) -> None:
    encoder = load_text_encoder(tiny_text_models[kind])
    assert (encoder.width, encoder.name) == (16, str(tiny_text_models[kind]))
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    check_rows_equal_single_captions(encoder, CAPTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_condition_is_the_empty_caption(tiny_text_models: dict[str, Path], kind: str) -> None:
    encoder = load_text_encoder(tiny_text_models[kind])
    null, mask = encoder.null(3)
    assert null.shape[0] == 3
    assert null.shape[1] >= 1
    assert mask is None
    for row in null:
        torch.testing.assert_close(row, encoder([""])[0][0])


@pytest.mark.parametrize(("kind", "length"), [("bert", 12), ("t5", 256), ("gemma3", 256)])
def test_long_captions_are_cut(tiny_text_models: dict[str, Path], kind: str, length: int) -> None:
    encoder = load_text_encoder(tiny_text_models[kind])
    assert encoder.max_length == length
    assert encoder(["red apple " * 300])[0].shape == (1, length, 16)
    short = TextEncoder(encoder.tokenizer, encoder.model, "short", max_length=4)
    states, mask = short(["a red apple on blue", "whale"])
    assert states.shape[1] == 4
    assert mask is not None
    assert mask[0].all()
    counts = [len(encoder.tokenizer(caption)["input_ids"]) for caption in ("red apple", "a red apple on blue")]
    exact = TextEncoder(encoder.tokenizer, encoder.model, "exact", max_length=counts[0])
    assert exact.cut(["red apple", "a red apple on blue", "red"]) == ["a red apple on blue"]
    assert exact.cut([]) == []


def test_a_tokenizer_without_padding_pads_with_its_end_token(tiny_text_models: dict[str, Path]) -> None:
    encoder = load_text_encoder(tiny_text_models["t5"])
    expected = encoder(CAPTIONS)[0]
    encoder.tokenizer.pad_token, encoder.tokenizer.eos_token = None, "</s>"
    again = TextEncoder(encoder.tokenizer, encoder.model, "again")
    states, mask = again(CAPTIONS)
    assert mask is not None
    torch.testing.assert_close(states[mask], expected[mask])


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_follows_every_weight(tiny_text_models: dict[str, Path], kind: str) -> None:
    one, again, other = (load_text_encoder(tiny_text_models[kind]) for _ in range(3))
    again(["a red apple", "whale"])  # what the tokenizer remembers of a call is no part of it
    assert one.fingerprint == again.fingerprint
    weights = [weight for name, weight in other.model.named_parameters() if "pooler" not in name]
    for weight in weights:
        changed = TextEncoder(other.tokenizer, other.model, "changed")
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-2
            assert changed.fingerprint != one.fingerprint
            weight.view(-1)[-1] -= 1e-2


def test_the_fingerprint_follows_the_tokenizer_and_not_the_folder(
    tiny_text_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_text_models["bert"], tmp_path / "copy")
    expected = load_text_encoder(tiny_text_models["bert"]).fingerprint
    assert load_text_encoder(folder).fingerprint == expected
    words = folder / "tokenizer.json"
    words.write_text(words.read_text().replace('"apple"', '"pear"'))
    assert load_text_encoder(folder).fingerprint != expected


@pytest.mark.parametrize("name", ["nowhere", "/nowhere", "nobody/nothing"])
def test_an_unknown_encoder_is_one_line_that_names_it(name: str) -> None:
    with pytest.raises(InputError, match=f"no text encoder at '{name}': ") as caught:
        load_text_encoder(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "no weights", "no tokenizer", "not JSON"])
def test_a_damaged_encoder_is_one_line_that_names_it(
    tiny_text_models: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    folder = shutil.copytree(tiny_text_models["bert"], tmp_path / "bert")
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=str(folder)) as caught:
        load_text_encoder(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_of_something_else_is_refused(tiny_codec: Path) -> None:
    with pytest.raises(InputError, match="no text encoder at"):
        load_text_encoder(tiny_codec)


def test_padding_of_the_null_caption_attends_to_nothing(tiny_text_models: dict[str, Path]) -> None:
    encoder = load_text_encoder(tiny_text_models["gemma3"])
    null, _ = encoder.null(1)
    padded = encoder.padded_null(5)
    torch.testing.assert_close(padded[:, : null.shape[1]], null, atol=1e-6, rtol=0)
    assert torch.equal(encoder.null(1)[0], null)  # nothing is left behind
    for layer in encoder.model.layers:  # then no token reads another
        layer.self_attn.o_proj.weight.zero_()
    padding = torch.full((1, 1), encoder.tokenizer.pad_token_id)
    alone = encoder.model(input_ids=padding).last_hidden_state
    for place in range(null.shape[1], 5):
        torch.testing.assert_close(padded[:, place : place + 1], alone, atol=1e-6, rtol=0)
