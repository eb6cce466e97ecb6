"""Vectors for benches: unit vectors around planted topics, in a space whose directions carry less and less, as those of a sentence encoder do.

Reads and writes nothing. Letters: N rows, T topics, D vector width.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_ROWS = 50_000


def planted(num_rows: int, dim: int, num_topics: int = 2000, noise: float = 0.8, seed: int = 0) -> Floats:
    """float32 [num_rows, dim] of norm 1; topics differ in size, a few have many rows."""
    rng = np.random.default_rng(seed)
    scale_D = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)
    topics_TD = rng.standard_normal((num_topics, dim), np.float32) * scale_D
    share_T = np.arange(1, num_topics + 1) ** -0.7
    turn_DD = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    vectors_ND = np.empty((num_rows, dim), np.float32)
    for start in range(0, num_rows, _ROWS):
        size = min(_ROWS, num_rows - start)
        topic_N = rng.choice(num_topics, size, p=share_T / share_T.sum())
        rows = (topics_TD[topic_N] + noise * rng.standard_normal((size, dim), np.float32) * scale_D) @ turn_DD
        vectors_ND[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors_ND
