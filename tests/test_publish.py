"""Publishing: a finished run becomes a release once; versions in Redis come and go, and those that a rollout names stay."""

import dataclasses
import json
from pathlib import Path

import pytest

from longtail.artifacts import Store
from longtail.hashing import digest
from longtail.online import redis_store
from longtail.online.entries import RolloutEntry
from longtail.online.log import RedisLog, told_key
from longtail.online.mapped import read_tables
from longtail.releases import open_release, release_keys
from longtail.rollouts import Rollout
from pipelines.publish import FEATURES, FOLDER, into_redis, publish
from pipelines.stage import ensure
from tests import redis_server, small_run


def test_a_run_is_published_once_and_names_its_parts(tmp_path: Path) -> None:
    config = small_run.publish(tmp_path)
    store = Store.open(config.run.uri)
    assert release_keys(store) == []
    first, again = publish(config, store), publish(config, store)
    assert (first.skipped, again.skipped) == (False, True)
    assert release_keys(store) == [first.artifact.key]
    release = open_release(store, first.artifact.key)
    assert list(release.rankers) == list(config.train.rankers)
    assert set(release.parts) == {"logs", "user_codes", "item_codes", "item_z", "online_features"}
    assert json.loads(json.dumps(release.file.config))["run"]["name"] == config.run.name
    other = publish(small_run.publish(tmp_path, 0.5), store)
    assert set(release_keys(store)) == {first.artifact.key, other.artifact.key}
    assert open_release(store, other.artifact.key).parts["online_features"].key == release.parts["online_features"].key, "other rankers, the same features"


def test_versions_in_redis_go_by_age_and_those_that_a_rollout_names_stay(tmp_path: Path) -> None:
    with redis_server.running(tmp_path) as url:
        config = small_run.publish(tmp_path / "run")
        config = config.model_copy(update={"serve": config.serve.model_copy(update={"feature_store": "redis", "redis_url": url, "kept_features": 2})})
        store = Store.open(config.run.uri)
        release = publish(config, store).artifact
        features, client, name = ensure(FEATURES, config, store).artifact, redis_store.connect(url), digest(store.uri)
        assert redis_store.published_keys(client, name) == [features.key]
        tables = read_tables(Path(features.path(FOLDER)))
        for key in ("one", "two", "three"):
            redis_store.fill(client, name, key, tables)
        redis_store.fill(client, "another store", "theirs", tables)
        rollout = Rollout(stable=release.key, configured=release.key, deployed_us=1)
        RedisLog(client, told_key(store.uri)).append([RolloutEntry(told_us=1, rollout=rollout).model_dump_json()])
        into_redis(dataclasses.replace(features, key="next"), config, store)
        assert redis_store.published_keys(client, name) == [features.key, "three", "next"], "the oldest is served, and stays"
        assert redis_store.published_keys(client, "another store") == ["theirs"]
        assert redis_store.RedisStore(client, features.key).user("a") is not None


def test_a_redis_that_is_not_there_is_told_before_anything_is_served(tmp_path: Path) -> None:
    config = small_run.publish(tmp_path)
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"feature_store": "redis", "redis_url": "redis://127.0.0.1:1/0"})})
    with pytest.raises(ValueError, match=r"serve\.redis_url = 'redis://127\.0\.0\.1:1/0'.*Start that Redis"):
        publish(config, Store.open(config.run.uri))
