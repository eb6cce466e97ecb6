"""Stable digests: the same value gives the same text in every process and on every machine."""

import hashlib
import json
from typing import Any


def digest(value: Any, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of `value`'s canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def stable_uint64(text: str, seed: int = 0) -> int:
    """A 64-bit number drawn from `text` and `seed`, for assigning keys to shards or samples."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest(), "little")
