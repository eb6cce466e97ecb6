"""Evaluation: metrics by slice of user activity and item age, paired with the base ranker.

Reads predictions (schema.PREDICTIONS); `evaluate` returns a `Metrics`, which the `evaluate` stage writes as metrics.json.
Run: python -m pipelines.evaluate --config …

metrics.json, null wherever a number does not exist (the slice's `reason` says why):

    baseline                   the ranker that differences are taken from, null if it was not scored
    rankers                    the rankers scored, in order, "popularity" last: the item's count as its score, a check on the negatives
    test_users                 users with a test row
    low_activity_max           a user with at most this many purchases before the first test row is of low activity
    high_activity_min          … with at least this many, of high activity
    heads[]                    one per head that a ranker has
      head, definition         what it predicts, and on which rows
      rankers                  those that have it
      slices[]                 name, family (main | activity | item_events), title, rule, rows, users, positives, reason,
        scores{ranker}         auc, gauc, gauc_users, log_loss, calibration_ratio, calibration_error
        differences{ranker}    {auc, gauc, log_loss}: ranker minus baseline on the rows that both scored: difference, low, high (95 %, bootstrap over users)
      calibration{ranker}      predicted[], actual[], rows[] by bin of predicted probability
    alpha_fusion{ranker}[]     by activity bin: title, rows, mean, p10, p90 of the weight that the group channel got (ChoirRec, adaptive fusion)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from longtail.entities import Vocabulary
from longtail.hashing import stable_uint64
from longtail.metrics import Floats, Ints, auc, calibration, log_loss, user_aucs
from longtail.paired import Interval, paired_differences
from longtail.rankers.settings import RankerName
from longtail.settings import Compute, Settings

Mask = npt.NDArray[np.bool_]

POPULARITY = "popularity"

DEFINITIONS = {
    "outcome": "outcome given exposure, on all test rows",
    "cvr": "conversion given outcome, on test rows with an outcome",
    "conversion": "conversion given exposure, on all test rows",
}


class EvaluateSettings(Settings):
    """The `evaluate` stage."""

    baseline: RankerName = Field("base", description="the ranker that differences are taken from")
    low_activity_frac: float = Field(0.2, gt=0, lt=1, description="users with the fewest purchases before the test window")
    high_activity_frac: float = Field(0.2, gt=0, lt=1)
    cold_item_events: int = Field(100, ge=1, description="an item with fewer events before the row's snapshot is cold")
    new_item_days: float = Field(20.0, gt=0)
    num_bins: int = Field(10, ge=2, description="calibration bins and activity deciles")
    bootstrap_rounds: int = Field(200, ge=0, description="paired bootstrap over users, for the difference from the base; fewer than 20 give no interval")
    compute: Compute = Compute(batch_size=4096)


class Scores(Settings):
    """One ranker on one slice."""

    auc: float | None
    gauc: float | None
    gauc_users: int  # users with both classes: the only ones that GAUC sees
    log_loss: float | None
    calibration_ratio: float | None
    calibration_error: float | None


class SliceMetrics(Settings):
    """Every ranker on one slice."""

    name: str
    family: Literal["main", "activity", "item_events"]
    title: str
    rule: str
    rows: int
    users: int
    positives: int
    reason: str | None  # why numbers are missing
    scores: dict[str, Scores]
    differences: dict[str, dict[str, Interval]]


class CalibrationCurve(Settings):
    predicted: tuple[float, ...]
    actual: tuple[float, ...]
    rows: tuple[int, ...]


class HeadMetrics(Settings):
    """Every slice of one head."""

    head: str
    definition: str
    rankers: tuple[str, ...]
    slices: tuple[SliceMetrics, ...]
    calibration: dict[str, CalibrationCurve]

    def slice(self, name: str) -> SliceMetrics:
        return next(one for one in self.slices if one.name == name)


class AlphaBin(Settings):
    title: str
    rows: int
    mean: float
    p10: float
    p90: float


class Metrics(Settings):
    """All that an evaluation found; see the module's docstring."""

    baseline: str | None
    rankers: tuple[str, ...]
    test_users: int
    low_activity_max: int
    high_activity_min: int
    heads: tuple[HeadMetrics, ...]
    alpha_fusion: dict[str, tuple[AlphaBin, ...]]


@dataclass(frozen=True)
class Activity:
    """Purchases of every test user before the first test row, by user number. U users."""

    users: Vocabulary
    purchases_U: Ints
    low_max: int
    high_min: int
    edges: tuple[int, ...]  # lower ends of the activity bins

    @staticmethod
    def of(predictions: pa.Table, settings: EvaluateSettings) -> "Activity":
        users = Vocabulary.of(predictions.column("user_id"))
        number_N = users.encode(predictions.column("user_id")) - 1
        purchases_U = np.full(len(users), np.iinfo(np.int64).max)
        np.minimum.at(purchases_U, number_N, predictions.column("num_purchases").to_numpy().astype(np.int64))
        low_max = int(np.quantile(purchases_U, settings.low_activity_frac, method="lower"))
        high_min = int(np.quantile(purchases_U, 1 - settings.high_activity_frac, method="higher"))
        return Activity(users, purchases_U, low_max, max(high_min, low_max + 1), quantile_edges(purchases_U, settings.num_bins))


