"""The base of every config section: frozen, strict about unknown keys, and able to say which of its values decide a stage's result."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A frozen section of the config; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def key_fields(self) -> dict[str, Any]:
        """The values that decide the stage's result: all but every `compute` section below (actors, CPUs, batch sizes)."""
        dumped: dict[str, Any] = _without_compute(self.model_dump(mode="json"))
        return dumped


class Compute(Settings):
    """Where a stage runs: it changes the time a stage takes, never its result, and stays out of the stage's key."""

    num_actors: int = Field(1, ge=1, description="Ray actors (or workers) that share the stage's rows")
    num_cpus: float = Field(1.0, ge=0, description="CPUs each of them reserves")
    num_gpus: float = Field(0.0, ge=0, description="GPUs each of them reserves")
    batch_size: int = Field(64, ge=1, description="rows handed to an actor at a time")


def _without_compute(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_compute(inner) for name, inner in value.items() if name != "compute"}
    return value
