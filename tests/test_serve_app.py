"""The Serve application over HTTP: a small finished run, deployed on Ray Serve with its real checkpoints, text encoder and codebooks."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import requests
import yaml
from pydantic import ValidationError

from longtail.artifacts import Store
from longtail.checkpoint import save_vocabulary
from longtail.embeddings import TextEncoder
from longtail.questions import Question, StatedItem, StatedUser, Unknowns
from longtail.releases import check_pairing
from longtail.serving import AutoscalingSettings
from pipelines.cluster import ROOT
from pipelines.stage import find
from pipelines.train import RANKER_STAGES
from serve_apps.access import Access
from serve_apps.client import RankClient
from serve_apps.deployments import Encoder
from serve_apps.ranking import app_builder, application, deployed, free_port, served_run
from tests import small_run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = small_run.publish(tmp_path_factory.mktemp("small run"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    few = {"max_ongoing_requests": 2, "max_queued_requests": 2, "retry_after_s": 3}
    return config.model_copy(update={"serve": config.serve.model_copy(update={"grpc_port": port, **few})})


@pytest.fixture(scope="module")
def client(ray_cluster: None, config: Any) -> Iterator[RankClient]:
    with deployed(served_run(config, Store.open(config.run.uri))) as served:
        yield RankClient(served.url)


def test_http_scores_are_those_of_the_core(client: RankClient, config: Any) -> None:
    ranker = served_run(config, Store.open(config.run.uri)).open().request_ranker()
    items = ["book", "milk", "odd", "soap", "tea", "never seen"]
    for name in config.train.rankers:
        answer = client.rank({"user_id": "a", "item_ids": items, "ranker": name})
        expected = ranker.rank(Question("a", tuple(StatedItem(item) for item in items), name))
        assert [(item["item_id"], item["known"]) for item in answer["items"]] == [(item.item_id, item.basis == "catalogue") for item in expected.items]
        assert [item["score"] for item in answer["items"]] == pytest.approx([item.scores[0] for item in expected.items], abs=1e-6)


def test_a_described_user_and_a_described_item_go_through_the_runs_own_encoders(client: RankClient, config: Any) -> None:
    run = served_run(config, Store.open(config.run.uri)).open()
    ranker, encoder = run.request_ranker(), run.encoder()
    body = {
        "user_id": "new",
        "items": [{"item_id": "oat", "title": "Oat drink", "category": ["food", "drinks"], "price": 2.5}, {"item_id": "tea"}],
        "ranker": "saviorrec",
        "user": {"attributes": {"city": "Ulm", "age": 41}},
    }
    answer = client.rank(body)
    from serve_apps.schemas import RankRequest

    question = RankRequest.model_validate(body).question("saviorrec")
    expected = ranker.rank(question, encoder.encode(ranker.unknowns(question)))
    assert answer["user"] == {"user_id": "new", "known": False, "group": list(expected.group), "group_basis": "request"}
    assert [(item["item_id"], item["basis"]) for item in answer["items"]] == [(item.item_id, item.basis) for item in expected.items]
    assert [item["score"] for item in answer["items"]] == pytest.approx([item.scores[0] for item in expected.items], abs=1e-5)


def test_the_page_the_health_and_the_problems_reach_through_serve(client: RankClient) -> None:
    assert client.health()["rankers"] == ["base", "choirrec", "saviorrec"]
    assert {model["name"] for model in client.models()["models"]} == {"base", "choirrec", "saviorrec"}
    for path in ("docs", "static-offline-docs/swagger-ui-bundle.js"):
        assert requests.get(f"{client.url}/{path}", timeout=30).status_code == 200, path
    refused = requests.post(f"{client.url}/v1/rank", json={"user_id": "a", "item_ids": ["tea"], "ranker": "oracle"}, timeout=30)
    assert refused.status_code == 404
    assert refused.headers["content-type"] == "application/problem+json"
    with pytest.raises(ValueError, match=r"404 .*'oracle' is not serving.*Choose one of"):
        client.rank({"user_id": "a", "item_ids": ["tea"], "ranker": "oracle"})


def test_the_console_is_reached_through_the_door_and_asks_the_encoder(client: RankClient) -> None:
    assert requests.get(client.url, timeout=30, allow_redirects=False).headers["location"].endswith("/console/")
    for path in ("", "users?user=a", "groups", "items?item=tea"):
        page = requests.get(f"{client.url}/console/{path}", headers={"accept": "text/html"}, timeout=60)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8"), page.text
    version = page.text.partition("static/")[2].partition("/")[0]
    plotly = requests.get(f"{client.url}/console/static/{version}/plotly.min.js", timeout=30)
    assert plotly.headers["content-encoding"] == "gzip"
    assert "plotly.js v" in plotly.text[:500]
    told = requests.get(f"{client.url}/console/items/try", params={"title": "Oat drink"}, timeout=60).json()
    assert len(told["codes"]) == 2
    assert requests.post(f"{client.url}/console/session", timeout=30).status_code == 401, "nobody acts where there is no token"
    assert requests.get(f"{client.url}/console/nowhere", timeout=30).status_code == 404


def test_an_application_without_the_console_leads_to_its_docs(config: Any) -> None:
    plain = config.model_copy(update={"serve": config.serve.model_copy(update={"console": False})})
    names = [application(served_run(one, Store.open(config.run.uri))) for one in (config, plain)]
    assert [len(_deployments(one)) for one in names] == [3, 2]


def test_a_deploy_leaves_alone_what_has_not_changed(config: Any) -> None:
    run = served_run(config, Store.open(config.run.uri))

    def changed(serve: dict[str, Any], token: str = "one", **more: Any) -> set[str]:
        """Which deployments of another version a later deploy has."""
        later = replace(run, serve=run.serve.model_copy(update=serve), deployed_us=run.deployed_us + 1, **more)
        versions = [_versions(application(one, Access(of, False))) for one, of in ((run, "one"), (later, token))]
        return {name for name in versions[0] if versions[0][name] is None or versions[0][name] != versions[1][name]}

    assert changed({}) == changed({"max_items": 7}) == {"Rankers"}
    assert changed({}, token="two") == {"Rankers", "Console"}, "the console has the token, and an old one must not open it"
    assert changed({"num_threads": 2}) == changed({}, release="another") == {"Rankers", "Console", "Encoder"}


def _versions(bound: Any) -> dict[str, str | None]:
    """What Serve compares, by deployment; None: always another."""
    deployment = bound._bound_deployment
    parts = [_versions(one) for one in deployment.init_args if hasattr(one, "_bound_deployment")]
    return {deployment.name: deployment._version} | {name: version for part in parts for name, version in part.items()}


def _deployments(bound: Any) -> set[str]:
    """Names of the deployments that an application is bound of."""
    arguments = bound._bound_deployment.init_args
    return {bound._bound_deployment.name}.union(*(_deployments(one) for one in arguments if hasattr(one, "_bound_deployment")))


def test_surplus_load_is_turned_away_with_a_time_to_come_back_and_the_rest_is_answered(client: RankClient) -> None:
    items = ["book", "milk", "odd", "soap", "tea"]
    batch = {"requests": [{"user_id": "a", "item_ids": items, "ranker": name} for name in ("base", "choirrec", "saviorrec")] * 20}

    def ask(_: int) -> requests.Response:
        return requests.post(f"{client.url}/v1/rank:batch", json=batch, timeout=120)

    with ThreadPoolExecutor(16) as threads:
        responses = list(threads.map(ask, range(16)))
    statuses = Counter(response.status_code for response in responses)
    assert set(statuses) == {200, 503}
    assert all(response.headers["retry-after"] == "3" for response in responses if response.status_code == 503)
    answers = [response.json()["answers"] for response in responses if response.status_code == 200]
    assert all(answer["status"] == 200 for one in answers for answer in one)
    assert client.rank({"user_id": "a", "item_ids": items})["items"], "and it goes on"


def test_replicas_follow_the_settings(config: Any) -> None:
    run = served_run(config, Store.open(config.run.uri))
    scaled = {"autoscaling": AutoscalingSettings(min_replicas=2, max_replicas=5, target_ongoing_requests=3), "drain_timeout_s": 7.0}
    for more, replicas in (({"num_replicas": 3}, (3, None)), (scaled, (None, (2, 5, 3.0)))):
        changed = config.model_copy(update={"serve": config.serve.model_copy(update=more)})
        bound: Any = application(replace(run, serve=changed.serve))
        found = bound._bound_deployment._deployment_config
        scaling = found.autoscaling_config
        told = None if scaling is None else (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests)
        assert (found.num_replicas if scaling is None else None, told) == replicas
        assert (found.max_ongoing_requests, found.max_queued_requests) == (2, 2)
        assert found.backpressure_config.retry_after_s == 3
        assert found.graceful_shutdown_timeout_s == changed.serve.drain_timeout_s
    with pytest.raises(ValidationError, match="max_replicas = 1 is below min_replicas = 2"):
        AutoscalingSettings(min_replicas=2, max_replicas=1)


def test_the_open_inference_protocol_over_http_and_grpc(client: RankClient, config: Any) -> None:
    import grpc

    from serve_apps import open_inference_pb2 as pb
    from serve_apps.open_inference_pb2_grpc import GRPCInferenceServiceStub

    v1 = {item["item_id"]: item["score"] for item in client.rank({"user_id": "a", "item_ids": ["tea", "book"], "ranker": "choirrec"})["items"]}
    inputs = [{"name": name, "datatype": "BYTES", "shape": [len(ids)], "data": ids} for name, ids in (("user_id", ["a"]), ("item_id", ["tea", "book"]))]
    answer = requests.post(f"{client.url}/v2/models/choirrec/infer", json={"inputs": inputs}, timeout=30).json()
    assert answer["outputs"][0]["data"] == pytest.approx([v1["tea"], v1["book"]], abs=1e-6)
    with grpc.insecure_channel(f"127.0.0.1:{config.serve.grpc_port}") as channel:
        service = GRPCInferenceServiceStub(channel)
        assert service.ServerReady(pb.ServerReadyRequest(), timeout=30).ready
        request = pb.ModelInferRequest(model_name="choirrec")
        for one in inputs:
            tensor = request.inputs.add(name=one["name"], datatype="BYTES", shape=one["shape"])
            tensor.contents.bytes_contents.extend(value.encode() for value in one["data"])
        response = service.ModelInfer(request, timeout=30)
        assert list(response.outputs[0].contents.fp32_contents) == pytest.approx([v1["tea"], v1["book"]], abs=1e-6)
        request.model_name = "oracle"
        with pytest.raises(grpc.RpcError) as refused:
            service.ModelInfer(request, timeout=30)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        assert "Serving are" in refused.value.details()


def test_a_teams_own_v2_client_gets_the_scores_over_http_and_grpc(client: RankClient, config: Any) -> None:
    v1 = client.rank({"user_id": "a", "item_ids": ["tea", "book"], "ranker": "choirrec"})
    expected = {item["item_id"]: item["score"] for item in v1["items"]}
    addresses = [client.url.removeprefix("http://"), f"127.0.0.1:{config.serve.grpc_port}"]
    run = subprocess.run([sys.executable, str(ROOT / "tests" / "v2_client.py"), *addresses], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    for told in json.loads(run.stdout).values():
        assert told["versions"] == [v1["version"]]
        for scores in (told["scores"], told["pinned"]):
            assert scores == pytest.approx([expected["tea"], expected["book"]], abs=1e-6)


def test_the_serve_file_names_the_builder_and_the_builder_is_strict(config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    raw = yaml.safe_load((ROOT / "serve_apps/config.yaml").read_text())
    parsed = ServeDeploySchema.model_validate(raw)
    assert parsed.model_dump(exclude_unset=True).keys() == raw.keys()  # Serve would drop what it does not know without a word
    (app,) = parsed.applications
    assert app.import_path == "serve_apps.ranking:app_builder"
    monkeypatch.chdir(tmp_path)  # Serve calls it in a process that may stand anywhere
    small = [f'run.uri="{config.run.uri}"']
    with pytest.raises(ValueError, match="is not finished under"):
        app_builder({**app.args, "set": small})
    with pytest.raises(ValueError, match=r"args\.ranker = 'base'"):
        app_builder({"config": None, "ranker": "base"})
    with pytest.raises(ValueError, match="no such file"):
        app_builder({"config": "nowhere.toml"})
    assert application(served_run(config, Store.open(config.run.uri))) is not None


def test_a_run_that_is_not_finished_is_refused_with_the_command(config: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage 'online_features' reads 'logs', which is not finished .* python -m pipelines\.full"):
        served_run(config, Store.open(str(tmp_path)))


def test_no_request_waits_for_the_text_models(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = served_run(config, Store.open(config.run.uri))
    encoder = Encoder(served)

    def loading(self: TextEncoder, settings: object) -> None:
        raise AssertionError("a request loads a text model")

    monkeypatch.setattr(TextEncoder, "__init__", loading)
    encoded = asyncio.run(encoder.encode(served.release, Unknowns(StatedUser({"city": "Ulm"}), (StatedItem("oat", "Oat drink"),))))
    assert encoded.user_codes is not None
    assert len(encoded.item_z_ND) == 1


def test_only_a_run_of_a_language_model_s_profiles_has_newcomers_written_by_one(config: Any) -> None:
    wanted = config.model_copy(update={"serve": config.serve.model_copy(update={"llm_profiles": True})})
    written = wanted.model_copy(update={"profiles": wanted.profiles.model_copy(update={"generator": "deterministic"})})
    with pytest.raises(ValueError, match=r"serve\.llm_profiles is on, and the run's profiles\.generator is 'deterministic'"):
        served_run(written, Store.open(config.run.uri))


def test_described_users_are_placed_by_the_codebook_where_profiles_come_first_in_it(config: Any) -> None:
    run = served_run(config, Store.open(config.run.uri)).open()
    assert run.encoder().user_codebook_SKD is not None
    for spaces, placed in ((("titles", "behaviour"), False), (("titles", "profile"), False), (("profile", "titles"), True)):
        other = replace(run, config=config.model_copy(update={"user_spaces": config.user_spaces.model_copy(update={"spaces": spaces})}))
        assert (other.encoder().user_codebook_SKD is not None) == placed


@pytest.mark.parametrize(
    ("users", "items", "said"),
    [
        (["a", "b", "c", "d"], ["book", "milk", "odd", "tea", "soap"], r"'base' was trained with 5 items .* have 5: row 4 is 'tea' in .* and 'soap' in"),
        (["a", "b", "c"], ["book", "milk", "odd", "soap", "tea"], r"'base' was trained with 3 users .* 4: row 4 is missing in .* and 'd' in .*train it again"),
    ],
)
def test_a_checkpoint_of_other_ids_is_not_published(tmp_path: Path, users: list[str], items: list[str], said: str) -> None:
    config = small_run.publish(tmp_path)
    store = Store.open(config.run.uri)
    base = find(RANKER_STAGES["base"], config, store)
    assert base is not None
    save_vocabulary(Path(base.path("checkpoint")), users, items)
    with pytest.raises(ValueError, match=said):
        served_run(config, store)


def test_a_release_is_of_one_run_and_of_what_was_published(tmp_path: Path) -> None:
    config = small_run.publish(tmp_path)
    store = Store.open(config.run.uri)
    served = served_run(config, store)
    release = served.open().release
    base = release.rankers["base"]
    strange = replace(base, manifest={**base.manifest, "inputs": {"item_codes": {"key": "other", "content_hash": "of another run"}}})
    with pytest.raises(ValueError, match=r"ranker base .* was made from item_codes other, and the release has item_codes .*publish the run that trained it"):
        check_pairing(replace(release, rankers={"base": strange}))
    manifest = Path(base.root).parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace(base.content_hash, "0" * 16))
    with pytest.raises(ValueError, match=rf"was published with another base/{base.key} than is there now"):
        served.open()
    shutil.rmtree(manifest.parent)
    with pytest.raises(ValueError, match=rf"release {release.key} reads base/{base.key}, which is not under"):
        served.open()
    with pytest.raises(ValueError, match=rf"no release 'r9' under .* \(there: {release.key}\)"):
        served.open("r9")


def test_copies_of_a_remote_run_lie_in_the_cache(config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGTAIL_CACHE", str(tmp_path / "cache"))
    run = served_run(config, Store.open(config.run.uri)).open()
    artifact = run.release.rankers["base"]
    root = Path(artifact.root).parent
    remote = replace(artifact, fs=pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem()), root=Path(artifact.root).name)
    copied = run.local(remote, "checkpoint")
    assert (tmp_path / "cache") in copied.parents
    assert sorted(path.name for path in copied.iterdir()) == ["ranker.json", "vocabulary.json", "weights.safetensors"]


def test_the_default_ranker_is_one_that_the_run_has(config: Any) -> None:
    run = served_run(config, Store.open(config.run.uri)).open()
    assert run.default_ranker == "choirrec"
    assert replace(run, release=replace(run.release, rankers={"base": run.release.rankers["base"]})).default_ranker == "base"


def test_a_taken_port_is_refused_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"serve.port = {port} .*serve.port=0"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", 0) > 0


def marked(mark: str) -> list[str]:
    """Command lines of the processes whose environment holds `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["by itself", "ctrl-c", "sigterm"])
def test_up_serves_and_leaves_no_process_behind(config: Any, tmp_path: Path, ending: str) -> None:
    text = config.model_dump(mode="json", exclude_unset=True)
    toml = tmp_path / "small.toml"
    toml.write_text("\n".join(f"[{section}]\n" + "\n".join(_toml(values)) for section, values in text.items()))
    mark = f"LONGTAIL_TEST_MARK={uuid.uuid4().hex}"
    environment = {**os.environ, **dict([mark.split("=")]), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "platform")])}
    command = [sys.executable, "-m", "serve_apps.up", "--config", str(toml)] + (["--for-seconds", "3"] if ending == "by itself" else [])
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) as up:
        assert up.stdout is not None
        said = []
        for line in up.stdout:
            said.append(line)
            if "ends by itself" in line or "Ctrl-C ends it" in line:
                break
        url = next((line.split()[1].removesuffix("/v1/rank") for line in said if line.startswith("rankers")), None)
        assert url, "".join(said)
        console, token = (next(line.split()[1] for line in said if line.startswith(name)) for name in ("console", "token"))
        assert sum(token in line for line in said) == 1
        bearer = {"authorization": f"Bearer {token}"}
        assert [requests.post(f"{console}session", headers=headers, timeout=60).status_code for headers in ({}, bearer)] == [401, 204]
        assert RankClient(url).rank({"user_id": "a", "item_ids": ["tea", "soap"]})["items"]
        assert len(marked(mark)) > 3
        if ending == "ctrl-c":
            os.killpg(up.pid, signal.SIGINT)  # a terminal sends it to the whole group
        elif ending == "sigterm":
            up.terminate()
        rest = up.communicate(timeout=90)[0]
    assert up.returncode == 0, rest
    assert rest.rstrip().endswith("ended")
    deadline = time.monotonic() + 15
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked(mark) == []


def _toml(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _toml(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
