"""The native model: a Spec and its weights, run, with every site open to hooks.

Tensors of a checkpoint are used as they are, detached but not copied. Nothing here switches
autograd off: where no hook asks for a gradient, none is recorded; from a tensor that a hook makes
require one on, everything is.
"""

from __future__ import annotations

import difflib
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from twinlens.errors import InputError, SpecError
from twinlens.ids import Ids
from twinlens.inputs import check_tokens, prepare
from twinlens.plan import Row, result_site, results, rows
from twinlens.shapes import Float
from twinlens.sites import INPUTS, is_input, split
from twinlens.spec import Spec, Unit, Weights, units

if TYPE_CHECKING:
    from twinlens.stepwise import Stepwise


@dataclass(frozen=True)
class Hook:
    """What a hook function is told beside the tensor: the site at which it fires."""

    name: str

    def layer(self) -> int:
        """The block of the site. Raises ValueError outside the blocks."""
        layer, _ = split(self.name)
        if layer is None:
            raise ValueError(f"{self.name} is in no block")
        return layer


Names = str | Callable[[str], bool]
"""One site, or a predicate over all of them."""

HookFunction = Callable[[Tensor, Hook], Tensor | None]
"""Gets a site's tensor; what it returns takes its place; None leaves it."""


class Model:
    """A transformer that runs its Spec.

    Example:
        >>> from twinlens.museum.tiny import tiny_llama, random_tokens
        >>> import twinlens
        >>> theirs = tiny_llama()
        >>> model = twinlens.load(theirs)
        >>> tokens = random_tokens(theirs)
        >>> logits, cache = model.run_with_cache(tokens)
        >>> tuple(cache["blocks.0.attn.hook_pattern"].shape)
        (2, 4, 24, 24)
        >>> ablated = model.run_with_hooks(
        ...     tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda z, hook: z * 0)]
        ... )
    """

    def __init__(self, spec: Spec, weights: Weights) -> None:
        _check_order(spec)
        self.spec = spec
        self._source = weights
        self._weights: dict[str, Tensor] = {}
        self._plans: dict[frozenset[str], tuple[Row, ...]] = {}

    def __call__(
        self,
        tokens: Tensor,
        attention_mask: Ids | None = None,
        positions: Ids | None = None,
    ) -> Float[Tensor, "b p v"]:
        """The logits of token ids [b p].

        `attention_mask` [b p] has 1 at real tokens; `positions` [b p] count from 0 if not given.

        Raises:
            InputError: the tokens, mask or positions do not fit this model.
        """
        return self._run(self._inputs(tokens, attention_mask, positions), {}, {})

    def run_with_cache(
        self,
        tokens: Tensor,
        attention_mask: Ids | None = None,
        names: Iterable[str] | Callable[[str], bool] | None = None,
        positions: Ids | None = None,
    ) -> tuple[Float[Tensor, "b p v"], dict[str, Tensor]]:
        """The logits, and the tensors by site in the order in which they are computed.

        Sites that a fused kernel of this model hides are computed beside it by their plain
        formulas; the logits stay the kernel's. Some sites are two names of one tensor.

        Args:
            tokens: ids [b p].
            attention_mask: [b p], 1 at real tokens.
            names: the sites to keep, or a predicate; None: all but `attn.hook_result`, each head's
                own contribution [b p h d], which is large and computed only if it is named.
            positions: position ids [b p].

        Raises:
            InputError: the inputs do not fit this model, or it has no site of such a name.
        """
        wanted = self._wanted(names)
        cache: dict[str, Tensor] = {}
        inputs = self._inputs(tokens, attention_mask, positions)
        cache.update({site: tensor for site, tensor in inputs.items() if site in wanted})
        logits = self._run(inputs, dict.fromkeys(wanted), cache)
        return logits, cache

    def run_with_hooks(
        self,
        tokens: Tensor,
        fwd_hooks: Iterable[tuple[Names, HookFunction]] = (),
        attention_mask: Ids | None = None,
        positions: Ids | None = None,
    ) -> Float[Tensor, "b p v"]:
        """The logits of a run in which functions see, and may replace, the tensors at sites.

        Several functions at one site are called in their order. A kernel that hides a hooked site
        is not used; its steps then run one by one.

        Raises:
            InputError: the inputs do not fit this model, a hook names no site of it, or returns what cannot take the
                place of its tensor.
        """
        hooks: dict[str, list[HookFunction]] = {}
        for name, function in _pairs(fwd_hooks):
            for site in self._named(name):
                hooks.setdefault(site, []).append(function)
        inputs = self._inputs(tokens, attention_mask, positions)
        hooked = {site: _fire(site, tensor, hooks) for site, tensor in inputs.items()}
        if "tokens" in hooks:
            check_tokens(self.spec.shape, hooked["tokens"])
        return self._run(hooked, {}, {}, hooks)

    def stepwise(self) -> Stepwise:
        """The same model for one text call by call, with a key/value cache."""
        from twinlens.stepwise import Stepwise  # the one arrow against the stream: a method's home

        return Stepwise(self.spec, self.weight)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weight(self.spec.weight_names[0]).device

    def weight(self, name: str) -> Tensor:
        """A tensor by its name in the checkpoint: detached, its memory shared."""
        if name not in self._weights:
            self._weights[name] = self._source(name).detach()
        return self._weights[name]

    def _inputs(self, tokens: Tensor, mask: Ids | None, positions: Ids | None) -> dict[str, Tensor]:
        inputs = prepare(self.spec, tokens, mask, positions)
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def _run(
        self,
        values: dict[str, Tensor],
        wanted: Mapping[str, object],
        cache: dict[str, Tensor],
        hooks: Mapping[str, list[HookFunction]] | None = None,
    ) -> Tensor:
        """Runs the plan on `values`, and files what is wanted in `cache`."""
        hooks = hooks or {}
        for row in self._plan(frozenset(hooks)):
            site = row.unit.step.writes
            if wanted:
                cache.update(self._beside(row.unit, values, wanted))
            tensor = row.unit(values, self.weight)
            values[site] = _fire(site, tensor, hooks) if site in hooks else tensor
            if site in wanted:
                cache[site] = values[site]
            for read in row.frees:
                del values[read]
        return values["logits"]

    def _beside(
        self, unit: Unit, values: Mapping[str, Tensor], wanted: Mapping[str, object]
    ) -> Iterator[tuple[str, Tensor]]:
        """What the unit's kernel hides, and each head's share of what it writes."""
        if any(step.writes in wanted for step in unit.absorbed):
            inside = ChainMap(dict[str, Tensor](), values)  # type: ignore[arg-type]
            for step in unit.absorbed:
                inside[step.writes] = step(inside, self.weight)
                if step.writes in wanted:
                    yield step.writes, inside[step.writes]
        result = result_site(unit.step)
        if result is not None and result in wanted:
            yield result, results(unit.step, values, self.weight)

    def _plan(self, keep: frozenset[str]) -> tuple[Row, ...]:
        if keep not in self._plans:
            self._plans[keep] = tuple(rows(tuple(units(self.spec.steps, keep))))
        return self._plans[keep]

    def _wanted(self, names: Iterable[str] | Callable[[str], bool] | None) -> tuple[str, ...]:
        if names is None:
            return self.spec.sites
        if callable(names):
            return tuple(self._named(names))
        if isinstance(names, str) or not isinstance(names, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"names={names!r} is no list; give the sites to keep as one, or a predicate over names.")
        return tuple(site for name in names for site in self._named(name, results=True))

    def _named(self, name: Names, *, results: bool = False) -> list[str]:
        """The sites that a name or a predicate picks."""
        sites = [*INPUTS, *self.spec.sites]
        if not isinstance(name, str) and not callable(name):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{name!r} is no site; give the name of one, or a predicate over names.")
        if callable(name):
            picked = [site for site in sites if name(site)]
            if not picked:
                raise InputError("the predicate picks no site; print model.spec.sites to see them.")
            return picked
        if results:
            sites += filter(None, map(result_site, self.spec.steps))
        if name not in sites:
            near = difflib.get_close_matches(name, sites, 3, 0.0)
            raise InputError(f"this model has no site {name!r}; near are {', '.join(near)}.")
        return [name]


