"""What a model is given: tokens, mask, positions, slots, checked and changed as a spec says."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from twinlens.errors import InputError
from twinlens.ids import INTEGERS, Ids, like, padding, tensor_of, whole
from twinlens.sites import INPUTS
from twinlens.spec import Shape, Spec


def given(
    tokens: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    changes: Iterable[tuple[str, str]] = (),
    key_mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """The sites `tokens`, `positions`, `mask` [b p], `slots` [p] and `key_mask` [b s] of one call.

    `changes` are those that a spec makes of them (`Spec.inputs`). `key_mask` is of all slots where earlier calls left
    some: the call's own are the last.
    Positions count from 0 whatever the mask says, as transformers does in a plain forward. They are made of the shape
    of the tokens alone: what is captured while this runs must not take them for something that tokens decide.
    """
    before = 0 if key_mask is None else key_mask.shape[1] - tokens.shape[1]
    slots = _inputs(_behind(before, tokens), mask if key_mask is None else key_mask)
    if positions is not None:
        slots["positions"] = _behind(before, positions.long().to(tokens.device))
    slots |= {name: evaluate(text, slots, name) for name, text in changes}
    own = {name: value[..., before:] for name, value in slots.items()} if before else slots
    return own | {"key_mask": slots["mask"]}


def _behind(before: int, values: Tensor) -> Tensor:
    """In its slots; what stood in those before is not known, and nothing asks."""
    return torch.nn.functional.pad(values, (before, 0)) if before else values


def _inputs(tokens: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    slots = torch.arange(tokens.shape[1], device=tokens.device)
    return {
        "tokens": tokens.long(),
        "positions": slots.expand(tokens.shape),
        "mask": torch.ones_like(tokens).long() if mask is None else mask.long().to(tokens.device),
        "slots": slots,
    }


def prepare(
    spec: Spec,
    tokens: Tensor,
    attention_mask: Ids | None = None,
    positions: Ids | None = None,
    before: Tensor | None = None,
) -> dict[str, Tensor]:
    """The sites `tokens`, `positions`, `mask` [b p], `slots` [p] and `key_mask` [b s] of one call.

    Checked; a spec's own changes (`spec.inputs`) come last. `before` is the mask [b u] of the slots that earlier calls
    left.

    Raises:
        InputError: tokens are empty, no ids of the vocabulary or too long; the mask or positions
            have another shape, or other numbers than such can be.
    """
    check_tokens(spec.shape, tokens)
    mask = None if attention_mask is None else padding(attention_mask, tokens, "attention_mask")
    at = None if positions is None else like(tokens, "positions", whole("positions", positions))
    if before is not None:
        if before.shape[0] != tokens.shape[0]:
            raise InputError(
                f"the calls before ran {before.shape[0]} rows and this one has {tokens.shape[0]}; go on with as many."
            )
        real = torch.ones_like(tokens) if mask is None else mask
        before = torch.cat((before.to(real), real), dim=1)
    _check_positions(spec.shape, given(tokens, mask, at, key_mask=before)["positions"])
    return given(tokens, mask, at, spec.inputs, before)


def check_tokens(shape: Shape, tokens: object) -> None:
    """Raises InputError for what are no ids of this vocabulary, [batch, position]."""
    if not isinstance(tokens, Tensor) or tokens.dtype not in INTEGERS:
        kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(f"tokens are {kind}; give token ids as an integer tensor [batch, position].")
    tensor_of("tokens", tokens)
    if tokens.ndim != 2:
        raise InputError(
            f"tokens have the shape {list(tokens.shape)}; give [batch, position], tokens[None] for one prompt."
        )
    if tokens.numel() == 0:
        raise InputError(f"tokens are empty ({list(tokens.shape)}); give at least one token.")
    low, high = (int(t) for t in tokens.aminmax())
    if low < 0 or high >= shape.vocabulary:
        b, p = ((tokens < 0) | (tokens >= shape.vocabulary)).nonzero()[0].tolist()
        raise InputError(
            f"tokens[{b}, {p}] is {int(tokens[b, p])}; this model's ids are 0 to "
            f"{shape.vocabulary - 1}: use its own tokenizer."
        )


def _check_positions(shape: Shape, positions: Tensor) -> None:
    low, high = (int(t) for t in positions.aminmax())
    if low < 0 or (shape.positions is not None and high >= shape.positions):
        last = "" if shape.positions is None else f" to {shape.positions - 1}"
        raise InputError(f"positions run from {low} to {high}; this model has positions 0{last}: shorten the prompt.")


# An expression is arithmetic over the inputs: `positions + 1`, `mask * 0 + 1`,
# `maximum(cumsum(mask) - 1, 0)`.
_BINARY: Mapping[type[ast.operator], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.FloorDiv: lambda x, y: torch.div(x, y, rounding_mode="floor"),
    ast.Mod: torch.remainder,
}
_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "cumsum": lambda x: x.cumsum(-1),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


def evaluate(text: str, values: Mapping[str, Tensor], name: str) -> Tensor:
    """An expression over the inputs, in the shape of the input `name` that it replaces.

    Raises:
        InputError: it is no arithmetic over whole numbers and inputs.
    """
    result = _value(parse(text), values, text)
    return result.expand_as(values[name]).to(values[name].dtype)


def parse(text: str) -> ast.expr:
    """The tree of an expression, checked to be one that `evaluate` knows.

    Raises:
        InputError: it is not.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise _unknown(text) from None
    _check(tree, text)
    return tree


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.Constant(value=int()) if not isinstance(node.value, bool):
            return
        case ast.Name(id=name) if name in INPUTS:
            return
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, text)
            _check(right, text)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS and len(arguments) == (
            1 if name == "cumsum" else 2
        ):
            for argument in arguments:
                _check(argument, text)
        case _:
            raise _unknown(text)


def _value(node: ast.expr, values: Mapping[str, Tensor], text: str) -> Tensor:
    match node:
        case ast.Constant(value=int(number)):
            return torch.tensor(number, device=values["tokens"].device)
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(operand=operand):
            return -_value(operand, values, text)
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, values, text), _value(right, values, text))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_value(a, values, text) for a in arguments))
        case _:
            raise _unknown(text)


def _unknown(text: str) -> InputError:
    return InputError(
        f"{text!r} is no change of an input; write whole numbers, {', '.join(INPUTS)}, + - * // % and "
        f"{', '.join(_FUNCTIONS)}, as in 'positions + 1'."
    )
