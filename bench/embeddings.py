"""Text vectors beside `SentenceTransformer.encode` with its defaults (fp32, batches of 32, sorted by length): the same texts, model, threads and most tokens.

Texts: distinct item texts of Complete Journey as its adapter makes them (a random draw), and its households' profiles over the whole year as the platform
writes them without a language model. All sides take turns on a stated part of them; the whole is embedded by ours alone, in every dtype, and timed under
`quality`. Cosines are over the whole, to ours in float32, which is itself compared with the peer's vectors on the part; a difference raises. `stage_s` is the
stage in Ray Data on a part of the item texts, from its first block to its last, and `core_s` the same texts in this process.
Run: python -m bench.embeddings
"""

import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bench import rounds
from longtail.artifacts import Store
from longtail.codes import CodebookSettings, encode, fit_here
from longtail.config import parse
from longtail.embeddings import EncoderCompute, EncoderSettings, TextEncoder, item_texts
from longtail.logs import LogsInfo
from longtail.packaged_models import resolve
from longtail.profile_facts import facts_table
from longtail.profile_text import fallback
from longtail.profiles import ProfilesSettings
from longtail.sources import complete_journey
from pipelines.cluster import ray_session
from pipelines.embeddings import ITEM_VECTORS
from pipelines.stage import Context

Floats = npt.NDArray[np.float32]
PEER = "sentence_transformers"
MAX_TOKENS = {"items": 64, "profiles": 256}
REACH = {"ratio": 3.0, "cosine": 0.9999, "int8_ratio": 5.0, "int8_cosine": 0.99, "int8_equal_codes": 0.98}
STAGE_ITEMS = 4_000
CODEBOOK = CodebookSettings(num_stages=1, codebook_size=256)


class UnequalError(Exception):
    """The sides' vectors are not those of the same texts."""


def texts_of_a_grocer(num_items: int, num_profiles: int, seed: int) -> dict[str, list[str]]:
    """Distinct texts by kind, drawn at random."""
    raw = complete_journey.read()
    until = pc.max(raw.events.column("ts")).as_py()
    info = SimpleNamespace(behaviour_kinds=("purchase",), categorical_attributes=raw.categorical_attributes, numeric_attributes=())
    facts, _ = facts_table(raw.users, raw.items, raw.events, cast(LogsInfo, info), ProfilesSettings(), until)
    profiles = [fallback(row).text for row in facts.to_pylist()]
    rng = np.random.default_rng(seed)
    return {"items": drawn(item_texts(raw.items), num_items, rng), "profiles": drawn(profiles, num_profiles, rng)}


def drawn(texts: Sequence[str], size: int, rng: np.random.Generator) -> list[str]:
    """`size` distinct ones of `texts`.

    Raises:
        ValueError: there are fewer.
    """
    distinct = list(dict.fromkeys(texts))
    if size > len(distinct):
        raise ValueError(f"{size} distinct texts were asked for, the source has {len(distinct)}. Lower --items or --profiles.")
    return [distinct[place] for place in rng.choice(len(distinct), size, replace=False)]


Texts = Mapping[str, Sequence[str]]


class Ours:
    """The platform's encoders, one for each kind of text."""

    def __init__(self, dtype: str, threads: int) -> None:
        compute = EncoderCompute(threads=threads)
        made = {kind: EncoderSettings.model_validate({"dtype": dtype, "max_tokens": most, "compute": compute}) for kind, most in MAX_TOKENS.items()}
        self._encoders = {kind: TextEncoder(settings) for kind, settings in made.items()}

    def __call__(self, texts: Texts) -> dict[str, Floats]:
        return {kind: self._encoders[kind].encode(some) for kind, some in texts.items()}


@functools.cache
def ours(dtype: str, threads: int) -> Ours:
    """One for all that a bench does with it."""
    return Ours(dtype, threads)


class Peer:
    """sentence-transformers as its documentation uses it."""

    def __init__(self) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(resolve(EncoderSettings().model), device="cpu")

    def __call__(self, texts: Texts) -> dict[str, Floats]:
        found = {}
        for kind, some in texts.items():
            self._model.max_seq_length = MAX_TOKENS[kind]
            found[kind] = self._model.encode(list(some), normalize_embeddings=True)
        return found


def least_cosine(mine: Mapping[str, Floats], reference: Mapping[str, Floats]) -> float:
    """Of all texts, over both kinds."""
    return min(float((mine[kind].astype(np.float64) * reference[kind]).sum(1).min()) for kind in mine)


def equal_codes(mine: Floats, reference: Floats, codebook_SKD: Floats) -> float:
    """How many of the rows keep their first-level code."""
    return float((encode(mine, codebook_SKD) == encode(reference, codebook_SKD)).mean())


def check_equal(mine: Mapping[str, Floats], theirs: Mapping[str, Floats], least: float, side: str) -> None:
    """Raise UnequalError where a text's vectors differ by more than the cosine `least` allows."""
    found = least_cosine(mine, theirs)
    if not found >= least:
        raise UnequalError(f"{side}: the least cosine to the peer's vectors is {found:.6f}, below {least}.")


def alone(dtype: str, threads: int, texts: Texts) -> tuple[float, dict[str, Floats]]:
    """Seconds of one run over all texts, and their vectors."""
    side = ours(dtype, threads)
    side({kind: some[:64] for kind, some in texts.items()})
    began = time.perf_counter()
    vectors = side(texts)
    return time.perf_counter() - began, vectors


