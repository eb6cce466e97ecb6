"""Continual alignment's results: AUC by week and kind of item, what an arm recovers of what full retraining does, and the page that says so.

Reads scores of the weeks' rows; results/saviorrec_alignment.json and .md are made of it.

Letters: N rows, U users, W weeks, M moments.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longtail.settings import Settings
from longtail.study_results import ArmOnSlice, Arms, Measured, measured
from longtail.study_rows import COLD_EVENTS, Bools, Ints, WindowRows
from longtail.times import DAY_US

HALFWAY = "halfway"
KINDS = {
    "all": "every row",
    "cold_lt100": f"items with fewer than {COLD_EVENTS} events before the week",
    "zero_shot": "items with none",
    "moved": "items whose theme had moved to another topic by the week (planted truth)",
    "stayed": "the others",
}


class AlignmentResults(Settings):
    """What results/saviorrec_alignment.json holds."""

    notes: dict[str, str]
    meanings: dict[str, str]
    seeds: tuple[int, ...]
    num_weeks: int
    arms: Arms
    seconds: dict[str, float]  # by arm: of all its updates and scores, mean over seeds


def events_before(item_N: Ints, week_N: Ints, event_item_E: Ints, event_time_E: Ints, opens_us: int) -> Ints:
    """How many events the item of each row had before the row's week (from 1) opened."""
    found = np.zeros(len(item_N), np.int64)
    for week in np.unique(week_N):
        mine = week_N == week
        past = event_item_E[event_time_E < opens_us + (week - 1) * 7 * DAY_US]
        found[mine] = np.bincount(past, minlength=int(item_N.max()) + 1)[item_N[mine]]
    return found


def has_moved(truth: pa.Table, item_ids: pa.Array, time_N: Ints) -> Bools | None:
    """Whether the item of each row is of another topic by then than at the beginning; None in a world that does not say."""
    if "topics" not in truth.column_names:
        return None
    topics_KM = np.array(truth.column("topics").to_pylist())
    since_M = np.array([-(2**62), *truth.column("topics_since")[0].values.cast(pa.int64()).to_pylist()[1:]])
    item_N = pc.index_in(item_ids, value_set=truth.column("item_id").combine_chunks()).to_numpy()
    moved: Bools = topics_KM[item_N, np.searchsorted(since_M, time_N, side="right") - 1] != topics_KM[item_N, 0]
    return moved


def slices(week_N: Ints, events_N: Ints, moved_N: Bools | None) -> dict[str, Bools]:
    """Rows by kind of item and week, "<kind>/week_<number>", and of all weeks after the first, "<kind>/updated"."""
    kinds = {"all": np.ones(len(week_N), bool), "cold_lt100": events_N < COLD_EVENTS, "zero_shot": events_N == 0}
    if moved_N is not None:
        kinds |= {"moved": moved_N, "stayed": ~moved_N}
    found: dict[str, Bools] = {}
    for kind, which_N in kinds.items():
        found |= {f"{kind}/week_{week}": which_N & (week_N == week) for week in np.unique(week_N)}
        found[f"{kind}/updated"] = which_N & (week_N > 1)
    return found


