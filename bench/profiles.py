"""Profiles: prompts of a grocer's real households answered by the packaged language model, beside vLLM asked directly and transformers' generate.

Ours is the profile actor as the stage runs it: blocks of prompts, several at once, patterns, cache writes, parsing and checks included. `vllm_chat` is
LLM.chat on the same engine (so with the same settings, those that were fastest here), a round's prompts in one call, patterns given. Every round has prompts
of its own; before it, either side's prefix cache holds the shared prompt and nothing else. Prompts are compared by token, answers as texts: batches of another
make-up round otherwise, so a few may differ, which are counted; more than a fifth raise. `transformers` answers a part (`quality.part`) in batches of 8, with
as many new tokens at most and without patterns, which it has none of: its answers are longer, so the ratio by new token stands beside.
Also: many prompts once for ours (`whole`), a rerun in which few households changed, and the Ray stage.

    python -m bench.profiles                     about eight minutes
    python -m bench.profiles --prompts 32 --users 200 --round-prompts 16 --rounds 1 --part-rounds 1 --stage-prompts 16
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.engine import Engine, Prompt, VllmEngine
from actors.profile import ProfileActor
from actors.timing import rows_only
from bench import rounds
from bench.profiles_checks import compare, compare_ids, shareable
from bench.profiles_households import Households, households, plant
from bench.profiles_peers import Chat, Generate, Watch
from longtail.artifacts import Store
from longtail.config import load
from longtail.profile_form import answer_pattern
from pipelines import blocks
from pipelines.cluster import ray_session
from pipelines.profiles import BLOCKS_AT_ONCE, PROFILES
from pipelines.stage import Context

CONFIG = "pipelines/configs/complete_journey.toml"
CHAT, GENERATE = "vllm_chat", "transformers"
PART = 16  # prompts of the slow peer
CHANGED = 0.05


def profiles(engine: Engine, homes: Households, prompts: pa.Table, cache: Path) -> pa.Table:
    """What the stage's actor makes of the prompts, in their order."""
    actor = ProfileActor(homes.config.profiles, str(cache), homes.key, homes.names, load=lambda _: engine)
    with ThreadPoolExecutor(BLOCKS_AT_ONCE) as pool:
        return rows_only(pa.concat_tables(pool.map(actor, blocks.cut(prompts, homes.config.profiles.compute.batch_size))))


def asked(prompts: pa.Table, homes: Households) -> list[Prompt]:
    """What the actor asks of its engine."""
    return [Prompt(row["facts"], answer_pattern(homes.config.profiles, row)) for row in prompts.to_pylist()]


@dataclass
class Turns:
    """Rounds of prompts of their own: `before` takes the next ones and makes the engine forget all but the shared prompt."""

    parts: Sequence[Any]
    run: Callable[[Any], Any]
    forget: Callable[[], None]
    turn: int = -1
    results: list[Any] = field(default_factory=list)

    def side(self) -> rounds.Side:
        return rounds.Side(self._run, self._before)

    def _before(self) -> None:
        self.turn += 1
        self.forget()

    def _run(self) -> None:
        self.results.append(self.run(self.parts[self.turn]))


@dataclass
class Rerun:
    """What a run cost in which few households changed."""

    seconds: float
    asked: int
    users: int


def rerun(engine: Engine, homes: Households, cache: Path) -> Rerun:
    """Facts, prompts, cache look-ups and answers of all households after a few bought something."""
    changed = homes.after_a_purchase(CHANGED)
    began = time.perf_counter()
    table = profiles(engine, homes, changed.prompts(), cache)
    seconds = time.perf_counter() - began
    return Rerun(seconds, len(table) - int(pc.sum(table.column("cached")).as_py()), len(table))


def stage_s(homes: Households) -> dict[str, float]:
    """Seconds of the stage in Ray Data with its vectors, from the first prompt's asking to the last vector; the engine's start and the whole beside."""
    with tempfile.TemporaryDirectory(prefix="bench-profiles-stage-") as folder:
        config = homes.config.model_copy(update={"run": homes.config.run.model_copy(update={"uri": folder})})
        store = Store.open(folder)
        logs = homes.written(store)
        with ray_session(config.cluster):
            began = time.perf_counter()
            info = PROFILES.build(Context(config, store, {"logs": logs}), store.create("profiles", "bench")).info
            whole = time.perf_counter() - began
    seconds = info["embed_pool"]["last_ended"] - info["profile_pool"]["first_started"]
    return {"stage_s": rounds.rounded(seconds), "stage_with_start_up_s": rounds.rounded(whole), "engine_start_s": info["engine_start_s"]}


