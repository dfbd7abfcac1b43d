"""A source encoded once, into shards that training reads.

Shard `k` holds the examples `k * size` to `(k + 1) * size` of the source and depends on nothing else, so that processes
share the work, and one that was killed goes on with the first shard that is missing. Each shard notes what it was made
from, so that those whose examples have changed since are made again, and no others.
"""

from collections.abc import Callable
from pathlib import Path

from anystep.console import say
from anystep.data.encode import encode_shards
from anystep.data.encoders import Encoders
from anystep.data.example import Source, passed_over
from anystep.data.latents import LatentShards
from anystep.data.manifest import Manifest
from anystep.data.prepared_folder import PreparedFolder
from anystep.data.shard_layout import ShardLayout
from anystep.data.tar_folder import DATASET
from anystep.errors import one_line
from anystep.ranks import Ranks

SHARD_SIZE = 1000
KIND = "prepared data set"


def _say(line: str) -> None:
    say(one_line(line), error=True)


def prepare(
    source: Source,
    folder: Path,
    encoders: Encoders,
    ranks: Ranks | None = None,
    shard_size: int = SHARD_SIZE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = _say,
) -> LatentShards:
    """Encode every example into `folder`, or what is missing there. Unreadable ones are left out and named.

    Shards whose examples have changed since they were made are made again.

    Args:
        ranks: the processes that share the work; all call this.
        on_progress: told how many of the examples are done.
        on_note: told what somebody should know, such as which shards are made again; in the first process.

    Raises:
        InputError: no example can be read, the folder was begun with other encoders or shards, or is in use.
    """
    ranks = ranks or Ranks.single()
    made_by = {
        **encoders.made_by,
        "dtype": encoders.dtype,
        "mirror": encoders.mirror,
        "examples": len(source),
        "shard_size": shard_size,
    }
    manifest = Manifest(made_by, list(source.class_names), passed_over=passed_over(source))
    layout = ShardLayout(folder, len(source), shard_size)
    work = PreparedFolder(source, layout, manifest, on_note)
    with ranks.claimed(folder, KIND, legacy=(DATASET,)):
        if not ranks.all_gather_object(ranks.on_main(work.begin))[0]:
            with ranks.together():
                encode_shards(source, layout, encoders, ranks, on_progress)
            ranks.on_main(work.finish)
        return LatentShards(str(folder))
