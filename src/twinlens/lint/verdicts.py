"""Of each key: is it read, what is in effect, does it matter, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from twinlens.lint.declared import Declared, Effect, Field, differing
from twinlens.lint.effective import Effective, Known, in_terms_of
from twinlens.lint.keys import Key, dotted, drop, value_at
from twinlens.lint.result import Row
from twinlens.lint.runner import Outcome
from twinlens.lint.silence import ROTARY, ROTARY_NAMES, Move
from twinlens.parity.changes import SetField
from twinlens.parity.result import Cause
from twinlens.report import words


@dataclass
class Verdicts:
    """What was watched, for the verdict on each key."""

    declared: Declared
    effects: Mapping[Key, Effect | None]
    """What the change of a key that was tried does by declaration; None where there was none to try."""
    outcomes: Mapping[Key, Outcome]
    """What it did in the implementation."""
    reads: frozenset[str]
    opened: int
    effective: Effective
    moves: Mapping[Key, Move] = field(default_factory=dict[Key, Move])
    """Where the implementation hears what it does not hear in its place."""

    def rows(self) -> list[Row]:
        """One for each key."""
        return [self._row(key, value) for key, value in self.declared.leaves]

    def silent(self) -> list[Key]:
        """Keys that should show in the output and do not, and those that nobody knows."""
        return [
            key for key in self.outcomes if not self._reacts(key) and (self._is_shown(key) or self._is_strange(key))
        ]

    def besides(self) -> Iterator[str]:
        """What differs and belongs to no key, in words."""
        report = self.effective.report
        if report is None:
            return
        claimed = [cause for causes in self._claims.values() for cause in causes]
        for cause in report.causes:
            if not any(cause is other for other in claimed):
                yield f"{cause.parameter} at {cause.site}: {words.change(cause)}"
        if report.explained == "different":
            first = report.unexplained[0].site if report.unexplained else report.first_difference
            yield f"no cause that was tried explains the difference at {first}"

    def _row(self, key: Key, value: Any) -> Row:
        if (reason := self.declared.reason(key)) is not None:
            return Row(dotted(key), value, "not tried", None, False, reason)
        if self._is_strange(key):
            return self._strange(key, value)
        effect = self.effects.get(key)
        if effect is None:
            return self._made(key, value, "not tried", "no other value of it is known")
        if effect.kind == "nothing":
            return self._idle(key, value)
        if self._reacts(key) and (effect.kind != "refused" or self.outcomes[key].kind == "changed"):
            return self._read(key, value, effect)
        if effect.kind == "shown":
            return self._unread(key, value, effect)
        why = {
            "size": "the weights, or the code, say the same",
            "weights": "the weights allow no other value",
            "refused": "its family takes no other value that was tried",
            "hidden": f"another value shows nowhere within {self.declared.tokens.shape[1]} tokens",
        }[effect.kind]
        return self._made(key, value, self._looked(key), why)

    def _read(self, key: Key, value: Any, effect: Effect) -> Row:
        causes = self._claims.get(key, [])
        if causes:
            found = self._found(key, value, causes)
            return self._made(key, value, "yes", "it is read, and something else is computed", found, matters=True)
        why = "a size of the weights" if effect.kind == "size" else ""
        return self._made(key, value, "yes", why)

    def _unread(self, key: Key, value: Any, effect: Effect) -> Row:
        causes, silence = self._claims.get(key, []), self._silence(key)
        if causes:
            found = self._found(key, value, causes)
            taken = "default taken" if self._is_default(key, causes) else "a value of its own"
            return self._made(key, value, self._looked(key), f"{taken}: {silence}", found, matters=True)
        if self.effective.report is None:
            why = f"{silence}; what counts instead could not be measured: {self.effective.words}"
            return self._made(key, value, self._looked(key), why, "?", matters=True)
        if not self.effective.is_explained:
            why = f"{silence}, and no cause explains how the output differs"
            return self._made(key, value, self._looked(key), why, "?", matters=True)
        if all(f.parameter == "weight" for f in effect.fields):
            return self._made(key, value, self._looked(key), "the weights that are there say the same")
        dropped = self.declared.spec_of(drop(self.declared.said, key))
        if dropped is not None and not any(differing(self.declared.spec, dropped)):
            return self._made(key, value, self._looked(key), f"the default happens to fit; {silence}")
        if self.effective.verified(effect.fields):
            return self._made(key, value, self._looked(key), f"a constant of the code happens to fit; {silence}")
        why = f"{silence}; what counts instead does not show within {self.declared.tokens.shape[1]} tokens"
        return self._made(key, value, self._looked(key), why, "?", matters=True)

    def _idle(self, key: Key, value: Any) -> Row:
        """It changes nothing that is declared; perhaps because another key says the same first."""
        rival = next((k for k, v in self.declared.leaves if self._outvotes(k, v, key, value)), None)
        read = "yes" if self._reacts(key) else self._looked(key)
        if rival is not None and read != "yes":
            says = value_at(self.declared.said, rival)
            return self._made(key, value, read, f"{dotted(rival)} says otherwise, and counts", str(says), matters=True)
        return self._made(key, value, read, "off" if value is None else "nothing depends on it in this config")

    def _outvotes(self, other: Key, says: Any, key: Key, value: Any) -> bool:
        effect = self.effects.get(other)
        counts = effect is not None and effect.kind != "nothing"
        differs = says is not None and value is not None and says != value
        return counts and differs and other[-1] == key[-1] in ROTARY_NAMES

    def _strange(self, key: Key, value: Any) -> Row:
        if key not in self.outcomes:
            return self._made(key, value, self._looked(key), "off")
        if self._reacts(key):
            return self._made(key, value, "yes", "its family does not know it; what it does is not judged")
        move = self.moves.get(key)
        if move is None:
            why = "neither this implementation nor the family knows it; remove it, or correct its name"
            return self._made(key, value, self._looked(key), why, "?", matters=True)
        kind = "misspelt" if move.is_renamed else "misplaced"
        return self._made(key, value, self._looked(key), f"{kind}: {move.words}", self._default(move), matters=True)

    def _default(self, move: Move) -> str:
        """What counts in place of a key that is read under another name only."""
        meant = self.declared.spec_of(move.config)
        for f in () if meant is None else differing(self.declared.spec, meant):
            known = [Known(value_at(self.declared.said, move.key), meant)] if meant is not None else []
            step = self.declared.spec.at.get(f.site)
            if step is not None and f.name in vars(step.op):
                ours = vars(step.op)[f.name]
                found = in_terms_of(known, f, ours)
                return words.value(ours if found is None else found, f.parameter)
        return "the default"

    def _found(self, key: Key, value: Any, causes: list[Cause]) -> str:
        """The value under which the declared model would do what the implementation does."""
        told = dict[str, None]()
        for f, now in self._own(key, causes):
            found = in_terms_of(self._known(key, value), f, now)
            plain = words.value(now, f.parameter)
            told[f"{f.parameter} {plain}" if found is None else words.value(found, f.parameter)] = None
        first = causes[0]
        return (
            words.some(list(told), 2) if told else f"{first.parameter} {words.value(first.candidate, first.parameter)}"
        )

    def _own(self, key: Key, causes: list[Cause]) -> list[tuple[Field, Any]]:
        """What causes set of the fields that a key governs."""
        return [(f, now) for cause in causes for f, now in _set(cause) if self._governs(key, f)]

    def _known(self, key: Key, value: Any) -> list[Known]:
        effect = self.effects[key]
        known = [Known(value, self.declared.spec)]
        return known if effect is None or effect.spec is None else [*known, Known(effect.change.value, effect.spec)]

    def _is_default(self, key: Key, causes: list[Cause]) -> bool:
        """Whether what was found is what the config means without the key, or without the part that it stands in."""
        found = self._own(key, causes) or [pair for cause in causes for pair in _set(cause)]
        specs = [self.declared.spec_of(drop(self.declared.said, key[:n])) for n in range(len(key), 0, -1)]
        known = [[Known(True, spec)] for spec in specs if spec is not None]
        return bool(found) and any(all(in_terms_of(one, f, now) is True for f, now in found) for one in known)

    def _silence(self, key: Key) -> str:
        other = ROTARY[1 - ROTARY.index(key[0])] if key[0] in ROTARY else ""
        if self.declared.said.get(other):
            return f"{other} stands beside it, and counts"
        move = self.moves.get(key)
        if move is not None:
            return move.words
        if not self.opened:
            return "it never opens config.json"
        return (
            "it asks for the key, and this value does not arrive" if self._looked(key) != "no" else "nothing reads it"
        )

    @cached_property
    def _claims(self) -> dict[Key, list[Cause]]:
        """The causes of each key: of those that govern what a cause changes, the unread ones before the others."""
        claims: dict[Key, list[Cause]] = {}
        for cause in self.effective.causes:
            touched = [f for f, _ in _set(cause)]
            able = [k for k in self.outcomes if self._is_shown(k) and any(self._governs(k, f) for f in touched)]
            for key in [k for k in able if not self._reacts(k)] or able:
                claims.setdefault(key, []).append(cause)
        self._beside(claims)
        return claims

    def _beside(self, claims: dict[Key, list[Cause]]) -> None:
        """A key that is not read and governs the parameter of a cause, if another field: factors of no scaling."""
        for key in self.outcomes:
            if self._is_shown(key) and not self._reacts(key) and key not in claims:
                governed = {(f.site, f.parameter) for f in self._fields(key)}
                touched = [
                    c for c in self.effective.causes if any((f.site, f.parameter) in governed for f, _ in _set(c))
                ]
                if touched:
                    claims[key] = touched

    def _fields(self, key: Key) -> tuple[Field, ...]:
        effect = self.effects.get(key)
        return () if effect is None else effect.fields

    def _governs(self, key: Key, one: Field) -> bool:
        return any((f.site, f.name) == (one.site, one.name) for f in self._fields(key))

    def _is_shown(self, key: Key) -> bool:
        effect = self.effects.get(key)
        return effect is not None and effect.kind == "shown"

    def _is_strange(self, key: Key) -> bool:
        return any(key[: len(unknown)] == unknown for unknown in self.declared.unknown)

    def _reacts(self, key: Key) -> bool:
        return key in self.outcomes and self.outcomes[key].kind != "same"

    def _looked(self, key: Key) -> str:
        return "looked at" if self.opened and dotted(key) in self.reads else "no"

    def _made(
        self, key: Key, value: Any, read: str, why: str, found: str | None = None, *, matters: bool = False
    ) -> Row:
        parameters = tuple(dict.fromkeys(f.parameter for f in self._fields(key)))
        return Row(dotted(key), value, read, found, matters, why, parameters)


def _set(cause: Cause) -> Iterator[tuple[Field, Any]]:
    """The fields that a cause sets, with their values."""
    for change in cause.changes:
        if isinstance(change, SetField):
            yield from ((Field(site, change.name, cause.parameter), change.value) for site in change.sites)
