"""Metrics: AUC and GAUC of 20 M scored rows of 1 M users, beside polars and a loop over scikit-learn's roc_auc_score.

Ours is longtail.metrics as the stages call it, but with the threads of this bench. polars does all rows in one frame of its own, sorted once by score and label
packed into one integer (ranks over users, ranks within groups and sorts by two columns took longer, 20 M rows, 2 threads). The loop does the rows of 20,000
users, and so does ours beside it. Rows come in random order; AUCs must agree to 1e-9. No stage but evaluate measures, and its time goes into resampling users:
there is none to put beside these.

    python -m bench.metrics                      about three minutes
    python -m bench.metrics --num-rows 100000 --num-users 5000 --loop-users 500
"""

import argparse
import os
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("POLARS_MAX_THREADS", "2")  # before polars starts its threads
import polars as pl
from sklearn.metrics import roc_auc_score

from bench import rounds
from longtail.metrics import auc, gauc

TOLERANCE = 1e-9
TIMES_LOOP, TIMES_POLARS = 100.0, 1.0
SCORE_BITS = 32


@dataclass(frozen=True)
class Scored:
    """Rows as a ranker leaves them: float32 probabilities. N rows."""

    label_N: npt.NDArray[np.int8]
    score_N: npt.NDArray[np.float32]
    user_N: npt.NDArray[np.int32]

    @staticmethod
    def draw(num_rows: int, num_users: int, seed: int) -> "Scored":
        """Clicks of heavy-tailed users, drawn by scores that are calibrated but for each user's own offset."""
        rng = np.random.default_rng(seed)
        activity_U = np.cumsum(rng.lognormal(0.0, 1.0, num_users))
        user_N = np.minimum(np.searchsorted(activity_U, np.sort(rng.random(num_rows)) * activity_U[-1]), num_users - 1).astype(np.int32)
        rng.shuffle(user_N)
        score_N = rng.beta(1.2, 6.0, num_rows).astype(np.float32)
        label_N = (rng.random(num_rows) < score_N * rng.uniform(0.5, 1.5, num_users)[user_N]).astype(np.int8)
        return Scored(label_N, score_N, user_N)

    def below(self, num_users: int) -> "Scored":
        """The rows of the first users."""
        kept_N = self.user_N < num_users
        return Scored(self.label_N[kept_N], self.score_N[kept_N], self.user_N[kept_N])

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame({"user": self.user_N, "score": self.score_N, "label": self.label_N})


def ours(scored: Scored, threads: int) -> dict[str, float]:
    return {"auc": auc(scored.label_N, scored.score_N, threads), "gauc": gauc(scored.label_N, scored.score_N, scored.user_N, threads)}


def polars_metrics(frame: pl.DataFrame) -> dict[str, float]:
    return {"auc": polars_auc(frame), "gauc": polars_gauc(frame)}


def polars_auc(frame: pl.DataFrame) -> float:
    """From the positives' places when sorted by (score, label), less half a win for each tied pair; positive floats are ordered as their bits."""
    key, bit = pl.col("key"), (pl.col("key") % 2).cast(pl.Int64)
    packed = frame.lazy().select(key=pl.col("score").reinterpret(dtype=pl.UInt32) * 2 + pl.col("label").cast(pl.UInt32)).sort("key").collect()
    score = key // 2
    tied = packed.lazy().filter((score == score.shift(1)) | (score == score.shift(-1))).group_by(score=score).agg(pairs=bit.sum() * (1 - bit).sum())
    places = packed.lazy().with_row_index("place").select(ranks=((pl.col("place").cast(pl.Int64) + 1) * bit).sum(), positives=bit.sum(), rows=pl.len())
    ranks, positives, rows = places.collect().row(0)
    wins = ranks - positives * (positives + 1) / 2 - tied.select(pl.col("pairs").sum()).collect().item() / 2
    value: float = wins / (positives * (rows - positives))
    return value


