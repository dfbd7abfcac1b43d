"""Kill every long command in its work, and run it again: `python tests/kills.py --seed 0 --count 100`.

A command is stopped by SIGKILL, SIGTERM, SIGINT or SIGHUP at a random moment after its work has begun, as its files
tell, and then the same command goes on. Its output must be, byte for byte but for times, that of a run that nobody
stopped; no parts of files may be left, and nothing beside the output changed. With `--disk` and `--descriptors` the
commands run out of room for a file, or of file descriptors, instead: one line, exit code 2, and then as above.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))

from areas import area, folders
from run import imports

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
# what depends on the clock and the machine, in whatever file
MEASURED = {
    "seconds", "images_per_second", "tokens_per_second", "data_wait", "memory_megabytes", "peak_megabytes", "mfu",
    "seconds_per_image", "date", "created", "versions", "command", "ms", "time", "made", "times", "megabytes",
}  # fmt: skip
# files that tell of a process, of the machine, or that show times
PASSING = {".lock", ".holder.json", "env.json", "report.md", "curve.png", "manifest.json", ".metadata"}


@dataclass(frozen=True)
class Command:
    """`words` of a command that writes to `out`; `begun` tells from its output that its work is under way."""

    words: Callable[[Path, Path], list[str]]
    begun: Callable[[Path], bool]
    out: str


def has(pattern: str) -> Callable[[Path], bool]:
    return lambda out: next(out.parent.glob(pattern), None) is not None


def logged(out: Path) -> bool:
    return any(path.stat().st_size > 0 for path in out.rglob("metrics.jsonl"))


def running(out: Path) -> bool:
    """There is nothing to see before the end: the moment is drawn from the whole of its time."""
    return True


def text(*words: str) -> Callable[[Path, Path], list[str]]:
    """Words in which IN is the folder of inputs and OUT the output."""
    return lambda inputs, out: [word.replace("IN/", f"{inputs}/").replace("OUT", str(out)) for word in words]


MODEL = ("--model", "IN/model", "--seed", "3")
COMMANDS = {
    "train": Command(text("train", "IN/r.yaml", "--out", "OUT", "--run.steps", "40"), logged, "run"),
    "train-codec": Command(text("train-codec", "IN/codec.yaml", "--out", "OUT"), logged, "run"),
    "data prepare": Command(
        text("data", "prepare", "IN/pictures", "--out", "OUT", "--size", "64", "--shard-size", "8"),
        has("made/*0*tar*"), "made",
    ),
    "evaluate": Command(
        text("evaluate", *MODEL, "--data", "classes:IN/images", "--samples", "60", "--steps", "1", "2", "4",
             "--batch", "20", "--metrics", "kernel_distance", "--keep-images", "--out", "OUT"),
        has("report/*/*"), "report",
    ),
    "benchmark": Command(
        text("benchmark", "imagenet", *MODEL, "--samples", "300", "--steps", "1", "2", "8", "--out", "OUT"),
        has("drawn/*"), "drawn",
    ),
    "compare": Command(text("compare", "IN/compare.yaml", "--out", "OUT"), logged, "compared"),
    "train-scene-detector": Command(
        text("train-scene-detector", "--steps", "12", "--out", "OUT"), running, "d.safetensors"
    ),
    "train-alignment": Command(text("train-alignment", "--out", "OUT"), running, "a.safetensors"),
    "train-classifier": Command(
        text("train-classifier", "classes:IN/images", "--size", "16", "--epochs", "20", "--out", "OUT"),
        running, "c.safetensors",
    ),
    "generate": Command(  # its sheet says how long each took, single images do not
        text("generate", "a", "b", "c", *MODEL, "--steps", "1", "8", "32", "64", "--separate", "OUT",
             "--out", "sheet.png"),
        running, "each",
    ),
}  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Sources, recipes and a model, all tiny."""
    from anystep.plain_yaml import dump_yaml

    rng = random.Random(0)
    for number in range(120):
        place = folder / "images" / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(area.png(rng.randrange(256)))
    (folder / "pictures").mkdir()
    for number in range(64):
        (folder / "pictures" / f"{number:02d}.png").write_bytes(area.png(rng.randrange(256)))
        (folder / "pictures" / f"{number:02d}.txt").write_text(f"colour {number}")
    folders.make_model(folder / "model")
    data = {"source": f"classes:{folder / 'images'}", "size": 8}
    recipe = {**area.TINY, "data": data, "run": {**area.TINY["run"], "checkpoint_every": 5, "sample_every": 20}}  # type: ignore[dict-item]
    (folder / "r.yaml").write_text(dump_yaml(recipe))
    codec = {
        "data": {"source": f"{folder / 'pictures'}", "size": 16},
        "codec": {"latent_channels": 4, "widths": [8, 8], "encoder_depths": [0, 1], "decoder_depths": [0, 1]},
        "run": {"steps": 30, "batch_size": 4, "checkpoint_every": 5, "threads": 1, "log_every": 1},
    }
    (folder / "codec.yaml").write_text(dump_yaml(codec))
    compared = {
        "recipe": {**recipe, "run": {**recipe["run"], "sample_every": 0, "keep": 1}},
        "variants": {"one": {}, "two": {"objective": {"kind": "flow_matching"}}},
        "evaluations": 160, "steps": [1, 2], "samples": 50, "metrics": ["kernel_distance"],
    }  # fmt: skip
    (folder / "compare.yaml").write_text(dump_yaml(compared))


