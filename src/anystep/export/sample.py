"""Draw with the folder that this file is in, by onnxruntime and NumPy alone.

    python sample.py "a red apple" --steps 4 --seed 0 --out apple.png

It is also what to read for a port to another language: the transports, the times of the steps, noise from a seed as
PyTorch makes it, guidance, and the loop (Transition Models, arXiv 2509.04394). A seed gives the image that anystep
gives. Captions are read with the WordPiece tokenizers of BERT models as they are; those of others need
`pip install tokenizers`.
"""

import argparse
import json
import math
import re
import struct
import sys
import unicodedata
import zlib
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

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
    if budget < 1:
        raise ValueError(f"{budget} steps: expected 1 or more")
    plan = {"steps": budget, "shift": 1.0, "tail": None, "stochasticity": 0.0, "velocity_below": 0.0, "memory": False}
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
    shift = settings["shift"] * plan["shift"]
    if base is not None:
        shift *= max(1.0, math.sqrt(height * width) / base)
    if plan["tail"] is None:
        u = np.linspace(1, 0, plan["steps"] + 1)
    else:
        u = np.append(np.linspace(1, plan["tail"], plan["steps"]), 0.0)
    moved = low + (high - low) * (shift * u / (1 + (shift - 1) * u))
    return [float(each) for each in np.clip(moved, low, high).astype(np.float32)]


# --- noise of a seed, as torch.randn of a CPU generator draws it ------------------------------------------------------


