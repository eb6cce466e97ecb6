"""From a run's artifacts to the states of features: what samples are written from and what serving holds is the same."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.feature_state import FeatureState
from longtail.features import Rows
from longtail.online.features import OnlineFeatures
from longtail.online.records import UserRecord
from longtail.online.tables import online_tables
from longtail.rankers.batch import Batch
from longtail.run_state import load_clusters, load_feature_state
from longtail.times import from_us
from pipelines import work
from pipelines.codes import ITEM_CODES, USER_CODES
from pipelines.collaborative import COLLABORATIVE
from pipelines.groups import GROUPS
from pipelines.lent import LENT
from pipelines.logs import LOGS
from pipelines.matches import MATCHES
from pipelines.peers import PEERS
from pipelines.samples import SAMPLES
from pipelines.stage import ensure, find
from tests import borrowing_world, planted_artifacts, small_features, small_run, small_world


def load(settings: Config, store: Store) -> FeatureState:
    found = [find(stage, settings, store) for stage in (LOGS, USER_CODES, GROUPS, PEERS, ITEM_CODES, COLLABORATIVE)]
    assert all(found)
    return load_feature_state(*found, settings)  # type: ignore[arg-type]


def test_a_run_gives_the_state_that_its_tables_make(tmp_path: Path) -> None:
    settings = small_run.publish(tmp_path)
    loaded, made = load(settings, Store.open(settings.run.uri)), small_run.state(settings)
    assert loaded.spec == made.spec
    assert (loaded.own.collaborative, loaded.lent.lifts) == (None, None)
    assert (loaded.matches.cluster_N > 0).tolist() == [False] + [True] * 5
    rows = small_features.rows_of([(user, item, day) for user in ("a", "d", "nobody") for item in ("tea", "odd", "?") for day in (5.0, 21.0, 35.0)])
    got, expected = loaded.columns(rows), made.columns(rows)
    assert got.keys() == expected.keys()
    for name, values in got.items():
        np.testing.assert_array_equal(values, expected[name], name)


def test_serving_computes_what_the_stages_wrote(tmp_path: Path) -> None:
    """With peers, scores, several spaces and two snapshots."""
    settings, store = borrowing_world.publish(tmp_path)
    with work.in_place():
        lent, matches = (ensure(stage, settings, store, build_inputs=True).artifact for stage in (LENT, MATCHES))
    samples, state = find(SAMPLES, settings, store), load(settings, store)
    assert samples is not None
    assert state.lent.lifts is not None
    assert state.own.collaborative is not None
    asked = pa.concat_tables(borrowing_world.examples())
    tables = samples.read("samples"), matches.read("matches"), lent.read("lent")
    wrote = Batch.from_table(pa.table({name: table.column(name) for table in tables for name in table.column_names}), state.spec)
    again = Batch.from_columns(state.columns(Rows.of(asked, state.entities)), len(asked), state.spec)
    for name in vars(wrote):
        if name not in ("outcome_B", "conversion_B"):
            np.testing.assert_array_equal(getattr(again, name).numpy(), getattr(wrote, name).numpy(), name)
    # and so does what is published as of a row's time, for the request that the row stands for
    rows = Rows.of(asked, state.entities)
    chosen = np.unique(rows.time_B)[:: max(len(np.unique(rows.time_B)) // 8, 1)]
    for time in chosen.tolist():
        online = OnlineFeatures.of(online_tables(state, from_us(time)))
        for place in np.flatnonzero(rows.time_B == time)[:6]:
            user = online.users.user(asked.column("user_id")[int(place)].as_py()) or UserRecord.nobody(len(online.meta.attributes))
            columns = online.columns(user, rows.item_row_B[[place]], time, None, user.attributes_A, user.codes)
            served = Batch.from_columns(columns, 1, state.spec)
            for name in vars(served):
                if name not in ("outcome_B", "conversion_B"):
                    np.testing.assert_allclose(
                        getattr(served, name).numpy(), getattr(wrote, name)[[place]].numpy(), atol=1e-5, err_msg=f"{name} of row {place}"
                    )
    assert wrote.peer_stats_BP.any()
    assert wrote.collaborative_stats_BF.any()


def item_codes(store: Store, codes: dict[str, list[int]]) -> Artifact:
    table = pa.table({"item_id": list(codes), "codes": pa.array(list(codes.values()), pa.list_(pa.int32(), 3))})
    return planted_artifacts.commit(store, "item_codes", {"codes": table})


def test_clusters_are_of_the_first_codes_and_none_without_codes(tmp_path: Path) -> None:
    codes = item_codes(planted_artifacts.open_store(tmp_path, "codes"), {"tea": [0, 1, 2], "milk": [0, 1, 0], "soap": [0, 0, 2], "book": [1, 1, 2]})
    entities = small_world.entities()
    book, milk, odd, soap, tea = range(1, 6)
    for depth, alike in ((1, [{tea, milk, soap}, {book}]), (2, [{tea, milk}, {soap}, {book}]), (3, [{tea}, {milk}, {soap}, {book}])):
        cluster_N = load_clusters(codes, entities, depth)
        assert (cluster_N[0], cluster_N[odd]) == (0, 0)
        groups = {number: {row for row in range(6) if cluster_N[row] == number} for number in set(cluster_N[cluster_N > 0].tolist())}
        assert sorted(map(sorted, groups.values())) == sorted(map(sorted, alike))
