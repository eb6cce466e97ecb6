"""deploy/kuberay against KubeRay's published schemas, as strictly as an API server would be; what the schemas cannot say; and the container file."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.cluster import ROOT
from tests.test_cluster_yaml import read as cluster_yaml

DEPLOY = ROOT / "deploy" / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "kuberay-crds"
FILES = {"RayCluster": "raycluster.yaml", "RayJob": "rayjob.yaml", "RayService": "rayservice.yaml"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def resource(kind: str) -> dict[str, Any]:
    return next(one for one in documents(FILES[kind]) if one["kind"] == kind)


def cluster_of(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = resource(kind)["spec"]
    found: dict[str, Any] = {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec", {}), "RayService": spec.get("rayClusterConfig", {})}[kind]
    return found


def pods(kind: str) -> list[dict[str, Any]]:
    """Every pod's spec."""
    spec = cluster_of(kind)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    submitter = resource(kind)["spec"].get("submitterPodTemplate")
    return [group["template"]["spec"] for group in groups] + ([submitter["spec"]] if submitter else [])


def strict(schema: Any) -> Any:
    """A published schema in which a field that it does not name is an error, as it is for kubectl."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    return found


def schema_of(kind: str) -> Any:
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(
            f"{path.name} is not there: KubeRay's published schemas (Apache-2.0, config/crd/bases of its repository) belong into ../shared/kuberay-crds"
        )
    versions = {one["name"]: one for one in yaml.safe_load(path.read_text())["spec"]["versions"]}
    whole = strict(versions["v1"]["schema"]["openAPIV3Schema"])
    whole["properties"]["metadata"] = {"type": "object"}
    return whole


@pytest.mark.parametrize("kind", FILES)
def test_kuberay_accepts_it(kind: str) -> None:
    jsonschema.Draft7Validator(schema_of(kind)).validate(resource(kind))


@pytest.mark.parametrize("kind", FILES)
def test_a_misspelt_key_deep_inside_is_refused(kind: str) -> None:
    wrong = json.loads(json.dumps(resource(kind)))
    text = json.dumps(wrong).replace('"allowPrivilegeEscalation"', '"allowPriviledgeEscalation"', 1)
    assert text != json.dumps(wrong)
    with pytest.raises(jsonschema.ValidationError, match="allowPriviledgeEscalation"):
        jsonschema.Draft7Validator(schema_of(kind)).validate(json.loads(text))


@pytest.mark.parametrize("kind", FILES)
def test_a_wrong_type_is_refused(kind: str) -> None:
    wrong = json.loads(json.dumps(resource(kind)))
    text = json.dumps(wrong).replace('"maxReplicas": 4', '"maxReplicas": "4"', 1)
    assert text != json.dumps(wrong)
    with pytest.raises(jsonschema.ValidationError, match="'4' is not of type 'integer'"):
        jsonschema.Draft7Validator(schema_of(kind)).validate(json.loads(text))


@pytest.mark.parametrize("kind", FILES)
def test_no_pod_has_rights_that_it_does_not_need(kind: str) -> None:
    for pod in pods(kind):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert {"memory"} <= set(container["resources"]["limits"])
            assert not container["image"].endswith(":latest")
            assert ":" in container["image"]


def test_pools_are_those_of_cluster_yaml() -> None:
    def pool(resources: Any) -> set[str]:
        return {name for name in resources if name.startswith("pool_")}

    on_aws = {name: pool(node["resources"]) for name, node in cluster_yaml()["available_node_types"].items()}
    here = {}
    for group in cluster_of("RayCluster")["workerGroupSpecs"]:
        text = group["rayStartParams"].get("resources")
        here[group["groupName"]] = pool(json.loads(shlex.split(text.strip('"').replace('\\"', '"').join("''"))[0])) if text else set()
    assert {frozenset(one) for one in here.values()} == {frozenset(one) for one in on_aws.values()}
    assert here["profile"] == {"pool_profile"}


def test_what_is_safe_to_lose_may_run_on_spot_and_serving_and_heads_may_not() -> None:
    for kind in FILES:
        spec = cluster_of(kind)

        def on_spot(group: dict[str, Any]) -> bool:
            return any(one["key"] == "longtail.example.com/spot" for one in group["template"]["spec"].get("tolerations", []))

        assert not on_spot(spec["headGroupSpec"])
        assert all(on_spot(group) == (group["groupName"] not in ("serve", "train")) for group in spec["workerGroupSpecs"])


def test_ray_is_the_version_that_is_locked() -> None:
    locked = re.search(r"^ray==(\S+)$", (ROOT / "requirements" / "gpu.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert {cluster_of(kind)["rayVersion"] for kind in FILES} == {locked[1]}


def test_the_service_serves_what_serve_apps_config_serves() -> None:
    ours = yaml.safe_load((ROOT / "serve_apps" / "config.yaml").read_text())
    theirs = yaml.safe_load(resource("RayService")["spec"]["serveConfigV2"])
    (app,), (own,) = theirs["applications"], ours["applications"]
    assert {name: app[name] for name in ("name", "route_prefix", "import_path")} == {name: own[name] for name in ("name", "route_prefix", "import_path")}
    assert app["runtime_env"]["env_vars"] == own["runtime_env"]["env_vars"]
    assert set(app["args"]) == set(own["args"])
    assert (ROOT / app["args"]["config"]).is_file()
    assert theirs["logging_config"] == ours["logging_config"]


def test_state_outlives_a_head_through_redis_whose_password_is_a_secret() -> None:
    for kind in ("RayCluster", "RayService"):
        options = cluster_of(kind)["gcsFaultToleranceOptions"]
        service = next(one for one in documents("redis.yaml") if one["kind"] == "Service")
        assert options["redisAddress"] == f"redis://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
        assert set(options["redisPassword"]) == {"valueFrom"}
    for path in DEPLOY.glob("*.yaml"):
        for line in path.read_text().splitlines():
            assert not re.search(r"password:\s*[\"']?[A-Za-z0-9+/=]{6,}", line, re.IGNORECASE), f"{path.name}: {line}"


def test_the_job_runs_a_pipeline_that_exists() -> None:
    spec = resource("RayJob")["spec"]
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["python", "-m"]
    assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file()
    assert (ROOT / words[4]).is_file()
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"] == {"PYTHONPATH": "platform"}


# The container file, read as text: no engine that could build it runs here.


def stages() -> dict[str, list[str]]:
    """The instructions of every stage, continued lines joined."""
    text = (ROOT / "deploy" / "Containerfile").read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            if line.startswith("FROM "):
                name = line.split(" AS ")[1]
            found.setdefault(name, []).append(line)
    return found


def test_images_end_as_a_user_without_rights_and_hold_what_the_project_needs() -> None:
    for name in ("cpu", "gpu"):
        lines = stages()[name]
        assert "USER 10001:10001" in lines
        copied = {line.split()[-1] for line in lines if line.startswith("COPY --chown=root:root")}
        assert copied == {"platform", "actors", "pipelines", "tuning", "serve_apps"}
        assert lines.index("USER 10001:10001") > max(number for number, line in enumerate(lines) if line.startswith("COPY")), "files belong to root"


def test_dependencies_are_the_locks_and_a_layer_of_their_own() -> None:
    for name in ("cpu", "gpu"):
        lines = stages()[f"dependencies-{name}"]
        assert [line for line in lines if line.startswith("COPY")] == [f"COPY requirements/{name}.lock ./"], "nothing else makes the layer anew"
        assert any("--no-deps" in line and f"--requirement {name}.lock" in line for line in lines)


def test_every_source_of_a_copy_is_there_and_let_in() -> None:
    let_in = [line[1:].rstrip("/") for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")]
    for lines in stages().values():
        for line in lines:
            if line.startswith("COPY") and "--from=" not in line:
                source = next(word for word in line.split()[1:] if not word.startswith("--"))
                assert (ROOT / source).exists(), line
                assert Path(source).parts[0] in let_in, line


def test_base_images_are_pinned() -> None:
    text = (ROOT / "deploy" / "Containerfile").read_text()
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.search(r":3\.11\.\d+-", image), "a patch version of the Python that pyproject.toml asks for"
    for line in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert line == "${PYTHON_IMAGE}" or line in stages(), line
