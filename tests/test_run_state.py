"""From a run's artifacts to the states of features: what samples are written from and what serving holds is the same."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.feature_state import FeatureState
from longtail.rankers.batch import Batch
from longtail.run_state import load_clusters, load_feature_state
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
    got, expected = loaded.features(rows), made.features(rows)
    assert got.schema.equals(expected.schema)
    assert str(got.to_pydict()) == str(expected.to_pydict())  # as text, since NaN is not equal to itself


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
    served = Batch.from_table(state.features(small_features.Rows.of(asked, state.entities)), state.spec)
    tables = samples.read("samples"), matches.read("matches"), lent.read("lent")
    written = Batch.from_table(pa.table({name: table.column(name) for table in tables for name in table.column_names}), state.spec)
    for name in vars(served):
        if name not in ("outcome_B", "conversion_B"):
            np.testing.assert_array_equal(getattr(served, name).numpy(), getattr(written, name).numpy(), name)
    assert served.peer_stats_BP.any()
    assert served.collaborative_stats_BF.any()


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
