"""The projection of SaviorEnc and its contrastive training (SaviorRec, step 1).

Reads frozen vectors and pairs in memory; writes projection.safetensors and projection.json, from which a server encodes items that came after training.

z = normalise(P x + MLP(x)). P starts as the leading right singular vectors of the frozen vectors, the best copy of their inner products in `dim` numbers
(Eckart–Young), and the MLP's last layer as zero: training starts from the frozen space and moves only where pairs say so, which items without pairs need.
Behaviour factors that a kernel regression tells from x can stand beside it, with equal weight (longtail.item_factors; ours).
Letters: U contents, B pairs of a batch, T text width, M image width, I input width, D width of z, L landmarks, F factors.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow.fs as pafs
import safetensors.numpy
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from longtail.item_encoder import ItemEncoderSettings
from longtail.item_factors import FactorMap
from longtail.item_z import side_by_side
from longtail.pairs import Pairs

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_PROJECT_ROWS = 8192
_START_ROWS = 65_536  # rows that the starting directions are taken from


@dataclass(frozen=True)
class ProjectionShape:
    """What projection.json says."""

    text_dim: int
    image_dim: int  # 0: no image branch
    dim: int
    hidden_dim: int
    image_encoder: str | None
    trained: bool  # False: the starting projection, as few_pairs = "frozen" asks for
    factor_dim: int = 0  # of `dim`, those that are behaviour factors
    num_landmarks: int = 0
    kernel_width: float = 1.0

    @property
    def input_dim(self) -> int:
        """Text, image, and one flag that says whether there is an image."""
        return self.text_dim + (self.image_dim + 1 if self.image_dim else 0)

    @property
    def own_dim(self) -> int:
        """Width of what contrastive training makes."""
        return self.dim - self.factor_dim


def compose(text_NT: Floats, image_NM: Floats | None, shape: ProjectionShape) -> Floats:
    """The projection's input [N, I]: text, image (zeros for items without one) and the has-image flag.

    Raises:
        ValueError: a width is not the one that the projection was made for.
    """
    if text_NT.ndim != 2 or text_NT.shape[1] != shape.text_dim:
        raise ValueError(f"text vectors of shape {text_NT.shape}: the projection takes width {shape.text_dim}. Encode with the item encoder of the same run.")
    if not shape.image_dim:
        return text_NT.astype(np.float32, copy=False)
    if image_NM is None:
        image_NM = np.zeros((len(text_NT), shape.image_dim), np.float32)
    if image_NM.shape != (len(text_NT), shape.image_dim):
        raise ValueError(
            f"image vectors of shape {image_NM.shape}: the projection takes {(len(text_NT), shape.image_dim)}. Encode with {shape.image_encoder!r}."
        )
    has_image = np.any(image_NM != 0, axis=1, keepdims=True)
    return np.concatenate([text_NT, image_NM, has_image], axis=1, dtype=np.float32)


class Projection(nn.Module):
    """Composed inputs [N, I] -> L2-normalised z [N, D]."""

    def __init__(self, shape: ProjectionShape) -> None:
        super().__init__()
        self.shape = shape
        wide, own = shape.input_dim, shape.own_dim
        self.skip = nn.Linear(wide, own, bias=False)
        self.mlp = nn.Sequential(nn.Linear(wide, shape.hidden_dim), nn.GELU(), nn.Linear(shape.hidden_dim, own)) if shape.hidden_dim else None
        if shape.factor_dim:  # solved for, not trained
            self.register_buffer("landmarks", torch.zeros(shape.num_landmarks, wide))
            self.register_buffer("coefficients", torch.zeros(shape.num_landmarks, shape.factor_dim))
            self.register_buffer("mean", torch.zeros(shape.factor_dim))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        z = self.skip(inputs)
        if self.mlp is not None:
            z = z + self.mlp(inputs)
        z = nn.functional.normalize(z, dim=-1)
        if not self.shape.factor_dim:
            return z
        landmarks, coefficients, mean = self.get_buffer("landmarks"), self.get_buffer("coefficients"), self.get_buffer("mean")
        squares = inputs.square().sum(dim=1, keepdim=True) + landmarks.square().sum(dim=1) - 2 * inputs @ landmarks.T
        factors = nn.functional.normalize(torch.exp(-squares.clamp(min=0) / self.shape.kernel_width) @ coefficients + mean, dim=-1)
        both: torch.Tensor = torch.cat([z, factors], dim=-1) * math.sqrt(0.5)
        return both

    def beside(self, factors: FactorMap) -> "Projection":
        """This projection with behaviour factors beside it."""
        num_landmarks, factor_dim = factors.coefficients_LF.shape
        dims = replace(self.shape, dim=self.shape.dim + factor_dim, factor_dim=factor_dim)
        whole = Projection(replace(dims, num_landmarks=num_landmarks, kernel_width=factors.width))
        solved = {"landmarks": factors.landmarks_LI, "coefficients": factors.coefficients_LF, "mean": factors.mean_F}
        load_arrays(whole, {**state_arrays(self), **solved})
        return whole

    @staticmethod
    def start(shape: ProjectionShape, inputs_UI: Floats, seed: int) -> "Projection":
        """The untrained projection.

        Raises:
            ValueError: dim is larger than the frozen vectors' width.
        """
        width = shape.text_dim + shape.image_dim
        if shape.dim > width:
            raise ValueError(f"item_encoder.dim = {shape.dim} must not exceed the frozen vectors' width, {width}. Lower item_encoder.dim.")
        generator = torch.Generator().manual_seed(seed)
        projection = Projection(shape)
        sample = inputs_UI[np.sort(np.random.default_rng([seed, 3]).permutation(len(inputs_UI))[:_START_ROWS])]
        rows = sample[:, :width].astype(np.float64)
        _, vectors = np.linalg.eigh(rows.T @ rows)
        directions = vectors[:, ::-1][:, : shape.dim].T
        directions *= np.sign(directions[np.arange(shape.dim), np.abs(directions).argmax(axis=1)])[:, None]  # one of two signs, always the same
        with torch.no_grad():
            projection.skip.weight.zero_()
            projection.skip.weight[:, :width] = torch.from_numpy(directions.copy())
            if projection.mlp is not None:
                first, last = projection.mlp[0], projection.mlp[2]
                assert isinstance(first, nn.Linear)
                assert isinstance(last, nn.Linear)
                # Unit vectors give torch's own start, made for inputs of unit variance, numbers of 0.03, where a GELU is a straight line: the MLP would be
                # one more linear map. Weights of variance one and inputs taken from their mean put its units where they bend.
                first.weight.normal_(generator=generator)
                first.bias.normal_(generator=generator).sub_(first.weight @ torch.from_numpy(sample.mean(axis=0)))
                last.weight.zero_()
                last.bias.zero_()
        return projection


class ItemEncoder:
    """Projections ready to encode: frozen vectors in, z out. Several stand side by side, with equal weight."""

    def __init__(self, *projections: Projection) -> None:
        self.shapes = tuple(projection.shape for projection in projections)
        self._projections = tuple(projection.eval() for projection in projections)

    @staticmethod
    def side_by_side(encoders: Sequence["ItemEncoder"]) -> "ItemEncoder":
        """One encoder of all the projections of several."""
        return ItemEncoder(*(projection for encoder in encoders for projection in encoder._projections))

    @property
    def dim(self) -> int:
        """Width of z."""
        return sum(shape.dim for shape in self.shapes)

    @torch.inference_mode()
    def project(self, text_vectors: Floats, image_vectors: Floats | None = None) -> Floats:
        """z float32 [N, D], L2-normalised; an item without image has a row of zeros among the image vectors.

        Raises:
            ValueError: a width is not the one that the projections were made for.
        """
        out = np.empty((len(text_vectors), self.dim), np.float32)
        for start in range(0, len(text_vectors), _PROJECT_ROWS):
            rows = slice(start, start + _PROJECT_ROWS)
            inputs = compose(text_vectors[rows], None if image_vectors is None else image_vectors[rows], self.shapes[0])
            parts = [projection(torch.from_numpy(np.ascontiguousarray(inputs))).numpy() for projection in self._projections]
            out[rows] = side_by_side(parts)
        return out

    def files(self) -> dict[str, bytes]:
        """What an artifact keeps of it, by file name."""
        weights = {f"{place}.{name}": value for place, one in enumerate(self._projections) for name, value in state_arrays(one).items()}
        shapes = json.dumps([asdict(shape) for shape in self.shapes], indent=1)
        return {"projection.safetensors": safetensors.numpy.save(weights), "projection.json": shapes.encode()}


def load_projection(fs: pafs.FileSystem, folder: str) -> ItemEncoder:
    """The item encoder whose `files` lie in a folder.

    Raises:
        ValueError: they do not.
    """
    contents = []
    for name in ("projection.safetensors", "projection.json"):
        try:
            with fs.open_input_stream(f"{folder}/{name}") as stream:
                contents.append(stream.read())
        except FileNotFoundError as error:
            raise ValueError(f"{folder}/{name}: no such file. Point to an item_z artifact, which python -m pipelines.item_z writes.") from error
    arrays, projections = safetensors.numpy.load(contents[0]), []
    for place, shape in enumerate(json.loads(contents[1])):
        projections.append(Projection(ProjectionShape(**shape)))
        load_arrays(projections[-1], {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{place}.")})
    return ItemEncoder(*projections)


def state_arrays(projection: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The weights as numpy arrays, by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in projection.state_dict().items()}


def load_arrays(projection: nn.Module, arrays: dict[str, NDArray[np.float32]]) -> None:
    """Set the weights from numpy arrays."""
    projection.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in arrays.items()})


def log_frequencies(pairs: Pairs, num_contents: int) -> Floats:
    """log of each content's share among the drawn pairs' ends [U], as sampling by weight makes it; contents without pairs get the smallest."""
    mass = np.bincount(pairs.left_P, pairs.weight_P, num_contents) + np.bincount(pairs.right_P, pairs.weight_P, num_contents)
    share = mass / mass.sum()
    logs: Floats = np.log(np.maximum(share, share[share > 0].min())).astype(np.float32)
    return logs


def contrastive_loss(
    left_BD: torch.Tensor, right_BD: torch.Tensor, left_B: torch.Tensor, right_B: torch.Tensor, logq_U: torch.Tensor | None, temperature: float
) -> torch.Tensor:
    """Symmetric InfoNCE over in-batch negatives.

    A negative that is the positive's or the query's own content is masked. logQ: a content that is often drawn is often a negative, and training would push it
    away for its popularity alone; its logits are lowered by the log of its share (Yi et al. 2019).
    """

    def one_way(query_BD: torch.Tensor, key_BD: torch.Tensor, query_B: torch.Tensor, key_B: torch.Tensor) -> torch.Tensor:
        logits = query_BD @ key_BD.T / temperature
        if logq_U is not None:
            logits = logits - logq_U[key_B]
        same = (key_B[None, :] == key_B[:, None]) | (key_B[None, :] == query_B[:, None])
        same.fill_diagonal_(False)
        return nn.functional.cross_entropy(logits.masked_fill(same, float("-inf")), torch.arange(len(logits), device=logits.device))

    return 0.5 * (one_way(left_BD, right_BD, left_B, right_B) + one_way(right_BD, left_BD, right_B, left_B))


def train_projection(
    projection: nn.Module,
    inputs_UI: torch.Tensor,
    pairs: Pairs,
    settings: ItemEncoderSettings,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train in place; the mean loss of each epoch.

    Each epoch draws as many pairs as there are, by weight, with either end as the query. With several workers (an initialised process group, `projection`
    wrapped in DDP) each encodes its share of a batch, all see the whole batch's negatives, and the steps are those of one worker.

    Raises:
        FloatingPointError: the loss is not finite; no update is made from it.
    """
    device = inputs_UI.device
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = max(1, min(settings.pair_batch_size, len(pairs)) // world)
    batch = share * world
    num_batches = max(1, len(pairs) // batch)
    logq = torch.from_numpy(log_frequencies(pairs, len(inputs_UI))).to(device) if settings.logq_correction else None
    optimizer = torch.optim.AdamW(projection.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=settings.epochs * num_batches)
    chance = pairs.weight_P / pairs.weight_P.sum()
    losses = []
    for epoch in range(settings.epochs):
        rng = np.random.default_rng([seed, 4, epoch])  # the same on every worker
        drawn = rng.choice(len(pairs), size=num_batches * batch, p=chance)
        turned = rng.random(len(drawn)) < 0.5
        ends = np.stack([np.where(turned, pairs.right_P[drawn], pairs.left_P[drawn]), np.where(turned, pairs.left_P[drawn], pairs.right_P[drawn])])
        ends_EB = torch.from_numpy(ends.reshape(2, num_batches, batch)).to(device)
        total = 0.0
        for number in range(num_batches):
            left, right = ends_EB[:, number]
            mine = slice(rank * share, (rank + 1) * share)
            z_own = projection(inputs_UI[torch.cat([left[mine], right[mine]])])
            z_all = _gather(z_own.detach(), world).requires_grad_()
            left_BD, right_BD = z_all.view(world, 2, share, -1).transpose(0, 1).reshape(2, batch, -1)
            loss = contrastive_loss(left_BD, right_BD, left, right, logq, settings.temperature)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"item_encoder: loss {loss.item()} in epoch {epoch + 1}. Lower item_encoder.learning_rate or raise temperature.")
            # Every worker knows the loss of the whole batch and takes its own rows' gradient; DDP averages over workers, hence the factor.
            (gradient,) = torch.autograd.grad(loss, z_all)
            optimizer.zero_grad(set_to_none=True)
            z_own.backward(gradient.view(world, 2 * share, -1)[rank] * world)
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / num_batches)
        on_epoch(epoch, losses[-1])
        logger.info("epoch %d of %d: loss %.4f", epoch + 1, settings.epochs, losses[-1])
    return losses


def _gather(z_own: torch.Tensor, world: int) -> torch.Tensor:
    """All workers' rows, in rank order."""
    if world == 1:
        return z_own.clone()
    parts = [torch.empty_like(z_own) for _ in range(world)]
    dist.all_gather(parts, z_own.contiguous())
    return torch.cat(parts)