def cut(prompts: pa.Table, sizes: Sequence[int]) -> list[pa.Table]:
    """The first rows of a table in pieces of these sizes.

    Raises:
        ValueError: there are not enough.
    """
    if sum(sizes) > len(prompts):
        raise ValueError(f"--users gives {len(prompts)} prompts: the rounds take {sum(sizes)}. Raise it, or lower --rounds, --part-rounds or --round-prompts.")
    starts = np.cumsum([0, *sizes])
    return [prompts.slice(int(start), size) for start, size in zip(starts, sizes, strict=False)]


class Bench:
    """The engine and its peers over one draw of households."""

    def __init__(self, homes: Households, engine: VllmEngine, folder: Path) -> None:
        self.homes, self.engine, self.folder = homes, engine, folder
        self.watch = Watch(engine.llm)
        self.prompts = homes.prompts()

    def forget(self) -> None:
        """A prefix cache that holds the shared prompt alone."""
        self.engine.llm.reset_prefix_cache()
        self.engine.answer([Prompt("none", "[a-z]")], 1)
        self.watch.taken()

    def in_turns(self, parts: Sequence[pa.Table], peer: Any, name: str, warm_up: int) -> tuple[dict[str, rounds.Taken], Turns, Turns, list[Any]]:
        """Ours and a peer over the parts, one a round; what the engine answered to ours and to a peer that asks it too."""
        of_engine: list[Any] = []

        def ours(part: pa.Table) -> list[str]:
            table = profiles(self.engine, self.homes, part, self.folder / f"{name}-{len(of_engine)}")
            texts: list[str] = table.column("raw_text").to_pylist()
            of_engine.append(self.watch.taken())
            return texts

        mine, theirs = Turns(parts, ours, self.forget), Turns([asked(part, self.homes) for part in parts], peer.run, self.forget)
        taken = rounds.in_turns({rounds.OURS: mine.side(), name: theirs.side()}, len(parts) - warm_up, warm_up)
        return taken, mine, theirs, of_engine


def whole(bench: Bench, homes: Households) -> dict[str, Any]:
    """All prompts of `homes` once, from their facts on, the share of tokens that the prefix cache served, and the same after few of them changed."""
    bench.engine.llm.reset_prefix_cache()
    bench.watch.taken()
    cache = bench.folder / "whole"
    began = time.perf_counter()
    prompts = homes.prompts()
    asking = time.perf_counter()
    profiles(bench.engine, homes, prompts, cache)
    ended = time.perf_counter()
    outputs = bench.watch.taken()
    cached, possible = sum(output.num_cached_tokens for output in outputs), shareable([output.prompt_token_ids for output in outputs])
    again = rerun(bench.engine, homes, cache)
    return {
        "prompts": len(prompts),
        "seconds": rounds.rounded(ended - began),
        "seconds_a_prompt": rounds.rounded((ended - asking) / len(outputs)),
        "prompt_tokens": rounds.rounded(statistics.mean(len(output.prompt_token_ids) for output in outputs)),
        "new_tokens": rounds.rounded(statistics.mean(len(output.outputs[0].token_ids) for output in outputs)),
        "cached_of_shareable": rounds.rounded(cached / possible),
        "rerun": {**vars(again), "to_first_run": rounds.rounded(again.seconds / (ended - began))},
    }


def large_rerun(bench: Bench, seconds_a_prompt: float) -> dict[str, Any]:
    """The rerun of all households, in full, over a cache that was planted; the first run is the facts of all and `seconds_a_prompt` for each."""
    cache = bench.folder / "planted"
    plant(bench.homes, bench.prompts, cache)
    bench.forget()
    again = rerun(bench.engine, bench.homes, cache)
    began = time.perf_counter()
    bench.homes.prompts()
    first = time.perf_counter() - began + seconds_a_prompt * len(bench.prompts)
    return {**vars(again), "first_run_s": rounds.rounded(first), "to_first_run": rounds.rounded(again.seconds / first), "first_run": "facts + seconds a prompt"}


