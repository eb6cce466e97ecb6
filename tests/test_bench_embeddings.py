"""The bench of text vectors on a handful of texts: its line, and that other vectors are refused."""

import numpy as np
import pytest

from bench import embeddings, rounds

TEXTS = {"items": ["milk", "bread", "tea", "oat milk"], "profiles": ["Likes tea.", "Likes bread; seldom active."]}


def test_the_line_of_a_small_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "CODEBOOK", embeddings.CODEBOOK.model_copy(update={"codebook_size": 2}))
    line = embeddings.bench(TEXTS, {"items": TEXTS["items"][:2], "profiles": TEXTS["profiles"][:1]}, 1, 1, with_stage=False)
    assert line.keys() == {"bench", "work", "ours_s", "peers", "ratio", "spread", "threads", "quality"}
    assert (line["bench"], line["work"], list(line["peers"])) == ("embeddings", {"items": 2, "profiles": 1}, [embeddings.PEER])
    reach = line["quality"]["reach"]
    assert reach.keys() == embeddings.REACH.keys()
    assert reach["cosine"][2]
    assert reach["int8_cosine"][2]
    assert {"bfloat16_s", "int8_s", "float32_s"} < line["quality"]["whole"].keys()


def test_vectors_of_other_texts_are_refused() -> None:
    ours = {"items": np.eye(3, dtype=np.float32)}
    embeddings.check_equal(ours, ours, 0.9999, rounds.OURS)
    with pytest.raises(embeddings.UnequalError, match=r"ours: the least cosine to the peer's vectors is 0\.000000, below 0\.9999"):
        embeddings.check_equal({"items": np.roll(np.eye(3, dtype=np.float32), 1, axis=0)}, ours, 0.9999, rounds.OURS)
    with pytest.raises(embeddings.UnequalError, match="nan"):
        embeddings.check_equal({"items": np.full((3, 3), np.nan, np.float32)}, ours, 0.9999, rounds.OURS)


def test_texts_are_drawn_once_each() -> None:
    rng = np.random.default_rng(0)
    assert sorted(embeddings.drawn(["a", "b", "a", "c"], 3, rng)) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="4 distinct texts were asked for, the source has 3"):
        embeddings.drawn(["a", "b", "a", "c"], 4, rng)
