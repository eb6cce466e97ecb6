"""Finalists: a sweep's best trials, trained again with several seeds; the one that wins on validation and the config as it stood meet the test window, once.

Reads what trials read; writes trials/<key>, as a study does: the scores of losers are of the validation window alone.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from pyarrow.fs import FileSelector
from ray.actor import ActorHandle

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.rankers.settings import Head
from longtail.sample_files import Split
from longtail.study_results import Arms, compare
from longtail.sweep_results import Finals, Trial, ranked
from pipelines.study_arms import borrows, unread
from pipelines.study_measures import measure, windows_of
from pipelines.trial import trial_stage
from tuning.sharing import ensure_shared
from tuning.spaces import with_point

logger = logging.getLogger(__name__)

#: By the sweep's metric: the study's metric, and its slice that is nearest to what validation measured between epochs.
SLICES = {"gauc": ("gauc", "all"), "gauc_low": ("gauc", "low20"), "auc": ("auc", "all"), "auc_cold": ("auc", "cold_lt100")}
START, BASE = "start", "base"


@dataclass(frozen=True)
class Contender:
    """A ranker under a config; with each seed it is trained anew."""

    ranker: str
    config: Config

    def seeded(self, seed: int) -> Config:
        """Its config with one seed: of weights and batches, and, where it borrows, of how groups and peers are made."""
        groups = ("codes.user.seed", "user_spaces.seed", "peers.seed") if borrows(self.ranker, self.config) else ()
        return with_point(self.config, dict.fromkeys(("train.seed", "item_z.seed", *groups), seed))


@dataclass(frozen=True)
class Ground:
    """Where finalists meet."""

    store: Store
    builders: ActorHandle[Any]
    cwd: str
    head: Head
    max_concurrent: int


def contenders_of(config: Config, trials: Sequence[Trial]) -> dict[str, Contender]:
    """The base, the config as it stands, and the best other trials, by label."""
    best = [one for one in ranked(trials) if one.feasible and one.number != 0][: config.sweep.finalists.num_trials]
    own = {f"trial_{one.number}": Contender(config.sweep.ranker, with_point(config, one.point)) for one in best}
    return {BASE: Contender("base", config), START: Contender(config.sweep.ranker, config), **own}


def run_finals(config: Config, trials: Sequence[Trial], ground: Ground) -> Finals:
    """Train the finalists with every seed, choose one on the validation window, and open the test window for it, the config as it stood and the base."""
    settings = config.sweep.finalists
    metric, slice_name = SLICES[config.sweep.metric]
    contenders = contenders_of(config, trials)
    windows = windows_of(config, ground.store, metric, [ground.head])  # type: ignore[arg-type]  # a study's metric

    def compared(made: Mapping[str, Mapping[int, Artifact]], split: Split) -> Arms:
        found = measure({None: windows[split, ground.head]}, made, split, metric, ground.head)  # type: ignore[arg-type]
        return compare(found, lambda label: [other for other in (START, BASE) if other != label], metric, settings.bootstrap_rounds)  # type: ignore[arg-type]

    validation = compared(_trained(contenders, settings.seeds, ("validation",), ground), "validation")
    winner = chosen(validation, slice_name, config.sweep.max_loss)
    finals = Finals(metric=metric, slice=slice_name, seeds=settings.seeds, validation=validation, winner=winner)
    if winner == START:
        return finals
    earlier = openings(ground.store)
    opened = {label: contenders[label] for label in (BASE, START, winner)}
    test = compared(_trained(opened, settings.seeds, ("validation", "test"), ground), "test")
    return finals.model_copy(update={"test": test, "opened": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "earlier_openings": earlier})


def chosen(validation: Arms, slice_name: str, max_loss: float) -> str:
    """The label that wins on the validation window: the best on the slice, over seeds, of those that are not below the base by more than `max_loss`.

    Where none is, the config as it stood stays.
    """
    floor = validation[BASE]["all"].mean - max_loss
    able = {label: slices[slice_name].mean for label, slices in validation.items() if label != BASE and slice_name in slices and slices["all"].mean >= floor}
    return max(able, key=lambda label: (able[label], label == START), default=START)


def _trained(contenders: Mapping[str, Contender], seeds: Sequence[int], splits: tuple[Split, ...], ground: Ground) -> dict[str, dict[int, Artifact]]:
    """Every contender's scores with every seed, `max_concurrent` at a time.

    Raises:
        ValueError: some failed, after the others are done.
    """
    waiting = [(label, seed) for label in contenders for seed in seeds][::-1]
    task: Any = ray.remote(num_cpus=0)(_trained_one)  # it only waits
    pending: dict[Any, tuple[str, int]] = {}
    found: dict[str, dict[int, Artifact]] = {label: {} for label in contenders}
    failures = []
    while waiting or pending:
        while waiting and len(pending) < ground.max_concurrent:
            label, seed = waiting.pop()
            pending[task.remote(contenders[label], seed, splits, ground.store, ground.builders, ground.cwd)] = label, seed
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        label, seed = pending.pop(ready)
        try:
            found[label][seed] = ray.get(ready)
        except Exception as error:
            failures.append(f"{label}, seed {seed}: {str(error).strip().splitlines()[-1]}")
            continue
        logger.info("finalists: %s, seed %d, %s", label, seed, " and ".join(splits))
    if failures:
        raise ValueError("finalists failed:\n  " + "\n  ".join(failures) + "\nMend the cause and run the sweep again: it goes on from its trials.")
    return found


def _trained_one(contender: Contender, seed: int, splits: tuple[Split, ...], store: Store, builders: ActorHandle[Any], cwd: str) -> Artifact:
    config = contender.seeded(seed)
    stage = trial_stage(contender.ranker, splits, unread(contender.ranker, config), any_head=True)
    return ensure_shared(stage, config, store, builders, cwd)


def openings(store: Store) -> int:
    """How many finished sweeps of this store have opened a test window."""
    folders = store.fs.get_file_info(FileSelector(f"{store.root}/sweeps", allow_not_found=True))
    found = [store.find("sweeps", entry.base_name) for entry in folders]
    return sum(one is not None and bool(one.info.get("opened")) for one in found)
