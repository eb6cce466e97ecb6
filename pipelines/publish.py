"""Publish: a finished run's features as an online store holds them, and the release that names them together with the rankers trained on them.

Reads what the run's stages wrote; writes online_features/<key> (longtail.online.tables; into Redis as well where serve.feature_store says so) and
releases/<key>/release.json. An earlier release stays for a roll-back. Which one answers is decided where they are served (serve_apps.rollout).
Run: python -m pipelines.publish --config … [--build]. Last stdout line: one JSON object with the release's key.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

import pyarrow.fs as pafs
import redis

from longtail.artifacts import Artifact, Draft, Store
from longtail.checkpoint import check_vocabulary, load_ranker
from longtail.config import Config
from longtail.hashing import digest
from longtail.online import redis_store
from longtail.online.entries import RolloutEntry, parse
from longtail.online.log import RedisLog, told_key
from longtail.online.mapped import read_tables, write_tables
from longtail.online.tables import online_tables
from longtail.packaged_models import cache_dir
from longtail.releases import RELEASES, Part, ReleaseFile
from longtail.run_state import load_entities, load_feature_state, logs_info
from pipelines.cluster import ray_session
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.collaborative import COLLABORATIVE
from pipelines.errors import clear_errors
from pipelines.groups import GROUPS
from pipelines.item_z import ITEM_Z
from pipelines.logs import LOGS
from pipelines.peers import PEERS
from pipelines.stage import Context, Outcome, Result, Stage, arguments, config_from, ensure, open_store, summary
from pipelines.train import RANKER_STAGES

logger = logging.getLogger(__name__)

FOLDER = "features"


def _build_features(context: Context, draft: Draft) -> Result:
    inputs = context.inputs
    state = load_feature_state(
        inputs["logs"], inputs["user_codes"], inputs["groups"], inputs["peers"], inputs["item_codes"], inputs["collaborative"], context.config
    )
    tables = online_tables(state, logs_info(inputs["logs"]).end)
    with tempfile.TemporaryDirectory(prefix="longtail-features-") as folder:
        write_tables(tables, Path(folder))
        target = Path(draft.path(f"{FOLDER}/meta.json")).parent
        for kind in ("shared", "users"):
            draft.fs.create_dir(f"{target}/{kind}", recursive=True)
        pafs.copy_files(folder, str(target), source_filesystem=pafs.LocalFileSystem(), destination_filesystem=draft.fs)
    num = tables.meta.num_users
    return Result(rows_in=num, rows_out=num, info={"num_items": len(tables.item_ids), "num_events": len(tables.per_user["event_time"])})


def _feature_settings(config: Config) -> dict[str, object]:
    samples = config.samples.key_fields()
    return {"samples": samples, "groups": config.groups.key_fields(), "peers": config.peers.key_fields(), "collaborative": config.collaborative.key_fields()}


FEATURES = Stage("online_features", 1, (LOGS, USER_CODES, GROUPS, PEERS, ITEM_CODES, COLLABORATIVE), _feature_settings, _build_features, "pipelines.publish")
PARTS = (LOGS, USER_CODES, ITEM_CODES, ITEM_Z, FEATURES)


def _build_release(context: Context, draft: Draft) -> Result:
    config, inputs = context.config, context.inputs
    entities = load_entities(inputs["logs"], config.samples.numeric_bins)
    names = {RANKER_STAGES[name].name: name for name in config.train.rankers}
    for stage, name in names.items():
        checkpoint = inputs[stage].local_path("checkpoint", cache_dir() / "artifacts")
        check_vocabulary(checkpoint, name, entities)
        load_ranker(checkpoint)
    file = ReleaseFile(
        run=config.run.name,
        config=config.model_dump(mode="json"),
        parts={stage.name: part_of(inputs[stage.name]) for stage in PARTS},
        rankers={name: part_of(inputs[stage]) for stage, name in names.items()},
        encoder=encoder_digest(config, inputs["item_z"], inputs["item_codes"], inputs["user_codes"]),
    )
    draft.write_json("release.json", file.model_dump(mode="json"))
    return Result(rows_in=len(names), rows_out=len(names), info={"run": config.run.name, "rankers": list(names.values())})


def part_of(artifact: Artifact) -> Part:
    return Part(stage=artifact.stage, key=artifact.key, content_hash=artifact.content_hash)


def encoder_digest(config: Config, item_z: Artifact, item_codes: Artifact, user_codes: Artifact) -> str:
    """What decides the codes of an item or user that is described: where it is the same, codes found once are good for both releases."""
    return digest([config.embeddings.key_fields(), item_z.content_hash, item_codes.content_hash, user_codes.content_hash])


def release_stage(config: Config) -> Stage:
    """The release of the config's rankers."""
    rankers = tuple(RANKER_STAGES[name] for name in config.train.rankers)
    return Stage(RELEASES, 1, (*PARTS, *rankers), lambda of: {"run": of.run.name, "rankers": list(of.train.rankers)}, _build_release, "pipelines.publish")


def publish(config: Config, store: Store, *, build_inputs: bool = False) -> Outcome:
    """The config's release, found or made, and its features in Redis where the config wants them there.

    Raises:
        ValueError: a stage before it is not finished, or Redis does not answer.
    """
    features = ensure(FEATURES, config, store, build_inputs=build_inputs).artifact
    outcome = ensure(release_stage(config), config, store, build_inputs=build_inputs)
    if config.serve.feature_store == "redis":
        into_redis(features, config, store)
    return outcome


def into_redis(features: Artifact, config: Config, store: Store) -> None:
    """The features in Redis, unless they are there; the oldest of more than serve.kept_features are removed, if no rollout names them."""
    client, name = redis_store.connect(config.serve.redis_url), digest(store.uri)
    if not redis_store.there(client, features.key):
        redis_store.fill(client, name, features.key, read_tables(features.local_path(FOLDER, cache_dir() / "artifacts")))
    keys = [key for key in redis_store.published_keys(client, name) if key != features.key]
    surplus = keys[: max(len(keys) + 1 - config.serve.kept_features, 0)]
    used = served_features(client, store) if surplus else set()
    for key in surplus:
        if key not in used:
            logger.info("removing the features %s from Redis: serve.kept_features = %d", key, config.serve.kept_features)
            redis_store.remove(client, name, key)


def served_features(client: "redis.Redis", store: Store) -> set[str]:
    """Keys of the features that the last rollout of the store's application names, or would go back to."""
    rollout = None
    for _, line in RedisLog(client, told_key(store.uri)).read(0):
        entry = parse(line)
        rollout = entry.rollout if isinstance(entry, RolloutEntry) else rollout
    releases = (*rollout.releases, rollout.previous, rollout.configured) if rollout is not None else ()
    found = [store.find(RELEASES, key) for key in releases if key is not None]
    return {ReleaseFile.model_validate(one.read_json("release.json")).parts[FEATURES.name].key for one in found if one is not None}


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--build", action="store_true", help="build what is not finished first, the rankers included")


def main() -> None:
    with clear_errors():
        args = arguments(__doc__ or "", _flags)
        config = config_from(args)
        store = open_store(config)
        with ray_session(config.cluster):
            outcome = publish(config, store, build_inputs=args.build)
        print(
            json.dumps({"release": outcome.artifact.key, "run": config.run.name, "feature_store": config.serve.feature_store} | summary(outcome), default=str)
        )


if __name__ == "__main__":
    main()
