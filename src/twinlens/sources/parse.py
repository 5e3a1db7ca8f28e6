"""Source strings: `KIND:PATH?options@environment`, read and printed.

    hf:PATH                                        transformers; a model folder or a .gguf file
    tl:PATH?model=gpt2                             TransformerLens, its table's entry for `gpt2`
    native:PATH                                    twinlens's own model
    torch:FILE.py:make                             whatever module `make()` returns
    hf:PATH?attn=sdpa&dtype=bfloat16@transformers==4.43.2
    PATH                                           a model folder, a .gguf file or a recording

The environment is the last `@` that is followed by requirements, the options the last `?` that is
followed by `key=value`. A path that holds such a character itself is closed by an empty option or
environment list: `hf:models/a@b@`, `hf:what?.gguf?`.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from twinlens.errors import SourceError

KINDS = {
    "hf": "hf:PATH",
    "tl": "tl:PATH",
    "native": "native:PATH",
    "torch": "torch:FILE.py:make",
    "recording": "recording:PATH",
}
"""The kinds of source, each with the form in which it is written."""

DTYPES = ("float32", "float64", "bfloat16", "float16")
ATTENTIONS = ("eager", "sdpa")

# What each option of each kind may be; None: anything.
_KNOWN: dict[str, dict[str, tuple[str, ...] | None]] = {
    "hf": {"attn": ATTENTIONS, "dtype": DTYPES},
    "native": {"attn": ATTENTIONS, "dtype": DTYPES},
    "tl": {"dtype": DTYPES, "model": None},
    "recording": {},
}

# A name, perhaps with extras, perhaps with version clauses. A clause after a comma belongs to the
# requirement before it, so that `transformers>=4.43,<5` is one requirement.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:\[[A-Za-z0-9._,-]+\])?"
_CLAUSE = r"(?:===|==|~=|!=|<=|>=|<|>)[A-Za-z0-9.*+!_-]+"
_REQUIREMENT = re.compile(rf"{_NAME}(?:{_CLAUSE}(?:,{_CLAUSE})*)?")
_REQUIREMENTS = re.compile(rf"(?:{_REQUIREMENT.pattern})(?:,(?:{_REQUIREMENT.pattern}))*")
_OPTIONS = re.compile(r"[A-Za-z_]\w*=[^?&@]+(?:&[A-Za-z_]\w*=[^?&@]+)*")
_FUNCTION = re.compile(r".+\.py:[A-Za-z_]\w*")


@dataclass(frozen=True)
class SourceString:
    """What to run, how, and in which environment; `str()` prints what `parse` reads.

    Attributes:
        kind: one of `KINDS`.
        path: a folder or file; for `torch` the file and its function, `FILE.py:make`.
        options: `attn`, `dtype`, `model`; for `torch` the keyword arguments of the function.
        requirements: what the environment holds, `transformers==4.43.2`; empty: this one.
            `python==3.12` picks the interpreter.
    """

    kind: str
    path: str
    options: dict[str, str] = field(default_factory=dict[str, str], hash=False)
    requirements: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The canonical text."""
        options = "&".join(f"{key}={value}" for key, value in self.options.items())
        environment = ",".join(self.requirements)
        question = "?" if options or "?" in self.path else ""
        at = "@" if environment or "@" in self.path else ""
        return f"{self.kind}:{self.path}{question}{options}{at}{environment}"

    def absolute(self) -> "SourceString":
        """The same source with an absolute path, for a process that starts in another folder."""
        return SourceString(self.kind, str(Path(self.path).absolute()), self.options, self.requirements)


def parse(text: str) -> SourceString:
    """Read a source string.

    Only a bare path looks at the disk: it is a recording where its manifest says so, else a model.

    Raises:
        SourceError: unknown kind, option, value or form; a bare path that names no model.
    """
    rest, requirements = _split_environment(text)
    rest, options = _split_options(rest, text)
    kind, colon, path = rest.partition(":")
    if not colon or kind not in KINDS:
        _refuse_unknown_kind(kind, colon, rest)
        kind, path = _kind_of_path(rest), rest
    if not path:
        raise SourceError(f"Source {text!r} names no path; write {KINDS[kind]}.")
    if kind == "torch" and not _FUNCTION.fullmatch(path):
        raise SourceError(
            f"Source {text!r} names no function; write torch:FILE.py:make, where make() returns "
            "a module, or a module and a call."
        )
    _check_options(kind, options, text)
    return SourceString(kind, path, options, requirements)


def _split_environment(text: str) -> tuple[str, tuple[str, ...]]:
    before, at, after = text.rpartition("@")
    if not at or "/" in after or "\\" in after:
        return text, ()
    if after and not _REQUIREMENTS.fullmatch(after):
        if not re.search(r"[=<>~,]", after) or re.search(r"[?&]", after):
            return text, ()  # an @ of the path itself: hf:folder@v 2
        raise SourceError(
            f"Environment {after!r} in {text!r} is not a list of requirements; write "
            "NAME==VERSION, several separated by commas, such as @transformers==4.43.2."
        )
    # A name directly after a comma starts a new requirement, an operator continues the last one.
    return before, tuple(piece for piece in re.split(r",(?=[A-Za-z0-9])", after) if piece)


def _split_options(rest: str, text: str) -> tuple[str, dict[str, str]]:
    before, question, after = rest.rpartition("?")
    if not question or "/" in after.partition("=")[0]:
        return rest, {}
    if after and not _OPTIONS.fullmatch(after):
        raise SourceError(
            f"Options {after!r} in {text!r} are not of the form key=value&key=value; write "
            "?attn=sdpa&dtype=float32, or end a path that holds a question mark with another one."
        )
    options: dict[str, str] = {}
    for key, _, value in (pair.partition("=") for pair in after.split("&") if pair):
        if key in options:
            raise SourceError(f"Option {key!r} stands twice in {text!r}; keep one.")
        options[key] = value
    return before, options


def _refuse_unknown_kind(kind: str, colon: str, rest: str) -> None:
    # One letter before a colon is a drive (C:\model), and a file may have a colon in its name.
    if colon and re.fullmatch(r"[A-Za-z]\w+", kind) and not Path(rest).exists():
        raise SourceError(
            f"{kind!r} in {rest!r} is not a kind of source; the kinds are {', '.join(KINDS.values())}, and a bare PATH."
        )


def _kind_of_path(path: str) -> str:
    place = Path(path)
    if _is_recording(place):
        return "recording"
    if place.suffix == ".gguf" or (place / "config.json").is_file():
        return "hf"
    what = "holds neither config.json nor a recording" if place.exists() else "does not exist"
    raise SourceError(
        f"{path!r} {what}; give a model folder, a .gguf file, a recording, or one of {', '.join(KINDS.values())}."
    )


def _is_recording(place: Path) -> bool:
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # absent, or another program's file of that name
    return isinstance(manifest, dict) and "twinlens" in manifest


def _check_options(kind: str, options: dict[str, str], text: str) -> None:
    if kind == "torch":
        return  # they are the function's own arguments
    known = _KNOWN[kind]
    for key, value in options.items():
        if key not in known:
            allowed = f"it takes {', '.join(known)}" if known else "it takes none"
            raise SourceError(f"Option {key!r} in {text!r} is not one of {kind}; {allowed}.")
        values = known[key]
        if values is not None and value not in values:
            raise SourceError(f"{key}={value} in {text!r} is unknown; it is {' or '.join(values)}.")
