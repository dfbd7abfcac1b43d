"""Models of transformers that judge images: object detection, colours by CLIP, questions answered."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from anystep.errors import InputError
from anystep.evaluation.benchmarks.detections import COLOURS, Detection
from anystep.pretrained import caption_options, pretrained

# GenEval's names of COCO's classes, where detectors call them otherwise: COCO's own, and those of Pascal VOC
GENEVAL_NAMES = {
    "remote": "tv remote", "mouse": "computer mouse", "keyboard": "computer keyboard", "aeroplane": "airplane",
    "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv", "pottedplant": "potted plant",
    "diningtable": "dining table",
}  # fmt: skip


class TransformersDetector:
    """An object detection model of transformers (DETR, RT-DETR, ...) by id or folder, on COCO's classes."""

    def __init__(self, name_or_path: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        self.name = name_or_path
        self._model = pretrained(AutoModelForObjectDetection, name_or_path, "object detector").eval().to(device)
        self._processor = pretrained(AutoImageProcessor, name_or_path, "image processor of the object detector")
        self.classes = {GENEVAL_NAMES.get(name, name) for name in self._model.config.id2label.values()}

    def check_knows(self, wanted: set[str]) -> None:
        """Raises InputError for classes that it can never find: they would all count as missing."""
        unknown = sorted(wanted - self.classes)
        if unknown:
            raise InputError(f"detector {self.name!r} does not know {', '.join(unknown)}: choose one of COCO's classes")

    @torch.no_grad()
    def __call__(self, image: Image.Image, min_score: float) -> list[Detection]:
        inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
        sizes = [(image.height, image.width)]
        (answer,) = self._processor.post_process_object_detection(self._model(**inputs), min_score, sizes)
        found = []
        for score, label, box in zip(answer["scores"], answer["labels"], answer["boxes"], strict=True):
            name = self._model.config.id2label[int(label)]
            left, top, right, bottom = box.tolist()
            found.append(Detection(GENEVAL_NAMES.get(name, name), float(score), (left, top, right, bottom)))
        return found


class CLIPColours:
    """The nearest of GenEval's ten colours to a cropped object, by a CLIP model of transformers.

    GenEval masks the background with the detector's segmentation; a detector of boxes has none, so the box is cropped.
    As there, a colour is the mean of the embeddings of three phrases.
    """

    TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")

    def __init__(self, name_or_path: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModel, AutoProcessor

        self._model = pretrained(AutoModel, name_or_path, "CLIP model").eval().to(device)
        self._processor = pretrained(AutoProcessor, name_or_path, "processor of the CLIP model")
        self._known: dict[str, Tensor] = {}

    def _embed_colours(self, name: str) -> Float[Tensor, "colours width"]:
        """Of each colour of such an object; kept, since objects come back."""
        if name not in self._known:
            phrases = [form.format(colour=colour, name=name) for colour in COLOURS for form in self.TEMPLATES]
            options = caption_options(self._model)
            inputs = self._processor(text=phrases, return_tensors="pt", **options).to(self._model.device)
            each = normalize(pooled(self._model.get_text_features(**inputs)), dim=-1)
            self._known[name] = normalize(each.unflatten(0, (len(COLOURS), -1)).mean(1), dim=-1)
        return self._known[name]

    @torch.no_grad()
    def __call__(self, image: Image.Image, found: Sequence[Detection]) -> list[str]:
        named = []
        for each in found:
            left, top, right, bottom = (round(value) for value in each.box)
            crop = image.crop((left, top, max(left + 1, right), max(top + 1, bottom)))
            inputs = self._processor(images=[crop], return_tensors="pt").to(self._model.device)
            seen = normalize(pooled(self._model.get_image_features(**inputs)), dim=-1)
            named.append(COLOURS[int((self._embed_colours(each.name) @ seen[0]).argmax())])
        return named


def pooled(features: Any) -> Tensor:
    """The embedding, from a transformers that gives it plainly or with everything else."""
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


class VisualQuestions:
    """Yes or no to questions about an image, by a visual question answering model of transformers (BLIP, ViLT)."""

    def __init__(self, name_or_path: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        kind, what = AutoModelForVisualQuestionAnswering, "question answering model"
        self._model = pretrained(kind, name_or_path, what).eval().to(device)
        self._processor = pretrained(AutoProcessor, name_or_path, "processor of the question answering model")

    @torch.no_grad()
    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[bool]:
        answers = []
        for question in questions:
            inputs = self._processor(images=image, text=question, return_tensors="pt").to(self._model.device)
            if self._model.can_generate():
                text = self._processor.decode(self._model.generate(**inputs)[0], skip_special_tokens=True)
            else:
                text = self._model.config.id2label[int(self._model(**inputs).logits.argmax())]
            answers.append(text.strip().lower().startswith("yes"))
        return answers
