"""An actor that holds one ranker and scores sample files, one at a time: a file read again gives the same part, so a restart costs nothing but time."""

import tempfile
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from longtail.artifacts import Artifact
from longtail.checkpoint import load_ranker
from longtail.samples import FeatureSpec
from longtail.scoring import columns, predict


class Scorer:
    """One ranker, loaded once from its checkpoint."""

    def __init__(self, checkpoint: Artifact, samples: Artifact, batch_size: int) -> None:
        self.name = checkpoint.stage
        self.samples = samples
        self.batch_size = batch_size
        self.spec = FeatureSpec.model_validate(samples.info["spec"])
        with tempfile.TemporaryDirectory(prefix="longtail-") as folder:  # empty unless the store is remote
            ranker = load_ranker(checkpoint.local_path("checkpoint", Path(folder)))
        self.ranker = ranker.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def score(self, source: str, target: str, split: str) -> tuple[int, int]:
        """Write the predictions for `split`'s rows of the sample file `source` to `target`; returns those rows, and how many have a prediction."""
        rows = pq.read_table(source, columns=columns(self.spec), filesystem=self.samples.fs, filters=[("split", "=", split)])
        if len(rows) == 0:
            return 0, 0
        predictions = predict(self.ranker, self.name, rows, self.spec, self.batch_size)
        pq.write_table(predictions, target, filesystem=self.samples.fs, compression="zstd")
        return len(rows), pc.count_distinct(predictions.column("example_id")).as_py()
