"""A user's own images: a folder of captioned images, or one subfolder for each class."""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import ExifTags, Image

from anystep.data.captions import caption_lines, read_metadata
from anystep.data.example import BaseSource, BrokenExample, Example, PassedOver, digest_of, printable
from anystep.data.images import is_image, read_example
from anystep.data.sizing import Size
from anystep.errors import InputError, is_machine_fault
from anystep.files import MARKER, check_regular, decode_text, read_bytes, read_json

SOFTWARE = ExifTags.Base.Software
METADATA = "metadata.jsonl"
NOT_READ = ("metadata.csv", "metadata.parquet")  # in which others keep the same
CAPTION_LIMIT = 2**20  # bytes of the captions of one image
MAX_OPENED = 1000  # images without a caption that are opened to see whether they are sheets of ours
SHEET = "anystep data show"  # what a contact sheet says of itself, so that it is not taken for data
# Images that Pillow alone does not read, and what does.
READ_BY_OTHERS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif reads (pip install pillow-heif)"),
    ".avif": "pillow-avif-plugin reads (pip install pillow-avif-plugin)",
    ".jxl": "pillow-jxl-plugin reads (pip install pillow-jxl-plugin)",
    **dict.fromkeys(
        (".arw", ".cr2", ".cr3", ".dng", ".erf", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"),
        "rawpy develops: save them as PNG or JPEG",
    ),
    **dict.fromkeys((".svg", ".svgz"), "resvg draws: save them as PNG"),
    **dict.fromkeys((".exr", ".hdr"), "OpenCV reads: save them as PNG"),
}  # fmt: skip


def _real(path: Path) -> tuple[int, int] | None:
    """What tells one folder from every other, by whatever name it is reached; None where it cannot be entered."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_ours(folder: Path) -> bool:
    """Whether a command of anystep made the folder."""
    return (folder / MARKER).exists() or all((folder / name).exists() for name in ("dataset.json", "index.safetensors"))


def walk(folder: Path, passed: PassedOver, entered: set[tuple[int, int] | None] | None = None) -> Iterator[str]:
    """Relative POSIX paths of the files below `folder`, also in linked folders; each real folder is entered once.

    Hidden entries, folders that anystep made and what is no regular file are counted in `passed`.

    Args:
        entered: the folders that are not to be entered again.
    """
    entered = set() if entered is None else entered
    real, linked = [""], list[str]()
    while real or linked:
        prefix = real.pop() if real else linked.pop(0)  # a folder is entered by its own name where it has one here
        path = folder / prefix
        if prefix and _is_ours(path):
            passed.add("folders that anystep made", prefix)
            continue
        if (identity := _real(path)) in entered:
            passed.add("links to folders that are read already", prefix)
            continue
        entered.add(identity)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            if is_machine_fault(error):
                raise
            passed.add("folders that may not be read", prefix or str(folder))
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                passed.add("hidden files and folders", name)
            elif entry.is_dir(follow_symlinks=False):
                real.append(f"{name}/")
            elif entry.is_symlink() and os.path.isdir(entry.path):
                linked.append(f"{name}/")
            elif os.path.exists(entry.path) and not entry.is_file():
                passed.add("FIFOs, sockets and devices", name)
            else:
                yield name


def kind_of(name: str) -> str:
    """What a file is called that is not used, by its ending."""
    suffix = PurePosixPath(name).suffix.lower()
    reader = READ_BY_OTHERS.get(suffix)
    return f"{suffix} images, which {reader}" if reader else f"{suffix or 'other'} files"


def find_images(
    folder: Path, passed: PassedOver | None = None, entered: set[tuple[int, int] | None] | None = None
) -> list[str]:
    """Relative POSIX paths of all images below `folder`, sorted; what else is there is counted in `passed`."""
    passed = PassedOver() if passed is None else passed
    files = sorted(walk(folder, passed, entered))
    for name in files:
        if not is_image(name):
            passed.add(kind_of(name), name)
    return _images_among(files, folder, passed)


def _images_among(files: list[str], folder: Path, passed: PassedOver) -> list[str]:
    images = [name for name in files if is_image(name)]
    if not images:
        held = f"; {passed.lines[0]}" if passed else ""
        raise InputError(
            f"{folder}: no image in it or below it; .png, .jpg, .webp and all else Pillow reads would do{held}"
        )
    return images


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _found(names: Iterable[str]) -> Callable[[str], str | None]:
    """Which of some names another one means: itself, or what another system writes so, by its accents and slashes."""

    def plain(name: str) -> str:
        return unicodedata.normalize("NFC", name.replace("\\", "/"))

    exact, by_plain = set(names), {plain(name): name for name in names}
    return lambda name: name if name in exact else by_plain.get(plain(name))


def _is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet of ours."""
    try:
        check_regular(path)
        with Image.open(path) as image:
            return image.getexif().get(SOFTWARE) == SHEET
    except Exception:
        return False


