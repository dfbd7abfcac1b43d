"""Draw with the folder that this file is in, by onnxruntime and NumPy alone.

    python sample.py "a red apple" --steps 4 --seed 0 --out apple.png

It is also what to read for a port to another language: the transports, the times of the steps, noise from a seed as
PyTorch makes it, guidance, and the loop (Transition Models, arXiv 2509.04394). A seed gives the image that anystep
gives. WordPiece tokenizers, as BERT models have them, are read as they are; others need `pip install tokenizers`.
"""

import argparse
import json
import math
import re
import string
import struct
import unicodedata
import zlib
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np


def check(name: str, value: int | float, low: int | float, high: int | float) -> None:
    """Refuse a number that is not within bounds, as NaN is not."""
    if not low <= value <= high:
        raise ValueError(f"{name} {value}: expected {low} to {high}")


# --- transports: x_t = alpha x + sigma z, F = alpha_hat x + sigma_hat z ---------------------------------------------
def coefficients(transport: dict[str, Any], t: float) -> tuple[float, float, float, float]:
    """alpha, sigma, alpha_hat and sigma_hat at time t."""
    name = transport["name"]
    if name == "ot_fm":
        return 1 - t, t, -1.0, 1.0
    if name == "trigflow":
        return math.cos(t), math.sin(t), -math.sin(t), math.cos(t)
    if name == "edm":
        s = transport["sigma_data"]
        norm = math.hypot(t, s)
        return 1 / norm, t / norm, t / (s * norm), -s / norm
    if name == "vp":
        ratio = math.sqrt(math.expm1(transport["beta_d"] * t * t / 2 + transport["beta_min"] * t))
        alpha = 1 / math.hypot(ratio, 1)
        return alpha, ratio * alpha, 0.0, 1.0
    if name == "ve":
        return 1.0, t, 0.0, -1.0
    raise ValueError(f"unknown transport {name!r}")


def c_noise(transport: dict[str, Any], t: float) -> float:
    """The time that the network is given for t."""
    scales = {"edm": lambda: math.log(t) / 4, "vp": lambda: 999 * t, "ve": lambda: math.log(t / 2)}
    return float(scales.get(transport["name"], lambda: t)())


def transition(transport: dict[str, Any], x: np.ndarray, F: np.ndarray, t: float, r: float) -> np.ndarray:
    """x_r = A x_t + B F."""
    (at, st, ah, sh), (ar, sr, _, _) = coefficients(transport, t), coefficients(transport, r)
    determinant = at * sh - st * ah
    A, B = (ar * sh - sr * ah) / determinant, (sr * at - ar * st) / determinant
    return np.float32(A) * x + np.float32(B) * F


