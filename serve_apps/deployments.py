"""What lives in the replicas: shells over the core, imported by reference (no pipeline is imported here, so that a replica starts fast).

Rankers   the application's door: the HTTP side, the run's checkpoints and its feature state in one process, since a hop between two costs more than ranking
          does; asks Encoder only for what the run does not know
Encoder   the frozen text encoder, the item projection and both codebooks; loaded before it is ready, so that no request waits for a model
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI

from actors import metrics
from longtail.artifacts import Artifact
from longtail.checkpoint import check_vocabulary, load_ranker
from longtail.config import Config
from longtail.newcomers import NewcomerEncoder
from longtail.packaged_models import cache_dir
from longtail.projection import load_projection
from longtail.ranking import Encoded, Question, Ranking, RequestRanker, StatedItem, Unknowns
from longtail.run_state import load_feature_state, logs_info
from serve_apps.background import in_background
from serve_apps.inference_grpc import InferenceService
from serve_apps.service_info import ModelInfo, ServiceInfo
from serve_apps.web import web_app

logger = logging.getLogger(__name__)

PING_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class ServedRun:
    """The finished artifacts that serving reads, all of one run."""

    config: Config
    logs: Artifact
    user_codes: Artifact
    groups: Artifact
    peers: Artifact
    collaborative: Artifact
    item_z: Artifact
    item_codes: Artifact
    rankers: Mapping[str, Artifact]  # by name

    @property
    def default_ranker(self) -> str:
        """serve.default_ranker, or the first that the run has."""
        wanted = self.config.serve.default_ranker
        return wanted if wanted in self.rankers else next(iter(self.rankers))

    def local(self, artifact: Artifact, name: str) -> Path:
        """The file or folder `name` of one of the run's artifacts; from a remote store copied below $LONGTAIL_CACHE, once per machine."""
        return artifact.local_path(name, cache_dir() / "artifacts")

    def encoder(self) -> NewcomerEncoder:
        """The encoder of what requests describe."""
        serve, embeddings = self.config.serve, self.config.embeddings
        sides = {name: getattr(embeddings, name) for name in ("user", "item")}
        here = {"num_gpus": serve.num_encoder_gpus, "threads": serve.num_threads}
        return NewcomerEncoder.load(
            logs_info(self.logs),
            self.config.profiles,
            embeddings.model_copy(update={name: side.model_copy(update={"compute": side.compute.model_copy(update=here)}) for name, side in sides.items()}),
            self.local(self.user_codes, "codebook.safetensors") if self.config.user_spaces.spaces[0] == "profile" else None,
            self.local(self.item_codes, "codebook.safetensors"),
            load_projection(self.item_z.fs, self.item_z.root),
        )

    def request_ranker(self) -> RequestRanker:
        """All rankers over one feature state.

        Raises:
            ValueError: a ranker was trained on other users, items or features than the run has.
        """
        state = load_feature_state(self.logs, self.user_codes, self.groups, self.peers, self.item_codes, self.collaborative, self.config)
        rankers = {}
        for name, artifact in self.rankers.items():
            checkpoint = self.local(artifact, "checkpoint")
            check_vocabulary(checkpoint, name, state.entities)
            rankers[name] = load_ranker(checkpoint)
        return RequestRanker(state, rankers, logs_info(self.logs).end, self.config.serve.max_items)

    def info(self, ranker: RequestRanker) -> ServiceInfo:
        """What callers are told."""
        info = logs_info(self.logs)
        return ServiceInfo(
            run=self.config.run.name,
            source=info.source,
            exposure=info.exposure,
            knowledge=ranker.knowledge(),
            models=tuple(
                ModelInfo(name, artifact.key, str(artifact.manifest["finished"]), str(artifact.manifest["commit"])) for name, artifact in self.rankers.items()
            ),
            default_ranker=self.default_ranker,
            max_items=self.config.serve.max_items,
            max_batch=self.config.serve.max_batch,
            max_body_bytes=int(self.config.serve.max_body_mb * 2**20),
        )


