"""Studies: arms as lists of settings, who runs where and with which seeds, what is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from longtail.config import Config, load
from longtail.study import StudySettings, seeded
from pipelines.cluster import ROOT
from pipelines.study_arms import arm_config, runs_of, there, worlds
from pipelines.study_measures import results_folder

HEADLINE = {"arm": "full", "slice": "low20", "base": "base", "control": "shuffled"}


def section(**changes: Any) -> dict[str, Any]:
    """A [study] of four arms on two data sets."""
    return {
        "seeds": [1, 2, 3, 4],
        "num_ablation_seeds": 3,
        "short_seeds": 2,
        "short_datasets": ["shop"],
        "headline_arms": ["base", "full", "shuffled"],
        "ablations_on": ["shop"],
        "against": ["base", "shuffled"],
        "datasets": {name: {"config": "pipelines/configs/test.toml", "headline": HEADLINE} for name in ("shop", "films")},
        "arms": {
            "base": {"ranker": "base"},
            "full": {"set": ["peers.form=neighbours", "codes.user.codebook_size=4"]},
            "shuffled": {"like": "full", "set": ["user_spaces.shuffled=true"]},
            "wide": {"like": "shuffled", "set": ["codes.user.codebook_size=5"], "validation_only": True},
        },
        **changes,
    }


def settings(**changes: Any) -> StudySettings:
    return StudySettings.model_validate(section(**changes))


def test_an_arm_has_the_settings_of_those_that_it_is_like_first() -> None:
    assert settings().settings_of("base") == ()
    full = ("peers.form=neighbours", "codes.user.codebook_size=4")
    assert settings().settings_of("full") == full
    assert settings().settings_of("wide") == (*full, "user_spaces.shuffled=true", "codes.user.codebook_size=5")


def test_an_arm_has_the_ranker_of_the_arm_that_it_is_like_if_it_names_none() -> None:
    arms = {"base": {"ranker": "base"}, "weak": {"like": "base"}, "weaker": {"like": "weak", "ranker": "duet"}, "plain": {}, "plainer": {"like": "plain"}}
    study = settings(arms=section()["arms"] | arms)
    assert [study.ranker_of(name) for name in arms] == ["base", "base", "duet", "choirrec", "choirrec"]


def test_what_is_the_studys_is_not_for_a_data_set_to_set_over_its_arms() -> None:
    datasets = section()["datasets"] | {"shop": {"config": "pipelines/configs/test.toml", "headline": HEADLINE, "over": ["train.seed=3"]}}
    with pytest.raises(ValueError, match=r"study\.datasets\.shop\.over sets \['train\.seed=3'\]: these are the study's"):
        runs_of(settings(datasets=datasets), "shop", load(None))


@pytest.mark.parametrize(
    ("arms", "circle"),
    [
        ({"full": {"like": "full"}}, "full -> full"),
        ({"full": {"like": "wide"}, "wide": {"like": "shuffled"}, "shuffled": {"like": "full"}}, "full -> wide -> shuffled -> full"),
        ({"full": {"like": "wide"}, "wide": {"like": "shuffled"}, "shuffled": {"like": "wide"}}, "full -> wide -> shuffled -> wide"),
    ],
)
def test_circles_are_refused(arms: dict[str, Any], circle: str) -> None:
    with pytest.raises(ValidationError, match=f"goes in a circle: {circle}"):
        settings(arms=section()["arms"] | arms)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"headline_arms": ["base", "full", "shuffled", "best"]}, r"headline_arms names \['best'\]; there are \['base', 'full', 'shuffled', 'wide'\]"),
        ({"against": ["base", "nothing"]}, r"against names \['nothing'\]"),
        ({"ablations_on": ["shop", "market"]}, r"ablations_on names \['market'\]; there are \['shop', 'films'\]"),
        ({"only": ["films"], "form": "short"}, r"only names \['films'\], which are not in the short form \(\['shop'\]\)"),
        ({"only": ["market"]}, r"only names \['market'\]; there are \['shop', 'films'\]"),
        ({"short_datasets": ["market"]}, r"short_datasets names \['market'\]"),
        ({"arms": section()["arms"] | {"full": {"like": "wide"}, "wide": {"like": "nobody"}}}, r"arms\.wide\.like names \['nobody'\]"),
        ({"datasets": {"shop": {"config": "x.toml", "headline": HEADLINE | {"control": "wide"}}}}, r"datasets\.shop\.headline names \['wide'\]"),
        ({"datasets": {"shop": {"config": "x.toml", "headline": HEADLINE | {"slice": "lazy"}}}}, r"datasets\.shop\.headline\.slice names \['lazy'\]"),
        ({"arms": section()["arms"] | {"wide": {"datasets": ["market"]}}}, r"arms\.wide\.datasets names \['market'\]"),
        ({"arms": section()["arms"] | {"wide": {"against": ["narrow"]}}}, r"arms\.wide\.against names \['narrow'\]"),
        ({"arms": section()["arms"] | {"full": {"num_seeds": 1}}}, r"arms\.full is a headline arm"),
        ({"leave_out": ["full"]}, r"leave_out names \['full'\]; there are \['wide'\]"),
        ({"leave_out": ["base"]}, r"leave_out names \['base'\], which the others are compared with: take them out of against too"),
        ({"leave_out": ["wdie"]}, r"leave_out names \['wdie'\]; there are \['wide'\]\. Did you mean wide\?"),
        ({"headline_arms": ["base", "full", "full", "shuffled"]}, r"headline_arms = \[.*\]: name each once"),
        ({"short_datasets": ["shop", "shop"]}, r"short_datasets = \['shop', 'shop'\]: name each once"),
        ({"arms": section()["arms"] | {"full": {"validation_only": True}}}, r"arms\.full is a headline arm, which is measured on the test window"),
        ({"datasets": {"shop": {"config": "x.toml", "headline": HEADLINE | {"base": "full"}}}}, r"datasets\.shop\.headline = .*name each once"),
        ({"against": ["base"]}, r"datasets\.shop\.headline: full is not compared with \['shuffled'\]\. Name them in against"),
        ({"datasets": {"shop.v1": {"config": "x.toml", "headline": HEADLINE}}}, "pattern"),
        ({"arms": section()["arms"] | {"a/../b": {}}}, "pattern"),
        ({"metric": "auc"}, r"datasets\.shop\.headline\.slice names \['low20'\]; there are \['all', 'zero_shot'"),
        ({"metric": "ndcg"}, "'gauc' or 'auc'"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"seeds": [True]}, "valid integer"),
        ({"bootstrap_rounds": 10**12}, "less than or equal to 100000"),
        ({"results": ""}, "at least 1 character"),
        ({"seeds": [1, 2, 1]}, "name each once"),
        ({"seeds": []}, "at least 1 item"),
        ({"against": []}, "at least 1 item"),
        ({"name": "My study"}, "pattern"),
        ({"arms": section()["arms"] | {"full": {"ranker": "trio"}}}, "'base', 'choirrec', 'saviorrec' or 'duet'"),
    ],
)
def test_what_does_not_exist_or_is_named_twice_is_refused(changes: dict[str, Any], said: str) -> None:
    short = {"ablations_on": [], "short_datasets": []} if "datasets" in changes else {}
    with pytest.raises(ValidationError, match=said):
        settings(**short, **changes)


def test_a_config_without_a_study_is_no_study() -> None:
    assert Config().study.arms == {}
    assert Config().study.chosen_datasets == ()


def test_the_full_form_runs_headline_arms_everywhere_and_ablations_where_they_are_asked_for() -> None:
    study = settings()
    headline = dict.fromkeys(("base", "full", "shuffled"), (1, 2, 3, 4))
    assert study.chosen_datasets == ("shop", "films")
    assert study.plan("films") == headline
    assert study.plan("shop") == headline | {"wide": (1, 2, 3)}


def test_an_arm_may_name_its_data_sets_its_seeds_and_what_it_is_compared_with() -> None:
    study = settings(arms=section()["arms"] | {"wide": {"datasets": ["films"], "num_seeds": 2, "against": ["full", "base"]}})
    assert "wide" not in study.plan("shop")
    assert study.plan("films")["wide"] == (1, 2)
    assert study.against_of("wide") == ("base", "shuffled", "full")
    assert study.against_of("full") == ("base", "shuffled")
    assert "wide" not in settings(leave_out=["wide"]).plan("shop")


def test_the_short_form_runs_headline_arms_alone_with_the_first_seeds() -> None:
    study = settings(form="short")
    assert study.chosen_datasets == ("shop",)
    assert study.plan("shop") == dict.fromkeys(("base", "full", "shuffled"), (1, 2))
    assert settings(form="short", short_datasets=[]).chosen_datasets == ("shop", "films")
    assert settings(only=["films"]).chosen_datasets == ("films",)


def test_a_seed_decides_weights_and_where_an_arm_borrows_how_groups_are_made() -> None:
    assert seeded(("a.b=1",), 5, borrows=False) == ("a.b=1", "train.seed=5", "item_z.seed=5")
    assert seeded((), 5, borrows=True) == ("train.seed=5", "item_z.seed=5", "codes.user.seed=5", "user_spaces.seed=5", "peers.seed=5")


def seeds_of(config: Config) -> list[int | None]:
    return [config.train.seed, config.codes.user.seed, config.user_spaces.seed, config.peers.seed]


def test_an_arms_config_is_its_data_sets_with_its_settings_and_its_seed(tmp_path: Path) -> None:
    study = settings(
        arms=section()["arms"] | {"stats": {"ranker": "base", "set": ["rankers.base.peer_stats=true"]}},
        datasets=section()["datasets"] | {"shop": {"config": "pipelines/configs/test.toml", "set": ["peers.form=random"], "headline": HEADLINE}},
    )
    config = load(None, [f"run.uri={tmp_path}", "cluster.num_cpus=1", "tracking.project=mine"])
    plain = load(ROOT / "pipelines/configs/test.toml")
    shared = arm_config(study, "shop", None, None, config)
    assert (shared.peers.form, shared.logs, shared.train) == ("random", plain.logs, plain.train)
    assert (shared.run.uri, shared.run.seed, shared.cluster, shared.tracking.backend) == (f"{tmp_path}/shop", plain.run.seed, config.cluster, "none")
    wide = arm_config(study, "shop", "wide", 3, config)
    assert (wide.peers.form, wide.user_spaces.shuffled, wide.codes.user.codebook_size) == ("neighbours", True, 5), "the arm's own settings come last"
    assert seeds_of(wide) == [3, 3, 3, 3]
    assert wide.run == shared.run, "what arms share is made with the data set's own seed"
    assert seeds_of(arm_config(study, "shop", "base", 3, config)) == [3, None, None, None]
    over = settings(datasets=section()["datasets"] | {"shop": study.datasets["shop"].model_dump() | {"over": ["codes.user.codebook_size=6"]}})
    assert arm_config(over, "shop", "wide", 3, config).codes.user.codebook_size == 6, "but for what the data set sets over them"
    assert seeds_of(arm_config(study, "shop", "stats", 3, config)) == [3, 3, 3, 3]


def test_every_trial_is_listed_and_a_choice_to_be_made_never_sees_the_test_window(tmp_path: Path) -> None:
    runs = runs_of(settings(), "shop", load(None, [f"run.uri={tmp_path}"]))
    assert [(run.arm, run.seed) for run in runs] == [(arm, seed) for arm, seeds in settings().plan("shop").items() for seed in seeds]
    assert {run.arm: run.splits for run in runs}["wide"] == ("validation",)
    assert all(run.splits == ("validation", "test") for run in runs if run.arm != "wide")
    assert {run.arm: run.ranker for run in runs} == {"base": "base", "full": "choirrec", "shuffled": "choirrec", "wide": "choirrec"}


@pytest.mark.parametrize("setting", ["run.seed=3", "train.seed=3", "study.name=mine", "peers.seed=3", "cluster.num_cpus=1"])
def test_what_the_study_sets_is_not_for_an_arm(setting: str) -> None:
    study = settings(arms=section()["arms"] | {"full": {"set": [setting]}})
    with pytest.raises(ValueError, match=r"study\.arms\.full sets \['" + setting.replace(".", r"\.") + r"'\]: these are the study's"):
        runs_of(study, "shop", load(None))


@pytest.mark.parametrize("setting", ["logs.synthetic.tastes=own", "logs.split.train_frac=0.3", "logs.truncate.users_frac=0.5"])
def test_an_arm_with_rows_of_its_own_is_refused_since_arms_are_compared_on_the_same(setting: str) -> None:
    study = settings(arms=section()["arms"] | {"full": {"set": [setting]}})
    with pytest.raises(ValueError, match=r"study\.arms\.full on shop changes the logs.* study\.datasets\.shop\.set"):
        runs_of(study, "shop", load(None))


def test_seeds_may_have_worlds_of_their_own_and_all_arms_of_a_seed_share_one() -> None:
    cold = {"config": "pipelines/configs/test.toml", "headline": HEADLINE, "set": ["logs.cold_start.items_frac=0.3"], "seeded": ["logs.cold_start.seed"]}
    study = settings(datasets=section()["datasets"] | {"shop": cold})
    assert worlds(study, "shop") == (1, 2, 3, 4)
    assert worlds(study, "films") == (None,)
    assert worlds(settings(form="short", datasets=section()["datasets"] | {"shop": cold}), "shop") == (1, 2)
    runs = runs_of(study, "shop", load(None))
    assert {(run.arm, run.seed, run.config.logs.cold_start.seed) for run in runs} == {(run.arm, run.seed, run.seed) for run in runs}
    shared = arm_config(study, "shop", None, 3, load(None))
    assert all(run.config.logs == shared.logs for run in runs if run.seed == 3)
    assert {run.config.logs.cold_start.seed for run in runs_of(study, "films", load(None))} == {None}
    own = settings(datasets=section()["datasets"] | {"shop": cold}, arms=section()["arms"] | {"full": {"set": ["logs.cold_start.min_events=200"]}})
    with pytest.raises(ValueError, match=r"study\.arms\.full on shop changes the logs"):
        runs_of(own, "shop", load(None))


def test_a_headline_on_truncated_users_needs_some() -> None:
    study = settings(datasets={"shop": {"config": "pipelines/configs/test.toml", "headline": HEADLINE | {"slice": "truncated"}}}, short_datasets=["shop"])
    with pytest.raises(ValueError, match=r"headline\.slice = 'truncated': nobody is, logs\.truncate\.users_frac is 0"):
        runs_of(study, "shop", load(None))


def test_seeds_decide_the_groups_of_every_ranker_that_borrows() -> None:
    arms = section()["arms"] | {"items": {"ranker": "saviorrec", "set": ["rankers.saviorrec.peer_stats=true"]}}
    assert seeds_of(arm_config(settings(arms=arms), "shop", "items", 3, load(None))) == [3, 3, 3, 3]


def test_a_config_that_is_not_there_is_told_by_its_data_set_even_where_that_is_optional() -> None:
    given = {"config": "pipelines/configs/nope.toml", "headline": HEADLINE, "optional": True}
    with pytest.raises(ValueError, match=r"study\.datasets\.shop\.config = 'pipelines/configs/nope\.toml': no such file"):
        there(settings(datasets=section()["datasets"] | {"shop": given}), "shop", load(None))
    typo = {"config": "pipelines/configs/test.toml", "set": ["logs.soruce=tables"], "headline": HEADLINE, "optional": True}
    with pytest.raises(ValueError, match="Did you mean source"):
        there(settings(datasets=section()["datasets"] | {"shop": typo}), "shop", load(None))


def test_results_that_cannot_be_written_are_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"study\.results = .* cannot be written to: .* Name a folder that is yours"):
            results_folder(settings(results=str(folder)), ["shop"])
    (tmp_path / "study_shop.json").mkdir()
    with pytest.raises(ValueError, match=r"study_shop\.json.* are folders"):
        results_folder(settings(results=str(tmp_path)), ["shop"])
    assert results_folder(settings(results=str(tmp_path / "new")), ["shop"]) == tmp_path / "new"


def test_a_wrong_setting_is_told_with_its_arm_and_data_set() -> None:
    study = settings(arms=section()["arms"] | {"full": {"set": ["peers.shape=round"]}})
    with pytest.raises(ValueError, match=r"(?s)study\.arms\.full on shop: .*peers.*no such key"):
        runs_of(study, "shop", load(None))


@pytest.mark.parametrize("optional", [True, False])
def test_a_data_set_whose_tables_are_not_there_is_left_out_where_it_may_be(tmp_path: Path, optional: bool) -> None:
    tables = "{" + ", ".join(f'{name}="{tmp_path}/no_{name}.parquet"' for name in ("users", "items", "events")) + "}"
    given = {"config": "pipelines/configs/test.toml", "set": ["logs.source=tables", f"logs.tables={tables}"], "headline": HEADLINE, "optional": optional}
    study = settings(datasets=section()["datasets"] | {"shop": given})
    assert there(study, "films", load(None)) is None
    if optional:
        assert "no_users.parquet" in (there(study, "shop", load(None)) or "")
    else:
        with pytest.raises(ValueError, match=r"study\.datasets\.shop: .*no_users\.parquet"):
            there(study, "shop", load(None))


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines/configs").glob("*study*.toml")), ids=lambda path: path.stem)
def test_every_arm_of_our_own_studies_is_a_config(path: Path) -> None:
    config = load(path)
    for name in config.study.datasets:
        runs = runs_of(config.study, name, config)
        assert {run.arm for run in runs} >= set(config.study.headline_arms)
