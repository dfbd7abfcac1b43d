"""How well an image fits its caption: with a CLIP model, or offline with a pair of small heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from anystep.conditioning import TextEncoder, load_text_encoder
from anystep.data.art import ArtSource
from anystep.data.images import to_pixels
from anystep.errors import InputError
from anystep.evaluation.extractors.registry import FeatureExtractor, extract, load_extractor
from anystep.evaluation.finite import check_finite
from anystep.evaluation.metrics.base import Images
from anystep.evaluation.small_networks import fit, load_network, save_half
from anystep.fingerprint import encoder_digest, tokenizer_digest, weights_digest
from anystep.pretrained import caption_options, pretrained
from anystep.seeds import mixed
from anystep.weights import BUILTIN, shipped


class CLIPScore:
    """100 x the cosine of CLIP's image and text embeddings, not below zero (arXiv 2104.08718, without its 2.5).

    The model is a hub id or folder of transformers. Raises `InputError`: there is none.
    """

    def __init__(self, name_or_path: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModel, AutoProcessor

        self._model = pretrained(AutoModel, name_or_path, "CLIP model").eval().to(device)
        self._processor = pretrained(AutoProcessor, name_or_path, "processor of the CLIP model")
        self.name = f"clip_score_{Path(name_or_path).name}"
        self.note = f"{self.name} is 100 x the cosine of the embeddings of {name_or_path}, not below zero."
        tokenizer, reader = (getattr(self._processor, name, None) for name in ("tokenizer", "image_processor"))
        words = None if tokenizer is None else tokenizer_digest(tokenizer)
        self.digest = encoder_digest(self._model, words, None if reader is None else reader.to_dict())

    @torch.no_grad()
    def __call__(
        self, images: Images, features: Float[Tensor, "batch features"], captions: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        device = self._model.device
        inputs = self._processor(
            text=list(captions), images=list(images.cpu()), return_tensors="pt", **caption_options(self._model)
        ).to(device)
        answer = self._model(**inputs)
        cosine = (normalize(answer.image_embeds, dim=-1) * normalize(answer.text_embeds, dim=-1)).sum(-1)
        return 100 * cosine.clamp(min=0).cpu()


@dataclass(frozen=True)
class Recall:
    """How often the right caption is among the nearest, of so many held-out captions."""

    at_1: float
    at_5: float
    captions: int


class AlignmentHeads(nn.Module):
    """Two linear maps, of image features and of mean caption states, into one space (arXiv 2103.00020, figure 3).

    Its score is 100 x the cosine there: comparable with itself only, and never called CLIP score.
    """

    name = "alignment"

    def __init__(self, image_width: int, text_width: int, width: int = 128) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(image_width, width, bias=False), nn.Linear(text_width, width, bias=False)
        self.image_mean: Tensor
        self.image_std: Tensor
        self.register_buffer("image_mean", torch.zeros(image_width))
        self.register_buffer("image_std", torch.ones(image_width))
        self.temperature = nn.Parameter(torch.tensor(2.6))  # log of 1 / 0.07
        self.recall: Recall | None = None
        self.encoder: TextEncoder | None = None

    @property
    def note(self) -> str:
        recall = self.recall
        assert recall is not None
        return (
            f"alignment is no CLIP score: small heads on the extractor's features. Of {recall.captions} captions of "
            f"things they never saw they find the right one first for {recall.at_1:.0%} of the images, among five for "
            f"{recall.at_5:.0%}."
        )

    @property
    def digest(self) -> str:
        return weights_digest(self)

    def embed_images(self, features: Float[Tensor, "batch image_width"]) -> Float[Tensor, "batch width"]:
        return normalize(self.image((features - self.image_mean) / self.image_std), dim=-1)

    def embed_captions(self, states: Float[Tensor, "batch text_width"]) -> Float[Tensor, "batch width"]:
        return normalize(self.text(states), dim=-1)

    @torch.no_grad()
    def __call__(
        self, images: Images, features: Float[Tensor, "batch features"], captions: Sequence[str]
    ) -> Float[Tensor, " batch"]:
        if features.shape[1] != len(self.image_mean):
            raise InputError(
                f"the alignment heads read {len(self.image_mean)} features, the extractor gives {features.shape[1]}: "
                "use the extractor that they were trained on"
            )
        self.encoder = self.encoder or load_text_encoder()
        texts = self.embed_captions(self.encoder.mean_states(captions))
        return 100 * (self.embed_images(features.cpu()) * texts).sum(-1)

    def save(self, path: Path) -> None:
        """Weights in half precision, and the held-out recall beside them."""
        assert self.recall is not None
        save_half(self, path, {name: str(value) for name, value in vars(self.recall).items()})

    @classmethod
    def load(cls, spec: str | Path = BUILTIN) -> "AlignmentHeads":
        """`builtin` (for EfficientNet-Lite0), or a file. Raises InputError: a missing or damaged one."""
        path = shipped("alignment.safetensors") if spec == BUILTIN else Path(spec)

        def build(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> AlignmentHeads:
            heads = cls(state["image.weight"].shape[1], state["text.weight"].shape[1], len(state["text.weight"]))
            heads.recall = Recall(float(metadata["at_1"]), float(metadata["at_5"]), int(metadata["captions"]))
            if not 0 <= heads.recall.at_1 <= heads.recall.at_5 <= 1:
                raise ValueError(f"a recall of {heads.recall.at_1} and {heads.recall.at_5}")
            return heads

        return load_network(path, "alignment heads", "anystep train-alignment", build)


def train_alignment(
    extractor: FeatureExtractor | None = None,
    size: int = 64,
    steps: int = 1500,
    batch: int = 256,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> AlignmentHeads:
    """Heads trained on the built-in art by contrast within a batch, with their recall on held-out concepts."""
    extractor, encoder = extractor or load_extractor(device=device), load_text_encoder()
    encoder.model.to(device)
    torch.manual_seed(mixed(seed))

    def encode(split: str) -> tuple[Tensor, Tensor, list[str]]:
        source = ArtSource(size, split=split)  # type: ignore[arg-type]
        chosen = range(0, len(source), 4)  # three grounds of each drawing
        features = []
        for start in range(0, len(chosen), 64):
            examples = [source[index] for index in chosen[start : start + 64]]
            features.append(extract(extractor, [torch.stack([to_pixels(each.image) for each in examples])]))
        captions = [source[index].captions[0] for index in chosen]
        states = torch.cat([encoder.mean_states(captions[s : s + 64]).cpu() for s in range(0, len(captions), 64)])
        check_finite(torch.cat(features), f"extractor {extractor.name}", chosen)
        return torch.cat(features), states, captions

    features, states, _ = encode("train")
    heads = AlignmentHeads(features.shape[1], states.shape[1])
    heads.image_mean.copy_(features.mean(0))
    heads.image_std.copy_(features.std(0) + 1e-3)
    heads.to(device)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def loss() -> Tensor:
        rows = torch.randint(len(features), (batch,))
        images, texts = heads.embed_images(features[rows].to(device)), heads.embed_captions(states[rows].to(device))
        similarity = heads.temperature.exp() * images @ texts.T
        target = torch.arange(batch, device=device)
        return (cross_entropy(similarity, target) + cross_entropy(similarity.T, target)) / 2

    fit(heads, schedule, steps, loss)
    held_features, held_states, held_captions = encode("held_out")
    with torch.no_grad():
        similarity = heads.embed_images(held_features) @ heads.embed_captions(held_states).T
    rank = (similarity > similarity.diagonal()[:, None]).sum(1)
    heads.recall = Recall(float((rank < 1).float().mean()), float((rank < 5).float().mean()), len(held_captions))
    return heads