def compared(bench: Bench, args: argparse.Namespace) -> tuple[dict[str, rounds.Taken], dict[str, Any]]:
    """The rounds beside LLM.chat, and what they say beyond their seconds."""
    part = cut(bench.prompts, [args.round_prompts] * (args.rounds + 1))
    chat = Chat(bench.engine, bench.watch)
    taken, mine, theirs, outputs = bench.in_turns(part, chat, CHAT, 1)
    for own, other in zip(outputs, chat.outputs, strict=True):
        compare_ids([one.prompt_token_ids for one in own], [one.prompt_token_ids for one in other])
    return taken, {"texts": sum(map(len, mine.results)), "texts_differing": compare(mine.results, theirs.results)}


def beside_generate(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """The part of the slow peer: seconds of both, and the ratio, also by new token."""
    rest = bench.prompts.slice((args.rounds + 1) * args.round_prompts)
    peer = Generate(bench.engine, bench.homes.config.profiles)
    taken, _, _, outputs = bench.in_turns(cut(rest, [PART] * args.part_rounds), peer, GENERATE, 0)
    compare_ids([one.prompt_token_ids for own in outputs for one in own], peer.ids)
    ours = sum(len(one.outputs[0].token_ids) for own in outputs for one in own)
    line = rounds.report("part", {}, taken, threads=args.threads, quality={})
    return {
        "prompts": PART,
        "ours_s": line["ours_s"],
        "transformers_s": line["peers"][GENERATE],
        "ratio": line["ratio"][GENERATE],
        "spread": line["spread"],
        "new_tokens": {rounds.OURS: ours, GENERATE: peer.new_tokens},
        "ratio_by_new_token": rounds.rounded(line["ratio"][GENERATE] * ours / peer.new_tokens),
    }


def reach(found: Mapping[str, tuple[str, float, bool]]) -> dict[str, list[Any]]:
    """Wanted, found, met."""
    return {name: [wanted, rounds.rounded(value), met] for name, (wanted, value, met) in found.items()}


def line(bench: Bench, args: argparse.Namespace, stage: Mapping[str, float]) -> dict[str, Any]:
    """All that is measured."""
    taken, texts = compared(bench, args)
    all_at_once = whole(bench, bench.homes.some(args.prompts, args.seed))
    again = large_rerun(bench, all_at_once["seconds_a_prompt"])
    part = beside_generate(bench, args)
    compute = bench.homes.config.profiles.compute
    settings = {name: getattr(compute, name) for name in ("batch_size", "max_num_seqs", "kv_block_size", "dtype")}
    made = rounds.report("profiles", {"round_prompts": args.round_prompts, "max_new_tokens": 96} | settings, taken, threads=args.threads, quality={})
    made["ratio"][GENERATE] = part["ratio"]
    direct, cached = made["ratio"][CHAT], all_at_once["cached_of_shareable"]
    wanted = {
        f"speed to {CHAT}'s": (">= 0.95", direct, direct >= 0.95),
        f"speed to {GENERATE}'s": (">= 10", part["ratio"], part["ratio"] >= 10),
        "shareable prompt tokens from the prefix cache": (">= 0.95", cached, cached >= 0.95),
        f"a rerun of {again['users']}, {CHANGED:.0%} changed, to the first run": ("<= 0.08", again["to_first_run"], again["to_first_run"] <= 0.08),
    }
    made["quality"] = {**texts, "part": part, "whole": all_at_once, "rerun": again, **stage, "reach": reach(wanted)}
    return made


def main() -> None:
    parser = rounds.arguments(__doc__)
    for name, default, told in (
        ("round-prompts", 48, "of a round beside LLM.chat"),
        ("part-rounds", 2, f"rounds of {PART} prompts beside transformers, which takes a minute for each"),
        ("prompts", 256, "of the whole run of ours"),
        ("users", 2000, "households of the rerun, of which the rounds take theirs"),
        ("stage-prompts", 48, "of the Ray stage"),
        ("seed", 7, "of the draws"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=told)
    args = parser.parse_args()
    settings = ["profiles.generator=llm", f"profiles.compute.threads={args.threads}", f"cluster.num_cpus={args.threads + 1}", "cluster.dashboard=false"]
    homes = households(load(CONFIG, settings))
    stage = stage_s(homes.some(args.stage_prompts, args.seed))  # first, so that the two engines' memory is never needed at once
    with tempfile.TemporaryDirectory(prefix="bench-profiles-") as folder:
        bench = Bench(homes.some(args.users, args.seed), VllmEngine(homes.config.profiles), Path(folder))
        rounds.say(line(bench, args, stage))


if __name__ == "__main__":
    main()
