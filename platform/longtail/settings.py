"""The base of every config section: frozen, strict about unknown keys, and able to say which of its values decide a stage's result."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: What a pool of nodes may be called; the nodes offer it to Ray as the resource `pool_<name>`.
POOL_NAME = r"^[a-z][a-z0-9_]*$"


class Settings(BaseModel):
    """A frozen section of the config; an unknown key is refused, and so are infinities and NaN."""

    # A refused value may be a URI with a password in it, which pydantic's own message would repeat; longtail.config tells the value without that.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_the_rest_of_a_section(cls, values: Any) -> Any:
        """A section given in part keeps the rest of its default here, which may differ from the section class's own defaults."""
        if not isinstance(values, dict):
            return values
        defaults = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Settings)}
        partial = {
            name for name in defaults.keys() & values.keys() if isinstance(values[name], dict) and cls.model_fields[name].annotation is type(defaults[name])
        }
        return values | {name: _over(defaults[name].model_dump(exclude_unset=True), values[name]) for name in partial}

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
    pool: str | None = Field(None, pattern=POOL_NAME, description="only nodes with Ray's resource pool_<name> (cluster.yaml); None: any that has room")


def own_seed(seed: int | None, run_seed: int) -> int:
    """A section's own seed, the run's where it has none."""
    return run_seed if seed is None else seed


def _over(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = defaults | values
    nested = {name for name in defaults.keys() & values.keys() if isinstance(defaults[name], dict) and isinstance(values[name], dict)}
    return merged | {name: _over(defaults[name], values[name]) for name in nested}


def _without_compute(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_compute(inner) for name, inner in value.items() if name != "compute"}
    return value
