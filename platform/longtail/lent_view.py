"""What a user has and what is lent to them: attributes and sequences side by side, as a reader looks at them.

Reads logs, user codes and groups row by row; writes nothing. What rankers see is computed by longtail.features and longtail.lent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from longtail.artifacts import Artifact
from longtail.entities import AttributeCoding, Entities
from longtail.group_tree import Prefix
from longtail.run_state import logs_info
from longtail.schema import ITEMS
from longtail.snapshots import as_of_us, of_snapshot
from longtail.table_rows import table


@dataclass(frozen=True)
class GroupRow:
    """A row of the table `groups`, at the last snapshot."""

    prefix: Prefix
    size: int
    attributes: tuple[int, ...]  # majority codes, 0 unknown
    support: tuple[float, ...]
    sequence: tuple[str, ...]  # item ids
    weights: tuple[float, ...]


@dataclass(frozen=True)
class AttributeView:
    """One attribute of a user, and what the group lends."""

    name: str
    own: str | None  # None: unknown
    lent: str | None  # None: no member knows either
    support: float  # share of the members with a value that agree
    lender: Prefix | None


@dataclass(frozen=True)
class GroupTable:
    """The groups of the last snapshot, by prefix, and how their attributes are coded."""

    rows: Mapping[Prefix, GroupRow]
    codings: tuple[AttributeCoding, ...]
    min_size: int

    def path(self, codes: Sequence[int]) -> list[tuple[Prefix, GroupRow | None, bool]]:
        """Every prefix of a user's codes from the root on, its group, and whether it is the one that lends."""
        prefixes = [tuple(codes[:depth]) for depth in range(len(codes) + 1)]
        enough = [prefix for prefix in prefixes if prefix in self.rows and (not prefix or self.rows[prefix].size >= self.min_size)]
        lender = enough[-1] if enough else None
        return [(prefix, self.rows.get(prefix), prefix == lender) for prefix in prefixes]

    def attributes(self, codes: Sequence[int], own: Mapping[str, object]) -> list[AttributeView]:
        """A user's attributes beside those of the lending group, or of the nearest group above it where too few members have a value."""
        lender = next((prefix for prefix, _, lends in self.path(codes) if lends), None)
        views = []
        for column, coding in enumerate(self.codings):
            value = own.get(coding.name)
            code = int(coding.encode(pa.array([value]))[0]) if value is not None else 0
            at = lender
            while at and self.rows[at].attributes[column] == 0:
                at = at[:-1]
            row = self.rows.get(at) if at is not None else None
            lent = row.attributes[column] if row is not None else 0
            views.append(
                AttributeView(
                    name=coding.name,
                    own=str(value) if code else None,
                    lent=coding.label(lent) if lent else None,
                    support=row.support[column] if row is not None and lent else 0.0,
                    lender=at if lent else None,
                )
            )
        return views


@lru_cache(maxsize=2)
def load_group_table(logs: Artifact, groups: Artifact, numeric_bins: int, min_size: int) -> GroupTable:
    """The groups of the last snapshot."""
    info = logs_info(logs)
    columns = ["user_id", *info.categorical_attributes, *info.numeric_attributes]
    users = table(logs, "users").to_table(columns=columns)
    codings = Entities.build(users, ITEMS.empty_table(), info, numeric_bins).attributes
    found = groups.read("groups")
    last = of_snapshot(found, int(as_of_us(found).max())) if len(found) else found
    rows = [
        GroupRow(tuple(row["prefix"]), row["size"], tuple(row["attributes"]), tuple(row["support"]), tuple(row["sequence"]), tuple(row["sequence_weight"]))
        for row in last.drop_columns(["as_of", "stats"]).to_pylist()
    ]
    return GroupTable({row.prefix: row for row in rows}, codings, min_size)


def last_events(logs: Artifact, user_id: str, count: int) -> pa.Table:
    """A user's last behaviour events before the end of the logs, the latest first."""
    info = logs_info(logs)
    wanted = (pc.field("user_id") == user_id) & pc.field("kind").isin(list(info.behaviour_kinds))
    events = table(logs, "events").to_table(columns=["ts", "kind", "item_id"], filter=wanted)
    return events.take(pc.select_k_unstable(events, count, sort_keys=[("ts", "descending")])) if len(events) else events
