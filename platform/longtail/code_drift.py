"""Code drift: what a refit does to the codes of items that are there already, and what it costs or gains to keep them.

A codebook is fitted on the items known at the end of the history window, and refitted at later days on the items known by then, with the same vectors. Known is
an item that an event names. Each way of refitting is measured by

    kept         of the items known before, the share whose codes 1 … s are what they were, for every s: by items, and by their events until then
    mse          mean squared residual of the items known at that day; `mse_later` of the catalogue's others
    confused     of the items known at that day, the share whose whole tuple an item of other content has too

A chain refits at every day from the codebook of the refit before, as a platform would; the other ways refit once, from the first codebook.
`measure` reads vectors and counts in memory; pipelines.code_drift runs it.
Letters: N items, T days, the first of them 0, R items known at one of them, S stages, K centroids, D vector width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from longtail.code_collisions import Places, resolve
from longtail.code_match import kept, match, renumbered
from longtail.codes import CodebookSettings, Fit, collisions, encode, fit_here
from longtail.kmeans import Floats
from longtail.settings import Settings
from longtail.vectors import fingerprints

Codes = NDArray[np.int32]
Ints = NDArray[np.int64]

#: Ways of refitting, by what they are called in tables.
WAYS = {
    "none": "no refit: newcomers are encoded",
    "cold": "cold, same seed",
    "cold_reseeded": "cold, another seed",
    "cold_longer": "cold, another seed, twice the iterations",
    "cold_distance": "cold, another seed, matched by distance",
    "cold_overlap": "cold, another seed, matched by items",
    "warm": "warm start",
    "warm_overlap": "warm start, matched by items",
    "warm_5": "warm start, 5 iterations, matched by items",
    "warm_1": "warm start, 1 iteration, matched by items",
}
CHAINS = {
    "chain_cold": "cold, another seed, matched by items",
    "chain_warm": "warm start, matched by items",
    "chain_warm_1": "warm start, 1 iteration, matched by items",
}


class CodeDriftSettings(Settings):
    """The `code_drift` command."""

    refit_days: tuple[int, ...] = Field(
        (7, 30, 60, 90, 120, 150, 180), min_length=1, description="refits, in days after history_end; those beyond train_end are left out"
    )
    num_seeds: int = Field(5, ge=1, description="first codebooks, each with refits of its own: seeds from run.seed on")
    results: str = Field("results", min_length=1, description="folder of the results; a relative path starts at the working directory")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.refit_days[0] < 1 or any(later <= earlier for earlier, later in zip(self.refit_days, self.refit_days[1:], strict=False)):
            raise ValueError(f"refit_days = {list(self.refit_days)}: days after history_end, each later than the one before, the first at least 1")
        return self

    def key_fields(self) -> dict[str, object]:
        """All but where the results are written."""
        return {name: value for name, value in super().key_fields().items() if name != "results"}


class Refit(Settings):
    """One way of refitting at one day, one seed."""

    way: str
    seed: int
    day: int
    kept_items: tuple[float, ...]  # of codes 1 … s, since the first codebook
    kept_events: tuple[float, ...]
    kept_step: tuple[float, ...] | None = None  # of a chain: by items, since the refit before
    mse: float
    mse_later: float | None  # None where no item comes later
    confused: float


class Identified(Settings):
    """Tuples and places by the first codebook, from the first day to the last: what keeps them when items come."""

    seed: int
    num_places: int  # used on the last day
    beyond_first: float  # share of the items whose place is not 0: the tuple alone does not name them
    kept_anew: float  # of the items of the first day, the share with the same tuple and place, where places are dealt anew
    kept_going_on: float  # where they go on from the first day's


@dataclass(frozen=True)
class World:
    """What a measurement is made on: the items' vectors, and their events by each day."""

    vectors_ND: Floats
    counts_TN: Ints
    days: tuple[int, ...]
    content_N: NDArray[np.uint64]

    @staticmethod
    def of(vectors_ND: Floats, counts_TN: Ints, days: tuple[int, ...]) -> "World":
        return World(vectors_ND, counts_TN, days, fingerprints(vectors_ND))

    def known(self, at: int) -> NDArray[np.bool_]:
        known_N: NDArray[np.bool_] = self.counts_TN[at] > 0
        return known_N


def measure(world: World, settings: CodebookSettings, seed: int) -> tuple[list[Refit], Identified, dict[str, object]]:
    """For one seed: every way at every day after the first, places, and the first codebook's report, over the items that it was fitted on and over all."""
    first = fit_here(world.vectors_ND[world.known(0)], settings, seed)
    first_NS = encode(world.vectors_ND, first.codebook_SKD)
    found: list[Refit] = []
    last = dict.fromkeys(CHAINS, first.codebook_SKD)
    last_NS = dict.fromkeys(CHAINS, first_NS)
    for at in range(1, len(world.days)):
        rows_RD = world.vectors_ND[world.known(at)]
        another = seed + 1000 * at
        cold = fit_here(rows_RD, settings, another).codebook_SKD
        for way, codebook_SKD in once(first.codebook_SKD, cold, rows_RD, settings, seed, another).items():
            found.append(_refit(world, way, seed, at, first_NS, codebook_SKD))
        for way, codebook_SKD in _links(last, cold, rows_RD, settings, seed).items():
            refit = _refit(world, way, seed, at, first_NS, codebook_SKD)
            now_NS, before_N = encode(world.vectors_ND, codebook_SKD), world.known(at - 1)
            found.append(refit.model_copy(update={"kept_step": tuple(kept(last_NS[way][before_N], now_NS[before_N]))}))
            last[way], last_NS[way] = codebook_SKD, now_NS
    return found, _identified(world, first_NS, seed), _report(world, first, first_NS)