def decompose(transport: dict[str, Any], x: np.ndarray, F: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """The data and the noise that x_t and F stand for."""
    at, st, ah, sh = coefficients(transport, t)
    d = at * sh - st * ah
    data = np.float32(sh / d) * x - np.float32(st / d) * F
    return data, np.float32(at / d) * F - np.float32(ah / d) * x


# --- plans and times ------------------------------------------------------------------------------------------------
def plan_of(settings: dict[str, Any], budget: int) -> dict[str, Any]:
    """What a number of steps is spent on: the model's own plan where it has one, else uniform times."""
    check("steps", budget, 1, 10_000)
    plan = {"steps": budget, "shift": 1.0, "tail": None, "stochasticity": 0.0, "velocity_below": 0.0, "memory": False}
    plan |= {"guidance_share": 1.0, "guided_above": 0.0}
    plans = {int(known): fields for known, fields in settings["plans"].items()}
    known = max((each for each in plans if each <= budget), default=None)
    if known is not None:
        plan |= plans[known]
        plan["steps"] = budget if plan["steps"] == known else plan["steps"]
    elif settings["sampling"] == "consistency" and budget > 1:
        plan["stochasticity"] = 1.0
    if settings["sampling"] == "instantaneous":
        plan["velocity_below"] = 1.0
    return plan


def times_of(settings: dict[str, Any], plan: dict[str, Any], height: int, width: int) -> list[float]:
    """The decreasing times of a plan's steps, shifted towards noise for areas above the training base."""
    low, high, base = settings["transport"]["t_min"], settings["transport"]["t_max"], settings["base_size"]
    shift = settings["shift"] * plan["shift"] * (1.0 if base is None else max(1.0, math.sqrt(height * width) / base))
    steps, tail = plan["steps"], plan["tail"]
    u = np.linspace(1, 0, steps + 1) if tail is None else np.append(np.linspace(1, tail, steps), 0.0)
    moved = low + (high - low) * (shift * u / (1 + (shift - 1) * u))
    return [float(each) for each in np.clip(moved, low, high).astype(np.float32)]


# --- noise of a seed, as torch.randn of a CPU generator draws it ------------------------------------------------------
class Noise:
    """Standard normal numbers of a seed: a Mersenne twister, and Box-Muller in groups of sixteen."""

    def __init__(self, seed: int) -> None:
        check("seed", seed, 0, 2**62 - 1)
        self._twister = np.random.RandomState((seed ^ (seed >> 32) * 0x9E3779B1) % 2**32)  # all bits of a long one

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        count = math.prod(shape)
        if count < 16:
            raise ValueError(f"noise of shape {tuple(shape)}: below 16 numbers PyTorch draws in another way")
        numbers, whole = np.empty(count, np.float32), count // 16 * 16
        numbers[:whole] = self._normal(self._uniform(count)[:whole])
        if whole < count:
            numbers[-16:] = self._normal(self._uniform(16))
        return numbers.reshape(shape)

    def _uniform(self, count: int) -> np.ndarray:
        bits = np.frombuffer(self._twister.bytes(4 * count), "<u4") & 0xFFFFFF
        return bits.astype(np.float32) * np.float32(2**-24)

    @staticmethod
    def _normal(uniform: np.ndarray) -> np.ndarray:
        pairs = uniform.reshape(-1, 2, 8)
        radius, angle = np.sqrt(-2 * np.log(1 - pairs[:, 0])), np.float32(2 * math.pi) * pairs[:, 1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


# --- captions -------------------------------------------------------------------------------------------------------
class WordPiece:
    """The tokens of captions as `tokenizer.json` of a BERT model says (WordPiece, arXiv 1609.08144)."""

    def __init__(self, content: dict[str, Any]) -> None:
        added = {each["content"]: each["id"] for each in content["added_tokens"]}  # "[SEP]" is one wherever it stands
        self.vocabulary, self.added = content["model"]["vocab"] | added, sorted(added, key=len, reverse=True)
        self.unknown, self.prefix = content["model"]["unk_token"], content["model"]["continuing_subword_prefix"]
        self.longest, self.lower = content["model"]["max_input_chars_per_word"], content["normalizer"]["lowercase"]
        around = [next(iter(each.values()))["id"] for each in content["post_processor"]["single"]]
        self.before, self.after = around[: around.index("A")], around[around.index("A") + 1 :]

    def __call__(self, caption: str, length: int) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, self.added))})", caption)
        pieces = [piece for part in parts for word in self._words(part) for piece in self._pieces(word)]
        kept = pieces[: length - len(self.before) - len(self.after)]
        return [self.vocabulary[piece] for piece in [*self.before, *kept, *self.after]]

    def _words(self, caption: str) -> list[str]:
        if caption in self.added:
            return [caption]
        spaced = "".join(" " if letter in "\t\n\r" else letter for letter in caption)
        text = "".join(each for each in spaced if unicodedata.category(each)[0] != "C" and each != "\ufffd")
        text = re.sub(r"([\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002fa1f])", r" \1 ", text)
        if self.lower:
            text = "".join(each for each in unicodedata.normalize("NFD", text) if unicodedata.category(each) != "Mn")
            text = text.lower()
        marks = {each for each in text if each in string.punctuation or unicodedata.category(each)[0] == "P"}
        return "".join(f" {each} " if each in marks else each for each in text).split()

    def _pieces(self, word: str) -> list[str]:
        found, start = list[str](), 0
        while start < len(word):
            tried = (self.prefix * (start > 0) + word[start:end] for end in range(len(word), start, -1))
            piece = next((each for each in tried if each in self.vocabulary), None)
            if piece is None or len(word) > self.longest:
                return [self.unknown]
            found.append(piece)
            start += len(piece) - len(self.prefix) * (start > 0)
        return found


def tokenizer_of(path: Path) -> Any:
    """A function of a caption and the largest number of tokens, which gives their numbers."""
    content = json.loads(path.read_text("utf-8"))
    usual = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
    if content["model"]["type"] == "WordPiece" and usual.items() <= (content["normalizer"] or {}).items():
        return WordPiece(content)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()

    def tokens(caption: str, length: int) -> list[int]:
        tokenizer.enable_truncation(length)
        return list(tokenizer.encode(caption).ids)

    return tokens