def polars_gauc(frame: pl.DataFrame) -> float:
    """As `polars_auc` within each user, whose number stands above the score."""
    key, bit = pl.col("key"), (pl.col("key") % 2).cast(pl.Int64)
    score_bits = pl.col("score").reinterpret(dtype=pl.UInt32).cast(pl.UInt64)
    user_bits = pl.col("user").cast(pl.UInt64) * 2 ** (SCORE_BITS + 1)
    packed = frame.lazy().select(key=user_bits + score_bits * 2 + pl.col("label").cast(pl.UInt64)).sort("key").collect()
    score = key // 2
    tied = packed.lazy().filter((score == score.shift(1)) | (score == score.shift(-1))).group_by(score=score).agg(pairs=bit.sum() * (1 - bit).sum())
    tied = tied.group_by(user=(pl.col("score") // 2**SCORE_BITS).cast(pl.UInt32)).agg(pl.col("pairs").sum())
    row = packed.lazy().with_row_index("place").select(user=(key // 2 ** (SCORE_BITS + 1)).cast(pl.UInt32), bit=bit, place=pl.col("place").cast(pl.Int64))
    of_user = row.group_by("user").agg(
        rows=pl.len().cast(pl.Int64), positives=pl.col("bit").sum(), ranks=((pl.col("place") + 1) * pl.col("bit")).sum(), first=pl.col("place").min()
    )
    rows, positives = pl.col("rows"), pl.col("positives")
    wins = pl.col("ranks") - pl.col("first") * positives - positives * (positives + 1) / 2 - pl.col("pairs").fill_null(0) / 2
    each = of_user.filter((positives > 0) & (positives < rows)).join(tied, on="user", how="left").select("rows", auc=wins / (positives * (rows - positives)))
    return float(each.select((pl.col("auc") * rows).sum() / rows.sum()).collect().item())


def sklearn_loop(scored: Scored) -> dict[str, float]:
    """AUC of all rows, and of each user that has both classes; the rows are brought into the users' order once."""
    order_N = np.argsort(scored.user_N, kind="stable")
    label_N, score_N = scored.label_N[order_N], scored.score_N[order_N]
    ends = np.cumsum(np.bincount(scored.user_N))
    total = weight = 0.0
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        label = label_N[start:end]
        if 0 < label.sum() < len(label):
            total += len(label) * float(roc_auc_score(label, score_N[start:end]))
            weight += len(label)
    return {"auc": float(roc_auc_score(label_N, score_N)), "gauc": total / weight}


def compare(taken: Mapping[str, rounds.Taken]) -> float:
    """The largest difference from ours.

    Raises:
        ValueError: it is more than the tolerance.
    """
    differences: dict[str, float] = {
        f"{name}'s {metric}": abs(value - taken[rounds.OURS].result[metric]) for name, one in taken.items() for metric, value in one.result.items()
    }
    worst = max(differences, key=lambda name: float(np.nan_to_num(differences[name], nan=np.inf)))  # no number is a difference too
    if not differences[worst] <= TOLERANCE:
        raise ValueError(f"{worst} differs from ours by {differences[worst]:.3g}, more than {TOLERANCE:g}: one of the two is wrong.")
    return differences[worst]


def peak_mb(scored: Scored, threads: int) -> float:
    """The most memory that ours held beside the rows."""
    tracemalloc.start()
    ours(scored, threads)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return rounds.rounded(peak / 2**20)


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison."""
    scored = Scored.draw(args.num_rows, args.num_users, args.seed)
    frame, some = scored.frame(), scored.below(args.loop_users)
    whole = {rounds.OURS: rounds.Side(lambda: ours(scored, args.threads)), "polars": rounds.Side(lambda: polars_metrics(frame))}
    taken = rounds.in_turns(whole, args.rounds)
    loop = rounds.in_turns({rounds.OURS: rounds.Side(lambda: ours(some, args.threads)), "sklearn_loop": rounds.Side(lambda: sklearn_loop(some))}, args.rounds)
    alone = rounds.in_turns({rounds.OURS: rounds.Side(lambda: ours(scored, 1))}, args.rounds, 0)
    worst = max(compare(taken), compare(loop))
    part = rounds.report("loop", {}, loop, threads=args.threads, quality={})
    line = rounds.report("metrics", {"rows": args.num_rows, "users": args.num_users}, taken, threads=args.threads, quality={})
    times_polars, times_loop = line["ratio"]["polars"], part["ratio"]["sklearn_loop"]
    line["quality"] = {
        **taken[rounds.OURS].result,
        "largest_difference": worst,
        "one_thread_s": rounds.rounded(alone[rounds.OURS].median_s),
        "peak_mb_beside_rows": peak_mb(scored, args.threads),
        "loop": {"users": args.loop_users, "rows": len(some.label_N)} | {name: part[name] for name in ("ours_s", "peers", "ratio", "spread")},
        "reach": {
            "times the loop": [TIMES_LOOP, times_loop, times_loop >= TIMES_LOOP],
            "times polars": [TIMES_POLARS, times_polars, times_polars >= TIMES_POLARS],
            "equal to": [TOLERANCE, worst, worst <= TOLERANCE],
        },
    }
    return line


def main() -> None:
    parser = rounds.arguments(__doc__)
    parser.add_argument("--num-rows", type=int, default=20_000_000)
    parser.add_argument("--num-users", type=int, default=1_000_000)
    parser.add_argument("--loop-users", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    if pl.thread_pool_size() != args.threads:
        raise ValueError(f"--threads = {args.threads}: polars has taken {pl.thread_pool_size()}. Set POLARS_MAX_THREADS={args.threads} too.")
    rounds.say(bench(args))


if __name__ == "__main__":
    main()