def smaller() -> None:
    """The alignment score learns from all of the built-in art: here from a little of it."""
    from anystep.evaluation.metrics import caption_scores as alignment

    whole = alignment.ArtSource

    class Little(whole):  # type: ignore[misc, valid-type]
        def __len__(self) -> int:
            return min(64, super().__len__())

    alignment.ArtSource = Little  # type: ignore[misc]
    defaults = alignment.train_alignment.__defaults__ or ()
    alignment.train_alignment.__defaults__ = (*defaults[:2], 40, 16, *defaults[4:])


def unmeasured(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: unmeasured(value) for key, value in content.items() if key not in MEASURED}
    return [unmeasured(each) for each in content] if isinstance(content, list) else content


def contents(out: Path) -> dict[str, str]:
    """What the output says, file by file, without times."""
    found = {}
    for path in sorted([out] if out.is_file() else out.rglob("*")):
        name = str(path.relative_to(out.parent))
        if not path.is_file() or path.name in PASSING or "checkpoints" in path.parts:
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
            data = "\n".join(json.dumps(unmeasured(json.loads(line)), sort_keys=True) for line in lines).encode()
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            pairs = sorted((key, tensor) for key, tensor in load_file(path).items() if key not in MEASURED)
            data = b"".join(key.encode() + tensor.contiguous().view(-1).numpy().tobytes() for key, tensor in pairs)
        found[name] = hashlib.sha256(data).hexdigest()
    return found