# --- the model ------------------------------------------------------------------------------------------------------
class Model:
    """The networks of a folder, and what its `model.json` says of them.

    `threads` (0: as many as there are cores) and `providers`, such as `CUDAExecutionProvider`, are onnxruntime's.
    """

    def __init__(self, folder: Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.folder, self.threads, self.providers = folder, threads, list(providers)
        self.settings: dict[str, Any] = json.loads((folder / "model.json").read_text("utf-8"))
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        """The answer of one of the networks."""
        if name not in self._sessions:
            from onnxruntime import InferenceSession, SessionOptions

            options = SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = self.threads, 4  # what fails is raised
            path = str(self.folder / f"{name}.onnx")
            self._sessions[name] = InferenceSession(path, options, providers=self.providers)
        return np.asarray(self._sessions[name].run(None, inputs)[0])

    @cached_property
    def tokenize(self) -> Any:
        return tokenizer_of(self.folder / "tokenizer" / "tokenizer.json")

    def states(self, caption: str) -> np.ndarray:
        """The states of a caption's tokens, (1, tokens, width)."""
        if not caption.strip():
            raise ValueError('empty prompt: say what to draw, for example "a red apple"')
        read = caption.encode("unicode-escape").decode() if self.settings["escape_captions"] else caption
        tokens = np.array([self.tokenize(read, self.settings["max_length"])], np.int64)
        return self.run("text_encoder", ids=tokens, mask=np.ones_like(tokens))

    def condition(self, prompt: Any) -> np.ndarray:
        """What the network is told of a prompt: states of a caption, or a class by its name or number."""
        classes, names = self.settings["classes"], self.settings["class_names"] or []
        if classes is not None:
            name = str(prompt)
            label = names.index(name) if name in names else int(name) if name.isdecimal() else -1
            if not 0 <= label < classes:
                raise ValueError(f"class {name!r:.60}: expected a name, or a number from 0 to {classes - 1}")
            return np.array([label], np.int64)
        states = prompt if isinstance(prompt, np.ndarray) else self.states(prompt)
        most, width = self.settings["max_length"], np.load(self.folder / "null_states.npy").shape[2]
        fits = states.ndim == 3 and len(states) == 1 and 1 <= states.shape[1] <= most and states.shape[2] == width
        if not (fits and np.isfinite(states).all()):
            raise ValueError(f"states {states.shape[1:]}: expected finite numbers, 1 to {most} tokens x {width}")
        return states

    def null(self, condition: np.ndarray) -> np.ndarray:
        """What guidance leads away from where there is no negative prompt."""
        if self.settings["classes"] is not None:
            return np.array([self.settings["classes"]], np.int64)
        null = np.load(self.folder / "null_states.npy")
        # a network that attends to padding was trained with an empty caption padded as long as the caption
        return np.asarray(null if self.settings["mask_text"] else null[:, : condition.shape[1]])

    def draw(
        self,
        prompt: Any,
        steps: int = 4,
        seeds: Sequence[int] = (0,),
        size: tuple[int, int] | None = None,
        guidance: float | None = None,
        negative: Any = None,
    ) -> np.ndarray:
        """Latents (images, channels, rows, columns) of a caption, its states, or a class: one for each seed.

        `size` is width and height in pixels, by default those of training. `negative`, given as the prompt is, is what
        guidance leads away from; None, or blank, is the empty caption or class.
        """
        settings, transport = self.settings, self.settings["transport"]
        (width, height), multiple = size or (settings["side"],) * 2, settings["multiple"]
        if width % multiple or height % multiple or not 0 < max(width, height) <= 5 * min(width, height):
            raise ValueError(f"size {width}x{height}: expected multiples of {multiple}, one at most 5 times the other")
        scale = settings["guidance_scale"] if guidance is None else guidance
        check("guidance", scale, 0, 100)
        negative = None if isinstance(negative, str) and not negative.strip() else negative
        if negative is not None and scale <= 1:
            raise ValueError(f"negative {negative!r:.60}: guidance {scale:g} leads away from nothing")
        condition = self.condition(prompt)
        null = self.null(condition) if negative is None else self.condition(negative)
        # a network that is told the scale answers as if guided away from the empty caption, and from nothing else
        embedded, (low, high) = settings["guidance_embed"], settings["guided_times"]
        at_once = embedded and negative is None
        plan = plan_of(settings, steps)
        scale = 1 + plan["guidance_share"] * (scale - 1) if scale > 1 else 1.0
        above = plan["guided_above"] * (1 - 1e-5)  # a little lower: times that are the end of it are in it
        low = max(low, transport["t_min"] + above * (transport["t_max"] - transport["t_min"]))
        times = times_of(settings, plan, height, width)
        shape = (settings["channels"], height // settings["factor"], width // settings["factor"])
        x = np.stack([Noise(seed).draw(shape) for seed in seeds]) * np.float32(coefficients(transport, times[0])[1])

        def evaluate(x: np.ndarray, t: float, r: float, condition: np.ndarray, g: float) -> np.ndarray:
            told = {"t": c_noise(transport, t), "r": c_noise(transport, r), **({"guidance": g} if embedded else {})}
            inputs = {name: np.full(len(x), value, np.float32) for name, value in told.items()}
            inputs |= {"x": x, "condition": np.repeat(condition, len(x), 0)}
            if settings["classes"] is None:
                inputs["mask"] = np.ones(inputs["condition"].shape[:2], bool)
            return self.run("network", **inputs)

        def f(x: np.ndarray, t: float, r: float) -> tuple[np.ndarray, float]:
            g = scale if low <= t <= high else 1.0
            F = evaluate(x, t, r, condition, g if at_once else 1.0)
            if g > 1 and not at_once:
                F = F + np.float32(g - 1) * (F - evaluate(x, t, r, null, 1.0))
            return F, g

        with np.errstate(all="ignore"):
            latents = sample(f, transport, x, times, plan, seeds)
        if not np.isfinite(latents).all():
            raise ValueError("the model gives numbers that are not finite: it does not bear these settings")
        return latents

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Pixels from 0 to 255, (images, height, width, 3), of latents."""
        images = self.run("decoder", latents=latents) if (self.folder / "decoder.onnx").exists() else latents
        pixels = np.clip(np.rint((images + np.float32(1)) * np.float32(127.5)), 0, 255).astype(np.uint8)
        return np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])).transpose(0, 2, 3, 1)


def sample(
    f: Any, transport: dict[str, Any], x: np.ndarray, times: list[float], plan: dict[str, Any], seeds: Sequence[int]
) -> np.ndarray:
    """Carry noise to data through the times: each step is one transition of what f(x, t, r) predicts."""
    low, c = transport["t_min"], plan["stochasticity"]
    short = plan["velocity_below"] * (transport["t_max"] - low) * (1 + 1e-5)
    fresh, before = [Noise(seed) for seed in seeds] if c else [], None
    for each in fresh:
        each.draw(x.shape[1:])  # what its image begins with
    for i, (t, after) in enumerate(pairwise(times)):
        r = after if i == len(times) - 2 else after - c * (after - low)
        velocity = t - r <= short
        F, scale = f(x, t, t if velocity else r)
        jump = (*decompose(transport, x, F, t), t, scale) if plan["memory"] and velocity else None
        if jump and before and before[3] == scale:  # F in the middle of the jump: two-step Adams-Bashforth
            data, noise, earlier, _ = before
            _, _, ah, sh = coefficients(transport, t)
            gone = np.float32(ah) * data + np.float32(sh) * noise
            F = F + np.float32((t - r) / (2 * (earlier - t))) * (F - gone)
        x, before = transition(transport, x, F, t, r), jump
        if r < after:  # jumped below the next time: fresh noise leads back up to it
            (a_s, s_s, _, _), (a_r, s_r, _, _) = coefficients(transport, r), coefficients(transport, after)
            keep = a_r / a_s
            more = math.sqrt(max(0.0, s_r**2 - (keep * s_s) ** 2))
            x = np.float32(keep) * x + np.float32(more) * np.stack([each.draw(x.shape[1:]) for each in fresh])
            before = None
    return x


def write_png(path: Path, pixels: np.ndarray) -> None:
    """An image (height, width, 3) of whole numbers from 0 to 255 as a PNG file."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels)))
    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def size_of(text: str) -> tuple[int, int]:
    """Width and height of `WIDTHxHEIGHT`, or of one number for a square."""
    width, cross, height = text.lower().partition("x")
    if not width.isdecimal() or (cross and not height.isdecimal()):
        raise ValueError(f"size {text!r}: expected WIDTHxHEIGHT in pixels, or one number for a square")
    return int(width), int(height or width)


def states_of(path: str) -> np.ndarray:
    """The states of a caption, (1, tokens, width), of a .npy file."""
    try:
        return np.asarray(np.lib.format.open_memmap(path, mode="r")[None], np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"states {path!r}: expected a .npy file of numbers: {error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw with this folder, by onnxruntime and NumPy alone.")
    parser.add_argument("prompt", nargs="?", help="a caption, or a class by name or number")
    parser.add_argument("--states", help="a .npy file of a caption's states (tokens, width), in place of the prompt")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--negative", help="a caption to guide away from")
    parser.add_argument("--out", default="sample.png")
    options = parser.parse_args()
    if (options.prompt is None) == (options.states is None):
        parser.error("give a prompt or --states")
    try:
        out = Path(options.out)
        if out.suffix.lower() != ".png" or not out.parent.is_dir():
            raise ValueError(f"out {options.out!r}: expected a name that ends in .png, in a folder that is there")
        prompt = options.prompt if options.states is None else states_of(options.states)
        model, size = Model(Path(__file__).parent), size_of(options.size) if options.size else None
        latents = model.draw(prompt, options.steps, [options.seed], size, options.guidance, options.negative)
        write_png(out, model.decode(latents)[0])
    except Exception as error:  # also those of onnxruntime, which has one where memory does not suffice
        told = f"{error.name} is not installed: pip install {error.name}" if isinstance(error, ImportError) else error
        parser.exit(2, f"sample.py: {' '.join(str(told).split()):.280}\n")
    print(options.out)


if __name__ == "__main__":
    main()
