"""Train: each ranker with Ray Train, on global batches that do not depend on the number of workers.

Reads logs, item_z, item_codes, samples, matches and what is lent; writes one artifact per ranker (base, choirrec, saviorrec), whose folder `checkpoint` is
all that scoring needs.
Run: python -m pipelines.train --config …
"""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from actors import metrics as ray_metrics
from longtail.artifacts import Artifact, Draft
from longtail.checkpoint import plain, save_vocabulary
from longtail.config import Config
from longtail.entities import Entities
from longtail.gradients import distributed
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.factory import RANKERS, build_ranker
from longtail.rankers.heads import resolve_heads
from longtail.rankers.ranker import Ranker
from longtail.run_state import feature_spec, load_entities, logs_info
from longtail.sample_files import Purpose, SampleFiles, Workers, generator
from longtail.samples import FeatureSpec
from longtail.settings import own_seed
from longtail.training_loop import Metrics, NonFiniteLossError, TrainState, train_ranker
from longtail.validation import Validation
from pipelines import blocks
from pipelines.codes import ITEM_CODES
from pipelines.item_z import ITEM_Z
from pipelines.lent import LENT
from pipelines.logs import LOGS
from pipelines.matches import MATCHES
from pipelines.samples import SAMPLES
from pipelines.stage import Context, Result, Stage, main_for
from pipelines.tracking import describe, train_callbacks

logger = logging.getLogger(__name__)

FINISHED = "finished"  # folder within the last reported checkpoint
VALIDATION_METRICS = {"auc", "gauc", "log_loss", "gauc_low", "auc_cold", "alpha_fusion", "alpha_distill"}  # of the first head; what Ray's metrics are told


class ContradictionError(ValueError):
    """A ranker's settings contradict each other: the same settings meet it every time."""


def sample_folders(inputs: Mapping[str, Artifact]) -> tuple[str, ...]:
    """The folders in which the samples' columns lie side by side; without what is lent, own features alone."""
    return tuple(inputs[name].path(f"{name}.parquet") for name in ("samples", "matches", "lent") if name in inputs)


def spec_of(inputs: Mapping[str, Artifact], config: Config) -> FeatureSpec:
    """Widths and sizes of the rows in `sample_folders`."""
    if "lent" in inputs:
        spec = FeatureSpec.model_validate(inputs["lent"].info["spec"])
    else:
        logs = inputs["logs"]
        spec = feature_spec(load_entities(logs, config.samples.numeric_bins), config, logs_info(logs).has_conversion)
        spec = spec.model_copy(update={"peer_stats": (), "lent": False})
    return spec if "matches" in inputs else spec.model_copy(update={"match_stats": ()})


@dataclass(frozen=True)
class TrainJob:
    """All that a worker needs to train one ranker."""

    config: Config
    name: str
    seed: int
    inputs: Mapping[str, Artifact]
    files: SampleFiles

    @staticmethod
    def of(config: Config, inputs: Mapping[str, Artifact], name: str, seed: int) -> "TrainJob":
        """Scan the samples for a ranker.

        Raises:
            ValueError: the ranker's heads do not fit the source, or no row has a label for them.
        """
        samples = inputs["samples"]
        spec = spec_of(inputs, config)
        heads = resolve_heads(name, getattr(config.rankers, name).heads, spec)
        return TrainJob(config, name, seed, inputs, SampleFiles.scan(samples.fs, sample_folders(inputs), spec, heads))

    def entities(self) -> Entities:
        return load_entities(self.inputs["logs"], self.config.samples.numeric_bins)

    def ranker(self) -> Ranker:
        """The ranker with freshly drawn weights, the same in every process.

        Raises:
            ContradictionError: its settings contradict each other or the source.
        """
        codes = self.inputs["item_codes"]
        num_stages, codebook_size, _ = codes.info["shape"]
        trained_users, trained_items = self.files.trained_rows()
        catalogue = Catalogue.build(
            self.entities(), self.inputs["item_z"].read("z"), codes.read("codes"), (codebook_size,) * num_stages, trained_users, trained_items
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(Purpose.WEIGHTS, self.seed).initial_seed())
            try:
                return build_ranker(self.name, self.files.spec, catalogue, self.config.rankers)
            except ValueError as error:  # all that it says by one: it reads no data
                raise ContradictionError(str(error)) from error