class Encoder:
    """Texts that requests bring, as codes and vectors of the run."""

    def __init__(self, run: ServedRun) -> None:
        torch.set_num_threads(run.config.serve.num_threads)
        self._encoder = in_background(run.encoder)
        in_background(self._encoder.warm)

    async def encode(self, unknowns: Unknowns) -> Encoded:
        """Codes of the described user, z and codes of the described items."""
        return await asyncio.to_thread(self._encoder.encode, unknowns)

    async def ping(self) -> None:
        """Answer."""


class Rankers(InferenceService):
    """Every ranker of the run, and the application's only door: HTTP, and gRPC by the methods of InferenceService."""

    def __init__(self, run: ServedRun, encoder: Any, route_prefix: str) -> None:
        torch.set_num_threads(run.config.serve.num_threads)
        self._ranker = in_background(run.request_ranker)
        warm(self._ranker)
        super().__init__(run.info(self._ranker), self.answer, self.not_ready)
        self._encoder = encoder
        self._root_path = route_prefix.rstrip("/")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve takes the application from here once the constructor is done."""
        return web_app(self._info, self.answer, self._root_path, self.not_ready)

    async def not_ready(self) -> list[str]:
        """What does not answer, of the deployments that this one asks."""
        try:
            await asyncio.wait_for(self._ping(), PING_TIMEOUT_S)
        except Exception as error:  # whatever it is, it is no answer
            logger.warning("the encoder does not answer: %s", error)
            return ["Encoder"]
        return []

    async def _ping(self) -> None:
        await self._encoder.ping.remote()

    async def answer(self, question: Question) -> Ranking:
        """One request, timed and counted."""
        try:
            with timed(question.ranker, "whole"):
                return await self.rank(question)
        except Exception as error:
            metrics.REQUEST_ERRORS.add(1, ranker=question.ranker, error=type(error).__name__)
            raise

    async def rank(self, question: Question) -> Ranking:
        """One request, one batch."""
        await asyncio.sleep(0)  # the loop's turn: what came while another request was ranked is queued or turned away now, and not after this one too
        found = self._ranker.find(question)
        unknowns = self._ranker.unknowns(question, found)
        encoded: Encoded | None = None
        if unknowns:
            with timed(question.ranker, "encode"):
                encoded = await self._encoder.encode.remote(unknowns)
        with timed(question.ranker, "rank"), torch.inference_mode():  # a tenth faster than no_grad alone
            ranking = self._ranker.rank(question, encoded, found)
        count(question, ranking)
        return ranking


def warm(ranker: RequestRanker, times: int = 3) -> None:
    """Rank as a request does, so that what is made once is made before the replica is ready, and requests do not queue behind it."""
    known = ranker.knowledge()
    with torch.inference_mode():
        for name in ranker.rankers:
            for user_id in (*known.user_ids[:1], "nobody") * times:
                ranker.rank(Question(user_id, tuple(map(StatedItem, known.item_ids)), name))


@contextlib.contextmanager
def timed(ranker: str, part: str) -> Iterator[None]:
    """Tell Ray's metrics how long a block of a request took, unless it failed."""
    started = time.perf_counter()
    yield
    metrics.REQUEST_SECONDS.observe(time.perf_counter() - started, ranker=ranker, part=part)


def count(question: Question, ranking: Ranking) -> None:
    """Tell Ray's metrics what was ranked, and by what."""
    ranker = question.ranker
    metrics.REQUESTS.add(1, ranker=ranker, group_basis=ranking.group_basis)
    metrics.REQUEST_ITEMS.observe(len(ranking.items), ranker=ranker)
    for basis, number in Counter(item.basis for item in ranking.items).items():
        metrics.CANDIDATES.add(number, ranker=ranker, basis=basis)
    if ranking.alpha_fusion is not None:
        metrics.SERVED_ALPHA.observe(ranking.alpha_fusion, ranker=ranker, activity=metrics.activity_level(ranking.num_purchases))
