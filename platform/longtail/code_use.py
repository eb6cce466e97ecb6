"""Code use: how often each code of a codebook is taken, and what share of the rows another row's codes hide.

Reads a codes artifact; writes nothing. The report and the console draw it. Letters: N rows, S stages, K codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from longtail import codes
from longtail.artifacts import Artifact


@dataclass(frozen=True)
class CodeUse:
    """How often each code of each stage of one codebook is used, codes that nobody has included."""

    counts_SK: Sequence[Sequence[int]]
    perplexity_S: Sequence[float]
    collision_rate: float  # of the rows, the share whose whole tuple another row has too

    @property
    def gini(self) -> list[float]:
        """By stage: 0 where all codes are used alike, towards 1 where one is."""
        return [codes.gini(np.array(counts)) for counts in self.counts_SK]

    @property
    def dead_codes(self) -> list[int]:
        """Codes of each stage that nobody has."""
        return [sum(count == 0 for count in counts) for counts in self.counts_SK]


def code_use(artifact: Artifact) -> CodeUse:
    """Use of every code, at the last snapshot where there are several."""
    table = artifact.read("codes")
    if "as_of" in table.column_names:
        table = table.filter(pc.equal(table.column("as_of"), pc.max(table.column("as_of"))))
    num_stages, size, _ = artifact.info["shape"]
    codes_NS = table.column("codes").combine_chunks().flatten().to_numpy().reshape(-1, num_stages)
    counts_SK = [np.bincount(codes_NS[:, stage], minlength=size) for stage in range(num_stages)]
    _, inverse, together = np.unique(codes_NS, axis=0, return_inverse=True, return_counts=True)
    return CodeUse(
        counts_SK=[counts.tolist() for counts in counts_SK],
        perplexity_S=[codes.perplexity(counts) for counts in counts_SK],
        collision_rate=float((together[inverse.reshape(-1)] > 1).mean()) if len(codes_NS) else 0.0,
    )
