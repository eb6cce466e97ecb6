"""The synthetic world: what is planted is there, and nothing else is."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_mutual_info_score

from longtail import schema
from longtail.log_check import check_tables
from longtail.logs import Logs, LogsSettings, build_logs

WORLD = {"num_users": 400, "num_items": 400, "num_groups": 6, "num_topics": 10, "num_days": 90, "sessions_per_user": 30}


@pytest.fixture(scope="module")
def logs() -> Logs:
    return build_logs(LogsSettings.model_validate({"source": "synthetic", "synthetic": WORLD}), seed=11)


def joined(logs: Logs) -> dict[str, np.ndarray]:
    """The examples with the planted truth of their user and item, and the item's category, brand and price."""
    examples, tables = logs.tables["examples"], logs.tables
    user = pc.index_in(examples.column("user_id"), value_set=tables["truth_users"].column("user_id").combine_chunks()).to_numpy()
    item = pc.index_in(examples.column("item_id"), value_set=tables["truth_items"].column("item_id").combine_chunks()).to_numpy()
    row = pc.index_in(examples.column("item_id"), value_set=tables["items"].column("item_id").combine_chunks())
    items = tables["items"].take(row)
    return {
        "group": tables["truth_users"].column("user_group").to_numpy()[user],
        "topic": tables["truth_items"].column("item_topic").to_numpy()[item],
        "cold": tables["truth_items"].column("cold").to_numpy()[item],
        "leaf": np.array([path[-1] for path in items.column("category").to_pylist()]),
        "brand": np.array(items.column("brand").to_pylist()),
        "price": items.column("price").to_numpy(),
        "outcome": examples.column("outcome").to_numpy(),
        "split": np.array(examples.column("split").to_pylist()),
        "user": user,
        "item": item,
    }


def cell_auc(train_key: np.ndarray, train_label: np.ndarray, key: np.ndarray, label: np.ndarray) -> float:
    """AUC on (key, label) of the smoothed click rate that each key has in the training rows."""
    size = int(max(train_key.max(), key.max())) + 1
    mean = train_label.mean()
    rate = (np.bincount(train_key, train_label, size) + 5 * mean) / (np.bincount(train_key, minlength=size) + 5)
    positive, negative = rate[key][label == 1], rate[key][label == 0]
    return float((np.searchsorted(np.sort(negative), positive, "left") + np.searchsorted(np.sort(negative), positive, "right")).mean() / 2 / len(negative))


def test_tables_are_in_the_documented_form(logs: Logs) -> None:
    settings = LogsSettings()
    attributes = (logs.info.categorical_attributes, logs.info.numeric_attributes)
    tables = logs.tables
    report = check_tables(tables["users"], tables["items"], tables["events"], attributes=attributes, split=settings.split, labels=settings.labels)
    assert report.findings == []
    assert set(pc.unique(tables["events"].column("kind")).to_pylist()) == {"impression", "click", "purchase", "search"}
    assert logs.info.exposure.startswith("logged impressions")


def test_clicks_follow_impressions_and_purchases_clicks(logs: Logs) -> None:
    events = logs.tables["events"]
    first: dict[tuple[str, str, str], int] = {}
    keys = list(zip(*(events.column(name).to_pylist() for name in ("user_id", "item_id", "request_id", "kind")), strict=True))
    for place, (*key, kind) in enumerate(keys):
        first[(*key, kind)] = place
    clicks = [key for key in first if key[-1] == "click"]
    purchases = [key for key in first if key[-1] == "purchase"]
    assert len(clicks) > len(purchases) > 100
    assert all(first[(*key[:3], "impression")] < first[key] for key in clicks)
    assert all(first[(*key[:3], "click")] < first[key] for key in purchases)


