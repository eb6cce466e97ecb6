"""Validation between epochs: metrics of every head on the validation split, shared among the workers, the same on each of them.

Letters: N rows of the split, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from longtail.evaluation import EvaluateSettings
from longtail.metrics import auc, gauc, log_loss
from longtail.rankers.batch import Batch
from longtail.rankers.heads import head_labels
from longtail.rankers.ranker import Ranker, predict_rows
from longtail.sample_files import ALONE, SLICE_COLUMNS, SampleFiles, Workers

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Validation:
    """Metrics of a ranker on the validation split; one worker scores its contiguous share of each file."""

    files: SampleFiles
    settings: EvaluateSettings
    workers: Workers = ALONE
    device: torch.device | str = "cpu"

    def __call__(self, ranker: Ranker) -> dict[str, float]:
        """`<head>/<metric>` for every head, and the bare metric names for the primary head.

        auc, gauc, log_loss; gauc_low: of the users with the fewest purchases before their first row; auc_cold: on items with few events; positives, rows.
        ChoirRec adds the means of its two gates. A metric without a value (one class only, no rows) is nan.
        """
        return self.measure(self.scored(ranker), ranker.heads)

    def scored(self, ranker: Ranker) -> dict[str, Array]:
        """What is measured of each row of the split: its user, label, probability and logit by head, slices, gates; all workers' rows on each of them."""
        parts = [part for index, rows in enumerate(self.files.labelled["validation"]) if rows for part in [self._score(ranker, index)]]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
        if self.workers.size > 1 and columns:
            gathered: list[Any] = [None] * self.workers.size
            dist.all_gather_object(gathered, columns)
            columns = {name: np.concatenate([part[name] for part in gathered]) for name in columns}
        return columns

    def measure(self, columns: dict[str, Array], heads: Sequence[str]) -> dict[str, float]:
        """Metrics of scored rows."""
        if not columns:
            return {"validation_rows": 0}
        low_N = self._low_activity(columns["user"], columns["num_purchases"])
        metrics: dict[str, float] = {"validation_rows": len(low_N)}
        for place, head in enumerate(heads):
            known = columns["known"][:, place]
            label, score, user = columns["label"][known, place], columns["probability"][known, place], columns["user"][known]
            low, cold = low_N[known], columns["item_events"][known] < self.settings.cold_item_events
            found: dict[str, float] = {
                "auc": auc(label, score),
                "gauc": gauc(label, score, user),
                "log_loss": log_loss(label, score),
                "gauc_low": gauc(label[low], score[low], user[low]),
                "auc_cold": auc(label[cold], score[cold]),
                "positives": int(label.sum()),
                "rows": len(label),
            }
            metrics |= {f"{head}/{name}": value for name, value in found.items()}
            if place == 0:
                metrics |= {name: value for name, value in found.items() if name not in ("positives", "rows")}
        metrics |= {name: float(columns[name].mean()) for name in ("alpha_fusion", "alpha_distill") if name in columns}
        return metrics

    def _low_activity(self, user_N: Array, purchases_N: Array) -> npt.NDArray[np.bool_]:
        """Rows of the users with the fewest purchases before their first row here."""
        _, number_N = np.unique(user_N, return_inverse=True)
        fewest_U = np.full(number_N.max(initial=-1) + 1, np.iinfo(np.int64).max)
        np.minimum.at(fewest_U, number_N, purchases_N.astype(np.int64))
        if len(fewest_U) == 0:
            return np.zeros(0, dtype=np.bool_)
        low: npt.NDArray[np.bool_] = fewest_U[number_N] <= np.quantile(fewest_U, self.settings.low_activity_frac, method="lower")
        return low

    def _score(self, ranker: Ranker, index: int) -> dict[str, Array]:
        table = self.files.load(index, "validation", SLICE_COLUMNS)
        start, end = self.workers.share(len(table))
        table = table.slice(start, end - start)
        batch = Batch.from_table(table, self.files.spec)
        output = predict_rows(ranker, batch.to(self.device))
        label, known = head_labels(batch, ranker.heads)
        columns = {
            "user": batch.user_row_B.numpy(),
            "probability": output.probabilities_BH.numpy(),
            "logit": output.logits_BH.numpy(),
            "label": label.numpy().astype(np.int64),
            "known": known.numpy(),
            "num_purchases": table.column("num_purchases").to_numpy(),
            "item_events": table.column("item_events").to_numpy(),
        }
        gates = {"alpha_fusion": output.alpha_fusion_B, "alpha_distill": output.alpha_distill_B}
        return columns | {name: value.numpy() for name, value in gates.items() if value is not None}
