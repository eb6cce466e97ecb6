"""From a run's artifacts to the objects that features are computed from; samples and serving load the same."""

from longtail.artifacts import Artifact
from longtail.behaviour import Behaviour
from longtail.config import Config
from longtail.entities import Entities
from longtail.features import CROSS_STATS, ITEM_STATS, USER_STATS, FeatureState, UserGroups
from longtail.logs import LogsInfo
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
        code_sizes=(users.codebook_size,) * users.num_stages,
        has_conversion=has_conversion,
    )


def load_feature_state(logs: Artifact, user_codes: Artifact, groups: Artifact, config: Config) -> FeatureState:
    """The state of one run: a few seconds and a few times the events' size in memory; build it once per process."""
    info = logs_info(logs)
    entities = load_entities(logs, config.samples.numeric_bins)
    spec = feature_spec(entities, config, info.has_conversion)
    return FeatureState.build(
        entities,
        load_behaviour(logs, entities),
        UserGroups.build(user_codes.read("codes"), groups.read("groups"), entities, spec.code_sizes, config.groups),
        spec,
        config.samples,
        to_us(info.start),
    )
