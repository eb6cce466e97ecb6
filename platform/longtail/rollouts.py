"""Rollouts: which release answers whom, what is measured of each, and when a new one is taken back by itself.

Reads and writes nothing: serve_apps keeps the state and asks here. Users are split by a hash, so that one user meets one release for as long as the weight
stands, and those of a smaller weight stay with it when it grows.

Letters: K buckets of a histogram.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from longtail.hashing import stable_uint64
from longtail.settings import Settings

SCORE_EDGES = np.linspace(-12, 6, 37)  # of logits: half a logit a bucket
LATENCY_EDGES_MS = np.geomspace(0.5, 20_000, 48)
MIN_ERRORS = 3  # one alone may be anything
PARTS = 10_000  # that users are split into


class GuardSettings(Settings):
    """When a canary is taken back; each rule looks at what has been seen since its weight was set."""

    min_requests: int = Field(200, ge=1, description="of the canary, before a rule may speak; errors may after a tenth of it")
    max_error_frac: float = Field(0.02, ge=0, le=1, description="of the canary's requests that failed, above the stable release's share")
    max_latency_ratio: float = Field(2.0, gt=0, description="the canary's p95 to the stable release's")
    max_psi: float = Field(0.25, gt=0, description="population stability index of the scores, canary beside stable; 0.1 is little, 0.25 much")


class Rollout(BaseModel):
    """Which release answers whom."""

    stable: str
    canary: str | None = None
    weight: float = Field(0.0, ge=0, le=1)  # share of the users whom the canary answers
    shadow: str | None = None  # ranks the same requests, and nobody sees its answers
    previous: str | None = None  # stable before the last promotion
    configured: str  # what the application was last deployed with, and when
    deployed_us: int
    reason: str = ""  # of the last change

    @property
    def releases(self) -> tuple[str, ...]:
        """All that must be loaded."""
        return tuple(dict.fromkeys(one for one in (self.stable, self.canary, self.shadow) if one is not None))

    def release_of(self, user_id: str) -> str:
        """The release that answers a user."""
        if self.canary is not None and stable_uint64(user_id, seed=0) % PARTS < self.weight * PARTS:
            return self.canary
        return self.stable


class RolloutChange(BaseModel):
    """What an operator asks for."""

    model_config = {"extra": "forbid"}

    action: Literal["canary", "shadow", "promote", "rollback", "stop"] = Field(
        description="canary: `release` answers `weight` of the users | shadow: it ranks unseen | promote: the canary, or `release`, becomes stable | "
        "rollback: take the canary back, or without one the last promotion (`release`: the one that is taken back) | stop: end the shadow"
    )
    release: str | None = Field(None, pattern=r"^[0-9a-z]{1,64}$")
    weight: float | None = Field(None, ge=0, le=1, strict=True)
    reason: str = Field("", max_length=500)


def changed(now: Rollout, change: RolloutChange) -> Rollout:
    """The state after a change; a release that answers is no shadow of itself.

    Raises:
        ValueError: the change lacks something, or there is nothing to change.
    """
    after = _changed(now, change)
    return after.model_copy(update={"shadow": None}) if after.shadow in (after.stable, after.canary) and change.action != "shadow" else after


def _changed(now: Rollout, change: RolloutChange) -> Rollout:
    reason, release = change.reason or f"{change.action} by an operator", change.release
    if change.action in ("canary", "shadow"):
        if release is None:
            raise ValueError(f"{change.action} needs `release`: name one of GET /v1/releases.")
        if release == now.stable:
            raise ValueError(f"release {release} is the stable one already: name another.")
        if change.action == "shadow":
            return now.model_copy(update={"shadow": release, "reason": reason})
        if not change.weight:
            raise ValueError("canary needs `weight`, the share of users above 0: begin with a small one, such as 0.05.")
        return now.model_copy(update={"canary": release, "weight": change.weight, "reason": reason})
    if change.action == "promote":
        wanted = release or now.canary
        if wanted is None:
            raise ValueError("nothing to promote: there is no canary, and no `release` is named.")
        if wanted == now.stable:
            raise ValueError(f"release {wanted} is the stable one already.")
        return now.model_copy(update={"stable": wanted, "canary": None, "weight": 0.0, "previous": now.stable, "reason": reason})
    if change.action == "stop":
        if now.shadow is None:
            raise ValueError("there is no shadow to stop.")
        return now.model_copy(update={"shadow": None, "reason": reason})
    back = now.canary or now.stable
    if release is None:
        raise ValueError(f"rollback needs `release`, which is to be taken back: now it is {back}. A request that comes twice must not take back another.")
    if release != back:
        raise ValueError(f"release {release} is not what would be taken back: that is {back}. Somebody was faster, or the request came twice.")
    if now.canary is not None:
        return now.model_copy(update={"canary": None, "weight": 0.0, "reason": reason})
    if now.previous is None:
        raise ValueError("nothing to roll back: there is no canary, and nothing was promoted.")
    return now.model_copy(update={"stable": now.previous, "previous": None, "reason": reason})  # done twice, it must not bring the bad one back


class ReleaseStats(BaseModel):
    """What was seen of one release; counts, so that replicas' add up."""

    requests: int = 0
    errors: int = 0
    latency_K: list[int] = Field(default_factory=lambda: [0] * (len(LATENCY_EDGES_MS) + 1))
    scores_K: list[int] = Field(default_factory=lambda: [0] * (len(SCORE_EDGES) + 1))  # logits of the first head

    def see(self, milliseconds: float, logits_B: npt.NDArray[np.floating]) -> None:
        """Count an answer."""
        self.requests += 1
        self.latency_K[int(np.searchsorted(LATENCY_EDGES_MS, milliseconds))] += 1
        for bucket, number in enumerate(np.bincount(np.searchsorted(SCORE_EDGES, logits_B), minlength=len(self.scores_K)).tolist()):
            self.scores_K[bucket] += number

    def fail(self) -> None:
        """Count a request that could not be answered."""
        self.requests += 1
        self.errors += 1

    def __add__(self, other: "ReleaseStats") -> "ReleaseStats":
        return ReleaseStats(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            latency_K=[a + b for a, b in zip(self.latency_K, other.latency_K, strict=True)],
            scores_K=[a + b for a, b in zip(self.scores_K, other.scores_K, strict=True)],
        )

    @property
    def error_frac(self) -> float:
        return self.errors / max(self.requests, 1)

    def latency_ms(self, quantile: float) -> float | None:
        """The upper edge of the bucket that holds the quantile; None before the first answer."""
        total = sum(self.latency_K)
        if total == 0:
            return None
        bucket = int(np.searchsorted(np.cumsum(self.latency_K), quantile * total))
        return float(LATENCY_EDGES_MS[min(bucket, len(LATENCY_EDGES_MS) - 1)])


