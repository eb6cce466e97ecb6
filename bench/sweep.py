"""A sweep's search beside plain random search with the same number of trials: the same space, seed and stages before the ranker, one search after the other.

No finalists are trained and the test window stays closed. A search that is finished below --runs is taken as it is.
Reads a sweep's config; writes results/<name>_search.md. Run: python -m bench.sweep --config pipelines/configs/complete_journey_sweep.toml
Last stdout line: one JSON object; `ours_s` and `peers` are seconds of the search.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtail.artifacts import Store
from longtail.config import Config, load
from longtail.sweep_results import SweepResults, Trial
from pipelines.cluster import ROOT, ray_session
from pipelines.errors import clear_errors
from pipelines.stage import ensure, line
from pipelines.train import RANKER_STAGES

RANDOM = ("sweep.searcher=random", "sweep.scheduler=none")
CLOSED = ("sweep.finalists.num_trials=0", "tracking.backend=none")


@dataclass(frozen=True)
class Search:
    """One finished search, and when each of its trials ended, in seconds from its start."""

    results: SweepResults
    ended_s: dict[int, float]

    @property
    def seconds(self) -> float:
        return 60 * self.results.minutes["search"]

    @property
    def start(self) -> float:
        """The score of the config as it stood."""
        (trial,) = (one for one in self.results.trials if one.number == 0)
        assert trial.score is not None
        return trial.score

    def best(self, within_s: float = float("inf")) -> Trial | None:
        """The best of the trials that may win and had ended by then."""
        known = [one for one in self.results.trials if one.feasible and self.ended_s[one.number] <= within_s]
        return max(known, key=lambda one: (one.score or 0.0, -one.number), default=None)

    def count(self, state: str) -> int:
        return sum(one.state == state for one in self.results.trials)

    @property
    def epochs(self) -> int:
        return sum(one.epochs for one in self.results.trials)


def search(config_path: str, overrides: Sequence[str], uri: Path) -> Search:
    """Run a search, or find it."""
    flags = [word for one in (*overrides, *CLOSED) for word in ("--set", one)]
    done = subprocess.run(
        [sys.executable, "-m", "tuning.sweep", "--config", config_path, "--out", str(uri), *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise ValueError(f"the search in {uri} failed; its log is above.")
    results = Path(json.loads(done.stdout.splitlines()[-1])["results"]).parent / "results.json"
    return read(results)


def read(results: Path) -> Search:
    """A finished search by its results.json; ends of trials are the journal's times of writing."""
    found = SweepResults.model_validate_json(results.read_text())
    written = {int(path.stem): path.stat().st_mtime for path in (results.parents[1] / "journal").glob("*.json")}
    seconds = {one.number: one.seconds for one in found.trials}
    began = min(at - seconds[number] for number, at in written.items())
    return Search(found, {number: at - began for number, at in written.items()})


def page(name: str, config_path: str, searches: dict[str, Search]) -> str:
    """The comparison as Markdown."""
    ours, plain = searches.values()
    shortest = min(one.seconds for one in searches.values())
    rows = []
    for called, one in searches.items():
        best, early = one.best(), one.best(shortest)
        assert best is not None
        score = "" if early is None else f"{early.score:.4f} ({100 * ((early.score or 0) - one.start):+.2f})"
        rows.append(
            f"| {called} | {one.seconds / 60:.1f} | {one.count('finished')} | {one.count('stopped')} | {one.epochs} | "
            f"{best.score:.4f} ({100 * ((best.score or 0) - one.start):+.2f}), trial {best.number}, after {one.ended_s[best.number] / 60:.1f} min | {score} |"
        )
    results = ours.results
    return "\n".join(
        [
            f"# {name}: the search beside plain random search",
            "",
            f"- command: `python -m bench.sweep --config {config_path}`; commit {results.commit}; {results.machine}",
            f"- {len(results.trials)} trials each over {results.ranker}, the same space and seed; goal {results.metric} on the validation window, "
            f"{results.whole} not below {results.floor:.4f}",
            "- one seed a trial: scores are noisy by about as much as they differ (the sweep's finalists, three seeds each, tell)",
            "",
            "In brackets, points over the config as it stood.",
            "",
            f"| search | minutes | to the end | stopped | epochs trained | best score | best after {shortest / 60:.1f} min |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Wall time: plain random search took {plain.seconds / ours.seconds:.2f} times as long.",
            "",
        ]
    )


def prepare(config: Config, uris: Sequence[Path]) -> None:
    """The stages before the ranker, as the config stands, in every store: so that no search pays for what both need."""
    with ray_session(config.cluster):
        for uri in uris:
            for stage in line(RANKER_STAGES[config.sweep.ranker])[:-1]:
                ensure(stage, config, Store.open(str(uri)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--runs", default="runs/bench_sweep", help="folder of the two searches")
    parser.add_argument("--results", default="results")
    with clear_errors():
        args = parser.parse_args()
        config = load(args.config, args.overrides)
        named = f"{config.sweep.searcher} + {config.sweep.scheduler}"
        arms = {named: (Path(args.runs) / "ours", args.overrides), "random": (Path(args.runs) / "random", [*args.overrides, *RANDOM])}
        prepare(config, [uri for uri, _ in arms.values()])
        searches = {called: search(args.config, overrides, uri) for called, (uri, overrides) in arms.items()}
        target = Path(args.results) / f"{config.run.name}_search.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(config.run.name, args.config, searches))
        ours, plain = searches.values()
        quality: dict[str, Any] = {called: {"best": best.score, "epochs": one.epochs} for called, one in searches.items() if (best := one.best()) is not None}
        print(json.dumps({"bench": "sweep", "ours_s": ours.seconds, "peers": {"random": plain.seconds}, "quality": quality, "results": str(target)}))


if __name__ == "__main__":
    main()
