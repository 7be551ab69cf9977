"""Cards: what people read of a result, a title and a line for each figure."""

from collections.abc import Sequence


def in_columns(title: str, lines: Sequence[tuple[str, str]]) -> str:
    """A title, and below it a line for each name and text, the texts in one column."""
    width = max(len(name) for name, _ in lines if name != "not in the store")
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in lines)])
