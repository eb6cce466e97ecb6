"""Fitting a residual codebook beside what a user would take instead: 500,000 x 384, S = 3, k = 256, 20 iterations, every row in every one.

Peers: faiss.Kmeans stacked on residuals, with all rows (it samples 256 a centroid by default) and as many iterations; on a stated part of the rows, ours on
the same, faiss.ResidualQuantizer as it comes and scikit-learn's KMeans stacked, as the ChoirRec author's demo and most repositories do. All on the same
threads; quality is the mean squared residual of the rows, told for every side by the same exact encoder. Ours is the core's function; the stage on Ray is
timed beside it.
Reads and writes nothing. Run: python -m bench.codes_fit [--rows 500000] [--rounds 5]
Last stdout line: one JSON object (bench.rounds).
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from bench.codes_stage import on_ray
from bench.rounds import OURS, Side, arguments, in_turns, report, rounded, say
from bench.vectors import planted
from longtail.codes import CodebookSettings, LocalShards, encode, fit_codebook, fit_here

Floats = NDArray[np.float32]
MSE_SLACK = 1.001
QUANTIZER = "faiss.ResidualQuantizer"


def faiss_kmeans(vectors_ND: Floats, settings: CodebookSettings, seed: int) -> Floats:
    """faiss.Kmeans on residuals, stage by stage; float32 [S, K, D]."""
    left_ND, stages = vectors_ND.copy(), []
    for stage in range(settings.num_stages):
        fit = faiss.Kmeans(
            vectors_ND.shape[1], settings.codebook_size, niter=settings.iterations, seed=seed + stage, max_points_per_centroid=len(vectors_ND), verbose=False
        )
        fit.train(left_ND)
        stages.append(np.asarray(fit.centroids).reshape(settings.codebook_size, -1))
        if stage + 1 < settings.num_stages:
            left_ND -= stages[-1][fit.index.search(left_ND, 1)[1][:, 0]]
    return np.stack(stages)


def faiss_residual_quantizer(vectors_ND: Floats, settings: CodebookSettings) -> Floats:
    """faiss.ResidualQuantizer with its defaults; float32 [S, K, D]."""
    bits = int(np.log2(settings.codebook_size))
    quantizer = faiss.ResidualQuantizer(vectors_ND.shape[1], settings.num_stages, bits)
    quantizer.train(vectors_ND)
    codebook: Floats = faiss.vector_to_array(quantizer.codebooks).reshape(settings.num_stages, settings.codebook_size, -1)
    return codebook


def sklearn_kmeans(vectors_ND: Floats, settings: CodebookSettings, seed: int, threads: int) -> Floats:
    """scikit-learn's KMeans on residuals, stage by stage; float32 [S, K, D]."""
    left_ND, stages = vectors_ND.copy(), []
    with threadpool_limits(threads):
        for stage in range(settings.num_stages):
            fit = KMeans(settings.codebook_size, n_init=1, max_iter=settings.iterations, tol=0.0, random_state=seed + stage).fit(left_ND)
            stages.append(fit.cluster_centers_.astype(np.float32))
            left_ND -= stages[-1][fit.labels_]
    return np.stack(stages)


def mse(vectors_ND: Floats, codebook_SKD: Floats) -> float:
    """Mean squared residual of all rows, each stage's nearest centroid found exactly."""
    total = 0.0
    for start in range(0, len(vectors_ND), 50_000):
        rows = vectors_ND[start : start + 50_000]
        codes_NS = encode(rows, codebook_SKD)
        left = rows - sum(codebook_SKD[stage][codes_NS[:, stage]] for stage in range(len(codebook_SKD)))
        total += float(np.einsum("nd,nd->", left, left, dtype=np.float64))
    return total / len(vectors_ND)


