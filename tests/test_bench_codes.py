"""The benches of codes on a few rows."""

import argparse

import pytest

from bench import codes_encode, codes_fit
from bench.vectors import planted
from longtail.codes import CodebookSettings, encode, fit_here

SIZES = {"dim": 16, "stages": 2, "codebook_size": 8, "rounds": 1, "threads": 1}


def test_codes_fit() -> None:
    line = codes_fit.bench(argparse.Namespace(**SIZES, rows=600, iterations=3, part_rows=300, shard_rows=300, stage=False))
    assert line.keys() == {"bench", "work", "ours_s", "peers", "ratio", "spread", "threads", "quality"}
    assert line["peers"].keys() == {"faiss.Kmeans"}
    assert line["quality"]["bit_equal_for_1_2_4_shards"] is True
    assert 0 < line["quality"]["mse"]["ours"] < 1


def test_codes_encode() -> None:
    line = codes_encode.bench(argparse.Namespace(**SIZES, rows=600, fit_rows=300, stage_rows=0))
    assert line["peers"].keys() == {"faiss.IndexFlatL2", "bare_int8_products", "bare_bfloat16_products"}
    assert line["quality"]["beside_float32"]["rows_that_differ"] == line["quality"]["beside_float32"]["of_these_nearer_or_as_near"]


def test_a_farther_code_is_a_failure() -> None:
    vectors = planted(300, 16)
    codebook = fit_here(vectors, CodebookSettings(num_stages=2, codebook_size=8, iterations=2), 0).codebook_SKD
    codes = encode(vectors, codebook)
    assert codes_encode.compared(vectors, codebook, codes, codes)["rows_that_differ"] == 0
    wrong = codes.copy()
    wrong[7, 0] = (wrong[7, 0] + 1) % 8
    with pytest.raises(AssertionError, match="1 of 1 rows that differ have a farther centroid"):
        codes_encode.compared(vectors, codebook, wrong, codes)