@dataclass(frozen=True)
class Fitted:
    """What a training run left behind."""

    checkpoint: ray.train.Checkpoint  # the last reported one; its folder FINISHED holds the best epoch's ranker
    metrics: tuple[Metrics, ...]  # by epoch
    best_epoch: int  # from 1

    @property
    def best(self) -> Metrics:
        return self.metrics[self.best_epoch - 1]

    def copy_to(self, fs: pafs.FileSystem, path: str) -> None:
        """Copy the finished checkpoint folder."""
        fs.create_dir(path, recursive=True)
        pafs.copy_files(f"{self.checkpoint.path}/{FINISHED}", path, source_filesystem=self.checkpoint.filesystem, destination_filesystem=fs)


def fit(
    job: TrainJob, storage: tuple[pafs.FileSystem, str], *, callbacks: Sequence[Any] = (), start: ray.train.Checkpoint | None = None, keep_all: bool = False
) -> Fitted:
    """Train with Ray Train; a worker group that fails is restarted and resumes from its last checkpoint.

    Args:
        job: what to train.
        storage: file system and folder, visible to all workers, for Ray's checkpoints of this run alone.
        callbacks: of Ray Train's controller.
        start: a checkpoint of such a run to go on from; its epochs must be fewer than the config's.
        keep_all: whether the checkpoints of all epochs stay until the end, for who copies them.

    Raises:
        NonFiniteLossError: the loss or the gradient stopped being finite.
        ValueError: the workers are more than a Ray of fixed size holds, or their pool is not there.
    """
    train, (fs, folder) = job.config.train, storage
    compute = train.compute
    blocks.check_room({"train": compute}, job.config.cluster)
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # the annotation knows no return value
        train_loop_config={"job": job, "start": start},
        scaling_config=ray.train.ScalingConfig(
            num_workers=compute.num_actors, use_gpu=compute.num_gpus > 0, resources_per_worker=blocks.train_resources(compute)
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # the annotation is V1's
            name=job.name,
            storage_path=folder,
            storage_filesystem=fs,
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=None if keep_all else 1),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),  # Ray Train's own lines; ours stay
        ),
        torch_config=TorchConfig(backend="nccl" if compute.num_gpus else "gloo"),
    )
    result = trainer.fit()
    not_finite = result.return_value  # type: ignore[attr-defined]  # Train V2's Result has it, the annotation is V1's
    if not_finite is not None:
        raise NonFiniteLossError(not_finite)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as local:
        progress = json.loads((Path(local) / "progress.json").read_text())
    return Fitted(result.checkpoint, tuple(progress["metrics"]), progress["best_epoch"])


def _work(loop_config: dict[str, Any]) -> str | None:
    """What every worker of Ray Train runs; returns why the numbers stopped being finite, None if they did not."""
    job: TrainJob = loop_config["job"]
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # else it prints every report in full, from every worker
    logging.getLogger("longtail").setLevel(logging.INFO if workers.rank == 0 else logging.WARNING)
    torch.set_num_threads(max(1, int(job.config.train.compute.num_cpus)))
    try:
        _train(job, workers, get_device(), ray.train.get_checkpoint() or loop_config["start"])
    except NonFiniteLossError as error:
        # Every worker is here: the check is on sums over workers. Returned, not raised: a restart would meet the same numbers again.
        return str(error)
    return None


