"""Shells around the feature states: each is built once per actor, then asked for parts of the examples."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from actors import metrics
from longtail.artifacts import Artifact
from longtail.config import Config
from longtail.feature_state import lent_rows, lift_rows, match_rows
from longtail.features import EXAMPLE_COLUMNS
from longtail.run_state import load_lent_state, load_match_state, load_peer_lifts
from longtail.sample_shares import SampleShares


class OwnFeatureActor:
    """Makes the samples in shares of the users: longtail.sample_shares has the steps, in their order."""

    def __init__(self, inputs: Mapping[str, Artifact], config: Config, folder: str, num_shares: int) -> None:
        self.shares = SampleShares(inputs["logs"], inputs["collaborative"], config, folder, num_shares)

    def deal(self, number: int, source: str, group: int | None) -> None:
        """Step 1, of one row group of the events, or of one part of the examples."""
        self.shares.deal(number, source, group)

    def sort_share(self, share: int) -> None:
        """Step 2, of one share."""
        self.shares.sort_share(share)

    def totals(self) -> list[float]:
        """Step 3."""
        return self.shares.totals()

    def make_rows(self, share: int, price_before: float) -> None:
        """Step 4, of one share."""
        self.shares.make_rows(share, price_before)

    def write_part(self, number: int, source: str, target: str) -> dict[str, int]:
        """Step 5, of one part; returns its rows by split."""
        by_split = self.shares.write_part(number, source, target)
        for split, rows in by_split.items():
            metrics.SAMPLES.add(rows, split=split)
        return by_split


class MatchActor:
    """Computes what users did with the clusters of whole parts' items."""

    def __init__(self, inputs: Mapping[str, Artifact], config: Config) -> None:
        self.fs = inputs["logs"].fs
        self.state = load_match_state(inputs["logs"], inputs["item_codes"], config)

    def write_part(self, source: str, target: str) -> int:
        """Match statistics of the samples of one part, row by row; returns the rows."""
        matches = match_rows(self.state, pq.read_table(source, columns=list(EXAMPLE_COLUMNS), filesystem=self.fs))
        pq.write_table(matches, target, filesystem=self.fs, compression="zstd")
        return len(matches)


class LiftActor:
    """Computes what peers lend to the sample rows of whole parts."""

    def __init__(self, inputs: Mapping[str, Artifact], config: Config) -> None:
        self.fs = inputs["logs"].fs
        self.state = load_peer_lifts(inputs["logs"], inputs["peers"], inputs["item_codes"], config)

    def write_parts(self, parts: Sequence[tuple[str, str]]) -> int:
        """What peers lend to the samples of each part (source, target), row by row; returns the rows.

        Several parts at once: what a user's peers have met is gathered once for all rows of that user.
        """
        keys = [pq.read_table(source, columns=list(EXAMPLE_COLUMNS), filesystem=self.fs) for source, _ in parts]
        lifts, start = lift_rows(self.state, pa.concat_tables(keys)), 0
        for rows, (_, target) in zip(keys, parts, strict=True):
            pq.write_table(lifts.slice(start, len(rows)), target, filesystem=self.fs, compression="zstd")
            start += len(rows)
        return len(lifts)


class LentFeatureActor:
    """Computes what groups lend to the sample rows of whole parts, and writes what peers lend beside it."""

    def __init__(self, inputs: Mapping[str, Artifact], config: Config) -> None:
        self.fs = inputs["logs"].fs
        self.has_peers = config.peers.form != "none"
        self.state = load_lent_state(inputs["logs"], inputs["user_codes"], inputs["groups"], None, config)

    def write_part(self, source: str, lifts: str, target: str) -> int:
        """What is lent to the samples of one part, row by row; returns the rows."""
        rows = pq.read_table(source, columns=list(EXAMPLE_COLUMNS), filesystem=self.fs)
        peer_stats = pq.read_table(lifts, filesystem=self.fs).column("peer_stats") if self.has_peers else None
        pq.write_table(lent_rows(self.state, rows, peer_stats), target, filesystem=self.fs, compression="zstd")
        return len(rows)
