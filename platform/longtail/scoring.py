"""Scoring: a loaded ranker's predictions for the sample rows of one split.

Pure functions over Arrow tables (samples in, schema.PREDICTIONS out); actors/score.py maps them over sample files. Letters: B rows, H heads.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longtail import schema
from longtail.rankers.batch import Batch
from longtail.rankers.ranker import Ranker, predict_rows
from longtail.sample_files import LABEL_COLUMNS, feature_columns
from longtail.samples import FeatureSpec

ROW_COLUMNS = ("example_id", "user_id", "item_id", "num_purchases", "item_events", "item_age_days")


def columns(spec: FeatureSpec) -> list[str]:
    """The columns of a samples file that `predict` reads."""
    return [*ROW_COLUMNS, *LABEL_COLUMNS, *feature_columns(spec)]


def predict(ranker: Ranker, name: str, samples: pa.Table, spec: FeatureSpec, batch_size: int) -> pa.Table:
    """One prediction per sample row and head, in schema.PREDICTIONS; a row without the head's label is left out (cvr: rows without an outcome).

    Raises:
        ValueError: a logit is not finite.
    """
    batch = Batch.from_table(samples, spec).to(ranker.catalogue.item_id_N.device)
    output = predict_rows(ranker, batch, batch_size)
    probability_BH, logits_BH = output.probabilities_BH.float().numpy(), output.logits_BH.numpy()
    alpha_B = None if output.alpha_fusion_B is None else output.alpha_fusion_B.float().numpy()
    if not np.isfinite(logits_BH).all():
        bad = int((~np.isfinite(logits_BH)).any(1).sum())
        raise ValueError(f"ranker {name!r}: {bad} of {len(samples)} rows have a logit that is not finite. Lower train.learning_rate and train it again.")
    tables = []
    for place, head in enumerate(output.heads):
        label = label_of(samples, head)
        kept = pc.is_valid(label)
        rows = samples.filter(kept)
        kept_B = kept.to_numpy(zero_copy_only=False)
        tables.append(
            pa.table(
                {
                    "example_id": rows.column("example_id"),
                    "user_id": rows.column("user_id"),
                    "item_id": rows.column("item_id"),
                    "split": rows.column("split"),
                    "ranker": pa.array([name] * len(rows), pa.string()),
                    "head": pa.array([head] * len(rows), pa.string()),
                    "probability": pa.array(probability_BH[kept_B, place]),
                    "label": label.filter(kept),
                    "alpha_fusion": pa.nulls(len(rows), pa.float32()) if alpha_B is None else pa.array(alpha_B[kept_B]),
                    "num_purchases": rows.column("num_purchases"),
                    "item_events": rows.column("item_events"),
                    "item_age_days": pc.fill_null(rows.column("item_age_days"), float("nan")),
                }
            )
        )
    return schema.check(pa.concat_tables(tables), schema.PREDICTIONS, "predictions")


def label_of(samples: pa.Table, head: str) -> pa.Array:
    """The label of each sample row for `head`, null on rows that the head does not speak of.

    Raises:
        ValueError: no such head.
    """
    outcome, conversion = (samples.column(name).combine_chunks() for name in ("outcome", "conversion"))
    if head == "outcome":
        return outcome
    if head == "conversion":
        return conversion
    if head == "cvr":  # conversion given outcome: rows without an outcome are not its business
        return pc.if_else(pc.equal(outcome, 1), conversion, pa.scalar(None, conversion.type))
    raise ValueError(f"head {head!r} has no label: the heads are outcome, cvr and conversion. Train the ranker with rankers.<name>.heads among them.")
