"""The alignment command: one seed's scores as an artifact, measured by week, and the page of all seeds."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from longtail.artifacts import Artifact, Store
from longtail.config import Config
from longtail.continual import UPDATED
from longtail.continual_results import AlignmentResults, page
from longtail.metrics import auc
from pipelines.alignment import ALIGNMENT, main, measure, results, seeded
from pipelines.stage import find, line
from pipelines.trial import built_here
from tests import borrowing_world

ONE_EPOCH = {"epochs": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, Store, Artifact]]:
    before = torch.get_num_threads()
    config, store = borrowing_world.publish(
        tmp_path_factory.mktemp("world"),
        train={"batch_size": 32, "epochs": 1},
        rankers={"saviorrec": {"id_dim": 4, "hidden_dims": [8], "attention_dims": [8], "similarity": "kernels"}},
        continual={"num_weeks": 2, "seeds": [7], "codebooks": ONE_EPOCH, "everything": ONE_EPOCH, "leave_out": ["mba_temperature"], "bootstrap_rounds": 50},
    )
    yield config, store, built_here(ALIGNMENT, config, store)
    torch.set_num_threads(before)


def test_nothing_is_made_that_is_lent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert not {"lent", "lifts", "peers", "profiles"} & {stage.name for stage in line(ALIGNMENT)}
    monkeypatch.setattr("sys.argv", ["alignment", "--set", "rankers.saviorrec.peer_stats=true"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "rankers.saviorrec.peer_stats = true: what peers lend is no part of the study of drift. Leave it out." in capsys.readouterr().err


def test_every_arm_scores_the_rows_of_two_weeks(made: tuple[Config, Store, Artifact]) -> None:
    config, store, artifact = made
    table = artifact.read("scores")
    arms = {name.removeprefix("score_") for name in table.column_names if name.startswith("score_")}
    assert arms == {*UPDATED, "retrained"} - {"mba_temperature"}
    days = (table.column("ts").cast("int64").to_numpy() - borrowing_world.TRAIN_END.timestamp() * 1e6) / 86_400e6
    assert np.array_equal(table.column("week").to_numpy(), days // 7 + 1)
    frozen, first = table.column("score_frozen").to_numpy(), table.column("week").to_numpy() == 1
    for arm in arms:
        scores = table.column(f"score_{arm}").to_numpy()
        np.testing.assert_allclose(scores[first], frozen[first], atol=1e-4)  # nothing is known of the first week but what the ranker was trained on
        assert (np.abs(scores[~first] - frozen[~first]).max() > 1e-4) == (arm != "frozen"), arm
    assert set(artifact.info["seconds"]) == arms | {"trained"}
    assert find(ALIGNMENT, config, store) == artifact


def test_seeds_have_worlds_of_their_own_and_settings_keys(made: tuple[Config, Store, Artifact]) -> None:
    config, store, _ = made
    assert find(ALIGNMENT, seeded(config, 8), store) is None
    longer = config.model_copy(update={"continual": config.continual.model_copy(update={"bootstrap_rounds": 99})})
    assert find(ALIGNMENT, longer, store) is not None, "how it is measured does not decide the scores"


def test_the_page_says_what_the_scores_come_to(made: tuple[Config, Store, Artifact], tmp_path: Path) -> None:
    config, store, artifact = made
    table = artifact.read("scores")
    second = table.column("week").to_numpy() == 2
    expected = auc(table.column("outcome").to_numpy()[second].astype(int), table.column("score_mba").to_numpy()[second])
    assert measure(config, store, artifact)["mba"]["all/week_2"].mean == pytest.approx(expected)
    found = results(config, store, {7: artifact}, {"date": "2026-11"})
    assert AlignmentResults.model_validate(json.loads(found.model_dump_json(exclude_none=True))).arms.keys() == found.arms.keys()
    assert found.arms["mba"]["all/week_2"].mean == pytest.approx(expected)
    assert "moved/updated" not in found.arms["mba"], "nobody planted a truth here"
    text = page(found)
    assert f"{expected:.4f}" in text
    assert "date: 2026-11" in text
