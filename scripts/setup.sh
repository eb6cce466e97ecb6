#!/usr/bin/env bash
# Install a lock and the core into a virtual environment: scripts/setup.sh VENV LOCK. `make setup` and cluster.yaml call it.
#
# PYTHON       the interpreter, Python 3.11 (default python3.11)
# TORCH_INDEX  where the CPU build of torch lies if pip does not find it by itself: an index URL or a folder of wheels
#
# Every lock is complete, so packages are installed without resolving (--no-deps): some declare dependencies that break the others.
set -euo pipefail

venv=$1
lock=$2
python=${PYTHON:-python3.11}
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $venv == /* ]] || venv="$(pwd -P)/$venv"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
  fail "PYTHON = $python does not start. Longtail needs Python 3.11: install it (apt install python3.11 python3.11-venv, or uv python install 3.11) or name it: make setup PYTHON=/path/to/python3.11"
[[ $version == 3.11 ]] || fail "PYTHON = $python is Python $version. Longtail needs 3.11; name one: make setup PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments. Install its venv module (apt install python3.11-venv)."

rm -f "$venv/.installed"
# A moved checkout leaves an environment whose scripts name the old place.
if [[ ! -x $venv/bin/python ]] || ! grep -qsF "$venv" "$venv/bin/activate"; then
  say "creating $venv"
  "$python" -m venv --clear "$venv"
fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# torch==x.y.z+cpu is not on PyPI. If pip is not told where else to look, it comes from TORCH_INDEX.
torch=$(grep -E '^torch==.*\+cpu$' "$lock" || true)
if [[ -n $torch ]] && ! "${pip[@]}" install -qq --no-deps "$torch" 2>/dev/null; then
  say "$torch from $torch_index"
  if [[ -d $torch_index ]]; then source=(--no-index --find-links "$torch_index"); else source=(--index-url "$torch_index"); fi
  "${pip[@]}" install -qq --no-deps "${source[@]}" "$torch" || fail "$torch is neither on pip's own indexes nor at TORCH_INDEX = $torch_index. Name an index or a folder that has it: make setup TORCH_INDEX=…"
fi

say "installing $(grep -cE '^[A-Za-z]' "$lock") packages from $lock (a few minutes, about 4 GB)"
"${pip[@]}" install -qq --no-deps --requirement "$lock"
"${pip[@]}" install -qq --no-deps --no-build-isolation --editable .
touch "$venv/.installed"
say "done: $venv"
