"""Class names of any script in figures."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import TYPE_CHECKING

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

if TYPE_CHECKING:
    from dlcourse.data.datamodule import CourseData
    from dlcourse.evaluation.evaluation import Evaluation
    from dlcourse.models.base import CourseModel

    FigureFunction = Callable[[CourseModel, CourseData, Evaluation], Figure]

log = logging.getLogger(__name__)

LONGEST = 20
"""Maximum number of characters of a class name in a figure."""


def legible(figures: Mapping[str, FigureFunction]) -> dict[str, FigureFunction]:
    """The same figures, with class names that are legible in any script.

    Names are drawn in fonts that have all their characters, or replaced by numbers if no such font is installed. Names
    longer than `LONGEST` characters are cut off.
    """
    return {name: _legible(draw) for name, draw in figures.items()}


def _legible(draw: FigureFunction) -> FigureFunction:
    @wraps(draw)
    def drawn(model: CourseModel, data: CourseData, evaluation: Evaluation) -> Figure:
        named = copy.copy(data)
        named.rows = dataclasses.replace(data.rows, classes=short_names(data.rows.classes))
        figure = draw(model, named, evaluation)
        write_plainly(figure, data.rows.classes)
        return figure

    return drawn


def short_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names as figures have them: up to `LONGEST` characters, or numbers if no installed font has them all."""
    if families_for(names) is None:
        return tuple(f"class {number}" for number in range(1, len(names) + 1))
    return tuple(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names)


def write_plainly(figure: Figure, names: tuple[str, ...]) -> None:
    """Write all texts of a figure in fonts that have every character of these names, and none as a formula."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(families_for(names) or rcParams["font.family"])
        text.set_parse_math(False)  # a name with two dollar signs is not a formula


@cache
def families_for(names: tuple[str, ...]) -> list[str] | None:
    """Font families that together have every character of the names, matplotlib's default first.

    None if no such font is installed, which is logged as a warning, once for these names.
    """
    wanted = {ord(character) for name in names for character in name}
    default: list[str] = list(rcParams["font.family"])
    missing = wanted - set(get_font(findfont(FontProperties())).get_charmap())
    if not missing:
        return default
    plain = [
        each for each in fontManager.ttflist if each.style == "normal" and each.weight in (400, "normal", "regular")
    ]
    for font in sorted(plain, key=lambda each: ("Sans" not in each.name, each.name)):
        if missing <= _characters(font):
            return [*default, font.name]
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(names, start=1))
    log.warning("no installed font has every character of the class names, so figures number them: %s", numbered)
    return None


def _characters(font: FontEntry) -> set[int]:
    try:
        return set(get_font(font.fname).get_charmap())
    except (OSError, RuntimeError):  # matplotlib's cached list may name fonts that were removed
        return set()
