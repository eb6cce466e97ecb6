"""The features of one run, own and lent: what training samples are written from, and what is published for serving (longtail.online.tables)."""

from dataclasses import dataclass

import pyarrow as pa

from longtail.entities import Entities
from longtail.features import EXAMPLE_COLUMNS, Columns, OwnState, Rows, written
from longtail.lent import LentState, PeerLifts
from longtail.matches import MatchState
from longtail.samples import FeatureSpec


@dataclass(frozen=True)
class FeatureState:
    """Everything that features are computed from; built once per process from the artifacts of one run."""

    spec: FeatureSpec
    own: OwnState
    matches: MatchState
    lent: LentState

    @property
    def entities(self) -> Entities:
        return self.own.entities

    def columns(self, rows: Rows) -> Columns:
        """Feature columns of `rows`."""
        own_BA = self.entities.attribute_codes_MA[rows.user_row_B]
        return {**self.own.columns(rows, own_BA), **self.matches.columns(rows), **self.lent.columns(rows, own_BA)}


def own_rows(own: OwnState, examples: pa.Table) -> pa.Table:
    """The rows of the samples table: example columns followed by own features."""
    rows = Rows.of(examples, own.entities)
    columns = own.columns(rows, own.entities.attribute_codes_MA[rows.user_row_B])
    return written({name: examples.column(name) for name in EXAMPLE_COLUMNS} | columns)


def match_rows(matches: MatchState, examples: pa.Table) -> pa.Table:
    """The rows of the matches table, in the examples' order."""
    return written(matches.columns(Rows.of(examples, matches.entities)))


def lent_rows(lent: LentState, examples: pa.Table, peer_stats: pa.Array | None = None) -> pa.Table:
    """The rows of the lent table, in the examples' order; what peers lend is worked out here, or given."""
    rows = Rows.of(examples, lent.entities)
    columns = lent.columns(rows, lent.entities.attribute_codes_MA[rows.user_row_B])
    return written(columns if peer_stats is None else columns | {"peer_stats": peer_stats})


def lift_rows(lifts: PeerLifts, examples: pa.Table) -> pa.Table:
    """What peers lend to the examples, in their order: the column peer_stats."""
    return written({"peer_stats": lifts.of(Rows.of(examples, lifts.entities))})
