"""Plan: what a deployment of given size costs in device-hours, memory, network, storage and replicas; the formulas are in longtail.capacity_plan.

Rates come from --rates, a TOML file of [name] value and origin. Without it, or with --calibrate for what the file leaves out, they are measured here in a few
minutes (pipelines.calibration). Reads a config; writes plan.json, plan.md and rates.toml, which --rates takes again, below --out.

Run: python -m pipelines.plan --users 1e9 --items 1e8 --events-per-day 1e10 [--config …] [--rates deploy/rates_gpu.toml] [--workload peak_requests_per_s=50000]
     python -m pipelines.plan --check        predictions beside what runs of three other sizes took: results/plan_check.md
Last stdout line: one JSON object.
"""

import argparse
import json
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from longtail.capacity import OPTIONAL, UNITS, Line, Prices, Rate, RateName, Rates, Room, Shape, Workload, n
from longtail.capacity_limits import costs, dominant, limits
from longtail.capacity_plan import plan
from longtail.config import Config, load
from longtail.profiles import SYSTEM_PROMPT
from longtail.storage import without_secrets
from longtail.token_count import token_counter
from pipelines import plan_check
from pipelines.calibration import calibrate, item_dim, text_dim, user_dim
from pipelines.cluster import ray_session
from pipelines.errors import clear_errors
from pipelines.parts_alone import optimizer_copies, shared_tokens

GIVEN = ("workload", "shape", "room", "price")  # flags of name=number
SIZES = ("users", "items", "events_per_day")


def shape_of(config: Config, given: Mapping[str, float]) -> Shape:
    """What of the config decides the cost; `given` stands over it."""
    profiles, codes, train = config.profiles, config.codes, config.train
    found: dict[str, Any] = {
        "language_model": profiles.generator == "llm",
        "user_dim": user_dim(config),
        "profile_dim": text_dim(config.embeddings.user),
        "text_dim": text_dim(config.embeddings.item),
        "item_dim": item_dim(config),
        "peers": config.peers.form,
        "id_dim": getattr(config.rankers, config.sweep.ranker).id_dim,
        "optimizer_copies": optimizer_copies(train),
        "epochs": train.epochs,
        "batch_size": train.batch_size,
        "workers": train.compute.num_actors,
    }
    for side, section in (("user", codes.user), ("item", codes.item)):
        found |= {f"{side}_codes": (section.num_stages, section.codebook_size)}
        found |= {f"{side}_iterations": section.iterations, f"{side}_shards": section.compute.num_actors}
    if profiles.generator == "llm" and not {"prompt_tokens", "shared_prompt_tokens"} <= set(given):
        try:
            found["shared_prompt_tokens"] = shared_tokens(config)
            found["prompt_tokens"] = token_counter(profiles.model)([SYSTEM_PROMPT])[0] + profiles.max_fact_tokens
        except (OSError, ValueError) as error:
            raise ValueError(
                f"profiles.model = {without_secrets(profiles.model)!r}: its tokenizer is not on this machine ({type(error).__name__}), so the prompt's tokens "
                "are unknown. Give them: --shape prompt_tokens=1800 --shape shared_prompt_tokens=500."
            ) from error
    found["answer_tokens"] = profiles.max_output_tokens
    shape: Shape = told(Shape, {**found, **given}, "--shape")
    return shape


def told(kind: type[BaseModel], values: Mapping[str, Any], flag: str) -> Any:
    """Settings from a command's flags.

    Raises:
        ValueError: one is unknown or breaks its rule.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = [_refusal(one, flag) for one in error.errors()]
        raise ValueError(f"{len(lines)} value(s) refused:\n" + "\n".join(lines) + f"\n{flag} takes {', '.join(kind.model_fields)}.") from error


def _refusal(error: Any, flag: str) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    name = ".".join(map(str, error["loc"]))
    if not name:
        return f"  {flag}: {message}"
    named = f"--{name.replace('_', '-')}" if name in SIZES else f"{flag} {name}"
    if error["type"] == "missing":
        return f"  {named} is missing."
    return f"  {named} = {without_secrets(repr(error['input']))}: {'there is no such key' if error['type'] == 'extra_forbidden' else message}"


def read_rates(path: str) -> dict[RateName, Rate]:
    """Rates from a TOML file: [name] value = …, origin = "…".

    Raises:
        ValueError: the file is no TOML, or a rate is unknown or no positive number.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"--rates {without_secrets(path)!r} cannot be read as TOML: {error}. Leave it out to measure the rates here; that writes such a file."
        ) from error
    unknown = sorted(set(raw) - set(get_args(RateName)))
    if unknown:
        raise ValueError(f"--rates {path}: there is no rate {unknown[0]!r}. There are {', '.join(get_args(RateName))}.")
    given: Any = {name: value if isinstance(value, dict) else {"value": value, "origin": "given"} for name, value in raw.items()}
    return {name: told(Rate, value, f"--rates {path}, {name}:") for name, value in given.items()}


