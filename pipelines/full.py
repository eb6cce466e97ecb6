"""The whole line, from logs to the evaluation report; this page is the table of contents.

     logs ─┬─► profiles ─► user_vectors ─► user_spaces ─► user_codes ─► groups, peers ──────────► lent ┐
           ├─► item_texts ─► item_vectors ─► item_encoder ─► item_z ─► item_codes ─► matches ──────────┼─► base, choirrec, saviorrec, duet ─► evaluation
           └─► collaborative ─► samples ───────────────────────────────────────────────────────────────┘

Run: python -m pipelines.full --config my.toml. Finished stages are skipped; an interrupted one is redone. Last stdout line: one JSON object.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence

from longtail.artifacts import Store
from longtail.codes import check_rows
from longtail.config import Config
from longtail.run_state import logs_info
from pipelines.cluster import ray_session
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.collaborative import COLLABORATIVE
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.errors import clear_errors
from pipelines.evaluate import evaluation_stage
from pipelines.groups import GROUPS
from pipelines.item_encoder import ITEM_ENCODER
from pipelines.item_texts import ITEM_TEXTS
from pipelines.item_z import ITEM_Z
from pipelines.lent import LENT
from pipelines.lifts import LIFTS
from pipelines.logs import LOGS
from pipelines.matches import MATCHES
from pipelines.peers import PEERS
from pipelines.profiles import PROFILES
from pipelines.samples import SAMPLES
from pipelines.stage import Outcome, Stage, arguments, config_from, ensure, open_store, summary
from pipelines.tracking import record_stages
from pipelines.train import RANKER_STAGES
from pipelines.user_spaces import USER_SPACES

SHARED_STAGES = (
    *(LOGS, PROFILES, USER_VECTORS, ITEM_TEXTS, ITEM_VECTORS, ITEM_ENCODER, ITEM_Z, ITEM_CODES),
    *(USER_SPACES, USER_CODES, GROUPS, PEERS, COLLABORATIVE, SAMPLES, MATCHES, LIFTS, LENT),
)


def stages(config: Config) -> list[Stage]:
    """Every stage in the order of the data."""
    return [*SHARED_STAGES, *(RANKER_STAGES[name] for name in config.train.rankers), evaluation_stage(config)]


def run(config: Config, store: Store, say: Callable[[str], None] = lambda line: None) -> Iterator[Outcome]:
    """Build what is not finished, stage by stage; needs a running Ray."""
    line = stages(config)
    for number, stage in enumerate(line, start=1):
        say(f"[{number:2d}/{len(line)}] {stage.name} …")
        outcome = ensure(stage, config, store)
        if stage is LOGS:  # what cannot work is refused before the language model's work, not after it
            info = logs_info(outcome.artifact)
            check_rows(config.codes.user, info.num_users, "codes.user", "stage 'logs'")
            check_rows(config.codes.item, info.num_items, "codes.item", "stage 'logs'")
        state = "finished before" if outcome.skipped else f"{outcome.seconds:.1f} s"
        say(f"[{number:2d}/{len(line)}] {stage.name}: {outcome.artifact.manifest['rows']['out']:,} rows, {state}")
        yield outcome


def time_table(outcomes: Sequence[Outcome]) -> str:
    """Stage times and rows as text."""
    lines = [f"{'stage':<14} {'seconds':>8} {'rows in':>11} {'rows out':>11} {'dropped':>9}"]
    for outcome in outcomes:
        rows = outcome.artifact.manifest["rows"]
        seconds = "cached" if outcome.skipped else f"{outcome.seconds:.1f}"
        lines.append(f"{outcome.artifact.stage:<14} {seconds:>8} {rows['in']:>11,} {rows['out']:>11,} {sum(rows['dropped'].values()):>9,}")
    return "\n".join(lines)


def main() -> None:
    with clear_errors():
        config = config_from(arguments(__doc__ or ""))
        store = open_store(config)
        with ray_session(config.cluster):
            outcomes = list(run(config, store, lambda line: print(line, file=sys.stderr, flush=True)))
            record_stages(config, store, [(outcome.artifact, outcome.skipped, outcome.seconds) for outcome in outcomes])
        print(time_table(outcomes))
        print(f"report: {outcomes[-1].artifact.path('report.html')}")
        print(json.dumps({outcome.artifact.stage: summary(outcome) for outcome in outcomes}, default=str))


if __name__ == "__main__":
    main()