def once(first_SKD: Floats, cold_SKD: Floats, rows_RD: Floats, settings: CodebookSettings, seed: int, another: int) -> dict[str, Floats]:
    """The codebook of every way of WAYS that goes on from `first_SKD`; `cold_SKD` is the refit with the seed `another`."""
    warm = fit_here(rows_RD, settings, seed, first_SKD).codebook_SKD
    few = {number: fit_here(rows_RD, _with(settings, number), seed, first_SKD).codebook_SKD for number in (5, 1)}
    before_RS, cold_RS = encode(rows_RD, first_SKD), encode(rows_RD, cold_SKD)
    return {
        "none": first_SKD,
        "cold": fit_here(rows_RD, settings, seed).codebook_SKD,
        "cold_reseeded": cold_SKD,
        "cold_longer": fit_here(rows_RD, _with(settings, 2 * settings.iterations), another).codebook_SKD,
        "cold_distance": renumbered(cold_SKD, match(first_SKD, cold_SKD, before_RS, cold_RS, by="distance")),
        "cold_overlap": renumbered(cold_SKD, match(first_SKD, cold_SKD, before_RS, cold_RS)),
        "warm": warm,
        "warm_overlap": _matched(first_SKD, warm, rows_RD),
        "warm_5": _matched(first_SKD, few[5], rows_RD),
        "warm_1": _matched(first_SKD, few[1], rows_RD),
    }


def _links(last: Mapping[str, Floats], cold_SKD: Floats, rows_RD: Floats, settings: CodebookSettings, seed: int) -> dict[str, Floats]:
    """The next codebook of every chain."""
    warm = fit_here(rows_RD, settings, seed, last["chain_warm"]).codebook_SKD
    warm_1 = fit_here(rows_RD, _with(settings, 1), seed, last["chain_warm_1"]).codebook_SKD
    made = {"chain_cold": cold_SKD, "chain_warm": warm, "chain_warm_1": warm_1}
    return {way: _matched(last[way], codebook_SKD, rows_RD) for way, codebook_SKD in made.items()}


def _with(settings: CodebookSettings, iterations: int) -> CodebookSettings:
    return settings.model_copy(update={"iterations": iterations})


def _matched(old_SKD: Floats, new_SKD: Floats, rows_RD: Floats) -> Floats:
    return renumbered(new_SKD, match(old_SKD, new_SKD, encode(rows_RD, old_SKD), encode(rows_RD, new_SKD)))


def _refit(world: World, way: str, seed: int, at: int, first_NS: Codes, codebook_SKD: Floats) -> Refit:
    codes_NS = encode(world.vectors_ND, codebook_SKD)
    error_N = squared_errors(world.vectors_ND, codes_NS, codebook_SKD)
    before_N, known_N = world.known(0), world.known(at)
    later_N = ~known_N
    confused = collisions(codes_NS[known_N], world.content_N[known_N], codebook_SKD.shape[1])[-1]["different_content_rate"]
    return Refit(
        way=way,
        seed=seed,
        day=world.days[at],
        kept_items=tuple(kept(first_NS[before_N], codes_NS[before_N])),
        kept_events=tuple(kept(first_NS, codes_NS, np.where(before_N, world.counts_TN[at], 0))),
        mse=float(error_N[known_N].mean()),
        mse_later=float(error_N[later_N].mean()) if later_N.any() else None,
        confused=confused,
    )


def squared_errors(vectors_ND: Floats, codes_NS: Codes, codebook_SKD: Floats) -> NDArray[np.float64]:
    """Squared norm [N] of what the codes leave of each vector."""
    left_ND = vectors_ND - sum(centroids_KD[codes_N] for centroids_KD, codes_N in zip(codebook_SKD, codes_NS.T, strict=True))
    errors_N: NDArray[np.float64] = np.einsum("nd,nd->n", left_ND, left_ND, dtype=np.float64)
    return errors_N


def _identified(world: World, first_NS: Codes, seed: int) -> Identified:
    """Item ids are row numbers: newcomers lie between the others, as ids of a catalogue do."""
    ids = [f"{row:09d}" for row in range(len(first_NS))]

    def places(at: int, previous: Places | None) -> Places:
        rows_R = np.flatnonzero(world.known(at))
        chosen = [ids[row] for row in rows_R]
        return Places(chosen, first_NS[rows_R], resolve(first_NS[rows_R], chosen, num_places=len(ids), previous=previous))

    before, anew = places(0, None), places(-1, None)
    going_on = places(-1, before)
    same = world.known(0)[world.known(-1)]  # who is known stays known
    return Identified(
        seed=seed,
        num_places=int(going_on.place_N.max()) + 1,
        beyond_first=float((going_on.place_N > 0).mean()),
        kept_anew=float((before.place_N == anew.place_N[same]).mean()),
        kept_going_on=float((before.place_N == going_on.place_N[same]).mean()),
    )


def _report(world: World, first: Fit, first_NS: Codes) -> dict[str, object]:
    known_N, size = world.known(0), first.codebook_SKD.shape[1]
    return {
        "mse_frac": [float(one / first.variance) for one in first.mse_S],
        "dead_codes": (first.counts_SK == 0).sum(axis=1).tolist(),
        "fitted": collisions(first_NS[known_N], world.content_N[known_N], size),
        "all": collisions(first_NS, world.content_N, size),
    }
