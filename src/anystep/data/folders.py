"""A user's own images: a folder of captioned images, or one subfolder for each class."""

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from anystep.data.example import BrokenExample, Example, PassedOver, digest_of, printable
from anystep.data.sizing import Size, fit, target
from anystep.errors import InputError
from anystep.files import (
    MARKER,
    NO_MORE_FILES,
    check_regular,
    decode_text,
    parse_json,
    read_bytes,
    read_json,
    read_text,
)

ORIENTATION, SOFTWARE = ExifTags.Base.Orientation, ExifTags.Base.Software
CAPTION_KEYS = ("captions", "text", "caption")
METADATA = "metadata.jsonl"
METADATA_LIMIT = 2 * 2**30  # bytes
CAPTION_LIMIT = 2**20  # bytes of the captions of one image
FEW = 1000  # images without a caption that are opened to see whether they are sheets of ours
SHEET = "anystep data show"  # what a contact sheet says of itself, so that it is not taken for data
# Pillow recognises these but cannot draw them without further programs.
RECOGNISED_ONLY = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
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
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow refuses images of twice its limit; what it warns of, large images and damaged EXIF data, is read all the same
warnings.filterwarnings("ignore", module=r"PIL\.")


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes of the files that Pillow, with whatever plugins are installed, can read."""
    with suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
    for plugin in ("pillow_avif", "pillow_jxl"):
        with suppress(ImportError):
            __import__(plugin)
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, form in known if form in Image.OPEN and form not in RECOGNISED_ONLY)


def is_image(name: str) -> bool:
    """Whether a file of this name is an image that can be read."""
    return PurePosixPath(name).suffix.lower() in image_suffixes()


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
            if error.errno in NO_MORE_FILES:
                raise
            passed.add("folders that may not be read", prefix or str(folder))
            continue
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                passed.add("hidden files and folders", name)
            elif _leads_to_folder(entry):
                (linked if entry.is_symlink() else real).append(f"{name}/")
            elif os.path.exists(entry.path) and not entry.is_file():
                passed.add("FIFOs, sockets and devices", name)
            else:
                yield name


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def kind_of(name: str) -> str:
    """What a file is called that is not used, by its ending."""
    suffix = PurePosixPath(name).suffix.lower()
    reader = READ_BY_OTHERS.get(suffix)
    return f"{suffix} images, which {reader}" if reader else f"{suffix or 'other'} files"


def _pass_over(names: Collection[str], passed: PassedOver) -> None:
    """Count files that are not used."""
    for name in names:
        passed.add(kind_of(name), name)


def find_images(
    folder: Path, passed: PassedOver | None = None, entered: set[tuple[int, int] | None] | None = None
) -> list[str]:
    """Relative POSIX paths of all images below `folder`, sorted; what else is there is counted in `passed`."""
    passed = PassedOver() if passed is None else passed
    files = sorted(walk(folder, passed, entered))
    _pass_over([name for name in files if not is_image(name)], passed)
    return _some([name for name in files if is_image(name)], folder, passed)


def _some(names: list[str], folder: Path, passed: PassedOver) -> list[str]:
    if not names:
        held = f"; {passed.lines[0]}" if passed else ""
        raise InputError(
            f"{folder}: no image in it or below it; .png, .jpg, .webp and all else Pillow reads would do{held}"
        )
    return names


def _orientation(image: Image.Image) -> int:
    """By the EXIF tag; 1, upright, where that is damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # readers of EXIF meet damage with exceptions of every type
        return 1
    return found if found in TURNS else 1


