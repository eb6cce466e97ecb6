"""The demo: the whole line on real data, then the rankers on Ray Serve and a few requests over HTTP.

Reads and writes what pipelines.full does. Run: make demo, or python -m serve_apps.demo --config pipelines/configs/demo.toml
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pyarrow.compute as pc

from longtail.artifacts import Artifact
from longtail.config import Config
from longtail.evaluation import Metrics
from longtail.logs import LogsInfo
from longtail.report import text_table
from longtail.run_state import logs_info
from pipelines.cluster import ray_session
from pipelines.errors import clear_errors
from pipelines.full import run, time_table
from pipelines.stage import Outcome, arguments, config_from, open_store, summary
from serve_apps.client import RankClient
from serve_apps.memory import PeakMemory
from serve_apps.ranking import deployed, served_run

NUM_CANDIDATES = 20
REQUEST_TIMEOUT_S = 120


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _timed(name: str) -> Iterator[None]:
    started = time.monotonic()
    _say(f"{name} …")
    yield
    _say(f"{name}: {time.monotonic() - started:.1f} s")


def demo_requests(logs: Artifact, config: Config) -> list[tuple[str, dict[str, Any]]]:
    """A quiet user and a busy one from the test window, a user nobody knows, and an item that exists only in the request; each with what it shows."""
    examples = logs.read("examples", ["user_id", "item_id", "split"])
    test = examples.filter(pc.equal(examples.column("split"), "test"))
    by_user = test.group_by("user_id", use_threads=False).aggregate([("item_id", "list")]).sort_by("user_id")  # threads would list in any order
    events = logs.read("events", ["user_id"]).group_by("user_id").aggregate([("user_id", "count")])
    activity = dict(zip(events.column("user_id").to_pylist(), events.column("user_id_count").to_pylist(), strict=True))
    candidates = {row["user_id"]: list(dict.fromkeys(row["item_id_list"]))[:NUM_CANDIDATES] for row in by_user.to_pylist()}
    enough = [user for user, items in candidates.items() if len(items) >= min(5, NUM_CANDIDATES)] or list(candidates)
    quiet, busy = min(enough, key=lambda user: (activity.get(user, 0), user)), max(enough, key=lambda user: (activity.get(user, 0), user))
    rankers = config.train.rankers
    user_side = "choirrec" if "choirrec" in rankers else rankers[0]
    item_side = "saviorrec" if "saviorrec" in rankers else rankers[0]
    newcomer = {"item_id": "an-item-of-tomorrow", "title": "organic oat milk, unsweetened, 1 litre"}
    return [
        (f"the quietest user of the test, {activity.get(quiet, 0)} events", {"user_id": quiet, "item_ids": candidates[quiet], "ranker": user_side}),
        (f"the busiest user, {activity.get(busy, 0)} events", {"user_id": busy, "item_ids": candidates[busy], "ranker": item_side}),
        ("a user nobody knows: everyone's group stands in", {"user_id": "nobody-yet", "item_ids": candidates[busy][:5], "ranker": user_side}),
        (
            "an item that exists only in this request: ranked by its title",
            {"user_id": busy, "items": [newcomer, *({"item_id": item} for item in candidates[busy][:4])], "ranker": item_side},
        ),
    ]


def day_one(client: RankClient, busy: dict[str, Any], info: LogsInfo) -> tuple[str, dict[str, Any]]:
    """Tell of an item and of a user who has just acted; the request that ranks the one for the other."""
    now, items = info.end + timedelta(hours=1), busy["item_ids"][:4]
    client.put_item("an-item-of-today", {"title": "organic oat milk, unsweetened, 1 litre"})
    done = [{"event_id": f"demo-{number}", "item_id": item, "kind": info.behaviour_kinds[-1], "ts": now.isoformat()} for number, item in enumerate(items[:2])]
    client.put_user("a-user-of-today", {"events": done})
    return "a user and an item told of a moment ago", {"user_id": "a-user-of-today", "item_ids": ["an-item-of-today", *items], "ranker": busy["ranker"]}


def _show(title: str, body: dict[str, Any], answer: dict[str, Any]) -> str:
    top = ", ".join(f"{item['item_id']} {item['score']:.4f}" for item in answer["items"][:3])
    return f"  {title}\n    {body['ranker']} ranks {len(answer['items'])} items in {answer['seconds'] * 1000:.0f} ms, group {answer['user']['group']}: {top}, …"


def _report(outcomes: list[Outcome], answers: list[tuple[str, dict[str, Any], dict[str, Any]]], peak_bytes: int, seconds: float) -> str:
    evaluation = outcomes[-1].artifact
    first = answers[0]
    short = {**first[1], "item_ids": first[1]["item_ids"][:3]}
    return "\n".join(
        [
            "",
            time_table(outcomes),
            "",
            text_table(Metrics.model_validate(evaluation.read_json("metrics.json"))),
            "",
            "served scores",
            *(_show(*entry) for entry in answers),
            "",
            f"one request   POST /v1/rank {json.dumps(short)}",
            f"its answer    {json.dumps({**first[2], 'items': first[2]['items'][:1]})}  (first of {len(first[2]['items'])} items)",
            "",
            f"report        {evaluation.path('report.html')}",
            "console       make up: http://127.0.0.1:8000/console/ over this run, the rankers and Ray's dashboard, until Ctrl-C",
            f"took          {seconds / 60:.1f} min, {peak_bytes / 2**30:.1f} GiB at the peak",
        ]
    )


def main() -> None:
    started = time.monotonic()
    with clear_errors():
        config = config_from(arguments(__doc__ or ""))
        config = config.model_copy(update={"serve": config.serve.model_copy(update={"port": 0})})  # beside whatever else is served here
        store = open_store(config)
        with PeakMemory() as memory, ray_session(config.cluster):
            outcomes = list(run(config, store, _say))
            answers = []
            with _timed("serving"), deployed(served_run(config, store)) as served:
                client = RankClient(served.url, REQUEST_TIMEOUT_S)
                asked = demo_requests(outcomes[0].artifact, config)
                for title, body in asked:
                    answers.append((title, body, client.rank(body)))
                title, body = day_one(client, asked[1][1], logs_info(outcomes[0].artifact))
                answers.append((title, body, client.rank(body)))
        seconds = time.monotonic() - started
        print(_report(outcomes, answers, memory.peak_bytes, seconds))
        print(json.dumps({"seconds": round(seconds, 1), "peak_gib": round(memory.peak_bytes / 2**30, 2)} | {o.artifact.stage: summary(o) for o in outcomes}))


if __name__ == "__main__":
    main()
