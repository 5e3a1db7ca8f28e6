"""One call of a module as a graph: every tensor that it made, what it was made of, by which function."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from twinlens.errors import CaptureError

Call = Callable[[Tensor, "Tensor | None"], Tensor]
"""`(tokens, mask or None) -> logits`."""

FACTORIES = frozenset(
    f"{kind}{form}" for kind in ("ones", "zeros", "empty", "full", "rand", "randn") for form in ("_like",)
) | {"new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
"""Functions whose result has a shape or a dtype of what they are given, and nothing of its values."""

Replacement = Callable[[Mapping[int, Tensor]], Tensor]

LEAF, ALIAS = "leaf", "alias"


@dataclass(eq=False)
class Node:
    """A tensor of the call: made by `function` from the nodes `inputs`; a leaf was there before.

    `owner` is the qualified name of a parameter or buffer. `tokens`: it descends from the token ids.
    `value` is None where the tracer was not asked to keep it. `key` says by which functions, of which
    leaves, the tensor was made, all the way up: equal keys of two calls are one place in the code, whatever
    else the calls did.
    """

    index: int
    function: str
    inputs: tuple[int, ...]
    slot: int = 0
    owner: str | None = None
    tokens: bool = False
    value: Tensor | None = None
    key: int = 0


@dataclass(eq=False)
class Graph:
    """Nodes in the order of execution, the inputs, and the node that holds the logits."""

    nodes: list[Node]
    tokens: Tensor
    mask: Tensor | None
    logits: int

    def __getitem__(self, index: int) -> Tensor:
        value = self.nodes[index].value
        if value is None:
            raise CaptureError(
                f"the tensor of node {index} ({self.nodes[index].function}) was not kept; record the site again."
            )
        return value

    @cached_property
    def at(self) -> dict[int, int]:
        """Node by key."""
        return {node.key: node.index for node in self.nodes}

    @cached_property
    def readers(self) -> list[list[int]]:
        """For each node the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for i in dict.fromkeys(node.inputs):
                found[i].append(node.index)
        return found

    @cached_property
    def live(self) -> frozenset[int]:
        """Nodes with a path to the logits."""
        return self.above([self.logits])

    def above(self, of: Iterable[int]) -> frozenset[int]:
        """Nodes from which these descend, themselves included."""
        return frozenset(self._walk(of, lambda i: self.nodes[i].inputs))

    def below(self, of: Iterable[int]) -> frozenset[int]:
        """Nodes that descend from these, themselves included."""
        return frozenset(self._walk(of, lambda i: self.readers[i]))

    @staticmethod
    def _walk(start: Iterable[int], to: Callable[[int], Iterable[int]]) -> set[int]:
        seen, pending = set[int](), list(start)
        while pending:
            i = pending.pop()
            if i not in seen:
                seen.add(i)
                pending.extend(to(i))
        return seen


def trace(module: nn.Module, tokens: Tensor, *, mask: Tensor | None = None, call: Call | None = None) -> Graph:
    """One call of `module` as a graph with all its tensors.

    Raises CaptureError where the module fails or returns nothing that holds logits.
    """
    return Tracer(module, tokens, mask).run(module, call)


