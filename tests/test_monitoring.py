"""deploy/monitoring: config, rules and dashboards as Prometheus' own tools see them, metrics that they ask for, and a real scrape of a real Ray."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from actors import metrics
from pipelines.cluster import ROOT, runtime_env

HERE = ROOT / "deploy" / "monitoring"
DASHBOARDS = sorted((HERE / "grafana" / "dashboards").glob("*.json"))
WORDS = re.compile(r"\b(?:ray|autoscaler|longtail)[_:][a-z0-9_:]+")

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH (Debian: apt-get install prometheus)")
prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not on PATH (Debian: apt-get install prometheus)")


def run_promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], cwd=HERE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((HERE / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(dashboard.read_text())["panels"]
    return found


def expressions() -> dict[str, str]:
    """What rules and panels ask for, by who asks."""
    found = {str(rule.get("alert") or rule["record"]): str(rule["expr"]) for rule in rules()}
    for dashboard in DASHBOARDS:
        for panel in panels(dashboard):
            found |= {f"{dashboard.stem}: {panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


def asked() -> dict[str, set[str]]:
    """Names of metrics by who asks for them, without those that rules record."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return {who: set(WORDS.findall(expression)) - recorded for who, expression in expressions().items()}


def scraped(metric: metrics.Metric) -> set[str]:
    """What a definition is called in a scrape."""
    return {f"ray_{metric.name}{end}" for end in (("_bucket", "_sum", "_count") if isinstance(metric, metrics.Spread) else ("",))}


