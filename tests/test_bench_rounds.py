"""The frame of the benches: turns, ratios round by round, the month's page."""

import json
from pathlib import Path

import pytest

from bench.__main__ import page, reached, read, table
from bench.rounds import OURS, Side, Taken, in_turns, report


def test_sides_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []
    made: list[str] = []
    sides = {name: Side(lambda name=name: order.append(name) or len(order), lambda name=name: made.append(name)) for name in ("a", "b", "c")}
    taken = in_turns(sides, rounds=3, warm_up=1)
    assert [order[start : start + 3] for start in range(0, 12, 3)] == [["c", "a", "b"], ["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]
    assert made == order
    assert all(len(one.seconds) == 3 for one in taken.values())
    assert taken["b"].result == 12
    with pytest.raises(ValueError, match="rounds = 0: must be at least 1"):
        in_turns(sides, rounds=0)


def line(ours: list[float], peer: list[float]) -> dict[str, object]:
    return report("codes_fit", {"rows": 3}, {OURS: Taken(ours), "faiss": Taken(peer)}, threads=2, quality={"reach": {"times_faiss": [3.0, 2.0, False]}})


def test_ratios_are_taken_round_by_round() -> None:
    told = line([1.0, 2.0, 4.0], [2.0, 8.0, 4.0])
    assert told["ours_s"] == 2.0
    assert told["peers"] == {"faiss": 4.0}
    assert told["ratio"] == {"faiss": 2.0}
    assert told["spread"] == {"rounds": 3, "ours_s": [1.0, 4.0], "peers": {"faiss": [2.0, 8.0]}, "ratio": {"faiss": [1.0, 4.0]}}
    with pytest.raises(ValueError, match="argument 2 is"):
        line([1.0], [2.0, 3.0])


def test_a_months_page_keeps_the_lines_that_it_is_made_of(tmp_path: Path) -> None:
    lines = {"serve": {**line([1.0], [2.0]), "bench": "serve"}, "codes_fit": line([1.0], [3.0])}
    path = tmp_path / "202611.md"
    path.write_text(page("202611", lines))
    assert read(path) == json.loads(json.dumps(lines))
    assert read(tmp_path / "202612.md") == {}
    rows = table(read(path).values())
    assert "| codes_fit | 1 s | faiss | 3 s | **3** [3, 3] | 1, 2 |" in rows
    assert path.read_text().index("| codes_fit | 1 s") < path.read_text().index("| serve | 1 s")
    assert reached(lines.values())[-1].endswith("| **missed** |")
