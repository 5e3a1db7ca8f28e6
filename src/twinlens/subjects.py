"""Whatever can be recorded: a live module, the native model, a recording, a source here or elsewhere."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from twinlens.cached import calls_of
from twinlens.capture import Placement, compared_weights, invoke, record_calls
from twinlens.capture import record as capture_record
from twinlens.checkpoint import Checkpoint, from_module, open_checkpoint
from twinlens.environments.elsewhere import Mend, record_elsewhere
from twinlens.errors import ComparisonError, SourceError
from twinlens.families import declare, is_declared
from twinlens.loading import kernel_of
from twinlens.model import Model
from twinlens.recording import Call, Recording
from twinlens.sources.build import build
from twinlens.sources.parse import ATTENTIONS, DTYPES, SourceString, parse
from twinlens.spec import Spec, Weights
from twinlens.tensors import check_real, read_json

Say = Callable[[str], None]
"""Told in a few words what is going on."""


def say_nothing(words: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Declaration:
    """What a model is said to be: its steps and its weights."""

    spec: Spec
    weights: Weights
    checkpoint: Checkpoint | None = None
    placements: list[Placement] = field(default_factory=list[Placement], repr=False, compare=False)
    """Where the sites of modules are that were recorded under it."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, attention: str = "eager", dtype: torch.dtype | None = None) -> Declaration:
        """Of a checkpoint; its weights are checked to be there, of the right shapes and finite."""
        dtype = dtype or checkpoint.dtype
        spec = declare(checkpoint.config, dtype=dtype, attention=attention)
        checkpoint.check(spec)
        return cls(spec, spec.in_dtype(checkpoint.weight), checkpoint)


