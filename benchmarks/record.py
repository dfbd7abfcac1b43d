"""What every benchmark writes beside its figures: the command, the commit and the machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from anystep.environment import environment
from anystep.files import write_text


def write_record(path: Path, figures: dict[str, Any]) -> None:
    """`figures` as JSON at `path`, with where they come from."""
    # "-dirty" marks code that differs from the commit
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    origin = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit.stdout.strip() or None,
        "environment": environment(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**origin, **figures}, indent=1) + "\n")
    print(f"wrote {path}")
