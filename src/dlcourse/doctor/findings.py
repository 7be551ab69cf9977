"""What a check of the doctor's finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check; printed as its text and the remedy.

    Attributes:
        name: What was checked, in a word.
        ok: Whether a training can go on with it.
        text: What was found.
        remedy: What to do about it. One that is ``ok`` may have one too: it is then worth a thought.
    """

    name: str
    ok: bool
    text: str
    remedy: str = ""

    @property
    def mark(self) -> str:
        """``ok``, ``note`` or ``WRONG``."""
        return "WRONG" if not self.ok else "note" if self.remedy else "ok"

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text
