"""Alignment drift: read from a checkpoint, it is what the loaded ranker adds to an item's vector."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longtail.alignment_drift import load_alignment_drift
from longtail.checkpoint import save_ranker
from tests import small_run


def test_drift_is_what_the_ranker_adds(tmp_path: Path) -> None:
    ranker = small_run.rankers(small_run.config("unused"))["saviorrec"]
    save_ranker(tmp_path, ranker)
    drift = load_alignment_drift(tmp_path)
    assert drift is not None
    catalogue = ranker.catalogue
    rows = torch.arange(1, len(catalogue.codes_NS))
    added = (ranker.semantics.aligned(catalogue, rows) - catalogue.vector_ND[rows]).detach().numpy()  # type: ignore[operator, union-attr]
    for row, moved in zip(rows.tolist(), added, strict=True):
        codes = (catalogue.codes_NS[row] - 1).tolist()
        assert drift.of(codes) == pytest.approx(moved, abs=1e-6)
    by_code = drift.by_code((2, 1))
    assert [(one.stage, one.code, one.num_codes) for one in by_code] == [(0, 2, 4), (1, 1, 4)]
    for one, norms in zip(by_code, drift.norms(), strict=True):
        assert one.norm == norms[one.code]
        assert one.rank == 1 + int((norms > one.norm).sum())
    assert np.linalg.norm(added) > 0


def test_a_ranker_without_alignment_has_none(tmp_path: Path) -> None:
    save_ranker(tmp_path, small_run.rankers(small_run.config("unused"))["base"])
    assert load_alignment_drift(tmp_path) is None
