"""A study: arms that differ in a few settings, trained with several seeds on several data sets, compared in pairs on the same rows.

An arm is a list of `a.b=value` settings over a data set's own config, as `--set` takes them: every arm can be run alone with pipelines.full. Arms are
chosen between on the validation window; a study's test window is opened for those that the config names, with the headline written down before.
Reads nothing, writes nothing; python -m pipelines.study runs one.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from longtail.rankers.settings import RankerName
from longtail.settings import Settings
from longtail.study_results import Metric
from longtail.study_rows import RULES

Seed = int
Form = Literal["full", "short"]

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
DrawnSeed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]


class Headline(Settings):
    """What the study claims, named before the test window is opened: `arm` over `base`, and over `control`, on `slice`."""

    arm: str
    slice: str
    base: str
    control: str


class StudyDatasetSettings(Settings):
    """One data set: a config file and what the study sets over it."""

    config: str = Field(description="TOML file; a relative path starts at the repository")
    set: tuple[str, ...] = Field((), description='"a.b=value" settings, as --set takes them')
    over: tuple[str, ...] = Field((), description="the same, over what the arms set too")
    headline: Headline
    optional: bool = Field(False, description="left out, and said so, where its tables are not there")
    seeded: tuple[str, ...] = Field((), description="settings that each seed sets for all arms, such as logs.cold_start.seed: a world of its own for each seed")


class ArmSettings(Settings):
    """One arm."""

    ranker: RankerName | None = Field(None, description="without it that of the arm that this one is like, or choirrec")
    like: str | None = Field(None, description="an arm whose settings come first")
    set: tuple[str, ...] = Field((), description='"a.b=value" settings over the data set\'s')
    meaning: str = ""
    validation_only: bool = Field(False, description="a choice to be made: its test rows are never scored")
    datasets: tuple[str, ...] | None = Field(None, description="where it runs; without it on ablations_on, a headline arm on every data set")
    against: tuple[str, ...] = Field((), description="arms that this one is compared with beside those of study.against")
    num_seeds: int | None = Field(None, ge=1, description="the first so many; without it num_ablation_seeds, a headline arm all of them")


class StudySettings(Settings):
    """The `study` command."""

    name: Name = Field("study", description="of the results' files: results/<name>_<dataset>.json")
    form: Form = Field("full", description="short: the headline arms alone, on short_datasets, with the first short_seeds seeds")
    metric: Metric = Field("gauc", description="gauc: of each user's own rows, slices of users | auc: over all rows, slices of items")
    chosen: str = Field("", description="how the arms' settings and the headlines were chosen, in a sentence that the results repeat: nothing here can know it")
    seeds: tuple[DrawnSeed, ...] = Field((1, 2, 3, 4, 5), min_length=1, description="of the headline arms")
    num_ablation_seeds: int = Field(3, ge=1, description="of the other arms: the first so many")
    short_seeds: int = Field(2, ge=1)
    short_datasets: tuple[str, ...] = ()
    common: tuple[str, ...] = Field((), description="settings of every data set and arm, under their own")
    datasets: dict[Name, StudyDatasetSettings] = Field(default_factory=dict)
    arms: dict[Name, ArmSettings] = Field(default_factory=dict)
    headline_arms: tuple[str, ...] = Field((), description="on every data set, with all seeds")
    ablations_on: tuple[str, ...] = Field((), description="data sets on which the other arms run")
    against: tuple[str, ...] = Field(("base_strong",), min_length=1, description="arms that every other one is compared with")
    only: tuple[str, ...] = Field((), description="the data sets of this run; without it all of the form's")
    leave_out: tuple[str, ...] = Field((), description="arms that are not run this time")
    bootstrap_rounds: int = Field(2000, ge=20, le=100_000)
    num_parallel: int | None = Field(None, ge=1, description="trials at a time, a CPU each; without it, as many as there are CPUs")
    results: str = Field("results", min_length=1, description="folder of the results; a relative path starts at the working directory")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        def known(setting: str, names: Sequence[str], among: dict[str, object]) -> None:
            unknown = [name for name in names if name not in among]
            if unknown:
                near = difflib.get_close_matches(unknown[0], among, n=1)
                raise ValueError(f"{setting} names {unknown}; there are {list(among)}." + (f" Did you mean {near[0]}?" if near else ""))
            if len(set(names)) < len(names):
                raise ValueError(f"{setting} = {list(names)}: name each once")

        arms: dict[str, object] = dict(self.arms)
        known("headline_arms", self.headline_arms, arms)
        if self.arms:
            known("against", self.against, arms)
        if gone := [name for name in self.leave_out if name in self.against]:
            raise ValueError(f"leave_out names {gone}, which the others are compared with: take them out of against too")
        known("leave_out", self.leave_out, {name: arm for name, arm in arms.items() if name not in self.headline_arms})
        known("ablations_on", self.ablations_on, dict(self.datasets))
        known("only", self.only, dict(self.datasets))
        known("short_datasets", self.short_datasets, dict(self.datasets))
        if outside := [name for name in self.only if name not in self.datasets_of_form]:
            raise ValueError(f"only names {outside}, which are not in the short form ({list(self.datasets_of_form)}): leave them out, or set form = full")
        for name, arm in self.arms.items():
            known(f"arms.{name}.like", [arm.like] if arm.like is not None else [], arms)
            known(f"arms.{name}.against", arm.against, arms)
            known(f"arms.{name}.datasets", arm.datasets or (), dict(self.datasets))
            if name in self.headline_arms and (arm.datasets is not None or arm.num_seeds is not None):
                raise ValueError(f"arms.{name} is a headline arm, with all seeds on every data set: leave out its datasets and num_seeds")
            if name in self.headline_arms and arm.validation_only:
                raise ValueError(f"arms.{name} is a headline arm, which is measured on the test window: leave out its validation_only")
        for name in self.arms:
            self.settings_of(name)
        for name, dataset in self.datasets.items():
            headline = dataset.headline
            known(f"datasets.{name}.headline", [headline.arm, headline.base, headline.control], dict.fromkeys(self.headline_arms))
            apart = [other for other in (headline.base, headline.control) if other not in self.against_of(headline.arm)]
            if apart:
                raise ValueError(f"datasets.{name}.headline: {headline.arm} is not compared with {apart}. Name them in against.")
            known(f"datasets.{name}.headline.slice", [headline.slice], dict(RULES[self.metric]))
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}: name each once")
        return self

    def settings_of(self, arm: str) -> tuple[str, ...]:
        """An arm's settings, those of the arms that it is like first.

        Raises:
            ValueError: it is like itself, through others.
        """
        return tuple(setting for name in reversed(self._chain(arm)) for setting in self.arms[name].set)

    def ranker_of(self, arm: str) -> RankerName:
        """An arm's ranker: its own, or that of the first that has one among the arms that it is like.

        Raises:
            ValueError: it is like itself, through others.
        """
        named: list[RankerName] = [ranker for name in self._chain(arm) if (ranker := self.arms[name].ranker) is not None]
        return named[0] if named else "choirrec"

    def _chain(self, arm: str) -> list[str]:
        """An arm, the one that it is like, the one that this is like, and so on."""
        chain: list[str] = []
        name: str | None = arm
        while name is not None:
            if name in chain:
                raise ValueError(f"arms.{arm}.like goes in a circle: {' -> '.join([*chain, name])}. Leave one of them out.")
            chain.append(name)
            name = self.arms[name].like
        return chain

    def against_of(self, arm: str) -> tuple[str, ...]:
        """The arms that an arm is compared with."""
        return tuple(dict.fromkeys((*self.against, *self.arms[arm].against)))

    def plan(self, dataset: str) -> dict[str, tuple[Seed, ...]]:
        """The arms that run on a data set, each with its seeds."""
        short = self.form == "short"
        seeds = self.seeds[: self.short_seeds] if short else self.seeds
        found = dict.fromkeys(self.headline_arms, seeds)
        for name, arm in self.arms.items():
            runs_on = self.ablations_on if arm.datasets is None else arm.datasets
            if name not in (*found, *self.leave_out) and dataset in runs_on and not short:
                found[name] = self.seeds[: arm.num_seeds or self.num_ablation_seeds]
        return found

    @property
    def datasets_of_form(self) -> tuple[str, ...]:
        """The data sets of this form."""
        return self.short_datasets if self.form == "short" and self.short_datasets else tuple(self.datasets)

    @property
    def chosen_datasets(self) -> tuple[str, ...]:
        """Those of this run."""
        return tuple(name for name in self.datasets_of_form if not self.only or name in self.only)


def seeded(settings: Sequence[str], seed: Seed, *, borrows: bool) -> tuple[str, ...]:
    """An arm's settings with one seed: of weights and batches, of what a control deals out, and, where it borrows, of how groups and peers are made."""
    groups = ("codes.user.seed", "user_spaces.seed", "peers.seed") if borrows else ()
    return (*settings, *(f"{name}={seed}" for name in ("train.seed", "item_z.seed", *groups)))
