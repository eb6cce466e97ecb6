"""Studies from the command to the page, on tiny worlds: ChoirRec's in GAUC, SaviorRec's in AUC with a world for each seed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from longtail.artifacts import Store
from longtail.config import load
from longtail.metrics import gauc
from longtail.study_results import StudyResults
from pipelines import study as pipeline
from pipelines.study_measures import earlier_openings, files_of

TINY = """
[logs]
source = "synthetic"
split = { history_frac = 0.4, train_frac = 0.4, validation_frac = 0.25 }
[logs.synthetic]
num_users = 150
num_items = 90
num_groups = 1
tastes = "own"
num_topics = 6
num_days = 60
sessions_per_user = 8.0
impressions_per_session = 5
[profiles]
generator = "deterministic"
[embeddings.user.compute]
num_cpus = 0.5
[embeddings.item.compute]
num_cpus = 0.5
[item_encoder]
dim = 16
few_pairs = "frozen"
compute = { num_cpus = 0.5 }
[codes.user]
num_stages = 2
codebook_size = 4
[codes.item]
num_stages = 2
codebook_size = 6
compute = { num_actors = 1, num_cpus = 0.5 }
[samples]
history_length = 10
compute = { num_actors = 1, num_cpus = 0.5 }
[train]
batch_size = 128
epochs = 1
[rankers.base]
heads = ["outcome"]
id_dim = 4
hidden_dims = [16, 8]
[rankers.choirrec]
heads = ["outcome"]
id_dim = 4
hidden_dims = [16, 8]
[rankers.saviorrec]
heads = ["outcome"]
id_dim = 4
hidden_dims = [16, 8]
"""

STUDY = """
[run]
uri = "{uri}"
[tracking]
backend = "none"
[study]
name = "tiny"
seeds = [1, 2]
num_ablation_seeds = 1
headline_arms = ["base", "full", "shuffled"]
against = ["base", "shuffled"]
ablations_on = ["world"]
bootstrap_rounds = 50
results = "{results}"
[study.datasets.world]
config = "{config}"
set = ['peers.form=neighbours', 'peers.num_peers=[20, 5]', 'user_spaces.spaces=["profile", "titles", "behaviour"]', 'collaborative.scores=["ease"]']
headline = {{ arm = "full", slice = "low50", base = "base", control = "shuffled" }}
[study.datasets.away]
config = "{config}"
set = ['logs.source=tables', 'logs.tables={{users="no.parquet", items="no.parquet", events="no.parquet"}}']
headline = {{ arm = "full", slice = "all", base = "base", control = "shuffled" }}
optional = true
[study.arms.base]
ranker = "base"
meaning = "own signals"
[study.arms.full]
meaning = "groups and peers"
[study.arms.shuffled]
like = "full"
set = ["user_spaces.shuffled=true"]
against = ["full"]
meaning = "groups and peers of the wrong users"
[study.arms.weak]
ranker = "base"
set = ["rankers.base.own_counts=false"]
validation_only = true
"""


def write_study(folder: Path) -> Path:
    (folder / "world.toml").write_text(TINY)
    path = folder / "study.toml"
    path.write_text(STUDY.format(uri=folder / "runs", results=folder / "results", config=folder / "world.toml"))
    return path


def run_study(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command says in its last line."""
    monkeypatch.setattr("sys.argv", ["study", "--config", str(path)])
    pipeline.main()
    said: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return said


