"""Rollouts: the split of users, what an operator may change, and when a canary is taken back."""

import numpy as np
import pytest
from pydantic import ValidationError

from longtail.rollouts import GuardSettings, ReleaseStats, Rollout, RolloutChange, ShadowStats, changed, psi, verdict

NOW = Rollout(stable="r1", configured="r1", deployed_us=1)


def test_a_user_meets_one_release_and_the_shares_follow_the_weight() -> None:
    users = [f"user {number}" for number in range(20_000)]
    small, large = (NOW.model_copy(update={"canary": "r2", "weight": weight}) for weight in (0.05, 0.3))
    chosen = {user for user in users if small.release_of(user) == "r2"}
    assert 0.04 < len(chosen) / len(users) < 0.06
    assert chosen == {user for user in users if small.release_of(user) == "r2"}
    assert chosen < {user for user in users if large.release_of(user) == "r2"}, "who has met it stays with it when the weight grows"
    assert {NOW.release_of(user) for user in users[:100]} == {"r1"}
    assert {NOW.model_copy(update={"canary": "r2", "weight": 1.0}).release_of(user) for user in users} == {"r2"}


def test_changes_in_their_turn() -> None:
    canary = changed(NOW, RolloutChange(action="canary", release="r2", weight=0.1))
    assert (canary.canary, canary.weight, canary.releases) == ("r2", 0.1, ("r1", "r2"))
    promoted = changed(canary, RolloutChange(action="promote", reason="better"))
    assert (promoted.stable, promoted.previous, promoted.canary, promoted.weight, promoted.reason) == ("r2", "r1", None, 0.0, "better")
    back = changed(promoted, RolloutChange(action="rollback", release="r2"))
    assert (back.stable, back.previous) == ("r1", None)
    assert changed(canary, RolloutChange(action="rollback", release="r2")).releases == ("r1",)
    with pytest.raises(ValueError, match="release r2 is not what would be taken back: that is r1"):  # the same request once more
        changed(changed(canary, RolloutChange(action="rollback", release="r2")), RolloutChange(action="rollback", release="r2"))
    shadowed = changed(NOW, RolloutChange(action="shadow", release="r3"))
    assert shadowed.releases == ("r1", "r3")
    assert changed(shadowed, RolloutChange(action="promote", release="r3")).shadow is None
    assert changed(shadowed, RolloutChange(action="stop")) == NOW.model_copy(update={"reason": "stop by an operator"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action": "canary", "weight": 0.1}, "canary needs `release`"),
        ({"action": "canary", "release": "r2"}, "canary needs `weight`"),
        ({"action": "canary", "release": "r1", "weight": 0.1}, "r1 is the stable one already"),
        ({"action": "shadow", "release": "r1"}, "r1 is the stable one already"),
        ({"action": "promote"}, "nothing to promote"),
        ({"action": "promote", "release": "r1"}, "r1 is the stable one already"),
        ({"action": "rollback"}, "rollback needs `release`"),
        ({"action": "rollback", "release": "r1"}, "nothing to roll back"),
        ({"action": "stop"}, "there is no shadow"),
    ],
)
def test_what_cannot_be_changed_is_told(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changed(NOW, RolloutChange.model_validate(change))


def test_a_change_is_one_of_five_and_weights_are_shares() -> None:
    for wrong in ({"action": "explode"}, {"action": "canary", "release": "r2", "weight": 1.5}, {"action": "stop", "now": True}):
        with pytest.raises(ValidationError):
            RolloutChange.model_validate(wrong)


def stats(num: int, errors: int = 0, milliseconds: float = 10.0, mean: float = -3.0, seed: int = 0) -> ReleaseStats:
    found, draw = ReleaseStats(), np.random.default_rng(seed)
    for _ in range(num):
        found.see(milliseconds * draw.uniform(0.9, 1.1), draw.normal(mean, 1, 20))
    for _ in range(errors):
        found.fail()
    return found


def test_statistics_add_up_and_tell_quantiles() -> None:
    both = stats(50, errors=3) + stats(30, seed=1)
    assert (both.requests, both.errors, sum(both.scores_K), sum(both.latency_K)) == (83, 3, 1600, 80)
    for quantile in (0.5, 0.95):
        found = both.latency_ms(quantile)
        assert found is not None
        assert 9 < found < 14
    assert ReleaseStats().latency_ms(0.5) is None


def test_psi_by_hand_and_of_equal_samples() -> None:
    one, other = np.array([9.5, 29.5]), np.array([19.5, 19.5])
    assert psi(one, other) == pytest.approx((0.25 - 0.5) * np.log(0.5) + (0.75 - 0.5) * np.log(1.5))
    assert psi(stats(300).scores_K, stats(300, seed=1).scores_K) < 0.05


def test_a_canary_goes_on_until_a_guard_speaks() -> None:
    guards, usual = GuardSettings(min_requests=100), stats(900)
    assert verdict(stats(300, seed=1), usual, guards) is None
    assert verdict(stats(99, milliseconds=500), usual, guards) is None, "too few to say"
    assert "requests failed" in str(verdict(stats(20, errors=3), usual, guards))
    assert verdict(stats(20, errors=2), usual, guards) is None, "it may be anything"
    assert verdict(stats(6, errors=3), usual, guards) is None
    assert verdict(stats(200, errors=3), stats(900, errors=10), guards) is None, "no worse than the stable release"
    assert "p95 is" in str(verdict(stats(200, milliseconds=40), usual, guards))
    drift = str(verdict(stats(200, mean=-1.5), usual, guards))
    assert "PSI" in drift
    assert "at most 0.25" in drift


def test_a_shadow_s_differences() -> None:
    shadow = ShadowStats()
    shadow.see({"a": 0.5, "b": 0.25}, {"b": 0.5, "a": 0.25})
    shadow.see({"a": 0.5, "b": 0.25}, {"a": 0.5, "b": 0.25})
    total = shadow + ShadowStats(compared=1, errors=2, dropped=3)
    assert (total.compared, total.same_first, total.overlap, total.errors, total.dropped) == (3, 1, 2.0, 2, 3)
    assert total.score_difference == pytest.approx(0.25)
