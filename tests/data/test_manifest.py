"""What a prepared folder says of itself."""

from pathlib import Path

import pytest
from helpers import Colours, encoders

from anystep.data.latents import LatentShards
from anystep.data.prepare import prepare
from anystep.errors import InputError


@pytest.mark.parametrize(
    "said",
    [
        "", "[]", "{", "[" * 100_000, '{"complete": true}', '{"complete": true, "made_by": {}, "class_names": [1]}',
        '{"complete": true, "made_by": {}, "class_names": [], "broken": 5}',
        '{"complete": true, "made_by": {}, "class_names": [], "shards": [5]}',
        '{"complete": true, "made_by": {}, "class_names": [], "passed_over": {"a": 1}}',
    ],
)  # fmt: skip
def test_a_damaged_description_is_one_line(tmp_path: Path, said: str) -> None:
    prepare(Colours(), tmp_path, encoders())
    (tmp_path / "dataset.json").write_text(said)
    with pytest.raises(InputError, match=r"dataset\.json.*: run the same `anystep data prepare` again"):
        LatentShards(str(tmp_path))
