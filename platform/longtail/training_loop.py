"""The training loop: one for every ranker, on global batches that do not depend on the number of workers; checkpoints in safetensors.

Reads samples (longtail.sample_files); `TrainState.save` and longtail.checkpoint write. Run: python -m pipelines.train --config …

Letters: B rows of this worker's share, N rows of the global batch.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from longtail.checkpoint import save_ranker, save_tensors
from longtail.gradients import by_row, clip, collect
from longtail.optimizers import optimizer_of
from longtail.rankers.ranker import Ranker, RankerOutput
from longtail.sample_files import ALONE, GlobalBatch, Purpose, SampleFiles, Workers, generator
from longtail.training import FEW_STEPS, TrainSettings, learning_rate

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 10.0


class NonFiniteLossError(ValueError):
    """The loss or the gradient is not a number; the step's update was not made."""


Metrics = dict[str, Any]
Validate = Callable[[Ranker], Metrics]
Wrap = Callable[[Ranker, Iterable[str]], nn.Module]


@dataclass
class TrainState:
    """A ranker between two epochs, with all that the next one needs."""

    ranker: Ranker
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # finished epochs
    step: int = 0  # finished global batches
    metrics: list[Metrics] = field(default_factory=list)  # by epoch
    best_epoch: int = 0  # from 1
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write all of it; `restore` reads it."""
        save_ranker(folder, self.ranker, step=self.step, metrics=self.metrics)
        save_tensors(folder / "best.safetensors", self.best_weights)
        moments = {f"{number}.{name}": value for number, per_parameter in self.optimizer.state_dict()["state"].items() for name, value in per_parameter.items()}
        save_tensors(folder / "optimizer.safetensors", moments)
        progress = {"epoch": self.epoch, "step": self.step, "metrics": self.metrics, "best_epoch": self.best_epoch}
        (folder / "progress.json").write_text(json.dumps(progress))

    def save_best(self, folder: Path) -> None:
        """Write the finished checkpoint: the best epoch's weights."""
        save_ranker(folder, self.ranker, weights=self.best_weights, step=self.step, metrics=self.metrics)

    def restore(self, folder: Path) -> None:
        """Continue where `save` left off."""
        self.ranker.load_state_dict(load_file(folder / "weights.safetensors"))
        self.best_weights = load_file(folder / "best.safetensors")
        state = self.optimizer.state_dict()
        state["state"] = {}
        for key, value in load_file(folder / "optimizer.safetensors").items():
            number, name = key.split(".", 1)
            state["state"].setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict(state)
        progress = json.loads((folder / "progress.json").read_text())
        self.epoch, self.step, self.metrics, self.best_epoch = progress["epoch"], progress["step"], progress["metrics"], progress["best_epoch"]

    def keep_best(self, by: str) -> None:
        """Keep this epoch's weights if it is the best so far; where no epoch yet has a value to compare, the last one."""
        score, best = (self.metrics[epoch - 1].get(by, math.nan) for epoch in (self.epoch, self.best_epoch))
        better = score < best if by == "log_loss" else score > best
        if self.best_epoch == 0 or better or math.isnan(best):
            self.best_epoch = self.epoch
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.ranker.state_dict().items()}


