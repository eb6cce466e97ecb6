"""Continual alignment: behaviour drifts under a frozen encoder, and a ranker that was trained once is brought up to date week by week (SaviorRec, MBA).

Each week's rows are scored before anything is trained on them; their labels count once the week has passed. What differs between arms is which parameters
of the ranker the weeks that have passed may change. python -m pipelines.alignment runs it.

Letters: N rows, W weeks, I item rows, D vector width, S code stages.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from longtail.continual_settings import ContinualSettings, UpdateSettings
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import OOV
from longtail.rankers.ranker import Ranker, predict_rows
from longtail.rankers.saviorrec import SaviorRec
from longtail.sample_files import SampleFiles
from longtail.times import DAY_US
from longtail.training import TrainSettings
from longtail.training_loop import train_ranker

Ints = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

#: Parameters by what they are for.
CODEBOOKS = ("semantics.alignment.",)
TEMPERATURES = ("semantics.semantic_to_behaviour.", "semantics.behaviour_to_semantic.")
IDS = ("individual.users.", "individual.items.ids.")
EVERYTHING = ("",)


@dataclass(frozen=True)
class Arm:
    """What the weekly updates of a trained ranker may change; an arm without parts changes nothing."""

    meaning: str
    parts: tuple[str, ...] = ()
    admits: bool = False  # users and items met since get an ID of their own
    deals: bool = False  # the codes go to the wrong items
    update: Literal["codebooks", "everything"] = "codebooks"  # which of the settings


UPDATED = {
    "frozen": Arm("nothing is updated"),
    "mba": Arm("the codebooks A alone", CODEBOOKS),
    "mba_temperature": Arm("the codebooks and the two temperatures of the attention", CODEBOOKS + TEMPERATURES),
    "mba_shuffled": Arm("the codebooks alone, with the codes dealt out to the wrong items (control)", CODEBOOKS, deals=True),
    "ids": Arm("the ID embeddings of users and items alone, new ones included (control)", IDS, admits=True, update="everything"),
    "continued": Arm("all parameters of the ranker, trained further; the item encoder stays", EVERYTHING, admits=True, update="everything"),
}


@dataclass(frozen=True)
class Weeks:
    """Samples of the time up to `opens`, and of each week after it."""

    before: pa.Table
    weeks: tuple[pa.Table, ...]

    @staticmethod
    def split(rows: pa.Table, opens_us: int, num_weeks: int) -> "Weeks":
        """Rows by their `ts`; those after the last week are left out.

        Raises:
            ValueError: a week has no rows.
        """
        time_N = rows.column("ts").cast(pa.int64()).to_numpy()
        week_N = np.where(time_N < opens_us, 0, (time_N - opens_us) // (7 * DAY_US) + 1)
        parts = [rows.filter(pa.array(week_N == week)).combine_chunks() for week in range(num_weeks + 1)]
        empty = [week for week, part in enumerate(parts) if not len(part)]
        if empty:
            said = f"week(s) {[week for week in empty if week]}" if empty != [0] else "the time before the first week"
            raise ValueError(f"continual.num_weeks = {num_weeks}: {said} of the test window have no rows. Lower it, or end the train window earlier.")
        return Weeks(parts[0], tuple(parts[1:]))

    def known(self, week: int, *, recent: int | None = None) -> pa.Table:
        """All rows whose labels are known when `week` (from 1) opens, or those of the `recent` weeks before it alone."""
        if recent is None:
            return pa.concat_tables([self.before, *self.weeks[: week - 1]])
        return pa.concat_tables(self.weeks[max(week - 1 - recent, 0) : week - 1])


def walk(ranker: Ranker, weeks: Weeks, update: Callable[[Ranker, int], Ranker]) -> list[Logits]:
    """Score every week's rows, and before each but the first let `update(ranker, week)` bring the ranker up to date."""
    scores = []
    for week, rows in enumerate(weeks.weeks, start=1):
        if week > 1:
            ranker = update(ranker, week)
        scores.append(predict_rows(ranker, Batch.from_table(rows, ranker.spec)).logits_BH[:, 0].numpy())
    return scores