class Noise:
    """Standard normal numbers of a seed: a Mersenne twister, and Box-Muller in groups of sixteen."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState((seed ^ (seed >> 32) * 0x9E3779B1) % 2**32)  # all bits of a long one

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        count = math.prod(shape)
        if count < 16:
            raise ValueError(f"noise of shape {tuple(shape)}: below 16 numbers PyTorch draws in another way")
        numbers, whole = np.empty(count, np.float32), count // 16 * 16
        numbers_of = self._uniform(count)
        numbers[:whole] = self._normal(numbers_of[:whole])
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
        self.vocabulary = content["model"]["vocab"]
        self.unknown, self.prefix = content["model"]["unk_token"], content["model"]["continuing_subword_prefix"]
        self.longest, self.lower = content["model"]["max_input_chars_per_word"], content["normalizer"]["lowercase"]
        around = [next(iter(each.values()))["id"] for each in content["post_processor"]["single"]]
        self.before, self.after = around[: around.index("A")], around[around.index("A") + 1 :]

    def __call__(self, caption: str, length: int) -> list[int]:
        pieces = [piece for word in self._words(caption) for piece in self._pieces(word)]
        kept = pieces[: length - len(self.before) - len(self.after)]
        return [self.vocabulary[piece] for piece in [*self.before, *kept, *self.after]]

    def _words(self, caption: str) -> list[str]:
        spaced = "".join(" " if letter in "\t\n\r" else letter for letter in caption)
        text = "".join(each for each in spaced if unicodedata.category(each)[0] != "C" and each != "\ufffd")
        text = re.sub(r"([\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002fa1f])", r" \1 ", text)
        if self.lower:
            text = "".join(each for each in unicodedata.normalize("NFD", text) if unicodedata.category(each) != "Mn")
            text = text.lower()
        apart = (f" {each} " if _is_punctuation(each) else each for each in text)
        return "".join(apart).split()

    def _pieces(self, word: str) -> list[str]:
        found: list[str] = []
        start = 0
        while start < len(word):
            tried = (self.prefix * (start > 0) + word[start:end] for end in range(len(word), start, -1))
            piece = next((each for each in tried if each in self.vocabulary), None)
            if piece is None or len(word) > self.longest:
                return [self.unknown]
            found.append(piece)
            start += len(piece) - len(self.prefix) * (start > 0)
        return found


def _is_punctuation(letter: str) -> bool:
    ascii_mark = letter.isascii() and letter.isprintable() and not letter.isalnum() and letter != " "
    return ascii_mark or unicodedata.category(letter)[0] == "P"


def tokenizer_of(path: Path) -> Any:
    """A function of a caption and the largest number of tokens, which gives their numbers."""
    content = json.loads(path.read_text("utf-8"))
    if content["model"]["type"] == "WordPiece" and content["normalizer"]["type"] == "BertNormalizer":
        return WordPiece(content)
    try:
        from tokenizers import Tokenizer
    except ImportError:
        sys.exit("sample.py: this model's captions need `pip install tokenizers`, or their states by --states")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()

    def tokens(caption: str, length: int) -> list[int]:
        tokenizer.enable_truncation(length)
        return list(tokenizer.encode(caption).ids)

    return tokens


# --- the model ------------------------------------------------------------------------------------------------------


class Model:
    """The networks of the folder, and what `model.json` says of them.

    Args:
        folder: with `model.json` and the `.onnx` files.
        threads: of onnxruntime; 0: as many as there are cores.
        providers: of onnxruntime, for example `CUDAExecutionProvider`.
    """

    def __init__(self, folder: Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.folder, self.threads, self.providers = folder, threads, list(providers)
        self.settings: dict[str, Any] = json.loads((folder / "model.json").read_text("utf-8"))
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, **inputs: np.ndarray) -> np.ndarray:
        """The answer of one of the networks."""
        if name not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            path = str(self.folder / f"{name}.onnx")
            self._sessions[name] = onnxruntime.InferenceSession(path, options, providers=self.providers)
        answer: np.ndarray = self._sessions[name].run(None, inputs)[0]
        return answer

    @cached_property
    def tokenize(self) -> Any:
        return tokenizer_of(self.folder / "tokenizer" / "tokenizer.json")

    def states(self, caption: str) -> np.ndarray:
        """The states of a caption's tokens, (1, tokens, width)."""
        read = caption.encode("unicode-escape").decode() if self.settings["escape_captions"] else caption
        tokens = np.array([self.tokenize(read, self.settings["max_length"])], np.int64)
        return self.run("text_encoder", ids=tokens, mask=np.ones_like(tokens))

    def condition(self, prompt: Any) -> np.ndarray:
        """What the network is told of a prompt: states of a caption, or a class by its name or number."""
        classes, names = self.settings["classes"], self.settings["class_names"] or []
        if classes is None:
            return prompt if isinstance(prompt, np.ndarray) else self.states(prompt)
        label = names.index(prompt) if prompt in names else int(prompt) if str(prompt).isdecimal() else -1
        if not 0 <= label < classes:
            raise ValueError(f"class {prompt!r}: expected a name, or a number from 0 to {classes - 1}")
        return np.array([label], np.int64)

    def null(self, condition: np.ndarray) -> np.ndarray:
        """What guidance leads away from where there is no negative prompt."""
        if self.settings["classes"] is not None:
            return np.array([self.settings["classes"]], np.int64)
        null: np.ndarray = np.load(self.folder / "null_states.npy")
        # a network that attends to padding was trained with an empty caption padded as long as the caption
        return null if self.settings["mask_text"] else null[:, : condition.shape[1]]

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

        Args:
            size: width and height in pixels; the training size by default.
            negative: what guidance above 1 leads away from, as the prompt is given; by default, or blank, nothing else
                than the empty caption or class.
        """
        settings, transport = self.settings, self.settings["transport"]
        width, height = size or (settings["side"],) * 2
        if width % settings["multiple"] or height % settings["multiple"]:
            raise ValueError(f"size {width}x{height}: both sides must be multiples of {settings['multiple']}")
        scale = settings["guidance_scale"] if guidance is None else guidance
        negative = None if isinstance(negative, str) and not negative.strip() else negative
        if negative is not None and scale <= 1:
            raise ValueError(f"negative {negative!r}: guidance {scale:g} leads away from nothing")
        condition = self.condition(prompt)
        null = self.null(condition) if negative is None else self.condition(negative)
        # a network that is told the scale answers as if guided away from the empty caption, and from nothing else
        at_once = settings["guidance_embed"] and negative is None
        plan = plan_of(settings, steps)
        times = times_of(settings, plan, height, width)
        shape = (settings["channels"], height // settings["factor"], width // settings["factor"])
        x = np.stack([Noise(seed).draw(shape) for seed in seeds]) * np.float32(coefficients(transport, times[0])[1])

        def evaluate(x: np.ndarray, t: float, r: float, condition: np.ndarray, g: float) -> np.ndarray:
            images = len(x)
            inputs = {
                "x": x, "condition": np.repeat(condition, images, 0),
                "t": np.full(images, c_noise(transport, t), np.float32),
                "r": np.full(images, c_noise(transport, r), np.float32),
            }  # fmt: skip
            if settings["classes"] is None:
                inputs["mask"] = np.ones(inputs["condition"].shape[:2], bool)
            if settings["guidance_embed"]:
                inputs["guidance"] = np.full(images, g, np.float32)
            return self.run("network", **inputs)

        low, high = settings["guided_times"]

        def f(x: np.ndarray, t: float, r: float) -> tuple[np.ndarray, float]:
            g = scale if scale > 1 and low <= t <= high else 1.0
            F = evaluate(x, t, r, condition, g if at_once else 1.0)
            if g > 1 and not at_once:
                F_null = evaluate(x, t, r, null, 1.0)
                F = F_null + np.float32(g) * (F - F_null)
            return F, g

        return sample(f, transport, x, times, plan, seeds)

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

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def size_of(text: str) -> tuple[int, int]:
    """Width and height of `WIDTHxHEIGHT`, or of one number for a square."""
    width, cross, height = text.lower().partition("x")
    if not width.isdecimal() or (cross and not height.isdecimal()):
        raise ValueError(f"size {text!r}: expected WIDTHxHEIGHT in pixels, or one number for a square")
    return int(width), int(height or width)


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
    prompt = options.prompt if options.states is None else np.load(options.states)[None].astype(np.float32)
    try:
        size = size_of(options.size) if options.size else None
        model = Model(Path(__file__).parent)
        latents = model.draw(prompt, options.steps, [options.seed], size, options.guidance, options.negative)
        write_png(Path(options.out), model.decode(latents)[0])
    except (ValueError, OSError) as error:
        sys.exit(f"sample.py: {error}")
    print(options.out)


if __name__ == "__main__":
    main()
