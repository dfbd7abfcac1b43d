"""Imports point downward only, and torchvision is needed by nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import anystep

PACKAGE = Path(anystep.__file__).parent
# a room may import from itself and from rooms of lower floors
FLOORS = [
    {"errors", "weights", "data_sheets", "markdown"},
    {"bounds"},
    {"console", "environment", "files", "fingerprint"},
    {"plain_yaml", "publishing", "transport", "device", "ranks", "packing", "model_folder", "seeds"},
    {"objective", "sampling", "contact_sheet", "pretrained", "flow_families"},
    {"models", "codecs", "conditioning"},
    {"data"},
    {"pipelines"},
    {"training", "evaluation", "export"},
    {"average", "compare"},
    {"studio"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Every module of ours that a file imports, lazily or not."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "anystep" else {node.module}
            )
    return {name.split(".")[1] for name in found if name.startswith("anystep.")} - {"__version__"}


def test_imports_point_downward() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        wrong += [f"{room} -> {other}" for other in imported(path) - {room} if FLOOR[other] >= FLOOR[room]]
    assert not wrong


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms - {"__init__"} == set(FLOOR)


def test_what_only_unix_has_is_not_needed_to_begin() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"fcntl", "grp", "pwd", "resource", "termios"} & set(names), path


def test_nothing_imports_torchvision() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & {"torchvision", "timm", "flash_attn"}, path


def test_importing_the_package_and_the_command_line_loads_no_torch() -> None:
    code = "import sys, anystep, anystep.cli; anystep.cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
