"""The real images of a report, and those that something is chosen by."""

from pathlib import Path

import pytest

from anystep.data.sources import open_source
from anystep.evaluation.reference import Reference
from anystep.evaluation.settings import VALIDATION_SEED


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_validation_has_nothing_in_common_with_what_is_reported(classes: Path, seed: int) -> None:
    source = open_source(f"classes:{classes}", 8)
    whole, test, validation = (
        Reference.draw(source, 8, 40, 0 if part == "validation" else seed, part)
        for part in ("whole", "test", "validation")  # type: ignore[arg-type]
    )
    assert (whole.real, whole.held_out) == (test.real, test.held_out)
    assert not {*validation.real, *validation.held_out} & {*test.real, *test.held_out}
    assert (whole.real == Reference.draw(source, 8, 40, 0).real) == (seed == 0)
    most = [Reference.draw(source, 8, 1000, 0, part) for part in ("test", "validation")]  # type: ignore[arg-type]
    drawn = [index for each in most for index in (*each.real, *each.held_out)]
    assert len(drawn) == len(set(drawn)) == 220
    assert VALIDATION_SEED > 10**9