def rates_text(rates: Rates) -> str:
    """The rates as the TOML that `read_rates` takes."""
    return "\n".join(f"[{name}]  # {UNITS[name]}\nvalue = {rate.value!r}\norigin = {json.dumps(rate.origin)}\n" for name, rate in rates.items())


def as_text(lines: Sequence[Line], said: Sequence[str], work: Workload, rates: Rates) -> str:
    """The plan as Markdown."""
    rows = [f"| {one.part} | {one.what} | {one.formula} | {n(one.value)} | {one.unit} |" for one in lines]
    of_rates = [f"| `{name}` | {n(rate.value)} | {UNITS[name]} | {rate.origin} |" for name, rate in rates.items()]
    about = ", ".join(f"{name} {n(value)}" for name, value in work.model_dump().items())
    table = ["| part | what | formula | result | unit |", "|---|---|---|---|---|", *rows, ""]
    table_of_rates = ["", "## Rates", "", "| rate | value | unit | origin |", "|---|---|---|---|", *of_rates, ""]
    title = ["# Capacity plan", "", f"Workload: {about}.", ""]
    return "\n".join([*title, "## What does not fit, and what dominates", "", *(f"- {one}" for one in said), "", "## Lines", "", *table, *table_of_rates])


def made_folder(flag: str, named: str) -> Path:
    """The folder that is written to.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        Path(named).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag} {named}: no folder can be made there ({error}). Name another one.") from error
    return Path(named)


def rates_for(args: argparse.Namespace, config: Config) -> dict[RateName, Rate]:
    """The file's rates, and what is measured here where there is no file or --calibrate asks for it."""
    given = read_rates(args.rates) if args.rates is not None else {}
    if args.rates is not None and not args.calibrate:
        return given
    with ray_session(config.cluster):
        return {**calibrate(config), **given}


def run(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Plan, write and print; returns what the command's last line says."""
    sizes = {name: getattr(args, name) for name in SIZES}
    missing = [f"--{name.replace('_', '-')}" for name, value in sizes.items() if value is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)}: how many? For example --users 1e9 --items 1e8 --events-per-day 1e10.")
    pairs = {flag: _pairs(getattr(args, flag), f"--{flag}") for flag in GIVEN}
    twice = sorted(set(SIZES) & set(pairs["workload"]))
    if twice:
        raise ValueError(f"--workload {twice[0]}: it has a flag of its own, --{twice[0].replace('_', '-')}.")
    # Everything that can be refused is, before the rates are measured.
    work, shape = told(Workload, {**sizes, **pairs["workload"]}, "--workload"), shape_of(config, pairs["shape"])
    room, prices = told(Room, pairs["room"], "--room"), told(Prices, pairs["price"], "--price")
    folder = made_folder("--out", args.out)
    rates = rates_for(args, config)
    lines = plan(work, shape, rates)
    lines += costs(lines, prices)
    said = [*limits(work, shape, lines, room), *dominant(work, lines)]
    said += [f"without the rate {name} ({UNITS[name]}) the plan says bytes and no hours of it." for name in sorted(OPTIONAL - set(rates))]
    text = as_text(lines, said, work, rates)
    (folder / "plan.md").write_text(text)
    (folder / "rates.toml").write_text(rates_text(rates))
    inputs = {"workload": work, "shape": shape, "room": room, "prices": prices}
    whole = {name: one.model_dump() for name, one in inputs.items()} | {"rates": {name: rate.model_dump() for name, rate in rates.items()}}
    (folder / "plan.json").write_text(json.dumps({**whole, "lines": [vars(one) for one in lines], "said": said}, indent=1, allow_nan=False))
    print(text)
    return {"plan": str(folder / "plan.md"), "rates": str(folder / "rates.toml"), "said": said}


def main() -> None:
    with clear_errors():
        args = _arguments()
        config = load(args.config, args.overrides)
        if args.check:
            out = made_folder("--out", args.out or "results")
            with ray_session(config.cluster):
                print(json.dumps(plan_check.check(config, out, shlex.join(["python", "-m", "pipelines.plan", *sys.argv[1:]]))))
            return
        args.out = args.out or "plan"
        print(json.dumps(run(args, config)))


def _pairs(given: Sequence[str], flag: str) -> dict[str, float]:
    """name=number, as often as the flag is given.

    Raises:
        ValueError: one is something else.
    """
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"{flag} {one}: expected name=number.") from None
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    parser.add_argument("--config", help="TOML file whose widths, codebooks, encoders and ranker (sweep.ranker) are planned for")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--rates", help="TOML file of rates; without it they are measured here")
    parser.add_argument("--calibrate", action="store_true", help="measure here what the file of --rates leaves out")
    kinds: tuple[type[BaseModel], ...] = (Workload, Shape, Room, Prices)
    for flag, kind in zip(GIVEN, kinds, strict=True):
        told_of = ", ".join(name for name in kind.model_fields if name not in SIZES)
        parser.add_argument(f"--{flag}", action="append", default=[], metavar="name=number", help=told_of)
    parser.add_argument("--check", action="store_true", help="predictions beside measured runs, into plan_check.md below --out (default: results)")
    parser.add_argument("--out", help="folder for what is written (default: plan)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