@runtime_checkable
class Subject(Protocol):
    """One side of a comparison."""

    name: str

    def said(self) -> Spec | None:
        """The spec of its config, whatever its weights; None where it says nothing that is known."""
        ...

    def declaration(self) -> Declaration | None:
        """What its own config says that it is; None where it has none."""
        ...

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """One run of it; `calls` are the lengths of several, with a key/value cache."""
        ...

    def again(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        """The logits of one more run; None where that could be none, or only the same."""
        ...


class _Once:
    """What is not run a second time."""

    def again(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        """None."""
        return None


@dataclass
class Live:
    """A torch module in this process."""

    module: nn.Module
    call: Callable[[Tensor, Tensor | None], Any] | None = None
    name: str = ""
    about: dict[str, Any] = field(default_factory=dict[str, Any])

    def said(self) -> Spec | None:
        """From the module's own config, where it is a transformers model of a known family."""
        if not self._is_of_a_family():
            return None
        return declare(from_module(self.module).config, attention=kernel_of(self.module))

    def declaration(self) -> Declaration | None:
        """Of its config and its own parameters."""
        if not self._is_of_a_family():
            return None
        return Declaration.of(from_module(self.module), kernel_of(self.module))

    def _is_of_a_family(self) -> bool:
        config = getattr(self.module, "config", None)  # the border: any module may stand here
        return hasattr(config, "to_dict") and is_declared(getattr(config, "model_type", None))

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """Its tensors, placed by weights and by replay."""
        say(f"recording {self.name}")
        with self._in_evaluation():
            if calls is not None:
                ids, mask = self._there(tokens, mask)
                return record_calls(
                    self.module, declared.spec, declared.weights, ids, mask, calls, call=self.call, about=self.about
                )
            return capture_record(
                self.module, declared.spec, declared.weights, *self._there(tokens, mask), call=self.call,
                about=self.about, known=declared.placements,
            )  # fmt: skip

    def again(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The logits of one more call."""
        with self._in_evaluation(), torch.no_grad():
            return invoke(self.module, *self._there(tokens, mask), self.call)

    def _there(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """On the module's device."""
        at = next((p.device for p in self.module.parameters()), tokens.device)
        return tokens.to(at), None if mask is None else mask.to(at)

    @contextmanager
    def _in_evaluation(self) -> Generator[None]:
        training = [m for m in self.module.modules() if m.training]
        self.module.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @property
    def drops(self) -> bool:
        """Whether a call as it stands would drop out at random what it computes."""
        return any(m.training and any(map(_is_chance, vars(m).items())) for m in self.module.modules())


def _is_chance(attribute: tuple[str, Any]) -> bool:
    """A probability of dropping out: `p` of torch's own modules, `attention_dropout`, `resid_pdrop` and the like."""
    name, value = attribute
    return (name == "p" or "drop" in name) and isinstance(value, float) and value > 0.0


@dataclass
class Native(_Once):
    """The declared model itself."""

    model: Model
    name: str = "native"

    def said(self) -> Spec:
        """Its own."""
        return self.model.spec

    def declaration(self) -> Declaration:
        """Its own."""
        return Declaration(self.model.spec, self.model.weight)

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """Every site that its kernels show."""
        say(f"running {self.name}")
        model = self.model if calls is None else self.model.stepwise()
        names, made = [s for s in model.spec.sites if s not in model.spec.hidden], list[Call]()
        for ids, key_mask in calls_of(tokens, mask, calls or tokens.shape[1:]):
            rows = None if mask is None else key_mask[:, -ids.shape[1] :]
            logits, cache = model.run_with_cache(ids, rows, names=names)
            made.append(Call.of({**cache, "logits": logits}, ids, mask=rows, later=bool(made)))
        own = {name: self.model.weight(name) for name in declared.spec.weight_names}
        differ, alike = compared_weights(own, declared.weights)
        about = {"implementation": "twinlens"}
        return Recording(calls=made, about=about, weights=differ, weights_equal=frozenset(alike))


@dataclass
class Recorded(_Once):
    """A recording that is there already."""

    recording: Recording
    name: str = "recording"

    def said(self) -> Spec | None:
        """Of the config in its manifest."""
        config = self.recording.config or {}
        return declare(config) if is_declared(config.get("model_type")) else None

    def declaration(self) -> Declaration | None:
        """Of the checkpoint that its manifest names, if that is still there."""
        where = (self.recording.checkpoint or {}).get("path")
        if where is None or not Path(where).exists():
            return None
        declared = declared_at(where, **self.options)
        self._check_same(declared.checkpoint)
        return declared

    @property
    def options(self) -> dict[str, str]:
        """How it was made, as far as a source can say it."""
        about, known = self.recording.about, {"attn": ATTENTIONS, "dtype": DTYPES}
        return {k: str(about[k]) for k, values in known.items() if about.get(k) in values}

    def _check_same(self, checkpoint: Checkpoint | None) -> None:
        """Raises ComparisonError where the checkpoint has become another one since it was recorded."""
        recorded = (self.recording.checkpoint or {}).get("sha256")
        if recorded is not None and checkpoint is not None and checkpoint.fingerprint() != recorded:
            raise ComparisonError(
                f"{checkpoint.path} holds other weights than when {self.name} was recorded (its hash has changed); "
                "give the checkpoint that was recorded with --model PATH, or record again"
            )

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """Itself; it must be of the tokens that the other side ran."""
        return self.recording


@dataclass
class Elsewhere(_Once):
    """A source that runs in an environment of its own."""

    source: SourceString
    name: str = ""
    mend: Mend | None = None
    """Instructions by which the source is mended before it is recorded."""
    words: list[str] = field(default_factory=list[str])
    """What was done to mend it, in its own words."""

    def said(self) -> Spec:
        """Of the config on disk."""
        return declare(open_checkpoint(self.source.path).config)

    def declaration(self) -> Declaration:
        """Of the checkpoint on disk."""
        return declared_at(self.source.path, **self.source.options)

    def record(
        self, declared: Declaration, tokens: Tensor, mask: Tensor | None, say: Say, calls: Sequence[int] | None = None
    ) -> Recording:  # fmt: skip
        """Run the recorder there, and read what it wrote."""
        say(f"recording {self.name}")
        folder = tempfile.mkdtemp(prefix="twinlens-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # it lives as long as the subject
        out = Path(folder) / "recording"
        made = record_elsewhere(self.source, tokens, mask, out, mend=self.mend, say=say, calls=calls)
        self.words = list(made.about.get("mended", []))
        return made


def declared_at(path: str, **options: str) -> Declaration:
    """The declaration of a folder, or of a .gguf file, which transformers reads."""
    dtype = getattr(torch, options["dtype"]) if "dtype" in options else None
    if path.endswith(".gguf"):
        built = build(parse(f"hf:{path}?dtype={options.get('dtype', 'float32')}"))
        return Declaration.of(from_module(built.module), options.get("attn", "eager"))
    return Declaration.of(open_checkpoint(path), options.get("attn", "eager"), dtype or torch.float32)


def subject(of: object, call: Callable[..., Any] | None = None) -> Subject:
    """What somebody gives to `compare`, as a subject.

    Raises:
        SourceError: it is nothing that can be recorded.
        CheckpointError: it is a module without numbers.
    """
    if isinstance(of, nn.Module):
        check_real(of)
        return Live(of, call, type(of).__name__)
    if isinstance(of, Model):
        return Native(of)
    if isinstance(of, Recording):
        return Recorded(of, str(of.about.get("implementation", "recording")))
    if isinstance(of, str | Path):
        return _of_source(parse(str(of)))
    raise SourceError(
        f"a {type(of).__name__} cannot be recorded; give a torch module, a Recording, a native model, "
        "a path, or a source such as hf:PATH."
    )


def _of_source(source: SourceString) -> Subject:
    if source.kind == "recording":
        return Recorded(Recording.load(source.path), source.path)
    if source.requirements:
        return Elsewhere(source.absolute(), str(source))
    if source.kind == "native":
        declared = declared_at(source.path, **source.options)
        return Native(Model(declared.spec, declared.weights), str(source))
    config = Path(source.path) / "config.json"
    if config.is_file():
        declare(read_json(config, "give a folder with config.json"))  # before others say less of an unknown family
    built = build(source)
    return Live(built.module, built.call, str(source), dict(built.about))


def agreed(reference: Subject, candidate: Subject) -> Declaration:
    """The declaration under which both are judged: the reference's own, else the candidate's.

    Raises:
        UnknownArchitecture: a transformers model of a family that is not declared.
        ComparisonError: neither says what it is, or they are of different families or sizes.
    """
    ours, theirs = reference.declaration(), candidate.said()
    declared = ours or candidate.declaration()
    if declared is None:
        for side in (reference, candidate):
            if isinstance(side, Live) and hasattr(getattr(side.module, "config", None), "to_dict"):
                declare(from_module(side.module).config)  # says which families are known, and how to add one
        raise ComparisonError(
            f"neither {reference.name} nor {candidate.name} says what model it is; "
            "give --model PATH of a checkpoint with a config.json"
        )
    if ours is not None and theirs is not None:
        check_alike(ours.spec, theirs)
    return declared


def check_alike(a: Spec, b: Spec) -> None:
    """Raises ComparisonError for models of another family or size: no edit makes one of the other."""
    if a.family != b.family:
        raise ComparisonError(
            f"the reference is a {a.family} and the candidate a {b.family}; compare models of one family"
        )
    for what in ("layers", "d_model", "heads", "kv_heads", "head_width", "mlp_width", "vocabulary"):
        x, y = getattr(a.shape, what), getattr(b.shape, what)
        if x != y and x is not None and y is not None:
            raise ComparisonError(
                f"the reference has {what.replace('_', ' ')} {x} and the candidate {y}; "
                "compare two implementations of one checkpoint"
            )