@dataclass(frozen=True)
class HeadRows:
    """One head's test rows, one per example, every ranker's scores beside each other. N rows."""

    label_N: Ints
    user_N: Ints
    purchases_N: Ints  # the user's, before the first test row
    item_events_N: Ints
    item_age_N: Floats
    scores: Mapping[str, Floats]  # by ranker, nan where it did not score the row

    @staticmethod
    def of(predictions: pa.Table, activity: Activity) -> "HeadRows":
        """Pivot one head's predictions.

        Raises:
            ValueError: a ranker scored an example twice, or two rankers disagree on an example's label.
        """
        example, first, inverse = np.unique(predictions.column("example_id").to_numpy(), return_index=True, return_inverse=True)
        probability, label = predictions.column("probability").to_numpy().astype(np.float64), predictions.column("label").to_numpy().astype(np.int64)
        ranker = predictions.column("ranker").combine_chunks().dictionary_encode()
        ranker_N = ranker.indices.to_numpy()
        if (label != label[first][inverse]).any():
            raise ValueError("predictions: rankers disagree on the labels of the same example and head. Score them on the same samples.")
        scores = {}
        for number, name in enumerate(ranker.dictionary.to_pylist()):
            mine = ranker_N == number
            if np.bincount(inverse[mine], minlength=len(example)).max() > 1:
                raise ValueError(f"predictions: ranker {name!r} scored an example twice for one head. Write each sample file's predictions to one part.")
            scores[name] = np.full(len(example), np.nan)
            scores[name][inverse[mine]] = probability[mine]
        kept = predictions.take(first)
        user_N = activity.users.encode(kept.column("user_id")).astype(np.int64) - 1
        item_events_N = kept.column("item_events").to_numpy().astype(np.int64)
        scores[POPULARITY] = item_events_N.astype(np.float64)
        return HeadRows(label[first], user_N, activity.purchases_U[user_N], item_events_N, kept.column("item_age_days").to_numpy().astype(np.float64), scores)


def evaluate(predictions: pa.Table, settings: EvaluateSettings, *, seed: int, rankers: tuple[str, ...]) -> Metrics:
    """Metrics of all `rankers` from predictions (schema.PREDICTIONS) of one split.

    Raises:
        ValueError: there are no predictions, or `HeadRows.of` refuses them.
    """
    if len(predictions) == 0:
        raise ValueError(
            "no test rows were scored: the test window holds no example. Move logs.split.train_frac (or train_end) so that events remain after it."
        )
    activity = Activity.of(predictions, settings)
    heads = []
    for head in [name for name in DEFINITIONS if pc.any(pc.equal(predictions.column("head"), name)).as_py()]:
        rows = HeadRows.of(predictions.filter(pc.equal(predictions.column("head"), head)), activity)
        scored = tuple(name for name in rankers if name in rows.scores)
        slices = tuple(_measure(one, rows, mask, scored, settings, seed) for one, mask in _slices(rows, activity, settings))
        curves = {name: _curve(rows, name, settings.num_bins) for name in scored}
        heads.append(HeadMetrics(head=head, definition=DEFINITIONS[head], rankers=scored, slices=slices, calibration=curves))
    return Metrics(
        baseline=settings.baseline if settings.baseline in rankers else None,
        rankers=(*rankers, POPULARITY),
        test_users=len(activity.users),
        low_activity_max=activity.low_max,
        high_activity_min=activity.high_min,
        heads=tuple(heads),
        alpha_fusion=_alpha_fusion(predictions, activity),
    )


@dataclass(frozen=True)
class SliceRule:
    """What a slice is called and which rows it holds, in words."""

    name: str
    family: Literal["main", "activity", "item_events"]
    title: str
    rule: str


def _slices(rows: HeadRows, activity: Activity, settings: EvaluateSettings) -> Iterator[tuple[SliceRule, Mask]]:
    events, age, purchases = rows.item_events_N, rows.item_age_N, rows.purchases_N
    cold, days = settings.cold_item_events, settings.new_item_days
    low, high = activity.low_max, activity.high_min
    yield SliceRule("all", "main", "all rows", "every test row"), np.ones(len(events), dtype=bool)
    yield SliceRule("low_activity", "main", "low-activity users", f"at most {_purchases(low)} before the first test row"), purchases <= low
    yield SliceRule("high_activity", "main", "high-activity users", f"at least {_purchases(high)} before the first test row"), purchases >= high
    yield SliceRule("cold", "main", "cold items", f"fewer than {cold} events before the row's snapshot"), events < cold
    yield SliceRule("warm", "main", "warm items", f"at least {cold} events before the row's snapshot"), events >= cold
    yield SliceRule("zero_shot", "main", "zero-shot items", "no event before the row's snapshot"), events == 0
    yield SliceRule("new_items", "main", "new items", f"first seen less than {days:g} days before the row's snapshot, or not yet"), age < days
    for name, mask in bins(purchases, activity.edges):
        yield SliceRule(f"purchases_{name}", "activity", name, f"users with {name} purchases before the first test row"), mask
    for name, mask in bins(events, quantile_edges(events, settings.num_bins)):
        yield SliceRule(f"item_events_{name}", "item_events", name, f"items with {name} events before the row's snapshot"), mask


