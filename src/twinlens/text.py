"""A spec as text, one row a step, that prints and parses.

    spec(family="llama", dtype=float32, layers=2, d_model=48, ...)
    input positions = positions + 1
    hook_embed = Embed(factor=1.0, constant="rounded")(tokens, W=weight("model.embed.weight"))

Rows are read as Python syntax trees of literals; nothing is ever evaluated. Floats are printed so
that they are read back exactly.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from typing import Any

import torch

from twinlens.errors import InputError, SpecError
from twinlens.fields import Kind, kinds
from twinlens.inputs import parse as parse_input
from twinlens.ops import REGISTRY, Op
from twinlens.sites import INPUTS
from twinlens.spec import Shape, Spec, Step, Weight

# Dotted site names (patterns too) are no Python; they are quoted before the text is parsed.
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_SITE = r"(?<![\w.])[A-Za-z_]\w*(?:\.(?:\w+|\*|\{[\d,]+\}))+"
_TOKENS = re.compile(rf"({_STRING})|({_SITE})")
_FLOATS = {"inf": float("inf"), "nan": float("nan")}


def format_spec(spec: Spec) -> str:
    """The spec as text, ending with a newline; `parse_spec` reads it back."""
    header = {"family": spec.family, "dtype": spec.dtype, **dataclasses.asdict(spec.shape)}
    lines = [f"spec({_named(header)})"]
    lines += [f"input {name} = {expression}" for name, expression in spec.inputs]
    lines += [format_step(step) for step in spec.steps]
    return "\n".join(lines) + "\n"


def format_step(step: Step) -> str:
    """`site = Op(field=value, ...)(read, ..., W=weight("name").T)`."""
    fields = _named({name: value for name, _, value in kinds(step.op)})
    weights = (f"{name}={format_value(weight)}" for name, weight in step.weights)
    arguments = ", ".join((*step.reads, *weights))
    return f"{step.writes} = {type(step.op).__name__}({fields})({arguments})"


def format_value(value: object) -> str:
    """A field's value: a literal, a dtype by its name, or a weight."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Weight):
        return f"weight({_quoted(value.name)})" + (".T" if value.transposed else "")
    if isinstance(value, torch.Tensor):
        return repr(value.item())
    return _quoted(value) if isinstance(value, str) else repr(value)


def parse_spec(text: str) -> Spec:
    """The spec that `format_spec` printed; empty lines and lines that begin with # are left out.

    Raises:
        SpecError: a line does not parse, or names an operation or field that there is not.
    """
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise SpecError("the text holds no spec; its first line is spec(family=..., ...).")
    inputs = tuple(parse_change(line) for line in lines[1:] if line.startswith("input "))
    steps = (parse_step(line) for line in lines[1:] if not line.startswith("input "))
    return dataclasses.replace(_header(lines[0]), steps=tuple(steps), inputs=inputs)


def parse_change(line: str) -> tuple[str, str]:
    """`input NAME = EXPRESSION` as (name, expression). Raises SpecError."""
    match = re.fullmatch(r"input (\w+) = (.+)", line)
    if match is None or match[1] not in INPUTS:
        raise SpecError(f"{line!r} is no input; write, say, 'input positions = positions + 1'.")
    try:
        parse_input(match[2])
    except InputError as error:
        raise SpecError(str(error)) from None
    return match[1], match[2]


def parse_step(line: str) -> Step:
    """The step that `format_step` printed. Raises SpecError."""
    site, _, rest = line.partition(" = ")
    match _tree(rest, line):
        case ast.Call(
            func=ast.Call(func=ast.Name(id=name), args=[], keywords=fields),
            args=reads,
            keywords=weights,
        ):
            op = _op(name, {str(f.arg): _value(f.value, line) for f in fields}, line)
            arguments = tuple((str(w.arg), _weight(w.value, line)) for w in weights)
            return Step(site.strip(), op, tuple(_site(r, line) for r in reads), arguments)
        case _:
            raise SpecError(f"{line!r} is no step; write 'site = Op(field=value)(read, W=...)'.")


