"""Metrics: what running pipelines and applications tell Ray about their work, for Prometheus to scrape (deploy/monitoring).

Reads nothing, writes nothing. A process hands what is new to its node's Ray agent every ten seconds (RAY_metrics_report_interval_ms) and once more when it
ends, killed actors too; Prometheus scrapes the agents, where `longtail_samples_total` is called `ray_longtail_samples_total`. Counts stay with the agent as
long as the node lives. A level is handed over once for each time that it is set and forgotten some 20 seconds later, so that whoever wants it later looks
back (last_over_time). Where no Ray runs values go nowhere, at about a microsecond each. Whoever does the work calls `SAMPLES.add(3, split="train")`.
"""

import math
from dataclasses import dataclass
from typing import Any

from ray.util import metrics

_made: dict[str, Any] = {}  # Ray's own object of each metric that this process has used, by name


@dataclass(frozen=True)
class Metric:
    """A metric's name, what it says, and the tags that tell its series apart."""

    name: str
    meaning: str
    tags: tuple[str, ...] = ()

    def _of_ray(self, kind: Any, **more: Any) -> Any:
        if self.name not in _made:
            _made[self.name] = kind(self.name, description=self.meaning, tag_keys=self.tags, **more)
        return _made[self.name]


def _ascii(tags: dict[str, str]) -> dict[str, str]:
    """Ray takes nothing else: dashes become hyphens, at least becomes >=, the rest is written as its number."""
    plain = str.maketrans({"\u2013": "-", "\u2265": ">="})
    return {name: value.translate(plain).encode("ascii", "backslashreplace").decode() for name, value in tags.items()}


class Count(Metric):
    """What only grows."""

    def add(self, number: float, /, **tags: str) -> None:
        """Add `number`; 0 starts the series, so that its first step is seen as one."""
        self._of_ray(metrics.Counter)._record(number, _ascii(tags))  # inc() refuses 0


class Level(Metric):
    """What goes up and down; the last value stands."""

    def set(self, value: float | None, /, **tags: str) -> None:
        """Set the value; None and what is no finite number leave the last one."""
        if value is not None and math.isfinite(value):
            self._of_ray(metrics.Gauge).set(float(value), _ascii(tags))


@dataclass(frozen=True)
class Spread(Metric):
    """How values are distributed: how many are at most each bound."""

    bounds: tuple[float, ...] = ()

    def observe(self, value: float, /, **tags: str) -> None:
        """Count one value."""
        self._of_ray(metrics.Histogram, boundaries=list(self.bounds)).observe(value, _ascii(tags))


SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)

# Profiles, embeddings
PROFILES = Count(
    "longtail_profiles_total", "Profiles by outcome (llm, deterministic, fallback:<reason>) and by who answered (engine, cache)", ("outcome", "source")
)
PROFILE_TOKENS = Count("longtail_profile_tokens_total", "Tokens of profile engines: prompt, prompt_cached (found in the prefix cache), generated", ("kind",))
ENGINE_SECONDS = Count("longtail_profile_engine_seconds_total", "Time that profile engines spent on answers, without their start")
TEXTS = Count("longtail_texts_embedded_total", "Texts that encoders embedded")

# Codes, samples
CODEBOOK_CODES = Level("longtail_codebook_codes", "Codes of a codebook's stage", ("run", "side", "stage"))
DEAD_CODES = Level("longtail_dead_codes", "Codes of a codebook's stage that no row of the fit has", ("run", "side", "stage"))
SAMPLES = Count("longtail_samples_total", "Sample rows written", ("split",))

# Training, evaluation
TRAINED_ROWS = Count("longtail_trained_rows_total", "Rows that a ranker was trained on, each as often as it was seen", ("run", "ranker"))
TRAIN_LOSS = Level("longtail_train_loss", "Loss of the last optimiser step, by row", ("run", "ranker"))
EPOCH = Level("longtail_train_epoch", "Finished epochs", ("run", "ranker"))
VALIDATION = Level("longtail_validation", "Metrics on the validation window after the last epoch", ("run", "ranker", "metric"))
SCORE = Level("longtail_evaluation_score", "Metrics on the test window by head and slice", ("run", "ranker", "head", "slice", "metric"))
LIFT = Level(
    "longtail_lift",
    "Paired difference from the base on the test window (bound: difference, or low and high of its 95 % interval)",
    ("run", "ranker", "head", "slice", "metric", "bound"),
)
ALPHA_FUSION = Level(
    "longtail_alpha_fusion", "Weight of the group channel on test rows (value: mean, p10, p90), by the user's purchases", ("run", "ranker", "activity", "value")
)

# Serving
REQUEST_SECONDS = Spread("longtail_request_seconds", "Time of ranking requests: whole (behind HTTP), encode, rank", ("ranker", "part"), SECONDS)
REQUESTS = Count("longtail_requests_total", "Ranked requests by where the user's group came from", ("ranker", "group_basis"))
REFUSALS = Count("longtail_refusals_total", "Requests that the application (not Serve or HAProxy) answered with a problem, by HTTP status", ("status",))
REQUEST_ERRORS = Count("longtail_request_errors_total", "Accepted requests that failed, by exception", ("ranker", "error"))
CANDIDATES = Count("longtail_candidates_total", "Ranked candidates by what they were ranked by (catalogue, content, none)", ("ranker", "basis"))
REQUEST_ITEMS = Spread("longtail_request_items", "Candidates in a request", ("ranker",), (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000))
SERVED_ALPHA = Spread(
    "longtail_served_alpha_fusion",
    "Weight of the group channel in served requests, by the user's purchases",
    ("ranker", "activity"),
    tuple(step / 20 for step in range(1, 20)),
)

ACTIVITY_EDGES = (0, 1, 4, 11, 31)  # lower ends, in purchases: fixed, since levels of two runs shall be comparable


def activity_level(num_purchases: int) -> str:
    """The activity tag of a user with so many purchases: "0", "1-3", … "31+"."""
    place = max(index for index, low in enumerate(ACTIVITY_EDGES) if num_purchases >= low)
    low = ACTIVITY_EDGES[place]
    if place + 1 == len(ACTIVITY_EDGES):
        return f"{low}+"
    high = ACTIVITY_EDGES[place + 1] - 1
    return str(low) if low == high else f"{low}-{high}"


def defined() -> dict[str, Metric]:
    """All of the above by name."""
    return {value.name: value for value in globals().values() if isinstance(value, Metric)}