def _train(job: TrainJob, workers: Workers, device: torch.device, started_from: Any) -> None:
    settings = job.config.train
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's gather of validation scores goes through the current device

    tags = {"run": job.config.run.name, "ranker": job.name}
    rows_per_step = sum(job.files.labelled["train"]) / max(job.files.steps_per_epoch(settings.batch_size), 1)  # files end with a short step

    def on_step(step: int, loss: float) -> None:
        ray_metrics.TRAINED_ROWS.add(rows_per_step, **tags)
        ray_metrics.TRAIN_LOSS.set(loss, **tags)

    def on_epoch(metrics: Metrics, state: TrainState) -> None:
        if workers.rank == 0:
            ray_metrics.EPOCH.set(state.epoch, **tags)
            for name in VALIDATION_METRICS & metrics.keys():
                ray_metrics.VALIDATION.set(metrics[name], metric=name, **tags)
        last = state.epoch == settings.epochs
        with tempfile.TemporaryDirectory(prefix="longtail-train-") as folder:
            checkpoint = None
            if workers.rank == 0 and (last or state.epoch % settings.checkpoint_every_epochs == 0):
                state.save(Path(folder))
                if last:
                    state.save_best(Path(folder) / FINISHED)
                    entities = job.entities()
                    save_vocabulary(Path(folder) / FINISHED, entities.users.values.to_pylist(), entities.items.values.to_pylist())
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint)

    train = partial(
        train_ranker,
        job.ranker(),
        job.files,
        settings,
        seed=job.seed,
        workers=workers,
        device=device,
        wrap=partial(distributed, device=device) if workers.size > 1 else None,
        validate=Validation(job.files, job.config.evaluate, workers, device),
        on_epoch=on_epoch,
        on_step=on_step if workers.rank == 0 else None,
    )
    if started_from is None:
        train()
        return
    with started_from.as_directory() as folder:
        train(resume=Path(folder))


def build(
    context: Context,
    draft: Draft,
    *,
    name: str,
    callbacks: Sequence[Any] | None = None,
    start: ray.train.Checkpoint | None = None,
    keep_all: bool = False,
) -> Result:
    """Train a ranker and write its checkpoint; `callbacks` stand in for those that record a run of its own, `start` and `keep_all` are fit's."""
    job = TrainJob.of(context.config, context.inputs, name, own_seed(context.config.train.seed, context.seed))
    parameters = job.ranker().num_parameters()  # also refuses contradicting settings before any worker starts
    scratch = draft.path("ray_train/run").rsplit("/", 1)[0]
    if callbacks is None:
        callbacks = train_callbacks(describe(context.config, context.store, name=name, job_type="train", key=draft.key, inputs=context.inputs))
    fitted = fit(job, (draft.fs, scratch), callbacks=callbacks, start=start, keep_all=keep_all)
    fitted.copy_to(draft.fs, draft.path("checkpoint"))
    draft.fs.delete_dir(scratch)
    files = job.files
    dropped = {f"held out for {split}": sum(files.labelled[split]) for split in ("validation", "test")}
    trained = sum(files.labelled["train"])
    info = {
        "heads": list(files.heads),
        "parameters": parameters,
        "best_epoch": fitted.best_epoch,
        "epochs": [plain(metrics) for metrics in fitted.metrics],
        "steps_per_epoch": files.steps_per_epoch(context.config.train.batch_size),
    }
    dropped["no label for any head"] = files.num_rows - trained - sum(dropped.values())
    return Result(files.num_rows, trained, {reason: rows for reason, rows in dropped.items() if rows}, info)


def _settings(config: Config, *, name: str) -> Mapping[str, Any]:
    train = {key: value for key, value in config.train.key_fields().items() if key not in ("rankers", "max_failures", "checkpoint_every_epochs")}
    slices = {"low_activity_frac": config.evaluate.low_activity_frac, "cold_item_events": config.evaluate.cold_item_events}
    return {"ranker": getattr(config.rankers, name).key_fields(), "train": train, "slices": slices}


RANKER_STAGES: dict[str, Stage] = {
    name: Stage(
        name=name,
        version=5,
        inputs=(LOGS, ITEM_Z, ITEM_CODES, SAMPLES, MATCHES, LENT),
        settings=partial(_settings, name=name),
        build=partial(build, name=name),
        command="pipelines.train",
    )
    for name in RANKERS
}


def main() -> None:
    main_for(__doc__ or "", lambda config: [RANKER_STAGES[name] for name in config.train.rankers])


if __name__ == "__main__":
    main()
