"""What `dataset.json` says of a prepared folder: what made it, and what became of the examples."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anystep.data.shards import PREPARE_AGAIN
from anystep.errors import InputError
from anystep.files import parse_json


class ShardStats(BaseModel):
    """What became of the examples of one shard, or of several.

    Attributes:
        broken: why examples were left out.
        unread: how many of these because a file could not be read, which may pass.
        captioned: how many have a caption.
        channels: of the latents; 0 where all examples were left out.
        conversions: how many images, or captions, each conversion was done to, such as "turned upright".
        cropped: the share of each image that was cropped away, summed; and the largest.
        counted: of how many images that is.
        enlarged: how many images were enlarged; and the largest factor.
        digest: of the examples it was made from; empty where nobody could tell.
    """

    model_config = ConfigDict(strict=True, populate_by_name=True)  # aliases are the names in files

    broken: list[str] = []
    unread: int = 0
    captioned: int = 0
    channels: int = 0
    conversions: dict[str, int] = Field({}, alias="notes")
    cropped: float = 0.0
    max_cropped: float = Field(0.0, alias="most_cropped")
    counted: int = 0
    enlarged: int = 0
    max_enlarged: float = 0.0
    digest: str = ""

    @classmethod
    def parse(cls, content: Any, name: str) -> "ShardStats":
        """What a file called `name` holds. Raises InputError where that is damaged."""
        try:
            return cls.model_validate(content)
        except ValidationError:
            raise InputError(f"{name} is damaged: {PREPARE_AGAIN}") from None

    @property
    def content(self) -> dict[str, Any]:
        """The stats as files hold them."""
        return self.model_dump(by_alias=True)

    @classmethod
    def total(cls, shards: Sequence["ShardStats"]) -> "ShardStats":
        """The stats of several shards together."""
        conversions: Counter[str] = Counter()
        for shard in shards:
            conversions.update(shard.conversions)
        return cls(
            broken=[reason for shard in shards for reason in shard.broken],
            unread=sum(shard.unread for shard in shards),
            captioned=sum(shard.captioned for shard in shards),
            channels=max((shard.channels for shard in shards), default=0),
            conversions=dict(conversions),
            cropped=sum(shard.cropped for shard in shards),
            max_cropped=max((shard.max_cropped for shard in shards), default=0.0),
            counted=sum(shard.counted for shard in shards),
            enlarged=sum(shard.enlarged for shard in shards),
            max_enlarged=max((shard.max_enlarged for shard in shards), default=0.0),
        )


class Manifest(BaseModel):
    """What `dataset.json` says of a prepared folder.

    Attributes:
        made_by: fingerprints of what made it, and how.
        class_names: of the source.
        complete: whether all shards are made.
        shards: what became of the examples of each; None in older folders, which have `total` alone.
        total: of all shards; in the file its entries stand beside the others.
        passed_over: what lies in the source and is not used.
    """

    made_by: dict[str, Any]
    class_names: list[str]
    complete: bool
    shards: list[ShardStats] | None = None
    total: ShardStats = ShardStats()
    passed_over: dict[str, tuple[int, str]] = {}

    @classmethod
    def parse(cls, content: str, name: str) -> "Manifest":
        """What a file called `name` holds. Raises InputError where that is damaged."""
        try:
            held = parse_json(content, name)
            made = cls.model_validate({**held, "total": held})
        except ValidationError:
            raise InputError(f"{name} is damaged: {PREPARE_AGAIN}") from None
        except InputError as error:
            raise InputError(f"{error}: {PREPARE_AGAIN}") from None
        if made.shards is not None:
            made.total = ShardStats.total(made.shards)
        return made

    @property
    def content(self) -> dict[str, Any]:
        """The manifest as `dataset.json` holds it."""
        held: dict[str, Any] = {"made_by": self.made_by, "class_names": self.class_names, "complete": self.complete}
        if self.shards is not None:
            total = ShardStats.total(self.shards).content
            held |= {name: value for name, value in total.items() if name != "digest"}
            held["shards"] = [shard.content for shard in self.shards]
        return {**held, "passed_over": self.passed_over}