def trials(folder: Path) -> dict[str, int]:
    """Every file of the trials, and when it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in (folder / "runs" / "world" / "trials").rglob("*") if path.is_file()}


def scores(folder: Path) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    store = Store.open(str(folder / "runs" / "world"))
    for path in (folder / "runs" / "world" / "trials").iterdir():
        artifact = store.find("trials", path.name)
        assert artifact is not None
        yield dict(artifact.manifest), artifact.read("scores")


def test_each_form_has_files_of_its_own_and_both_tell_of_the_openings_of_either(tmp_path: Path) -> None:
    study = load(write_study(tmp_path)).study
    short = study.model_copy(update={"form": "short"})
    assert files_of(study, "world", tmp_path)["md"].name == "tiny_world.md"
    assert files_of(short, "world", tmp_path)["md"].name == "tiny_world_short.md"
    later, sooner = ({"when": f"2026-01-0{day}T00:00:00Z", "trained": day} for day in (2, 1))
    for one, openings in ((study, [later]), (short, [later, sooner])):
        files_of(one, "world", tmp_path)["json"].write_text(json.dumps({"notes": {"openings": openings}}))
    assert earlier_openings(study, "world", tmp_path) == earlier_openings(short, "world", tmp_path) == [sooner, later]
    assert earlier_openings(study, "elsewhere", tmp_path) == []


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_study_from_the_command_to_the_page(ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(tmp_path)
    said = run_study(path, capsys, monkeypatch)
    assert (said["study"], said["form"], said["trials"]) == ("tiny", "full", 7)
    assert list(said["results"]) == ["world"]
    assert "no.parquet" in said["left_out"]["away"]

    found = StudyResults.model_validate(json.loads((tmp_path / "results" / "tiny_world.json").read_text()))
    assert (found.dataset, found.window, found.seeds) == ("world", "test", (1, 2))
    assert list(found.arms) == ["base", "full", "shuffled"], "what only chooses is not in the test window"
    assert list(found.validation) == ["base", "full", "shuffled", "weak"]
    assert {"all", "low20", "low50", "high20", "no_history", "orders_1_3", "decile_1", "decile_10"} & set(found.arms["full"]) >= {"all", "low50", "high20"}
    everyone = {arm: slices["all"] for arm, slices in found.arms.items()}
    assert len({(one.rows, one.users) for one in everyone.values()}) == 1
    assert {arm: set(one.vs) for arm, one in everyone.items()} == {"base": {"shuffled"}, "full": {"base", "shuffled"}, "shuffled": {"base", "full"}}
    for one in everyone.values():
        assert 0.3 < one.gauc < 0.95
        assert one.sd > 0
        for gap in one.vs.values():
            assert gap.lo <= gap.mean <= gap.hi
            assert len(gap.per_seed) == 2
            assert gap.mean == pytest.approx(np.mean(gap.per_seed), abs=2e-6)
    assert everyone["full"].vs["base"].mean == pytest.approx(everyone["full"].gauc - everyone["base"].gauc, abs=2e-6)
    assert len(found.validation["weak"]["all"].vs["base"].per_seed) == 1
    assert {"form", "when", "command", "machine", "trials_min", "shared_s", "logs", "openings", "steps", "seconds_per_trial", "parameters", "arms"} <= set(
        found.notes
    )

    gain = everyone["full"].vs["shuffled"]
    assert gain.lo < 0.01, "nobody's taste tells anything of another's: neighbours gain nothing over wrong ones"
    assert gain.mean < 0.04

    seeing = [(manifest["config"], table) for manifest, table in scores(tmp_path) if "test" in manifest["info"]["splits"]]
    mine = {config["train"]["seed"]: table for config, table in seeing if config["name"] == "base"}
    store = Store.open(str(tmp_path / "runs" / "world"))
    (key,) = [one.name for one in (tmp_path / "runs" / "world" / "samples").iterdir()]
    samples = store.find("samples", key)
    assert samples is not None
    table = samples.read("samples", ["example_id", "user_id", "split", "outcome"])
    by_seed = []
    for seed in (1, 2):
        rows = table.filter(pc.equal(table["split"], "test")).join(mine[seed].select(["example_id", "score"]), "example_id", join_type="inner")
        assert len(rows) == everyone["base"].rows
        by_seed.append(gauc(rows["outcome"].to_numpy(), rows["score"].to_numpy(), rows["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()))
    assert everyone["base"].gauc == pytest.approx(np.mean(by_seed), abs=1e-6)

    for suffix in ("md", "html"):
        text = (tmp_path / "results" / f"tiny_world.{suffix}").read_text()
        for words in ("Headline: ", "low50", "base", "full", "shuffled"):
            assert words in text, (suffix, words)

    before = trials(tmp_path)
    assert len([name for name in before if name.endswith("manifest.json")]) == 7
    again = run_study(path, capsys, monkeypatch)
    assert trials(tmp_path) == before, "every trial is found again"
    assert again["results"] == said["results"]
    repeated = StudyResults.model_validate(json.loads((tmp_path / "results" / "tiny_world.json").read_text()))
    assert (repeated.arms, repeated.validation) == (found.arms, found.validation)


COLD_STUDY = """
[run]
uri = "{uri}"
[tracking]
backend = "none"
[study]
name = "tiny"
metric = "auc"
seeds = [1, 2]
headline_arms = ["base", "full", "shuffled"]
against = ["base", "shuffled"]
bootstrap_rounds = 50
results = "{results}"
common = ['rankers.saviorrec.heads=["outcome", "conversion"]', 'rankers.base.heads=["outcome", "conversion"]', "train.optimizer=adam", "train.epochs=3",
  "train.learning_rate=0.01", "train.batch_size=64", "logs.synthetic.tastes=shared", "logs.synthetic.sessions_per_user=20.0"]
