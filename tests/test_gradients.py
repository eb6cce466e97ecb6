"""Gradients by row, the optimisers, products in bfloat16, what a GPU would be sent."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from longtail.gradients import by_row, clip, collect
from longtail.optimizers import RowAdagrad, optimizer_of
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import Ranker
from longtail.rankers.settings import RankersSettings
from longtail.sample_files import ALONE, SampleFiles, Workers
from longtail.training import TrainSettings
from longtail.training_loop import train_ranker
from tests.ranker_data import World, spec_of

WORLD = World.of(spec_of())
RANKERS = ("base", "choirrec", "saviorrec", "duet")


def make(name: str = "base") -> Ranker:
    torch.manual_seed(0)
    ranker = build_ranker(name, WORLD.spec, WORLD.catalogue(), RankersSettings.model_validate({name: {"heads": ("outcome",), "id_dim": 4}}))
    ranker.fit_statistics(WORLD.batch(64))
    return ranker


def gradients(ranker: Ranker, settings: TrainSettings) -> dict[str, torch.Tensor]:
    rows, batch = by_row(ranker, settings), WORLD.batch(64)
    ranker.zero_grad()
    ranker.loss(batch, ranker(batch))[0].backward()  # type: ignore[no-untyped-call]
    collect(list(rows.values()), ALONE)
    return {name: parameter.grad.to_dense() for name, parameter in ranker.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", RANKERS)
def test_gradients_by_row_are_those_of_whole_tables(name: str) -> None:
    ranker = make(name)
    whole = gradients(ranker, TrainSettings(optimizer="adam"))
    rows = gradients(ranker, TrainSettings())
    assert whole.keys() == rows.keys()
    for key, value in whole.items():
        torch.testing.assert_close(rows[key], value, rtol=1e-5, atol=1e-7, msg=key)


def test_only_where_an_untouched_row_stays_as_it_is() -> None:
    tables = {"individual.users.weight", "individual.items.ids.weight"}
    assert by_row(make(), TrainSettings()).keys() == tables
    assert not by_row(make(), TrainSettings(weight_decay=0.1))
    assert not by_row(make(), TrainSettings(optimizer="adam"))


def test_steps_by_row_are_those_of_adagrad_on_whole_tables() -> None:
    torch.manual_seed(1)
    table, dense = (nn.Parameter(torch.ones(9, 3)) for _ in range(2))
    ours, theirs = RowAdagrad([table], lr=0.1, fused=True), torch.optim.Adagrad([dense], lr=0.1)
    for rows in ([1, 4], [4, 8], [0]):
        values = torch.randn(len(rows), 3)
        table.grad = torch.sparse_coo_tensor(torch.tensor([rows]), values, (9, 3), is_coalesced=True, check_invariants=False)
        dense.grad = table.grad.to_dense()
        ours.step()
        theirs.step()
        torch.testing.assert_close(table, dense)
        torch.testing.assert_close(ours.state[table]["sum"], theirs.state[dense]["sum"])
    assert float(ours.state[table]["step"]) == 3


def test_clipping_counts_rows_and_whole_gradients() -> None:
    one, two = nn.Parameter(torch.zeros(5, 1)), nn.Parameter(torch.zeros(1))
    one.grad = torch.sparse_coo_tensor(torch.tensor([[1, 3]]), torch.tensor([[2.0], [4.0]]), (5, 1), is_coalesced=True, check_invariants=False)
    two.grad = torch.tensor([4.0])
    assert clip([one, two], 10.0) == pytest.approx(6.0)
    assert one.grad.to_dense()[:, 0].tolist() == [0, 2, 0, 4, 0]
    clip([one, two], 3.0)
    torch.testing.assert_close(one.grad.to_dense()[:, 0], torch.tensor([0.0, 1, 0, 2, 0]))
    torch.testing.assert_close(two.grad, torch.tensor([2.0]))


def test_rows_of_all_workers_come_together_as_a_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other worker met one row more, of the first of two tables."""

    def gathered(found: list[torch.Tensor], mine: torch.Tensor) -> None:
        theirs = mine.clone() if mine.dtype == torch.float32 else torch.tensor([2, 1])
        if mine.dtype == torch.float32:
            row = torch.tensor([7], dtype=torch.int32).view(torch.float32)
            theirs[:6] = torch.cat([mine[:2], mine[2:3], torch.tensor([10.0, 20.0]), row])
            theirs[6:8] = torch.cat([torch.tensor([5.0]), torch.tensor([2], dtype=torch.int32).view(torch.float32)])
        found[0].copy_(mine)
        found[1].copy_(theirs)

    def padded(tensor: torch.Tensor, *args: Any) -> torch.Tensor:
        return torch.cat([tensor, tensor.new_zeros(8 - len(tensor))])

    monkeypatch.setattr(dist, "all_gather", gathered)
    monkeypatch.setattr("longtail.gradients.functional.pad", padded)
    first, second = nn.Parameter(torch.zeros(9, 2)), nn.Parameter(torch.zeros(4, 1))
    first.grad = torch.sparse_coo_tensor(torch.tensor([[3, 3]]), torch.tensor([[1.0, 1.0], [1.0, 3.0]]), (9, 2), check_invariants=False)
    second.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([[6.0]]), (4, 1), check_invariants=False)
    collect([first, second], Workers(0, 2))
    expected = torch.zeros(9, 2)
    expected[3], expected[7] = torch.tensor([2.0, 4.0]), torch.tensor([5.0, 10.0])
    torch.testing.assert_close(first.grad.to_dense(), expected)
    torch.testing.assert_close(second.grad.to_dense()[:, 0], torch.tensor([3.0, 0, 2.5, 0]))


@pytest.mark.parametrize("name", RANKERS)
def test_bfloat16_is_for_products_alone_and_learns_the_same(name: str) -> None:
    losses: dict[str, list[float]] = {}
    seen: set[torch.dtype] = set()
    for dtype in ("float32", "bfloat16"):
        ranker = make(name)
        layer = next(module for module in ranker.modules() if isinstance(module, nn.Linear))
        hook = layer.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
        found: list[float] = []
        files = SampleFiles.of_table(WORLD.rows(200), WORLD.spec, ("outcome",))
        settings = TrainSettings(batch_size=64, epochs=1, dtype=dtype, learning_rate=0.01)  # type: ignore[arg-type]
        train_ranker(ranker, files, settings, seed=0, on_step=lambda step, loss, into=found: into.append(loss))  # type: ignore[misc]
        losses[dtype] = found
        hook.remove()
        assert {parameter.dtype for parameter in ranker.parameters()} == {torch.float32}
    assert seen == {torch.float32, torch.bfloat16}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.02)
    assert losses["bfloat16"] != losses["float32"]


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_optimisers_are_fused(optimizer: str) -> None:
    built = optimizer_of(list(make().parameters()), TrainSettings(optimizer=optimizer))  # type: ignore[arg-type]
    assert all(group["fused"] for group in built.param_groups)


def test_a_batch_goes_to_a_gpu_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    batch = WORLD.batch(3)

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(("pin", None))
        return tensor

    def to(tensor: torch.Tensor, device: Any, *, non_blocking: bool) -> torch.Tensor:
        calls.append((str(device), non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch.to("cuda:1")
    assert calls == [("pin", None)] * (len(calls) // 2) + [("cuda:1", True)] * (len(calls) // 2)
    calls.clear()
    batch.to("cpu")
    assert {name for name, _ in calls} == {"cpu"}
