"""Packing: texts of many lengths as one row of tokens without padding, so that a text encoder's dense layers multiply nothing in vain.

Texts of one length stand together in a pack: attention is then a plain batched product for each run of them. What an encoder does to a token before it looks
at its neighbours depends on the token and its position alone; a catalogue's texts are alike, so that each such pair is listed once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

#: Places and pairs of a pack are filled up to a multiple of this: a matrix product of a size that it never met costs a library about a millisecond to prepare.
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
    tokens_U: Ints  # the distinct pairs of a token and its position; the last ones may be fillers
    positions_U: Ints
    pairs_T: Ints  # which pair stands at each place
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
    tokens_T = np.concatenate([token_ids[text] for text in texts])
    positions_T, runs, start = np.empty_like(tokens_T), [], 0
    for length, num_texts in zip(*np.unique(lengths[texts], return_counts=True), strict=True):
        runs.append(Run(start, int(num_texts), int(length)))
        positions_T[start : runs[-1].stop] = np.tile(np.arange(length), num_texts)
        start = runs[-1].stop
    base = int(lengths[texts].max())
    distinct, pairs_T = np.unique(tokens_T * base + positions_T, return_inverse=True)
    distinct = filled(distinct)
    return Pack(texts, distinct // base, distinct % base, filled(pairs_T), tuple(runs))


def filled(values: Ints) -> Ints:
    """The values with zeros behind them, up to the next multiple of GRAIN."""
    return np.pad(values, (0, -len(values) % GRAIN))
