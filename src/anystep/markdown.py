"""Tables in Markdown, as all reports hold them."""

from collections.abc import Iterable, Sequence


def markdown_table(heads: Sequence[str | None], rows: Iterable[Sequence[object]], columns: str = "l") -> list[str]:
    """The lines of a table.

    Args:
        heads: of the columns; None leaves one without a head.
        columns: how each column is aligned: `l` left, `r` right; those that are not named are aligned right.
    """
    rules = ["---" if side == "l" else "--:" for side in columns.ljust(len(heads), "r")]
    return ["|" + "".join(f"{_cell(each)} |" for each in cells) for cells in (heads, rules, *rows)]


def _cell(content: object) -> str:
    return "" if content is None else f" {content}".replace("|", "\\|").replace("\n", " ")