[study.datasets.world]
config = "{config}"
set = ["logs.cold_start.items_frac=0.4", "logs.cold_start.min_events=10", "logs.cold_start.keep=[[0, 0], [1, 5]]"]
seeded = ["logs.cold_start.seed"]
headline = {{ arm = "full", slice = "zero_shot", base = "base", control = "shuffled" }}
[study.arms.base]
ranker = "base"
set = ["rankers.base.match_counts=categories"]
[study.arms.full]
ranker = "saviorrec"
set = ["rankers.saviorrec.match_counts=categories"]
[study.arms.shuffled]
like = "full"
ranker = "saviorrec"
set = ["item_z.control=shuffled"]
"""


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_study_in_auc_with_a_world_for_each_seed(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SaviorRec's study at its smallest: worlds made cold, two heads, and semantics that help with items that nobody has met, if they are the right ones."""
    path = write_study(tmp_path)
    path.write_text(COLD_STUDY.format(uri=tmp_path / "runs", results=tmp_path / "results", config=tmp_path / "world.toml"))
    assert run_study(path, capsys, monkeypatch)["trials"] == 6
    raw = json.loads((tmp_path / "results" / "tiny_world.json").read_text())
    assert set(raw["arms"]["full"]["all"]) == {"auc", "sd", "rows", "users", "vs", "beside"}
    found = StudyResults.model_validate(raw)
    assert (found.metric, found.seeds) == ("auc", (1, 2))
    assert {"all", "zero_shot", "cold_1_5", "cold_lt100", "quiet_cold", "busy_cold"} <= set(found.arms["full"])
    assert len(list((tmp_path / "runs" / "world" / "logs").iterdir())) == 2
    for slices in found.arms.values():
        assert slices["zero_shot"].rows < slices["cold_lt100"].rows <= slices["all"].rows
        assert all(len(gap.per_seed) == 2 for name in ("all", "zero_shot") for gap in slices[name].vs.values())

    unseen = {arm: slices["zero_shot"] for arm, slices in found.arms.items()}
    assert min(unseen["full"].vs["shuffled"].per_seed) > 0.02, "titles tell topics, and topics what somebody likes"
    assert min(unseen["full"].vs["base"].per_seed) > 0.02
    assert abs(unseen["shuffled"].vs["base"].mean) < unseen["full"].vs["base"].mean, "of the wrong items they tell nothing"

    assert found.heads is not None
    assert list(found.heads) == ["conversion"]
    conversion = found.heads["conversion"]["full"]["all"]
    assert conversion.rows == found.arms["full"]["all"].rows
    assert conversion.auc != found.arms["full"]["all"].auc
    for arms in (found.arms, found.heads["conversion"]):
        beside = arms["full"]["all"].beside
        assert beside is not None
        assert 0.3 < beside["gauc"] < 0.95
        assert 0.5 < beside["calibration_ratio"] < 2, "probabilities are about as large as what happens"

    page = (tmp_path / "results" / "tiny_world.html").read_text()
    assert "points of AUC" in page
    assert "items with no event before the window opened" in page
    text = (tmp_path / "results" / "tiny_world.md").read_text()
    assert "## Test window, head `conversion`" in text
    assert "calibration error" in text
