"""Models of transformers that judge images: object detection, colours by CLIP, questions answered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from anystep.errors import InputError
from anystep.evaluation.benchmarks.detections import COLOURS, Detection

# GenEval's names of COCO's classes, where they differ
GENEVAL_NAMES = {"remote": "tv remote", "mouse": "computer mouse", "keyboard": "computer keyboard"}


def pretrained(kind: Any, name_or_path: str, purpose: str) -> Any:
    """A transformers class loaded by hub id or folder. Raises InputError in one line where that fails."""
    try:
        return kind.from_pretrained(name_or_path)
    except Exception as error:  # transformers raises many kinds; all mean it is not usable
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        folder = Path(name_or_path)
        if folder.is_dir() and not list(folder.glob("*.safetensors")):
            reason = f"there is no model.safetensors in {folder}; put the weights there"
        raise InputError(f"no {purpose} at {name_or_path!r}: {reason}") from error


class TransformersDetector:
    """An object detection model of transformers (DETR, RT-DETR, ...) by id or folder, on COCO's classes."""

    def __init__(self, name_or_path: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        self.name = name_or_path
        self._model = pretrained(AutoModelForObjectDetection, name_or_path, "object detector").eval().to(device)
        self._processor = pretrained(AutoImageProcessor, name_or_path, "image processor of the object detector")

    @torch.no_grad()
    def __call__(self, image: Image.Image, least: float) -> list[Detection]:
        inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
        sizes = [(image.height, image.width)]
        (answer,) = self._processor.post_process_object_detection(self._model(**inputs), least, sizes)
        found = []
        for score, label, box in zip(answer["scores"], answer["labels"], answer["boxes"], strict=True):
            name = self._model.config.id2label[int(label)]
            left, top, right, bottom = box.tolist()
            found.append(Detection(GENEVAL_NAMES.get(name, name), float(score), (left, top, right, bottom)))
        return found


class CLIPColours:
    """The nearest of GenEval's ten colours to a cropped object, by a CLIP model of transformers.

    GenEval masks the background with the detector's segmentation; a detector of boxes has none, so the box is cropped.
    """

    def __init__(self, name_or_path: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModel, AutoProcessor

        self.name = name_or_path
        self._model = pretrained(AutoModel, name_or_path, "CLIP model").eval().to(device)
        self._processor = pretrained(AutoProcessor, name_or_path, "processor of the CLIP model")

    @torch.no_grad()
    def __call__(self, image: Image.Image, found: Sequence[Detection]) -> list[str]:
        named = []
        for each in found:
            left, top, right, bottom = (round(value) for value in each.box)
            crop = image.crop((left, top, max(left + 1, right), max(top + 1, bottom)))
            phrases = [f"a photo of a {colour} {each.name}" for colour in COLOURS]
            inputs = self._processor(text=phrases, images=[crop], return_tensors="pt", padding=True)
            scores = self._model(**inputs.to(self._model.device)).logits_per_image[0]
            named.append(COLOURS[int(scores.argmax())])
        return named


class VisualQuestions:
    """Yes or no to questions about an image, by a visual question answering model of transformers (BLIP, ViLT)."""

    def __init__(self, name_or_path: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

        self.name = name_or_path
        self._model = pretrained(AutoModelForVisualQuestionAnswering, name_or_path, "question answering model")
        self._model = self._model.eval().to(device)
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
