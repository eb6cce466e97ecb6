"""A study's arms: each one's config on each data set, every trial of them, and what is refused before anything runs.

Reads the configs that [study.datasets] name; writes nothing. python -m pipelines.study runs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtail.config import Config, load
from longtail.sample_files import Split
from longtail.storage import below
from longtail.study import Seed, StudySettings, seeded
from pipelines.cluster import ROOT
from pipelines.lent import LENT
from pipelines.logs import LOGS
from pipelines.logs import check as check_logs
from pipelines.matches import MATCHES
from pipelines.stage import Stage
from pipelines.trial import trial_stage

#: Settings that an arm can't have: the study sets them, or nothing of an arm reads them.
STUDYS_OWN = ("run.", "cluster.", "tracking.", "study.", "sweep.", "serve.", "train.seed", "codes.user.seed", "user_spaces.seed", "item_z.seed", "peers.seed")


@dataclass(frozen=True)
class Run:
    """One arm with one seed on one data set."""

    dataset: str
    arm: str
    seed: Seed
    ranker: str
    config: Config
    splits: tuple[Split, ...]

    @property
    def stage(self) -> Stage:
        return trial_stage(self.ranker, self.splits, unread(self.ranker, self.config))


def arm_config(study: StudySettings, dataset: str, arm: str | None, seed: Seed | None, config: Config) -> Config:
    """The config of an arm with a seed on a data set (None: of what the arms share, or the seeds); the run's URI, cluster and tracking are the study's.

    Raises:
        ValueError: a setting does not exist or refuses its value.
    """
    of_dataset = study.datasets[dataset]
    path = _path(of_dataset.config)
    if not Path(path).is_file():
        raise ValueError(f"study.datasets.{dataset}.config = {of_dataset.config!r}: no such file. A relative path starts at the repository.")
    shared = (*study.common, *of_dataset.set, *(f"{name}={seed}" for name in of_dataset.seeded if seed is not None))
    settings: tuple[str, ...] = study.settings_of(arm) if arm is not None else ()
    if seed is not None:
        plain = load(path, (*shared, *settings, *of_dataset.over))
        ranker = study.ranker_of(arm) if arm is not None else "base"
        settings = seeded(settings, seed, borrows=borrows(ranker, plain))
    found = load(path, (*shared, *settings, *of_dataset.over))
    ours = {"cluster": config.cluster, "tracking": config.tracking.model_copy(update={"backend": "none"})}
    return found.model_copy(update={"run": found.run.model_copy(update={"uri": below(config.run.uri, dataset)}), **ours})


def borrows(ranker: str, config: Config) -> bool:
    """Whether a ranker reads what groups or peers lend."""
    return ranker in ("choirrec", "duet") or bool(getattr(config.rankers, ranker).peer_stats)


def unread(ranker: str, config: Config) -> tuple[Stage, ...]:
    """What a ranker does not read under its settings."""
    settings = getattr(config.rankers, ranker)
    counts_codes = settings.own_counts and settings.match_counts == "codes"
    return (*(() if borrows(ranker, config) else (LENT,)), *(() if counts_codes else (MATCHES,)))


def _path(path: str) -> str:
    return path if Path(path).is_absolute() else str(ROOT / path)


def runs_of(study: StudySettings, dataset: str, config: Config) -> list[Run]:
    """Every trial of a data set, arm by arm.

    Raises:
        ValueError: an arm has a setting that does not exist or refuses its value, or one that is the study's, or rows of its own; or the headline can't be.
    """
    _refuse_the_studys_own(f"study.datasets.{dataset}.over", study.datasets[dataset].over)
    shared = arm_config(study, dataset, None, None, config)
    if study.datasets[dataset].headline.slice == "truncated" and not shared.logs.truncate.users_frac:
        raise ValueError(f"study.datasets.{dataset}.headline.slice = 'truncated': nobody is, logs.truncate.users_frac is 0. Set it, or name another slice.")
    logs_of = {world: LOGS.settings(arm_config(study, dataset, None, world, config)) for world in worlds(study, dataset)}
    found = []
    for arm, seeds in study.plan(dataset).items():
        settings = study.arms[arm]
        _refuse_the_studys_own(f"study.arms.{arm}", study.settings_of(arm))
        splits: tuple[Split, ...] = ("validation",) if settings.validation_only else ("validation", "test")
        for seed in seeds:
            try:
                found.append(Run(dataset, arm, seed, study.ranker_of(arm), arm_config(study, dataset, arm, seed, config), splits))
            except ValueError as error:
                raise ValueError(f"study.arms.{arm} on {dataset}: {error}") from error
            if LOGS.settings(found[-1].config) != logs_of[world_of(study, dataset, seed)]:
                raise ValueError(
                    f"study.arms.{arm} on {dataset} changes the logs, and with them the rows: arms are compared on the same ones. Put its logs settings under "
                    f"study.datasets.{dataset}.set, or make a data set of its own for them."
                )
    return found


def _refuse_the_studys_own(where: str, settings: Sequence[str]) -> None:
    ours = [one for one in settings if one.partition("=")[0].strip().startswith(STUDYS_OWN)]
    if ours:
        raise ValueError(f"{where} sets {ours}: these are the study's, for all arms. Set them in the study's config, and seeds by study.seeds.")


def worlds(study: StudySettings, dataset: str) -> tuple[Seed | None, ...]:
    """The seeds that have a world of their own on a data set; None alone where all seeds share one."""
    return tuple(dict.fromkeys(world_of(study, dataset, seed) for seeds in study.plan(dataset).values() for seed in seeds))


def world_of(study: StudySettings, dataset: str, seed: Seed) -> Seed | None:
    """The world of a seed on a data set: its own, or the one that all seeds share."""
    return seed if study.datasets[dataset].seeded else None


def there(study: StudySettings, dataset: str, config: Config) -> str | None:
    """None where a data set's tables are there; else why it is left out.

    Raises:
        ValueError: they are not there, and the data set is not optional.
    """
    shared = arm_config(study, dataset, None, None, config)
    try:
        LOGS.fingerprint(shared)
    except ValueError as error:
        if not study.datasets[dataset].optional:
            raise ValueError(f"study.datasets.{dataset}: {error}") from error
        return str(error)
    return None


def check(study: StudySettings, config: Config) -> dict[str, object]:
    """What a study would do, arm by arm and data set by data set, without doing it.

    Raises:
        ValueError: a setting is wrong, a data set's tables are missing or have errors.
    """
    plan: dict[str, object] = {}
    for name in study.chosen_datasets:
        shared = arm_config(study, name, None, None, config)
        runs = runs_of(study, name, config)
        reason = there(study, name, config)
        if reason is None:
            errors = check_logs(shared.logs, shared.run.seed).errors
            if errors:
                said = "\n  ".join(map(str, errors))
                raise ValueError(f"study.datasets.{name}, {study.datasets[name].config}:\n  {said}\nMend the tables; pipelines.logs --check tells more.")
        arms = {arm: len(seeds) for arm, seeds in study.plan(name).items()}
        plan[name] = {"left_out": reason} if reason is not None else {"trials": len(runs), "seeds_of_arms": arms}
    return plan
