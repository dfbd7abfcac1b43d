"""A source encoded once, into shards that training reads.

Shard `k` holds the examples `k * size` to `(k + 1) * size` of the source and depends on nothing else, so that processes
share the work, and one that was killed goes on with the first shard that is missing. Each shard notes what it was made
from, so that those whose examples have changed since are made again, and no others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from anystep.codecs import Codec, load_codec
from anystep.conditioning import load_caption_encoder
from anystep.console import progress_bar, say
from anystep.data.encode import Encoders, encode_shards, make_encoders
from anystep.data.example import Source, passed_over
from anystep.data.image_encoder import load_image_encoder
from anystep.data.latents import LatentShards
from anystep.data.manifest import Manifest
from anystep.data.overview import picture_of_sizes, summary
from anystep.data.prepared_folder import PreparedFolder
from anystep.data.shard_files import ShardLayout
from anystep.data.sizing import ResolutionLimits
from anystep.data.sources import open_source
from anystep.data.tar_folder import DATASET, SIZES
from anystep.device import pick_device
from anystep.errors import InputError, one_line
from anystep.files import check_claim
from anystep.ranks import Ranks

SHARD_SIZE = 1000
KIND = "prepared data set"


def prepare(
    source: Source,
    folder: Path,
    encoders: Encoders,
    ranks: Ranks | None = None,
    shard_size: int = SHARD_SIZE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda line: say(one_line(line), error=True),
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
    manifest = Manifest(
        made_by=made_by, class_names=list(source.class_names), complete=False, passed_over=passed_over(source)
    )
    layout = ShardLayout(folder, len(source), shard_size)
    work = PreparedFolder(source, layout, manifest, on_note)
    with ranks.claimed(folder, KIND, legacy=(DATASET,)):
        if not ranks.all_gather_object(ranks.on_main(work.begin))[0]:
            with ranks.together():
                encode_shards(source, layout, encoders, ranks, on_progress)
            ranks.on_main(work.finish)
        return LatentShards(str(folder))


@dataclass(frozen=True)
class Request:
    """The options of the command; `anystep data prepare --help` says what they mean."""

    source: str
    out: Path
    size: int
    native: bool = False
    longest: int | None = None
    aspect: float | None = None
    codec: str = "builtin"
    text_encoder: str | None = None
    features: str | None = None
    patch_size: int = 1
    mirror: bool = False
    dtype: str = "float16"
    shard_size: int = SHARD_SIZE
    device: str = "auto"

    def sizing(self, codec: Codec) -> int | ResolutionLimits:
        """What images become. Raises InputError for sizes that are no multiples of a token of the network."""
        if self.size % (multiple := codec.factor * self.patch_size):
            raise InputError(f"--size {self.size}: must be a multiple of {multiple}")
        if not self.native:
            for name, value in (("--longest", self.longest), ("--aspect", self.aspect)):
                if value is not None:
                    raise InputError(f"{name} {value:g} is for images of their own shape: give --native too")
            return self.size
        if (self.longest or self.size) < multiple:
            raise InputError(f"--longest {self.longest}: expected at least {multiple}")
        return ResolutionLimits.within(multiple, self.size, self.longest, self.aspect)


def prepare_data(request: Request) -> list[str]:
    """Encode a source, or what is missing of it; the first of several processes returns lines about the result."""
    ranks, device = Ranks(), pick_device(request.device)
    ranks.on_main(lambda: check_claim(request.out, KIND, legacy=(DATASET,)))  # before anything large is loaded
    codec = load_codec(request.codec, device)
    size = request.sizing(codec)
    source = open_source(request.source, size)
    encoders = make_encoders(
        codec, size, device,
        None if request.text_encoder is None else load_caption_encoder(request.text_encoder),
        None if request.features is None else load_image_encoder(request.features),
        request.patch_size, dtype=request.dtype, mirror=request.mirror,
    )  # fmt: skip
    encoders = replace(encoders, made_by={**encoders.made_by, "source": request.source})
    with progress_bar() as bar:
        task = bar.add_task("encoding", total=None)
        made = prepare(
            source, request.out, encoders, ranks, request.shard_size,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    if not ranks.is_main:
        return []
    drawn = picture_of_sizes(made, codec.factor, request.out / SIZES)
    native = " --data.native true" * request.native
    return [
        *summary(made, codec.factor),
        f"wrote {request.out}" + f", {SIZES} in it" * drawn,
        f"train with --data.source shards:{request.out} --data.size {request.size}{native}",
    ]
