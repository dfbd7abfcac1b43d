"""Class names and indices to labels."""

import numpy as np
import pytest
import torch

from anystep.conditioning import Conditioner, LabelEncoder
from anystep.errors import InputError


def test_names_indices_and_digits_are_labels() -> None:
    encoder = LabelEncoder(["cat", "dog", "owl"])
    assert isinstance(encoder, Conditioner)
    labels, mask = encoder(["owl", 0, "1"])
    assert labels.tolist() == [2, 0, 1]
    assert labels.dtype == torch.int64
    assert mask is None


def test_accents_are_the_same_in_both_ways_of_writing_them() -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert LabelEncoder(["a", apart])([composed])[0].tolist() == [1]
    assert LabelEncoder(["a", composed])([apart])[0].tolist() == [1]
    assert LabelEncoder([apart, composed])([composed, apart])[0].tolist() == [1, 0]


def test_text_is_a_name_before_it_is_an_index() -> None:
    assert LabelEncoder(["7", "cat", "1"])(["7", "1", "cat", "0"])[0].tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize("names", [["1", "2", "3"], ["0", "1", "10", "11", "2"], ["2", "1", "0"]])
def test_a_whole_number_is_an_index_whatever_the_classes_are_called(names: list[str]) -> None:
    encoder, indices = LabelEncoder(names), list(range(len(names)))
    for numbers in (indices, np.array(indices), torch.tensor(indices), [np.uint8(index) for index in indices]):
        assert encoder(numbers)[0].tolist() == indices
    assert encoder(names)[0].tolist() == indices


@pytest.mark.parametrize("prompt", ["02", "3", "4", "２"])
def test_digits_are_no_index_where_all_classes_are_called_by_numbers(prompt: str) -> None:
    with pytest.raises(InputError, match=r"^unknown class .*: one of 0, 1, 10, 11, 2$"):
        LabelEncoder(["0", "1", "10", "11", "2"])([prompt])


@pytest.mark.parametrize("prompt", [True, np.True_, torch.tensor(True), 1.0, torch.tensor(1.0), None, b"cat", [0]])
def test_what_is_neither_a_number_nor_text_is_refused(prompt: object) -> None:
    with pytest.raises(InputError, match="unknown class"):
        LabelEncoder(["cat", "dog"])([prompt])


def test_the_null_label_follows_the_classes() -> None:
    labels, mask = LabelEncoder(["cat", "dog"]).null(3)
    assert labels.tolist() == [2, 2, 2]
    assert mask is None


@pytest.mark.parametrize("prompt", ["horse", "Cat", "", 2, -1, "2", "-1", "1.0", "²", "9" * 50])
def test_what_is_no_class_is_one_line_that_says_what_is(prompt: str | int) -> None:
    with pytest.raises(InputError, match=r"^unknown class .*a number below 2, or one of cat, dog$") as caught:
        LabelEncoder(["cat", "dog"])([prompt])
    assert repr(prompt) in str(caught.value)


def test_many_classes_are_not_all_listed() -> None:
    with pytest.raises(InputError, match=r"one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.$"):
        LabelEncoder([str(number) for number in range(1000)])(["x"])
