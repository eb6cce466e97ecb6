"""Where a model's files lie: a folder, a hub name, or "package:<name>/<path>", a file or folder inside an installed Python package.

A .gguf file is de-quantised once by transformers into a Hugging Face folder below $LONGTAIL_CACHE (~/.cache/longtail), which vLLM and transformers load.
The package is found without importing it: some import heavy or missing dependencies.
"""

import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path

from longtail.hashing import digest

logger = logging.getLogger(__name__)

PREFIX = "package:"
_SAMPLE_BYTES = 1 << 20
_SAMPLES = 16
_WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt")


def cache_dir() -> Path:
    """Where converted models are kept: $LONGTAIL_CACHE, else ~/.cache/longtail."""
    return Path(os.environ.get("LONGTAIL_CACHE") or "~/.cache/longtail").expanduser()


def locate(model: str) -> Path | None:
    """The file or folder of `model` on this machine; None for a hub name.

    Raises:
        ValueError: a path, a package or a file in it is not there.
    """
    if not model.startswith(PREFIX):
        path = Path(model).expanduser()
        if not path.exists() and model.startswith((".", "/", "~")):
            raise ValueError(f"model = {model!r}: there is no such folder. Name one, a hub model, or package:<name>/<path>.")
        return path if path.exists() else None
    name, _, inside = model[len(PREFIX) :].partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise ValueError(f"model = {model!r}: no package {name!r} is installed in this environment. Install it, or name a folder or a hub model.")
    path = Path(folders[0]) / inside
    if not path.exists():
        raise ValueError(f"model = {model!r}: {name} has no {inside!r}; it has {sorted(p.name for p in Path(folders[0]).iterdir())}.")
    return path


def fingerprint(model: str) -> str:
    """Digest of a model's weights: of every file's name and size and of samples of its bytes, the whole of small files; a hub name stands for itself."""
    path = locate(model)
    if path is None:
        return digest({"hub": model})
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
    weights = [p for p in files if p.suffix in _WEIGHT_SUFFIXES or p.suffix in (".json", ".jinja", ".model")]
    return digest([(p.name, _file_digest(str(p), p.stat().st_size, p.stat().st_mtime_ns)) for p in weights])


@functools.lru_cache(maxsize=256)
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    """Digest of a file's size and of up to 16 evenly spaced MiB of it: weights that were trained or quantised otherwise differ everywhere."""
    sha = hashlib.sha256(str(size).encode())
    last = max(size - _SAMPLE_BYTES, 0)
    with open(path, "rb") as stream:
        for place in sorted({last * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)}):
            stream.seek(place)
            sha.update(stream.read(_SAMPLE_BYTES))
    return sha.hexdigest()


def resolve(model: str) -> str:
    """A name that transformers, vLLM and sentence-transformers load: a local folder, or a hub name as it is.

    Raises:
        ValueError: a package or file is not there, or a .gguf file cannot be read.
    """
    path = locate(model)
    if path is None:
        return model
    if path.is_dir():
        return str(path)
    if path.suffix != ".gguf":
        raise ValueError(f"model = {model!r} is a {path.suffix or 'file without suffix'}; name its folder, or a .gguf file.")
    target = cache_dir() / "models" / f"{path.stem}-{fingerprint(model)}"
    if not target.is_dir():
        _dequantise(path, target)
    return str(target)


def _dequantise(source: Path, target: Path) -> None:
    """Write a .gguf model as a Hugging Face folder in bfloat16; several processes may try at once, and the first that is done stays."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    logger.info("de-quantising %s into %s, once", source, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(aside)
        aside.chmod(0o755)
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():  # not another process's finished copy
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
