"""A finished run over the small world, written stage by stage under its true keys with the core's own functions; the rankers are drawn, not trained."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from longtail import schema
from longtail.artifacts import Artifact, Draft, Store
from longtail.checkpoint import save_ranker, save_vocabulary
from longtail.codes import codebook_bytes, encode
from longtail.config import Config
from longtail.feature_state import FeatureState
from longtail.online.features import OnlineFeatures
from longtail.online.tables import online_tables
from longtail.peers import clusters
from longtail.projection import ItemEncoder, Projection, ProjectionShape
from longtail.rankers.catalogue import Catalogue
from longtail.rankers.factory import build_ranker
from longtail.rankers.ranker import Ranker
from longtail.ranking import RequestRanker
from longtail.vectors import to_arrow
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.collaborative import COLLABORATIVE
from pipelines.embeddings import ITEM_VECTORS, USER_VECTORS
from pipelines.groups import GROUPS
from pipelines.item_encoder import ITEM_ENCODER
from pipelines.item_texts import ITEM_TEXTS
from pipelines.item_z import ITEM_Z
from pipelines.lent import LENT
from pipelines.lifts import LIFTS
from pipelines.logs import LOGS
from pipelines.matches import MATCHES
from pipelines.peers import PEERS
from pipelines.profiles import PROFILES
from pipelines.samples import SAMPLES
from pipelines.stage import Stage, stage_key
from pipelines.train import RANKER_STAGES
from pipelines.user_spaces import USER_SPACES
from tests import small_features, small_world, test_groups

TEXT_DIM = 384  # of the demo's text encoder
DIM = 8
TRAINED_USERS, TRAINED_ITEMS = (np.bincount(rows, minlength=size) for rows, size in (([1, 2], 5), ([2, 4, 5], 6)))  # c, d, book and odd have no ID


def config(uri: str) -> Config:
    """Small enough to check by hand; the same widths as small_features."""
    return Config.model_validate(
        {
            "run": {"uri": uri, "name": "small"},
            "logs": {"source": "synthetic"},
            "cluster": {"num_cpus": 2, "object_store_mb": 256, "dashboard": False},
            "groups": {"sequence_categories": 2, "items_per_category": 1, "min_size": 2},
            "samples": {"history_length": 3, "snapshot_days": 7, "numeric_bins": 3},
            "codes": {"user": {"num_stages": 2, "codebook_size": 3}, "item": {"num_stages": 2, "codebook_size": 4}},
            "peers": {"form": "none"},
            "user_spaces": {"spaces": ["profile"]},
            "item_encoder": {"dim": DIM},
            "serve": {"port": 0, "max_items": 20},
            "tracking": {"backend": "none"},
        }
    )


def state(settings: Config) -> FeatureState:
    """What load_feature_state makes of the run."""
    codes_NS = np.concatenate([np.full((1, 2), -1), encode(item_vectors(), item_codebook())])
    return small_features.state(config=settings, cluster_N=np.where(codes_NS[:, 0] >= 0, clusters(codes_NS, settings.samples.cluster_depth), 0))


def item_vectors() -> np.ndarray:
    """z of book, milk, odd, soap and tea, [5, DIM]."""
    vectors = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def item_codebook() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, 4, DIM)).astype(np.float32) * 0.5


def profiles() -> pa.Table:
    """Of a, b and c; d has none."""
    said = {"a": ("Lives in Bonn.", "Buys tea and milk."), "b": ("Lives in Bonn.", "Buys tea and soap."), "c": ("Lives in Ulm.", "Buys <b>soap</b> & a book.")}
    return pa.table(
        {
            "user_id": list(said),
            "as_of": pa.array([small_world.day(20)] * len(said), schema.TIMESTAMP),
            "prompt_hash": list(said),
            "facts": [f"Attributes:\n{identity}" for identity, _ in said.values()],
            "raw_text": ["{}"] * len(said),
            "identity": [identity for identity, _ in said.values()],
            "interests": [interests for _, interests in said.values()],
            "philosophy": ["Takes what there is."] * len(said),
            "text": [f"{identity}\n{interests}\nTakes what there is." for identity, interests in said.values()],
            "outcome": ["llm", "llm", "fallback:invented"],
            "cached": [False] * len(said),
            "cut_lines": [0, 3, 0],
            "prompt_tokens": [10] * len(said),
            "output_tokens": [5] * len(said),
        },
        schema=schema.PROFILES,
    )


def rankers(settings: Config) -> dict[str, Ranker]:
    """All three, with weights drawn large enough that every input matters; MBA's codebooks are drawn too."""
    made = {}
    for name in settings.train.rankers:
        ids = small_world.entities().items.values
        z, codes = item_vectors(), encode(item_vectors(), item_codebook())
        catalogue = Catalogue.build(
            small_world.entities(),
            pa.table({"item_id": ids, "vector": to_arrow(z)}),
            pa.table({"item_id": ids, "codes": pa.array(codes.tolist(), pa.list_(pa.int32(), 2))}),
            (4, 4),
            TRAINED_USERS,
            TRAINED_ITEMS,
        )
        torch.manual_seed(7)
        ranker = build_ranker(name, state(settings).spec, catalogue, settings.rankers)
        with torch.no_grad():
            for parameter_name, parameter in ranker.named_parameters():
                if "alignment" in parameter_name:
                    parameter[1:].normal_(std=0.5)
        made[name] = ranker.eval()
    return made


