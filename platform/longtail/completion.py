"""Completion: whether what groups lend for a missing attribute is right (ChoirRec, group attribute completion, measured).

A seeded share of the known values of every attribute is masked, several times over, and each method fills them in from what is left:

    majority    everybody's most frequent value
    group       the majority of the user's leaf group, by the rules of longtail.groups; where fewer than min_support members have a value, or the group
                has fewer than min_size members, that of the next shorter prefix, and so on to everybody
    neighbours  a vote of the nearest users who have a value, by cosine in the user spaces
    gbm         gradient-boosted trees on what the user did, their size and number chosen by cross-validation on the values that are left

The group answers as longtail.lent does: where the nearest one has no majority, the one above it does. Beside that it is counted how often the nearest one
has a majority of its own: for masked values, and for those that are really missing, which is what completion is for.
Numeric attributes are filled in as their bins.

Reads attribute codes, group codes, vectors and statistics of users at one as_of; the stage `completion` writes completion.json.
Measures and intervals are in longtail.completion_results. Run: python -m pipelines.completion --config …

Letters: R users with codes, A attributes, S code stages, D dimensions, F statistics, P neighbours, V values of an attribute, unknown included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from longtail.behaviour import Behaviour
from longtail.entities import Entities
from longtail.features import USER_STATS, ActivityIndex
from longtail.groups import GroupsSettings, majority_values
from longtail.peers import nearest
from longtail.settings import Settings

Codes = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

METHODS = ("majority", "group", "neighbours", "gbm")
STATISTICS = ("log_purchases", "log_active_days", "mean_log_price")
MAX_ROOTS = 30
NUM_FOLDS = 3
MIN_LEFT = 10
#: From little more than the majority to what fits noise; the first stays where several are as good.
GRID = tuple({"max_iter": trees, "max_leaf_nodes": leaves} for trees in (5, 25, 100) for leaves in (4, 16))


class CompletionSettings(Settings):
    """The `completion` stage."""

    masked_frac: float = Field(0.2, gt=0, lt=1, description="share that is masked each time")
    masked: Literal["values", "users"] = Field(
        "values", description="values: of every attribute's known values | users: of the users who have any, with all that is known of them"
    )
    num_masks: int = Field(5, ge=1, description="how often, each time another share")
    min_known: int = Field(50, ge=10, description="an attribute with fewer known values is left out")
    num_neighbours: int = Field(50, ge=1)
    struck: bool = Field(True, description="strike masked values out of profiles before groups are made of them; false shows what the texts give away")
    bootstrap_rounds: int = Field(1000, ge=20)


@dataclass(frozen=True)
class Evidence:
    """What is known of the users beside their attributes."""

    codes_RS: Codes
    vectors_RD: Floats
    statistics_RF: Floats


@dataclass(frozen=True)
class Filled:
    """What each method puts in the place of every value, and whether the nearest group with enough members has a majority of its own."""

    values: Mapping[str, Codes]  # by method, [R, A]; 0 where it has no answer, or was not asked
    nearest_RA: Bools


def measured(codes_RA: Codes, names: Sequence[str], settings: CompletionSettings) -> tuple[list[int], dict[str, str]]:
    """The columns of attributes that can be measured, and the others by name with the reason.

    Raises:
        ValueError: there is none.
    """
    columns, left_out = [], {}
    for column, name in enumerate(names):
        known = codes_RA[codes_RA[:, column] > 0, column]
        if len(known) < settings.min_known:
            left_out[name] = f"{len(known)} known values, fewer than completion.min_known = {settings.min_known}"
        elif len(np.unique(known)) < 2:
            left_out[name] = "every known value is the same"
        else:
            columns.append(column)
    if not columns:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "the logs declare no user attribute"
        raise ValueError(f"no attribute can be completed: {why}. Declare logs.categorical_attributes or numeric_attributes, or lower completion.min_known.")
    return columns, left_out


def draw_mask(codes_RA: Codes, settings: CompletionSettings, seed: Sequence[int]) -> Bools:
    """Which of the known values are masked [R, A]."""
    rng = np.random.default_rng([*seed, 0xC0])
    known_RA = codes_RA > 0
    has_any_R: Bools = np.asarray(known_RA.any(axis=1))

    def share_of(which_R: Bools) -> Bools:
        users = np.flatnonzero(which_R)
        chosen = rng.permutation(users)[: max(round(settings.masked_frac * len(users)), 1)]
        return np.isin(np.arange(len(which_R)), chosen)

    if settings.masked == "users":
        return known_RA & share_of(has_any_R)[:, None]
    return np.stack([share_of(known_R) for known_R in known_RA.T], axis=1)


def check_left(codes_RA: Codes, masks: Sequence[Bools], names: Sequence[str], settings: CompletionSettings) -> None:
    """Whether every mask leaves something to learn from.

    Raises:
        ValueError: it leaves fewer than MIN_LEFT values of an attribute.
    """
    for column, name in enumerate(names):
        left = min(int(((codes_RA[:, column] > 0) & ~mask[:, column]).sum()) for mask in masks)
        if left < MIN_LEFT:
            raise ValueError(
                f"completion.masked_frac = {settings.masked_frac:g} leaves {left} of {int((codes_RA[:, column] > 0).sum())} known values of {name!r}: at least "
                f"{MIN_LEFT} must be left to learn from. Mask less, or raise completion.min_known above it, so that the attribute is left out."
            )


def user_statistics(behaviour: Behaviour, entities: Entities, user_row_R: Ints, as_of_us: int) -> Floats:
    """STATISTICS, and the user's share of purchases in each of the MAX_ROOTS root categories with most of them [R, F]; of events before `as_of_us` only."""
    past = behaviour.before(as_of_us)
    stats, _ = ActivityIndex.build(past).statistics(user_row_R, np.full(len(user_row_R), as_of_us))
    purchases = past.is_purchase
    root_E = entities.root_codes[past.item_row_E[purchases]].astype(np.int64)
    num_roots = int(entities.root_codes.max(initial=0)) + 1
    popular = np.argsort(-np.bincount(root_E, minlength=num_roots), kind="stable")[:MAX_ROOTS]
    key_E = past.user_row_E[purchases] * num_roots + root_E
    counts = np.bincount(key_E, minlength=(len(entities.users) + 1) * num_roots).reshape(-1, num_roots)[user_row_R]
    shares = counts[:, popular] / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    statistics_RF: Floats = np.concatenate([stats[:, [USER_STATS.index(name) for name in STATISTICS]], shares], axis=1).astype(np.float32)
    return statistics_RF


