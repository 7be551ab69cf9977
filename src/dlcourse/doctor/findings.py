"""What a training finds on this machine: software, hardware, data sets, and the store with its runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. One that is ``ok`` and has a ``remedy`` all the same is worth a thought."""

    name: str
    ok: bool
    text: str
    remedy: str = ""

    @property
    def mark(self) -> str:
        return "WRONG" if not self.ok else "note" if self.remedy else "ok"

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text
