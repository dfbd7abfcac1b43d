"""Numbers and their bounds: one statement for options, fields and arguments."""

import argparse
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from anystep import bounds
from anystep.bounds import Guidance, LearningRate, SamplingSteps, check, expectation, is_within, parse
from anystep.errors import InputError

KINDS = {name: kind for name, kind in vars(bounds).items() if hasattr(kind, "__metadata__")}


def test_what_is_expected_is_said_in_words() -> None:
    assert expectation(SamplingSteps) == "a whole number from 1 to 10000"
    assert expectation(LearningRate) == "a number above 0, up to 1000"


@given(st.sampled_from(sorted(KINDS)), st.one_of(st.integers(), st.floats()))
def test_options_fields_and_arguments_agree(name: str, value: int | float) -> None:
    kind = KINDS[name]
    whole = kind.__origin__ is int
    if whole and not isinstance(value, int):
        value = 3
    fits = is_within(kind, value)
    try:
        TypeAdapter(kind).validate_python(value)
        accepted = math.isfinite(value) if isinstance(value, float) else True
    except ValidationError:
        accepted = False
    assert accepted == fits
    for read in (lambda: parse(kind)(repr(value)), lambda: check("option", value, kind)):
        if fits:
            assert read() == value
        else:
            with pytest.raises((argparse.ArgumentTypeError, InputError), match="expected a"):
                read()


@pytest.mark.parametrize("text", ["", "x", "1.5", "nan", "inf", "-inf", "1e400", "9" * 5000, "１０００００"])
def test_text_that_is_no_such_number_is_said_shortly(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as told:
        parse(SamplingSteps)(text)
    assert "a whole number from 1 to 10000" in str(told.value)
    assert len(str(told.value)) < 200


def test_arguments_may_be_numbers_of_numpy_but_no_truth_values() -> None:
    assert check("steps", np.int64(4), SamplingSteps) == 4
    assert check("guidance", np.float32(1.5), Guidance) == 1.5
    for wrong in (True, "4", None, 4.5, [4]):
        with pytest.raises(InputError, match="expected a whole number"):
            check("steps", wrong, SamplingSteps)
