"""Data parallelism: what several processes cannot do."""

import pytest

from anystep.errors import InputError
from anystep.ranks import Ranks
from anystep.training.parallel import check_parallel


def test_what_processes_cannot_do_is_one_line() -> None:
    ranks = Ranks()
    ranks.count = 3
    with pytest.raises(InputError, match="3 processes would each train alone"):
        check_parallel("none", ranks)
    with pytest.raises(InputError, match="3 processes are no multiple of the 2 that share one copy"):
        check_parallel("hsdp", ranks, 2)
