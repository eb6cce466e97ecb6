"""Stage 1, logs: a source's raw logs become users, items, events and labelled examples, split by time.

Reads the source that logs.source names (an installed package, the synthetic world, or three Parquet tables of your own).
Writes users, items, events (Parquet), examples (a folder of parts in random order), the planted truth of the synthetic world,
where logs.truncate is on, truncated (whose events were cut, and to how many baskets), and where logs.cold_start is, cold_items (likewise, of items).

    python -m pipelines.logs --config pipelines/configs/demo.toml
    python -m pipelines.logs --config my.toml --check      says everything that is wrong with three tables of your own, and writes nothing
"""

import argparse
import json
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from longtail.artifacts import Draft
from longtail.config import Config
from longtail.log_check import Report, check_tables
from longtail.logs import LogsSettings, build_logs, fingerprint, read_source
from longtail.sources import tables
from pipelines import work
from pipelines.cluster import ray_session
from pipelines.errors import clear_errors
from pipelines.stage import Context, Result, Stage, arguments, config_from, ensure, open_store, summary


def settings(config: Config) -> dict[str, Any]:
    """The values that decide the stage's result; the samples' file size is also the examples'."""
    return {**config.logs.key_fields(), "rows_per_file": config.samples.rows_per_file}


def build(context: Context, draft: Draft) -> Result:
    """Build and write all tables in one Ray task, whose memory goes back when it ends."""
    if work.is_in_place():
        return build_and_write(context.config.logs, context.config.samples.rows_per_file, context.seed, draft)
    # On this node: a local run.uri, and relative paths of the user's tables, mean this machine.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    task: Any = ray.remote(num_cpus=1, max_calls=1)(build_and_write).options(scheduling_strategy=here)
    result: Result = ray.get(task.remote(context.config.logs, context.config.samples.rows_per_file, context.seed, draft))
    return result


def build_and_write(logs_settings: LogsSettings, rows_per_file: int, seed: int, draft: Draft) -> Result:
    """All tables of the stage, written below `draft`; raises ValueError where source, split or labels do not work out."""
    logs = build_logs(logs_settings, seed)
    logs.write(draft, rows_per_file)
    info = logs.info.model_dump(mode="json")
    # Beside the manifest's: what later stages read of the logs is part of their content, and so of the later stages' keys.
    draft.write_json("info.json", info)
    return Result(logs.rows_in, logs.info.num_events, logs.dropped, info)


LOGS = Stage("logs", 3, (), settings, build, "pipelines.logs", fingerprint=lambda config: fingerprint(config.logs))


def check(logs_settings: LogsSettings, seed: int) -> Report:
    """The checker's findings on the source's three tables: the user's own as they are, another source's as its adapter makes them."""
    if logs_settings.source == "tables":
        assert logs_settings.tables is not None
        users, items, events = tables.read(logs_settings.tables)
        attributes = (logs_settings.categorical_attributes or (), logs_settings.numeric_attributes or ())
        unknown_ids = logs_settings.tables.unknown_ids
    else:
        raw = read_source(logs_settings, seed)
        users, items, events = raw.users, raw.items, raw.events
        attributes, unknown_ids = (raw.categorical_attributes, raw.numeric_attributes), "refuse"
    return check_tables(users, items, events, attributes=attributes, split=logs_settings.split, labels=logs_settings.labels, unknown_ids=unknown_ids)


def print_report(report: Report) -> None:
    """The findings, worst first, and one JSON line."""
    for finding in sorted(report.findings, key=lambda finding: finding.level):
        print(finding)
    print(f"checked {', '.join(f'{count:,} {name}' for name, count in report.rows.items())}: {len(report.errors)} kind(s) of error")
    print(json.dumps(report.as_json()))


def main() -> None:
    def add_check(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true", help="check the tables and write nothing; exit code 1 where there are errors")

    with clear_errors():
        args = arguments(__doc__ or "", add_check)
        config = config_from(args)
        if args.check:
            report = check(config.logs, config.run.seed)
            print_report(report)
            raise SystemExit(1 if report.errors else 0)
        store = open_store(config)
        with ray_session(config.cluster):
            outcome = ensure(LOGS, config, store)
        print(json.dumps({"logs": summary(outcome)}, default=str))


if __name__ == "__main__":
    main()
