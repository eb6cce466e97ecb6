"""The tree's rules: which package may import which, what importing may do, how long a file may be, which environment a job gets."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from longtail.config import load

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"longtail": ROOT / "platform", "actors": ROOT, "pipelines": ROOT, "tuning": ROOT, "serve_apps": ROOT}  # package -> its source root
MAY_IMPORT = {
    "longtail": {"longtail"},
    "actors": {"longtail", "actors"},
    "pipelines": {"longtail", "actors", "pipelines"},
    "tuning": {"longtail", "actors", "pipelines", "tuning"},
    "serve_apps": {"longtail", "actors", "pipelines", "serve_apps"},
}
OUTSIDE = {"bench", "tests", "scripts"}  # nothing that is shipped may import these
SOURCES = {".py", ".sh", ".toml", ".yaml", ".js", ".css", ".html"}
MAX_LINES = 500


def python_files(root: Path, package: str) -> Iterator[Path]:
    yield from sorted((root / package).rglob("*.py"))


def module_name(root: Path, file: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(root: Path, file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file it does; relative imports as absolute names."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(root, file).split(".")
                if file.name != "__init__.py":
                    package.pop()
                package = package[: len(package) - (node.level - 1)]
                base = ".".join([*package, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if not base)


def violations(packages: dict[str, Path]) -> list[str]:
    """One line "file imports name" for each import against the direction."""
    found = []
    for package, root in packages.items():
        forbidden = (set(packages) | OUTSIDE) - MAY_IMPORT[package] | ({"ray"} if package == "longtail" else set())
        for file in python_files(root, package):
            names = sorted({name for name in imported(root, file) if name.split(".")[0] in forbidden})
            found += [f"{file.relative_to(root)} imports {name}" for name in names]
    return found


def test_imports_flow_one_way() -> None:
    assert not violations(PACKAGES), "\n".join(violations(PACKAGES))


def test_a_wrong_import_is_named(tmp_path: Path) -> None:
    files = {
        "longtail/codes.py": "def f():\n    import ray.data\n",
        "longtail/rankers/duet.py": "from ...pipelines import train\n",
        "actors/embed.py": "from longtail import codes\nfrom pipelines.stage import ensure\n",
        "pipelines/codes.py": "from serve_apps import app\nimport ray\n",
        "tuning/sweep.py": "from pipelines import train\nfrom tests import conftest\n",
        "serve_apps/app.py": "import tuning.spaces as spaces\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert violations(dict.fromkeys(PACKAGES, tmp_path)) == [
        "longtail/codes.py imports ray.data",
        "longtail/rankers/duet.py imports pipelines",
        "actors/embed.py imports pipelines.stage",
        "pipelines/codes.py imports serve_apps",
        "tuning/sweep.py imports tests",
        "serve_apps/app.py imports tuning.spaces",
    ]


def test_platform_is_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow the standard library's platform: import uuid and import ray break"


IMPORT_ALL = """
import importlib, os, sys, threading
connected = []
sys.addaudithook(lambda event, arguments: connected.append(arguments[1]) if event == "socket.connect" and isinstance(arguments[1], tuple) else None)
for name in sys.argv[1:]:
    entries = set(os.listdir("."))
    importlib.import_module(name)
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), f"importing {name} started Ray"
    assert set(os.listdir(".")) == entries, f"importing {name} wrote {set(os.listdir('.')) - entries}"
    assert not connected, f"importing {name} connected to {connected}"
    assert "longtail" != name.split(".")[0] or ray is None, f"importing {name} imported ray"
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_does_nothing(package: str, tmp_path: Path) -> None:
    root = PACKAGES[package]
    names = [module_name(root, file) for file in python_files(root, package)]
    assert names
    before = set(tree(ROOT))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")]), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", IMPORT_ALL, *names], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-2000:]
    written = set(tree(ROOT)) - before
    assert not {path for path in written if path.suffix not in {".py", ".md", ".toml"}}, "importing wrote into the checkout"


def tree(root: Path) -> Iterator[Path]:
    """The files of the checkout, caches and the environment left out."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in {"__pycache__", "runs"} and not name.startswith(".") and not name.endswith(".egg-info")]
        yield from (Path(folder) / name for name in files)


def test_no_file_is_too_long() -> None:
    long = {}
    for path in tree(ROOT):
        if path.suffix in SOURCES and "Generated by" not in path.read_text()[:200]:
            lines = len(path.read_text().splitlines())
            if lines > MAX_LINES:
                long[str(path.relative_to(ROOT))] = lines
    assert not long, f"more than {MAX_LINES} lines, split by reader: {long}"


def test_every_config_loads() -> None:
    configs = sorted((ROOT / "pipelines" / "configs").glob("*.toml"))
    assert {"demo.toml", "test.toml"} <= {path.name for path in configs}
    for path in configs:
        load(path)


def test_jobs_and_applications_get_the_core_and_leave_the_bulk_behind() -> None:
    environment = yaml.safe_load((ROOT / "platform" / "runtime_env.yaml").read_text())
    assert environment["env_vars"] == {"PYTHONPATH": "platform"}, "relative to the uploaded working directory; an absolute path would name this machine"
    assert {".venv", ".git", "runs"} <= set(environment["excludes"])
    assert set(environment) == {"env_vars", "excludes"}
