"""Job orders: what a form asks for, checked as the command itself would check it, and the command line that it becomes.

Reads pipelines/configs and the TOML that was sent; writes nothing and starts nothing. It knows no Ray.
"""

import json
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyarrow.fs import FileSystem, LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field

from longtail.config import Config, load, parse
from longtail.config_text import as_overrides
from longtail.settings import Compute, Settings
from longtail.sweep_journal import settings_digest
from pipelines.cluster import ROOT

SWEEP, PUBLISH, FULL = "tuning.sweep", "pipelines.publish", "pipelines.full"
#: Of pipelines.full, named and not imported: this module is loaded by the console's replica.
STAGE_MODULES = (
    *("pipelines.logs", "pipelines.profiles", "pipelines.embeddings", "pipelines.item_texts", "pipelines.item_encoder", "pipelines.item_z", "pipelines.codes"),
    *("pipelines.user_spaces", "pipelines.groups", "pipelines.peers", "pipelines.collaborative", "pipelines.samples", "pipelines.matches", "pipelines.lifts"),
    *("pipelines.lent", "pipelines.train", "pipelines.evaluate"),
)
#: All that a job may run, and what the form says of it.
MODULES = {
    SWEEP: "a search over settings",
    FULL: "the whole line, from logs to evaluation",
    **dict.fromkeys(STAGE_MODULES, "one stage"),
    PUBLISH: "a run, ready to be served",
}
CONFIGS = ROOT / "pipelines" / "configs"
MAX_TOML = 64 * 1024
FLAGS = {PUBLISH: ("--build",)}


class JobOrder(BaseModel):
    """What the form sends."""

    model_config = ConfigDict(extra="forbid")

    module: str = SWEEP
    config: str | None = Field(None, description="a file's name in pipelines/configs; None: toml, or all defaults")
    toml: str | None = Field(None, max_length=MAX_TOML, description="a config's own text, in place of a file")
    settings: list[str] = Field([], max_length=200, description="a.b=value, as --set takes them")


@dataclass(frozen=True)
class Checked:
    """An order that its command will accept."""

    module: str
    arguments: tuple[str, ...]  # after python -m <module>
    config: Config
    same: str | None  # of a sweep, the same for orders that mean the same sweep

    def entrypoint(self, python: str, folder: str | None, address: str | None = None) -> str:
        """The shell command of a Ray job, in a folder and with a Ray's address where they are given; every argument is quoted, whatever is in it."""
        command = shlex.join([*([f"RAY_ADDRESS={address}"] if address else []), python, "-m", self.module, *self.arguments])
        before = "" if folder is None else f"cd {shlex.quote(folder)} && "
        return f"{before}exec env {command}" if address or folder else command


def config_names() -> list[str]:
    """The configs that can be chosen."""
    return sorted(path.name for path in CONFIGS.glob("*.toml"))


def checked(order: JobOrder, store_uri: str) -> Checked:
    """The order as a command that writes to the store at `store_uri`, wherever its own config would write.

    Raises:
        ValueError: the module or the config is none that can be chosen, the TOML is none, or a setting breaks its rule.
    """
    if order.module not in MODULES:
        raise ValueError(f"module = {order.module!r} is none that the console starts. It starts {', '.join(MODULES)}.")
    settings = [line.strip() for line in order.settings if line.strip()]
    into = [line for line in settings if line.partition("=")[0].strip() == "run.uri"]
    if into:
        raise ValueError(f"{into[0]}: a job of this console writes to the store that it shows, {store_uri}. Leave run.uri out.")
    own = [f"run.uri={json.dumps(store_uri, ensure_ascii=False)}"]
    if order.toml and order.toml.strip():
        if order.config is not None:
            raise ValueError(f"config = {order.config!r} and a TOML text: choose a file or paste a text, not both.")
        config, first = _of_text(order.toml, [*settings, *own])
    elif order.config is not None:
        if order.config not in config_names():
            raise ValueError(f"config = {order.config!r} is no file of pipelines/configs. There are {', '.join(config_names())}.")
        config, first = load(CONFIGS / order.config, [*settings, *own]), ["--config", str(CONFIGS / order.config)]
    else:
        config, first = load(None, [*settings, *own]), []
    return _order(order.module, config, first, [*settings, *own])


