"""What a team would write by hand: FastAPI and uvicorn's workers around the same ranker, no Ray in the way of a request.

Reads a finished run. Run by bench.serve: python -m bench.peer_service --config … --port 8100 --workers 2
"""

import argparse
import json
import os
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from longtail.config import load
from longtail.questions import Question, StatedItem
from pipelines.stage import open_store
from serve_apps.ranking import served_run

ORDER = "LONGTAIL_BENCH_PEER"


class Request(BaseModel):
    """One user and candidates."""

    user_id: str
    item_ids: list[str]


def service(config_path: str, overrides: list[str]) -> FastAPI:
    """The service."""
    config = load(config_path, overrides)
    torch.set_num_threads(config.serve.num_threads)
    ranker = served_run(config, open_store(config)).open().request_ranker()
    name = next(iter(ranker.rankers))
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/rank")
    async def rank(request: Request) -> dict[str, Any]:
        ranking = ranker.rank(Question(request.user_id, tuple(StatedItem(item) for item in request.item_ids), name))
        return {"items": [{"item_id": item.item_id, "score": item.scores[0]} for item in ranking.items]}

    return app


def worker() -> FastAPI:
    """The service in one of uvicorn's workers."""
    config_path, overrides = json.loads(os.environ[ORDER])
    return service(config_path, overrides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    os.environ[ORDER] = json.dumps([args.config, args.overrides])
    uvicorn.run("bench.peer_service:worker", factory=True, host="127.0.0.1", port=args.port, workers=args.workers, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
