"""What the Sweeps page is told, and what it starts: over planted sweeps and over jobs that a client in memory keeps instead of Ray's dashboard."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from starlette.testclient import TestClient

from longtail.artifacts import Store
from longtail.sweep_watch import SweepWatch
from serve_apps.console.job_order import JobOrder, Room
from serve_apps.console.jobs import MOST_LOG, Jobs, NoDashboardError, NotThereError, RunsAlreadyError, error_of, result_of
from serve_apps.console.sweeps import Sweeps
from tests import planted_sweeps

FINISHED, RUNNING, INTERRUPTED = "aaaa0000", "bbbb0000", "cccc0000"


class Status(Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass
class Client:
    """Jobs as Ray's client tells them."""

    told: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    def submit_job(self, **asked: Any) -> None:
        self.told[asked["submission_id"]] = SimpleNamespace(**asked, status=Status.RUNNING, message="", start_time=len(self.told) * 1000, end_time=None)

    def list_jobs(self) -> list[Any]:
        return list(self.told.values())

    def get_job_info(self, job: str) -> Any:
        if job not in self.told:
            raise RuntimeError(f"Request failed with status code 404: Job {job} does not exist.")
        return self.told[job]

    def get_job_logs(self, job: str) -> str:
        self.get_job_info(job)
        return self.logs.get(job, "")

    def stop_job(self, job: str) -> None:
        self.get_job_info(job).status = Status.STOPPED


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.open(str(tmp_path_factory.mktemp("store")))
    planted_sweeps.finished(store, FINISHED)
    planted_sweeps.running(store, RUNNING)
    planted_sweeps.interrupted(store, INTERRUPTED)
    return store


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def sweeps(store: Store, client: Client, tmp_path: Path) -> Sweeps:
    planted_sweeps.alive(store, RUNNING)
    return Sweeps(store, SweepWatch(store), Jobs(str(tmp_path), lambda: client), lambda: Room({"CPU": 2.0}, {"CPU": 1.4}), "http://127.0.0.1:8265")


def test_the_list_has_what_runs_first_and_how_it_stands(sweeps: Sweeps) -> None:
    told = sweeps.all()
    first = told["sweeps"][0]
    assert (first["key"], first["status"]) == (RUNNING, "running")
    at = {one["key"]: one for one in told["sweeps"]}
    assert (at[RUNNING]["num_ended"], at[RUNNING]["num_trials"], at[RUNNING]["num_failed"], at[RUNNING]["phase"]) == (10, 24, 1, "searching")
    assert (at[FINISHED]["num_ended"], at[FINISHED]["num_trials"], at[FINISHED]["phase"]) == (36, 36, None)
    assert at[INTERRUPTED]["status"] == "interrupted"
    assert (told["problem"], told["dashboard"], told["jobs"], told["room"]["free"]) == (None, "http://127.0.0.1:8265", [], {"CPU": 1.4})


def test_a_running_sweep_is_told_trial_by_trial(sweeps: Sweeps) -> None:
    told = sweeps.one(RUNNING)
    assert told["base"] == {"score": 0.679, "whole": 0.682}
    assert told["floor"] == 0.68
    trials = {one["number"]: one for one in told["trials"]}
    assert (trials[0]["status"], trials[0]["changes"], len(trials[0]["curve"])) == ("finished", "the config as it stands", 3)
    assert (trials[2]["status"], trials[2]["epochs"]) == ("stopped", 1)
    assert (trials[7]["status"], trials[7]["score"]) == ("refused", None)
    assert "1,024 codes" in trials[7]["why"]
    assert (trials[10]["status"], trials[10]["epochs"], trials[10]["rank"]) == ("running", 2, None)
    assert trials[10]["score"] == trials[10]["curve"][-1]["score"]
    assert (trials[12]["status"], trials[12]["why"]) == ("failed", "OutOfMemoryError: a worker was killed by the operating system")
    axes = {one["name"]: one for one in told["settings"]}
    assert (axes["train.learning_rate"]["log"], axes["train.learning_rate"]["values"]) == (True, None)
    assert axes["rankers.choirrec.distill_teacher"]["values"] == ["group", "individual"]
    assert all(one["point"][name] in axis["values"] for one in told["trials"] for name, axis in axes.items() if axis["values"] is not None)
    assert told["best"]["number"] == next(one["number"] for one in told["trials"] if one["feasible"])
    assert told["seconds_left"] == pytest.approx(14 * 57 / 2, rel=0.4)
    assert told["finals"] is None


