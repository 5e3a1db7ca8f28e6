"""What a lint found, as rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One key of a config.

    Attributes:
        key: nested ones as a.b.
        says: the checkpoint's value.
        read: "yes" where another value gives another output, "no" where not, "looked at" where the code asked for the
            key and nothing follows from it, "not tried".
        effective: the value that counts instead, in words; None where that is the checkpoint's own, or nothing.
        matters: whether the implementation computes, or may compute, something else than the checkpoint says.
        why: a reason in words.
        parameters: what the key governs, by the names under which `compare` reports causes.
    """

    key: str
    says: Any
    read: str
    effective: str | None
    matters: bool
    why: str
    parameters: tuple[str, ...] = ()


@dataclass
class Lint:
    """Every key of a config under one implementation."""

    checkpoint: str
    implementation: str
    rows: list[Row]
    tokens: int
    """Of the prompt on which outputs were watched."""
    besides: list[str] = field(default_factory=list[str])
    """What differs from the declared model and is no key's doing, in words."""
    uncompared: str = ""
    """Why it could not be compared with the declared model, so that only reading was watched."""

    @property
    def mattering(self) -> list[Row]:
        """The keys that matter."""
        return [row for row in self.rows if row.matters]

    @property
    def verdict(self) -> str:
        """`matters` or `clean`."""
        return "matters" if self.mattering or self.besides else "clean"

    def __str__(self) -> str:
        from twinlens.lint import page

        return page.text(self)
