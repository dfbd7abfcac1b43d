"""What is done to files and folders: at random, and by what they are made of."""

import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "EXECUTED"  # a file that payloads make, in the folder above all others

ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, -(2**63), 10**30, 1e308, -1e308, float("nan"), float("inf"), 1.5, "", "x", "\0",
    "é", "１", "\ud800", "../../../escaped", "/etc/passwd", "x" * 100_000, [], {}, [[]], [None], {"": {}}, [1e999],
    "nan", "a\nb", "-",
]  # fmt: skip
NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
NAMES = [
    "x.png", ".hidden.png", "-rf.png", "a b.png", "é.txt", "\udce9.png", "new\nline.png", "x" * 250, "a.part", "...",
    "step-abc", "step-99999999999999999999", ".x.part", "000001.tar", "index.safetensors", "metadata.jsonl",
]  # fmt: skip


class Payload:
    """A pickle of it makes the mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def odd(rng: random.Random, value: Any) -> Any:
    """Something else in the place of a plain value."""
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice([-value, value + 1, value * 10**9, value * 10**18, float(value), str(value), value - 1])
    if isinstance(value, str) and rng.random() < 0.3:
        return rng.choice(
            [value * 1000, value[:-1], value + "\0", value.upper(), [value], "../" + value, "\u202e" + value]
        )
    return rng.choice(ODD)


def plain(rng: random.Random, content: Any) -> Any:
    """A plain value with one place of it changed."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        key = rng.choice(sorted(content, key=str))
        what = rng.random()
        if what < 0.1:
            return {name: value for name, value in content.items() if name != key}
        if what < 0.15:
            return {**content, odd(rng, "key") if rng.random() < 0.2 else "unknown": 1, f"{key}x": content[key]}
        return {**content, key: plain(rng, content[key])}
    if isinstance(content, list) and content and rng.random() < 0.8:
        place = rng.randrange(len(content))
        what = rng.random()
        if what < 0.15:
            return content[:place] + content[place + 1 :]
        if what < 0.25:
            return content * rng.choice([2, 50])
        return [*content[:place], plain(rng, content[place]), *content[place + 1 :]]
    return odd(rng, content)


def nested(rng: random.Random) -> bytes:
    deep = rng.choice([100, 5_000, 100_000])
    return rng.choice(
        [b"[" * deep, b"[" * deep + b"]" * deep, b'{"a":' * deep, b"{a: " * deep, b"- " * min(deep, 5000)]
    )