def same_bits(vectors_ND: Floats, settings: CodebookSettings, seed: int) -> bool:
    """Whether 1, 2 and 4 shards give one codebook, and so do 4 that answer in another order of work and 1 thread."""

    def made(num_shards: int) -> bytes:
        shards = LocalShards.split(vectors_ND, settings.block_rows, num_shards)
        return fit_codebook(shards, len(vectors_ND), vectors_ND.shape[1], settings, seed).codebook_SKD.tobytes()

    first = made(1)
    equal = made(2) == first and made(4) == first
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return equal and made(2) == first
    finally:
        torch.set_num_threads(threads)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison.

    Raises:
        AssertionError: codebooks of different shard counts differ in a bit.
    """
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    settings = CodebookSettings(num_stages=args.stages, codebook_size=args.codebook_size, iterations=args.iterations)
    vectors_ND = planted(args.rows, args.dim, seed=0)
    part_ND = vectors_ND[: args.part_rows]
    sides: dict[str, Callable[[Floats], Any]] = {
        OURS: lambda rows: fit_here(rows, settings, 7),
        "faiss.Kmeans": lambda rows: faiss_kmeans(rows, settings, 7),
    }
    for side in sides.values():  # warm on a part: a whole run of each would take minutes and warm no more
        side(part_ND)
    taken = in_turns({name: Side(partial(side, vectors_ND)) for name, side in sides.items()}, args.rounds, warm_up=0)
    fit = taken[OURS].result
    found = {name: mse(vectors_ND, one.result.codebook_SKD if name == OURS else one.result) for name, one in taken.items()}
    quantizer = {OURS: Side(partial(sides[OURS], part_ND)), QUANTIZER: Side(partial(faiss_residual_quantizer, part_ND, settings))}
    on_part = in_turns(quantizer, args.rounds, warm_up=0)
    part_fit, (sklearn_s, by_sklearn) = on_part[OURS].result, timed(lambda: sklearn_kmeans(part_ND, settings, 7, args.threads))
    part = {name: mse(part_ND, codebook_SKD) for name, codebook_SKD in ((OURS, part_fit.codebook_SKD), (QUANTIZER, on_part[QUANTIZER].result))}
    part_s, part_line = on_part[OURS].median_s, report("part", {}, on_part, threads=args.threads, quality={})
    equal = same_bits(vectors_ND[: args.shard_rows], settings, 7)
    assert equal, "codebooks of different numbers of shards differ"
    to_best = max(found[OURS] / found["faiss.Kmeans"], part[OURS] / part[QUANTIZER])
    line = report(
        "codes_fit",
        {"rows": args.rows, "dim": args.dim, "stages": args.stages, "codebook_size": args.codebook_size, "iterations": args.iterations},
        taken,
        threads=args.threads,
        quality={
            "mse": {name: rounded(value) for name, value in found.items()},
            "mse_to_best_peer": float(f"{to_best:.6f}"),
            "dead_codes": int((fit.counts_SK == 0).sum()),
            "bit_equal_for_1_2_4_shards": equal,
            QUANTIZER: {"rows": len(part_ND), "mse": {name: rounded(value) for name, value in part.items()}}
            | {name: part_line[name] for name in ("ours_s", "peers", "ratio", "spread")},
            "sklearn": {
                "rows": len(part_ND),
                "seconds": rounded(sklearn_s),
                "ours_s": rounded(part_s),
                "ratio": rounded(sklearn_s / part_s),
                "mse_ours_to_sklearn": rounded(part[OURS] / mse(part_ND, by_sklearn)),
            },
            "stage": on_ray(vectors_ND, settings, args.threads) if args.stage else None,
        },
    )
    ratio = line["ratio"]["faiss.Kmeans"]
    line["quality"]["reach"] = {
        "mse_to_best_peer": [MSE_SLACK, line["quality"]["mse_to_best_peer"], to_best <= MSE_SLACK],
        "times_faiss.Kmeans": [3.0, ratio, ratio >= 3.0],
        "dead_codes": [0, line["quality"]["dead_codes"], line["quality"]["dead_codes"] == 0],
    }
    return line


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--codebook-size", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--part-rows", type=int, default=30_000, help="the part that scikit-learn and faiss's ResidualQuantizer fit, and ours beside them")
    parser.add_argument("--shard-rows", type=int, default=60_000, help="the part on which different numbers of shards are compared")
    parser.add_argument("--no-stage", dest="stage", action="store_false", help="leave Ray out")
    say(bench(parser.parse_args()))


if __name__ == "__main__":
    main()
