"""Put the files of this folder into a clone of diffusers, and register what they define.

    python apply.py path/to/diffusers

Then, in the clone: `make fix-copies` (dummy objects), three lines of `docs/source/en/_toctree.yml`, `make style`, and
`pytest tests/pipelines/transition`. It may be run again.
"""

import shutil
import sys
from pathlib import Path


# by file of src/diffusers: the line of it that each new line comes after
REGISTRATIONS = {
    "__init__.py": {
        '"TransformerTemporalModel",': '"TransitionTransformer2DModel",',
        "TransformerTemporalModel,": "TransitionTransformer2DModel,",
        '"TCDScheduler",': '"TransitionScheduler",',
        "TCDScheduler,": "TransitionScheduler,",
        '"TextToVideoZeroSDXLPipeline",': '"TransitionPipeline",',
        "TextToVideoZeroSDXLPipeline,": "TransitionPipeline,",
    },
    "models/__init__.py": {
        '_import_structure["transformers.transformer_temporal"] = ["TransformerTemporalModel"]': (
            '_import_structure["transformers.transformer_transition"] = ["TransitionTransformer2DModel"]'
        ),
        "TransformerTemporalModel,": "TransitionTransformer2DModel,",
    },
    "models/transformers/__init__.py": {
        "from .transformer_temporal import TransformerTemporalModel": (
            "from .transformer_transition import TransitionTransformer2DModel"
        ),
    },
    "schedulers/__init__.py": {
        '_import_structure["scheduling_tcd"] = ["TCDScheduler"]': (
            '_import_structure["scheduling_transition"] = ["TransitionScheduler"]'
        ),
        "from .scheduling_tcd import TCDScheduler": "from .scheduling_transition import TransitionScheduler",
    },
    "pipelines/__init__.py": {
        '_import_structure["stable_video_diffusion"] = ["StableVideoDiffusionPipeline"]': (
            '_import_structure["transition"] = ["TransitionPipeline"]'
        ),
        "from .stable_video_diffusion import StableVideoDiffusionPipeline": (
            "from .transition import TransitionPipeline"
        ),
    },
}


def registered(text: str, lines: dict[str, str], name: str) -> str:
    """The text of a file with each new line after the one that it comes after, indented alike."""
    rows = text.split("\n")
    for before, new in lines.items():
        places = [place for place, row in enumerate(rows) if row.strip() == before]
        if len(places) != 1:
            sys.exit(
                f"apply.py: {name} has the line {before!r} {len(places)} times, expected once: add {new!r} by hand"
            )
        (place,) = places
        indent = rows[place][: len(rows[place]) - len(rows[place].lstrip())]
        if rows[place + 1] != indent + new:
            rows.insert(place + 1, indent + new)
    return "\n".join(rows)


def apply(clone: Path) -> None:
    package, ours = clone / "src" / "diffusers", Path(__file__).parent
    if not (package / "__init__.py").is_file():
        sys.exit(f"apply.py: {package} is no source of diffusers: expected the path of a clone")
    changed = {
        package / name: registered((package / name).read_text("utf-8"), lines, name)
        for name, lines in REGISTRATIONS.items()
    }
    for part in ("src", "docs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ours / part, clone / part, dirs_exist_ok=True, ignore=ignored)
    for path, text in changed.items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    apply(Path(sys.argv[1]))
