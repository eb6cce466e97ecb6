"""A shell around the feature state: built once per actor, then asked for one part of the examples after the other."""

import pyarrow.parquet as pq

from longtail.artifacts import Artifact
from longtail.config import Config
from longtail.features import FeatureState, sample_rows
from longtail.run_state import load_feature_state


class FeatureActor:
    """Computes the sample rows of whole parts."""

    def __init__(self, logs: Artifact, user_codes: Artifact, groups: Artifact, peers: Artifact, item_codes: Artifact, config: Config) -> None:
        self.logs = logs
        self.state: FeatureState = load_feature_state(logs, user_codes, groups, peers, item_codes, config)

    def spec(self) -> dict[str, object]:
        """The FeatureSpec as JSON."""
        return self.state.spec.model_dump(mode="json")

    def write_part(self, source: str, target: str) -> dict[str, int]:
        """Samples of the examples in `source`, written to `target`; returns the rows by split."""
        samples = sample_rows(self.state, pq.read_table(source, filesystem=self.logs.fs))
        pq.write_table(samples, target, filesystem=self.logs.fs, compression="zstd")
        counts: dict[str, int] = {}
        for entry in samples.column("split").value_counts().to_pylist():
            counts[entry["values"]] = entry["counts"]
        return counts
