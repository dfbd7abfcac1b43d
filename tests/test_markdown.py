"""Tables in Markdown."""

from anystep.markdown import markdown_table


def test_the_first_column_is_left_and_the_others_right_where_nothing_is_said() -> None:
    assert markdown_table(["name", "a", "b"], [["one", 1, 2.5], ["two", "", None]]) == [
        "| name | a | b |",
        "| --- | --: | --: |",
        "| one | 1 | 2.5 |",
        "| two |  | |",
    ]


def test_a_bar_or_a_line_break_in_a_cell_ends_none() -> None:
    assert markdown_table(["a|b"], [["c\nd"]]) == ["| a\\|b |", "| --- |", "| c d |"]


def test_columns_are_aligned_as_they_are_named() -> None:
    assert markdown_table([None, "steps", "plan"], [], "rrl") == ["| | steps | plan |", "| --: | --: | --- |"]