def test_the_panels_of_each_dashboard(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints them with -s; each has a title of its own, a meaning and a place of its own."""
    assert [path.stem for path in DASHBOARDS] == ["pipelines", "serving", "training"]
    for path in DASHBOARDS:
        found = panels(path)
        with capsys.disabled():
            if "-s" in sys.argv:
                print(f"\n{json.loads(path.read_text())['title']}: " + ", ".join(panel["title"] for panel in found))
        assert len({panel["title"] for panel in found}) == len({panel["id"] for panel in found}) == len(found)
        assert all(panel["description"] and panel["targets"] for panel in found)
        squares = [(place["x"] + x, place["y"] + y) for place in (panel["gridPos"] for panel in found) for x in range(place["w"]) for y in range(place["h"])]
        assert len(set(squares)) == len(squares), "two panels lie on each other"
        assert max(x for x, _ in squares) < 24
        assert all(panel["datasource"]["uid"] == "${datasource}" for panel in found), "a dashboard of one Grafana would not find its source in another"


def test_our_own_metrics_are_asked_for_by_names_that_exist_and_all_of_them_are() -> None:
    ours = set().union(*(scraped(metric) for metric in metrics.defined().values()))
    missing = {who: names for who, found in asked().items() if (names := {name for name in found if "longtail" in name} - ours)}
    assert not missing
    used = set().union(*asked().values())
    unused = {name for name, metric in metrics.defined().items() if not scraped(metric) & used}
    assert not unused, "no panel shows and no rule reads them"


def test_tags_that_rules_and_panels_select_or_group_by_are_defined() -> None:
    for who, expression in expressions().items():
        for name, selector in re.findall(r"\bray_(longtail_\w+)\{([^}]*)\}", expression):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            tags = {*metrics.defined()[base].tags, "le"}
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector)) <= tags, who


def test_levels_lose_their_process_and_nothing_else_does() -> None:
    config = yaml.safe_load((HERE / "prometheus.yml").read_text())
    (relabel,) = [rule for rule in config["scrape_configs"][0]["metric_relabel_configs"] if rule.get("target_label") == "WorkerId"]
    named = {name for metric in metrics.defined().values() for name in scraped(metric) if re.fullmatch(relabel["regex"], name)}
    assert named == {f"ray_{name}" for name, metric in metrics.defined().items() if isinstance(metric, metrics.Level)}


def test_levels_are_looked_back_for_in_rules() -> None:
    """A level can be scraped for 20 seconds; a rule that is evaluated later would not see it."""
    levels = [f"ray_{name}" for name, metric in metrics.defined().items() if isinstance(metric, metrics.Level)]
    for rule in rules():
        for name in levels:
            assert rule["expr"].count(name) == len(re.findall(rf"last_over_time\({name}\b", rule["expr"])), rule


def test_every_alert_says_what_to_do_and_has_a_unit_test() -> None:
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert all(
        rule["annotations"].keys() == {"summary", "remedy"} and rule["labels"]["severity"] in ("info", "warning", "critical") for rule in alerts.values()
    )
    told = yaml.safe_load((HERE / "alerts_test.yml").read_text())["tests"]
    fires = {one["alertname"] for test in told for one in test.get("alert_rule_test", []) if one["exp_alerts"]}
    assert fires == set(alerts)
    for rule in alerts.values():
        settings = re.findall(r"\b(profiles|codes|serve|cluster)\.([a-z_.]+[a-z])", rule["annotations"]["remedy"].replace("{{ $labels.side }}", "item"))
        for section, path in settings:
            assert has_setting(section, path), f"{rule['alert']}: {section}.{path}"


def has_setting(section: str, path: str) -> bool:
    from longtail.config import Config

    value: Any = getattr(Config(), section)
    for name in path.split("."):
        if name == "yaml":  # cluster.yaml is a file
            return True
        if name not in type(value).model_fields:
            return False
        value = getattr(value, name)
    return True


@promtool
def test_promtool_accepts_config_rules_and_their_unit_tests() -> None:
    run_promtool("check", "config", "--syntax-only", "prometheus.yml")
    run_promtool("check", "rules", "alerts.yml")
    run_promtool("test", "rules", "alerts_test.yml")


@promtool
def test_promtool_refuses_a_rule_that_fires_otherwise(tmp_path: Path) -> None:
    """The unit tests read the rules that are shipped: with another limit they fail."""
    text = (HERE / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(text.replace("longtail:profile_fallback_share:15m > 0.3", "longtail:profile_fallback_share:15m > 0.5"))
    shutil.copy(HERE / "alerts_test.yml", tmp_path)
    done = subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "ProfileFallbacks" in done.stdout + done.stderr


@promtool
def test_every_panel_is_promql(tmp_path: Path) -> None:
    said = [{"record": f"panel:{number}", "expr": one.replace("$__rate_interval", "1m")} for number, one in enumerate(expressions().values())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": said}]}))
    run_promtool("check", "rules", tmp_path / "panels.yml")


# A Ray of its own with a dashboard, whose work tells every metric that we define, and whose application answers requests.
WORK = """
import sys, time
import ray
from actors import metrics
from longtail.artifacts import Store
from pipelines.cluster import ray_session
from serve_apps.ranking import deployed, served_run
from tests import small_run

def tell(step):
    for metric in metrics.defined().values():
        tags = {tag: "test" for tag in metric.tags}
        if isinstance(metric, metrics.Count):
            metric.add(step, **tags)
        elif isinstance(metric, metrics.Level):
            metric.set(step, **tags)
        else:
            metric.observe(0.04, **tags)

class Worker:
    def tell(self, step):
        tell(step)

settings = small_run.publish(sys.argv[1])
cluster = settings.cluster.model_copy(update={"dashboard": True})
with ray_session(cluster):
    worker = ray.remote(Worker).options(num_cpus=0.1).remote()
    ray.get(worker.tell.remote(0))
    with deployed(served_run(settings, Store.open(settings.run.uri))) as served:
        import requests
        print("temp_dir", ray._private.worker._global_node.get_temp_dir_path(), flush=True)
        for step in range(1, 10_000):
            ray.get(worker.tell.remote(step))
            answer = requests.post(served.url + "/v1/rank", json={"user_id": "a", "item_ids": ["book", "tea", "never seen"], "ranker": "choirrec"}, timeout=30)
            answer.raise_for_status()
            requests.post(served.url + "/v1/rank", json={"user_id": "a"}, timeout=30)  # refused: 422
            time.sleep(1)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Scrape:
    """A Prometheus that scrapes a Ray."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = requests.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=10)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def wait(self, expression: str, seconds: float = 120) -> list[dict[str, Any]]:
        """What `expression` gives as soon as it gives anything."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := self.query(expression):
                return found
            time.sleep(2)
        raise AssertionError(f"{expression}: nothing after {seconds:g} s; targets: {requests.get(f'{self.url}/api/v1/targets', timeout=10).text[:2000]}")

    def names(self) -> set[str]:
        return set(requests.get(f"{self.url}/api/v1/label/__name__/values", timeout=10).json()["data"])


@contextmanager
def process(*arguments: str, log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out, subprocess.Popen(arguments, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT) as started:
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(30)
            except subprocess.TimeoutExpired:
                started.kill()


@pytest.fixture(scope="module")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    folder, port = tmp_path_factory.mktemp("scrape"), free_port()
    (folder / "work.py").write_text(WORK)
    env = os.environ | runtime_env()["env_vars"] | {"PYTHONUNBUFFERED": "1"}
    log = folder / "work.log"
    with process(sys.executable, str(folder / "work.py"), str(folder / "run"), log=log, env=env) as work:
        until = time.monotonic() + 240
        while not (found := re.search(r"^temp_dir (\S+)$", log.read_text(), re.MULTILINE)):
            assert work.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(1)
        text = (HERE / "prometheus.yml").read_text()
        text = text.replace("/tmp/ray/prom_metrics", f"{found[1]}/prom_metrics").replace("localhost:9090", f"127.0.0.1:{port}")
        (folder / "prometheus.yml").write_text(text)
        shutil.copy(HERE / "alerts.yml", folder)
        flags = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}")
        with process("prometheus", *flags, log=folder / "prometheus.log"):
            address = Scrape(f"http://127.0.0.1:{port}")
            until = time.monotonic() + 60
            while True:
                try:
                    if requests.get(f"{address.url}/-/ready", timeout=5).ok:
                        break
                except requests.ConnectionError:
                    pass
                assert time.monotonic() < until, (folder / "prometheus.log").read_text()[-3000:]
                time.sleep(1)
            yield address


@prometheus
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_real_prometheus_sees_all_of_our_metrics(scrape: Scrape) -> None:
    for metric in metrics.defined().values():
        for name in scraped(metric):
            tags = {f'{tag}="test"' for tag in metric.tags}
            found = scrape.wait(f"{name}{{{','.join(sorted(tags))}}}")
            assert ("WorkerId" in found[0]["metric"]) == (not isinstance(metric, metrics.Level)), name
    (rate,) = scrape.wait('sum(rate(ray_longtail_samples_total{split="test"}[1m])) > 0')
    assert float(rate["value"][1]) > 1, "steps grow by one a second"
    assert scrape.wait("up{job='ray'} == 1")


@prometheus
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_requests_are_seen_with_latency_basis_and_gate(scrape: Scrape) -> None:
    (p99,) = scrape.wait('longtail:request_seconds:p99{ranker="choirrec"} > 0')
    assert 0 < float(p99["value"][1]) < 10
    known, unknown = (scrape.wait(f'sum(ray_longtail_candidates_total{{ranker="choirrec",basis="{basis}"}})') for basis in ("catalogue", "none"))
    assert float(known[0]["value"][1]) == pytest.approx(2 * float(unknown[0]["value"][1]), rel=0.2), "two of the three candidates are known"
    gate = scrape.wait('sum by (activity) (ray_longtail_served_alpha_fusion_count{ranker="choirrec",activity!="test"}) > 0')
    assert [one["metric"]["activity"] in ("0", "1-3", "4-10") for one in gate] == [True]
    assert scrape.wait('ray_longtail_refusals_total{status="422"}')


#: Ray's names that a small healthy Ray does not show: no node is pending without an autoscaler that starts some.
NOT_HERE = {"autoscaler_pending_nodes"}


@prometheus
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_rays_own_metrics_are_asked_for_by_names_that_a_scrape_has(scrape: Scrape) -> None:
    wanted = {name for names in asked().values() for name in names if "longtail" not in name}
    assert wanted >= {"ray_node_mem_used", "ray_tasks", "ray_serve_deployment_queued_queries"}
    scrape.wait("ray_serve_deployment_processing_latency_ms_bucket")
    until = time.monotonic() + 60
    while missing := wanted - scrape.names() - NOT_HERE:
        assert time.monotonic() < until, missing
        time.sleep(2)
    from ray.autoscaler._private.prom_metrics import AutoscalerPrometheusMetrics

    pending = AutoscalerPrometheusMetrics("session").pending_nodes
    assert {metric.name for metric in pending.collect()} == NOT_HERE