class _FolderSource(BaseSource):
    """Images below `folder`, keyed by relative path; a subclass finds their names and what is known of them.

    Attributes:
        wrong: why images are left out that might be read.
    """

    captions: Mapping[str, tuple[str, ...]] = {}
    labels: Mapping[str, int] = {}
    wrong: Mapping[str, str] = {}
    names: Sequence[str]

    def __init__(self, folder: str | Path, size: Size) -> None:
        super().__init__()
        self.folder, self.size = Path(folder), size
        if (self.folder / MARKER).exists() and read_json(self.folder / MARKER).get("kind") == "prepared data set":
            raise InputError(f"{folder} was prepared by anystep: train with shards:{folder}")

    def __len__(self) -> int:
        return len(self.names)

    def _read(self, index: int) -> Example:
        name = self.names[index]
        if name in self.wrong:
            raise BrokenExample(f"{self.folder / name}: {self.wrong[name]}")
        captions, label = self.captions.get(name, ()), self.labels.get(name)
        return read_example(self.folder / name, self.size, printable(name), captions, label)

    def _known(self, name: str) -> tuple[object, ...]:
        """What is known of an image besides its pixels."""
        return name, self.captions.get(name), self.labels.get(name), self.wrong.get(name)

    def stamp(self, index: int) -> str:
        name = self.names[index]
        try:
            found = (self.folder / name).stat()
        except OSError as error:
            return digest_of(*self._known(name), error.strerror)
        return digest_of(*self._known(name), found.st_size, found.st_mtime_ns)

    def digest(self, index: int) -> str:
        name = self.names[index]
        try:
            return digest_of(*self._known(name), read_bytes(self.folder / name, sys.maxsize))
        except InputError:
            return digest_of(*self._known(name), "cannot be read")


