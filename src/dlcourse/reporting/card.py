"""Cards: results as text, with a title and one line per entry."""

from collections.abc import Sequence


def in_columns(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """A title, and below it one line per name and text, with the texts aligned in a column."""
    width = max(len(name) for name, _ in lines if name != "not in the store")
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in lines)])
