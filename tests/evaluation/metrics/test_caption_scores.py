"""Images and captions in one space."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor

from anystep.conditioning import load_text_encoder
from anystep.errors import InputError
from anystep.evaluation.extractors.registry import load_extractor
from anystep.evaluation.metrics import caption_scores as alignment
from anystep.evaluation.metrics.caption_scores import AlignmentHeads, CLIPScore, train_alignment


@pytest.fixture(scope="module")
def trained(pooled: Path) -> AlignmentHeads:
    """On small pictures and features of colour alone, in seconds."""
    return train_alignment(load_extractor(str(pooled), allow_code=True), size=16, steps=300, batch=64)


@pytest.mark.slow
def test_heads_learn_which_caption_belongs_to_an_image(trained: AlignmentHeads, tmp_path: Path) -> None:
    recall = trained.recall
    assert recall is not None
    assert recall.captions > 200
    assert recall.at_1 <= recall.at_5
    assert recall.at_5 > 5 * 5 / recall.captions  # far above chance, though colours alone tell little
    trained.save(tmp_path / "heads.safetensors")
    again = AlignmentHeads.load(tmp_path / "heads.safetensors")
    assert again.recall == recall
    features = torch.rand(3, 48)
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    captions = ["a whale on a blue background", "a red apple", "a tractor"]
    # the file has half precision
    torch.testing.assert_close(
        again(images, features, captions), trained(images, features, captions), rtol=2e-3, atol=0.02
    )
    assert trained(images, features, captions).abs().max() <= 100


def test_a_score_is_the_cosine_of_image_and_caption() -> None:
    torch.manual_seed(0)
    heads = AlignmentHeads(6, 384, 5).eval()
    features, captions = torch.randn(2, 6), ["a whale", "a red apple"]
    states = load_text_encoder().mean_states(captions)
    expected = 100 * torch.cosine_similarity(heads.image(features), heads.text(states))
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    torch.testing.assert_close(heads(images, features, captions), expected)
    with pytest.raises(InputError, match="read 6 features, the extractor gives 7"):
        heads(images, torch.randn(2, 7), captions)


def test_missing_and_other_heads_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no alignment heads at .*train-alignment"):
        AlignmentHeads.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="no alignment heads"):
        AlignmentHeads.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_clip_score_of_a_folder(
    kind: str, tmp_path: Path, tiny_text_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random CLIP, saved here; its processor is replaced, as the files of its tokenizer are not to be had."""
    config = getattr(transformers, f"{kind}Config")(
        text_config={"vocab_size": 16, "max_position_embeddings": 12, "hidden_size": 16, "intermediate_size": 32,
                     "num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": 2, "projection_dim": 8},
        vision_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 16, "patch_size": 8, "projection_dim": 8},
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / "clip")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_text_models["bert"])

    def process(text: list[str], images: list[Tensor], **options: object) -> transformers.BatchEncoding:
        tokens = tokenizer(text, **options)
        pixels = torch.stack([image.float() / 255 for image in images])
        return transformers.BatchEncoding(
            {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "pixel_values": pixels}
        )

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *arguments, **options: process)
    score = CLIPScore(str(tmp_path / "clip"))
    digests = {score.digest, CLIPScore(str(tmp_path / "clip")).digest}
    for mean in (0.5, 0.4):
        monkeypatch.setattr(process, "image_processor", SimpleNamespace(to_dict=lambda: {"mean": mean}), raising=False)  # noqa: B023
        digests.add(CLIPScore(str(tmp_path / "clip")).digest)
    assert len(digests) == 3
    assert score.name == "clip_score_clip"
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    captions = ["a whale", "a red apple " * 20]  # the second is longer than the model has positions
    values = score(images, torch.zeros(2, 1), captions)
    assert values.shape == (2,)
    assert (values >= 0).all()
    assert (values <= 100).all()
    torch.testing.assert_close(score(images[:1], torch.zeros(1, 1), captions[:1]), values[:1])
    assert alignment.CLIPScore is CLIPScore