def test_topics_show_in_titles(logs: Logs) -> None:
    words = CountVectorizer().fit_transform(logs.tables["items"].column("title").to_pylist())
    topic = logs.tables["truth_items"].column("item_topic").to_numpy()
    half = np.arange(len(topic)) % 2 == 0
    model = LogisticRegression(max_iter=500).fit(words[half], topic[half])
    assert model.score(words[~half], topic[~half]) > 0.95


def test_topics_are_independent_of_category_brand_and_price(logs: Logs) -> None:
    items = logs.tables["items"]
    topic = logs.tables["truth_items"].column("item_topic").to_numpy()
    for other in ([path[-1] for path in items.column("category").to_pylist()], items.column("brand").to_pylist()):
        assert abs(adjusted_mutual_info_score(topic, other)) < 0.03
    tiers = np.searchsorted(np.quantile(items.column("price").to_numpy(), [0.25, 0.5, 0.75]), items.column("price").to_numpy())
    assert abs(adjusted_mutual_info_score(topic, tiers)) < 0.03


def test_cold_items_clicks_follow_taste_and_nothing_that_a_base_ranker_sees(logs: Logs) -> None:
    rows = joined(logs)
    train, cold = rows["split"] != "test", (rows["split"] == "test") & rows["cold"]
    label = rows["outcome"]
    assert cold.sum() > 500
    topics = WORLD["num_topics"]
    taste = rows["group"] * topics + rows["topic"]
    assert cell_auc(taste[train], label[train], taste[cold], label[cold]) > 0.65
    user_topic = rows["user"] * topics + rows["topic"]
    assert cell_auc(user_topic[train], label[train], user_topic[cold], label[cold]) > 0.6
    for name in ("leaf", "brand"):
        _, key = np.unique(rows[name], return_inverse=True)
        assert abs(cell_auc(key[train], label[train], key[cold], label[cold]) - 0.5) < 0.06
        crossed = rows["user"] * (key.max() + 1) + key
        assert abs(cell_auc(crossed[train], label[train], crossed[cold], label[cold]) - 0.5) < 0.06
    assert abs(cell_auc(rows["user"][train], label[train], rows["user"][cold], label[cold]) - 0.5) < 0.06


def test_cold_items_are_first_shown_in_the_test_window(logs: Logs) -> None:
    events = logs.tables["events"]
    cold = logs.tables["truth_items"].filter(logs.tables["truth_items"].column("cold")).column("item_id").combine_chunks()
    assert len(cold) == round(0.2 * WORLD["num_items"])
    shown = events.filter(pc.is_in(events.column("item_id"), value_set=cold))
    assert len(pc.unique(shown.column("item_id"))) > 0.95 * len(cold)
    assert pc.min(shown.column("ts")).as_py() >= logs.info.train_end


def test_quiet_and_busy_users(logs: Logs) -> None:
    sessions = logs.tables["events"].filter(pc.equal(logs.tables["events"].column("kind"), "impression"))
    per_user = sessions.group_by("user_id").aggregate([("request_id", "count_distinct")]).column("request_id_count_distinct").to_numpy()
    quiet, busy = np.sort(per_user)[: len(per_user) // 2], np.sort(per_user)[len(per_user) // 2 :]
    assert np.median(busy) > 6 * np.median(quiet)
    assert per_user.mean() == pytest.approx(WORLD["sessions_per_user"], rel=0.1)


def test_one_group_means_none() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "synthetic": WORLD | {"num_groups": 1}})
    world = build_logs(settings, seed=11)
    assert set(world.tables["truth_users"].column("user_group").to_pylist()) == {0}
    rows = joined(world)
    train, test = rows["split"] != "test", rows["split"] == "test"
    label, topic = rows["outcome"], rows["topic"]
    assert abs(cell_auc(topic[train], label[train], topic[test], label[test]) - 0.5) < 0.05  # nobody's taste is everybody's
    own = rows["user"] * WORLD["num_topics"] + topic
    assert cell_auc(own[train], label[train], own[test], label[test]) > 0.6