class Tracer(TorchFunctionMode):
    """Sees every torch call of one run.

    `keep`: keys of the nodes whose tensors stay (default: all). `replace`: by key, functions from the
    tensors kept so far, by key, and the node's own, to the one that takes its place.
    """

    def __init__(
        self, module: nn.Module, tokens: Tensor, mask: Tensor | None, keep: frozenset[int] | None = None,
        replace: Mapping[int, Replacement] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.nodes: list[Node] = []
        self.given = (tokens, mask)
        self._keep, self._replace = keep, replace or {}
        self._owners = _owners(module)
        self._where: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._storages: dict[int, list[weakref.ref[Tensor]]] = {}
        self._written: dict[int, int] = {}
        self._held: list[Tensor] = []
        self._times: dict[int, int] = {}
        self._kept: dict[int, Tensor] = {}
        self._form = ""
        self.replaced = set[int]()
        self._leaf(tokens, tokens=True)
        if mask is not None:
            self._leaf(mask)

    def run(self, module: nn.Module, call: Call | None) -> Graph:
        """Make the call and close the graph at the logits."""
        tokens, mask = self.given
        with torch.no_grad(), self:
            logits = invoke(module, tokens, mask, call)
        return self.close(module, logits)

    def close(self, module: nn.Module, logits: Tensor) -> Graph:
        """The graph of what was seen, which ends at the logits."""
        tokens, mask = self.given
        at = self._find(logits)
        if at is None:
            raise CaptureError(
                f"the logits that {type(module).__name__} returned were made by no torch function that can be seen "
                "(a compiled module, or another library); call the eager module."
            )
        self._where.clear()
        self._storages.clear()
        self._held.clear()
        return Graph(self.nodes, tokens, mask, at)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property: most are shapes and dtypes, a few (T, mT, data, real) are tensors
            out = func(*args, **kwargs)
            if not isinstance(out, Tensor):
                return out
            self._form = ""
            name = getattr(func.__self__, "__name__", "property")
            return self._made(name, (self._node(args[0]),), out)
        if name in ("__set__", "requires_grad_", "is_floating_point", "size", "dim", "__len__", "is_complex"):
            return func(*args, **kwargs)
        inputs = tuple(self._node(t) for t in _tensors((args, kwargs)))
        self._form = _form(args[1:])
        targets = _targets(name, args, kwargs)
        if targets:
            return self._mutation(func, name, args, kwargs, inputs, targets)
        out = func(*args, **kwargs)
        return self._made(name, inputs, out)

    def _made(self, name: str, inputs: tuple[int, ...], out: Any) -> Any:
        if isinstance(out, Tensor):
            return self._new(name, inputs, out, 0)
        if isinstance(out, (tuple, list)) and not isinstance(out, torch.Size):
            made = [self._new(name, inputs, o, slot) if isinstance(o, Tensor) else o for slot, o in enumerate(out)]
            if self._replace and any(a is not b for a, b in zip(made, out, strict=True)):
                return type(out)(made)
        return out

    def _new(self, name: str, inputs: tuple[int, ...], out: Tensor, slot: int) -> Tensor:
        at = self._find(out)
        if at is not None:  # the function returned what it was given
            return out
        return self._add(name, () if name in FACTORIES else inputs, out, slot)

    def _add(
        self, name: str, inputs: tuple[int, ...], out: Tensor, slot: int = 0, owner: str | None = None,
        tokens: bool = False,
    ) -> Tensor:  # fmt: skip
        index = len(self.nodes)
        key = self._key(name, inputs, slot, owner)
        if key in self._replace:
            out = self._replace[key](self._kept | {key: out})
            self.replaced.add(key)
        kept = self._keep is None or key in self._keep
        if kept and self._replace:
            self._kept[key] = out
        descends = tokens or any(self.nodes[i].tokens for i in inputs)
        value = out if kept else None
        self.nodes.append(Node(index, name, inputs, slot, owner, descends, value, key))
        self._register(out, index)
        return out

    def _key(self, name: str, inputs: tuple[int, ...], slot: int, owner: str | None) -> int:
        plain = hash((name, slot, owner, self._form, *(self.nodes[i].key for i in inputs)))
        times = self._times.get(plain, 0)
        self._times[plain] = times + 1
        return plain if times == 0 else hash((plain, times))

    def _register(self, tensor: Tensor, index: int) -> None:
        ref = weakref.ref(tensor)
        self._where[id(tensor)] = ref, index
        storage = _storage(tensor)
        if storage:
            self._storages.setdefault(storage, []).append(ref)
        if self._keep is None:
            self._held.append(tensor)

    def _find(self, tensor: Tensor) -> int | None:
        known = self._where.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _node(self, tensor: Tensor) -> int:
        at = self._find(tensor)
        return self._leaf(tensor) if at is None else at

    def _leaf(self, tensor: Tensor, *, tokens: bool = False) -> int:
        """A tensor that no call has made; if its memory was written before, it depends on that write."""
        self._form = ""
        storage = _storage(tensor)
        alive = storage and any(ref() is not None for ref in self._storages.get(storage, ()))
        written = self._written.get(storage) if alive else None
        inputs = () if written is None else (written,)
        self._add(LEAF, inputs, tensor, owner=self._owners.get(id(tensor)), tokens=tokens)
        return len(self.nodes) - 1

    def _mutation(
        self, func: Any, name: str, args: Any, kwargs: Any, inputs: tuple[int, ...], targets: list[Tensor]
    ) -> Any:
        """Values seen before are saved from the write; whatever shares the memory depends on it afterwards."""
        aliases = [(t, self._node(t)) for target in targets for t in self._sharing(target)]
        for tensor, at in aliases:
            node = self.nodes[at]
            if node.value is tensor:
                node.value = tensor.detach().clone()
        out = func(*args, **kwargs)
        for target in targets:
            self._forget(target)
            self._add(name, inputs, target)
        made = len(self.nodes) - 1
        for tensor, at in aliases:
            if all(tensor is not target for target in targets):
                self._forget(tensor)
                self._add(ALIAS, (at, made), tensor)
        for target in targets:
            self._written[_storage(target)] = made
        return out if out is None or self._find(out) is not None else self._made(name, (made,), out)

    def _forget(self, tensor: Tensor) -> None:
        self._where.pop(id(tensor), None)

    def _sharing(self, target: Tensor) -> Iterator[Tensor]:
        seen = set[int]()
        for ref in self._storages.get(_storage(target), ()):
            tensor = ref()
            if tensor is not None and id(tensor) not in seen and (tensor is target or _overlap(tensor, target)):
                seen.add(id(tensor))
                yield tensor


def invoke(module: nn.Module, tokens: Tensor, mask: Tensor | None, call: Call | None) -> Tensor:
    """Logits of a call as `module(tokens)`, with `attention_mask=` where the forward takes one."""
    try:
        out: Any = call(tokens, mask) if call is not None else module(tokens, **_keywords(module, mask))
    except CaptureError:
        raise
    except Exception as error:  # the border: anything may be raised by somebody's module
        raise CaptureError(
            f"{type(module).__name__} failed on tokens of shape {list(tokens.shape)} with "
            f"{type(error).__name__}: {error}; pass call= if it is called in another way."
        ) from error
    return logits_of(out, module)


def logits_of(out: Any, module: nn.Module) -> Tensor:
    """The logits in what a module returned."""
    if isinstance(out, (tuple, list)) and out:
        out = out[0]
    logits = out if isinstance(out, Tensor) else getattr(out, "logits", None)
    if not isinstance(logits, Tensor):
        raise CaptureError(
            f"{type(module).__name__} returned a {type(out).__name__} where logits, or an object with .logits, "
            "were expected; pass call=lambda tokens, mask: logits."
        )
    return logits


def _keywords(module: nn.Module, mask: Tensor | None) -> dict[str, Any]:
    takes = inspect.signature(module.forward).parameters
    # A cache changes no value of a single call, but holds keys and values alive (and in some releases a
    # window of its own), so it is switched off where there is a switch.
    keywords: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    if mask is not None and "attention_mask" in takes:
        keywords["attention_mask"] = mask
    elif mask is not None and not bool(mask.all()):
        raise CaptureError(
            f"{type(module).__name__}.forward takes no attention_mask, and the mask hides tokens; "
            "run without padding, or pass call= that hands the mask on."
        )
    return keywords


def _form(arguments: Any) -> str:
    """What kinds of arguments a call had: numbers only as numbers, since they vary with the shape of the tokens."""
    return ",".join([_FORMS.get(type(a)) or _form_of(a) for a in arguments])


_FORMS: dict[type, str] = {int: "n", float: "x", Tensor: "t", nn.Parameter: "t", bool: "b", type(None): "-"}


def _form_of(argument: Any) -> str:
    if isinstance(argument, (tuple, list)):
        return f"({_form(argument)})"
    if isinstance(argument, slice):
        return f"[{_form((argument.start, argument.stop, argument.step))}]"
    return argument if isinstance(argument, str) else type(argument).__name__


def _owners(module: nn.Module) -> dict[int, str]:
    named = [*module.named_buffers(remove_duplicate=False), *module.named_parameters(remove_duplicate=False)]
    return {id(tensor): name for name, tensor in reversed(named)}


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))


