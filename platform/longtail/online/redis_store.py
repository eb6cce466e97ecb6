"""Published features in Redis: for many nodes, and for more users than a replica's disk should hold.

    longtail:<key>:meta, :item_ids, :shared       what the features are of; meta is written last: without it they are not there
    longtail:<key>:user:<user_id>                 a record (longtail.online.records)
    longtail:<key>:met:<row>                      what the user had met, for those whose peer they are
    longtail:features:<store>                     the keys of one run's URI by the time they were written

The key is that of the artifact that was published, so that several runs, and several versions of one, lie side by side.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import redis
from safetensors.numpy import load, save

from longtail.online.mapped import met_of, record_of
from longtail.online.records import Ints, Met, UserRecord
from longtail.online.tables import Array, OnlineMeta, OnlineTables
from longtail.peers import TARGETS
from longtail.storage import without_secrets

USERS_AT_ONCE = 500
TIMEOUT_S = 2.0


def connect(url: str) -> "redis.Redis":
    """A client of the server at `url`, with the password in $LONGTAIL_REDIS_PASSWORD if there is one.

    Raises:
        ValueError: it does not answer.
    """
    try:
        password = os.environ.get("LONGTAIL_REDIS_PASSWORD")
        client = redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, password=password)
        client.ping()
    except (redis.RedisError, ValueError) as error:
        raise ValueError(f"serve.redis_url = {without_secrets(url)!r}: {error}. Start that Redis, or name one that answers.") from error
    return client


def fill(client: "redis.Redis", store: str, key: str, tables: OnlineTables) -> None:
    """Write features under `key`; readers find them once all of it is there. `store` names the run's URI, whose versions are kept or removed together."""
    levels = tables.meta.num_peer_levels
    ids = tables.user_ids
    for start in range(1, len(ids) + 1, USERS_AT_ONCE):
        pipe = client.pipeline(transaction=False)
        for row in range(start, min(start + USERS_AT_ONCE, len(ids) + 1)):
            pipe.set(_name(key, "user", ids[row - 1].as_py()), record_of(tables.per_user, row, levels).to_bytes())
            if levels:
                pipe.set(_name(key, "met", row), save({name: np.ascontiguousarray(columns) for name, columns in met_of(tables.per_user, row).items()}))
        pipe.execute()
    shared = {name: save({"array": np.ascontiguousarray(array)}) for name, array in tables.shared.items()}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("id", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([tables.item_ids.cast(pa.string())], names=["id"]))
    pipe = client.pipeline(transaction=True)
    pipe.delete(_name(key, "shared"))
    if shared:
        pipe.hset(_name(key, "shared"), mapping=shared)  # type: ignore[arg-type]
    pipe.set(_name(key, "item_ids"), sink.getvalue().to_pybytes())
    pipe.set(_name(key, "meta"), tables.meta.model_dump_json())
    pipe.zadd(_index(store), {key: time.time()})
    pipe.execute()


def there(client: "redis.Redis", key: str) -> bool:
    """Whether features were written under `key`, to the end."""
    return bool(client.exists(_name(key, "meta")))


def published_keys(client: "redis.Redis", store: str) -> list[str]:
    """Keys of a store's features that are there, the oldest first."""
    found: Any = client.zrange(_index(store), 0, -1)
    return [key.decode() for key in found]


def remove(client: "redis.Redis", store: str, key: str) -> None:
    """Take features away that nobody serves."""
    client.delete(_name(key, "meta"))
    client.zrem(_index(store), key)
    some: list[bytes] = []
    for name in client.scan_iter(match=f"{_name(key)}:*", count=USERS_AT_ONCE):
        some.append(name)
        if len(some) == USERS_AT_ONCE:
            client.unlink(*some)
            some = []
    if some:
        client.unlink(*some)


@dataclass(frozen=True)
class RedisStore:
    """Users' records from Redis (records.UserStore)."""

    client: "redis.Redis"
    key: str

    def user(self, user_id: str) -> UserRecord | None:
        """See records.UserStore.

        Raises:
            RuntimeError: the features are gone, which must not look as if nobody were known.
        """
        content: Any = self.client.get(_name(self.key, "user", user_id))
        if content is None and not there(self.client, self.key):
            raise RuntimeError(f"the features {self.key} are no longer in Redis: publish the release again")
        return UserRecord.from_bytes(content) if content is not None else None

    def met(self, user_rows: Ints) -> Met:
        """See records.UserStore."""
        contents: Any = self.client.mget([_name(self.key, "met", int(row)) for row in user_rows]) if len(user_rows) else []
        nothing = {target: np.zeros(0, np.int32) for target in TARGETS}
        return Met.joined([load(content) if content is not None else nothing for content in contents])


def read(client: "redis.Redis", key: str) -> tuple[OnlineMeta, dict[str, Array], pa.Array]:
    """What the features under `key` are of, the arrays of everyone and everything, item ids by row.

    Raises:
        ValueError: nothing is there.
    """
    meta: Any = client.get(_name(key, "meta"))
    ids: Any = client.get(_name(key, "item_ids"))
    shared: Any = client.hgetall(_name(key, "shared"))
    if meta is None or ids is None:
        raise ValueError(f'Redis has no features {key!r}. Run python -m pipelines.publish with the same --config and serve.feature_store = "redis".')
    table = pa.ipc.open_stream(pa.py_buffer(ids)).read_all()
    arrays = {name.decode(): np.array(load(content)["array"]) for name, content in shared.items()}
    return OnlineMeta.model_validate_json(meta), arrays, table.column("id").combine_chunks()


def _index(store: str) -> str:
    return f"longtail:features:{store}"


def _name(key: str, *parts: object) -> str:
    return ":".join(["longtail", key, *map(str, parts)])
