"""Images in tar files of the WebDataset layout, with captions (`txt`, `json`) or a class (`cls`) beside each."""

from collections.abc import Sequence
from io import BytesIO

from anystep.data.captions import caption_lines, caption_texts
from anystep.data.example import BaseSource, BrokenExample, Example, digest_of, numbered_key, printable
from anystep.data.folders import kind_of
from anystep.data.images import image_suffixes, read_example
from anystep.data.shard_index import UNKNOWN
from anystep.data.shards import Shards
from anystep.data.sizing import Size
from anystep.data.tar_files import BESIDE
from anystep.data.tar_folder import CLASSES, read_beside
from anystep.errors import InputError
from anystep.files import decode_text, parse_json

PROBED = 16  # records that are looked at to see whether captions are in their `json`


class WebDatasetSource(BaseSource):
    """Map-style: any example by its number. Raises `InputError` where there is no image in the tars.

    Classes are named by the lines of `classes.txt` beside the tars, else by their numbers.
    """

    def __init__(self, url: str, size: Size) -> None:
        super().__init__()
        self.shards, self.size = Shards(url), size
        fields, index = self.shards.fields, self.shards.index
        self._images = [field for field in fields if f".{field}" in image_suffixes()]
        if not self._images:
            raise InputError(f"shards {url!r} hold no images, but {', '.join(fields) or 'nothing'}")
        self.passed_over.update_from(self.shards.passed_over)
        for column, field in enumerate(fields):
            if field not in self._images and f".{field}" not in BESIDE:
                count = int((index.sizes[:, column] != UNKNOWN).sum())
                self.passed_over.add(f"{kind_of(f'a.{field}')} in tars", f"*.{field}", count)
        names = read_beside(url, CLASSES)
        count = max(0, int(index.labels.max()) + 1) if len(self) else 0
        self.class_names: Sequence[str] = [str(number) for number in range(count)]
        if names:
            self.class_names = [printable(line.strip()) for line in names.splitlines() if line.strip()]
        if count > len(self.class_names):
            raise InputError(f"shards {url!r}: class {count - 1}, but {CLASSES} names {len(self.class_names)}")
        self._captioned = "txt" in fields or self._json_captions()

    def _json_captions(self) -> bool:
        """Whether captions are to be expected in the `json` of a record."""
        for number in range(min(PROBED, len(self)) if "json" in self.shards.fields else 0):
            try:
                if caption_texts(parse_json(self.shards.read(number, ["json"])["json"], "")):
                    return True
            except (BrokenExample, KeyError, ValueError):
                continue
        return False

    def __len__(self) -> int:
        return len(self.shards)

    def _read(self, index: int) -> Example:
        where = self.shards.where(index)
        found = self.shards.read(index)
        content = next((found[field] for field in self._images if field in found), None)
        if content is None:
            raise BrokenExample(f"{where}: no image, but {', '.join(found) or 'nothing'}")
        label = int(self.shards.index.labels[index])
        if label < UNKNOWN:
            text = found.get("cls", b"")[:20].decode("utf-8", "replace").strip()
            raise BrokenExample(
                f"{where}: cls {text!r} is not the number of a class, counted from 0; {CLASSES} is where names go"
            )
        try:
            captions = self._captions(found)
            if not captions and label == UNKNOWN and (self._captioned or "cls" in self.shards.fields):
                raise ValueError("no caption" if self._captioned else "no class")
        except ValueError as error:  # an InputError is one
            raise BrokenExample(f"{where}: {error}") from None
        known = None if label == UNKNOWN else label
        return read_example(BytesIO(content), self.size, numbered_key(index), captions, known, where)

    @staticmethod
    def _captions(found: dict[str, bytes]) -> tuple[str, ...]:
        """Raises ValueError where what should be a caption is none."""
        if "txt" in found:
            return caption_lines(decode_text(found["txt"], "its caption"))
        if "json" not in found:
            return ()
        return caption_texts(parse_json(decode_text(found["json"], "its json"), "its json"))

    def stamp(self, index: int) -> str:
        return self.shards.stamp(index)

    def digest(self, index: int) -> str:
        if not self.shards.folder.local:  # it would be read twice over a network
            return self.stamp(index)
        try:
            return digest_of(int(self.shards.index.labels[index]), *self.shards.read(index).items())
        except BrokenExample as error:
            return digest_of(str(error))
