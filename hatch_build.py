"""What an index shows of the README: its links and pictures are relative here, and lead to the repository there."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class AbsoluteLinks(MetadataHookInterface):
    """Fills in `readme`, from README.md and the address under `project.urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text("utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, metadata["urls"]["Repository"]),
        }


def absolute(text: str, repository: str) -> str:
    """Markdown with `](path)` of links and pictures as addresses in the repository; anchors and addresses stay."""
    relative = r"\]\((?![a-z]+:|#|/)([^)\s]+)\)"
    text = re.sub(rf"(!\[[^]]*){relative}", rf"\1]({repository}/raw/main/\2)", text)
    return re.sub(relative, rf"]({repository}/blob/main/\1)", text)
