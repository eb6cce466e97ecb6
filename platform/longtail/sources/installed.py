"""Data that ships inside installed Python packages, found without importing them."""

import importlib.util
from pathlib import Path


def package_folder(name: str) -> Path:
    """Where the package `name` lies, without importing it.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"logs.source reads its data from the Python package {name!r}, which is not installed. Run make setup, or change logs.source.")
    return Path(next(iter(spec.submodule_search_locations)))
