"""Plan: what a deployment of given size costs in device-hours, memory, network, storage and replicas; the formulas are in longtail.capacity.

Without --rates the rates are measured here, in a few minutes: the small synthetic world runs through the real stages at two sizes, the second three times the
first, and what a stage takes is split into a start and a rate; the config's language model writes profiles of two lengths, its encoder embeds.
Reads a config; writes plan.json, plan.md and rates.toml, which --rates takes again, below --out (default: plan).

Run: python -m pipelines.plan --users 1e9 --items 1e8 --events-per-day 1e10 [--rates rates.toml] [--config …] [--workload peak_requests_per_s=50000]
     python -m pipelines.plan --check        predictions from the measured rates beside what three other sizes took: results/plan_check.md
Last stdout line: one JSON object.
"""

import argparse
import json
import logging
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from longtail.artifacts import Artifact, Store, source_commit
from longtail.capacity import UNITS, Line, Rate, RateName, Rates, Shape, Workload, n, plan, warnings_of
from longtail.codes import CodebookSettings, fit_here
from longtail.config import Config, load
from longtail.profiles import SYSTEM_PROMPT
from longtail.rankers.batch import Batch
from longtail.rankers.ranker import predict_rows
from longtail.token_count import count_words, token_counter
from pipelines.cluster import ROOT, ray_session
from pipelines.logs import LOGS
from pipelines.profiles import PROFILES, add_prompts, facts_of_snapshots
from pipelines.stage import clear_errors, ensure, line
from pipelines.study import machine
from pipelines.study_arms import unread
from pipelines.train import TrainJob
from pipelines.trial import built_here, is_plan, trial_stage

logger = logging.getLogger(__name__)

SMALL_WORLD = ROOT / "pipelines" / "configs" / "test.toml"
CALIBRATION_USERS = (300, 900)
CHECK_USERS = (600, 1200, 2400)
KMEANS_ROWS = (20_000, 60_000)
PROMPTS = 48
ENCODER_DIM = 384  # of the packaged text encoder, where the config does not cut its vectors
RATES_OF = {"user_texts_per_s": "user_texts", "item_texts_per_s": "item_texts", "sample_rows_per_s": "samples", "train_rows_per_s": "training"}
BYTES_OF = {"event_bytes": "events", "profile_bytes": "profiles", "sample_bytes": "samples"}


@dataclass(frozen=True)
class Seen:
    """What a stage took for so many units of its work."""

    units: float
    seconds: float
    size: int  # bytes of its artifact


def small_world(config: Config, num_users: int) -> Config:
    """The small synthetic world with as many users and items, under the config's encoders, codebooks and ranker."""
    sections = {name: getattr(config, name) for name in ("embeddings", "item_encoder", "item_z", "user_spaces", "rankers", "train", "sweep")}
    world = load(SMALL_WORLD, ["profiles.generator=deterministic", f"logs.synthetic.num_users={num_users}", f"logs.synthetic.num_items={num_users}"])
    return world.model_copy(update={**sections, "cluster": config.cluster})


def measure(config: Config, store: Store) -> dict[str, Seen]:
    """Run a world through the stages; by part of a plan, what it took."""
    name = config.sweep.ranker
    trial = trial_stage(name, ("validation",), unread(name, config), any_head=True)
    made: dict[str, Artifact] = {}
    for stage in line(trial):
        alone = not is_plan(stage, config) and stage is not PROFILES
        made[stage.name] = built_here(stage, config, store) if alone else ensure(stage, config, store).artifact
    profiles, vectors, samples, trained = (made[one] for one in ("profiles", "item_vectors", "samples", "trials"))
    rows = {one.stage: float(one.manifest["rows"]["out"]) for one in made.values()}
    taken = {one.stage: float(one.manifest["seconds"]) for one in made.values()}
    sizes = {one.stage: _bytes(one) for one in made.values()}
    sampled = [one for one in ("samples", "matches", "lent") if one in made]
    return {
        "user_texts": Seen(rows["profiles"], float(profiles.info["embed_pool"]["busy_s"]), 0),
        "item_texts": Seen(float(vectors.info["distinct_texts"]), float(vectors.info["embed_pool"]["busy_s"]), 0),
        "events": Seen(rows["logs"], taken["logs"], sizes["logs"]),
        "profiles": Seen(rows["profiles"], 0.0, sizes["profiles"]),
        "samples": Seen(rows["samples"], sum(taken[one] for one in sampled), sum(sizes[one] for one in sampled)),
        "training": Seen(float(samples.info["rows_by_split"]["train"]) * len(trained.info["epochs"]), float(trained.info["seconds"]), 0),
        "scoring": _scoring(config, made, name),
    }


