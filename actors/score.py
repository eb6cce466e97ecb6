"""An actor that scores the samples, one part at a time: a part scored again gives the same part, so a restart costs nothing but time."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray

from longtail.artifacts import Artifact
from longtail.checkpoint import load_ranker
from longtail.rankers.ranker import Ranker
from longtail.sample_files import Part, read_part
from longtail.samples import FeatureSpec
from longtail.scoring import columns, predict


class Scorer:
    """Holds one ranker at a time: parts come ranker by ranker, so that each is loaded once and only one is in memory."""

    def __init__(self, checkpoints: Mapping[str, Artifact], fs: pafs.FileSystem, spec: FeatureSpec, batch_size: int) -> None:
        self.checkpoints = checkpoints
        self.fs = fs
        self.batch_size = batch_size
        self.spec = spec
        # By what Ray gave this actor, not by what it sees: without a GPU of its own it may see the others'.
        self.device = "cuda" if ray.is_initialized() and ray.get_gpu_ids() else "cpu"
        self.name: str | None = None
        self.ranker: Ranker | None = None

    def score(self, name: str, source: Part, target: str, split: str) -> tuple[int, int]:
        """Write ranker `name`'s predictions for `split`'s rows of the part `source` to `target`; returns those rows, and how many have a prediction."""
        rows = read_part(self.fs, source, columns(self.spec))
        rows = rows.filter(pc.equal(rows.column("split"), split))
        if len(rows) == 0:
            return 0, 0
        predictions = predict(self._loaded(name), name, rows, self.spec, self.batch_size)
        pq.write_table(predictions, target, filesystem=self.fs, compression="zstd")
        return len(rows), pc.count_distinct(predictions.column("example_id")).as_py()

    def _loaded(self, name: str) -> Ranker:
        if self.ranker is None or self.name != name:
            self.ranker = None  # let go of the last one before the next takes its memory
            with tempfile.TemporaryDirectory(prefix="longtail-") as folder:  # stays empty unless the store is remote
                self.ranker = load_ranker(self.checkpoints[name].local_path("checkpoint", Path(folder))).to(self.device)
            self.name = name
        return self.ranker