class ShadowStats(BaseModel):
    """How a shadow's answers differ from those that users got."""

    compared: int = 0
    errors: int = 0
    dropped: int = 0  # not compared, since the last ones were still being ranked
    score_difference: float = 0.0  # summed mean absolute differences of probabilities
    same_first: int = 0
    overlap: float = 0.0  # summed shares of the first ten that both have

    def see(self, served: Mapping[str, float], shadow: Mapping[str, float], first: int = 10) -> None:
        """Compare two answers to one request, scores by item, best first."""
        self.compared += 1
        self.score_difference += float(np.mean([abs(shadow[item] - score) for item, score in served.items()])) if served else 0.0
        here, there = list(served)[:first], list(shadow)[:first]
        self.same_first += here[:1] == there[:1]
        self.overlap += len(set(here) & set(there)) / max(len(here), 1)

    def __add__(self, other: "ShadowStats") -> "ShadowStats":
        return ShadowStats(**{name: getattr(self, name) + getattr(other, name) for name in ShadowStats.model_fields})


def psi(counts_K: npt.ArrayLike, reference_K: npt.ArrayLike) -> float:
    """Population stability index of two histograms over the same buckets; each bucket has half a count more, so that none is empty."""
    one, other = np.asarray(counts_K, np.float64) + 0.5, np.asarray(reference_K, np.float64) + 0.5
    one, other = one / one.sum(), other / other.sum()
    return float(((one - other) * np.log(one / other)).sum())


def verdict(canary: ReleaseStats, stable: ReleaseStats, guards: GuardSettings) -> str | None:
    """Why the canary must be taken back; None where it may go on."""
    enough = canary.requests >= max(guards.min_requests // 10, 1) and canary.errors >= MIN_ERRORS
    if enough and canary.error_frac > stable.error_frac + guards.max_error_frac:
        return f"{canary.errors} of {canary.requests} requests failed ({canary.error_frac:.1%}; the stable release's {stable.error_frac:.1%})"
    if min(canary.requests, stable.requests) < guards.min_requests:
        return None
    slow, usual = canary.latency_ms(0.95), stable.latency_ms(0.95)
    if slow is not None and usual is not None and slow > guards.max_latency_ratio * usual:
        return f"p95 is {slow:.1f} ms, {slow / usual:.1f} times the stable release's {usual:.1f} ms (at most {guards.max_latency_ratio:g})"
    drift = psi(canary.scores_K, stable.scores_K)
    if drift > guards.max_psi:
        return f"the scores drift: PSI {drift:.3f} beside the stable release's (at most {guards.max_psi:g})"
    return None
