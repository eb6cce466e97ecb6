"""The group tree: every prefix of the users' codes at the last snapshot, with how many of its members hardly act and which words tell them from everyone.

Reads user codes in memory; writes nothing. Letters: R users with codes, S code stages, P prefixes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longtail.snapshots import as_of_us, of_snapshot

Prefix = tuple[int, ...]

WORD = re.compile(r"[^\W_](?:[\w'&/.-]*[^\W_])?")
_DULL = """a also an and are as at buys by for from has have how in is it its kinds known lately little most mostly no none not nothing now of on or other
shopper some someone the their then this to unknown user users was were who whom with within yet"""
DULL = frozenset(_DULL.split())


@dataclass(frozen=True)
class GroupNode:
    """A prefix and its members."""

    prefix: Prefix
    size: int
    low: int  # members of low activity
    median_purchases: float

    @property
    def low_share(self) -> float:
        return self.low / self.size


@dataclass(frozen=True)
class Members:
    """Who is in which group at the last snapshot."""

    user_ids: pa.Array
    codes_RS: npt.NDArray[np.int32]

    @staticmethod
    def of(codes: pa.Table) -> "Members":
        """From the table `codes` of user_codes."""
        last = of_snapshot(codes, int(as_of_us(codes).max())) if len(codes) else codes
        width = codes.schema.field("codes").type.list_size
        return Members(last.column("user_id").combine_chunks(), last.column("codes").combine_chunks().flatten().to_numpy().reshape(-1, width))

    def within(self, prefix: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whose codes begin with the prefix [R]."""
        mask: npt.NDArray[np.bool_] = (self.codes_RS[:, : len(prefix)] == np.array(prefix, np.int32)).all(axis=1)
        return mask

    def tree(self, purchases_R: npt.NDArray[np.int64], low_max: int) -> dict[Prefix, GroupNode]:
        """Every prefix that has a member, the empty one first, then by depth and codes."""
        found: dict[Prefix, GroupNode] = {}
        for depth in range(self.codes_RS.shape[1] + 1):
            prefixes, group_R = (
                np.unique(self.codes_RS[:, :depth], axis=0, return_inverse=True) if depth else (np.zeros((1, 0), int), np.zeros(len(self.codes_RS), int))
            )
            order = np.argsort(group_R.reshape(-1), kind="stable")
            starts = np.searchsorted(group_R.reshape(-1)[order], np.arange(len(prefixes) + 1))
            for place, prefix in enumerate(prefixes.tolist()):
                members = purchases_R[order[starts[place] : starts[place + 1]]]
                if len(members):
                    found[tuple(prefix)] = GroupNode(tuple(prefix), len(members), int((members <= low_max).sum()), float(np.median(members)))
        return found


def words(text: str) -> set[str]:
    """The distinct words of a profile that may tell something."""
    return {word for word in WORD.findall(text.lower()) if len(word) > 1 and word not in DULL}


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """In how many of the texts each word stands."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words(text))
    return counts


@dataclass(frozen=True)
class TellingWord:
    """A word of a group's profiles beside everyone's."""

    word: str
    share: float  # of the members' profiles
    share_elsewhere: float
    log_odds: float  # natural, of standing in a member's profile rather than in another one
    z: float  # the same by its standard error


def telling_words(group: Counter[str], size: int, everyone: Counter[str], total: int, count: int, least: int = 2) -> list[TellingWord]:
    """The words that tell a group's profiles from the others', by log-odds over their standard error, each count half a profile more than it is.

    Args:
        group: of `size` members' profiles.
        everyone: of `total` profiles, the members' included.
        count: how many at most.
        least: profiles of the group that a word must stand in.
    """
    others = total - size
    found = []
    for word, here in group.items():
        there = everyone[word] - here
        if here < least or others <= 0 or there < 0:
            continue
        odds = np.log((here + 0.5) / (size - here + 0.5)) - np.log((there + 0.5) / (others - there + 0.5))
        error = np.sqrt(1 / (here + 0.5) + 1 / (size - here + 0.5) + 1 / (there + 0.5) + 1 / (others - there + 0.5))
        if odds > 0:
            found.append(TellingWord(word, here / size, there / others, float(odds), float(odds / error)))
    return sorted(found, key=lambda one: (-one.z, one.word))[:count]
