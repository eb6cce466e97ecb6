"""Optimisers of a training run: torch's, in their fused form, and Adagrad on gradients by row."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from longtail.training import TrainSettings


class RowAdagrad(torch.optim.Adagrad):
    """Adagrad that updates only the rows which a gradient by row names: the others' gradient is zero, and so would their step be."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; gradients by row hold each row once."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._step_rows(parameter, parameter.grad, group["lr"], group["eps"])
                    parameter.grad = None
        return super().step(closure)

    def _step_rows(self, parameter: nn.Parameter, gradient: torch.Tensor, learning_rate: float, eps: float) -> None:
        rows_V, values_VD, state = gradient._indices()[0], gradient._values(), self.state[parameter]
        sums_VD = state["sum"].index_select(0, rows_V).addcmul_(values_VD, values_VD)
        weights_VD = parameter.index_select(0, rows_V).addcdiv_(values_VD, sums_VD.sqrt().add_(eps), value=-learning_rate)
        state["sum"].index_copy_(0, rows_V, sums_VD)
        parameter.index_copy_(0, rows_V, weights_VD)
        state["step"] += 1


def optimizer_of(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """The configured optimiser; fused, it is one kernel for each parameter on CPU, and one for all on CUDA."""
    shared: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    return RowAdagrad(parameters, **shared) if settings.optimizer == "adagrad" else torch.optim.Adam(parameters, **shared)
