"""A packed text encoder: texts to tokens in one thread, packs of them through the model in another.

Reads a loaded sentence-transformers model; longtail.embeddings decides where it is used.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from longtail.packing import packs

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from longtail.packed_bert import PackedBert

Floats = npt.NDArray[np.float32]

#: Texts that are tokenised at a time; the next ones while the model has these.
WINDOW = 1024

#: glibc gives freed blocks of some megabytes back to the system, and their pages are fetched anew for the next product (140,000 faults for 1,650 texts),
#: until it saw one of almost 32 MiB come and go: then it keeps them.
KEPT_BYTES = (32 << 20) - (1 << 13)


@dataclass(frozen=True)
class PackedEncoder:
    """A fast tokenizer (no padding, cut at the most tokens) and a model that takes packs."""

    tokenizer: Any
    model: "PackedBert"

    def __call__(self, texts: Sequence[str], most_tokens: int) -> Floats:
        """Pooled vectors [len(texts), width], not normalised."""
        import torch

        # By length, so that a window's texts are alike and attention meets many of one length.
        order = np.argsort([len(text) for text in texts], kind="stable")
        vectors: Floats | None = None
        with torch.inference_mode():
            for window, token_ids in self._tokenised(texts, order):
                for pack in packs(token_ids, most_tokens):
                    pooled = self.model(pack).cpu().numpy()
                    if vectors is None:
                        vectors = np.empty((len(texts), pooled.shape[1]), np.float32)
                    vectors[window[pack.texts]] = pooled
        assert vectors is not None, "no texts"
        return vectors

    def _tokenised(self, texts: Sequence[str], order: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], list[list[int]]]]:
        windows = [order[start : start + WINDOW] for start in range(0, len(order), WINDOW)]
        if len(windows) == 1:
            yield windows[0], self._token_ids([texts[place] for place in order])
            return
        with ThreadPoolExecutor(1) as beside:
            coming = [beside.submit(self._token_ids, [texts[place] for place in windows[0]])]
            for number, window in enumerate(windows):
                if number + 1 < len(windows):
                    coming.append(beside.submit(self._token_ids, [texts[place] for place in windows[number + 1]]))
                yield window, coming.pop(0).result()

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]


def packed_encoder(model: "SentenceTransformer", dtype: str, device: str) -> PackedEncoder | None:
    """The same encoder, packed; None where it is another architecture than a plain BERT with a fast tokenizer, or int8 is asked for on a GPU."""
    import torch

    from longtail.packed_bert import is_plain_bert, packed_bert

    transformer, names = model[0], [type(module).__name__ for module in model]
    bert: Any = getattr(transformer, "auto_model", None)
    tokenizer: Any = getattr(model, "tokenizer", None)
    if bert is None or not getattr(tokenizer, "is_fast", False) or any(model.prompts.get(model.default_prompt_name or "", "")):
        return None
    pooling = getattr(model[1], "pooling_mode", None) if len(names) > 1 else None
    if not is_plain_bert(bert.config, names, pooling):
        return None
    if dtype == "int8" and device != "cpu":
        return None
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
    own = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(min(model.max_seq_length or bert.config.max_position_embeddings, bert.config.max_position_embeddings))
    products = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    packed = packed_bert(bert.config, bert.state_dict(), str(pooling), products, device)
    if dtype == "int8":
        from longtail.int8_bert import quantised, vocabulary_texts

        packed = quantised(packed, [encoding.ids for encoding in own.encode_batch_fast(vocabulary_texts(list(own.get_vocab())))])
    return PackedEncoder(own, packed)
