"""Checkpoints: a folder that scoring needs and nothing else, and beside it what a resumed training run needs.

weights.safetensors    weights, normalisers and the catalogue's tables
ranker.json            the ranker's name and settings, feature spec, table sizes, step, metrics by epoch
vocabulary.json        user and item ids by row (from 1), which must be those of the logs that it is served with; finished checkpoints only
best.safetensors, optimizer.safetensors, progress.json   training's own, not in a finished checkpoint
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from longtail.entities import Entities
from longtail.rankers.catalogue import Catalogue, sizes_from_json, sizes_to_json
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import Ranker
from longtail.rankers.settings import RankersSettings
from longtail.samples import FeatureSpec

FORMAT = 1


def save_ranker(
    folder: Path, ranker: Ranker, *, weights: Mapping[str, torch.Tensor] | None = None, step: int = 0, metrics: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write weights and description below `folder`; `weights` stands in for the ranker's present ones (an earlier epoch was better)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "weights.safetensors", ranker.state_dict() if weights is None else weights)
    description = {
        "format": FORMAT,
        "ranker": ranker.name,
        "settings": ranker.settings.model_dump(mode="json"),
        "heads": list(ranker.heads),
        "spec": ranker.spec.model_dump(mode="json"),
        "catalogue": sizes_to_json(ranker.catalogue.sizes),
        "step": step,
        "parameters": ranker.num_parameters(),
        "metrics": [plain(epoch) for epoch in metrics],
    }
    (folder / "ranker.json").write_text(json.dumps(description, indent=1, sort_keys=True, allow_nan=False))


def load_ranker(folder: Path | str) -> Ranker:
    """The ranker of a checkpoint, on the CPU and in evaluation mode.

    Raises:
        ValueError: the folder holds no checkpoint, or one of another format.
    """
    folder = Path(folder)
    description = _read(folder)
    name = description["ranker"]
    settings = RankersSettings.model_validate({name: description["settings"]})
    spec = FeatureSpec.model_validate(description["spec"])
    catalogue = Catalogue.empty(sizes_from_json(description["catalogue"]), spec.num_users, spec.num_items)
    with torch.random.fork_rng(devices=[]):  # the draw is overwritten; the caller's random numbers stay theirs
        ranker = build_ranker(name, spec, catalogue, settings)
    ranker.load_state_dict(load_file(folder / "weights.safetensors"))
    return ranker.eval()


def save_vocabulary(folder: Path, user_ids: Sequence[str], item_ids: Sequence[str]) -> None:
    """Write the ids by row; the first has row 1."""
    (folder / "vocabulary.json").write_text(json.dumps({"users": list(user_ids), "items": list(item_ids)}))


def load_vocabulary(folder: Path | str) -> tuple[list[str], list[str]]:
    """User ids and item ids by row; the first has row 1."""
    vocabulary = json.loads((Path(folder) / "vocabulary.json").read_text())
    return vocabulary["users"], vocabulary["items"]


def check_vocabulary(folder: Path | str, name: str, entities: Entities) -> None:
    """Hold ranker `name`'s checkpoint against a run: its rows must be the same users and items.

    Raises:
        ValueError: an id has another row.
    """
    for kind, trained, served in zip(("user", "item"), load_vocabulary(folder), (entities.users.values, entities.items.values), strict=True):
        if pa.array(trained, served.type).equals(served):
            continue
        here = served.to_pylist()
        row = next((row for row, (one, other) in enumerate(zip(trained, here, strict=False)) if one != other), min(len(trained), len(here)))
        one, other = (repr(ids[row]) if row < len(ids) else "missing" for ids in (trained, here))
        raise ValueError(
            f"ranker {name!r} was trained with {len(trained)} {kind}s and this run's logs have {len(here)}: row {row + 1} is {one} in {folder}/vocabulary.json "
            f"and {other} in the logs. A row must be the same {kind} in both: serve the ranker from the run that trained it, or train it again."
        )


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, from any device."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics for strict JSON: a number that does not exist becomes null."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in metrics.items()}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "ranker.json"
    if not path.is_file():
        there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder} holds no ranker.json ({there}), so it is no checkpoint. Point at the `checkpoint` folder of a trained ranker.")
    description: dict[str, Any] = json.loads(path.read_text())
    if description["format"] != FORMAT:
        raise ValueError(f"{path}: checkpoint format {description['format']}, this version reads {FORMAT}. Train the ranker again.")
    return description