def train_ranker(
    ranker: Ranker,
    files: SampleFiles,
    settings: TrainSettings,
    *,
    seed: int,
    workers: Workers = ALONE,
    device: torch.device | str = "cpu",
    wrap: Wrap | None = None,
    validate: Validate | None = None,
    resume: Path | None = None,
    fitted: bool = False,
    on_epoch: Callable[[Metrics, TrainState], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainState:
    """Train for the configured epochs; the state's best weights are those of the best epoch.

    Args:
        ranker: with freshly drawn weights, the same on every worker.
        files: labelled rows for the ranker's heads.
        settings: the train section.
        seed: of the order of rows and of what ID dropout hides.
        workers: this process among those that train together; more than one need a torch.distributed process group.
        device: where to train.
        wrap: distribution, DDP in the pipeline, but for the parameters named, which the loop brings together itself; None for one worker.
        validate: metrics of the ranker on the validation split, the same on every worker.
        resume: folder of a saved state.
        fitted: the ranker was trained before and its normalisers stay as they are.
        on_epoch: called on every worker after every epoch.
        on_step: called with the step (from 1) and the global batch's mean loss, the same on every worker.

    Raises:
        NonFiniteLossError: before the update of the step whose loss or gradient is not finite; on every worker.
    """
    ranker.to(device)
    state = TrainState(ranker, optimizer_of(list(ranker.parameters()), settings))
    if resume is not None:
        state.restore(resume)
        ranker.to(device)
    elif not fitted:
        ranker.fit_statistics(files.first_batch().to(device))
    rows = by_row(ranker, settings)
    module = ranker if wrap is None else wrap(ranker, rows)
    num_steps = settings.epochs * files.steps_per_epoch(settings.batch_size)
    if num_steps < FEW_STEPS and workers.rank == 0:
        logger.warning(
            "%s: %d optimiser steps in all (%d rows, train.batch_size = %d, train.epochs = %d) hardly train it. Lower train.batch_size or raise train.epochs.",
            ranker.name,
            num_steps,
            sum(files.labelled["train"]),
            settings.batch_size,
            settings.epochs,
        )
    while state.epoch < settings.epochs:
        train = _train_epoch(module, list(rows.values()), state, files, settings, seed, workers, device, num_steps, on_step)
        state.epoch += 1
        metrics: Metrics = {"epoch": state.epoch, "step": state.step, **train}
        if validate is not None:
            metrics |= validate(ranker)
        state.metrics.append(metrics)
        state.keep_best(settings.keep)
        logger.info("%s: epoch %d/%d: %s", ranker.name, state.epoch, settings.epochs, _in_words(metrics))
        if on_epoch is not None:
            on_epoch(metrics, state)
    return state


def _train_epoch(
    module: nn.Module,
    parameters_by_row: Sequence[torch.Tensor],
    state: TrainState,
    files: SampleFiles,
    settings: TrainSettings,
    seed: int,
    workers: Workers,
    device: torch.device | str,
    num_steps: int,
    on_step: Callable[[int, float], None] | None,
) -> Metrics:
    """One pass over the training rows; returns the mean loss and its parts per row."""
    ranker = state.ranker
    ranker.train()
    sums: dict[str, float] = {}
    rows, started, said = 0, time.monotonic(), time.monotonic()
    for share in files.epoch(state.epoch, settings.batch_size, seed, workers, device):
        rate = learning_rate(settings, state.step, num_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator(Purpose.DROPOUT, seed, state.step, workers.rank))))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
            output: RankerOutput = module(share.batch, _hidden(share, settings.id_dropout, seed, state.step, device))
        loss, parts = ranker.loss(share.batch, output)
        state.optimizer.zero_grad(set_to_none=True)
        # DDP averages the workers' gradients: times their number, over the rows of the global batch, it is one worker's mean.
        (loss * (workers.size / share.num_rows)).backward()  # type: ignore[no-untyped-call]
        collect(parameters_by_row, workers)
        norm = clip(ranker.parameters(), settings.max_grad_norm)
        totals = _sum_over_workers({"loss": loss.detach(), **parts}, workers)
        if not (math.isfinite(totals["loss"]) and math.isfinite(norm)):
            raise NonFiniteLossError(
                f"{ranker.name}: step {state.step + 1} of epoch {state.epoch + 1} has loss {totals['loss']:g} and gradient norm {norm:g} at learning rate "
                f"{rate:g}; the update was not made. Lower train.learning_rate ({settings.learning_rate:g}), or look for values that are not finite "
                "in the samples' features."
            )
        state.optimizer.step()
        state.step += 1
        rows += share.num_rows
        for name, value in totals.items():
            sums[name] = sums.get(name, 0.0) + value
        if on_step is not None:
            on_step(state.step, totals["loss"] / share.num_rows)
        if time.monotonic() - said > PROGRESS_EVERY_S and workers.rank == 0:
            said = time.monotonic()
            per_s = rows / (said - started)
            logger.info("%s: epoch %d, step %d/%d, loss %.4f, %.0f rows/s", ranker.name, state.epoch + 1, state.step, num_steps, sums["loss"] / rows, per_s)
    return {f"train/{name}": value / rows for name, value in sums.items()}


def _hidden(share: GlobalBatch, id_dropout: float, seed: int, step: int, device: torch.device | str) -> torch.Tensor | None:
    """Whose user and item IDs are hidden, bool [B, 2]; drawn for the global batch, so that it is the same for any number of workers."""
    if id_dropout == 0:
        return None
    draws_N2 = torch.rand(share.num_rows, 2, generator=generator(Purpose.HIDE, seed, step))
    return (draws_N2[share.start : share.start + len(share.batch)] < id_dropout).to(device)


def _sum_over_workers(values: Mapping[str, torch.Tensor], workers: Workers) -> dict[str, float]:
    stacked = torch.stack([value.float() for value in values.values()])
    if workers.size > 1:
        dist.all_reduce(stacked)
    return dict(zip(values, stacked.tolist()))


def _in_words(metrics: Mapping[str, Any]) -> str:
    shown: Sequence[str] = ("train/loss", "auc", "gauc", "log_loss")
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in shown if name in metrics)
