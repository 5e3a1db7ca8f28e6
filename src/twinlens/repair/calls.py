"""Mend what is wrong only in calls with a key/value cache: where it is seen, in the calls of that kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from twinlens.cached import cached
from twinlens.capture.graft import graft_calls
from twinlens.repair.instructions import Instruction
from twinlens.repair.mended import Mended
from twinlens.repair.native import Native, computed_as
from twinlens.spec import Spec


def mend_calls(
    module: nn.Module, native: Native, wanted: Sequence[Sequence[Instruction]],
    tokens: Tensor, mask: Tensor | None, lengths: Sequence[int],
) -> Mended:  # fmt: skip
    """Replace the steps that are at fault in each of these calls, and in all like them.

    Nothing that the module holds is changed: what one call has right needs no other value.

    Raises:
        CaptureError: a site cannot be seen in a call, or not be told whether it is in its place.
    """
    sites = [list(dict.fromkeys(i.seen_at for i in these)) for these in wanted]
    every = list(dict.fromkeys(s for some in sites for s in some))
    made = graft_calls(
        module, native.declared, native.weights, {s: native.value(s) for s in every}, sites, tokens, mask, lengths
    )
    done = Mended()
    done.add(dict(_words(cached(native.spec), wanted, every)), made)
    return done


def _words(spec: Spec, wanted: Sequence[Sequence[Instruction]], sites: Sequence[str]) -> Iterator[tuple[str, str]]:
    for site in sites:
        here = [[i for i in these if i.seen_at == site] for these in wanted]
        where = [n for n, these in enumerate(here) if these]
        which = "in calls with a cache" if 0 in where else "in calls that go on from a cache"
        yield site, f"{computed_as(spec, site, [i for these in here for i in these])}, {which}"
