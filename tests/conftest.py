"""One thread, a repeatable hypothesis profile, and caches that vanish with the tests."""

import json
import os
import tempfile
import warnings
from pathlib import Path

os.environ["ANYSTEP_CACHE"] = tempfile.mkdtemp(prefix="anystep-test-")
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch
from browsers import INSTALL, NEEDED, find_chromium
from torch import Tensor, nn

torch.set_num_threads(1)
hypothesis.settings.register_profile("anystep", deadline=None, derandomize=True, max_examples=15)
hypothesis.settings.load_profile("anystep")


def left_out() -> bool:
    """Whether tests of the page are, since there is no browser to drive and nobody insists on them."""
    return find_chromium() is None and not os.environ.get(NEEDED)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    of_the_page = [item for item in items if item.get_closest_marker("browser")]
    if of_the_page and left_out():
        config.hook.pytest_deselected(items=of_the_page)
        items[:] = [item for item in items if item not in of_the_page]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if left_out():
        terminalreporter.write_line(f"NOT TESTED: the studio's page, since there is no Chromium: {INSTALL}", red=True)


@pytest.fixture(scope="session")
def numbers() -> Path:
    """The folder of reference numbers."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def tiny_codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random AutoencoderDC of factor 4 with latent statistics."""
    from anystep.training.codec_config import CodecModelConfig, CodecRecipe
    from anystep.training.train_codec import build_autoencoder

    torch.manual_seed(0)
    sizes = CodecModelConfig(latent_channels=4, widths=(8, 8, 16), encoder_depths=(0, 1, 1), decoder_depths=(0, 1, 1))
    autoencoder = build_autoencoder(CodecRecipe(codec=sizes))
    autoencoder.register_to_config(latents_mean=[0.1, 0.0, -0.2, 0.3], latents_std=[0.5, 1.0, 2.0, 0.7])
    folder = tmp_path_factory.mktemp("codec")
    autoencoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a text-to-image pipeline that draws 16 x 16 pixels and has not learned anything."""
    from anystep.codecs import load_codec
    from anystep.models import build_transformer
    from anystep.pipelines.scheduler import TransitionScheduler
    from anystep.pipelines.transition import TransitionPipeline

    torch.manual_seed(0)
    network = build_transformer("t2i-test", sample_size=4, text_width=384)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    pipeline = TransitionPipeline(
        transformer=network,
        scheduler=TransitionScheduler(base_size=16),
        vae=load_codec(tiny_codec).autoencoder,  # type: ignore[attr-defined]
        text_encoder_name="builtin",
        concepts=["red apple", "whale", "tractor"],
        guidance_scale=1.5,
        license="none",
    )
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a class-conditional pipeline of 8 x 8 pixels and three classes."""
    from anystep.models import build_transformer
    from anystep.pipelines.classes import TransitionClassPipeline
    from anystep.pipelines.scheduler import TransitionScheduler

    torch.manual_seed(0)
    network = build_transformer("c2i-test", in_channels=3, num_classes=3)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("classes")
    pipeline = TransitionClassPipeline(network, TransitionScheduler(base_size=8), class_names=["ant", "bee", "cat"])
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def captioned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve 16 x 16 images of one colour, each with a caption beside it."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for number in range(12):
        Image.new("RGB", (16, 16), (20 * number, 255 - 20 * number, 128)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"colour number {number}\n")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-six captioned images of six shapes."""
    from PIL import Image

    folder, sizes = tmp_path_factory.mktemp("pictures"), ((16, 16), (32, 8), (24, 8), (8, 24), (16, 8), (8, 8))
    for number in range(36):
        image = Image.new("RGB", sizes[number % len(sizes)], (7 * number, 255 - 7 * number, 128))
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"colour number {number}\n")
    return folder


@pytest.fixture(scope="session")
def tiny_text_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a random BERT, T5 and Gemma 3 of width 16, each with a tokenizer of eight words."""
    import tokenizers
    import transformers

    def tokenizer(template: str, specials: list[str], **options: str) -> transformers.PreTrainedTokenizerFast:
        words = [*specials, "[UNK]", "a", "red", "blue", "apple", "whale", "on", "background", "flat"]
        core = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]")
        )
        core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=[(word, words.index(word)) for word in specials]
        )
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, unk_token="[UNK]", pad_token=specials[0], **options
        )

    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = {
        "bert": (
            tokenizer("[CLS] $A [SEP]", ["[PAD]", "[CLS]", "[SEP]"]),
            transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=32, max_position_embeddings=12)),
        ),
        "t5": (
            tokenizer("$A </s>", ["<pad>", "</s>"]),
            transformers.T5EncoderModel(
                transformers.T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
            ),
        ),
        "gemma3": (
            tokenizer("<bos> $A", ["<pad>", "<bos>"], padding_side="left"),
            transformers.Gemma3TextModel(
                transformers.Gemma3TextConfig(
                    **sizes, intermediate_size=32, num_key_value_heads=1, head_dim=8, max_position_embeddings=512
                )
            ),
        ),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in made}
    for name, parts in made.items():
        for part in parts:
            part.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def gemma(tiny_text_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Gemma 3 of width 24, which the text network of the reference numbers reads."""
    from transformers import AutoTokenizer, Gemma3TextConfig, Gemma3TextModel

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=16, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("gemma")
    Gemma3TextModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_text_models["gemma3"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def converted(
    numbers: Path, tiny_codec: Path, gemma: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder of each network of the reference numbers, by the command."""
    from helpers import REFERENCE_NETWORKS, reference_options

    from anystep.cli import main

    work, folders = tmp_path_factory.mktemp("converted"), {}
    for name in REFERENCE_NETWORKS:
        folders[name] = work / name
        words = ["--weights", str(numbers / f"{name}.weights.safetensors"), "--vae", str(tiny_codec)]
        words += ["--options", str(reference_options(numbers, work, name)), "--out", str(folders[name])]
        assert main(["convert", "reference", *words, *(["--text-encoder", str(gemma)] if name == "t2i" else [])]) == 0
    return folders


class Pooled(nn.Module):
    """Means over a 4 x 4 grid of each channel, 48 features."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, (4, 4)).flatten(1)


@pytest.fixture(scope="session")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript file of it."""
    path = tmp_path_factory.mktemp("extractor") / "pooled.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Pooled()).save(str(path))
    return path


RADIO = """
import torch
from torch import nn
dependencies = ["torch"]
class Model(nn.Module):
    patch_size = 2
    def __init__(self):
        super().__init__()
        self.cut = nn.Conv2d(3, 5, 2, 2)
    def forward(self, x):
        found = self.cut(x).flatten(2).transpose(1, 2)
        return found.mean(1), found
def radio_model(version=None, **options):
    torch.manual_seed(0)
    return Model()
"""


@pytest.fixture(scope="session")
def image_encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a random DINOv2, one with registers, a SigLIP and a RADIO checkout."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    siglip = {**sizes, "intermediate_size": 32}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    made = {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**sizes)),
        "registers": transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes)),
        "siglip": transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=siglip)),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in [*made, "radio"]}
    for name, model in made.items():
        model.save_pretrained(folders[name])
    normalised = {"image_processor_type": "SiglipImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folders["siglip"] / "preprocessor_config.json").write_text(json.dumps(normalised))
    (folders["radio"] / "hubconf.py").write_text(RADIO)
    return folders


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred and forty images of ten classes of stripes, in the layout of Fashion-MNIST."""
    import gzip

    import numpy as np

    folder = tmp_path_factory.mktemp("fashion")
    generator = np.random.default_rng(0)
    for prefix, count in (("train", 240), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 10
        rows = (np.arange(28)[None, :, None] * (labels[:, None, None] + 1) // 7) % 2
        images = (rows * 200 + generator.integers(0, 50, (count, 28, 28))).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
            header = bytes((0, 0, 8, array.ndim)) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            (folder / name).write_bytes(gzip.compress(header + array.tobytes()))
    return folder


@pytest.fixture(scope="session")
def baselines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of small random pipelines of diffusers, by the names of `diffusers_pipelines.MAKERS`."""
    import diffusers_pipelines

    folder = tmp_path_factory.mktemp("baselines")
    for name in diffusers_pipelines.MAKERS:
        diffusers_pipelines.make(name).save_pretrained(folder / name)
    return {name: folder / name for name in diffusers_pipelines.MAKERS}