def test_a_sweep_whose_job_has_ended_does_not_run(sweeps: Sweeps, store: Store, client: Client) -> None:
    plan = planted_sweeps.Journal.of(store, RUNNING).plan()
    assert plan is not None
    planted_sweeps.Journal.of(store, RUNNING).write_plan(plan.model_copy(update={"job": "sweep-1"}))
    try:
        client.submit_job(
            submission_id="sweep-1", entrypoint="cd /x && exec env RAY_ADDRESS=1.2.3.4:6 python -m tuning.sweep", metadata={"longtail_module": "tuning.sweep"}
        )
        assert (sweeps.one(RUNNING)["status"], sweeps.one(RUNNING)["job_told"]["command"]) == ("running", "python -m tuning.sweep")
        sweeps.stop("sweep-1")
        told = sweeps.one(RUNNING)
        assert (told["status"], told["job_told"]["status"]) == ("interrupted", "stopped")
        assert {one["status"] for one in told["trials"] if one["number"] in (10, 11)} == {"interrupted"}
        assert next(one["status"] for one in sweeps.all()["sweeps"] if one["key"] == RUNNING) == "interrupted"
    finally:
        planted_sweeps.Journal.of(store, RUNNING).write_plan(plan)


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [((0.006, 0.002, 0.01), "better"), ((0.0014, -0.0049, 0.0081), "unclear"), ((-0.006, -0.01, -0.002), "worse")],
    ids=lambda one: str(one),
)
def test_finalists_are_told_as_the_interval_has_it(tmp_path: Path, gain: tuple[float, float, float], verdict: str) -> None:
    store = Store.open(str(tmp_path))
    planted_sweeps.finished(store, "key", gain)
    told = Sweeps(store, SweepWatch(store), Jobs("/", Client), lambda: Room({}, {})).one("key")["finals"]
    assert told["verdict"] == verdict
    assert [(row["window"], row["arm"]) for row in told["rows"]][:2] == [("validation", "the base ranker"), ("validation", "the config as it stood")]
    assert sum(row["winner"] for row in told["rows"]) == 2
    clear = {"better": "above", "unclear": "not clear of", "worse": "below"}[verdict]
    assert f"the interval is {clear} zero" in told["sentences"][0]


def test_files_of_a_finished_sweep(sweeps: Sweeps) -> None:
    assert sweeps.page(FINISHED, "report")[0].startswith(b"<!doctype html>")
    assert b"train.learning_rate = " in sweeps.page(FINISHED, "best")[0]
    for key, name in ((FINISHED, "manifest.json"), (RUNNING, "report"), ("..", "report"), ("nowhere", "report")):
        with pytest.raises(NotThereError):
            sweeps.page(key, name)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_is_started_once_and_again_when_it_has_ended(sweeps: Sweeps, client: Client, store: Store, tmp_path: Path) -> None:
    order = JobOrder(config="test.toml", settings=["sweep.num_trials=3"])
    assert sweeps.check(order)["waits"] is None
    told = sweeps.start(order)
    asked = client.told[told["job"]]
    assert asked.entrypoint.startswith(f"cd {tmp_path} && exec env RAY_ADDRESS={ray.get_runtime_context().gcs_address} ")
    assert f'run.uri="{store.uri}"' in asked.entrypoint
    assert asked.runtime_env["env_vars"]["PYTHONPATH"]
    with pytest.raises(RunsAlreadyError, match=rf"job {told['job']} \(running\)"):
        sweeps.start(order)
    assert sweeps.start(JobOrder(config="test.toml", settings=["sweep.num_trials=4"]))["status"] == "running"
    assert [one["module"] for one in sweeps.all()["jobs"]] == ["tuning.sweep", "tuning.sweep"]
    sweeps.stop(told["job"])
    assert sweeps.start(order)["alive"]


def test_a_sweep_that_was_started_elsewhere_is_not_started_beside_it(sweeps: Sweeps) -> None:
    same = JobOrder(config="complete_journey_sweep.toml", settings=["sweep.num_trials=24", "train.epochs=3"])
    assert sweeps.check(same)["runs"] == f"sweep {RUNNING}, started from a command line"


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_best_of_a_finished_sweep_is_promoted_by_a_job(sweeps: Sweeps, client: Client) -> None:
    told = sweeps.promote(FINISHED)
    entry = client.told[told["job"]].entrypoint
    assert "-m pipelines.publish --config " in entry
    assert entry.endswith("--build")
    assert sweeps.one(FINISHED)["publishing"]["job"] == told["job"]
    client.told[told["job"]].status = Status.SUCCEEDED
    client.logs[told["job"]] = 'working …\n{"release": "r-12", "path": "/x"}\nbye\n'
    assert sweeps.log(told["job"])["result"] == {"release": "r-12", "path": "/x"}
    with pytest.raises(ValueError, match="is not finished"):
        sweeps.promote(RUNNING)