def fill_in(
    truth_RA: Codes, masked_RA: Bools, sizes: Sequence[int], evidence: Evidence, groups: GroupsSettings, settings: CompletionSettings, seed: int
) -> Filled:
    """Every method's answers where `masked_RA` says so; what is masked is gone before any of them looks.

    Args:
        truth_RA: attribute codes, 0 where nobody knows.
        sizes: codes of each attribute, 0 included.
    """
    left_RA = np.where(masked_RA, 0, truth_RA).astype(np.int32)
    by_group, nearest_RA = group_votes(evidence.codes_RS, left_RA, sizes, groups)
    everybody = np.array([np.bincount(left_R[left_R > 0], minlength=2).argmax() for left_R in left_RA.T], np.int32)
    columns = range(left_RA.shape[1])
    near = [neighbour_votes(evidence.vectors_RD, left_RA[:, column], masked_RA[:, column], settings.num_neighbours) for column in columns]
    trees = [boosted(evidence.statistics_RF, left_RA[:, column], masked_RA[:, column], seed) for column in columns]
    answers = (np.broadcast_to(everybody, left_RA.shape), by_group, np.stack(near, axis=1), np.stack(trees, axis=1))
    return Filled({name: np.where(masked_RA, values, 0).astype(np.int32) for name, values in zip(METHODS, answers, strict=True)}, nearest_RA)


