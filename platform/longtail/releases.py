"""A release: what of one run is served together, by key and content; a ranker is never paired with another run's features or codebooks.

Reads <uri>/releases/<key>/…/release.json, which pipelines.publish writes; the key names the release.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
from pydantic import BaseModel

from longtail.artifacts import Artifact, Store

RELEASES = "releases"  # the stage, and its folder


class Part(BaseModel):
    """An artifact of a release."""

    stage: str
    key: str
    content_hash: str


class ReleaseFile(BaseModel):
    """release.json."""

    run: str
    config: dict[str, Any]  # of the run; what [serve] says is the serving application's
    parts: dict[str, Part]  # logs, user_codes, item_codes, item_z, online_features; by stage
    rankers: dict[str, Part]  # by the ranker's name
    encoder: str  # of what requests describe: digest of encoders, projection and codebooks


@dataclass(frozen=True)
class Release:
    """A release, opened: its parts are there and are those that were published."""

    key: str
    file: ReleaseFile
    parts: Mapping[str, Artifact]
    rankers: Mapping[str, Artifact]
    published: str  # when, UTC
    commit: str


def open_release(store: Store, key: str) -> Release:
    """The release of that key.

    Raises:
        ValueError: there is none, or a part of it is missing or has been built anew with another content since.
    """
    artifact = store.find(RELEASES, key)
    if artifact is None:
        there = ", ".join(release_keys(store)[:5]) or "none"
        raise ValueError(f"no release {key!r} under {store.uri} (there: {there}). Run python -m pipelines.publish, or name one that is there.")
    file = ReleaseFile.model_validate(artifact.read_json("release.json"))
    parts = {name: _part(store, key, part) for name, part in file.parts.items()}
    rankers = {name: _part(store, key, part) for name, part in file.rankers.items()}
    return Release(key, file, parts, rankers, str(artifact.manifest["finished"]), str(artifact.manifest["commit"]))


def release_keys(store: Store) -> list[str]:
    """Keys of all releases, the latest first."""
    folder = f"{store.root}/{RELEASES}"
    if store.fs.get_file_info(folder).type == pafs.FileType.NotFound:
        return []
    found = [store.find(RELEASES, entry.base_name) for entry in store.fs.get_file_info(pafs.FileSelector(folder))]
    finished = [artifact for artifact in found if artifact is not None]
    return [artifact.key for artifact in sorted(finished, key=lambda one: (str(one.manifest["finished"]), one.key), reverse=True)]


def _part(store: Store, release: str, part: Part) -> Artifact:
    found = store.find(part.stage, part.key)
    if found is None:
        raise ValueError(f"release {release} reads {part.stage}/{part.key}, which is not under {store.uri}. Restore it, or publish again.")
    if found.content_hash != part.content_hash:
        raise ValueError(
            f"release {release} was published with another {part.stage}/{part.key} than is there now: its content was {part.content_hash[:12]} and is "
            f"{found.content_hash[:12]}. A ranker is served with the features and codebooks that it was trained on: publish again."
        )
    return found


def check_pairing(release: Release) -> None:
    """Every part and ranker was made from the release's own logs, codes and vectors.

    Raises:
        ValueError: one was made from others.
    """
    made = {**release.parts, **{f"ranker {name}": artifact for name, artifact in release.rankers.items()}}
    for name, artifact in made.items():
        for stage, source in artifact.manifest["inputs"].items():
            own = release.parts.get(stage)
            if own is not None and source["content_hash"] != own.content_hash:
                raise ValueError(
                    f"release {release.key}: {name} ({artifact.key}) was made from {stage} {source['key']}, and the release has {stage} {own.key}. "
                    "A ranker is only served with the features and codebooks that it was trained on: publish the run that trained it."
                )
