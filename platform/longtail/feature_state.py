"""The features of one run, own and lent: what serving holds in memory, and what training samples are written from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
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

    def columns(self, rows: Rows, attributes_OA: npt.NDArray[np.int32] | None = None, codes: list[tuple[int, ...] | None] | None = None) -> Columns:
        """Feature columns of `rows`.

        Args:
            rows: what is asked for.
            attributes_OA: attribute codes that a request states of the rows' owners, over what the run knows of them.
            codes: group codes found for owners whom the run does not know, None where there are none.
        """
        known_OA = self.entities.attribute_codes_MA[rows.owners[0]]
        own_OA = known_OA if attributes_OA is None else np.where(attributes_OA > 0, attributes_OA, known_OA)
        return {**self.own.columns(rows, own_OA), **self.matches.columns(rows), **self.lent.columns(rows, own_OA, codes)}

    def features(self, rows: Rows, attributes_OA: npt.NDArray[np.int32] | None = None, codes: list[tuple[int, ...] | None] | None = None) -> pa.Table:
        """`columns` as the table that the stages of samples, matches and lent write."""
        return written(self.columns(rows, attributes_OA, codes), len(rows))


def own_rows(own: OwnState, examples: pa.Table) -> pa.Table:
    """The rows of the samples table: example columns followed by own features."""
    rows = Rows.of(examples, own.entities)
    columns = own.columns(rows, own.entities.attribute_codes_MA[rows.user_row_B])
    return written({name: examples.column(name) for name in EXAMPLE_COLUMNS} | columns, len(rows))


def match_rows(matches: MatchState, examples: pa.Table) -> pa.Table:
    """The rows of the matches table, in the examples' order."""
    return written(matches.columns(Rows.of(examples, matches.entities)), len(examples))


def lent_rows(lent: LentState, examples: pa.Table, peer_stats: pa.Array | None = None) -> pa.Table:
    """The rows of the lent table, in the examples' order; what peers lend is worked out here, or given."""
    rows = Rows.of(examples, lent.entities)
    columns = lent.columns(rows, lent.entities.attribute_codes_MA[rows.user_row_B])
    return written(columns if peer_stats is None else columns | {"peer_stats": peer_stats}, len(rows))


def lift_rows(lifts: PeerLifts, examples: pa.Table) -> pa.Table:
    """What peers lend to the examples, in their order: the column peer_stats."""
    return written({"peer_stats": lifts.of(Rows.of(examples, lifts.entities))}, len(examples))
