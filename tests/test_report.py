"""The report page and the text table: what they say is what the metrics say, and the page needs nothing but itself."""

import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from longtail import report_plots as plots
from longtail.code_use import CodeUse
from longtail.evaluation import EvaluateSettings, Metrics, evaluate
from longtail.logs import LogsInfo
from longtail.paired import Interval
from longtail.report import Hits, Report, StageRecord, page, text_table
from tests.simulated_predictions import simulate

RANKERS = ("base", "choirrec", "saviorrec")
EXPOSURE = "sampled: negatives drawn from the positives' own item distribution, per split; none of them is an impression"


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return evaluate(simulate(), EvaluateSettings(bootstrap_rounds=40), seed=7, rankers=RANKERS)


def report_of(metrics: Metrics, run: str = "simulated") -> Report:
    logs = LogsInfo(
        source="synthetic",
        start=datetime(2024, 1, 1, tzinfo=UTC),
        history_end=datetime(2024, 7, 1, tzinfo=UTC),
        validation_start=datetime(2024, 9, 20, tzinfo=UTC),
        train_end=datetime(2024, 10, 10, tzinfo=UTC),
        end=datetime(2024, 12, 31, tzinfo=UTC),
        categorical_attributes=("age",),
        numeric_attributes=(),
        has_conversion=False,
        behaviour_kinds=("purchase",),
        exposure=EXPOSURE,
        num_users=120,
        num_items=150,
        num_events=12_345,
        num_examples={"train": 9000, "validation": 2000, "test": 4000},
    )
    logs_stage = StageRecord("logs", "aa11", 7, "abc123", 12_345, 12_300, {"no such item": 45}, 3.2, {})
    return Report(
        run=run,
        date="2026-01-01",
        commit="abc123",
        seed=7,
        logs=logs,
        metrics=metrics,
        stages=[logs_stage, StageRecord("profiles", "bb22", 7, "abc123", 120, 120, {}, 41.0, {"logs": "aa11"})],
        profile_outcomes={"llm": 81, "fallback:invented": 30, "fallback:no facts": 9},
        group_sizes={0: [120], 1: [40, 30, 20, 15, 8, 4, 2, 1], 2: [9] * 5 + [5] * 10 + [2] * 10 + [1] * 5},
        codes={
            "users": CodeUse([[40, 30, 20, 15, 8, 4, 2, 1], [20, 20, 20, 15, 15, 10, 10, 10]], [5.6, 7.7], 0.8),
            "items": CodeUse([list(range(1, 17)), [9] * 15 + [0], [10] * 16], [13.1, 15.0, 16.0], 0.2),
        },
        hits=Hits(
            30,
            [
                ("all pairs", 512, {"trained": 0.31, "frozen": 0.22, "popularity": 0.1}),
                ("partner not seen in training", 0, {"trained": None, "frozen": None, "popularity": None}),
            ],
        ),
        training={"validation AUC": {ranker: [(1, 0.6), (2, 0.64 + 0.01 * place)] for place, ranker in enumerate(RANKERS)}},
    )


class Outline(HTMLParser):
    """Tags in order, and anything that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.targets: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.fetched += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "srcset", "data", "xlink:href")]
        if tag in ("link", "script", "iframe", "object", "embed", "img", "base"):
            self.fetched.append(tag)
        if tag == "a":
            self.targets.add(str(given["href"]))
        if given.get("id"):
            self.ids.add(f"#{given['id']}")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(metrics: Metrics) -> None:
    html = page(report_of(metrics))
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert outline.fetched == []
    assert "url(" not in html
    assert "@import" not in html
    assert outline.targets <= outline.ids
    figures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(figures) >= 12
    for svg in figures:
        ElementTree.fromstring(svg)  # well-formed XML
        assert "nan" not in svg.lower()
        assert "inf" not in re.sub(r"<(title|text).*?</\1>", "", svg).lower()


def test_the_page_says_what_was_measured_and_how_negatives_came_to_be(metrics: Metrics) -> None:
    html = page(report_of(metrics))
    for one in metrics.heads[0].slices:
        if one.family == "main":
            assert f"{one.scores['choirrec'].auc:.4f}" in html
    assert html.count("positives&#x27; own item distribution") >= 2  # in the header and among the caveats
    assert "One seed" in html
    assert "fallback:invented" in html
    assert "Hit@30" in html
    assert "45 no such item" in html


def test_losses_are_shown_like_wins(metrics: Metrics) -> None:
    [head] = metrics.heads
    losing = Interval(difference=-0.02, low=-0.03, high=-0.01)
    worse = head.slice("warm").model_copy(
        update={"differences": {**head.slice("warm").differences, "choirrec": dict.fromkeys(("auc", "gauc", "log_loss"), losing)}}
    )
    slices = tuple(worse if one.name == "warm" else one for one in head.slices)
    html = page(report_of(metrics.model_copy(update={"heads": (head.model_copy(update={"slices": slices}),)})))
    assert html.count('<span class="lower">\u22122.00&nbsp;▼</span>') >= 3  # on the card, and twice in the table


def test_names_from_outside_are_escaped(metrics: Metrics) -> None:
    html = page(report_of(metrics, run="<script>alert(1)</script> & co"))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_page_without_a_base_or_with_several_heads_stands() -> None:
    settings = EvaluateSettings(bootstrap_rounds=0)
    alone = evaluate(simulate(rows=800), settings, seed=7, rankers=("choirrec",))
    assert "no differences to show" in page(report_of(alone))
    several = evaluate(simulate(rows=800, heads=("outcome", "cvr", "conversion")), settings, seed=7, rankers=RANKERS)
    html = page(report_of(several))
    assert [html.count(f"Head: {head}") for head in ("outcome", "cvr", "conversion")] == [1, 1, 1]


def test_the_text_table_has_the_same_numbers(metrics: Metrics) -> None:
    text = text_table(metrics)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 160
    for name in ("all", "low_activity", "high_activity", "cold", "warm"):
        one = metrics.heads[0].slice(name)
        [line] = [line for line in lines if line.startswith(one.title + " ")]
        numbers = re.findall(r"\d\.\d{4}", line)
        assert numbers == [f"{value:.4f}" for ranker in (*RANKERS, "popularity") for value in (one.scores[ranker].auc, one.scores[ranker].gauc)]
    [low] = [line for line in lines if line.startswith("low-activity users ")]
    assert low.count("+") >= 1


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.0, 1.0), (-3.2, 0.4), (0.6123, 0.6188), (0, 12_345)):
        ticks = plots.Scale(low, high, 0, 100).ticks()
        assert 2 <= len(ticks) <= 7
        assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
        assert len({round(after - before, 9) for before, after in pairwise(ticks)}) == 1


@pytest.mark.browser
def test_the_page_renders_in_a_browser(metrics: Metrics, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    (tmp_path / "report.html").write_text(page(report_of(metrics)), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars", "--window-size=1200,4200"]
    shot = tmp_path / "report.png"
    subprocess.run([chromium, *flags, f"--screenshot={shot}", (tmp_path / "report.html").as_uri()], check=True, timeout=120, capture_output=True)
    from PIL import Image

    with Image.open(shot) as image:
        assert image.size == (1200, 4200)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    for ranker in RANKERS:  # every ranker's own colour is on the page
        assert tuple(int(plots.colour(ranker)[place : place + 2], 16) for place in (1, 3, 5)) in colours