def _scoring(config: Config, made: Mapping[str, Artifact], name: str) -> Seen:
    """The ranker's forward pass over the validation rows, as serving makes it for candidates."""
    job = TrainJob.of(config, made, name, 0)
    ranker = job.ranker()
    part = next(number for number, count in enumerate(job.files.labelled["train"]) if count)
    batch = Batch.from_table(job.files.load(part, "train"), job.files.spec)
    predict_rows(ranker, batch)
    began = time.monotonic()
    for _ in range(3):
        predict_rows(ranker, batch)
    return Seen(3.0 * len(batch), time.monotonic() - began, 0)


def _bytes(artifact: Artifact) -> int:
    from pyarrow.fs import FileSelector

    return sum(entry.size or 0 for entry in artifact.fs.get_file_info(FileSelector(artifact.root, recursive=True)))


def line_through(seen: Sequence[Seen]) -> tuple[float, float]:
    """Start and seconds a unit of what was seen at two sizes; without a start where they would make it negative."""
    small, large = sorted(seen, key=lambda one: one.units)
    per_unit = (large.seconds - small.seconds) / (large.units - small.units)
    start = small.seconds - per_unit * small.units
    return (start, per_unit) if start >= 0 and per_unit > 0 else (0.0, large.seconds / large.units)


def kmeans_rate(dim: int, size: int) -> float:
    """Floating point operations a second of the core's fit, by two sizes."""
    rng, settings = np.random.default_rng(0), CodebookSettings(num_stages=2, codebook_size=size, iterations=5)
    found = []
    for rows in KMEANS_ROWS:
        vectors = rng.standard_normal((rows, dim), dtype=np.float32)
        began = time.monotonic()
        fit = fit_here(vectors, settings, seed=0)
        found.append(Seen(2.0 * rows * size * dim * sum(one + 1 for one in fit.iterations_S), time.monotonic() - began, 0))
    return 1 / line_through(found)[1]


def language_model_rates(config: Config, facts: Sequence[str]) -> dict[str, float]:
    """Prompt and answer tokens a second of the config's model: profiles of the same users, answers of one token and of many."""
    from actors.profile import Prompt, VllmEngine

    engine = VllmEngine(config.profiles)
    prompts = [Prompt(text, "[a-z ]{200,400}") for text in facts]
    engine.answer(prompts[:2])  # the shared prompt is in the cache
    took = {}
    for tokens in (1, config.profiles.max_output_tokens):
        began = time.monotonic()
        answers = engine.answer([Prompt(f"{tokens}. {one.facts}", one.pattern) for one in prompts], tokens)  # none of it was computed before
        took[tokens] = time.monotonic() - began, answers
    shared = token_counter(config.profiles.model)([SYSTEM_PROMPT])[0]
    (short_s, short), (long_s, long) = took.values()
    fresh = sum(max(1, one.prompt_tokens - shared) for one in short)
    more = sum(one.output_tokens for one in long) - sum(one.output_tokens for one in short)
    return {"prefill_tokens_per_s": fresh / short_s, "decode_tokens_per_s": more / max(long_s - short_s, 1e-3)}


def calibrate(config: Config) -> dict[str, Rate]:
    """Every rate, measured on this machine; needs a running Ray."""
    seen = []
    for num_users in CALIBRATION_USERS:
        with tempfile.TemporaryDirectory(prefix="longtail-plan-") as folder:
            seen.append(measure(small_world(config, num_users), Store.open(folder)))
            logger.info("calibration: %d users done", num_users)
    large = seen[-1]
    rates: dict[str, float] = {}
    for name, part in RATES_OF.items():
        rates[name] = 1 / line_through([one[part] for one in seen])[1]
    rates["candidates_per_s"] = large["scoring"].units / large["scoring"].seconds
    rates |= {name: large[part].size / large[part].units for name, part in BYTES_OF.items()}
    rates["kmeans_flop_per_s"] = kmeans_rate(item_dim(config), config.codes.item.codebook_size)
    if config.profiles.generator == "llm":
        rates |= _language_model(config)
    origin = f"measured {time.strftime('%Y-%m')} on {machine()['machine'].rstrip('.')}"
    return {name: Rate(value=value, origin=origin) for name, value in rates.items()}


def _language_model(config: Config) -> dict[str, float]:
    """The language model's rates, in an actor of its own: the engine's memory goes back with it."""
    import ray

    world = small_world(config, CALIBRATION_USERS[0])
    with tempfile.TemporaryDirectory(prefix="longtail-plan-") as folder:
        store = Store.open(folder)
        logs = built_here(LOGS, world, store)
        facts, kind, _, _ = facts_of_snapshots(logs, config.profiles)
    texts = add_prompts(facts.slice(0, PROMPTS), config.profiles, kind).column("facts").to_pylist()
    task = ray.remote(num_cpus=min(config.profiles.compute.num_cpus, 1), num_gpus=config.profiles.compute.num_gpus, max_calls=1)(language_model_rates)
    found: dict[str, float] = ray.get(task.remote(config, texts))
    return found