def walk_updated(arm: Arm, trained: SaviorRec, weeks: Weeks, train: TrainSettings, settings: ContinualSettings, seed: int) -> list[Logits]:
    """An arm's scores of every week; `trained` stays as it is."""
    ranker = copy.deepcopy(trained)
    if arm.deals:
        deal_codes(ranker, seed)
    told = settings.codebooks if arm.update == "codebooks" else settings.everything

    def update(ranker: Ranker, week: int) -> Ranker:
        rows = weeks.known(week, recent=told.recent_weeks or week)
        if arm.admits:
            assert isinstance(ranker, SaviorRec)
            admit(ranker, rows)
        return trained_on(ranker, rows, train, told, seed + week, arm.parts) if arm.parts else ranker

    return walk(ranker, weeks, update)


@contextmanager
def trained_alone(ranker: nn.Module, parts: Sequence[str]) -> Iterator[None]:
    """Within this block the parameters whose names begin with one of `parts` are trained, and all others are frozen.

    Raises:
        ValueError: no parameter's name begins with a part.
    """
    names = [name for name, _ in ranker.named_parameters()]
    missing = [part for part in parts if not any(name.startswith(part) for name in names)]
    if missing:
        raise ValueError(f"the ranker has no parameters {missing}; it has those of {sorted({name.split('.')[0] for name in names})}. Switch its parts on.")
    before = {name: parameter.requires_grad for name, parameter in ranker.named_parameters()}
    try:
        for name, parameter in ranker.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(parts)))
        yield
    finally:
        for name, parameter in ranker.named_parameters():
            parameter.requires_grad_(before[name])


def trained_on(ranker: Ranker, rows: pa.Table, settings: TrainSettings, update: UpdateSettings, seed: int, parts: Sequence[str]) -> Ranker:
    """The ranker, trained further on `rows` in its `parts` alone; its normalisers stay as they are."""
    files = SampleFiles.of_table(rows, ranker.spec, ranker.heads)
    with trained_alone(ranker, parts):
        train_ranker(ranker, files, update.over(settings), seed=seed, fitted=True)
    return ranker


def admit(ranker: SaviorRec, rows: pa.Table) -> tuple[int, int]:
    """Give the users and items of `rows` that share the out-of-vocabulary embedding one of their own, which begins as a copy; returns how many."""
    catalogue, side = ranker.catalogue, ranker.individual
    users = _admit(catalogue.user_id_M, side.users, rows.column("user_row").to_numpy())
    return users, _admit(catalogue.item_id_N, side.items.ids, rows.column("item_row").to_numpy())


def _admit(index: torch.Tensor, table: nn.Embedding, rows_N: npt.NDArray[np.integer]) -> int:
    rows = torch.from_numpy(np.unique(rows_N).astype(np.int64))
    rows = rows[index[rows] == OOV]
    index[rows] = torch.arange(len(rows)) + table.num_embeddings
    with torch.no_grad():
        table.weight = nn.Parameter(torch.cat([table.weight, table.weight[OOV].expand(len(rows), -1)]))
    table.num_embeddings += len(rows)
    return len(rows)


def deal_codes(ranker: SaviorRec, seed: int) -> None:
    """The control: what the codebooks have learnt is kept in the vectors, the codebooks begin at zero again, and the codes go to the wrong items."""
    assert ranker.semantics.alignment is not None, "only a ranker with codebooks has codes to deal"
    catalogue = ranker.catalogue
    with torch.no_grad():
        catalogue.vector_ND += ranker.semantics.alignment(catalogue.codes_NS)
        for parameter in ranker.semantics.alignment.parameters():
            parameter.zero_()
    have = (catalogue.codes_NS > 0).all(dim=1).nonzero().squeeze(1)
    order = torch.from_numpy(np.random.default_rng([seed, 0xDEA1]).permutation(len(have)))
    catalogue.codes_NS[have] = catalogue.codes_NS[have[order]]
