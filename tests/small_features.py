"""Own and lent feature states over the small world, which the tests of features, of what is lent, of both together and of serving share."""

import numpy as np
import pyarrow as pa

from longtail import schema
from longtail.collaborative import CollaborativeIndex
from longtail.config import Config
from longtail.feature_state import FeatureState
from longtail.features import OwnState, Rows
from longtail.lent import LentState, PeerLifts, UserGroups
from longtail.matches import MatchState
from longtail.peers import PeerIndex
from longtail.run_state import feature_spec
from tests import small_world, test_groups

Events = list[tuple[str, str, float, str]]

CONFIG = Config.model_validate(
    {
        "groups": {"sequence_categories": 2, "items_per_category": 1, "min_size": 2},
        "samples": {"history_length": 3, "snapshot_days": 7, "numeric_bins": 3},
        "codes": {"user": {"num_stages": 2, "codebook_size": 3}},
        "peers": {"form": "none"},
    }
)

BOOK, MILK, ODD, SOAP, TEA = range(1, 6)
CLUSTER_N = np.array([0, 1, 2, 1, 3, 2])  # book and odd are one, and so are milk and tea


def user_codes() -> pa.Table:
    return pa.table(
        {
            "user_id": ["a", "b", "c", "d"],
            "as_of": pa.array([small_world.day(20)] * 4, schema.TIMESTAMP),
            "codes": pa.array(test_groups.CODES_RS.tolist(), pa.list_(pa.int32(), 2)),
        },
        schema=schema.codes(schema.USER_KEY, 2),
    )


def own_state(rows: Events | None = None, config: Config = CONFIG, *, collaborative: CollaborativeIndex | None = None) -> OwnState:
    return OwnState.build(small_world.entities(), small_world.behaviour(rows), config.samples, small_world.us(0), collaborative)


def match_state(rows: Events | None = None, cluster_N: np.ndarray = CLUSTER_N) -> MatchState:
    return MatchState.build(small_world.entities(), small_world.behaviour(rows), cluster_N)


def lent_state(rows: Events | None = None, config: Config = CONFIG, *, cluster_N: np.ndarray = CLUSTER_N, peers: PeerIndex | None = None) -> LentState:
    entities, users = small_world.entities(), config.codes.user
    groups = UserGroups.build(user_codes(), test_groups.groups(rows), entities, (users.codebook_size,) * users.num_stages, config.groups)
    lifts = None if peers is None else PeerLifts(entities, cluster_N, peers, config.samples, small_world.us(0))
    return LentState(entities, groups, lifts)


def state(
    rows: Events | None = None,
    config: Config = CONFIG,
    *,
    cluster_N: np.ndarray = CLUSTER_N,
    collaborative: CollaborativeIndex | None = None,
    peers: PeerIndex | None = None,
) -> FeatureState:
    """What load_feature_state makes of a run of this world."""
    own, lent = own_state(rows, config, collaborative=collaborative), lent_state(rows, config, cluster_N=cluster_N, peers=peers)
    return FeatureState(feature_spec(own.entities, config, has_conversion=False), own, match_state(rows, cluster_N), lent)


def examples(pairs: list[tuple[str, str, float]]) -> pa.Table:
    """Unlabelled example rows of (user, item, day)."""
    return pa.table(
        {
            "example_id": pa.array(np.arange(len(pairs))),
            "user_id": [pair[0] for pair in pairs],
            "item_id": [pair[1] for pair in pairs],
            "ts": pa.array([small_world.day(pair[2]) for pair in pairs], schema.TIMESTAMP),
            "split": ["test"] * len(pairs),
            "outcome": pa.array([0] * len(pairs), pa.int8()),
            "conversion": pa.nulls(len(pairs), pa.int8()),
        }
    )


def rows_of(pairs: list[tuple[str, str, float]]) -> Rows:
    return Rows.of(examples(pairs), small_world.entities())
