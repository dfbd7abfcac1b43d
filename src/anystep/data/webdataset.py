"""Images in tar files of the WebDataset layout, with captions (`txt`, `json`) or a class (`cls`) beside each."""

import json
from collections.abc import Sequence
from io import BytesIO

from anystep.data.example import BrokenExample, Example
from anystep.data.folders import caption_texts, image_suffixes, read_picture
from anystep.data.shards import UNKNOWN, Shards, read_beside
from anystep.data.sizing import Size
from anystep.errors import InputError


class WebDatasetSource:
    """Map-style: any example by its number. Raises `InputError` where there is no image in the tars.

    Classes are named by the lines of `classes.txt` beside the tars, else by their numbers.
    """

    def __init__(self, url: str, size: Size) -> None:
        self.shards, self.size = Shards(url), size
        self._images = [field for field in self.shards.fields if f".{field}" in image_suffixes()]
        if not self._images:
            raise InputError(f"shards {url!r} hold no images, but {', '.join(self.shards.fields)}")
        names = read_beside(url, "classes.txt")
        count = int(self.shards.index.labels.max()) + 1
        self.class_names: Sequence[str] = (
            [line.strip() for line in names.splitlines() if line.strip()] if names else [str(n) for n in range(count)]
        )
        if count > len(self.class_names):
            raise InputError(f"shards {url!r}: class {count - 1}, but classes.txt names {len(self.class_names)}")

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        found = self.shards.read(index)
        content = next((found[field] for field in self._images if field in found), None)
        if content is None:
            raise BrokenExample(f"{self.shards.url}, record {index}: no image")
        picture = read_picture(BytesIO(content), self.size, f"{self.shards.url}, record {index}")
        label = int(self.shards.index.labels[index])
        captions = self._captions(index, found)
        return Example(f"{index:09d}", picture.image, captions, None if label == UNKNOWN else label, *picture[1:])

    def _captions(self, index: int, found: dict[str, bytes]) -> tuple[str, ...]:
        where = f"{self.shards.url}, record {index}"
        if "txt" in found:
            try:
                lines = tuple(line.strip() for line in found["txt"].decode().splitlines() if line.strip())
            except UnicodeDecodeError:
                raise BrokenExample(f"{where}: its caption is not UTF-8") from None
            if not lines:
                raise BrokenExample(f"{where}: its caption is empty")
            return lines
        try:
            return caption_texts(json.loads(found["json"])) if "json" in found else ()
        except (ValueError, TypeError, AttributeError, StopIteration):
            return ()