def parse_value(text: str) -> Any:
    """The value that `format_value` printed. Raises SpecError."""
    return _value(_tree(text, text), text)


def check_field(op: type[Op], name: str, value: object) -> None:
    """Whether a field of an operation may have a value. Raises SpecError."""
    known = {f.name: f.metadata["kind"] for f in dataclasses.fields(op)}
    if name not in known:
        raise SpecError(f"{op.__name__} has no field {name!r}; it has {', '.join(known)}.")
    expectation = _expectation(known[name], value)
    if expectation:
        raise SpecError(f"{op.__name__} cannot have {name}={value!r}; it takes {expectation}.")


_TYPES: dict[str, tuple[type, ...]] = {
    "number": (float, int, torch.Tensor),
    "integer": (int,),
    "dtype": (torch.dtype,),
}


def _expectation(kind: Kind, value: object) -> str | None:
    """What a field of this kind takes, if not this."""
    if kind.name in ("choice", "order"):
        known = ", ".join(map(format_value, kind.alternatives))
        return None if value in kind.alternatives else known
    if kind.name == "size" or isinstance(value, _TYPES[kind.name]):
        return None
    if value is None and (kind.off or kind.name == "dtype"):
        return None
    return f"a {kind.name}" + (" or None" if kind.off else "")


def _op(name: str, fields: dict[str, Any], line: str) -> Op:
    if name not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        raise SpecError(f"there is no operation {name!r} (in {line!r}); known are {known}.")
    for field, value in fields.items():
        check_field(REGISTRY[name], field, value)
    required = {
        f.name for f in dataclasses.fields(REGISTRY[name]) if f.default is dataclasses.MISSING and f.name not in fields
    }
    if required:
        raise SpecError(f"{line!r} lacks {', '.join(sorted(required))} of {name}.")
    return REGISTRY[name](**fields)


def _header(line: str) -> Spec:
    match _tree(line, line):
        case ast.Call(func=ast.Name(id="spec"), args=[], keywords=keywords):
            said = {str(k.arg): _value(k.value, line) for k in keywords}
        case _:
            raise SpecError(f"{line!r} is no header; the first line is spec(family=..., ...).")
    sizes = {f.name for f in dataclasses.fields(Shape)}
    expected = {"family", "dtype", *sizes}
    if set(said) != expected:
        odd = ", ".join(sorted(set(said) ^ expected))
        raise SpecError(f"the header has too many or too few of {odd}; it takes each of these once.")
    return Spec(said["family"], (), Shape(**{s: said[s] for s in sizes}), said["dtype"])


def _tree(text: str, line: str) -> ast.expr:
    quoted = _TOKENS.sub(lambda m: m[1] or repr(m[2]), text)
    try:
        return ast.parse(quoted.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise SpecError(f"{line!r} does not parse.") from None


def _site(node: ast.expr, line: str) -> str:
    match node:
        case ast.Constant(value=str(site)) | ast.Name(id=site):
            return site
        case _:
            raise SpecError(f"{line!r} reads something that is no site.")


def _weight(node: ast.expr, line: str) -> Weight:
    value = _value(node, line)
    if not isinstance(value, Weight):
        raise SpecError(f'{line!r} has an argument that is no weight("name").')
    return value


def _value(node: ast.expr, line: str) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Tuple(elts=elements):
            return tuple(_value(e, line) for e in elements)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, line)
        case ast.Name(id=name) if name in _FLOATS:
            return _FLOATS[name]
        case ast.Name(id=name) if isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        case ast.Call(func=ast.Name(id="weight"), args=[ast.Constant(value=str(name))]):
            return Weight(name)
        case ast.Attribute(value=ast.Call() as call, attr="T"):
            return dataclasses.replace(_weight(call, line), transposed=True)
        case _:
            raise SpecError(f"{line!r} has a value that is no literal, dtype or weight.")


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={format_value(value)}" for name, value in values.items())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # its escapes are Python's
