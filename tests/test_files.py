"""Files appear whole; folders are claimed; what others wrote is read with a guard."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from anystep.errors import InputError
from anystep.files import (
    check_claim,
    check_names,
    check_output,
    claimed,
    read_bytes,
    read_json,
    read_text,
    remove_parts,
    replacing,
    write_json,
    write_tensors,
    write_text,
)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(TypeError), replacing(path) as part:
        part.write_text(7)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_says_null_where_a_number_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": float("nan"), "norms": (1.0, float("inf"))})
    assert read_json(tmp_path / "a.json") == {"loss": None, "norms": [1.0, None]}


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "3", '"x"', "NaN"])
def test_damaged_json_is_one_line_that_names_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"a\.json") as told:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(told.value)


def test_text_of_others_has_no_byte_order_mark_and_plain_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa cat\r\na dog\r")
    assert read_text(tmp_path / "a.txt") == "a cat\na dog\n"
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"a\.txt: not UTF-8 text, at byte 3"):
        read_text(tmp_path / "a.txt")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"0123456789")
    for name, word in (("fifo", "FIFO"), ("missing", "No such file"), ("large", "10 bytes"), (".", "a folder")):
        with pytest.raises(InputError, match=word):
            read_bytes(tmp_path / name, limit=9)
    with pytest.raises(InputError, match="a device"):
        read_bytes(Path("/dev/zero"))


def test_a_folder_is_claimed_for_one_kind_of_output(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    for _ in range(2):
        with claimed(folder, "report"):
            (folder / "report.md").write_text("x")
    with pytest.raises(InputError, match="holds a report, not a training run"), claimed(folder, "training run"):
        pass
    assert (folder / "report.md").exists()


def test_a_folder_of_somebody_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(InputError, match=r"holds thesis\.tex, which this command has not made"),
        claimed(tmp_path, "report"),
    ):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_folder_from_before_there_were_marks_is_recognised_by_its_entries(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(InputError):
        check_claim(tmp_path, "benchmark", ("settings.json", "steps-001"))
    with claimed(tmp_path, "benchmark", ("settings.json",)):
        pass
    assert json.loads((tmp_path / ".anystep.json").read_text())["kind"] == "benchmark"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": 5}', "{}"])
def test_a_damaged_mark_is_one_line_that_says_what_to_do_and_takes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".anystep.json").write_text(content)
    (tmp_path / "mine" / "kept.txt").write_text("x")
    with pytest.raises(InputError, match=r'anystep\.json.*; choose another --out, or write {"kind": "report"'):
        check_claim(tmp_path / "mine", "report")


def test_one_process_at_a_time_and_the_lock_goes_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from anystep.files import claimed\n"
        f"with claimed(Path({str(tmp_path)!r}), 'report'):\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {other.pid} on "), claimed(tmp_path, "report"):
            pass
        other.kill()
        other.wait()
    with claimed(tmp_path, "report"):
        pass


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "/a", "a/b", "a\\b", "a\0b", "a\nb", ".part", " a", "x" * 201, "\udc80", 3, None],
)
def test_a_name_of_others_that_leads_elsewhere_is_refused(name: object) -> None:
    with pytest.raises(InputError, match=r"id .* cannot name a file"):
        check_names([("good",), ("folder", name)], "id")


def test_names_that_are_one_file_on_some_systems_are_refused() -> None:
    check_names([("people", "é"), ("animals", "é"), ("a b",), ("partiprompts12",), ("people", "é")], "id")
    for twin in (("People", "É"), ("people", "e\u0301")):
        with pytest.raises(InputError, match="would be one file"):
            check_names([("people", "é"), twin], "id")


def test_an_output_is_written_over_its_like_only(tmp_path: Path) -> None:
    def reads(path: Path) -> None:
        if path.read_text() != "ours":
            raise InputError("something else")

    path = tmp_path / "a.bin"
    check_output(path, ".bin", reads)
    path.write_text("ours")
    check_output(path, ".bin", reads)
    path.write_text("diary")
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "folder.bin").mkdir()
    (tmp_path / "link.bin").symlink_to(tmp_path / "none")
    for name in ("a.bin", "pipe.bin", "folder.bin", "link.bin"):
        with pytest.raises(InputError, match="was not made by this command"):
            check_output(tmp_path / name, ".bin", reads)
    for other, message in ((tmp_path / "none" / "a.bin", "no such folder"), (tmp_path / "a.pt", "ends in .bin")):
        with pytest.raises(InputError, match=message):
            check_output(other, ".bin", reads)
    assert path.read_text() == "diary"


def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, torch
from pathlib import Path
from anystep.files import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_tensors(Path({str(tmp_path / "a.safetensors")!r}), {{"a": torch.zeros(1000)}}, {{"of": "b"}})
except OSError as error:
    print(error.strerror)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "too large" in shown.stdout
    assert not list(tmp_path.iterdir())


def test_parts_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in (".a.png.7.8.part", "below/.b.part", "c.part", "below/d.png"):
        (tmp_path / name).write_text("x")
    remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["below", "c.part", "d.png"]


def test_tensors_are_read_back(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.arange(3)}, {"of": "b"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.get_tensor("a").tolist() == [0, 1, 2]
        assert file.metadata() == {"of": "b"}
