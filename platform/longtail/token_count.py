"""Token counts of many texts, by a model's own tokenizer or, where no model is asked, by words."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from longtail.packaged_models import resolve

CountTokens = Callable[[Sequence[str]], Sequence[int]]

_PIECE = re.compile(r"\w+|[^\w\s]|\n")


def count_words(texts: Sequence[str]) -> list[int]:
    """Words, punctuation marks and line ends of each text."""
    return [len(_PIECE.findall(text)) for text in texts]


@functools.lru_cache(maxsize=4)
def token_counter(model: str) -> CountTokens:
    """Counts tokens as `model` does; its tokenizer.json is read without importing transformers, which takes seconds in every worker."""
    folder = resolve(model)
    file = Path(folder) / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(file))
        return lambda texts: [len(encoding.ids) for encoding in fast.encode_batch(list(texts), add_special_tokens=False)]
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(folder)
    return lambda texts: [len(ids) for ids in slow(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
