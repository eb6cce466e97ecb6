"""deploy/Containerfile, read as text: what its images hold, as whom they run, and that they are made from the locks. No engine builds them here."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "deploy" / "Containerfile"
TARGETS = ("cpu", "gpu")
CODE = {"platform", "actors", "pipelines", "tuning", "serve_apps"}


@dataclass(frozen=True)
class Instruction:
    stage: str
    word: str  # FROM, RUN, …
    rest: str


def instructions() -> list[Instruction]:
    """Every instruction with its stage, comments left out and continued lines joined."""
    text = "\n".join(line for line in FILE.read_text().splitlines() if not line.startswith("#"))
    stage, found = "", []
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.partition(" AS ")[2]
        found.append(Instruction(stage, word, rest))
    return found


def parent(stage: str) -> str:
    (source,) = [one.rest.partition(" AS ")[0] for one in instructions() if one.word == "FROM" and one.stage == stage]
    return source


def line(target: str) -> list[Instruction]:
    """All instructions that make a target, its parents' first."""
    stages = {one.stage for one in instructions() if one.word == "FROM"}
    before = parent(target)
    return [*(line(before) if before in stages else []), *(one for one in instructions() if one.stage == target)]


def sources(one: Instruction) -> list[str]:
    """What a COPY takes from the checkout."""
    words = [word for word in one.rest.split() if not word.startswith("--")]
    return [] if "--from=" in one.rest else words[:-1]


def test_every_stage_has_a_name_and_starts_from_a_pinned_image_or_another_stage() -> None:
    made: list[str] = []
    (image,) = [one.rest.removeprefix("PYTHON_IMAGE=") for one in instructions() if one.word == "ARG" and one.rest.startswith("PYTHON_IMAGE=")]
    python = re.search(r"requires-python = \">=(3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert python is not None
    assert re.search(rf":{re.escape(python[1])}\.\d+-|@sha256:[0-9a-f]{{64}}$", image), f"{image} is not one version"
    for one in instructions():
        if one.word == "FROM":
            assert parent(one.stage) == "${PYTHON_IMAGE}" or parent(one.stage) in made, one.rest
            made.append(one.stage)
        elif one.word == "COPY" and (source := re.search(r"--from=(\S+)", one.rest)):
            assert source[1] in made, one.rest
    assert set(TARGETS) <= set(made)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_a_user_without_rights_who_owns_no_code(target: str) -> None:
    made = line(target)
    users = [number for number, one in enumerate(made) if one.word == "USER"]
    assert [made[number].rest for number in users] == ["10001:10001"], "a number: Kubernetes cannot tell of a name that it is not root"
    assert any("useradd --uid 10001 --gid 10001" in one.rest for one in made)
    assert not any(one.word in ("COPY", "ADD", "RUN") for one in made[users[-1] :]), "made by root, so that nobody changes it at run time"
    assert not any("--chown" in one.rest for one in made)


@pytest.mark.parametrize("target", TARGETS)
def test_packages_come_from_the_lock_in_layers_before_the_code(target: str) -> None:
    made = line(target)
    locks = [source for one in made if one.word == "COPY" for source in sources(one)]
    assert locks == [f"requirements/{target}.lock"], "the code comes from a stage of its own"
    lock = (ROOT / locks[0]).read_text()
    installs = [one.rest for one in made if "pip install" in one.rest]
    assert all("--no-deps" in install for install in installs)
    assert installs[-1].endswith("--editable .")
    assert installs[-2].endswith("--requirement /opt/lock"), "the whole lock"
    for pattern in re.findall(r"grep -E '(\S+)' /opt/lock", " ".join(installs)):
        assert re.search(pattern, lock, re.MULTILINE), f"{pattern} finds nothing in {locks[0]}"
    code = next(number for number, one in enumerate(made) if "--from=code" in one.rest)
    assert all(number < code for number, one in enumerate(made) if "/opt/lock" in one.rest), "a change of the code would install everything anew"


@pytest.mark.parametrize("target", TARGETS)
def test_no_layer_keeps_what_only_its_making_needs(target: str) -> None:
    made = line(target)
    assert any(one.word == "ENV" and "PIP_NO_CACHE_DIR=1" in one.rest for one in made)
    for one in made:
        if "apt-get install" in one.rest:
            assert "--no-install-recommends" in one.rest
            assert one.rest.endswith("rm -rf /var/lib/apt/lists/*"), one.rest
    assert not any(re.search(r"password|token=|secret|api_key", one.rest, re.IGNORECASE) for one in made)


def test_the_code_is_all_that_runs_and_every_source_is_there_and_let_in() -> None:
    rules = [rule for rule in (ROOT / ".containerignore").read_text().splitlines() if rule and not rule.startswith("#")]
    assert rules[0] == "*", "what is not named stays out"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {source for one in instructions() if one.word == "COPY" for source in sources(one)}
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, rule) or source.startswith(f"{rule}/") for rule in let_in), f"{source} is not let in"
    assert copied >= CODE
    assert {name for name in CODE if (ROOT / name).is_dir()} == CODE
    assert not let_in & {".venv", ".git", "runs", "deploy", "tests"}
    assert {Path(source).parts[0] for source in copied} == let_in, "let in, but used nowhere"


def test_torch_can_be_taken_from_elsewhere() -> None:
    made = line("cpu")
    (argument,) = [one.rest for one in made if one.word == "ARG" and one.rest.startswith("TORCH_INDEX=")]
    default = argument.removeprefix("TORCH_INDEX=")
    assert default in (ROOT / "scripts" / "setup.sh").read_text()
    assert any("$TORCH_INDEX" in one.rest for one in made if one.word == "RUN")
