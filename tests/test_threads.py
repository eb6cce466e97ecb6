"""Rows dealt out to threads: each once, and the process keeps its number of threads."""

from collections.abc import Iterator

import pytest
import torch

from longtail.threads import by_parts


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_row_once_and_in_order(threads: int) -> None:
    torch.set_num_threads(threads)
    assert by_parts(lambda part: (part.start, part.stop), 10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert by_parts(lambda part: part.stop, 0, 4) == []
    assert torch.get_num_threads() == threads


def test_a_part_that_fails_leaves_the_process_its_threads() -> None:
    def fails(part: slice) -> None:
        raise MemoryError(f"rows {part.start} to {part.stop}")

    with pytest.raises(MemoryError, match="rows 0 to 1"):
        by_parts(fails, 4, 1)
    assert torch.get_num_threads() == 2