def raw(rng: random.Random, data: bytes) -> bytes:
    """Bytes cut, flipped, or with huge numbers in them."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
    at = rng.randrange(min(len(data), 256) if rng.random() < 0.5 else len(data))
    match rng.randrange(12):
        case 0 | 1:
            return data[:at]
        case 2 | 3 | 4:
            changed = bytearray(data)
            for _ in range(rng.choice([1, 1, 4, 64])):
                spot = rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))
                changed[spot] ^= 1 << rng.randrange(8)
            return bytes(changed)
        case 5 | 6:
            form, number = rng.choice(["<I", ">I", "<Q", ">Q", "<H", ">H"]), rng.choice(NUMBERS)
            packed = struct.pack(form, number & (256 ** struct.calcsize(form) - 1))
            return data[:at] + packed + data[at + len(packed) :]
        case 7:
            size = rng.randrange(1, 200)
            return data[:at] + data[at + size :]
        case 8:
            return data[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40))) + data[at:]
        case 9:
            numbers = list(re.finditer(rb"[0-9]+", data))
            if not numbers:
                return data + data
            found = rng.choice(numbers[:200])
            return (
                data[: found.start()] + rng.choice([b"-1", b"99999999999", b"1e999", b"nan", b""]) + data[found.end() :]
            )
        case 10:
            return rng.choice(
                [b"", b"\0" * len(data), b"\xef\xbb\xbf" + data, data + data, data[::-1], b"\xff\xfe" + data]
            )
        case _:
            return data[at:] + data[:at]


def json_text(rng: random.Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    try:
        if len(lines) > 1 and lines[1][:1] == "{" and lines[0][-1:] == "}":
            place = rng.randrange(len(lines))
            lines[place] = json.dumps(plain(rng, json.loads(lines[place])))
            return "\n".join(lines).encode("utf-8", "surrogatepass")
        return json.dumps(plain(rng, json.loads(data))).encode("utf-8", "surrogatepass")
    except ValueError:
        return raw(rng, data)


def yaml_text(rng: random.Random, data: bytes) -> bytes:
    import yaml

    bomb = "a: &a [1, 1]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(rng.choice([2, 9]))
    )
    tags = [
        "!!python/object/apply:os.system ['touch {mark}']",
        "!!python/name:os.system",
        "!!binary aGk=",
        "!!set {{a}}",
    ]
    match rng.randrange(8):
        case 0:
            return (bomb + f"sample_prompts: *{rng.choice('abc')}\n").encode() + data
        case 1:
            return data + f"\n{rng.choice(['run', 'x', 'data'])}: {rng.choice(tags)}\n".encode()
        case 2:
            return data + data
        case 3:
            return nested(rng)
        case _:
            return yaml.safe_dump(plain(rng, yaml.safe_load(data)), allow_unicode=True).encode("utf-8", "surrogatepass")


def safetensors(rng: random.Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.dumps(plain(rng, json.loads(data[8 : 8 + size]))).encode("utf-8", "surrogatepass")
    except ValueError:
        return raw(rng, data)
    if rng.random() < 0.1:
        header = nested(rng)
    length = len(header) if rng.random() < 0.9 else rng.choice(NUMBERS)
    return (length & (2**64 - 1)).to_bytes(8, "little") + header + data[8 + size :]


def npz(rng: random.Random, data: bytes, mark: Path) -> bytes:
    import numpy as np

    content = dict(np.load(io.BytesIO(data)))
    name, out = rng.choice(sorted(content)), io.BytesIO()
    match rng.randrange(6):
        case 0:
            content[name] = np.array([Payload(mark)], dtype=object)
        case 1:
            content[name] = content[name] * np.nan
        case 2:
            content[name] = np.array(rng.choice([["a"], [1j], [True], 3, []]))
        case 3:
            content[name] = content[name].reshape(-1)[: rng.randrange(5)]
        case 4:
            del content[name]
        case _:  # a header that promises much, deflated to nothing
            head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d, %d), }" % (
                rng.choice([10**4, 10**9]),
                10**5,
            )
            head += b" " * (64 - (len(head) + 11) % 64) + b"\n"
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr(
                    f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(50_000_000)
                )
            return out.getvalue()
    np.savez(out, **content)
    return out.getvalue()


def tar(rng: random.Random, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
        members = [(member, old.extractfile(member).read()) for member in old if member.isfile()]  # type: ignore[union-attr]
        chosen = rng.randrange(len(members))
        for number, (member, content) in enumerate(members):
            if number == chosen:
                match rng.randrange(7):
                    case 0:
                        member.name = rng.choice(
                            ["../../../escaped.png", "/escaped.png", "a/../../../b.png", "", "x" * 300, "."]
                        )
                    case 1:
                        member.type, member.linkname = rng.choice([tarfile.SYMTYPE, tarfile.LNKTYPE]), "/etc/passwd"
                        member.size, content = 0, b""
                    case 2:
                        member.type = rng.choice([tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
                        member.size, content = 0, b""
                    case 3:
                        member.pax_headers = {
                            rng.choice(["size", "path", "mtime", "x"]): rng.choice(["-1", "9" * 30, "nan"])
                        }
                    case _:
                        content = one(rng, member.name, content, Path("none"))
                        member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return out.getvalue()


def one(rng: random.Random, name: str, data: bytes, mark: Path) -> bytes:
    """The content of a file, changed by its kind or by chance."""
    if rng.random() < 0.04:
        return nested(rng)
    if rng.random() < 0.04:
        return pickle.dumps(Payload(mark))
    if rng.random() < 0.35:
        return raw(rng, data)
    ending = name.rsplit(".", 1)[-1]
    with suppress(Exception):  # changed before, it may be no longer of its kind
        if ending in ("json", "jsonl"):
            return json_text(rng, data)
        if ending == "yaml":
            return yaml_text(rng, data).replace(b"{mark}", str(mark).encode())
        if ending == "safetensors":
            return safetensors(rng, data)
        if ending == "npz":
            return npz(rng, data, mark)
        if ending == "tar":
            return tar(rng, data)
        if ending == "gz":
            inside = gzip.decompress(data)
            if rng.random() < 0.2:  # a little file that stands for much
                return gzip.compress(inside[:16] + bytes(200_000_000), 1)
            return gzip.compress(raw(rng, inside))
        if ending == "metadata":
            return rng.choice([pickle.dumps(Payload(mark)), data + pickle.dumps(Payload(mark)), raw(rng, data)])
    return raw(rng, data)


def folder(rng: random.Random, where: Path, mark: Path) -> str:
    """Change a folder in place; says how."""
    files = sorted(path for path in where.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "nothing"
    path = rng.choice(files)
    name = str(path.relative_to(where))
    if rng.random() < 0.75:
        path.write_bytes(one(rng, path.name, path.read_bytes(), mark))
        return f"content of {name}"
    match rng.randrange(9):
        case 0:
            path.unlink()
            return f"without {name}"
        case 1:
            path.unlink()
            os.mkfifo(path)
            return f"{name} a FIFO"
        case 2:
            path.unlink()
            path.mkdir()
            return f"{name} a folder"
        case 3:
            target = rng.choice(
                ["/etc/passwd", "/dev/zero", "/dev/null", str(path), "/nowhere", str(where), "/proc/self/mem"]
            )
            path.unlink()
            path.symlink_to(target)
            return f"{name} a link to {target}"
        case 4:
            new = path.with_name(rng.choice(NAMES))
            if not new.exists():
                path.rename(new)
            return f"{name} renamed {new.name!r}"
        case 5:
            new = path.with_name(rng.choice(NAMES))
            if not new.exists():
                new.write_bytes(rng.choice([b"", path.read_bytes(), pickle.dumps(Payload(mark))]))
            return f"{new.name!r} beside {name}"
        case 6:
            new = path.with_name(rng.choice(NAMES))
            if not new.exists():
                os.mkfifo(new)
            return f"a FIFO {new.name!r} beside {name}"
        case 7:
            new = path.with_name(rng.choice(NAMES))
            if not new.exists():
                new.symlink_to(rng.choice(["..", ".", "/", str(where), "/dev/zero"]))
            return f"a link {new.name!r} beside {name}"
        case _:
            other = rng.choice(files)
            if other != path:
                shutil.copy(other, path)
            return f"{name} a copy of {other.name}"
