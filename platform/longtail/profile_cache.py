"""The profile cache: answers of the language model by prompt, so that users whose facts did not change cost nothing.

    <store root>/profile_cache/<engine key>/<digest of its prompts>.parquet

A part is written after every batch, as a whole or not at all, while the plan runs: a stage that was interrupted asks only for the rest. Parts are named by
what they hold, so that a repeated batch overwrites its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from longtail.artifacts import Store
from longtail.hashing import digest
from longtail.storage import write_whole

FOLDER = "profile_cache"

ANSWERS = pa.schema(
    [
        pa.field("prompt_hash", pa.string(), nullable=False),
        pa.field("raw_text", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt."""

    raw_text: str
    prompt_tokens: int
    output_tokens: int


class ProfileCache:
    """The answers of one engine key; reads what is there when it is opened, and what it adds itself."""

    def __init__(self, uri: str, engine: str) -> None:
        store = Store.open(uri)
        self._fs = store.fs
        self._folder = f"{store.root}/{FOLDER}/{engine}"
        self._answers: dict[str, Answer] = {}
        for path in self._parts():
            for row in pq.read_table(path, filesystem=self._fs).to_pylist():
                self._answers[row["prompt_hash"]] = Answer(row["raw_text"], row["prompt_tokens"], row["output_tokens"])

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, prompt_hashes: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there, by prompt hash."""
        return {key: self._answers[key] for key in prompt_hashes if key in self._answers}

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Keep `answers` by prompt hash, in one new part."""
        if not answers:
            return
        rows = [
            {"prompt_hash": key, "raw_text": answer.raw_text, "prompt_tokens": answer.prompt_tokens, "output_tokens": answer.output_tokens}
            for key, answer in sorted(answers.items())
        ]
        self._fs.create_dir(self._folder, recursive=True)
        path = f"{self._folder}/{digest(sorted(answers))}.parquet"
        part = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=ANSWERS), part)
        write_whole(self._fs, path, part.getvalue())
        self._answers.update(answers)

    def _parts(self) -> list[str]:
        if self._fs.get_file_info(self._folder).type == pafs.FileType.NotFound:
            return []
        return sorted(entry.path for entry in self._fs.get_file_info(pafs.FileSelector(self._folder)) if entry.path.endswith(".parquet"))
