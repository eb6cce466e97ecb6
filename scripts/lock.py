"""Work out requirements/<name>.lock from pyproject.toml: every package that a set needs, with one version each.

Reads pyproject.toml, requirements/cpu-overrides.txt and package metadata from the index (never the packages); writes the locks, or with --check
writes nothing and fails where a lock is no longer what pyproject.toml asks for. Versions that still fit are kept.

    python scripts/lock.py cpu dev gpu
    python scripts/lock.py --check gpu

TORCH_INDEX names the index (URL) or folder that has the CPU build of torch, for cpu and dev.
"""

import argparse
import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {"cpu": ("cpu", "data"), "dev": ("cpu", "data", "dev"), "bench": ("cpu", "data", "dev", "bench"), "gpu": ("gpu", "data")}
HEADER = "# Made by scripts/lock.py (make lock) from pyproject.toml, for Python 3.11 on Linux x86_64. Complete: install it with --no-deps.\n"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a lock is stale or no longer resolves")
    parser.add_argument("names", nargs="+", choices=sorted(EXTRAS))
    args = parser.parse_args()
    for name in args.names:
        lock = ROOT / "requirements" / f"{name}.lock"
        before = lock.read_text() if lock.exists() else ""
        after = resolve(name, before)
        if args.check and after != before:
            sys.stderr.writelines(difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"{name}.lock", "resolved now"))
            raise SystemExit(
                f"lock: requirements/{name}.lock is not what pyproject.toml resolves to. Run python scripts/lock.py {name} and look at the change."
            )
        if not args.check:
            lock.write_text(after)
        print(f"lock: {name}: {sum('==' in line for line in after.splitlines())} packages resolve, {'as locked' if after == before else 'written'}")


def resolve(name: str, before: str) -> str:
    """The text of a lock whose versions follow `before` wherever pyproject.toml still allows it.

    Raises:
        SystemExit: the set does not resolve.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{name}.lock"
        out.write_text(before)
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-annotate", "--no-header", "--output-file", str(out)]
        command += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
        for extra in EXTRAS[name]:
            command += ["--extra", extra]
        if name != "gpu":
            command += ["--override", "requirements/cpu-overrides.txt", *_torch_source(os.environ.get("TORCH_INDEX") or TORCH_INDEX)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode != 0:
            raise SystemExit(f"lock: {name} does not resolve:\n{run.stderr}")
        return HEADER + out.read_text()


def _torch_source(index: str) -> list[str]:
    if Path(index).is_dir():
        return ["--find-links", index]
    # Torch's own index also carries old copies of common packages: look at every index for the best version, not at the first that has the name.
    return ["--index", index, "--index-strategy", "unsafe-best-match"]


if __name__ == "__main__":
    main()