def item_dim(config: Config) -> int:
    """Width of z."""
    trained = config.item_encoder.dim + config.item_encoder.factor_dim
    return sum(trained if space == "trained" else config.item_encoder.dim for space in config.item_z.spaces)


def user_dim(config: Config) -> int:
    """Width of the users' vectors side by side, as far as the config tells: attributes are left out."""
    widths = {"profile": config.embeddings.user.dim or ENCODER_DIM, "titles": config.embeddings.item.dim or ENCODER_DIM}
    widths["behaviour"] = config.user_spaces.behaviour_dim
    return sum(widths.get(space, 0) for space in config.user_spaces.spaces) or 1


def shape_of(config: Config, given: Mapping[str, float]) -> Shape:
    """What of the config decides the cost; `given` stands over it."""
    name, train = config.sweep.ranker, config.train
    count = token_counter(config.profiles.model) if config.profiles.generator == "llm" else count_words
    prompt = float(count([SYSTEM_PROMPT])[0])
    found: dict[str, Any] = {
        "language_model": config.profiles.generator == "llm",
        "shared_prompt_tokens": prompt,
        "prompt_tokens": prompt + config.profiles.max_fact_tokens,
        "answer_tokens": config.profiles.max_output_tokens,
        "user_dim": user_dim(config),
        "item_dim": item_dim(config),
        "user_codes": (config.codes.user.num_stages, config.codes.user.codebook_size),
        "item_codes": (config.codes.item.num_stages, config.codes.item.codebook_size),
        "iterations": config.codes.user.iterations,
        "id_dim": getattr(config.rankers, name).id_dim,
        "optimizer_copies": 2 if train.optimizer == "adam" else 1,
        "epochs": train.epochs,
        "batch_size": train.batch_size,
        "shards": config.codes.user.compute.num_actors,
        "workers": train.compute.num_actors,
    }
    shape: Shape = told(Shape, {**found, **given}, "--shape")
    return shape


def told(kind: Any, values: Mapping[str, Any], flag: str) -> Any:
    """Settings from a command's flags.

    Raises:
        ValueError: one is unknown or breaks its rule.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, one['loc']))} = {one['input']!r}: {one['msg']}" for one in error.errors()]
        known = ", ".join(kind.model_fields)
        raise ValueError(f"{flag}: {len(lines)} value(s) refused:\n" + "\n".join(lines) + f"\nThere are {known}.") from error


def read_rates(path: str) -> dict[str, Rate]:
    """Rates from a TOML file: [name] value = …, origin = "…".

    Raises:
        ValueError: the file is no TOML, or a rate is unknown or no positive number.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"--rates {path} cannot be read as TOML: {error}. Leave it out to measure the rates here; that writes such a file.") from error
    unknown = sorted(set(raw) - set(get_args(RateName)))
    if unknown:
        raise ValueError(f"--rates {path}: there is no rate {unknown[0]!r}. There are {', '.join(get_args(RateName))}.")
    return {
        name: told(Rate, value if isinstance(value, dict) else {"value": value, "origin": "given"}, f"--rates {path}, {name}") for name, value in raw.items()
    }


def as_text(lines: Sequence[Line], warnings: Sequence[str], work: Workload, rates: Rates) -> str:
    """The plan as Markdown."""
    rows = [f"| {one.part} | {one.what} | {one.formula} | {n(one.value)} | {one.unit} |" for one in lines]
    of_rates = [f"| `{name}` | {n(rate.value)} | {UNITS[name]} | {rate.origin} |" for name, rate in rates.items()]  # type: ignore[index]  # checked when read
    about = ", ".join(f"{name} {n(value)}" for name, value in work.model_dump().items())
    table = ["| part | what | formula | result | unit |", "|---|---|---|---|---|", *rows, ""]
    table_of_rates = ["", "## Rates", "", "| rate | value | unit | origin |", "|---|---|---|---|", *of_rates, ""]
    return "\n".join(["# Capacity plan", "", f"Workload: {about}.", "", *table, *(f"- {one}" for one in warnings), *table_of_rates])