def _check_order(spec: Spec) -> None:
    """Raises SpecError where a step reads what no step before it writes."""
    known = set[str]()
    for step in spec.steps:
        unknown = [read for read in step.reads if read not in known and not is_input(read)]
        if unknown:
            raise SpecError(
                f"{step.writes} reads {unknown[0]}, which no step before it writes; rewire it, or insert that step."
            )
        known.add(step.writes)


def _fire(site: str, tensor: Tensor, hooks: Mapping[str, list[HookFunction]]) -> Tensor:
    for function in hooks.get(site, ()):
        returned = function(tensor, Hook(site))
        tensor = tensor if returned is None else _in_place_of(site, tensor, returned)
    return tensor


def _in_place_of(site: str, tensor: Tensor, returned: object) -> Tensor:
    """A border: a hook is anybody's. What has one row, say, where there are more, stands in all of them."""
    if isinstance(returned, Tensor) and returned.dtype == tensor.dtype:
        if returned.shape == tensor.shape:
            return returned
        with suppress(RuntimeError):  # of another shape
            return returned.expand(tensor.shape)
    kind = f"{returned.dtype} {list(returned.shape)}" if isinstance(returned, Tensor) else type(returned).__name__
    raise InputError(
        f"the hook at {site} returned {kind} where a tensor like its own, {tensor.dtype} {list(tensor.shape)}, was "
        "expected; return one, or None to leave it."
    )


def _pairs(hooks: Any) -> Iterator[tuple[Any, Any]]:
    """A border: whoever gives something else is told so before anything runs."""
    for pair in hooks if isinstance(hooks, Iterable) else (hooks,):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and callable(pair[1])):
            raise InputError(
                f"fwd_hooks hold {pair!r} where pairs of a site and a function were expected, as in "
                '[("blocks.0.attn.hook_z", lambda z, hook: z * 0)].'
            )
        yield pair[0], pair[1]