def _purchases(count: int) -> str:
    return f"{count} purchase" if count == 1 else f"{count} purchases"


def quantile_edges(values: Ints, num_bins: int) -> tuple[int, ...]:
    """Lower ends of at most `num_bins` bins of about equally many values; equal values share a bin, so ties make fewer bins."""
    if len(values) == 0:
        return ()
    edges = np.quantile(values, np.arange(num_bins) / num_bins, method="higher")
    return tuple(int(edge) for edge in np.unique(edges))


def bins(values: Ints, edges: tuple[int, ...]) -> Iterator[tuple[str, Mask]]:
    """Each bin's range in words ("3", "4–9", "≥ 10") and its rows; the first and last are open."""
    for place, low in enumerate(edges):
        last = place == len(edges) - 1
        high = values.max(initial=low) if last else edges[place + 1] - 1
        title = str(low) if low == high else f"≥ {low}" if last else f"{low}–{high}"  # noqa: RUF001
        above = np.ones(len(values), dtype=bool) if place == 0 else values >= low
        yield title, above if last else above & (values <= high)


def _measure(rule: SliceRule, rows: HeadRows, mask: Mask, rankers: tuple[str, ...], settings: EvaluateSettings, seed: int) -> SliceMetrics:
    label, user = rows.label_N[mask], rows.user_N[mask]
    positives = int(label.sum())
    scores = {name: _score(rows, name, mask, settings.num_bins) for name in (*rankers, POPULARITY)}
    differences = {}
    base = rows.scores[settings.baseline] if settings.baseline in rankers else None
    for name in rankers:
        if base is None or name == settings.baseline:
            continue
        both = mask & ~np.isnan(base) & ~np.isnan(rows.scores[name])
        rng = np.random.default_rng([seed, stable_uint64(rule.name)])  # the same draws for every ranker
        differences[name] = paired_differences(rows.label_N[both], rows.user_N[both], base[both], rows.scores[name][both], settings.bootstrap_rounds, rng)
    reason = None
    if len(label) == 0:
        reason = "no test row falls into it"
    elif positives in (0, len(label)):
        reason = f"one class only: {positives} positives in {len(label)} rows"
    elif all(one.gauc is None for one in scores.values()):
        reason = "no GAUC: no user has both classes in it"
    return SliceMetrics(**vars(rule), rows=len(label), users=len(np.unique(user)), positives=positives, reason=reason, scores=scores, differences=differences)


def _score(rows: HeadRows, ranker: str, mask: Mask, num_bins: int) -> Scores:
    scored = mask & ~np.isnan(rows.scores[ranker])
    label, score = rows.label_N[scored], rows.scores[ranker][scored]
    users = user_aucs(label, score, rows.user_N[scored])
    calibrated = None if ranker == POPULARITY else calibration(label, score, num_bins)
    return Scores(
        auc=_number(auc(label, score)),
        gauc=_number(users.gauc),
        gauc_users=int((~np.isnan(users.auc_U)).sum()),
        log_loss=None if calibrated is None else _number(log_loss(label, score)),
        calibration_ratio=None if calibrated is None else _number(calibrated.ratio),
        calibration_error=None if calibrated is None else _number(calibrated.error),
    )


def _curve(rows: HeadRows, ranker: str, num_bins: int) -> CalibrationCurve:
    scored = ~np.isnan(rows.scores[ranker])
    found = calibration(rows.label_N[scored], rows.scores[ranker][scored], num_bins)
    return CalibrationCurve(predicted=tuple(found.predicted_Q.tolist()), actual=tuple(found.actual_Q.tolist()), rows=tuple(found.rows_Q.tolist()))


def _alpha_fusion(predictions: pa.Table, activity: Activity) -> dict[str, tuple[AlphaBin, ...]]:
    """Mean and spread of α_fusion by activity bin, over each ranker's first head."""
    found = {}
    told = predictions.filter(pc.is_valid(predictions.column("alpha_fusion")))
    for ranker in pc.unique(told.column("ranker")).to_pylist():
        mine = told.filter(pc.equal(told.column("ranker"), ranker))
        mine = mine.filter(pc.equal(mine.column("head"), mine.column("head")[0]))
        alpha = mine.column("alpha_fusion").to_numpy().astype(np.float64)
        purchases = activity.purchases_U[activity.users.encode(mine.column("user_id")) - 1]
        found[ranker] = tuple(
            AlphaBin(
                title=title,
                rows=int(mask.sum()),
                mean=float(alpha[mask].mean()),
                p10=float(np.percentile(alpha[mask], 10)),
                p90=float(np.percentile(alpha[mask], 90)),
            )
            for title, mask in bins(purchases, activity.edges)
            if mask.any()
        )
    return found


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
