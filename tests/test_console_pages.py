"""The console's pages over a small, evaluated run: what they show of users, groups, items and quality."""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from longtail.artifacts import Store
from longtail.config import Config
from longtail.lineage import stored
from longtail.questions import StatedItem
from serve_apps.ranking import served_run
from tests import console_run, console_server

HTML = {"accept": "text/html"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return console_run.publish(tmp_path_factory.mktemp("console run"))


@pytest.fixture(scope="module")
def client(config: Config) -> Iterator[TestClient]:
    run = served_run(config, Store.open(config.run.uri)).open()
    with TestClient(console_server.application(run), base_url="http://127.0.0.1") as client:
        yield client


def page(client: TestClient, path: str) -> str:
    response = client.get(f"/console/{path}", headers=HTML)
    assert response.status_code == 200, response.text
    return response.text


def embedded(text: str, name: str) -> Any:
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]


def words(text: str) -> str:
    """What a reader sees of a page, in one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|svg).*?</\1>", " ", text, flags=re.DOTALL)).split())


def test_users_stand_by_activity_and_are_found_by_the_beginning_of_their_id(client: TestClient) -> None:
    listed = re.findall(r'<th scope="row"><a href="users\?user=(\w+)"', page(client, "users"))
    assert listed == ["d", "b", "c", "a"], "none, two, two and three purchases"
    assert re.findall(r'<th scope="row"><a href="users\?user=(\w+)"', page(client, "users?order=busiest")) == ["a", "c", "b", "d"]
    assert "4 users" in words(page(client, "users"))
    assert "Nobody" in words(page(client, "users?find=zzz"))
    assert "<h1>a</h1>" in page(client, "users?find=a"), "the only one is shown at once"
    assert client.get("/console/users?order=sideways").status_code == 422


def test_a_user_has_facts_beside_the_profile_and_what_is_lent_beside_what_is_own(client: TestClient) -> None:
    text = page(client, "users?user=c")
    seen = words(text)
    assert "Attributes: Lives in Ulm." in seen
    assert "by fallback:invented" in seen
    assert "Buys &lt;b&gt;soap&lt;/b&gt; &amp; a book." in text, "what a model wrote is never markup"
    assert re.search(r"city Ulm Bonn 0 67.% own", seen), "0-2 has one member: the group above it lends"
    assert "age 40.0" in seen
    data = embedded(text, "ranking-data")
    assert data["user"] == "c"
    assert {"id": "tea", "title": "Tea"} in data["candidates"]


def test_a_user_without_a_value_is_lent_the_groups(client: TestClient) -> None:
    seen = words(page(client, "users?user=d"))
    assert "city unknown Bonn everyone 67 % lent" in seen.replace("\u202f", " ")
    assert "No profile" in seen
    assert "No event of the kinds that make histories." in seen


def test_somebody_unknown_gets_everyones_group(client: TestClient) -> None:
    seen = words(page(client, "users?user=nobody%20%22%3E%3Cscript%3E"))
    assert "everyone's group stands in" in seen
    assert "<script>" not in page(client, "users?user=%3Cscript%3E").partition("<main")[2].replace('<script type="application/json"', "").partition("</h1>")[0]
    assert "everyone 4 members · lends" in seen


def test_the_treemap_has_every_group_with_its_share_of_quiet_members(client: TestClient) -> None:
    figure = embedded(page(client, "groups"), "treemap-figure")["data"][0]
    boxes = dict(zip(figure["labels"], zip(figure["values"], [data[1] for data in figure["customdata"]], strict=True), strict=True))
    assert set(boxes) == {"everyone", "0", "1", "0-1", "0-2", "1-0"}
    low = {"a": 3, "b": 2, "c": 2, "d": 0}
    most = int(re.search(r"at most (\d+) purchase", words(page(client, "groups")))[1])  # type: ignore[index]
    assert boxes["everyone"] == (4, np.mean([value <= most for value in low.values()]))
    assert boxes["1-0"] == (1, 1.0), "d, who never bought"
    assert figure["parents"][figure["labels"].index("0-2")] == "g0"


def test_a_group_opens_with_words_attributes_sequence_and_members(client: TestClient) -> None:
    seen = words(page(client, "groups?group=0-1"))
    assert "Group 0-1" in seen
    assert "bonn 100" in seen
    assert re.search(r"city Bonn 100", seen)
    assert "lends to its members" in seen
    assert re.findall(r"users\?user=(\w+)", page(client, "groups?group=0-1")) == ["b", "a"]
    for strange in ("9-9", "x", "0--1", "-1", "0-1-2"):
        assert client.get(f"/console/groups?group={strange}", headers=HTML).status_code == 404, strange
    assert "Everyone" in words(page(client, "groups?group="))


def test_codebook_health_is_told_by_stage(client: TestClient) -> None:
    seen = words(page(client, "groups"))
    assert re.search(r"User codes stage codes dead perplexity Gini 1 3 1 1\.8", seen), "three of four users have code 0, one code 1, nobody code 2"
    assert "rows that collide 50" in seen.replace("\u202f", "")


def test_items_are_found_by_id_and_by_words_and_have_neighbours_before_and_after(client: TestClient, config: Config) -> None:
    assert re.findall(r"items\?item=(\w+)\"", page(client, "items?find=TE"))[:1] == ["tea"]
    assert "No such item" in words(page(client, "items?find=nothing%20like%20it"))
    text = page(client, "items?item=tea")
    for name in ("before", "after"):
        section = text.partition(f'aria-labelledby="{name}-title"')[2].partition("</table>")[0]
        near = re.findall(r"items\?item=(\w+)", section)
        assert sorted(near) == ["book", "milk", "odd", "soap"], "every other one, and not itself"
        cosines = [float(found) for found in re.findall(r'tabular">(-?\d\.\d+)', section)]
        assert cosines == sorted(cosines, reverse=True)
    assert "4 of 4 neighbours are the same" in words(text)
    assert re.search(r"Alignment drift \d\.\d+", words(text))
    lost = client.get("/console/items?item=unheard", headers=HTML)
    assert "No item unheard" in words(lost.text)


def test_a_new_item_is_placed_by_the_runs_own_encoder(client: TestClient, config: Config) -> None:
    told = client.get("/console/items/try", params={"title": "Oat drink", "category": "food > drinks", "price": 2.5}).json()
    encoder = served_run(config, Store.open(config.run.uri)).open().encoder()
    placed = encoder.place([StatedItem("x", "Oat drink", ("food", "drinks"), None, 2.5)])
    assert told["codes"] == placed.codes_NS[0].tolist()
    assert [len(told["near"][name]) for name in ("before", "after")] == [5, 5]
    assert told["drift"] > 0
    assert len(told["sharing"]) == 2
    assert told["sharing"][0] >= told["sharing"][1]
    body = {"user_id": "a", "items": [{"item_id": "new", "title": "Oat drink"}, *({"item_id": one["id"]} for one in told["candidates"])], "explain": True}
    ranked = client.post("/v1/rank", json=body).json()["items"]
    assert {item["item_id"]: item["basis"] for item in ranked}["new"] == "content"
    refused = client.get("/console/items/try", params={"price": 1})
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:longtail:problem:nothing-to-encode")
    assert client.get("/console/items/try", params={"title": "x", "price": "nan"}).status_code == 422


def test_quality_shows_the_served_evaluation_and_holds_another_run_against_it(client: TestClient, config: Config) -> None:
    seen = words(page(client, "quality"))
    assert "low-activity users" in seen
    assert "Lift by user activity" in seen
    lifts = embedded(page(client, "quality"), "chart-lift-activity-figure")["data"]
    assert [one["name"] for one in lifts] == ["ChoirRec", "SaviorRec"]
    assert lifts[0]["y"][0] > lifts[0]["y"][-1], "simulated: ChoirRec is for the quiet"
    (small,) = stored(Store.open(config.run.uri), "evaluation")
    again = console_run.add_evaluation(config, "again", seed=0)
    strange = console_run.add_evaluation(config, "elsewhere", seed=3, logs=console_run.other_logs(config))
    with TestClient(console_server.application(served_run(config, Store.open(config.run.uri)).open()), base_url="http://127.0.0.1") as fresh:
        seen = words(page(fresh, f"quality?run={small.key}&against={again.key}"))
        assert "again against small" in seen
        assert re.search(r"ChoirRec all rows 1,500 \d+ \+0\.00", seen), "the same predictions differ by nothing"
        assert "they have no rows in common" in words(page(fresh, f"quality?run={small.key}&against={strange.key}"))
        assert "again" in words(page(fresh, ""))
        served = re.search(r'report/(\w+)">Evaluation report', page(fresh, ""))
        assert served is not None
        report = fresh.get(f"/console/report/{served[1]}")
        assert "the report of" in report.text
        assert "script-src" not in report.headers["content-security-policy"]


def test_studies_on_the_runs_source_stand_first(client: TestClient) -> None:
    seen = page(client, "quality?study=choirrec_online_retail_ii")
    assert "online_retail_ii" in seen
    assert "headline" in seen
    assert "full_random" in seen
