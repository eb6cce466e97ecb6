"""Training: what every ranker's training run is told. The loop itself is in longtail.training_loop, so that reading a config does not load torch.

Run: python -m pipelines.train --config …
"""

from typing import Literal

from pydantic import Field, field_validator

from longtail.rankers.settings import RankerName
from longtail.settings import Compute, Settings

FEW_STEPS = 100  # optimiser steps below which a ranker has hardly been trained


class TrainSettings(Settings):
    """The `train` stage; every ranker gets the same."""

    rankers: tuple[RankerName, ...] = Field(("base", "choirrec", "saviorrec"), min_length=1)
    seed: int | None = Field(None, ge=0, description="of weights and batches alone; without it run.seed, which also decides samples and codebooks")
    batch_size: int = Field(1024, ge=1, description="global, over all workers")
    epochs: int = Field(2, ge=1)
    optimizer: Literal["adagrad", "adam"] = Field("adagrad", description="the paper's is Adagrad")
    # Departs from ChoirRec's 0.01 -> 0.001: on some hundred thousand rows that leaves every ranker, the base first of all, undertrained.
    learning_rate: float = Field(0.05, gt=0)
    final_learning_rate: float = Field(0.005, gt=0, description="reached linearly at the last step")
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of products while training; weights, sums over rows and the loss stay float32")
    max_grad_norm: float = Field(10.0, gt=0)
    id_dropout: float = Field(0.1, ge=0, lt=1, description="share of user and item IDs shown as out-of-vocabulary while training")
    keep: Literal["auc", "gauc", "log_loss", "last"] = Field("auc", description="the epoch that is kept: the best by this, primary head, validation split")
    checkpoint_every_epochs: int = Field(1, ge=1)
    max_failures: int = Field(2, ge=0, description="restarts of the worker group; it resumes from its last checkpoint")
    compute: Compute = Compute(num_actors=1)

    @field_validator("rankers")
    @classmethod
    def _distinct(cls, rankers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(rankers)) < len(rankers):
            raise ValueError("a ranker is named twice; name each once")
        return rankers


def learning_rate(settings: TrainSettings, step: int, num_steps: int) -> float:
    """The rate of a step (from 0): linear from learning_rate at the first to final_learning_rate at the last (ChoirRec, training)."""
    done = step / max(num_steps - 1, 1)
    return settings.learning_rate + (settings.final_learning_rate - settings.learning_rate) * done
