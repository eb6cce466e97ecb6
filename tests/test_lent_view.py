"""What a user has and what is lent, as the console tells it: the same lender and values that features are made with."""

from pathlib import Path

import pytest

from longtail.artifacts import Artifact, Store
from longtail.lent_view import GroupTable, last_events, load_group_table
from longtail.run_state import load_lent_state
from tests import small_run, small_world


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[GroupTable, Artifact, Artifact, Artifact]:
    folder: Path = tmp_path_factory.mktemp("run")
    config = small_run.publish(folder)
    store = Store.open(config.run.uri)
    logs, groups, codes = (store.find(stage, next((folder / stage).iterdir()).name) for stage in ("logs", "groups", "user_codes"))
    assert logs is not None
    assert groups is not None
    assert codes is not None
    return load_group_table(logs, groups, config.samples.numeric_bins, config.groups.min_size), logs, groups, codes


def test_the_lender_is_the_one_that_features_are_lent_by(run: tuple[GroupTable, Artifact, Artifact, Artifact]) -> None:
    table, logs, groups, codes = run
    state = load_lent_state(logs, codes, groups, None, small_run.config("unused")).groups
    for prefix in ((0, 1), (0, 2), (1, 0), (2, 2)):
        (lender,) = [step for step, _, lends in table.path(prefix) if lends]
        assert state.group_of[0, lender] == state.lend(0, prefix)
    assert [(prefix, lends) for prefix, _, lends in table.path((0, 2))] == [((), False), ((0,), True), ((0, 2), False)]
    assert table.path((2, 2))[1][1] is None, "nobody is there"


def test_own_values_stand_and_what_is_missing_is_lent(run: tuple[GroupTable, Artifact, Artifact, Artifact]) -> None:
    city, age = run[0].attributes((0, 1), {"city": "Ulm", "age": None})
    assert (city.name, city.own, city.lent, city.support, city.lender) == ("city", "Ulm", "Bonn", 1.0, (0, 1))
    assert (age.own, age.lent, age.lender) == (None, "[-inf, 26.6667)", (0, 1))
    city, age = run[0].attributes((), {"city": "Paris"})
    assert city.own is None, "no user of the run has that value"
    assert city.lender == ()


def test_the_last_events_come_first(run: tuple[GroupTable, Artifact, Artifact, Artifact]) -> None:
    events = last_events(run[1], "a", 3).to_pylist()
    assert (events[0]["item_id"], events[0]["kind"]) == ("soap", "purchase")
    assert [event["ts"] for event in events] == sorted((event["ts"] for event in events), reverse=True)
    assert events[0]["ts"] == small_world.day(12)
    assert last_events(run[1], "nobody", 3).num_rows == 0
