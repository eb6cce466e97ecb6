"""A completion's results: accuracy by attribute and method, and paired differences from the majority with intervals over users and masks together.

accuracy            share of the masked values that the method names
balanced accuracy   the same by true value, averaged over the values that are among the masked ones: the majority's is one over their number
overall             the mean over attributes, each counting alike

All are taken mask by mask: `sd` is their spread over masks, and an interval comes from resampling users (a user's attributes hang together) and masks.

Letters: R users, A attributes, K masks, V values of an attribute, B resamples, the first of them everybody once.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from longtail.completion import METHODS, Bools, Codes, Filled
from longtail.metrics import Floats
from longtail.paired import Interval, interval, resampled
from longtail.settings import Settings

NUM_CELLS = 1 << 22  # of the widest array of resamples: 32 MB, however many users there are


class MethodResult(Settings):
    """One method on one attribute, or overall; the differences are from the majority on the same values."""

    accuracy: float
    accuracy_sd: float
    balanced: float
    balanced_sd: float
    gain: Interval
    balanced_gain: Interval


class AttributeResult(Settings):
    """One attribute."""

    known: int
    values: int  # how many different ones
    masked: int  # values over all masks
    nearest_frac: float  # of them, those whose nearest group has a majority of its own; the others get that of a group above it
    missing: int  # users who really lack it
    nearest_missing_frac: float | None  # of them, those whose nearest group has a majority of its own
    methods: dict[str, MethodResult]


class CompletionResults(Settings):
    """What completion.json holds."""

    users: int
    masks: int
    attributes: dict[str, AttributeResult]
    overall: dict[str, MethodResult]
    left_out: dict[str, str]  # attributes that could not be measured, and why
    notes: dict[str, object]


def compare(
    names: Sequence[str], truth_RA: Codes, nearest_RA: Bools, masks: Sequence[Bools], filled: Sequence[Filled], rounds: int, seed: int
) -> tuple[dict[str, AttributeResult], dict[str, MethodResult]]:
    """Every method by attribute, and overall.

    Args:
        names: of the attributes.
        truth_RA: their codes before anything was masked.
        nearest_RA: whether the nearest group has a majority of its own, in the run's own groups with nothing masked.
        masks: which of them were masked, mask by mask.
        filled: the methods' answers to each mask.
        rounds: of the bootstrap.
    """
    masked_KRA = np.stack(masks)
    hits = {name: np.stack([one.values[name] for one in filled]) == truth_RA for name in METHODS}
    nearest_KRA = np.stack([one.nearest_RA for one in filled])
    users = np.flatnonzero(masked_KRA.any(axis=(0, 2)))
    rng = np.random.default_rng([seed, 0xB7])
    chunks = []
    for counts_BR in _resamples(len(users), rounds, rng):
        parts = [
            _rates(counts_BR, truth_RA[users, a], masked_KRA[:, users, a], {name: hit[:, users, a] for name, hit in hits.items()}) for a in range(len(names))
        ]
        chunks.append({name: np.stack([part[name] for part in parts]) for name in METHODS})
    draws = {name: np.concatenate([chunk[name] for chunk in chunks], axis=2) for name in METHODS}  # [A, 2, B, K]
    mask_BK = rng.integers(0, len(masks), (rounds + 1, len(masks)))
    by_attribute = {}
    for a, name in enumerate(names):
        known_R, nearest_R = truth_RA[:, a] > 0, nearest_RA[:, a]
        masked_KR = masked_KRA[:, :, a]
        by_attribute[name] = AttributeResult(
            known=int(known_R.sum()),
            values=len(np.unique(truth_RA[known_R, a])),
            masked=int(masked_KR.sum()),
            nearest_frac=float(nearest_KRA[:, :, a][masked_KR].mean()),
            missing=int((~known_R).sum()),
            nearest_missing_frac=None if known_R.all() else float(nearest_R[~known_R].mean()),
            methods={method: _result(draws[method][a], draws["majority"][a], mask_BK) for method in METHODS},
        )
    overall = {method: _result(draws[method].mean(axis=0), draws["majority"].mean(axis=0), mask_BK) for method in METHODS}
    return by_attribute, overall


def _resamples(num_users: int, rounds: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each user is drawn [B, R], first everybody once, some rounds at a time."""
    yield np.ones((1, num_users))
    step = max(NUM_CELLS // max(num_users, 1), 1)
    for start in range(0, rounds, step):
        yield np.stack([resampled(num_users, rng) for _ in range(min(step, rounds - start))])


def _rates(counts_BR: Floats, truth_R: Codes, masked_KR: Bools, hits: Mapping[str, Bools]) -> dict[str, Floats]:
    """Accuracy and balanced accuracy [2, B, K] of each method on one attribute; NaN where a resample has none of its values."""
    one_hot_RV = truth_R[:, None] == np.unique(truth_R[truth_R > 0])
    asked_BKV = _summed(counts_BR, masked_KR, one_hot_RV)
    found = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        num_values = np.where((asked_BKV > 0).any(axis=2), (asked_BKV > 0).sum(axis=2), np.nan)
        for name, hit_KR in hits.items():
            right_BKV = _summed(counts_BR, masked_KR & hit_KR, one_hot_RV)
            accuracy_BK = right_BKV.sum(axis=2) / asked_BKV.sum(axis=2)
            balanced_BK = np.where(asked_BKV > 0, right_BKV / asked_BKV, 0).sum(axis=2) / num_values
            found[name] = np.stack([accuracy_BK, balanced_BK])
    return found


def _summed(counts_BR: Floats, which_KR: Bools, one_hot_RV: Bools) -> Floats:
    """How many of the resampled users are `which`, by mask and value [B, K, V]."""
    cells = (which_KR[:, :, None] & one_hot_RV[None]).transpose(1, 0, 2).reshape(len(one_hot_RV), -1).astype(np.float64)
    return (counts_BR @ cells).reshape(len(counts_BR), len(which_KR), -1)


def _result(draws_2BK: Floats, majority_2BK: Floats, mask_BK: np.ndarray) -> MethodResult:
    """One method's means, spreads and differences from its rates in every resample."""
    point_2K = draws_2BK[:, 0]
    sd = point_2K.std(axis=1, ddof=1) if point_2K.shape[1] > 1 else np.zeros(2)
    gaps = []
    for gap_BK in draws_2BK - majority_2BK:
        resampled_B = np.take_along_axis(gap_BK, mask_BK, axis=1).mean(axis=1)
        gaps.append(interval(float(gap_BK[0].mean()), resampled_B[1:]))
    accuracy, balanced = point_2K.mean(axis=1)
    return MethodResult(
        accuracy=float(accuracy), accuracy_sd=float(sd[0]), balanced=float(balanced), balanced_sd=float(sd[1]), gain=gaps[0], balanced_gain=gaps[1]
    )


def table(found: CompletionResults) -> str:
    """The results as text; behind the known (of which some were masked) and behind the missing values, the share whose nearest group has a majority."""
    counts = f"{'known':>6} {'values':>6} {'own':>5} {'missing':>8} {'own':>5}"
    lines = [f"{'attribute':<20} {counts}  {'method':<10} {'accuracy':>14} {'balanced':>14}   over the majority, and balanced"]
    for name, one in found.attributes.items():
        to_missing = "" if one.nearest_missing_frac is None else f"{one.nearest_missing_frac:.2f}"
        lines += _lines(f"{name[:20]:<20} {one.known:>6,} {one.values:>6} {one.nearest_frac:>5.2f} {one.missing:>8,} {to_missing:>5}", one.methods)
    lines += _lines(f"{'overall':<20} {'':>{len(counts)}}", found.overall)
    lines += [f"{name}: left out, {reason}" for name, reason in found.left_out.items()]
    lines += [
        "",
        "known, missing: users who have the attribute or lack it; own: of those who were asked, or lack it, the share whose nearest group has a majority,",
        f"the others take a larger group's; values: how many different ones, a numeric attribute's are its bins. ± over {found.masks} masks. The last two",
        "columns: accuracy and balanced accuracy minus the majority's, 95 % intervals over users and masks; only what lies clear of zero is worth lending.",
    ]
    return "\n".join(lines)


def _lines(head: str, methods: Mapping[str, MethodResult]) -> list[str]:
    """A line a method, the first behind `head`."""
    lines = []
    for method in METHODS:  # JSON has them by name
        one = methods[method]
        text = f"{head}  {method:<10} {one.accuracy:>7.3f} ±{one.accuracy_sd:.3f} {one.balanced:>7.3f} ±{one.balanced_sd:.3f}"
        lines.append(text if method == "majority" else f"{text}   {_shown(one.gain)}  {_shown(one.balanced_gain)}")
        head = " " * len(head)
    return lines


def _shown(gap: Interval) -> str:
    if gap.difference is None or gap.low is None or gap.high is None:
        return "      unclear       "
    return f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
