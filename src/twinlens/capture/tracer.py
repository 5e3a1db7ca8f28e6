"""A mode of torch that sees every function call while a module runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from twinlens.capture.calling import Call, invoke
from twinlens.capture.functions import Function, function, own_function
from twinlens.capture.graph import ALIAS, LEAF, Graph, Node
from twinlens.capture.keys import Keys
from twinlens.capture.memory import WRITING, exchanged, memory_of, overlap, signature, tensors, written_by
from twinlens.capture.patched import asked
from twinlens.errors import CaptureError
from twinlens.paging import held

_NOTHING = -0.1234567
"""Stands in memory that nobody has written yet: no site's value, so that none is seen before it is there."""

Replacement = Callable[[Mapping[int, Tensor]], Tensor]


def trace(module: nn.Module, tokens: Tensor, *, mask: Tensor | None = None, call: Call | None = None) -> Graph:
    """One call of `module` as a graph with all its tensors.

    Raises CaptureError where the module fails or returns nothing that holds logits.
    """
    return Tracer(module, tokens, mask).run(module, call)


class Tracer(TorchFunctionMode):
    """Sees every torch call of one run.

    `keep`: keys of the nodes whose tensors stay (default: all). `replace`: by key, functions from the
    tensors kept so far, by key, and the node's own, to the one that takes its place. `feed`: by the key of a
    node that reads it, such a function for one of its inputs, by that one's key; other readers see it as it is.
    `before`: nodes of an earlier call; as long as this one makes the same, it takes their keys. `named`: the module's
    `constants`, where they are known.
    """

    listening: ClassVar[list[Tracer]] = []
    """Those within which code runs now, the outermost first."""

    def __init__(
        self, module: nn.Module, tokens: Tensor, mask: Tensor | None, keep: frozenset[int] | None = None,
        replace: Mapping[int, Replacement] | None = None, feed: Mapping[int, tuple[int, Replacement]] | None = None,
        before: Sequence[Node] = (), named: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.nodes: list[Node] = []
        self._keys = Keys(self.nodes, before)
        self.given = (tokens, mask)
        self._keep, self._replace, self._feed = keep, replace or {}, feed or {}
        self._owners = _owners(constants(module) if named is None else named)
        self._where: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._storages: dict[int, list[weakref.ref[Tensor]]] = {}
        self._recent: list[weakref.ref[Tensor]] = []
        self._written: dict[int, int] = {}
        self._held: list[Tensor] = []
        self._kept: dict[int, Tensor] = {}
        self._form = ""
        self.replaced = set[int]()
        self._deaf = False
        self._leaf(tokens, tokens=True)
        if mask is not None:
            self._leaf(mask)

    def __enter__(self) -> Tracer:
        self.listening.append(self)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.listening.remove(self)
        super().__exit__(*raised)

    @classmethod
    @contextmanager
    def aside(cls) -> Generator[None]:
        """What runs in here is no part of a call that is being traced."""
        open_now = [tracer for tracer in cls.listening if not tracer._deaf]
        for tracer in open_now:
            tracer._deaf = True
        try:
            yield
        finally:
            for tracer in open_now:
                tracer._deaf = False

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
        self._recent.clear()
        self._held.clear()
        return Graph(self.nodes, tokens, mask, at)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._deaf:
            return func(*args, **(kwargs or {}))
        what = own_function(func)
        if what is None:
            func = asked(func)
            what = function(func)
        if what.attribute:  # most are shapes and dtypes, a few (T, mT, data, real) are tensors
            out = func(*args)
            if not isinstance(out, Tensor):
                return out
            self._form = ""
            return self._made(what, (self._node(args[0]),), out)
        if what.silent:
            return func(*args, **(kwargs or {}))
        inputs = self._inputs(args, kwargs)
        if self._feed:
            args, kwargs = self._fed(what.name, inputs, args, kwargs or {})
        if what.writes or (kwargs and not kwargs.keys().isdisjoint(WRITING)):
            targets = written_by(what, args, kwargs)
            if targets:
                return self._mutation(func, what, args, kwargs or {}, inputs, targets)
        out = func(*args, **kwargs) if kwargs else func(*args)
        if type(out) is Tensor and not (what.factory or what.unwritten):
            # `_made` and `_find`, written out: most of some thousand calls in a forward end here
            found = self._where.get(id(out))
            return out if found is not None and found[0]() is out else self._add(what.name, inputs, out)
        return self._made(what, inputs, out)

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> tuple[int, ...]:
        """The nodes that a call reads; the form of its arguments is kept for its key."""
        at, form = signature(args)
        given = tensors(args) if at is None else [args[i] for i in at]
        if kwargs:
            given += tensors(kwargs.values())
        where, inputs = self._where, []
        for tensor in given:
            found = where.get(id(tensor))
            inputs.append(found[1] if found is not None and found[0]() is tensor else self._leaf(tensor))
        self._form = form  # after the nodes: a leaf has none
        return tuple(inputs)

    def _made(self, what: Function, inputs: tuple[int, ...], out: Any) -> Any:
        """A call's result, as nodes; a tensor that the function was given is none."""
        if what.unwritten and isinstance(out, Tensor) and out.is_floating_point():
            out.fill_(_NOTHING)
        inputs = () if what.factory else inputs
        if isinstance(out, Tensor):
            return out if self._find(out) is not None else self._add(what.name, inputs, out)
        if isinstance(out, (tuple, list)) and not isinstance(out, torch.Size):
            made = [
                self._add(what.name, inputs, o, slot) if isinstance(o, Tensor) and self._find(o) is None else o
                for slot, o in enumerate(out)
            ]
            if self._replace and any(a is not b for a, b in zip(made, out, strict=True)):
                return type(out)(made)
        return out

    def _add(
        self, name: str, inputs: tuple[int, ...], out: Tensor, slot: int = 0, owner: str | None = None,
        tokens: bool = False,
    ) -> Tensor:  # fmt: skip
        nodes, index = self.nodes, len(self.nodes)
        again = self._keys.again(name, inputs, slot, owner, self._form)
        key = again.key if again is not None else self._keys.count(name, inputs, slot, owner, self._form)
        if self._replace:
            out = self._replaced(key, out)
        kept = self._keep is None or key in self._keep
        if kept and self._feed:
            self._kept[key] = out
        if again is not None and not kept and again.value is None:
            nodes.append(again)
        else:
            for i in inputs:
                tokens = tokens or nodes[i].tokens
            value = None if not kept else out if self._keep is None else held(out)
            nodes.append(Node(index, name, inputs, slot, owner, tokens, value, key, self._form))
        ref = weakref.ref(out)
        self._where[id(out)] = ref, index
        self._recent.append(ref)
        if self._keep is None:
            self._held.append(out)
        return out

    def _replaced(self, key: int, out: Tensor) -> Tensor:
        if key in self._replace:
            out = self._replace[key](self._kept | {key: out})
            self.replaced.add(key)
        if self._keep is None or key in self._keep:
            self._kept[key] = out
        return out

    def _fed(self, name: str, inputs: tuple[int, ...], args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments of a call, with another tensor for one of them where the call is one that shall read it."""
        reader = self._keys.next(name, inputs, 0, None, self._form)
        if reader not in self._feed:
            return args, kwargs
        key, other = self._feed[reader]
        given = [t for t in tensors(args, kwargs) if self.nodes[self._node(t)].key == key]
        value = other(self._kept | {key: given[0]})
        self.replaced.add(reader)
        return exchanged(args, given, value), exchanged(kwargs, given, value)

    def _alive(self, storage: int) -> list[weakref.ref[Tensor]]:
        """The tensors of a storage that are still there. Few calls ask, so it is asked of many tensors at once."""
        for ref in self._recent:
            tensor = ref()
            if tensor is not None:
                self._storages.setdefault(memory_of(tensor), []).append(ref)
        self._recent.clear()
        alive = [ref for ref in self._storages.pop(storage, ()) if ref() is not None] if storage else []
        if alive:
            self._storages[storage] = alive
        return alive

    def _find(self, tensor: Tensor) -> int | None:
        known = self._where.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _node(self, tensor: Tensor) -> int:
        at = self._find(tensor)
        return self._leaf(tensor) if at is None else at

    def _leaf(self, tensor: Tensor, *, tokens: bool = False) -> int:
        """A tensor that no call has made; if its memory was written before, it depends on that write."""
        self._form = ""
        inputs = ()
        if self._written:
            storage = memory_of(tensor)
            if storage in self._written and self._alive(storage):
                inputs = (self._written[storage],)
        self._add(LEAF, inputs, tensor, owner=self._owners.get(id(tensor)), tokens=tokens)
        return len(self.nodes) - 1

    def _mutation(
        self, func: Any, what: Function, args: Any, kwargs: Any, inputs: tuple[int, ...], targets: list[Tensor]
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
            other = self._add(what.name, inputs, target)
            if other is not target:  # the code goes on with the tensor that it wrote into
                target.copy_(other)
                self._where[id(target)] = weakref.ref(target), len(self.nodes) - 1
        made = len(self.nodes) - 1
        for tensor, at in aliases:
            if all(tensor is not target for target in targets):
                self._forget(tensor)
                self._add(ALIAS, (at, made), tensor)
        for target in targets:
            self._written[memory_of(target)] = made
        return out if out is None or self._find(out) is not None else self._made(what, (made,), out)

    def _forget(self, tensor: Tensor) -> None:
        self._where.pop(id(tensor), None)

    def _sharing(self, target: Tensor) -> Iterator[Tensor]:
        seen = set[int]()
        for ref in self._alive(memory_of(target)):
            tensor = ref()
            if tensor is not None and id(tensor) not in seen and (tensor is target or overlap(tensor, target)):
                seen.add(id(tensor))
                yield tensor


def constants(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names."""
    return dict(module.named_buffers(remove_duplicate=False)) | dict(module.named_parameters(remove_duplicate=False))


def _owners(named: Mapping[str, Tensor]) -> dict[int, str]:
    return {id(tensor): name for name, tensor in reversed(list(named.items()))}
