"""Fuzz all readers: `python tests/fuzz/run.py --seed 0 --count 20000`. Prints counts by area and what failed.

Each input is read in a fork of a process that has imported everything, with limits of time and memory. It may be read,
or refused in one line; anything else is a failure: a traceback, more than its seconds, more than 1 GB, a payload that
ran, a file outside the output.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import areas as fuzzed
import mutations

MEMORY = 2**30  # bytes above what the libraries take
LINE = 300
GOOD = ("read", "refused")


def imports() -> None:
    """Everything that a fork would otherwise import itself, as the command line does."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "critical")
    import torch

    torch.set_num_threads(1)
    import anystep.compare
    import anystep.data.prepare
    import anystep.evaluation.benchmarks.run
    import anystep.evaluation.run
    import anystep.pipelines.generate
    import anystep.training.train
    import anystep.training.train_codec  # noqa: F401


def state(folder: Path, but: list[Path]) -> dict[str, Any]:
    """What is in a folder, but for some folders."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        if not any(path == each or each in path.parents for each in but):
            about = path.lstat()
            found[str(path)] = (about.st_mode, None if path.is_dir() else (about.st_size, about.st_mtime_ns))
    return found


class Fuzzer:
    """Runs inputs of one seed in a scratch folder: `top/a/b/c/SUBJECT`, so that `../` stays below `top`."""

    def __init__(self, seed: int, top: Path) -> None:
        self.rng, self.top = random.Random(seed), top
        self.place = top / "a" / "b" / "c"
        self.place.mkdir(parents=True)
        self.mark = top / mutations.MARK
        self.templates = top / "templates"
        self.made: set[str] = set()

    def template(self, name: str) -> Path:
        """The valid input of an area, made once, in a fork: libraries start threads when they write."""
        folder, area = self.templates / name, fuzzed.AREAS[name]
        if name not in self.made:
            shutil.rmtree(self.place, ignore_errors=True)
            (self.place / "input").mkdir(parents=True)
            told, code, _ = self.fork(lambda: area.make(self.place / "input"), 120, 2**36)
            if code != "read":
                raise SystemExit(f"cannot make {name}: {code} {told}")
            shutil.copytree(self.place, folder)
            if area.valid:
                self.copy(folder)
                given = self.place / "input", self.place / "out", random.Random(1)
                told, code, _ = self.fork(lambda: area.act(*given), 60)
                if code != "read":
                    raise SystemExit(f"{name} is not read as it was made: {code} {told}")
            self.made.add(name)
        return folder

    def copy(self, template: Path) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(template, self.place, symlinks=True)
        (self.place / "out").mkdir()

    def fork(self, act: Any, seconds: int, memory: int = MEMORY) -> tuple[str, str, float]:
        """What it printed on the error stream, the outcome, and its seconds of work."""
        log = self.top / "stderr"
        child = os.fork()
        if child == 0:
            self._inside(act, seconds, memory, log)
        begin, usage = time.monotonic(), None
        while usage is None:
            found, status, used = os.wait4(child, os.WNOHANG)
            if found:
                usage = used
            elif time.monotonic() - begin > 8 * seconds + 10:
                os.killpg(child, signal.SIGKILL)
                _, status, usage = os.wait4(child, 0)
                return log.read_text(errors="replace"), "HANG", usage.ru_utime + usage.ru_stime
            else:
                time.sleep(0.002)
        told = log.read_text(errors="replace")
        work = usage.ru_utime + usage.ru_stime
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return told, "HANG" if number in (signal.SIGXCPU, signal.SIGKILL) else f"SIGNAL {number}", work
        code = os.WEXITSTATUS(status)
        outcome = {0: "read", 2: "refused", 3: "MEMORY"}.get(code, "TRACEBACK")
        if outcome == "refused":
            lines = told.splitlines()
            errors = [line for line in lines if "error: " in line] or lines  # beside notes of what is made again
            if len(errors) != 1 or len(errors[0]) > LINE or not errors[0].isprintable() or "Traceback" in told:
                outcome = "NOT ONE LINE"
            elif "not enough memory" in told:
                outcome = "MEMORY"
        return told, outcome, work

    def _inside(self, act: Any, seconds: int, memory: int, log: Path) -> None:
        """The life of a fork; never returns."""
        code = 1
        try:
            os.setpgid(0, 0)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with open("/proc/self/statm") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.chdir(self.place)
            from anystep.errors import InputError, one_line

            try:
                code = act() or 0
            except InputError as error:
                print(one_line(str(error)), file=sys.stderr)
                code = 2
            except SystemExit as stop:
                code = int(stop.code or 0)
            except MemoryError:
                traceback.print_exc()
                code = 3
            except OSError as error:  # as the command line does
                print(f"OSError {one_line(str(error))}", file=sys.stderr)
                code = 2
            except BaseException as error:
                traceback.print_exc()
                code = 3 if "allocate memory" in str(error) else 1
        finally:
            sys.stderr.flush()
            os._exit(code)

    def input(self, name: str) -> tuple[str, str, str, float]:
        """One input of an area: how it was changed, what was printed, the outcome, seconds."""
        area = fuzzed.AREAS[name]
        template = self.template(name)
        self.copy(template)
        subject, out = self.place / "input", self.place / "out"
        changes = [mutations.folder(self.rng, subject, self.mark) for _ in range(1 if self.rng.random() < 0.8 else 3)]
        own = random.Random(self.rng.random())
        but = [self.templates, out, self.top / "stderr", self.mark, *([subject] if area.own else [])]
        before = state(self.top, but)
        told, outcome, work = self.fork(lambda: area.act(subject, out, own), area.seconds)
        if self.mark.exists():
            outcome = "EXECUTED"
            self.mark.unlink()
        elif (after := state(self.top, but)) != before:
            outcome = "WROTE OUTSIDE"
            told = str(sorted(set(after.items()) ^ set(before.items()), key=str)[:4]) + told
        return "; ".join(changes), told, outcome, work


def fuzz(
    seed: int, count: int, only: list[str] | None = None, keep: Path | None = None, seconds: float = float("inf")
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts of outcomes by area, and the failures."""
    names = only or list(fuzzed.AREAS)
    weights = [fuzzed.AREAS[name].weight for name in names]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    failures = []
    with tempfile.TemporaryDirectory(prefix="anystep-fuzz-") as scratch:
        os.environ["ANYSTEP_CACHE"] = f"{scratch}/cache"
        top = Path(scratch).resolve() / "top"
        top.mkdir()
        fuzzer = Fuzzer(seed, top)
        begin = time.monotonic()
        for number in range(count):
            if time.monotonic() - begin > seconds:
                break
            name = names[number] if number < len(names) else fuzzer.rng.choices(names, weights)[0]
            changes, told, outcome, work = fuzzer.input(name)
            counts[name][outcome] += 1
            if outcome not in GOOD:
                failures.append(f"{name} {number}: {outcome} after {work:.2f} s; {changes}\n{told[-1500:]}")
                print("---", failures[-1], flush=True)
                if keep is not None and not (saved := keep / f"{seed}-{number}").exists():
                    shutil.copytree(fuzzer.place, saved, symlinks=True, ignore_dangling_symlinks=True, ignore=pipes)
    return counts, failures


def pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (path := Path(folder, name)).is_file() and not path.is_dir()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end then, whatever the count")
    parser.add_argument("--only", nargs="+", choices=list(fuzzed.AREAS))
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that failed")
    options = parser.parse_args()
    imports()
    begin = time.monotonic()
    counts, failures = fuzz(options.seed, options.count, options.only, options.keep, options.seconds)
    for name, found in counts.items():
        print(
            f"{name:18}{sum(found.values()):7,}  "
            + ", ".join(f"{outcome} {each:,}" for outcome, each in sorted(found.items()))
        )
    total, took = sum(sum(found.values()) for found in counts.values()), time.monotonic() - begin
    print(f"{total:,} inputs of seed {options.seed}, {len(failures)} failures, {took:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
