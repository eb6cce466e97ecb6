"""A synthetic world for speed: logs of any size in the form of a user's three tables, and the same as finished artifacts for the stages to read.

Made once per machine and set of sizes (20 M events: half a minute, 1.5 GB); bench.world_tables draws it and says what is in it.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bench.world_tables import ATTRIBUTES, FORM, KINDS, Sizes, make
from longtail.artifacts import Artifact, Store
from longtail.config import Config, parse
from longtail.hashing import digest
from longtail.logs import LogsInfo
from pipelines.logs import LOGS
from pipelines.stage import Stage, find, stage_key

__all__ = ["KINDS", "Sizes", "World", "add_flags", "planted", "sizes_from", "world"]


def add_flags(parser: argparse.ArgumentParser, names: tuple[str, ...] = ("num_events", "num_users", "num_items", "num_examples", "seed")) -> None:
    """Flags of the sizes that a bench lets be chosen."""
    defaults = asdict(Sizes())
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(defaults[name]), default=defaults[name])


def sizes_from(args: argparse.Namespace) -> Sizes:
    """The sizes that the flags ask for."""
    asked = vars(args)
    return Sizes(**{one.name: asked[one.name] for one in fields(Sizes) if one.name in asked})


@dataclass(frozen=True)
class World:
    """A world's files."""

    sizes: Sizes
    folder: Path

    def path(self, name: str) -> str:
        """Of the table `name`: a file, for the examples a folder."""
        return str(self.folder / f"{name}.parquet")

    @property
    def info(self) -> LogsInfo:
        return LogsInfo.model_validate(json.loads((self.folder / "info.json").read_text()))

    def config(self, sections: Mapping[str, Any] | None = None) -> Config:
        """A config whose logs are this world; other sections as they are given."""
        logs = {"source": "tables", "tables": {name: self.path(name) for name in ("users", "items", "events")}, "categorical_attributes": list(ATTRIBUTES)}
        return parse({"logs": logs, "samples": {"rows_per_file": max(self.sizes.rows_per_file, 1024)}, **(sections or {})}, "the world's config")

    def logs(self, config: Config, store: Store) -> Artifact:
        """What the stage logs would have written of this world, but for the examples, of which the world draws some."""
        names = ["users.parquet", "items.parquet", "events.parquet", "info.json", *(f"examples.parquet/{path.name}" for path in self.example_files())]
        return planted(LOGS, config, store, {name: self.folder / name for name in names}, self.info.model_dump(mode="json"))

    def example_files(self) -> list[Path]:
        return sorted((self.folder / "examples.parquet").iterdir())


def planted(stage: Stage, config: Config, store: Store, files: Mapping[str, Path], info: Mapping[str, Any]) -> Artifact:
    """A finished artifact of `stage` whose files are links to `files`; what the stage reads must be finished."""
    inputs = {upstream.name: found for upstream in stage.inputs if (found := find(upstream, config, store)) is not None}
    assert len(inputs) == len(stage.inputs), f"{stage.name} reads {[one.name for one in stage.inputs]}, finished are {list(inputs)}"
    key = stage_key(stage, config, inputs)
    existing = store.find(stage.name, key)
    if existing is not None:
        return existing
    draft = store.create(stage.name, key)
    for name, path in files.items():
        Path(draft.path(name)).symlink_to(path)
    return draft.commit(config=dict(stage.settings(config)), inputs=inputs, seed=config.run.seed, rows_in=0, rows_out=0, dropped={}, info=dict(info))


def world(sizes: Sizes, below: Path | None = None) -> World:
    """The world of these sizes, made where it is not there yet; `below` is a folder for worlds, this machine's temporary one by default."""
    below = below or Path(tempfile.gettempdir()) / "longtail-worlds"
    folder = below / digest([FORM, asdict(sizes)])
    if not folder.exists():
        below.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".making-", dir=below))
        try:
            make(sizes, aside)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return World(sizes, folder)