def test_a_failed_jobs_own_words_are_found(sweeps: Sweeps, client: Client) -> None:
    client.submit_job(submission_id="one", entrypoint="python", metadata=None)
    client.told["one"].status = Status.FAILED
    client.logs["one"] = "\x1b[36m12:00\x1b[0m building\nerror: sweep.space: there is no setting 'x'\nName it as in --set.\n"
    assert sweeps.log("one")["log"].startswith("12:00 building\n")
    assert sweeps.log("one")["error"] == "sweep.space: there is no setting 'x'\nName it as in --set."
    client.logs["one"] = "x" * 80 + "\n" + "line\n" * MOST_LOG
    assert len(sweeps.log("one")["log"]) <= MOST_LOG
    assert sweeps.log("one")["log"].startswith("line")
    with pytest.raises(NotThereError):
        sweeps.log("two")
    assert (error_of("all is well"), result_of("{not json}\nplain")) == (None, None)


def test_without_a_dashboard_sweeps_are_shown_and_nothing_is_started(store: Store) -> None:
    def nobody() -> Any:
        raise ConnectionError("nobody answers")

    sweeps = Sweeps(store, SweepWatch(store), Jobs("/", nobody), lambda: Room({}, {}))
    told = sweeps.all()
    assert len(told["sweeps"]) == 3
    assert "Ray's dashboard, which starts jobs, does not answer: nobody answers" in told["problem"]
    assert sweeps.one(FINISHED)["status"] == "finished"
    with pytest.raises(NoDashboardError):
        sweeps.log("one")


@pytest.fixture
def web(store: Store) -> TestClient:
    return TestClient(planted_sweeps.console_over(store, "secret"), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


BEARER = {"authorization": "Bearer secret"}


def test_pages_and_their_json_over_http(web: TestClient) -> None:
    html = {"accept": "text/html"}
    for path in ("/sweeps", f"/sweeps/{RUNNING}", f"/sweeps/{FINISHED}"):
        assert web.get(path, headers=html).status_code == 200
    assert f'data-key="{FINISHED}"' in web.get(f"/sweeps/{FINISHED}", headers=html).text
    assert len(web.get("/sweeps/api/sweeps").json()["sweeps"]) == 3
    assert len(web.get(f"/sweeps/api/sweeps/{FINISHED}").json()["trials"]) == 36
    report, best = web.get(f"/sweeps/{FINISHED}/report"), web.get(f"/sweeps/{FINISHED}/best")
    assert "script-src" not in report.headers["content-security-policy"]
    assert best.headers["content-disposition"] == f'attachment; filename="best-{FINISHED[:8]}.toml"'
    for path in (
        "/sweeps/nowhere",
        "/sweeps/api/sweeps/nowhere",
        f"/sweeps/{RUNNING}/report",
        f"/sweeps/{FINISHED}/manifest.json",
        "/sweeps/..%2F..%2Fx/report",
    ):
        assert web.get(path).status_code == 404, path


def test_acting_takes_the_token_and_a_refusal_says_what_the_command_would(web: TestClient) -> None:
    order = {"module": "tuning.sweep", "config": "test.toml", "settings": ["sweep.num_trial=3"]}
    for path in ("/sweeps/api/jobs", "/sweeps/api/jobs:check", "/sweeps/api/jobs/x/stop", f"/sweeps/api/sweeps/{FINISHED}/promote"):
        assert web.post(path, json=order).status_code == 401, path
    refused = web.post("/sweeps/api/jobs:check", json=order, headers=BEARER)
    assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
    assert "Did you mean num_trials?" in refused.json()["detail"]
    assert web.post("/sweeps/api/jobs:check", json={"shell": "rm"}, headers=BEARER).status_code == 422
    checked = web.post("/sweeps/api/jobs:check", json=order | {"settings": []}, headers=BEARER)
    assert checked.json()["command"].startswith("python -m tuning.sweep --config ")


def test_without_ray_nothing_is_started(web: TestClient) -> None:
    if ray.is_initialized():
        pytest.skip("the session's Ray is up")
    answer = web.post("/sweeps/api/jobs", json={"config": "test.toml"}, headers=BEARER)
    assert (answer.status_code, answer.json()["title"]) == (503, "No jobs can be started")
