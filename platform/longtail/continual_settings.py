"""Continual alignment: what the weekly updates are told. Reading a config does not load torch; the updates themselves are in longtail.continual."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from longtail.settings import Settings
from longtail.training import TrainSettings


class UpdateSettings(Settings):
    """One weekly update of a trained ranker."""

    epochs: int = Field(3, ge=1)
    optimizer: Literal["adagrad", "adam"] = "adam"
    learning_rate: float = Field(0.003, gt=0)
    final_learning_rate: float = Field(0.0003, gt=0, description="reached linearly at the update's last step")
    weight_decay: float = Field(0.0, ge=0, description="L2 on what is trained: codes without rows go back to zero, those with few stay near it")
    id_dropout: float = Field(0.1, ge=0, lt=1)
    recent_weeks: int | None = Field(None, ge=1, description="train on so many of the weeks that have passed; None: on all of them since the train window")

    def over(self, settings: TrainSettings) -> TrainSettings:
        """The train section with this update's values; the last epoch is kept, since there is nothing to choose it by."""
        ours = self.model_dump(exclude={"recent_weeks"})
        return settings.model_copy(update={**ours, "keep": "last"})


class ContinualSettings(Settings):
    """The `alignment` command: a trained SaviorRec brought up to date week by week after the train window."""

    seeds: tuple[int, ...] = Field((1, 2, 3, 4, 5), min_length=1, description="each of a world, an encoder and a ranker of its own")
    num_weeks: int = Field(4, ge=2, description="of the test window; nothing has been updated in the first of them")
    codebooks: UpdateSettings = UpdateSettings(epochs=6, learning_rate=0.01, final_learning_rate=0.001)
    everything: UpdateSettings = UpdateSettings(epochs=2)
    chosen: str = Field("", description="how the updates' settings were chosen, in a sentence that the results repeat: nothing here can know it")
    leave_out: tuple[str, ...] = Field((), description="arms that are not run this time")
    bootstrap_rounds: int = Field(1000, ge=20, le=100_000)
    num_parallel: int | None = Field(None, ge=1, description="seeds at a time, a CPU each; without it, as many as there are CPUs")
    name: str = Field("saviorrec_alignment", pattern=r"^[a-z0-9_]+$", description="of the results' files")
    results: str = Field("results", min_length=1, description="folder of the results; a relative path starts at the working directory")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}: name each once")
        needed = sorted({"frozen", "mba", "retrained"} & set(self.leave_out))
        if needed:
            raise ValueError(f"leave_out = {list(self.leave_out)} names {needed}, which the recovered share is made of: take them out of it")
        return self

    def key_fields(self) -> dict[str, Any]:
        """What decides the scores of one seed."""
        return {name: value for name, value in super().key_fields().items() if name in ("num_weeks", "codebooks", "everything", "leave_out")}
