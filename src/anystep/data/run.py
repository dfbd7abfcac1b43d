"""`anystep data prepare`: from what was asked for to shards in a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anystep.codecs import Codec, load_codec
from anystep.conditioning import load_text_encoder
from anystep.console import progress_bar
from anystep.data.encoders import make_encoders
from anystep.data.image_encoder import load_image_encoder
from anystep.data.prepare import KIND, SHARD_SIZE, prepare
from anystep.data.sizing import ResolutionLimits
from anystep.data.sources import open_source
from anystep.data.summary import picture_of_sizes, summary
from anystep.data.tar_folder import DATASET, SIZES
from anystep.device import pick_device
from anystep.errors import InputError
from anystep.files import check_claim
from anystep.ranks import Ranks


@dataclass(frozen=True)
class Request:
    """The options of the command; `anystep data prepare --help` says what they mean."""

    source: str
    out: Path
    size: int
    native: bool = False
    longest: int | None = None
    aspect: float = 5.0
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
    options: dict[str, Any] = {"dtype": request.dtype, "mirror": request.mirror}
    encoders = make_encoders(
        codec, size, device,
        None if request.text_encoder is None else load_text_encoder(request.text_encoder),
        None if request.features is None else load_image_encoder(request.features),
        request.patch_size, **options,
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
