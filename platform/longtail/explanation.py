"""Explanation: how the scores of one request came to be: both channels' logits, the gate between them, the group path, what attention looked at.

Reads nothing and writes nothing: longtail.ranking hands it what a ranker gave out.
Letters: B candidates, H heads, L places of a sequence.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from longtail.lent import UserGroups
from longtail.rankers.batch import Batch
from longtail.rankers.ranker import RankerOutput

MOST_ATTENDED = 5  # of a sequence, told per candidate

Attention = Literal["history", "group", "semantic", "behaviour"]


@dataclass(frozen=True)
class Attended:
    """An item that attention weighed much."""

    item_id: str
    weight: float  # the places' shares sum to one over the whole sequence
    days: float | None  # before the request; None in a group's sequence, which has no time


@dataclass(frozen=True)
class ItemExplanation:
    """How one candidate's score came to be; tuples are by the answer's heads."""

    logits: tuple[float, ...]
    individual: tuple[float, ...] | None  # the individual channel's logits; None of a ranker without channels, as below
    group: tuple[float, ...] | None
    alpha_fusion: float | None  # the share of the group channel
    attended: Mapping[Attention, tuple[Attended, ...]]  # history: DIN; group: ChoirRec's group sequence; semantic and behaviour: SaviorRec's two directions


@dataclass(frozen=True)
class GroupStep:
    """A prefix of the user's codes."""

    prefix: tuple[int, ...]
    size: int  # members at the snapshot; 0: no such group there
    lends: bool


def explain(output: RankerOutput, batch: Batch, item_id: Callable[[int], str], places: Sequence[int], heads: Sequence[int]) -> tuple[ItemExplanation, ...]:
    """What a ranker's output tells of the candidates at `places`, in that order; `item_id` is of a row, `heads` are places among the ranker's."""

    def logits(of_BH: torch.Tensor | None, place: int) -> tuple[float, ...] | None:
        return None if of_BH is None else tuple(of_BH[place, list(heads)].tolist())

    sequences: dict[Attention, tuple[torch.Tensor | None, torch.Tensor]] = {
        "history": (output.attention_BL, batch.history_BL),
        "group": (output.group_attention_BG, batch.group_history_BG),
        "semantic": (output.semantic_attention_BL, batch.history_BL),
        "behaviour": (output.behaviour_attention_BL, batch.history_BL),
    }
    found = []
    for place in places:
        attended = {
            name: _most(weights_BL[place], rows_BL[place], None if name == "group" else batch.history_days_BL[place], item_id)
            for name, (weights_BL, rows_BL) in sequences.items()
            if weights_BL is not None
        }
        own = logits(output.logits_BH, place)
        assert own is not None
        alpha = None if output.alpha_fusion_B is None else float(output.alpha_fusion_B[place])
        found.append(ItemExplanation(own, logits(output.z_individual_BH, place), logits(output.z_group_BH, place), alpha, attended))
    return tuple(found)


def _most(weights_L: torch.Tensor, rows_L: torch.Tensor, days_L: torch.Tensor | None, item_id: Callable[[int], str]) -> tuple[Attended, ...]:
    """The places of greatest weight, greatest first; equal ones as they stand in the sequence."""
    order = np.argsort(-weights_L.numpy(), kind="stable")[:MOST_ATTENDED]
    return tuple(
        Attended(item_id(int(rows_L[place])), float(weights_L[place]), None if days_L is None else float(days_L[place]))
        for place in order
        if rows_L[place] > 0 and weights_L[place] > 0
    )


def group_path(groups: UserGroups, codes: tuple[int, ...]) -> tuple[GroupStep, ...]:
    """Every prefix of a user's codes from the root on, and which of them lends in the published snapshot; empty without one."""
    if len(groups.as_of_T) == 0:
        return ()
    lends = groups.lend(0, codes or None)
    steps = []
    for depth in range(len(codes) + 1):
        place = groups.group_of.get((0, codes[:depth]))
        steps.append(GroupStep(codes[:depth], 0 if place is None else int(groups.size_P[place]), place is not None and place == lends))
    return tuple(steps)
