"""Code drift: refits the items' codebook at later days, cold, matched and from a warm start, and measures which codes stay and what it costs.

Reads logs and item_z; writes code_drift.json (longtail.code_drift, whose docstring defines every measure) and results/saviorrec_codes_<run.name>.md.
codes.item gives the codebook's settings, [code_drift] days and seeds.

Run: python -m pipelines.code_drift --config … Prints what the figures say; last stdout line: one JSON object.
"""

import json
import os
import shlex
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longtail import schema
from longtail.artifacts import Artifact, Draft, source_commit
from longtail.code_drift import Identified, Refit, World, measure
from longtail.code_drift_page import CodeDriftResults, page, plainly
from longtail.codes import CodebookSettings, check_rows
from longtail.config import Config
from longtail.run_state import logs_info
from longtail.storage import local_folder
from longtail.vectors import to_numpy
from pipelines import work
from pipelines.cluster import ray_session
from pipelines.errors import clear_errors
from pipelines.item_z import ITEM_Z
from pipelines.logs import LOGS
from pipelines.stage import Context, Result, Stage, arguments, config_from, ensure, kept, open_store, summary


def _build(context: Context, draft: Draft) -> Result:
    config, logs = context.config, context.inputs["logs"]
    z = context.inputs["item_z"].read("z").sort_by("item_id")
    days = refit_days(logs, config.code_drift.refit_days)
    counts_TN = counts_by_day(logs, z["item_id"].combine_chunks(), days)
    settings = CodebookSettings.model_validate({name: getattr(config.codes.item, name) for name in CodebookSettings.model_fields})
    check_rows(settings, int((counts_TN[0] > 0).sum()), "codes.item", "stage 'item_z' of items known at history_end")
    vectors_ND, seeds = to_numpy(z["vector"]), [context.seed + number for number in range(config.code_drift.num_seeds)]
    found = work.tasks(of_seed, [(vectors_ND, counts_TN, days, settings, seed) for seed in seeds])
    results = CodeDriftResults(
        items=len(z),
        days=days,
        known=tuple((counts_TN > 0).sum(axis=1).tolist()),
        refits=tuple(refit for refits, _, _ in found for refit in refits),
        identified=tuple(identified for _, identified, _ in found),
        reports=tuple(report for _, _, report in found),
        settings=settings.key_fields(),
    )
    draft.write_json("code_drift.json", results.model_dump(mode="json"))
    return Result(rows_in=len(z), rows_out=len(z), info={"days": days, "known": results.known})


def of_seed(
    vectors_ND: NDArray[np.float32], counts_TN: NDArray[np.int64], days: tuple[int, ...], settings: CodebookSettings, seed: int
) -> tuple[list[Refit], Identified, dict[str, object]]:
    """One first codebook and its refits."""
    return measure(World.of(vectors_ND, counts_TN, days), settings, seed)


def refit_days(logs: Artifact, asked: tuple[int, ...]) -> tuple[int, ...]:
    """Day 0 and those of `asked` up to train_end.

    Raises:
        ValueError: there is none.
    """
    info = logs_info(logs)
    days = tuple(day for day in asked if info.history_end + timedelta(days=day) <= info.train_end)
    if not days:
        span = (info.train_end - info.history_end).days
        raise ValueError(
            f"code_drift.refit_days = {list(asked)}: none lies within the {span} days from history_end to train_end. Name earlier days, or move the split."
        )
    return (0, *days)


def counts_by_day(logs: Artifact, item_ids: pa.Array, days: tuple[int, ...]) -> NDArray[np.int64]:
    """Events [T, N] of each item before history_end + each of `days`."""
    info, events = logs_info(logs), logs.read("events", ["ts", "item_id"])
    item_E = pc.index_in(events["item_id"], value_set=item_ids)
    ends = [pa.scalar(info.history_end + timedelta(days=day), schema.TIMESTAMP) for day in days]
    rows = [item_E.filter(pc.less(events["ts"], end)).drop_null().to_numpy() for end in ends]
    return np.stack([np.bincount(row, minlength=len(item_ids)) for row in rows])


def _settings(config: Config) -> dict[str, object]:
    names = CodebookSettings.model_fields.keys() - {"compute"}
    return {"code_drift": config.code_drift.key_fields(), "codes": {name: value for name, value in config.codes.item.key_fields().items() if name in names}}


CODE_DRIFT = Stage(name="code_drift", version=1, inputs=(LOGS, ITEM_Z), settings=_settings, build=_build, command="pipelines.code_drift")


def main() -> None:
    with clear_errors():
        args = arguments(__doc__ or "")
        config, commit = config_from(args), source_commit()  # now: what is written changes the working tree
        folder = local_folder("code_drift.results", kept("code_drift.results", config.code_drift.results))
        folder.mkdir(parents=True, exist_ok=True)
        store = open_store(config)
        with ray_session(config.cluster):
            outcome = ensure(CODE_DRIFT, config, store, build_inputs=True)
        found = CodeDriftResults.model_validate(outcome.artifact.read_json("code_drift.json"))
        about = {
            "dataset": config.run.name,
            "when": time.strftime("%Y-%m", time.gmtime()),
            "machine": f"{os.cpu_count()} CPUs",
            "commit": str(outcome.artifact.manifest["commit"]) if outcome.skipped else commit,
            "command": command(args.config, args.overrides),
        }
        path = folder / f"saviorrec_codes_{config.run.name}.md"
        path.write_text(page(found, about))
        print("\n".join(plainly(found)))
        print(json.dumps({"code_drift": summary(outcome), "results": str(path)}))


def command(config: str | None, overrides: list[str]) -> str:
    """The command without what decides nothing of the figures: where artifacts lie, and on which Ray."""
    told = [override for override in overrides if not override.startswith(("run.uri", "cluster.", "code_drift.results"))]
    parts = ["python", "-m", "pipelines.code_drift", *(["--config", config] if config else [])]
    return shlex.join(parts + [part for override in told for part in ("--set", override)])


if __name__ == "__main__":
    main()