class Killer:
    """Starts commands as forks of this process, which has imported everything."""

    def __init__(self, seed: int, top: Path) -> None:
        self.rng, self.top = random.Random(seed), top
        self.inputs = top / "inputs"
        self.inputs.mkdir()
        if self.code(self.start(lambda: make_inputs(self.inputs), top)):
            sys.exit(f"no inputs: {(top / 'stderr').read_text()}")
        self.expected: dict[str, dict[str, str]] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        self.before = self.listing(self.inputs)

    @staticmethod
    def listing(folder: Path) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def start(self, act: Callable[[], Any], place: Path, limits: dict[int, int] | None = None) -> int:
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            os.setpgid(0, 0)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            for stream, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            os.chdir(place)
            smaller()
            for kind, most in (limits or {}).items():
                resource.setrlimit(kind, (most, most))
            if resource.RLIMIT_FSIZE in (limits or {}):
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
            code = act() or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    @staticmethod
    def code(child: int) -> int:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    def run(self, name: str, place: Path, limits: dict[int, int] | None = None) -> int:
        """The process of a command that writes in a place."""
        from anystep.__main__ import main

        command = COMMANDS[name]
        words = command.words(self.inputs, place / command.out)

        def act() -> int:
            sys.argv = ["anystep", *words]
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python has it when a command begins
            return main()

        return self.start(act, place, limits)

    def undisturbed(self, name: str) -> None:
        """What a command writes, and from when to when it works, where nobody stops it."""
        place = self.top / "straight" / name.replace(" ", "-")
        place.mkdir(parents=True)
        out = place / COMMANDS[name].out
        child, begin, begun = self.run(name, place), time.monotonic(), None
        while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
            if begun is None and COMMANDS[name].begun(out):
                begun = time.monotonic() - begin
            time.sleep(0.005)
        code = os.waitstatus_to_exitcode(found[1])
        if code != 0:
            raise SystemExit(f"{name} ends with {code}: {(place / 'stderr').read_text()[-2000:]}")
        end = time.monotonic() - begin
        assert begun is not None, f"{name}: nobody saw its work begin"
        self.spans[name] = (begun, end)
        self.expected[name] = contents(out)
        assert self.expected[name]

    def finish(self, name: str, place: Path) -> str:
        """The same command again: what is wrong with its result, or nothing."""
        out = place / COMMANDS[name].out
        code = self.code(self.run(name, place))
        if code != 0:
            return f"the same command ends with {code}: {(place / 'stderr').read_text()[-1500:]}"
        found = contents(out)
        for key in [*found]:  # the picture of the moment at which training was asked to stop
            if "/samples/" in key and key not in self.expected[name]:
                del found[key]
        if found != self.expected[name]:
            other = sorted(
                key for key in {*found, *self.expected[name]} if found.get(key) != self.expected[name].get(key)
            )
            return f"differs in {other[:6]}"
        if left := [path for path in place.rglob("*") if path.name.endswith(".part") or path.name == ".holder.json"]:
            return f"left {left[:4]}"
        if self.listing(self.inputs) != self.before:
            return "the inputs changed"
        return ""

    def place(self, name: str) -> Path:
        if name not in self.expected:
            self.undisturbed(name)
        place = self.top / "stopped"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def kill(self, name: str) -> tuple[int, str]:
        """One chain of one to three kills and the run that ends it: how many kills there were, and what is wrong."""
        place = self.place(name)
        out, killed = place / COMMANDS[name].out, 0
        begun, end = self.spans[name]
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            number = self.rng.choice(SIGNALS)
            child, begin = self.run(name, place), time.monotonic()
            done: tuple[int, int] = (0, 0)
            while done[0] == 0 and not (time.monotonic() - begin > begun / 2 and COMMANDS[name].begun(out)):
                done = os.waitpid(child, os.WNOHANG)
                time.sleep(0.002)
            moment = time.monotonic() + self.rng.uniform(0, end - begun)
            while done[0] == 0 and time.monotonic() < moment:
                done = os.waitpid(child, os.WNOHANG)
                time.sleep(0.002)
            if done[0] == 0:
                os.kill(child, number)
                deadline = time.monotonic() + 60
                while done[0] == 0 and time.monotonic() < deadline:
                    done = os.waitpid(child, os.WNOHANG)
                    time.sleep(0.002)
                if done[0] == 0:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return killed, f"{number.name} did not stop it in a minute"
                killed += 1
                told = (place / "stderr").read_text()
                if "Traceback" in told:
                    return killed, f"{number.name}: {told[-1500:]}"
            elif os.waitstatus_to_exitcode(done[1]) != 0:
                return killed, f"it ended before the kill: {(place / 'stderr').read_text()[-1500:]}"
        return killed, self.finish(name, place)

    def limited(self, name: str, limits: dict[int, int]) -> tuple[str, str]:
        """A run that lacks room or descriptors, and one that does not: whether it was refused, and what is wrong."""
        place = self.place(name)
        code = self.code(self.run(name, place, limits))
        told = (place / "stderr").read_text()
        lines = [line for line in told.splitlines() if line.startswith("anystep") and "error: " in line]
        if code == 0:
            return "had enough", self.finish(name, place)
        if code != 2 or "Traceback" in told or len(lines) != 1:
            return "refused", f"ends with {code}: {told[-1500:]}"
        return "refused", self.finish(name, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="kills, spread over the commands")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--disk", action="store_true", help="limits of a file's size instead of kills")
    parser.add_argument("--descriptors", action="store_true", help="limits of open files instead of kills")
    options = parser.parse_args()
    imports()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="anystep-kills-") as scratch:
        os.environ["ANYSTEP_CACHE"] = f"{scratch}/cache"
        top = Path(scratch).resolve() / "top"
        top.mkdir()
        killer = Killer(options.seed, top)
        counts: Counter[str] = Counter()
        if options.disk or options.descriptors:
            for name in options.only:
                many = (
                    [2_000, 20_000, 60_000, 200_000] if options.disk else [len(os.listdir("/proc/self/fd")) + 2, 16, 32]
                )
                kind = resource.RLIMIT_FSIZE if options.disk else resource.RLIMIT_NOFILE
                for most in many:
                    outcome, wrong = killer.limited(name, {kind: most})
                    counts[f"{name}: {outcome}"] += 1
                    failures += bool(wrong)
                    print(f"{name:22} {most:9,} {outcome:12} {wrong or 'as it should be'}", flush=True)
        else:
            chains = 0
            while sum(counts.values()) < options.count and chains < 3 * options.count:
                name = options.only[chains % len(options.only)]
                chains += 1
                killed, wrong = killer.kill(name)
                counts[name] += killed
                failures += bool(wrong)
                print(f"{name:22} {killed} kills  {wrong or 'as undisturbed'}", flush=True)
        print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())), f"; {failures} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
