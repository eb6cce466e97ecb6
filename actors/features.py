"""Shells around the feature states: each is built once per actor, then asked for one part of the examples after the other."""

from collections import Counter
from collections.abc import Mapping

import pyarrow.parquet as pq

from longtail.artifacts import Artifact
from longtail.config import Config
from longtail.feature_state import lent_rows, own_rows
from longtail.features import EXAMPLE_COLUMNS
from longtail.run_state import load_lent_state, load_own_state


class OwnFeatureActor:
    """Computes the sample rows of whole parts of the examples."""

    def __init__(self, inputs: Mapping[str, Artifact], config: Config) -> None:
        self.fs = inputs["logs"].fs
        self.state = load_own_state(inputs["logs"], inputs["item_codes"], inputs["collaborative"], config)

    def write_part(self, source: str, target: str) -> dict[str, int]:
        """Samples of the examples in `source`, written to `target`; returns the rows by split."""
        samples = own_rows(self.state, pq.read_table(source, filesystem=self.fs))
        pq.write_table(samples, target, filesystem=self.fs, compression="zstd")
        return dict(Counter(samples.column("split").to_pylist()))


class LentFeatureActor:
    """Computes what groups and peers lend to the sample rows of whole parts."""

    def __init__(self, inputs: Mapping[str, Artifact], config: Config) -> None:
        self.fs = inputs["logs"].fs
        self.state = load_lent_state(inputs["logs"], inputs["user_codes"], inputs["groups"], inputs["peers"], inputs["item_codes"], config)

    def write_part(self, source: str, target: str) -> int:
        """What is lent to the samples in `source`, row by row, written to `target`; returns the rows."""
        lent = lent_rows(self.state, pq.read_table(source, columns=list(EXAMPLE_COLUMNS), filesystem=self.fs))
        pq.write_table(lent, target, filesystem=self.fs, compression="zstd")
        return len(lent)