def repeats(threads: int, texts: Sequence[str]) -> dict[str, float]:
    """Seconds of distinct texts, and of the same four times over."""
    side = ours("bfloat16", threads)
    side({"items": texts[:64]})
    found = {}
    for name, some in (("distinct_s", list(texts)), ("four_times_over_s", list(texts) * 4)):
        began = time.perf_counter()
        side({"items": some})
        found[name] = rounds.rounded(time.perf_counter() - began)
    return found


def stage_seconds(texts: Sequence[str], threads: int) -> dict[str, float]:
    """Seconds of the stage `item_vectors` in Ray: from the first block's start to the last's end, the actor's own, and of the whole with the pool's start."""
    table = pa.table({"item_id": [f"{number:06d}" for number in range(len(texts))], "text": sorted(texts)})
    with tempfile.TemporaryDirectory() as folder:
        cluster = {"num_cpus": threads + 1, "dashboard": False, "object_store_mb": 256}
        compute = {"num_cpus": threads, "threads": threads}
        config = parse({"run": {"uri": folder}, "cluster": cluster, "embeddings": {"item": {"compute": compute}}}, "bench.embeddings")
        store = Store.open(folder)
        given = store.create("item_texts", "bench")
        given.write("texts", table)
        inputs = {"item_texts": given.commit(config={}, inputs={}, seed=0, rows_in=len(table), rows_out=len(table), dropped={}, info={})}
        with ray_session(config.cluster):
            began = time.perf_counter()
            pool = ITEM_VECTORS.build(Context(config, store, inputs), store.create("item_vectors", "bench")).info["embed_pool"]
            whole = time.perf_counter() - began
    return {
        "stage_s": rounds.rounded(pool["last_ended"] - pool["first_started"]),
        "stage_actor_s": rounds.rounded(pool["busy_s"]),
        "stage_with_start_up_s": rounds.rounded(whole),
    }


def timed(texts: Texts, count: int, threads: int) -> dict[str, rounds.Taken]:
    """All sides in turn on the same texts, compared."""
    import torch

    torch.set_num_threads(threads)
    runs: dict[str, Callable[[Texts], dict[str, Floats]]] = {rounds.OURS: ours("bfloat16", threads), "int8": ours("int8", threads), PEER: Peer()}
    taken = rounds.in_turns({name: rounds.Side(functools.partial(run, texts)) for name, run in runs.items()}, count)
    for name, least in ((rounds.OURS, REACH["cosine"]), ("int8", REACH["int8_cosine"])):
        check_equal(taken[name].result, taken[PEER].result, least, name)
    return taken


def reached(found: Mapping[str, float]) -> dict[str, list[Any]]:
    """What was wanted, what was found, and whether it is enough."""
    return {name: [wanted, found[name], found[name] >= wanted] for name, wanted in REACH.items()}


def bench(texts: Texts, part: Texts, count: int, threads: int, *, with_stage: bool = True) -> dict[str, Any]:
    """The JSON line."""
    taken = timed(part, count, threads)
    whole = {dtype: alone(dtype, threads, texts) for dtype in ("float32", "bfloat16", "int8")}
    vectors = {dtype: found for dtype, (_, found) in whole.items()}
    check_equal({kind: found[: len(part[kind])] for kind, found in vectors["float32"].items()}, taken[PEER].result, 0.999999, "float32")
    codebook = fit_here(vectors["float32"]["items"], CODEBOOK, 7).codebook_SKD
    int8 = taken.pop("int8")
    line = rounds.report("embeddings", {"items": len(part["items"]), "profiles": len(part["profiles"])}, taken, threads=threads, quality={})
    ratios = [theirs / own for theirs, own in zip(taken[PEER].seconds, int8.seconds, strict=True)]
    found = {
        "ratio": line["ratio"][PEER],
        "cosine": least_cosine(vectors["bfloat16"], vectors["float32"]),
        "int8_ratio": rounds.rounded(float(np.median(ratios))),
        "int8_cosine": least_cosine(vectors["int8"], vectors["float32"]),
        "int8_equal_codes": equal_codes(vectors["int8"]["items"], vectors["float32"]["items"], codebook),
    }
    line["quality"] = {
        "reach": reached(found),
        "int8_s": rounds.rounded(int8.median_s),
        "equal_codes": equal_codes(vectors["bfloat16"]["items"], vectors["float32"]["items"], codebook),
        "whole": {kind: len(some) for kind, some in texts.items()} | {f"{dtype}_s": rounds.rounded(seconds) for dtype, (seconds, _) in whole.items()},
        "repeats": repeats(threads, part["items"]),
    }
    if with_stage:
        some = texts["items"][:STAGE_ITEMS]
        line["quality"] |= {"stage_items": len(some), "core_s": rounds.rounded(alone("bfloat16", threads, {"items": some})[0])} | stage_seconds(some, threads)
    return line


def main() -> None:
    parser = rounds.arguments(__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--profiles", type=int, default=2_000)
    parser.add_argument("--part", type=float, default=0.05, help="of the texts, that all sides take turns on")
    args = parser.parse_args()
    texts = texts_of_a_grocer(args.items, args.profiles, seed=7)
    part = {kind: some[: int(args.part * len(some))] for kind, some in texts.items()}
    rounds.say(bench(texts, part, args.rounds, args.threads))


if __name__ == "__main__":
    main()