class ImageFolderSource(_FolderSource):
    """Captioned images. Raises `InputError` where there is no image or one has no caption.

    Captions are rows of a `metadata.jsonl`, with names relative to its folder, or the lines of the `.txt` beside an
    image. An image whose caption is empty
    or no text is left out; one that has none at all is a mistake.
    """

    def __init__(self, folder: str | Path, size: Size) -> None:
        super().__init__(folder, size)
        files = sorted(walk(self.folder, self.passed_over))
        names = _images_among(files, self.folder, self.passed_over)
        texts = {_stem(name): name for name in reversed(files) if PurePosixPath(name).suffix.lower() == ".txt"}
        captions, wrong = self._metadata(files, _found(names))
        known = {*names, *texts.values()}
        unread = [name for name in files if PurePosixPath(name).name in NOT_READ]
        for name in files:
            if name in unread:
                self.passed_over.add(f"{PurePosixPath(name).name}, which is not read: {METADATA} is", name)
            elif name not in known and PurePosixPath(name).name != METADATA:
                self.passed_over.add(kind_of(name), name)
        text_of, pictured = _found(texts), _found([_stem(name) for name in names])
        for stem in sorted(stem for stem in texts if pictured(stem) is None):
            self.passed_over.add("captions without an image that can be read", texts[stem])
        for name in sorted((captions.keys() | wrong.keys()) - set(names)):
            self.passed_over.add(f"images of {METADATA} that are not there", name)
        used, unused = set[str](), set[str]()  # texts beside images
        for name in names:
            if (beside := text_of(_stem(name))) is None:
                continue
            if name in captions or name in wrong:
                unused.add(texts[beside])
                continue
            used.add(texts[beside])
            try:
                content = read_bytes(self.folder / texts[beside], CAPTION_LIMIT)
                captions[name] = caption_lines(decode_text(content, "its caption"))
            except ValueError as error:  # an InputError is one
                wrong[name] = str(error)
        for text in sorted(unused - used):
            self.passed_over.add(f"captions beside images of {METADATA}, which has theirs", text)
        self.captions, self.wrong = captions, wrong
        self.names = self._with_captions(names, unread)
        stems = Counter(_stem(name) for name in self.names)
        self._twins = {stem for stem, count in stems.items() if count > 1}

    def _metadata(
        self, files: Sequence[str], image_named: Callable[[str], str | None]
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
        """Captions by image, of each folder's `metadata.jsonl`, whose names are relative to it; and what is wrong."""
        captions: dict[str, tuple[str, ...]] = {}
        wrong: dict[str, str] = {}
        for file in map(PurePosixPath, files):
            if file.name != METADATA:
                continue
            given, faulty = read_metadata(self.folder / file)
            named = {name: str(file.parent / name) for name in (*given, *faulty)}
            named = {name: image_named(path) or path for name, path in named.items()}
            for name, found in given.items():
                captions[named[name]] = captions.get(named[name], ()) + found
            wrong |= {named[name]: reason for name, reason in faulty.items()}
        return captions, {name: reason for name, reason in wrong.items() if name not in captions}

    def _with_captions(self, names: list[str], unread: Sequence[str]) -> list[str]:
        """The images that have a caption, right or wrong; contact sheets of ours are left out. Raises `InputError`.

        Args:
            unread: files that may hold captions, of kinds that are not read.
        """
        missing = [name for name in names if name not in self.captions and name not in self.wrong]
        sheets = {name for name in missing[:MAX_OPENED] if _is_sheet(self.folder / name)}
        for name in sorted(sheets):
            self.passed_over.add("contact sheets that anystep drew", name)
        names = [name for name in names if name not in sheets]
        missing = [name for name in missing if name not in sheets]
        if missing:
            more = f" and {len(missing) - 1} more" * (len(missing) > 1)
            raise InputError(
                f"{self.folder}: no caption for {missing[0]}{more}; write "
                f"{PurePosixPath(missing[0]).with_suffix('.txt')} (one caption a line) or a row with file_name and "
                f"text in {METADATA}{f' ({unread[0]} is not read)' if unread else ''}"
            )
        if not any(name in self.captions for name in names):  # none that is right is a mistake too
            first = f": {printable(names[0])}: {self.wrong[names[0]]}" if names else ""
            raise InputError(f"{self.folder}: none of {len(names)} images has a caption that can be used{first}")
        return names

    def _read(self, index: int) -> Example:
        example = super()._read(index)
        if _stem(self.names[index]) not in self._twins:
            return example
        return replace(example, conversions=(*example.conversions, "shares its name with another image"))


class ClassFolderSource(_FolderSource):
    """One subfolder of images for each class. Raises `InputError` where there is none or one has no image."""

    def __init__(self, folder: str | Path, size: Size) -> None:
        super().__init__(folder, size)
        classes = []
        for entry in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if entry.name.startswith("."):
                self.passed_over.add("hidden files and folders", entry.name)
            elif not entry.is_dir():
                self.passed_over.add("files beside the folders of classes", entry.name)
            elif _is_ours(entry):
                self.passed_over.add("folders that anystep made", entry.name)
            else:
                classes.append(entry.name)
        if not classes:
            raise InputError(f"{folder}: no subfolder in it; expected one for each class, named as the class is")
        # a link from one class to another, or to all of them, does not make its images those of both
        entered = {_real(self.folder), *(_real(self.folder / name) for name in classes)}
        labels: dict[str, int] = {}
        for label, name in enumerate(classes):
            found = PassedOver()
            images = find_images(self.folder / name, found, entered - {_real(self.folder / name)})
            labels |= {f"{name}/{image}": label for image in images}
            self.passed_over.update_from(found, f"{name}/")
        self.class_names = [printable(name) for name in classes]
        self.labels, self.names = labels, list(labels)
