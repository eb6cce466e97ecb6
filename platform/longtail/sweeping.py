"""Settings of a sweep; the search itself is in tuning.sweep, what is searched by default in tuning.spaces."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from longtail.rankers.settings import Head, RankerName
from longtail.settings import Settings

Value = bool | int | float | str

#: A setting of these changes no result of training, or the rows that trials are compared on.
NOT_SEARCHED = {
    **dict.fromkeys(("run", "cluster", "sweep", "study", "continual", "tracking", "serve"), "changes no result of training"),
    **dict.fromkeys(("logs", "evaluate"), "changes what trials are measured on"),
}


class Range(Settings):
    """Every number from `low` to `high`; whole ones where both are."""

    low: int | float
    high: int | float
    log: bool = Field(False, description="drawn evenly by order of magnitude")

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if isinstance(self.low, bool) or isinstance(self.high, bool) or self.low >= self.high:
            raise ValueError(f"low = {self.low} must lie below high = {self.high}, both numbers; to leave a setting alone, leave it out of the space")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs low > 0, it is {self.low}: start above zero, or set log = false")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Values = tuple[Value, ...] | Range


class FinalistsSettings(Settings):
    """The best trials, trained again with several seeds; one of them and the config as it stood then meet the test window, once."""

    num_trials: int = Field(3, ge=0, description="0: the sweep ends with its table, and the test window stays closed")
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    bootstrap_rounds: int = Field(2000, ge=20, le=100_000)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"seeds = {list(seeds)}: name each once, 0 or more")
        return seeds


class SweepSettings(Settings):
    """A search over settings of one ranker and of the stages before it."""

    ranker: RankerName = "choirrec"
    num_trials: int = Field(4, ge=1, description="the config as it stands is the first of them")
    max_concurrent: int = Field(1, ge=1)
    metric: Literal["gauc", "gauc_low", "auc", "auc_cold"] = Field(
        "gauc_low", description="on the validation window: low, of low-activity users; cold, of cold items"
    )
    head: Head | None = Field(None, description="None: the ranker's primary head")
    max_loss: float = Field(0.002, ge=0, le=1, description="a trial may lie so much below the base ranker over all rows (in gauc or auc, as metric is); 1: any")
    searcher: Literal["random", "tpe"] = Field("tpe", description="tpe: Optuna's tree-structured Parzen estimator")
    num_startup: int = Field(8, ge=1, description="random points before tpe models what it has seen")
    scheduler: Literal["none", "asha", "hyperband", "pbt"] = Field(
        "none",
        description="asha, hyperband: trials that lag behind are stopped | pbt: the best are copied and changed while they train, settings of training alone",
    )
    grace_epochs: int = Field(1, ge=1, description="asha stops nothing, and pbt changes nothing, before")
    reduction_factor: int = Field(3, ge=2, description="asha and hyperband keep one trial of so many")
    in_place: bool = Field(True, description="a trial's own stages run in one task, a CPU each; off: over the cluster, as pipelines.full runs them")
    space: dict[str, Values] | None = Field(None, description="by setting, values to try or { low, high, log }; None: the ranker's own, tuning.spaces")
    finalists: FinalistsSettings = FinalistsSettings()

    @field_validator("space", mode="before")
    @classmethod
    def _one_word_for_each_setting(cls, space: object) -> object:
        """Refuse what TOML makes of a dotted key without quotes: sections within sections."""
        for name, values in space.items() if isinstance(space, dict) else ():
            if isinstance(values, dict) and not {"low", "high"} & set(values):
                raise ValueError(f'{name} is a section: write a setting as one quoted key, such as "{name}.{next(iter(values), "epochs")}" = …')
        return space

    @field_validator("space")
    @classmethod
    def _something_to_choose_from(cls, space: dict[str, Values] | None) -> dict[str, Values] | None:
        if space == {}:
            raise ValueError("space is empty: name at least one setting, or leave it out for the ranker's own space")
        for name, values in (space or {}).items():
            if values == ():
                raise ValueError(f"{name} has no values to try; list at least one, or leave it out")
            reason = NOT_SEARCHED.get(name.split(".")[0])
            if reason is not None:
                raise ValueError(f"{name} {reason} and cannot be searched")
        return space

    @property
    def whole(self) -> Literal["gauc", "auc"]:
        """The metric over all rows that the constraint is about."""
        return "gauc" if self.metric.startswith("gauc") else "auc"

    @property
    def pauses(self) -> bool:
        """Whether trials are paused and taken up again, so that every epoch needs a checkpoint."""
        return self.scheduler in ("hyperband", "pbt")