_MUTATING = frozenset(
    f"__i{name}__"
    for name in (
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "pow",
        "mod",
        "and",
        "or",
        "xor",
        "matmul",
        "lshift",
        "rshift",
    )
) | {"__setitem__"}


def _targets(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Tensors that a call writes into, told by torch's naming: a trailing underscore, `__iadd__`, `out=`."""
    written = list(_tensors(kwargs["out"])) if kwargs.get("out") is not None else []
    in_place = name in _MUTATING or (name.endswith("_") and not name.endswith("__"))
    if (in_place or kwargs.get("inplace") is True) and args and isinstance(args[0], Tensor):
        written.append(args[0])
    return written


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  # no public identity exists
    except (RuntimeError, NotImplementedError):
        return 0


def _overlap(x: Tensor, y: Tensor) -> bool:
    """Whether two views of one storage may share an entry: False only where rows interleave without touching."""
    (x_row, x_from, x_to), (y_row, y_from, y_to) = _footprint(x), _footprint(y)
    if x_row != y_row:
        return True
    return x_from < y_to and y_from < x_to


def _footprint(t: Tensor) -> tuple[int, int, int]:
    """The stride of rows, and which part of a row a view covers."""
    dims = sorted((int(n), int(m)) for n, m in zip(t.stride(), t.shape, strict=True) if m > 1)
    extent, offset = 1, int(t.storage_offset())
    for stride, size in dims:
        if stride > extent:
            start = offset % stride
            if start + extent <= stride:
                return stride, start, start + extent
        extent += stride * (size - 1)
    return 0, offset, offset + extent
