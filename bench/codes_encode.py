"""Codes of 2,000,000 x 384 vectors under a codebook of 3 x 256, beside faiss's exact search stage by stage, and beside the bare matrix products.

Both sides take float32 rows and the same codebook, fitted on a part of them, on the same threads; rows are planted (bench.vectors). The roofline is the
product of the same shapes in the precision that ours uses (int8), in the same rounds: what a stage costs if finding the least, making sure and subtracting
were free; that in bfloat16, which leaves fewer doubts, stands beside it. Codes are compared with float32's for every row; where they differ, float64 distances
say who is right.
Reads and writes nothing. Run: python -m bench.codes_encode [--rows 2000000] [--rounds 5]
Last stdout line: one JSON object (bench.rounds).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from bench.codes_stage import on_ray
from bench.rounds import OURS, Side, arguments, in_turns, report, rounded, say
from bench.vectors import planted
from longtail.codes import CodebookSettings, encode, fit_here
from longtail.int8_products import has_int8_units

Floats = NDArray[np.float32]
Codes = NDArray[np.int32]
_ROWS = 4096


def faiss_encode(vectors_ND: Floats, codebook_SKD: Floats) -> Codes:
    """Stage by stage: exact search for one neighbour, then what it leaves."""
    indexes = []
    for centroids_KD in codebook_SKD:
        index = faiss.IndexFlatL2(vectors_ND.shape[1])
        index.add(np.ascontiguousarray(centroids_KD))
        indexes.append(index)
    codes_NS = np.empty((len(vectors_ND), len(codebook_SKD)), np.int32)
    for start in range(0, len(vectors_ND), 16 * _ROWS):
        left = vectors_ND[start : start + 16 * _ROWS].copy()
        for stage, index in enumerate(indexes):
            codes = index.search(left, 1)[1][:, 0]
            codes_NS[start : start + len(left), stage] = codes
            left -= codebook_SKD[stage][codes]
    return codes_NS


@dataclass(frozen=True)
class Bare:
    """A kind of matrix product and nothing else."""

    multiply: Callable[..., torch.Tensor]
    factors: torch.dtype
    product: torch.dtype

    def __call__(self, num_rows: int, codebook_SKD: Floats) -> int:
        """Those of all stages, on rows that lie in the cache."""
        rows = torch.ones(_ROWS, codebook_SKD.shape[2]).to(self.factors)
        stages = [torch.from_numpy(centroids_KD).to(self.factors).t() for centroids_KD in codebook_SKD]
        out = torch.empty(_ROWS, codebook_SKD.shape[1], dtype=self.product)
        for start in range(0, num_rows, _ROWS):
            for centroids_DK in stages:
                self.multiply(rows[: num_rows - start], centroids_DK, out=out[: num_rows - start])
        return num_rows


BARE = {"bare_int8_products": Bare(torch._int_mm, torch.int8, torch.int32), "bare_bfloat16_products": Bare(torch.mm, torch.bfloat16, torch.bfloat16)}


def float32_codes(vectors_ND: Floats, codebook_SKD: Floats) -> Codes:
    """Every distance in float32, as numpy multiplies."""
    codes_NS = np.empty((len(vectors_ND), len(codebook_SKD)), np.int32)
    for start in range(0, len(vectors_ND), _ROWS):
        left = vectors_ND[start : start + _ROWS].copy()
        for stage, centroids_KD in enumerate(codebook_SKD):
            codes = (np.einsum("kd,kd->k", centroids_KD, centroids_KD) - 2.0 * (left @ centroids_KD.T)).argmin(1)
            codes_NS[start : start + len(left), stage] = codes
            left -= centroids_KD[codes]
    return codes_NS


def compared(vectors_ND: Floats, codebook_SKD: Floats, ours_NS: Codes, others_NS: Codes) -> dict[str, int]:
    """Rows whose codes differ, and of how many of them float64 distances, at the first stage that differs, say that ours is the nearer or as near.

    Raises:
        AssertionError: some row's code is farther than the other's.
    """
    rows_R = np.flatnonzero((ours_NS != others_NS).any(1))
    nearer = 0
    for row in rows_R:
        stage = int(np.flatnonzero(ours_NS[row] != others_NS[row])[0])
        left = vectors_ND[row].copy()
        for before in range(stage):
            left -= codebook_SKD[before][ours_NS[row, before]]
        mine, theirs = (float(((left.astype(np.float64) - codebook_SKD[stage][codes[row, stage]]) ** 2).sum()) for codes in (ours_NS, others_NS))
        nearer += mine <= theirs
    assert nearer == len(rows_R), f"{len(rows_R) - nearer} of {len(rows_R)} rows that differ have a farther centroid"
    return {"rows_that_differ": len(rows_R), "of_these_nearer_or_as_near": nearer}


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison."""
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    settings = CodebookSettings(num_stages=args.stages, codebook_size=args.codebook_size, iterations=8)
    vectors_ND = planted(args.rows, args.dim, seed=0)
    codebook_SKD = fit_here(vectors_ND[: args.fit_rows], settings, 7).codebook_SKD
    taken = in_turns(
        {
            OURS: Side(lambda: encode(vectors_ND, codebook_SKD)),
            "faiss.IndexFlatL2": Side(lambda: faiss_encode(vectors_ND, codebook_SKD)),
        }
        | {name: Side(partial(bare, len(vectors_ND), codebook_SKD)) for name, bare in BARE.items()},
        args.rounds,
    )
    line = report(
        "codes_encode",
        {"rows": args.rows, "dim": args.dim, "stages": args.stages, "codebook_size": args.codebook_size},
        taken,
        threads=args.threads,
        quality={
            "int8_units": has_int8_units(),
            "beside_float32": compared(vectors_ND, codebook_SKD, taken[OURS].result, float32_codes(vectors_ND, codebook_SKD)),
            "beside_faiss": compared(vectors_ND, codebook_SKD, taken[OURS].result, taken["faiss.IndexFlatL2"].result),
            "bare_gflop_per_s": {name: rounded(2.0 * args.rows * args.dim * args.codebook_size * args.stages / taken[name].median_s / 1e9) for name in BARE},
            "stage": on_ray(vectors_ND[: args.stage_rows], settings, args.threads, codebook_SKD) if args.stage_rows else None,
        },
    )
    ratio, share = line["ratio"]["faiss.IndexFlatL2"], line["ratio"]["bare_int8_products"]
    line["quality"]["reach"] = {"times_faiss": [3.0, ratio, ratio >= 3.0], "of_roofline": [0.7, share, share >= 0.7]}
    return line


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--fit-rows", type=int, default=60_000, help="rows that the codebook is fitted on")
    parser.add_argument("--stage-rows", type=int, default=500_000, help="rows that the stage on Ray encodes; 0: leave Ray out")
    say(bench(parser.parse_args()))


if __name__ == "__main__":
    main()
