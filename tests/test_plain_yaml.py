"""YAML that somebody else wrote: plain, bounded, every key once; and what we write is read back as it was."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anystep.errors import InputError
from anystep.plain_yaml import MAX_LENGTH, dump_yaml, parse_yaml, read_yaml

ODD = ["1e2", "010", "yes", "~", "", "null", "1:30", "2024-01-01", "<<", ".5", "0x10", ".inf", "=", "+5"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.sampled_from(ODD),
)  # fmt: skip


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_what_is_dumped_is_read_back(content: Any) -> None:
    assert parse_yaml(dump_yaml({"a": content}), "text") == {"a": content}


@given(st.dictionaries(st.text("abc:-019.eE~ny", min_size=1), SCALARS, max_size=4))
def test_other_readers_of_yaml_find_the_same_in_what_is_dumped(content: dict[str, Any]) -> None:
    assert yaml.safe_load(dump_yaml(content)) == content


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e2", 100.0), ("1.5E-3", 0.0015), ("-.5", -0.5), ("010", "010"), ("yes", "yes"), ("12:30", "12:30"), ("~", None),
     ("2024-01-01", "2024-01-01"), ("1_000", "1_000"), ("0x10", "0x10"), ("true", True), ("-3", -3), ("", None)],
)  # fmt: skip
def test_scalars_are_what_they_look_like(text: str, value: Any) -> None:
    assert parse_yaml(text, "text") == value


def test_keys_are_text_and_aliases_and_merges_are_read() -> None:
    assert parse_yaml("2024: 1\nnull: 2\nyes: 3", "text") == {"2024": 1, "null": 2, "yes": 3}
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}", "text") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


BOMB = "\n".join(
    f"{chr(97 + n)}: &{chr(97 + n)} [{', '.join([f'*{chr(96 + n)}'] * 9 if n else '12')}]" for n in range(12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"'a' is given twice, in lines 1 and 3"),
        ("run: {steps: 1, steps: 2}", "'steps' is given twice, in lines 1 and 1"),
        ("[" * 50_000, "nested too deeply"),
        ("a: " * 50 + "1", "mapping values are not allowed"),
        (BOMB, "stands for more than 20000 values"),
        ("&a [*a]", "an alias stands for something that it is part of"),
        ("a: !!python/object/apply:os.system ['touch run']", "values are plain, without tags"),
        ("a: !!binary aGVsbG8=", "without tags"),
        ("? [a]\n: 1", "expected text as a key"),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("a: \x00", "special characters are not allowed"),
        ("a: " + "9" * 5000, "thousands of digits"),
        ("a: [", "line 1"),
        (" " * (MAX_LENGTH + 1), "more than the 131,072 that are read"),
    ],
)
def test_what_is_not_plain_or_not_bounded_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "recipe 'x'")


def test_only_regular_files_of_utf8_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read_yaml(path) == {"a": 1}
    path.write_text("")
    assert read_yaml(path) == {}
    for content, message in ((b"\xff", "not UTF-8"), (b"- 1", "must be a mapping"), (b"3", "must be a mapping")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_yaml(path)
    for odd in (tmp_path, tmp_path / "none", Path("a\0b"), Path("/dev/zero")):
        with pytest.raises(InputError, match="cannot read recipe"):
            read_yaml(odd)