@pytest.mark.parametrize("tastes", ["own", "shared"])
def test_own_tastes_are_nobody_elses(tastes: str) -> None:
    users, items = WORLD["num_users"], 60
    changes = {"num_groups": 1, "num_items": items, "cold_item_frac": 0.0, "tastes": tastes}
    rows = joined(build_logs(LogsSettings.model_validate({"source": "synthetic", "synthetic": WORLD | changes}), seed=11))
    train, test, label = rows["split"] != "test", rows["split"] == "test", rows["outcome"]
    pair = rows["user"] * items + rows["item"]
    assert cell_auc(pair[train], label[train], pair[test], label[test]) > 0.6, "either way a user's past tells that user's future"
    counts_UI = np.bincount(pair, minlength=users * items).reshape(users, items)
    rate_UI = np.bincount(pair, label, users * items).reshape(users, items) / np.maximum(counts_UI, 1)
    mean_I = (rate_UI * (counts_UI > 0)).sum(axis=0) / (counts_UI > 0).sum(axis=0)
    together = np.corrcoef(np.where(counts_UI > 0, rate_UI - mean_I, 0).T)[np.triu_indices(items, 1)]
    # Whether liking one item is a sign of liking another: by chance a correlation of 400 users is 1 / sqrt(400).
    assert (together.std() < 1.3 / np.sqrt(users)) == (tastes == "own")


def test_searches_speak_of_liked_topics(logs: Logs) -> None:
    """A search's words tell the topic, and the groups' searches differ by far more than chance."""
    events = logs.tables["events"].filter(pc.equal(logs.tables["events"].column("kind"), "search"))
    user = pc.index_in(events.column("user_id"), value_set=logs.tables["truth_users"].column("user_id").combine_chunks()).to_numpy()
    group = logs.tables["truth_users"].column("user_group").to_numpy()[user]
    first_word = [query.split()[0] for query in events.column("query").to_pylist()]
    assert adjusted_mutual_info_score(group, first_word) > 0.1


def test_attributes_follow_groups_and_are_often_missing(logs: Logs) -> None:
    users = logs.tables["users"]
    group = logs.tables["truth_users"].column("user_group").to_numpy()
    assert 0.3 < users.column("age_band").null_count / len(users) < 0.5
    known = pc.is_valid(users.column("age_band")).to_numpy()
    assert adjusted_mutual_info_score(group[known], pc.fill_null(users.column("age_band"), "").to_numpy(zero_copy_only=False)[known]) > 0.2
    region = pc.fill_null(users.column("region"), "").to_numpy(zero_copy_only=False)
    assert abs(adjusted_mutual_info_score(group, region)) < 0.03


def test_one_seed_gives_one_world() -> None:
    small = {"source": "synthetic", "synthetic": {"num_users": 60, "num_items": 60, "num_days": 40}}
    first, again, other = (build_logs(LogsSettings.model_validate(small), seed=seed).tables for seed in (1, 1, 2))
    assert all(first[name].equals(again[name]) for name in first)
    assert not first["events"].equals(other["events"])


def test_truth_follows_the_sample() -> None:
    small = {"source": "synthetic", "synthetic": {"num_users": 80, "num_items": 60}, "sample": {"num_users": 30}}
    tables = build_logs(LogsSettings.model_validate(small), seed=1).tables
    assert tables["truth_users"].column("user_id").equals(tables["users"].column("user_id"))
    assert tables["truth_items"].column("item_id").to_pylist() == tables["items"].column("item_id").to_pylist()
    assert isinstance(tables["truth_users"], pa.Table)
    assert tables["examples"].schema.equals(schema.EXAMPLES)


def test_too_few_topics_are_refused() -> None:
    settings = LogsSettings.model_validate({"source": "synthetic", "synthetic": {"num_topics": 3, "topics_per_group": 2}})
    with pytest.raises(ValueError, match="topics_per_group = 2 must be at most num_topics - 2 = 1"):
        build_logs(settings, seed=1)
