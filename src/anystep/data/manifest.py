"""What `dataset.json` says of a prepared folder: what made it, and what became of the examples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anystep.data.example import PassedOver
from anystep.data.shards import PREPARE_AGAIN
from anystep.errors import InputError
from anystep.files import parse_json

# attributes of `ShardStats` that files know by another name
STORED_AS = {"conversions": "notes", "max_cropped": "most_cropped"}


@dataclass
class ShardStats:
    """What became of the examples of one shard, or of several.

    Attributes:
        broken: why examples were left out.
        captioned: how many have a caption.
        channels: of the latents; 0 where all examples were left out.
        conversions: how many images each conversion was done to, such as "turned upright".
        cropped: the share of each image that was cropped away, summed; and the largest.
        counted: of how many images that is.
        digest: of the examples it was made from; empty where nobody could tell.
    """

    broken: list[str] = field(default_factory=list)
    captioned: int = 0
    channels: int = 0
    conversions: dict[str, int] = field(default_factory=dict)
    cropped: float = 0.0
    max_cropped: float = 0.0
    counted: int = 0
    digest: str = ""

    @classmethod
    def parse(cls, content: Any, name: str) -> "ShardStats":
        """What a file called `name` holds. Raises InputError where that is damaged."""
        kinds = {key: type(value) for key, value in cls().content.items()}
        if not isinstance(content, dict) or not all(
            isinstance(content.get(key), (int, float) if kind is float else kind)
            for key, kind in kinds.items()
            if key in content
        ):
            raise InputError(f"{name} is damaged: {PREPARE_AGAIN}")
        stored = {name: STORED_AS.get(name, name) for name in vars(cls())}
        return cls(**{name: content[key] for name, key in stored.items() if key in content})

    @property
    def content(self) -> dict[str, Any]:
        """The stats as files hold them."""
        return {STORED_AS.get(name, name): value for name, value in vars(self).items()}

    @classmethod
    def total(cls, shards: Sequence["ShardStats"]) -> "ShardStats":
        """The stats of several shards together."""
        conversions: Counter[str] = Counter()
        for shard in shards:
            conversions.update(shard.conversions)
        return cls(
            [reason for shard in shards for reason in shard.broken],
            sum(shard.captioned for shard in shards),
            max((shard.channels for shard in shards), default=0),
            dict(conversions),
            sum(shard.cropped for shard in shards),
            max((shard.max_cropped for shard in shards), default=0.0),
            sum(shard.counted for shard in shards),
        )


@dataclass
class Manifest:
    """What `dataset.json` says of a prepared folder.

    Attributes:
        made_by: fingerprints of what made it, and how.
        class_names: of the source.
        complete: whether all shards are made.
        shards: what became of the examples of each; None in older folders, which have `total` alone.
        total: of all shards.
        passed_over: what lies in the source and is not used.
    """

    made_by: dict[str, Any]
    class_names: list[str]
    complete: bool = False
    shards: list[ShardStats] | None = None
    total: ShardStats = field(default_factory=ShardStats)
    passed_over: PassedOver = field(default_factory=PassedOver)

    @classmethod
    def parse(cls, content: str, name: str) -> "Manifest":
        """What a file called `name` holds. Raises InputError where that is damaged."""
        try:
            held = parse_json(content, name)
        except InputError as error:
            raise InputError(f"{error}: {PREPARE_AGAIN}") from None
        names, made_by, passed = held.get("class_names"), held.get("made_by"), held.get("passed_over", {})
        fine = isinstance(names, list) and all(isinstance(each, str) for each in names)
        fine = fine and isinstance(made_by, dict) and isinstance(held.get("complete"), bool)
        fine = fine and isinstance(passed, dict) and isinstance(held.get("shards", []), list)
        fine = fine and all(
            isinstance(each, list) and [type(part) for part in each] == [int, str] for each in passed.values()
        )
        if not fine:
            raise InputError(f"{name} is damaged: {PREPARE_AGAIN}")
        shards = [ShardStats.parse(each, name) for each in held["shards"]] if "shards" in held else None
        total = ShardStats.parse(held, name) if shards is None else ShardStats.total(shards)
        unused = PassedOver({kind: (count, first) for kind, (count, first) in passed.items()})
        return cls(made_by, names, held["complete"], shards, total, unused)

    @property
    def content(self) -> dict[str, Any]:
        """The manifest as `dataset.json` holds it."""
        held: dict[str, Any] = {"made_by": self.made_by, "class_names": self.class_names, "complete": self.complete}
        if self.shards is not None:
            total = ShardStats.total(self.shards).content
            held |= {name: value for name, value in total.items() if name != "digest"}
            held["shards"] = [shard.content for shard in self.shards]
        return {**held, "passed_over": self.passed_over}
