"""Lineage: what a run's artifacts were made from, by the links between their manifests, and what else lies in the store.

Reads manifests and no table; writes nothing. pipelines.evaluate puts it into the report, the console draws it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from longtail.artifacts import Artifact, Store
from longtail.attempts import MANIFEST


def upstream(store: Store, artifacts: Iterable[Artifact]) -> list[Artifact]:
    """`artifacts` and every one that they come from, each after what it reads; what the store has no longer is left out."""
    found: dict[tuple[str, str], Artifact] = {}

    def visit(artifact: Artifact | None) -> None:
        if artifact is None or (artifact.stage, artifact.key) in found:
            return
        for given in artifact.manifest["inputs"].values():
            visit(store.find(given["stage"], given["key"]))
        found[artifact.stage, artifact.key] = artifact

    for artifact in artifacts:
        visit(artifact)
    return list(found.values())


def stored(store: Store, stage: str) -> list[Artifact]:
    """Every finished artifact of a stage in the store, the latest first; damaged manifests are left out."""
    folder = f"{store.root}/{stage}"
    if store.fs.get_file_info(folder).type != pafs.FileType.Directory:
        return []
    found = []
    for entry in store.fs.get_file_info(pafs.FileSelector(folder)):
        if entry.type != pafs.FileType.Directory or store.fs.get_file_info(f"{entry.path}/{MANIFEST}").type == pafs.FileType.NotFound:
            continue
        try:
            artifact = store.find(stage, entry.base_name)
        except ValueError:
            continue
        if artifact is not None:
            found.append(artifact)
    return sorted(found, key=lambda artifact: (str(artifact.manifest["finished"]), artifact.key), reverse=True)


def made_from(artifact: Artifact, others: Iterable[Artifact]) -> bool:
    """True where the artifact read every one of `others`."""
    read = {(given["stage"], given["key"]) for given in artifact.manifest["inputs"].values()}
    return all((other.stage, other.key) in read for other in others)


@dataclass(frozen=True)
class Node:
    """An artifact's place in the drawing."""

    artifact: Artifact
    column: int
    row: float  # rows of a column are spread around 0


@dataclass(frozen=True)
class Edge:
    """From an artifact to one that reads it; places in the nodes."""

    source: int
    target: int


@dataclass(frozen=True)
class Drawing:
    """The lineage as columns from left to right."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]  # those that no longer way through other artifacts implies


def drawing(artifacts: Sequence[Artifact]) -> Drawing:
    """Columns by the longest way from a source, rows near those of what is read; `artifacts` are as `upstream` orders them."""
    place = {(artifact.stage, artifact.key): number for number, artifact in enumerate(artifacts)}
    reads = [
        sorted({place[given["stage"], given["key"]] for given in artifact.manifest["inputs"].values() if (given["stage"], given["key"]) in place})
        for artifact in artifacts
    ]
    column: list[int] = []
    before: list[set[int]] = []
    for sources in reads:
        column.append(max((column[source] + 1 for source in sources), default=0))
        before.append(set(sources).union(*(before[source] for source in sources)))
    edges = [
        Edge(source, target)
        for target, sources in enumerate(reads)
        for source in sources
        if not any(source in before[other] for other in sources if other != source)
    ]
    rows = _rows(column, edges)
    return Drawing(tuple(Node(artifact, column[number], rows[number]) for number, artifact in enumerate(artifacts)), tuple(edges))


def _rows(column: Sequence[int], edges: Sequence[Edge]) -> list[float]:
    """Within a column by the mean row of what is read (the barycentre rule of layered drawings), spread evenly around 0."""
    rows = [0.0] * len(column)
    for level in range(max(column, default=-1) + 1):
        members = [number for number, at in enumerate(column) if at == level]
        sources = {number: [rows[edge.source] for edge in edges if edge.target == number] for number in members}
        members.sort(key=lambda number: (sum(sources[number]) / len(sources[number]) if sources[number] else 0.0, number))
        for place, number in enumerate(members):
            rows[number] = place - (len(members) - 1) / 2
    return rows
