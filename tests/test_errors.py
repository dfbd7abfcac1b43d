"""What a library says, as one line for whoever asked."""

from io import BytesIO

import pytest
from PIL import Image

from anystep.errors import InputError, first_line, refused


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("wrong\nand more", "wrong"),
        ("\n  \nwrong", "wrong"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("cannot read <_io.BytesIO object at 0x7f4280C8e200>, sorry", "cannot read, sorry"),
        ("a < b object at c > d", "a < b object at c > d"),
    ],
)
def test_the_first_line_that_says_something_without_places_in_memory(said: str, line: str) -> None:
    assert first_line(ValueError(said)) == line


def test_what_is_no_image_is_told_in_words() -> None:
    with pytest.raises(InputError, match=r"^image: cannot identify image file$"), refused("image"):
        Image.open(BytesIO(b"?"))
