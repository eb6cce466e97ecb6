"""From a run's artifacts to the objects that features are computed from; samples and serving load the same."""

import numpy as np

from longtail.artifacts import Artifact
from longtail.behaviour import Behaviour
from longtail.config import Config
from longtail.entities import Entities
from longtail.features import CROSS_STATS, ITEM_STATS, USER_STATS, FeatureState, UserGroups
from longtail.logs import LogsInfo
from longtail.peers import PEER_STATS, PeerIndex, clusters
from longtail.samples import FeatureSpec
from longtail.times import to_us

ITEM_COLUMNS = ["item_id", "category", "brand", "price", "first_seen"]  # of the logs' tables: no titles, no pictures
EVENT_COLUMNS = ["user_id", "item_id", "ts", "kind", "price"]


def logs_info(logs: Artifact) -> LogsInfo:
    """What the logs stage told its readers."""
    return LogsInfo.model_validate(logs.info)


def load_entities(logs: Artifact, numeric_bins: int) -> Entities:
    return Entities.build(logs.read("users"), logs.read("items", ITEM_COLUMNS), logs_info(logs), numeric_bins)


def load_behaviour(logs: Artifact, entities: Entities) -> Behaviour:
    return Behaviour.build(logs.read("events", EVENT_COLUMNS), entities, logs_info(logs).behaviour_kinds)


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
        item_stats=ITEM_STATS,
        peer_stats=PEER_STATS if config.peers.form != "none" else (),
        code_sizes=(users.codebook_size,) * users.num_stages,
        has_conversion=has_conversion,
    )


def load_peers(peers: Artifact, item_codes: Artifact, entities: Entities, behaviour: Behaviour, config: Config) -> PeerIndex | None:
    """The peers of one run; None where peers.form is "none"."""
    if config.peers.form == "none":
        return None
    codes = item_codes.read("codes")
    codes_NS = entities.items.by_code(codes.column("item_id"), codes.column("codes"), missing=-1)
    cluster_N = np.where(codes_NS[:, 0] >= 0, clusters(codes_NS, config.peers.cluster_depth), 0)
    return PeerIndex.build(peers.read("peers"), entities, behaviour, cluster_N, config.peers)


def load_feature_state(logs: Artifact, user_codes: Artifact, groups: Artifact, peers: Artifact, item_codes: Artifact, config: Config) -> FeatureState:
    """The state of one run: a few seconds and a few times the events' size in memory; build it once per process."""
    info = logs_info(logs)
    entities = load_entities(logs, config.samples.numeric_bins)
    spec = feature_spec(entities, config, info.has_conversion)
    behaviour = load_behaviour(logs, entities)
    return FeatureState.build(
        entities,
        behaviour,
        UserGroups.build(user_codes.read("codes"), groups.read("groups"), entities, spec.code_sizes, config.groups),
        spec,
        config.samples,
        to_us(info.start),
        load_peers(peers, item_codes, entities, behaviour, config),
    )
