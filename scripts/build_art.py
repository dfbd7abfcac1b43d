"""Build the captioned vector art that ships in `src/anystep/data/art/` from its npm packages.

    python scripts/build_art.py

Needs `npm` (only to fetch the packages). The result is a pure function of the pinned versions below: one JSON object
a line, sorted, compressed with xz. Skin-tone variants, flags and bare components (hair, tones) are dropped.
"""

import json
import lzma
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

STYLES = {"flat": "@iconify-json/fluent-emoji-flat@1.2.6", "noto": "@iconify-json/noto@1.2.9"}
NAMES = "emojibase-data@17.0.0"
DROPPED_GROUPS = {"component", "flags"}
OUT = Path(__file__).parent.parent / "src" / "anystep" / "data" / "art"


def unpack(package: str, folder: Path) -> Path:
    """Fetch one npm package into `folder` and return its root."""
    name = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True)
    root = folder / package.rsplit("@", 1)[0].replace("/", "-")
    with tarfile.open(folder / name.stdout.strip()) as archive:
        archive.extractall(root, filter="data")
    return root / "package"


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def without_variation_selector(codepoints: str) -> str:
    """The sets disagree on U+FE0F, so code points are compared without it."""
    return "-".join(part for part in codepoints.lower().split("-") if part != "fe0f")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emojibase = unpack(NAMES, folder)
        levels = read(emojibase / "meta" / "groups.json")
        described = [entry for entry in read(emojibase / "en" / "data.json") if "group" in entry]
        rows = []
        for style, package in STYLES.items():
            root = unpack(package, folder)
            icons, characters = read(root / "icons.json"), read(root / "chars.json")
            slug_of = {without_variation_selector(code): slug for code, slug in characters.items()}
            for entry in described:  # skin tones are nested below their base entry, so they never appear here
                category = levels["groups"][str(entry["group"])]
                slug = slug_of.get(without_variation_selector(entry["hexcode"]))
                if category in DROPPED_GROUPS or slug not in icons["icons"]:
                    continue
                icon = icons["icons"][slug]
                rows.append(
                    {
                        "style": style,
                        "name": entry["label"].replace("’", "'"),
                        "keywords": entry.get("tags", []),
                        "category": category,
                        "subcategory": levels["subgroups"][str(entry["subgroup"])],
                        "size": icon.get("width", icons["width"]),
                        "body": icon["body"],
                    }
                )
        rows.sort(key=lambda row: (row["style"], row["name"]))
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "art.jsonl.xz").write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
        shutil.copy(emojibase / "LICENSE", OUT / "LICENSE-emojibase.txt")
    print(f"{len(rows)} drawings, {(OUT / 'art.jsonl.xz').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
