"""From a run's artifacts to the objects that features are computed from; samples and serving load the same.

Letters: M users + 1, N items + 1.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import sparse

from longtail.artifacts import Artifact
from longtail.behaviour import Behaviour, incidence
from longtail.collaborative import CollaborativeIndex
from longtail.config import Config
from longtail.entities import Entities
from longtail.feature_state import FeatureState
from longtail.features import CROSS_STATS, ITEM_STATS, USER_STATS, ActivityIndex, OwnState
from longtail.lent import LentState, PeerLifts, UserGroups
from longtail.logs import LogsInfo
from longtail.matches import MATCH_STATS, MatchState
from longtail.peers import PEER_STATS, FirstMeetings, PeerIndex, clusters
from longtail.samples import FeatureSpec
from longtail.times import to_us

ITEM_COLUMNS = ["item_id", "category", "brand", "price", "first_seen"]  # of the logs' tables: no titles, no pictures
EVENT_COLUMNS = ["user_id", "item_id", "ts", "kind", "price"]


def logs_info(logs: Artifact) -> LogsInfo:
    """What the logs stage told its readers."""
    return LogsInfo.model_validate(logs.info)


@lru_cache(maxsize=2)
def load_entities(logs: Artifact, numeric_bins: int) -> Entities:
    """The run's users and items; kept, since a process that asks again asks for the same."""
    return Entities.build(logs.read("users"), logs.read("items", ITEM_COLUMNS), logs_info(logs), numeric_bins)


@lru_cache(maxsize=2)
def load_behaviour(logs: Artifact, numeric_bins: int) -> Behaviour:
    """The run's behaviour events, numbered as its entities are; kept likewise."""
    entities = load_entities(logs, numeric_bins)
    return Behaviour.build(logs.read("events", EVENT_COLUMNS), entities, logs_info(logs).behaviour_kinds)


def load_incidence(logs: Artifact, numeric_bins: int, before_us: int) -> sparse.csr_matrix:
    """Who had met what before a time, a binary [M, N] matrix."""
    entities, past = load_entities(logs, numeric_bins), load_behaviour(logs, numeric_bins).before(before_us)
    return incidence(past.user_row_E, past.item_row_E, (len(entities.users) + 1, len(entities.items) + 1))


def feature_spec(entities: Entities, config: Config, has_conversion: bool) -> FeatureSpec:
    """Widths and sizes of a sample row under `config`."""
    users = config.codes.user
    return FeatureSpec(
        num_users=len(entities.users),
        num_items=len(entities.items),
        history_length=config.samples.history_length,
        group_history_length=config.groups.sequence_length,
        attributes=tuple(coding.name for coding in entities.attributes),
        attribute_sizes=tuple(coding.size for coding in entities.attributes),
        user_stats=USER_STATS,
        cross_stats=CROSS_STATS,
        match_stats=MATCH_STATS,
        item_stats=ITEM_STATS,
        collaborative_stats=config.collaborative.scores,
        peer_stats=PEER_STATS if config.peers.form != "none" else (),
        code_sizes=(users.codebook_size,) * users.num_stages,
        has_conversion=has_conversion,
    )


def load_clusters(item_codes: Artifact, entities: Entities, depth: int) -> npt.NDArray[np.int64]:
    """The cluster of each item by its row, from 1; 0 for items without codes."""
    codes = item_codes.read("codes")
    codes_NS = entities.items.by_code(codes.column("item_id"), codes.column("codes"), missing=-1)
    clusters_N: npt.NDArray[np.int64] = np.where(codes_NS[:, 0] >= 0, clusters(codes_NS, depth), 0)
    return clusters_N


def load_match_state(logs: Artifact, item_codes: Artifact, config: Config) -> MatchState:
    """The state of match statistics; build it once per process."""
    entities = load_entities(logs, config.samples.numeric_bins)
    return MatchState.build(entities, load_behaviour(logs, config.samples.numeric_bins), load_clusters(item_codes, entities, config.samples.cluster_depth))


def load_own_state(logs: Artifact, collaborative: Artifact, config: Config) -> OwnState:
    """The state of own features: a few seconds and a few times the events' size in memory; build it once per process."""
    info = logs_info(logs)
    entities = load_entities(logs, config.samples.numeric_bins)
    behaviour = load_behaviour(logs, config.samples.numeric_bins)
    scores = config.collaborative.scores
    index = CollaborativeIndex.build(collaborative.read("collaborative"), entities, behaviour, config.collaborative) if scores else None
    return OwnState.build(entities, behaviour, config.samples, to_us(info.start), index)


@lru_cache(maxsize=1)
def _first_meetings(logs: Artifact, item_codes: Artifact, numeric_bins: int, cluster_depth: int) -> FirstMeetings:
    """Kept, since a process that makes many variants of what is lent asks for the same."""
    entities = load_entities(logs, numeric_bins)
    return FirstMeetings.build(load_behaviour(logs, numeric_bins), entities, load_clusters(item_codes, entities, cluster_depth))


@lru_cache(maxsize=1)
def load_activity(logs: Artifact, numeric_bins: int) -> ActivityIndex:
    """What every user has done by any time; kept likewise."""
    return ActivityIndex.build(load_behaviour(logs, numeric_bins))


def load_peer_lifts(logs: Artifact, peers: Artifact, item_codes: Artifact, config: Config) -> PeerLifts:
    """The state of what peers lend; build it once per process. There must be peers."""
    entities = load_entities(logs, config.samples.numeric_bins)
    cluster_N = load_clusters(item_codes, entities, config.samples.cluster_depth)
    firsts = _first_meetings(logs, item_codes, config.samples.numeric_bins, config.samples.cluster_depth)
    index = PeerIndex.build(peers.read("peers"), entities, firsts, config.peers)
    return PeerLifts(entities, cluster_N, index, config.samples, to_us(logs_info(logs).start))


def load_lent_state(logs: Artifact, user_codes: Artifact, groups: Artifact, lifts: PeerLifts | None, config: Config) -> LentState:
    """The state of lent features; build it once per process. Without `lifts`, what groups lend alone."""
    entities, users = load_entities(logs, config.samples.numeric_bins), config.codes.user
    user_groups = UserGroups.build(user_codes.read("codes"), groups.read("groups"), entities, (users.codebook_size,) * users.num_stages, config.groups)
    return LentState(entities, user_groups, lifts)


def load_feature_state(
    logs: Artifact, user_codes: Artifact, groups: Artifact, peers: Artifact, item_codes: Artifact, collaborative: Artifact, config: Config
) -> FeatureState:
    """The state of one run, own and lent."""
    own, matches = load_own_state(logs, collaborative, config), load_match_state(logs, item_codes, config)
    lifts = load_peer_lifts(logs, peers, item_codes, config) if config.peers.form != "none" else None
    lent = load_lent_state(logs, user_codes, groups, lifts, config)
    return FeatureState(feature_spec(own.entities, config, logs_info(logs).has_conversion), own, matches, lent)
