"""The peer of the bench of training: FuxiCTR's own DIN on our rows, with our base ranker's widths.

The model is the class that FuxiCTR ships (model_zoo.LongCTR.DIN), with its own training loop; ReLU in place of Dice and a softmax over the history, as in ours:
both are the cheaper choice for it. Statistics go in as one vector through one projection, which costs it less than a feature each.

Letters: B rows, L history length.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from longtail.rankers.base import Base
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import OOV, Catalogue

ITEM_FEATURES = ("item_id", "root", "leaf", "brand")
MAX_NORM = 10.0

FuxiBatch = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]


def build(ranker: Base, seed: int, learning_rate: float, optimizer: str) -> Any:
    """FuxiCTR's DIN with the tables and widths of `ranker`; `optimizer` is torch's class name."""
    from fuxictr.features import FeatureMap  # type: ignore[import-untyped]
    from model_zoo.LongCTR.DIN.DIN import DIN  # type: ignore[import-untyped]

    settings, sizes, spec = ranker.settings, ranker.catalogue.sizes, ranker.spec
    item_sizes = (sizes.item_ids, *sizes.categories, sizes.brands)
    item_dims = (settings.id_dim, *[settings.attribute_dim] * (len(item_sizes) - 1))
    width = num_statistics(ranker)
    features: OrderedDict[str, dict[str, Any]] = OrderedDict()
    features["user_id"] = _categorical("user", sizes.user_ids, settings.id_dim)
    for name, size in zip(spec.attributes, spec.attribute_sizes, strict=True):
        features[name] = _categorical("user", size, settings.attribute_dim)
    features["statistics"] = {"source": "context", "type": "embedding", "pretrain_dim": width, "embedding_dim": width}
    for name, size, dim in zip(ITEM_FEATURES, item_sizes, item_dims, strict=True):
        features[name] = _categorical("item", size, dim) | {"padding_idx": 0}
    feature_map = FeatureMap("rows", tempfile.gettempdir())
    feature_map.features, feature_map.labels, feature_map.default_emb_dim = features, ["outcome"], settings.id_dim
    torch.manual_seed(seed)
    model = DIN(
        feature_map,
        dnn_hidden_units=list(settings.hidden_dims),
        attention_hidden_units=list(settings.attention_dims),
        attention_hidden_activations="ReLU",
        din_use_softmax=True,
        learning_rate=learning_rate,
        embedding_dim=settings.id_dim,
        optimizer=optimizer,
        loss="binary_crossentropy",
        metrics=["AUC"],
        verbose=0,
        model_root=tempfile.gettempdir(),
    )
    # What its fit() sets, without an evaluation.
    model._max_gradient_norm, model._stop_training, model._total_steps, model._eval_steps = MAX_NORM, False, 0, 1 << 62
    return model


def num_statistics(ranker: Base) -> int:
    """Width of the statistics that the base reads."""
    spec = ranker.spec
    return len(spec.user_stats) + len(spec.cross_stats) + len(spec.item_stats) + len(spec.match_stats)


def parameters(model: Any) -> dict[str, int]:
    """Trained numbers, in embedding tables and elsewhere, as Ranker.num_parameters counts them."""
    tables = sum(parameter.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding) for parameter in module.parameters())
    return {"tables": tables, "layers": sum(parameter.numel() for parameter in model.parameters()) - tables}


def to_fuxictr(batch: Batch, catalogue: Catalogue, attributes: Iterable[str]) -> FuxiBatch:
    """A batch of ours as FuxiCTR's DIN takes one: the histories' items, most recent last, and after them the target."""
    rows_BL = torch.cat([batch.history_BL.flip(1), batch.item_row_B.unsqueeze(1)], dim=1)
    rows = rows_BL.reshape(-1)
    categories = catalogue.category_NC[rows]
    items = {"item_id": catalogue.item_id_N[rows], "root": categories[:, 0], "leaf": categories[:, 1], "brand": catalogue.brand_N[rows]}
    users = {
        "user_id": catalogue.user_id_M[batch.user_row_B].clamp(min=OOV),
        **{name: batch.attributes_BA[:, place].contiguous() for place, name in enumerate(attributes)},
        "statistics": torch.cat([batch.user_stats_BU, batch.cross_stats_BX, batch.item_stats_BI, batch.match_stats_BM], dim=1),
        "outcome": batch.outcome_B,
    }
    return users, {name: value.contiguous() for name, value in items.items()}, (rows_BL[:, :-1] > 0).float()


def probabilities(model: Any, batches: Iterable[FuxiBatch]) -> npt.NDArray[np.float64]:
    """Its predictions, in the batches' order."""
    predicted: npt.NDArray[np.float64] = model.predict(batches)
    return predicted


def _categorical(source: str, size: int, dim: int) -> dict[str, Any]:
    return {"source": source, "type": "categorical", "vocab_size": size, "embedding_dim": dim}