def group_votes(codes_RS: Codes, left_RA: Codes, sizes: Sequence[int], settings: GroupsSettings) -> tuple[Codes, Bools]:
    """Each user's majority [R, A] from the longest prefix that has one, and whether the longest with min_size members is that prefix [R, A]."""
    value_RA, nearest_RA = np.zeros(left_RA.shape, np.int32), np.zeros(left_RA.shape, bool)
    for depth in range(codes_RS.shape[1] + 1):
        _, group_R = np.unique(codes_RS[:, :depth], axis=0, return_inverse=True) if depth else (None, np.zeros(len(codes_RS), np.int64))
        group_R = group_R.reshape(-1)
        size_G = np.bincount(group_R)
        majority_GA, _ = majority_values(group_R, left_RA, list(sizes), len(size_G), settings)
        large_R = (size_G[group_R] >= settings.min_size) | (depth == 0)
        has_one_RA = majority_GA[group_R] > 0
        value_RA = np.where(large_R[:, None] & has_one_RA, majority_GA[group_R], value_RA)
        nearest_RA = np.where(large_R[:, None], has_one_RA, nearest_RA)
    return value_RA, nearest_RA


def neighbour_votes(vectors_RD: Floats, left_R: Codes, asked_R: Bools, num: int) -> Codes:
    """The most frequent value [R] among the `num` nearest users who have one, the lower code where two are as frequent; 0 for who was not asked."""
    # Peers are numbered from 1: row 0 is nobody.
    vectors_MD = np.concatenate([np.zeros((1, vectors_RD.shape[1]), np.float32), vectors_RD])
    left_M = np.append(0, left_R)
    near_RP = nearest(vectors_MD, np.append(False, asked_R), left_M > 0, min(num, len(left_M))).row_MP[1:]
    return _most_frequent(left_M[near_RP])


def _most_frequent(value_RP: Ints) -> Codes:
    """The most frequent value of each row that is not 0; 0 where there is none."""
    num_values = int(value_RP.max(initial=0)) + 1
    key_RP = np.arange(len(value_RP))[:, None] * num_values + value_RP
    count_RV = np.bincount(key_RP.reshape(-1), minlength=len(value_RP) * num_values).reshape(-1, num_values)
    count_RV[:, 0] = 0
    value_R: Codes = count_RV.argmax(axis=1).astype(np.int32)
    return value_R


def boosted(statistics_RF: Floats, left_R: Codes, asked_R: Bools, seed: int) -> Codes:
    """The value [R] that trees of the best settings of GRID, by accuracy in cross-validation on the values that are left, predict; 0 for who was not asked."""
    from sklearn.model_selection import KFold

    known = np.flatnonzero(left_R)
    given, value = statistics_RF[known], left_R[known]
    folds = list(KFold(NUM_FOLDS, shuffle=True, random_state=seed).split(known))

    def accuracy(options: Mapping[str, int]) -> float:
        return float(np.mean([(_trees(given[fit], value[fit], given[held], options, seed) == value[held]).mean() for fit, held in folds]))

    best = max(GRID, key=accuracy)
    found_R = np.zeros(len(left_R), np.int32)
    found_R[asked_R] = _trees(given, value, statistics_RF[asked_R], best, seed)
    return found_R


def _trees(given: Floats, value: Codes, asked: Floats, options: Mapping[str, int], seed: int) -> Codes:
    """What trees fitted on `given` and `value` predict for `asked`; the only value where there is one."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    if len(np.unique(value)) < 2 or len(asked) == 0:
        return np.full(len(asked), value[0], np.int32)
    model = HistGradientBoostingClassifier(learning_rate=0.05, early_stopping=False, random_state=seed, **options)
    # A few hundred rows: threads only wait for each other, on a busy machine for minutes.
    with threadpool_limits(limits=1):
        predicted: Codes = model.fit(given, value).predict(asked).astype(np.int32)
    return predicted
