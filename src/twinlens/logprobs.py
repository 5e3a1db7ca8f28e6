"""What a server shows: log-probabilities of the tokens that follow, and of the n best.

They are two more rows behind the logits, so that they are judged and explained as everything else. Of which ids they
are is an input of these rows, as tokens are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from twinlens.errors import InputError
from twinlens.ops import ChosenLogProb, TopLogProbs
from twinlens.sites import ASKED
from twinlens.spec import Spec, Step

CHOSEN, TOP = "logprobs.chosen", "logprobs.top"
FOLLOWING, TOP_IDS = ASKED
BEST = 20
"""How many of the best are taken where nobody says: as many as servers give."""


@lru_cache(maxsize=64)
def with_logprobs(spec: Spec) -> Spec:
    """The same model with the two rows that read its logits."""
    rows = (
        Step(TOP, TopLogProbs(), ("logits", TOP_IDS)),  # first: it shows more
        Step(CHOSEN, ChosenLogProb(), ("logits", FOLLOWING)),
    )
    return dataclasses.replace(spec, steps=(*spec.steps, *rows))


def following(tokens: Tensor, mask: Tensor) -> Tensor:
    """The id that follows each token [b p]; -1 where none does, or where padding stands on one side."""
    real = mask.bool() & F.pad(mask[:, 1:], (0, 1)).bool()
    return F.pad(tokens[:, 1:], (0, 1), value=-1).masked_fill(~real, -1)


def asked(spec: Spec, tokens: Tensor, mask: Tensor, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ids of which log-probabilities are shown, as inputs of a spec that has the rows.

    Raises InputError where the ids of the n best are missing, or are no ids.
    """
    if CHOSEN not in spec.at:
        return {}
    found = {FOLLOWING: following(tokens, mask)}
    if TOP in sites:
        if TOP_IDS not in sites:
            raise InputError(f"{TOP} is recorded without {TOP_IDS}; record of which ids these log-probabilities are.")
        found[TOP_IDS] = _ids(sites[TOP_IDS], sites[TOP], spec.shape.vocabulary)
    return found


def _ids(ids: Tensor, values: Tensor, vocabulary: int) -> Tensor:
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.shape != values.shape:
        raise InputError(
            f"{TOP_IDS} is {str(ids.dtype).removeprefix('torch.')} {list(ids.shape)} where integers "
            f"{list(values.shape)} were expected, one for each of {TOP}."
        )
    if ids.numel() and int(ids.max()) >= vocabulary:
        raise InputError(f"{TOP_IDS} holds {int(ids.max())}; this model's ids are 0 to {vocabulary - 1}.")
    return ids.long()


def by_position(chosen: Tensor, next_ids: Tensor) -> Tensor:
    """[b p-1] as [b p 1], with 0 where nobody knows what follows."""
    return F.pad(chosen, (0, 1)).masked_fill(next_ids < 0, 0.0)[..., None]


def shown(sites: Mapping[str, Tensor], tokens: Tensor, mask: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a server would show of these logits; of the ids that another run shows, where it shows some."""
    if "logits" not in sites:
        return {}
    values = F.log_softmax(sites["logits"].float(), dim=-1)
    if TOP_IDS in like and TOP in like:
        ids = _ids(like[TOP_IDS], like[TOP], values.shape[-1]).to(values.device)
    else:
        ids = values.topk(min(BEST, values.shape[-1]), dim=-1).indices
    next_ids = following(tokens, mask)[..., None]
    chosen = values.gather(-1, next_ids.clamp_min(0)).masked_fill(next_ids < 0, 0.0)
    return {CHOSEN: chosen[:, :-1, 0], TOP: values.gather(-1, ids.clamp_min(0)), TOP_IDS: ids}