@lru_cache(maxsize=64)
def _to_srgb(profile: bytes, mode: str) -> tuple[Any, str]:
    """What turns an image of a colour profile and a mode into sRGB, and what is said of it; None where nothing has to.

    The profile is judged by what it does and not by its name, which may be anything.
    """
    from PIL import ImageCms

    try:
        space = ImageCms.ImageCmsProfile(BytesIO(profile))
        kind = str(space.profile.xcolor_space).strip()
        given = "CMYK" if kind == "CMYK" else "L" if kind == "GRAY" else "RGB"
        if (given == "CMYK") != (mode == "CMYK") or kind not in ("CMYK", "GRAY", "RGB"):
            raise ValueError(kind)
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        srgb = ImageCms.createProfile("sRGB")
        turn = ImageCms.buildTransform(space, srgb, given, "RGB", intent, ImageCms.Flags.BLACKPOINTCOMPENSATION)
        if given == "CMYK":
            return turn, "colour profile to sRGB"
        levels = np.array([0, 32, 64, 128, 192, 255], np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(6, -1, 3)
        before = Image.fromarray(probe).convert(given)
        after = ImageCms.applyTransform(before, turn)
    except Exception:  # a profile may be damaged in every way
        return None, "a colour profile that cannot be used"
    moved = np.abs(np.asarray(before.convert("RGB"), np.int16) - np.asarray(after, np.int16)).max()
    return (None, "") if moved <= 2 else (turn, "colour profile to sRGB")


def _profile(image: Image.Image) -> tuple[Any, str]:
    """`_to_srgb` of an image; nothing where it has no profile."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return None, ""
    return _to_srgb(profile, "CMYK" if image.mode == "CMYK" else "RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image as sRGB: upright by its EXIF tag, its colour profile applied, 16 bits made 8, transparency on white."""
    turn: Any = _profile(image)[0]
    if (orientation := _orientation(image)) != 1:
        image = image.transpose(TURNS[orientation])
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is anyone's guess; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips it at 255
        image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if turn is not None:
        from PIL import ImageCms

        turned = ImageCms.applyTransform(image.convert(turn.input_mode), turn)
        assert turned is not None  # it is where it is not done in place
        image = turned
        if alpha is not None:
            image.putalpha(alpha)
    if alpha is not None:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class Picture(NamedTuple):
    """An image as it is used, its width and height before, and what was done to it."""

    image: Image.Image
    original: tuple[int, int]
    notes: tuple[str, ...]


def told(image: Image.Image) -> tuple[str, ...]:
    """What an opened image needs done to it."""
    found = []
    if getattr(image, "is_animated", False):
        found.append("the first of several frames")
    if _orientation(image) != 1:
        found.append("turned upright")
    if image.mode.startswith("I"):
        found.append("16 bits to 8")
    if image.mode == "CMYK":
        found.append("CMYK to RGB")
    if said := _profile(image)[1]:
        found.append(said)
    if image.has_transparency_data:
        found.append("transparency on white")
    return tuple(found)


def read_picture(file: Path | BytesIO, size: Size, name: str = "") -> Picture:
    """The RGB image in a file, given its size. Raises `BrokenExample`, which calls it `name`."""
    name = name or str(file)
    image_suffixes()  # registers plugins
    try:
        if isinstance(file, Path):
            check_regular(file)
        with Image.open(file) as image:
            turned = _orientation(image) >= 5
            original = image.size[::-1] if turned else image.size
            notes, goal = told(image), target(*original, size)
            if size is not None:  # a large JPEG decodes much faster at 1/2, 1/4 or 1/8 of its size
                wanted = goal[::-1] if turned else goal
                image.draft(None, (2 * wanted[0], 2 * wanted[1]))
            return Picture(fit(to_rgb(image), goal), original, notes)
    except UnidentifiedImageError:
        raise BrokenExample(f"{name}: not an image that Pillow can read") from None
    except Exception as error:  # decoders meet damage with exceptions of every type
        if isinstance(error, OSError) and error.errno in NO_MORE_FILES:
            raise  # not the image's fault: left out, it would be missing for ever
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BrokenExample(f"{name}: {reason}") from error


def read_image(file: Path | BytesIO, size: Size, name: str = "") -> Image.Image:
    """`read_picture`'s image."""
    return read_picture(file, size, name).image


def caption_lines(text: str) -> tuple[str, ...]:
    """One caption a line. Raises ValueError where it is no text that a model could read, and says what it is."""
    return checked_captions([line.strip() for line in text.split("\n")])


def checked_captions(found: Any) -> tuple[str, ...]:
    """The captions among some values, stripped, without empty ones. Raises ValueError, which says what is wrong."""
    if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
        raise ValueError("its caption is no text")
    captions = tuple(text.strip() for text in found if text.strip())
    if not captions:
        raise ValueError("its caption is empty")
    if any("\0" in text for text in captions):
        raise ValueError("its caption holds NUL characters, as UTF-16 does; save it as UTF-8")
    if any(printable(text) != text for text in captions):
        raise ValueError("its caption holds half of a surrogate pair")
    return captions


def caption_texts(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The captions that a row of metadata gives, one or a list; none where it has no key for any.

    Raises:
        ValueError: what it gives is no caption; says why.
    """
    found = [row[key] for key in CAPTION_KEYS if key in row]
    if not found:
        return ()
    return checked_captions(found[:1] if not isinstance(found[0], list) else found[0])


def read_metadata(path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Captions by image name from a `metadata.jsonl`; several rows of one image are alternative captions.

    And what is wrong with those whose rows give no caption.
    """
    captions: dict[str, tuple[str, ...]] = {}
    wrong: dict[str, str] = {}
    for number, line in enumerate(read_text(path, METADATA_LIMIT).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = parse_json(line, where, object)
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise InputError(f"{where}: expected an object with file_name and text, caption or captions (a list)")
        name = PurePosixPath(row["file_name"]).as_posix()
        try:
            texts = caption_texts(row)
            if not texts:
                raise ValueError("no caption")
        except ValueError as error:
            wrong.setdefault(name, f"{error}, in its row of {path.name}")
        else:
            captions[name] = captions.get(name, ()) + texts
    return captions, {name: reason for name, reason in wrong.items() if name not in captions}


def listing(names: Sequence[str]) -> str:
    """`a.png`, or `a.png and 2 more`."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _is_sheet(path: Path) -> bool:
    """Whether a file is a contact sheet of ours."""
    try:
        check_regular(path)
        with Image.open(path) as image:
            return image.getexif().get(SOFTWARE) == SHEET
    except Exception:
        return False


class _FolderSource:
    """Images below `folder`, keyed by relative path; a subclass finds their names and what is known of them.

    `__getitem__` raises `BrokenExample` for an image that cannot be read.

    Attributes:
        passed_over: what else lies in the folder.
        wrong: why images are left out that might be read.
    """

    class_names: Sequence[str] = ()
    captions: Mapping[str, tuple[str, ...]] = {}
    labels: Mapping[str, int] = {}
    wrong: Mapping[str, str] = {}
    names: Sequence[str]

    def __init__(self, folder: str | Path, size: Size) -> None:
        self.folder = Path(folder)
        self.size = size
        self.passed_over = PassedOver()
        if (self.folder / MARKER).exists() and read_json(self.folder / MARKER).get("kind") == "prepared data set":
            raise InputError(f"{folder} was prepared by anystep: train with shards:{folder}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        name = self.names[index]
        if name in self.wrong:
            raise BrokenExample(f"{self.folder / name}: {self.wrong[name]}")
        picture = read_picture(self.folder / name, self.size)
        return Example(printable(name), picture.image, self.captions.get(name, ()), self.labels.get(name), *picture[1:])

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
            check_regular(self.folder / name)
            content = (self.folder / name).read_bytes()
        except (OSError, InputError) as error:
            if isinstance(error, OSError) and error.errno in NO_MORE_FILES:
                raise
            return digest_of(*self._known(name), "cannot be read")
        return digest_of(*self._known(name), content)


class ImageFolderSource(_FolderSource):
    """Captioned images. Raises `InputError` where there is no image or one has no caption.

    Captions are rows of `metadata.jsonl`, or the lines of the `.txt` beside an image. An image whose caption is empty
    or no text is left out; one that has none at all is a mistake.
    """

    def __init__(self, folder: str | Path, size: Size) -> None:
        super().__init__(folder, size)
        files = sorted(walk(self.folder, self.passed_over))
        names = _some([name for name in files if is_image(name)], self.folder, self.passed_over)
        texts = {_stem(name): name for name in reversed(files) if PurePosixPath(name).suffix.lower() == ".txt"}
        metadata = self.folder / METADATA
        captions, wrong = read_metadata(metadata) if METADATA in files else ({}, {})
        known = {*names, *texts.values(), METADATA}
        _pass_over([name for name in files if name not in known], self.passed_over)
        for stem in sorted(texts.keys() - {_stem(name) for name in names}):
            self.passed_over.add("captions without an image that can be read", texts[stem])
        for name in sorted((captions.keys() | wrong.keys()) - set(names)):
            self.passed_over.add(f"images of {METADATA} that are not there", name)
        for name in names:
            if name in captions or name in wrong or (text := texts.get(_stem(name))) is None:
                continue
            try:
                content = read_bytes(self.folder / text, CAPTION_LIMIT)
                captions[name] = caption_lines(decode_text(content, "its caption"))
            except ValueError as error:  # an InputError is one
                wrong[name] = str(error)
        self.captions, self.wrong = captions, wrong
        self.names = self._with_captions(names)
        stems = Counter(_stem(name) for name in self.names)
        self._twins = {stem for stem, count in stems.items() if count > 1}

    def _with_captions(self, names: list[str]) -> list[str]:
        """Those that have one, or a wrong one; sheets of ours have none and are no data. Raises `InputError`."""
        missing = [name for name in names if name not in self.captions and name not in self.wrong]
        sheets = {name for name in missing[:FEW] if _is_sheet(self.folder / name)}
        for name in sorted(sheets):
            self.passed_over.add("contact sheets that anystep drew", name)
        names = [name for name in names if name not in sheets]
        missing = [name for name in missing if name not in sheets]
        if missing:
            raise InputError(
                f"{self.folder}: no caption for {listing(missing)}; write "
                f"{PurePosixPath(missing[0]).with_suffix('.txt')} (one caption a line) or a row with file_name and "
                f"text in {METADATA}"
            )
        if not any(name in self.captions for name in names):  # none that is right is a mistake too
            first = f": {self.wrong[names[0]]}" if names else ""
            raise InputError(f"{self.folder}: none of {len(names)} images has a caption that can be used{first}")
        return names

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        if _stem(self.names[index]) not in self._twins:
            return example
        return replace(example, notes=(*example.notes, "shares its name with another image"))


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
            for kind, (count, first) in found.items():
                self.passed_over.add(kind, f"{name}/{first}", count)
        self.class_names = [printable(name) for name in classes]
        self.labels, self.names = labels, list(labels)
