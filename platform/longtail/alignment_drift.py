"""Alignment drift: how far behaviour moved items while SaviorRec trained (multi-modal behaviour alignment, MBA), by code and by item.

Reads the alignment's codebooks out of a checkpoint's weights and nothing else of it; writes nothing.
Letters: S code stages, K codes of a stage with 0 for none, D width of z.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

_TABLE = "alignment.codebooks."
_WEIGHT = "alignment.weight_K"


@dataclass(frozen=True)
class CodeDrift:
    """One code of an item, and how far it moves whoever has it."""

    stage: int  # from 0
    code: int  # from 0
    norm: float
    rank: int  # among the stage's codes, 1 the farthest
    num_codes: int


@dataclass(frozen=True)
class AlignmentDrift:
    """What each code adds to the vectors of its items; a vector without alignment has length one."""

    tables: tuple[npt.NDArray[np.float32], ...]  # [K, D] by stage, with what training rows shrink already in it

    def norms(self) -> list[npt.NDArray[np.float32]]:
        """How far each code moves its items, by stage [K - 1], codes from 0."""
        return [np.linalg.norm(table_KD[1:], axis=1) for table_KD in self.tables]

    def of(self, codes_S: Sequence[int]) -> npt.NDArray[np.float32]:
        """What alignment adds to the vector of an item with these codes [D]."""
        moved: npt.NDArray[np.float32] = np.sum([table_KD[code + 1] for table_KD, code in zip(self.tables, codes_S, strict=True)], axis=0)
        return moved

    def by_code(self, codes_S: Sequence[int]) -> list[CodeDrift]:
        """The same code by code."""
        found = []
        for stage, (norms_K, code) in enumerate(zip(self.norms(), codes_S, strict=True)):
            found.append(CodeDrift(stage, code, float(norms_K[code]), int((norms_K > norms_K[code]).sum()) + 1, len(norms_K)))
        return found


@lru_cache(maxsize=4)
def load_alignment_drift(checkpoint: Path) -> AlignmentDrift | None:
    """The alignment of a checkpoint; None of a ranker without one."""
    with safe_open(checkpoint / "weights.safetensors", "numpy") as weights:
        names = sorted((name for name in weights.keys() if _TABLE in name), key=lambda name: int(name.partition(_TABLE)[2].partition(".")[0]))  # noqa: SIM118
        weight = [name for name in weights.keys() if name.endswith(_WEIGHT)]  # noqa: SIM118  safe_open is no mapping
        if not names or not weight:
            return None
        tables = [weights.get_tensor(name) for name in names]
        weight_K = weights.get_tensor(weight[0])
    starts = np.cumsum([0, *(len(table_KD) for table_KD in tables)])
    return AlignmentDrift(tuple(table_KD * weight_K[start : start + len(table_KD), None] for table_KD, start in zip(tables, starts, strict=False)))
