"""The whole line on a world whose truth is known: planted groups and semantics are recovered, and a control that breaks the tie loses them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.metrics import auc
from longtail.rankers.batch import Batch
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.factory import build_ranker
from longtail.rankers.heads import resolve_heads
from longtail.rankers.ranker import predict_rows
from longtail.run_state import load_entities
from longtail.sample_files import LABEL_COLUMNS, SampleFiles, feature_columns, read_part
from longtail.samples import FeatureSpec
from longtail.training_loop import train_ranker
from pipelines import work
from pipelines.full import SHARED_STAGES
from pipelines.stage import ensure
from pipelines.train import sample_folders

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

CONFIG = Config.model_validate(
    {
        "run": {"name": "planted"},
        "logs": {
            "source": "synthetic",
            "split": {"history_frac": 0.4, "train_frac": 0.4, "validation_frac": 0.1},
            "synthetic": {"num_users": 400, "num_items": 300, "num_groups": 4, "num_topics": 8, "cold_item_frac": 0.25, "quiet_user_frac": 0.3},
        },
        "profiles": {"generator": "deterministic"},
        "embeddings": {"user": {"compute": {"num_cpus": 0.5}}, "item": {"compute": {"num_cpus": 0.5}}},
        "item_encoder": {"pair_batch_size": 256, "learning_rate": 0.005, "compute": {"num_cpus": 0.5}},
        "codes": {"user": {"num_stages": 2, "codebook_size": 16}, "item": {"num_stages": 2, "codebook_size": 8}},
        "samples": {"history_length": 20, "compute": {"num_actors": 1}},
        "train": {"batch_size": 512, "epochs": 6},
        "tracking": {"backend": "none"},
    }
)


@dataclass(frozen=True)
class Run:
    config: Config
    artifacts: dict[str, Artifact]

    def table(self, stage: str, name: str) -> pa.Table:
        return self.artifacts[stage].read(name)


@pytest.fixture(scope="module")
def run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    store = Store.open(str(tmp_path_factory.mktemp("planted")))
    config = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"uri": store.uri})})
    with work.in_place():  # where it can: the same artifacts (test_work), without the start of many processes
        return Run(config, {stage.name: ensure(stage, config, store).artifact for stage in SHARED_STAGES})


def recovered(table: pa.Table, key: str, truth: pa.Table, label: str) -> float:
    """Adjusted mutual information of the codes' first stage with the planted label."""
    planted = dict(zip(truth.column(key).to_pylist(), truth.column(label).to_pylist(), strict=True))
    first = [codes[0] for codes in table.column("codes").to_pylist()]
    return float(adjusted_mutual_info_score([planted[name] for name in table.column(key).to_pylist()], first))


def test_planted_groups_are_recovered_from_profiles(run: Run) -> None:
    """A profile tells the group through the searches alone, beside much that has nothing to do with it: goods, prices, attributes."""
    codes, truth = run.table("user_codes", "codes"), run.table("logs", "truth_users")
    generator, place = np.random.default_rng(0), codes.column_names.index("codes")
    shuffled = [codes.set_column(place, "codes", codes.column("codes").take(pa.array(generator.permutation(len(codes))))) for _ in range(30)]
    by_chance = np.array([recovered(table, "user_id", truth, "user_group") for table in shuffled])
    found = recovered(codes, "user_id", truth, "user_group")
    assert abs(by_chance.mean()) < 0.01
    assert found > 0.05
    assert found > by_chance.mean() + 5 * by_chance.std()


def test_planted_topics_are_recovered_from_titles_and_behaviour(run: Run) -> None:
    assert recovered(run.table("item_codes", "codes"), "item_id", run.table("logs", "truth_items"), "item_topic") > 0.4


def cold_item_auc(run: Run, name: str, *, own_counts: bool, shuffled: bool = False) -> float:
    """AUC on the test rows of items first shown in the test window.

    Args:
        run: the finished line.
        name: the ranker.
        own_counts: whether it counts what the user did with the item's kind, which its title's cluster is; without, the ranker's own parts are all it has.
        shuffled: deal vectors and codes out to the wrong items.
    """
    samples, folders = run.artifacts["samples"], sample_folders(run.artifacts)
    spec = FeatureSpec.model_validate(run.artifacts["lent"].info["spec"])
    files = SampleFiles.scan(samples.fs, folders, spec, resolve_heads(name, ("outcome",), spec))
    z, codes = run.table("item_z", "z"), run.table("item_codes", "codes")
    if shuffled:
        order = pa.array(np.random.default_rng(1).permutation(len(z)))
        by_item = z.sort_by("item_id"), codes.sort_by("item_id")
        z, codes = (t.set_column(1, t.column_names[1], t.column(1).take(order)) for t in by_item)
    item = run.config.codes.item
    catalogue = Catalogue.build(
        load_entities(run.artifacts["logs"], run.config.samples.numeric_bins), z, codes, (item.codebook_size,) * item.num_stages, *files.trained_rows()
    )
    torch.manual_seed(0)
    settings = getattr(run.config.rankers, name).model_copy(update={"heads": ("outcome",), "own_counts": own_counts})
    rankers = run.config.rankers.model_copy(update={name: settings})
    ranker = build_ranker(name, spec, catalogue, rankers)
    train_ranker(ranker, files, run.config.train, seed=0)
    columns = [*feature_columns(spec), *LABEL_COLUMNS, "item_id"]
    rows = pa.concat_tables([read_part(samples.fs, part, columns) for part in files.parts])
    truth = run.table("logs", "truth_items")
    cold = truth.filter(truth.column("cold")).column("item_id")
    rows = rows.filter(pc.and_(pc.equal(rows.column("split"), "test"), pc.is_in(rows.column("item_id"), cold.combine_chunks())))
    batch = Batch.from_table(rows, spec)
    return auc(batch.outcome_B.numpy().astype(int), predict_rows(ranker, batch).logits_BH[:, 0].numpy())


def test_cold_items_rank_by_their_semantics_and_by_nothing_else(run: Run) -> None:
    """SaviorRec by the aligned vectors; the base by what the user did with the item's cluster, which is known of an item that nobody has met."""
    blind = cold_item_auc(run, "base", own_counts=False)
    base = cold_item_auc(run, "base", own_counts=True)
    saviorrec = cold_item_auc(run, "saviorrec", own_counts=False)
    shuffled = cold_item_auc(run, "saviorrec", own_counts=False, shuffled=True)
    assert abs(blind - 0.5) < 0.06
    assert saviorrec > 0.56
    assert saviorrec > blind + 0.05
    assert abs(shuffled - 0.5) < 0.06
    assert base > blind + 0.05