def measured_of_all(rows: WindowRows, score_N: npt.NDArray[np.float64], num_users: int) -> dict[str, Measured]:
    """AUC by slice, with a place for every user of the world: worlds of different seeds meet different ones."""
    places_U = np.unique(rows.user_N)

    def spread(values_U: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        whole = np.zeros(num_users + 1)
        whole[places_U] = values_U
        return whole

    return {name: Measured(spread(one.value_U), spread(one.weight_U), one.rows) for name, one in measured(rows, score_N, "auc").items()}


def halfway(first: Mapping[str, Measured], second: Mapping[str, Measured]) -> dict[str, Measured]:
    """What lies in the middle of two arms on the same rows: an arm above it recovers more than half of the way."""
    common = [name for name in first if name in second]
    return {name: Measured((first[name].value_U + second[name].value_U) / 2, first[name].weight_U, first[name].rows) for name in common}


def share(arms: Arms, arm: str, slice_name: str, reference: str = "retrained") -> float | None:
    """(arm - frozen) / (reference - frozen) of the mean AUCs; None where the reference does not lie above frozen with its whole interval."""
    gained = arms[reference].get(slice_name)
    if gained is None or slice_name not in arms[arm] or gained.vs["frozen"].lo <= 0:
        return None
    return arms[arm][slice_name].vs["frozen"].mean / gained.vs["frozen"].mean


def against(arm: str) -> Sequence[str]:
    """The arms that an arm is compared with."""
    return {"frozen": (), "mba": ("frozen", HALFWAY, "mba_shuffled", "ids", "continued", "retrained"), HALFWAY: ("frozen",)}.get(arm, ("frozen", "mba"))


def page(found: AlignmentResults) -> str:
    """The results as Markdown."""
    lines = ["# SaviorRec: continual alignment under a frozen encoder", "", *(f"- {name}: {text}" for name, text in found.notes.items() if text), ""]
    lines += ["Arms, all from one ranker that was trained on the train window; each week is scored before anything is trained on it:", ""]
    lines += [f"- `{name}`: {meaning}" for name, meaning in found.meanings.items()]
    lines += ["", "Kinds of rows:", "", *(f"- {kind}: {rule}" for kind, rule in KINDS.items() if f"{kind}/updated" in found.arms["frozen"]), ""]
    for kind in KINDS:
        if f"{kind}/updated" in found.arms["frozen"]:
            lines += [f"## AUC, {kind}", "", *_auc_table(found, kind), ""]
    lines += ["## Share of full retraining that is recovered", "", *_share_table(found), "", "## Time of the updates and scores", ""]
    lines += ["One thread of one CPU, mean over seeds; the training of the first ranker, which all arms share, is `trained`.", ""]
    lines += ["| arm | seconds |", "|---|---|", *(f"| {name} | {value:.1f} |" for name, value in found.seconds.items()), ""]
    return "\n".join(lines)


def _auc_table(found: AlignmentResults, kind: str) -> list[str]:
    weeks = [f"week_{week}" for week in range(1, found.num_weeks + 1)]
    names = [*weeks, "updated"]
    heads = [*(f"week {week}" for week in range(1, found.num_weeks + 1)), f"weeks 2-{found.num_weeks}"]
    lines = [f"| arm | {' | '.join(heads)} | minus frozen, 95 % | seeds above |", f"|---|{'---|' * (len(heads) + 2)}"]
    for arm, by_slice in found.arms.items():
        if arm == HALFWAY:
            continue
        cells = [f"{by_slice[f'{kind}/{name}'].mean:.4f}" if f"{kind}/{name}" in by_slice else "" for name in names]
        lines.append(f"| {arm} | {' | '.join(cells)} | {_gap(by_slice.get(f'{kind}/updated'), 'frozen')} |")
    return lines


def _gap(one: ArmOnSlice | None, other: str) -> str:
    if one is None or other not in one.vs:
        return " | "
    gap = one.vs[other]
    return f"{gap.mean:+.4f} [{gap.lo:+.4f}, {gap.hi:+.4f}] | {gap.positive_seeds} of {len(gap.per_seed)}"


def _share_table(found: AlignmentResults) -> list[str]:
    lines = [
        "(mba - frozen) / (reference - frozen); none where the reference itself is not above frozen. `mba` minus halfway: halfway lies in the middle of frozen "
        "and retrained, so an interval above zero says that more than half is recovered.",
        "",
        "| rows | of retrained | of continued | mba minus halfway, 95 % | seeds above | mba minus shuffled codes, 95 % | seeds above |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.arms["mba"].items():
        if name.endswith("/week_1"):
            continue
        shares = [share(found.arms, "mba", name, reference) if reference in found.arms else None for reference in ("retrained", "continued")]
        cells = ["none" if value is None else f"{value:.0%}" for value in shares]
        lines.append(f"| {name.replace('/', ', ').replace('_', ' ')} | {' | '.join(cells)} | {_gap(one, HALFWAY)} | {_gap(one, 'mba_shuffled')} |")
    return lines