def check(config: Config) -> dict[str, Any]:
    """Predict three sizes from the two that rates are measured at, run them, and write both beside each other."""
    seen: dict[int, dict[str, Seen]] = {}
    for num_users in (*CALIBRATION_USERS, *CHECK_USERS):
        with tempfile.TemporaryDirectory(prefix="longtail-plan-") as folder:
            seen[num_users] = measure(small_world(config, num_users), Store.open(folder))
            logger.info("check: %d users done", num_users)
    rows, worst = [], {"seconds": 1.0, "bytes": 1.0}
    for part in sorted({*RATES_OF.values(), *BYTES_OF.values()}):
        base = [seen[num_users][part] for num_users in CALIBRATION_USERS]
        for num_users in CHECK_USERS:
            one = seen[num_users][part]
            predicted = {}
            if part in RATES_OF.values():
                start, per_unit = line_through(base)
                predicted["seconds"] = start + per_unit * one.units, one.seconds
            if part in BYTES_OF.values():
                predicted["bytes"] = base[-1].size / base[-1].units * one.units, float(one.size)
            for kind, (expected, found) in predicted.items():
                ratio = expected / found
                worst[kind] = max(worst[kind], ratio, 1 / ratio)
                rows.append(f"| {part} | {num_users:,} | {one.units:,.0f} | {kind} | {n(expected)} | {n(found)} | {ratio:.2f} |")
    text = [
        "# Capacity formulas beside measured runs", "",
        f"- command: python -m pipelines.plan --check; commit {source_commit()}; {machine()['machine']} {time.strftime('%Y-%m')}",
        f"- rates from worlds of {CALIBRATION_USERS[0]} and {CALIBRATION_USERS[1]} users and as many items, predictions of {', '.join(map(str, CHECK_USERS))}",
        f"- farthest off: seconds {worst['seconds']:.2f} times, bytes {worst['bytes']:.2f} times", "",
        "| part | users | units | what | predicted | measured | ratio |", "|---|---|---|---|---|---|---|", *rows, "",
    ]  # fmt: skip
    Path("results").mkdir(exist_ok=True)
    Path("results", "plan_check.md").write_text("\n".join(text))
    return {"results": "results/plan_check.md", "farthest_off": {kind: round(value, 2) for kind, value in worst.items()}}


def main() -> None:
    with clear_errors():
        args = _arguments()
        config = load(args.config, args.overrides)
        if args.check:
            with ray_session(config.cluster):
                print(json.dumps(check(config)))
            return
        sizes = {"users": args.users, "items": args.items, "events_per_day": args.events_per_day}
        missing = [f"--{name.replace('_', '-')}" for name, value in sizes.items() if value is None]
        if missing:
            raise ValueError(f"{' and '.join(missing)}: how many? For example --users 1e9 --items 1e8 --events-per-day 1e10.")
        work = told(Workload, {**sizes, **_pairs(args.workload, "--workload")}, "--workload")
        shape = shape_of(config, _pairs(args.shape, "--shape"))
        if args.rates:
            rates = read_rates(args.rates)
        else:
            with ray_session(config.cluster):
                rates = calibrate(config)
        lines = plan(work, shape, rates)
        warnings = warnings_of(work, shape, lines, args.device_gib, args.node_gib)
        text = as_text(lines, warnings, work, rates)
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.md").write_text(text)
        (folder / "rates.toml").write_text("\n".join(f"[{name}]\nvalue = {one.value!r}\norigin = {json.dumps(one.origin)}\n" for name, one in rates.items()))
        found = {"workload": work.model_dump(), "lines": [vars(one) for one in lines], "warnings": warnings}
        (folder / "plan.json").write_text(json.dumps(found, indent=1))
        print(text)
        print(json.dumps({"plan": str(folder / "plan.md"), "rates": str(folder / "rates.toml"), "warnings": warnings}))


def _pairs(given: Sequence[str], flag: str) -> dict[str, float]:
    """name=number, as often as the flag is given.

    Raises:
        ValueError: one is something else.
    """
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"{flag} {one}: expected name=number.") from None
        if not equals:
            raise ValueError(f"{flag} {one}: expected name=number.")
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("users", "items", "events-per-day"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--config", help="TOML file whose widths, codebooks, encoders and ranker are planned for")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--rates", help="TOML file of rates; without it they are measured here")
    parser.add_argument("--workload", action="append", default=[], metavar="name=number", help=", ".join(Workload.model_fields))
    parser.add_argument("--shape", action="append", default=[], metavar="name=number", help="over what the config tells: " + ", ".join(Shape.model_fields))
    parser.add_argument("--device-gib", type=float, default=80.0, help="memory of a training device")
    parser.add_argument("--node-gib", type=float, default=64.0, help="memory of a node for a k-means shard")
    parser.add_argument("--check", action="store_true", help="predictions beside measured runs")
    parser.add_argument("--out", default="plan")
    return parser.parse_args()


if __name__ == "__main__":
    main()
