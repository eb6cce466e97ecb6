"""What work tells Ray: the hooks' values, held against what the work itself returned; outside of Ray nothing is recorded and nothing fails."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ray.util import metrics as ray_metrics

from actors import metrics
from actors.embed import EmbedActor
from actors.profile import OUTCOMES, ProfileActor, Prompt, deterministic_profiles
from longtail import profile_text
from longtail.embeddings import EncoderSettings
from longtail.evaluation import AlphaBin, HeadMetrics, Metrics, Scores, SliceMetrics
from longtail.paired import Interval
from longtail.profile_cache import Answer
from longtail.profiles import ProfilesSettings
from pipelines.evaluate import tell
from tests.test_profile_cache import block as block_of

Told = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Everything that is handed to Ray during a test, still handed on."""
    values: Told = []
    pass_on = ray_metrics.Metric._record

    def record(self: Any, value: float, tags: dict[str, str] | None = None) -> None:
        values.append((self.info["name"], value, dict(tags or {})))
        pass_on(self, value, tags)

    monkeypatch.setattr(ray_metrics.Metric, "_record", record)
    return values


def total(told: Told, name: str, **tags: str) -> float:
    return sum(value for given, value, found in told if given == name and tags.items() <= found.items())


def test_every_metric_is_ours_and_says_what_it_is() -> None:
    defined = metrics.defined()
    assert len(defined) > 15
    for name, metric in defined.items():
        assert name.startswith("longtail_")
        assert metric.meaning
        assert name.endswith("_total") == isinstance(metric, metrics.Count), (
            "a scrape adds _total where it is missing, and the definition shall say what a scrape says"
        )
    assert all(bound > 0 for metric in defined.values() if isinstance(metric, metrics.Spread) for bound in metric.bounds)


def test_a_tag_that_is_not_defined_or_left_out_is_refused(told: Told) -> None:
    with pytest.raises(ValueError, match="outcome"):
        metrics.PROFILES.add(1, source="engine")
    metrics.TRAIN_LOSS.set(float("nan"), run="r", ranker="base")
    metrics.TRAIN_LOSS.set(None, run="r", ranker="base")
    assert not [entry for entry in told if entry[0] == "longtail_train_loss"], "the last value stays where there is none"


@pytest.mark.parametrize(("purchases", "level"), [(0, "0"), (1, "1-3"), (3, "1-3"), (4, "4-10"), (30, "11-30"), (31, "31+"), (5000, "31+")])
def test_activity_levels(purchases: int, level: str) -> None:
    assert metrics.activity_level(purchases) == level


def test_the_reasons_that_start_series_are_those_that_profiles_are_refused_for() -> None:
    tree = ast.parse(Path(profile_text.__file__).read_text())
    raised = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "RefusedError" and isinstance(call.args[0], ast.Constant)
    }
    assert raised == set(profile_text.REASONS)
    assert {outcome.removeprefix("fallback:") for outcome in OUTCOMES if outcome != "llm"} == raised


class Silent:
    """An engine that answers nothing."""

    def __init__(self, settings: ProfilesSettings) -> None:
        del settings

    def answer(self, prompts: list[Prompt]) -> list[Answer]:
        return [Answer("", 10, 3) for _ in prompts]


def test_profiles_count_outcomes_sources_and_tokens(tmp_path: Path, told: Told) -> None:
    settings = ProfilesSettings(generator="deterministic")
    block = block_of(1, 3)
    actor = ProfileActor(settings, str(tmp_path), "engine", [], load=Silent)
    assert {(tags["outcome"], value) for name, value, tags in told if name == "longtail_profiles_total"} == {(outcome, 0) for outcome in OUTCOMES}
    first, again = actor(block), actor(block)
    assert set(first.column("outcome").to_pylist()) == {"fallback:empty"}
    distinct = len(set(first.column("prompt_hash").to_pylist()))
    assert total(told, "longtail_profiles_total", outcome="fallback:empty", source="engine") == len(first)
    assert total(told, "longtail_profiles_total", outcome="fallback:empty", source="cache") == len(again)
    assert total(told, "longtail_profile_tokens_total", kind="prompt") == 10 * distinct
    assert total(told, "longtail_profile_tokens_total", kind="generated") == 3 * distinct
    deterministic_profiles(block)
    assert total(told, "longtail_profiles_total", outcome="deterministic", source="rule") == len(block)


def test_embedded_texts_are_counted(told: Told) -> None:
    class Encoder:
        dim = 2

        def __init__(self, settings: EncoderSettings) -> None:
            del settings

        def encode(self, texts: list[str]) -> np.ndarray:
            return np.ones((len(texts), 2), np.float32)

    EmbedActor(EncoderSettings(), load=Encoder)(pa.table({"text": ["a", "b", "c"]}))  # type: ignore[arg-type]
    assert total(told, "longtail_texts_embedded_total") == 3


def test_an_evaluation_tells_scores_lift_and_gate_and_leaves_bins_out(told: Told) -> None:
    scores = Scores(auc=0.7, gauc=None, gauc_users=0, log_loss=0.5, calibration_ratio=1.0, calibration_error=0.01)
    found = {"duet": {"gauc": Interval(difference=0.02, low=0.01, high=0.03)}}
    main = SliceMetrics(
        name="all", family="main", title="all", rule="all", rows=9, users=3, positives=4, reason=None, scores={"duet": scores}, differences=found
    )
    one_bin = main.model_copy(update={"name": "purchases_3", "family": "activity"})
    head = HeadMetrics(head="outcome", definition="", rankers=("duet",), slices=(main, one_bin), calibration={})
    gate = {"duet": (AlphaBin(title="4\u20139", rows=9, mean=0.25, p10=0.1, p90=0.5),)}
    tell(Metrics(baseline="base", rankers=("duet",), test_users=3, low_activity_max=1, high_activity_min=2, heads=(head,), alpha_fusion=gate), "demo")
    assert {tags["slice"] for name, _, tags in told if name in ("longtail_lift", "longtail_evaluation_score")} == {"all"}
    assert {(tags["bound"], value) for name, value, tags in told if name == "longtail_lift"} == {("difference", 0.02), ("low", 0.01), ("high", 0.03)}
    assert {(tags["metric"], value) for name, value, tags in told if name == "longtail_evaluation_score"} == {
        ("auc", 0.7), ("log_loss", 0.5), ("calibration_error", 0.01)
    }  # fmt: skip
    gates = {(tags["activity"], tags["value"], value) for name, value, tags in told if name == "longtail_alpha_fusion"}
    assert gates == {("4-9", "mean", 0.25), ("4-9", "p10", 0.1), ("4-9", "p90", 0.5)}


def test_tags_of_any_script_are_taken(told: Told) -> None:
    """Ray takes ASCII alone and raises a UnicodeEncodeError otherwise; a run may be called anything."""
    metrics.EPOCH.set(1, run="\u00dcbung", ranker="\u2265 10")
    assert told == [("longtail_train_epoch", 1.0, {"run": "\\xdcbung", "ranker": ">= 10"})]
