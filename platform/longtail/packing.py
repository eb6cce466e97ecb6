"""Packing: texts of many lengths as one row of tokens without padding, so that a text encoder's dense layers multiply nothing in vain.

Texts of one length stand together in a pack: attention is then a plain batched product for each run of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

#: Rows of a pack are filled up to a multiple of this: a matrix product of a size that it never met costs a library about a millisecond to prepare.
GRAIN = 64


@dataclass(frozen=True)
class Run:
    """Consecutive texts of one length, from the pack's token `start` on."""

    start: int
    num_texts: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.num_texts * self.length


@dataclass(frozen=True)
class Pack:
    """Texts for one forward pass; behind the last run's end stand fillers that belong to none."""

    texts: Ints  # which of the given texts, in the pack's order
    tokens_T: Ints
    positions_T: Ints
    runs: tuple[Run, ...]


def packs(token_ids: Sequence[Sequence[int]], most_tokens: int) -> Iterator[Pack]:
    """All texts in packs of at most `most_tokens` tokens (a longer text has its own), shortest first."""
    lengths = np.array([len(ids) for ids in token_ids], np.int64)
    order = np.argsort(lengths, kind="stable")
    begin, held = 0, 0
    for place, length in enumerate(lengths[order]):
        if held + length > most_tokens and place > begin:
            yield pack(token_ids, lengths, order[begin:place])
            begin, held = place, 0
        held += int(length)
    if begin < len(order):
        yield pack(token_ids, lengths, order[begin:])


def pack(token_ids: Sequence[Sequence[int]], lengths: Ints, texts: Ints) -> Pack:
    """One pack of `texts`, which are in the order of their lengths."""
    total = int(lengths[texts].sum())
    tokens_T, positions_T = (np.zeros(-(-total // GRAIN) * GRAIN, np.int64) for _ in range(2))
    tokens_T[:total] = np.concatenate([token_ids[text] for text in texts])
    runs, start = [], 0
    for length, num_texts in zip(*np.unique(lengths[texts], return_counts=True), strict=True):
        runs.append(Run(start, int(num_texts), int(length)))
        positions_T[start : runs[-1].stop] = np.tile(np.arange(length), num_texts)
        start = runs[-1].stop
    return Pack(texts, tokens_T, positions_T, tuple(runs))