def request_ranker(settings: Config, max_items: int, end: datetime = small_world.INFO.end, versions: Mapping[str, str] | None = None) -> RequestRanker:
    """What a replica makes of the run, with its logs ending at `end`."""
    tables = online_tables(state(settings), end)
    return RequestRanker(OnlineFeatures.of(tables, max_items), rankers(settings), max_items, versions=versions)


def publish(folder: Path, learning_rate: float | None = None, spoil: Callable[[Ranker], object] | None = None) -> Config:
    """Write the run below `folder`; its config finds it. With another learning rate, only the rankers are others: those that `spoil` makes of them."""
    settings = config(str(folder))
    if learning_rate is not None:
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": learning_rate})})
    store = Store.open(settings.run.uri)
    done: dict[str, Artifact] = {}
    entities = small_world.entities()

    def commit(stage: Stage, write: Callable[[Draft], None], info: dict[str, object] | None = None) -> None:
        inputs = {upstream.name: done[upstream.name] for upstream in stage.inputs}
        draft = store.create(stage.name, stage_key(stage, settings, inputs))
        write(draft)
        done[stage.name] = draft.commit(config={}, inputs=inputs, seed=settings.run.seed, rows_in=1, rows_out=1, dropped={}, info=info or {})

    def write_bytes(draft: Draft, name: str, content: bytes) -> None:
        with draft.fs.open_output_stream(draft.path(name)) as stream:
            stream.write(content)

    def write_logs(draft: Draft) -> None:
        draft.write("users", small_world.USERS)
        draft.write("items", small_world.ITEMS)
        draft.write("events", small_world.events(small_world.BEHAVIOUR))

    def write_user_codes(draft: Draft) -> None:
        draft.write("codes", small_features.user_codes())
        write_bytes(draft, "codebook.safetensors", codebook_bytes(np.random.default_rng(2).normal(size=(2, 3, TEXT_DIM)).astype(np.float32) * 0.05))

    def write_item_z(draft: Draft) -> None:
        shape = ProjectionShape(TEXT_DIM, 0, DIM, 16, None, False)
        start = Projection.start(shape, np.random.default_rng(3).normal(size=(50, TEXT_DIM)).astype(np.float32), 0)
        draft.write("z", pa.table({"item_id": entities.items.values, "vector": to_arrow(item_vectors())}))
        for name, content in ItemEncoder(start).files().items():
            write_bytes(draft, name, content)

    def write_item_codes(draft: Draft) -> None:
        codes = encode(item_vectors(), item_codebook())
        draft.write("codes", pa.table({"item_id": entities.items.values, "codes": pa.array(codes.tolist(), pa.list_(pa.int32(), 2))}))
        write_bytes(draft, "codebook.safetensors", codebook_bytes(item_codebook()))

    def write_profiles(draft: Draft) -> None:
        draft.write("profiles", profiles())

    def write_item_vectors(draft: Draft) -> None:
        vectors = np.random.default_rng(4).normal(size=(5, TEXT_DIM)).astype(np.float32)
        draft.write("vectors", pa.table({"item_id": entities.items.values, "vector": to_arrow(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))}))

    def nothing(draft: Draft) -> None:
        draft.write_json("read_by_no_server.json", {})

    info = small_world.INFO.model_copy(update={"end": small_world.START + timedelta(days=40)})
    commit(LOGS, write_logs, info.model_dump(mode="json"))
    commit(PROFILES, write_profiles)
    commit(USER_VECTORS, nothing)
    commit(ITEM_TEXTS, nothing)
    commit(ITEM_VECTORS, write_item_vectors)
    commit(ITEM_ENCODER, nothing)
    commit(ITEM_Z, write_item_z)
    commit(USER_SPACES, nothing)
    commit(USER_CODES, write_user_codes, {"shape": [2, 3, TEXT_DIM]})
    commit(ITEM_CODES, write_item_codes, {"shape": [2, 4, DIM]})
    commit(GROUPS, lambda draft: draft.write("groups", test_groups.groups()))
    commit(PEERS, lambda draft: draft.write("peers", schema.PEERS.empty_table()))
    commit(COLLABORATIVE, lambda draft: draft.write("collaborative", schema.COLLABORATIVE.empty_table()))
    commit(SAMPLES, nothing)
    commit(MATCHES, nothing)
    commit(LIFTS, nothing)
    commit(LENT, nothing)
    for name, ranker in rankers(settings).items():
        if spoil is not None:
            spoil(ranker)

        def write_checkpoint(draft: Draft, ranker: Ranker = ranker) -> None:
            checkpoint = Path(draft.path("checkpoint/ranker.json")).parent
            save_ranker(checkpoint, ranker)
            save_vocabulary(checkpoint, entities.users.values.to_pylist(), entities.items.values.to_pylist())

        commit(RANKER_STAGES[name], write_checkpoint)
    return settings
