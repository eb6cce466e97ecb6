"""The whole config: one TOML file, parsed once at the edge, every section beside the code that it drives."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from longtail.code_drift import CodeDriftSettings
from longtail.codes import CodesSettings
from longtail.collaborative import CollaborativeSettings
from longtail.completion import CompletionSettings
from longtail.continual_settings import ContinualSettings
from longtail.embeddings import EmbeddingsSettings
from longtail.evaluation import EvaluateSettings
from longtail.groups import GroupsSettings
from longtail.item_encoder import ItemEncoderSettings
from longtail.item_z import ItemZSettings
from longtail.logs import LogsSettings
from longtail.peers import PeersSettings
from longtail.profiles import ProfilesSettings
from longtail.rankers.settings import RankersSettings
from longtail.samples import SamplesSettings
from longtail.serving import ServeSettings
from longtail.settings import Settings
from longtail.storage import HOLDS_CREDENTIALS, Place, without_secrets
from longtail.study import StudySettings
from longtail.sweeping import SweepSettings
from longtail.tracking import TrackingSettings
from longtail.training import TrainSettings
from longtail.user_spaces import UserSpacesSettings


class RunSettings(Settings):
    """The run: where its artifacts lie and what it is called."""

    uri: Place = Field("runs/demo", description="a local path or a URI (s3://…, gs://…; longtail.storage)")
    name: str = "demo"
    seed: int = Field(7, ge=0, le=2**32 - 1)


class ClusterSettings(Settings):
    """The Ray that a pipeline uses when it is not submitted as a job."""

    address: str = Field("local", description='"local" starts one of its own and stops it at the end; "auto" or ray:// joins one')
    num_cpus: int | None = Field(None, ge=1)
    object_store_mb: int = Field(1024, ge=80)
    dashboard: bool = True
    worker_niceness: int | None = Field(
        None, ge=0, le=19, description="nice(1) of the workers of a Ray of its own; None: Ray's 15. For serving 0: a worker that starts has 0 for a second"
    )


class Config(Settings):
    """Every section of a run."""

    run: RunSettings = RunSettings()
    cluster: ClusterSettings = ClusterSettings()
    logs: LogsSettings = LogsSettings()
    profiles: ProfilesSettings = ProfilesSettings()
    embeddings: EmbeddingsSettings = EmbeddingsSettings()
    item_encoder: ItemEncoderSettings = ItemEncoderSettings()
    item_z: ItemZSettings = ItemZSettings()
    user_spaces: UserSpacesSettings = UserSpacesSettings()
    codes: CodesSettings = CodesSettings()
    code_drift: CodeDriftSettings = CodeDriftSettings()
    groups: GroupsSettings = GroupsSettings()
    completion: CompletionSettings = CompletionSettings()
    peers: PeersSettings = PeersSettings()
    collaborative: CollaborativeSettings = CollaborativeSettings()
    samples: SamplesSettings = SamplesSettings()
    rankers: RankersSettings = RankersSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    serve: ServeSettings = ServeSettings()
    sweep: SweepSettings = SweepSettings()
    study: StudySettings = StudySettings()
    continual: ContinualSettings = ContinualSettings()
    tracking: TrackingSettings = TrackingSettings()


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file (None: all defaults) and apply `--set a.b=value` overrides.

    Raises:
        ValueError: the file is missing or not TOML, an override has no '=', a key is unknown or a value breaks its rule.
    """
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            raw = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))  # with or without a byte order mark
        except FileNotFoundError as error:
            raise ValueError(f"--config {path}: no such file. The repository's own configs lie in pipelines/configs/.") from error
        except OSError as error:
            raise ValueError(f"--config {path} cannot be read: {error.strerror}. Name a TOML file.") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"--config {path} is not UTF-8 ({error}). Save it as UTF-8.") from error
        except (ValueError, RecursionError) as error:  # no TOML, numbers of thousands of digits, thousands of brackets
            raise ValueError(f"--config {path}: not valid TOML: {error}") from error
    for override in overrides:
        _override(raw, override)
    return parse(raw, str(path or "defaults"), [override.partition("=")[0].strip() for override in overrides if path is not None])


def parse(raw: dict[str, Any], where: str, over: Sequence[str] = ()) -> Config:
    """Validate a nested dict; raises ValueError with one line per broken setting, which says so of those set over the file (`over`, dotted)."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = [f"  {_place(e)}: {_told(e)}{' (set over the file)' if '.'.join(map(str, e['loc'])) in over else ''}" for e in error.errors()]
        raise ValueError(f"{where}: {len(lines)} setting(s) refused:\n" + "\n".join(lines)) from error


def _place(error: Mapping[str, Any]) -> str:
    """A refused setting and its value; of a whole section, whose rule names the setting, the name alone."""
    name = ".".join(str(part) for part in error["loc"]) or "the config"
    alone = isinstance(error["input"], dict) and error["type"] in ("value_error", "missing")
    if alone or HOLDS_CREDENTIALS in error["msg"]:
        return name
    return f"{name} = {without_secrets(repr(error['input']))[:500]}"


def _told(error: Mapping[str, Any]) -> str:
    """A refused setting's rule; for a key that there is not, the keys that there are."""
    if error["type"] != "extra_forbidden":
        return str(error["msg"]).removeprefix("Value error, ")
    *parents, name = error["loc"]
    section: Any = Config()
    for parent in parents:
        section = getattr(section, str(parent), None)
    names = list(type(section).model_fields) if isinstance(section, Settings) else []
    near = difflib.get_close_matches(str(name), names, n=1)
    where = f"[{'.'.join(str(part) for part in parents)}]" if parents else "the config"
    remedy = f" Did you mean {near[0]}?" if near else f" There are {', '.join(names)}." if names else ""
    return f"{where} has no such key.{remedy}"


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"--set {without_secrets(override)}: expected a.b=value, with value as in TOML (text without quotes is taken as text).")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *parents, last = name.strip().split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ValueError(f"--set {override}: {parent!r} is a value, not a section.")
    section[last] = value