def publishing(fs: FileSystem, best_toml: str, store_uri: str) -> Checked:
    """The order that trains, evaluates and publishes a sweep's best config.

    Raises:
        ValueError: its best.toml is no config of this version.
    """
    with fs.open_input_stream(best_toml) as stream:
        text = bytes(stream.read()).decode()
    own = [f"run.uri={json.dumps(store_uri, ensure_ascii=False)}"]
    config, first = _of_text(text, own)
    return _order(PUBLISH, config, ["--config", best_toml] if isinstance(fs, LocalFileSystem) else first, own)


def _of_text(text: str, settings: Sequence[str]) -> tuple[Config, list[str]]:
    """A pasted config, and the arguments that say it on a machine without its file."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"the pasted text is not valid TOML: {error}") from error
    overrides = as_overrides(raw)
    parse(raw, "the pasted text")  # so that a refusal names it before the settings over it
    return load(None, [*overrides, *settings]), _sets(overrides)


def _order(module: str, config: Config, first: Sequence[str], settings: Sequence[str]) -> Checked:
    same = settings_digest(config) if module == SWEEP else None
    return Checked(module, (*first, *_sets(settings), *FLAGS.get(module, ())), config, same)


def _sets(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@dataclass(frozen=True)
class Room:
    """The CPUs and GPUs of the cluster."""

    total: dict[str, float]
    free: dict[str, float]


def needs(checked: Checked) -> dict[str, float]:
    """CPUs and GPUs without which an order does not get on: its largest stage's, of a sweep one trial's."""
    pools = dict(_pools(checked.config))
    if checked.module == SWEEP:
        pools = {"train": pools["train"]}
    elif checked.module in STAGE_MODULES:
        name = checked.module.rpartition(".")[2]
        pools = {section: pool for section, pool in pools.items() if section.split(".")[0] == name} or {"one task": Compute()}
    worst = {
        "CPU": max((pool.num_actors * pool.num_cpus for pool in pools.values()), default=1.0),
        "GPU": max((pool.num_actors * pool.num_gpus for pool in pools.values()), default=0.0),
    }
    return worst | {"CPU": max(1.0, worst["CPU"])}  # every stage has tasks of one CPU


def _pools(section: Settings, before: str = "") -> Iterator[tuple[str, Compute]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Compute):
            yield before or name, value
        elif isinstance(value, Settings):
            yield from _pools(value, f"{before}.{name}" if before else name)


def waits(checked: Checked, room: Room) -> str | None:
    """Why a job would wait for resources, in a sentence; None where it would not, or nothing is known of the cluster."""
    if not room.total:
        return None
    for resource, wanted in needs(checked).items():
        total, free = room.total.get(resource, 0.0), room.free.get(resource, 0.0)
        if wanted > total:
            return (
                f"It needs {_counted(wanted, resource)} at a time and the cluster has {total:g}: it will wait until the cluster grows, and on one of fixed "
                "size for ever. Lower num_actors or the reservation in the [….compute] section."
            )
        if wanted > free + 1e-6:
            return f"It needs {_counted(wanted, resource)} at a time and {free:g} of {total:g} are free now: it will wait until other work gives some back."
    if checked.module == SWEEP:
        fit = int((room.free.get("CPU", 0.0) + 1e-6) // needs(checked)["CPU"])
        if fit < checked.config.sweep.max_concurrent:
            return (
                f"sweep.max_concurrent = {checked.config.sweep.max_concurrent}, and the CPUs that are free now are enough for {fit} at a time: the others wait."
            )
    return None


def _counted(number: float, resource: str) -> str:
    return f"{number:g} {resource}{'' if number == 1 else 's'}"


def relative_to_root(path: Path) -> str:
    """A file of the checkout as a job with an uploaded working directory names it."""
    return path.relative_to(ROOT).as_posix()
