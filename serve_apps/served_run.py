"""A published release as serving opens it: its rankers over its features, its encoders, and what callers are told."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from longtail.artifacts import Artifact, Store
from longtail.checkpoint import load_ranker
from longtail.config import Config
from longtail.newcomers import NewcomerEncoder
from longtail.online import redis_store
from longtail.online.features import OnlineFeatures
from longtail.online.mapped import read_tables
from longtail.packaged_models import cache_dir
from longtail.projection import load_projection
from longtail.ranking import RequestRanker
from longtail.releases import Release, check_pairing, open_release
from longtail.run_state import logs_info
from longtail.serving import ServeSettings
from serve_apps.service_info import ModelInfo, ServiceInfo


@dataclass(frozen=True)
class ServedRun:
    """One release, and how it is served."""

    config: Config  # the run's, with the serving application's [serve]
    store: Store
    release: Release

    @staticmethod
    def open(store: Store, key: str, serve: ServeSettings) -> "ServedRun":
        """The release of that key.

        Raises:
            ValueError: it is not there, or its parts do not belong together.
        """
        release = open_release(store, key)
        check_pairing(release)
        return ServedRun(Config.model_validate(release.file.config | {"serve": serve.model_dump()}), store, release)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The release's parts and rankers."""
        return (*self.release.parts.values(), *self.release.rankers.values())

    @property
    def default_ranker(self) -> str:
        """serve.default_ranker, or the first that the release has."""
        wanted = self.config.serve.default_ranker
        return wanted if wanted in self.release.rankers else next(iter(self.release.rankers))

    def local(self, artifact: Artifact, name: str) -> Path:
        """The file or folder `name` of one of the release's artifacts; from a remote store copied below $LONGTAIL_CACHE, once per machine."""
        return artifact.local_path(name, cache_dir() / "artifacts")

    def encoder(self) -> NewcomerEncoder:
        """The encoder of what requests describe."""
        serve, embeddings, parts = self.config.serve, self.config.embeddings, self.release.parts
        sides = {name: getattr(embeddings, name) for name in ("user", "item")}
        here = {"num_gpus": serve.num_encoder_gpus, "threads": serve.num_threads}
        return NewcomerEncoder.load(
            logs_info(parts["logs"]),
            self.config.profiles,
            embeddings.model_copy(update={name: side.model_copy(update={"compute": side.compute.model_copy(update=here)}) for name, side in sides.items()}),
            self.local(parts["user_codes"], "codebook.safetensors") if self.config.user_spaces.spaces[0] == "profile" else None,
            self.local(parts["item_codes"], "codebook.safetensors"),
            load_projection(parts["item_z"].fs, parts["item_z"].root),
            lambda: parts["logs"].read("items", ["item_id", "category"]),
        )

    def features(self) -> OnlineFeatures:
        """The published features, from the store that serve.feature_store names."""
        serve, artifact = self.config.serve, self.release.parts["online_features"]
        if serve.feature_store == "redis":
            client = redis_store.connect(serve.redis_url)
            meta, shared, item_ids = redis_store.read(client, artifact.key)
            return OnlineFeatures.build(meta, shared, item_ids, redis_store.RedisStore(client, artifact.key), serve.max_items)
        return OnlineFeatures.of(read_tables(self.local(artifact, "features")), serve.max_items)

    def request_ranker(self) -> RequestRanker:
        """All rankers over the features.

        Raises:
            ValueError: a ranker was trained on features of another shape, or Redis has none of the release.
        """
        rankers = {name: load_ranker(self.local(artifact, "checkpoint")) for name, artifact in self.release.rankers.items()}
        versions = {name: artifact.key for name, artifact in self.release.rankers.items()}
        return RequestRanker(self.features(), rankers, self.config.serve.max_items, self.release.key, versions)

    def models(self) -> tuple[ModelInfo, ...]:
        """The rankers, as callers are told."""
        return tuple(
            ModelInfo(name, artifact.key, str(artifact.manifest["finished"]), str(artifact.manifest["commit"]), self.release.key)
            for name, artifact in self.release.rankers.items()
        )

    def info(self, ranker: RequestRanker) -> ServiceInfo:
        """What callers are told."""
        logs, serve = logs_info(self.release.parts["logs"]), self.config.serve
        return ServiceInfo(
            run=self.release.file.run,
            source=logs.source,
            exposure=logs.exposure,
            knowledge=ranker.knowledge(),
            models=self.models(),
            default_ranker=self.default_ranker,
            max_items=serve.max_items,
            max_batch=serve.max_batch,
            max_body_bytes=int(serve.max_body_mb * 2**20),
            release=self.release.key,
            kinds=ranker.features.meta.kinds,
        )


@dataclass(frozen=True)
class Served:
    """What an application serves: the releases of one store, beginning with one of them."""

    store: Store
    release: str
    serve: ServeSettings
    resources: Mapping[str, float]  # that its actors ask of their nodes beside CPUs and GPUs
    deployed_us: int  # when the application was made: of two deployments, the later one says what is configured

    def behind(self) -> "Served":
        """What the parts behind the rankers are given: the same as long as nothing of theirs changes."""
        theirs = {name: getattr(self.serve, name) for name in ("num_threads", "num_encoder_gpus")}
        return replace(self, serve=ServeSettings(**theirs), deployed_us=0)

    def text(self) -> str:
        """The same for the same, in another process too."""
        return f"{self.store.uri} {self.release} {self.serve.model_dump_json()} {sorted(self.resources.items())} {self.deployed_us}"

    def open(self, release: str | None = None) -> ServedRun:
        """One of the store's releases, by default the first."""
        return ServedRun.open(self.store, self.release if release is None else release, self.serve)
