"""Whether the sides of the bench of profiles did the same work, and what of it a prefix cache could have served."""

from collections.abc import Sequence
from typing import Any

MAX_DIFFERING = 0.2  # of the texts


class UnequalError(Exception):
    """The sides did not do the same work."""


def compare(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> int:
    """How many texts differ.

    Raises:
        UnequalError: more than MAX_DIFFERING of them, or their number.
    """
    mine, others = [text for one in ours for text in one], [text for one in theirs for text in one]
    differing = sum(one != other for one, other in zip(mine, others, strict=True))
    if differing > MAX_DIFFERING * len(mine):
        raise UnequalError(f"{differing} of {len(mine)} texts differ between ours and the peer: not the same prompts, patterns or decoding.")
    return differing


def compare_ids(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> None:
    """Raise where a prompt has other tokens.

    Raises:
        UnequalError: one has.
    """
    differing = sum(list(one) != list(other) for one, other in zip(ours, theirs, strict=True))
    if differing:
        raise UnequalError(f"{differing} of {len(ours)} prompts have other tokens than ours.")


def shareable(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens of each prompt's longest common prefix with an earlier one, all together; never a whole prompt, whose last token is always computed."""
    tree: dict[int, Any] = {}
    total = 0
    for tokens in prompts:
        node, common, met = tree, 0, True
        for token in tokens:
            met = met and token in node
            common += met
            node = node.setdefault(token, {})
        total += min(common, len(tokens) - 1)
    return total
