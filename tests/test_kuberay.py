"""deploy/kuberay against KubeRay's published schemas, as strictly as the API server takes them, and against what the schemas cannot say."""

import copy
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema

from longtail.config import load
from serve_apps.ranking import APP_NAME, AppArgs, application, served_run
from tests import small_run
from tests.test_cluster_yaml import POOLS, SPOT, computes, pools
from tests.test_cluster_yaml import read as read_cluster_yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy" / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "kuberay-crds"
FILES = {"RayCluster": "raycluster.yaml", "RayJob": "rayjob.yaml", "RayService": "rayservice.yaml"}
CLUSTER_AT = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}


def documents() -> dict[tuple[str, str], dict[str, Any]]:
    """Everything in deploy/kuberay, by kind and name."""
    found = {}
    for path in sorted(DEPLOY.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found[document["kind"], document["metadata"]["name"]] = document
    return found


def document(kind: str) -> dict[str, Any]:
    (found,) = [one for (its, _), one in documents().items() if its == kind]
    return copy.deepcopy(found)  # YAML's anchors make parts of it one object


def cluster_spec(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = document(kind)["spec"]
    for name in CLUSTER_AT[kind]:
        spec = spec[name]
    return spec


def groups(kind: str) -> dict[str, dict[str, Any]]:
    """The worker groups by name."""
    return {group["groupName"]: group for group in cluster_spec(kind)["workerGroupSpecs"]}


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, with where it stands."""
    for kind in FILES:
        yield f"{kind} head", cluster_spec(kind)["headGroupSpec"]["template"]
        for name, group in groups(kind).items():
            yield f"{kind} {name}", group["template"]
    yield "RayJob submitter", document("RayJob")["spec"]["submitterPodTemplate"]
    yield "redis", document("StatefulSet")["spec"]["template"]


def strict(schema: Any) -> Any:
    """An openAPIV3Schema as a JSON schema that refuses what it does not name, as the API server does under strict field validation.

    x-kubernetes-int-or-string stands beside an anyOf of both types already; nullable is OpenAPI's way to allow null.
    """
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        made["type"] = [schema["type"], "null"]
    return made


@cache
def published(kind: str) -> dict[str, Any]:
    """The schema of version v1."""
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"{path} is not there: KubeRay's CRDs (its repository's ray-operator/config/crd/bases, Apache-2.0) belong into ../shared/kuberay-crds")
    loaded = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # a megabyte: libyaml, where PyYAML was built with it
    (version,) = [one for one in loaded["spec"]["versions"] if one["name"] == "v1"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def refusals(schema: dict[str, Any], value: Any) -> list[str]:
    errors = jsonschema.Draft202012Validator(strict(schema)).iter_errors(value)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


def at(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = value[int(name) if name.isdecimal() else name]
    return value


@pytest.fixture(scope="module")
def validators() -> dict[str, jsonschema.Draft202012Validator]:
    return {kind: jsonschema.Draft202012Validator(strict(published(kind))) for kind in FILES}


@pytest.mark.parametrize("kind", FILES)
def test_the_published_schema_takes_it(kind: str, validators: dict[str, jsonschema.Draft202012Validator]) -> None:
    wrong = [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in validators[kind].iter_errors(document(kind))]
    assert not wrong
    assert document(kind)["apiVersion"] == "ray.io/v1"


@pytest.mark.parametrize(
    ("kind", "path", "key", "value", "said"),
    [
        ("RayCluster", "spec", "enableInTreeAutoscalling", True, "enableInTreeAutoscalling"),
        ("RayCluster", "spec.workerGroupSpecs.1", "maxReplica", 4, "maxReplica"),
        ("RayCluster", "spec.workerGroupSpecs.1", "maxReplicas", "4", "not of type 'integer'"),
        ("RayCluster", "spec.headGroupSpec.template.spec.containers.0.securityContext", "readOnlyRootFileSystem", True, "readOnlyRootFileSystem"),
        ("RayCluster", "spec.headGroupSpec.template.spec.containers.0.resources.limits", "memory", "32 GB", "is not valid|does not match"),
        ("RayCluster", "spec.autoscalerOptions", "version", "v3", "is not one of"),
        ("RayJob", "spec", "entryPoint", "python", "entryPoint"),
        ("RayJob", "spec.submitterPodTemplate.spec", "restartPolice", "Never", "restartPolice"),
        ("RayJob", "spec.rayClusterSpec.workerGroupSpecs.0.template.spec.tolerations.0", "effects", "NoSchedule", "effects"),
        ("RayService", "spec.upgradeStrategy", "kind", "NewCluster", "kind"),
        ("RayService", "spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef", "secret", "x", "secret"),
    ],
)
def test_a_wrong_key_or_value_is_refused_wherever_it_stands(
    kind: str, path: str, key: str, value: Any, said: str, validators: dict[str, jsonschema.Draft202012Validator]
) -> None:
    wrong = document(kind)
    at(wrong, path)[key] = value
    told = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validators[kind].iter_errors(wrong)]
    assert told
    assert re.search(said, told[0])


def test_a_missing_required_key_is_refused(validators: dict[str, jsonschema.Draft202012Validator]) -> None:
    wrong = document("RayCluster")
    del wrong["spec"]["workerGroupSpecs"][0]["template"]
    assert [error.message for error in validators["RayCluster"].iter_errors(wrong)] == ["'template' is a required property"]


def test_redis_fits_the_pod_schema_too() -> None:
    group = published("RayCluster")["properties"]["spec"]["properties"]["workerGroupSpecs"]["items"]["properties"]
    stateful, service = document("StatefulSet"), document("Service")
    assert not refusals(group["template"], stateful["spec"]["template"])
    claim = group["template"]["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]
    assert not refusals(claim["properties"]["spec"], stateful["spec"]["volumeClaimTemplates"][0]["spec"])
    serve = published("RayService")["properties"]["spec"]["properties"]["serveService"]["properties"]["spec"]
    assert not refusals(serve, service["spec"])


# What the schemas cannot say.


@pytest.mark.parametrize("kind", FILES)
def test_rays_own_autoscaler_reads_the_pools_of_cluster_yaml(kind: str) -> None:
    cr = {"metadata": {"name": "a", "namespace": "b"}, "spec": cluster_spec(kind)}
    config = _derive_autoscaling_config_from_ray_cr(cr)
    on_aws = {name.removesuffix("_worker"): node for name, node in read_cluster_yaml()["available_node_types"].items() if name != "head"}
    nodes = {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}
    assert nodes.keys() == {"RayCluster": {"cpu"} | POOLS, "RayJob": {"cpu"} | POOLS - {"serve"}, "RayService": {"serve"}}[kind]
    for name, node in nodes.items():
        assert pools(node) == pools(on_aws[name]), name
        assert node["resources"].get("GPU", 0) == on_aws[name]["resources"].get("GPU", 0), name
        assert on_aws[name]["resources"]["CPU"] - 2 <= node["resources"]["CPU"] < on_aws[name]["resources"]["CPU"], "a node's own daemons need some of it"
    assert config["max_workers"] == sum(node["max_workers"] for node in nodes.values())


def test_the_gpu_config_fits_into_the_groups() -> None:
    config = load(ROOT / "pipelines/configs/gpu_cluster.toml")
    node_types = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "a", "namespace": "b"}, "spec": cluster_spec("RayJob")})["available_node_types"]
    for section, compute in computes(config).items():
        if compute.pool is not None:
            node = node_types[compute.pool]
            at_once = min(node["resources"]["CPU"] // compute.num_cpus, node["resources"]["GPU"] // compute.num_gpus)
            assert compute.num_actors <= node["max_workers"] * at_once, section
    serve = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "a", "namespace": "b"}, "spec": cluster_spec("RayService")})["available_node_types"]
    assert config.serve.num_encoder_replicas * config.serve.num_encoder_gpus <= serve["serve"]["min_workers"] * serve["serve"]["resources"]["GPU"]


def test_pods_run_without_rights_and_on_a_read_only_root() -> None:
    for where, template in templates():
        pod = template["spec"]
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True, where
        assert where == "redis" or context["runAsUser"] == 10001, where  # the Containerfile's
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, where
            mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert "emptyDir" in volumes[mounted["/tmp"]], where
            assert where == "redis" or "emptyDir" in volumes[mounted["/home/longtail"]], "caches and Ray's token"
            assert "memory" in container["resources"]["limits"], where
        assert not pod.get("hostNetwork"), where
        assert not pod.get("hostPID"), where


def test_only_heads_may_speak_to_the_api_server() -> None:
    for where, template in templates():
        assert template["spec"]["automountServiceAccountToken"] is where.endswith("head"), where


def test_images_are_the_containerfiles_and_gpus_go_with_the_gpu_image() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "deploy" / "Containerfile").read_text(), re.MULTILINE))
    for where, template in templates():
        (container,) = template["spec"]["containers"]
        image, _, tag = container["image"].rpartition(":")
        assert re.search(r"\d+\.\d+\.\d+", tag), f"{where}: {tag} is not one version"
        if where == "redis":
            continue
        assert image == "registry.example.com/longtail"
        target = tag.rpartition("-")[2]
        assert target in targets
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert target == ("gpu" if gpu else "cpu"), where
        assert any(one["key"] == "nvidia.com/gpu" for one in template["spec"].get("tolerations", [])) == gpu, where


def test_what_must_stay_is_never_on_spot() -> None:
    for kind in FILES:
        head = cluster_spec(kind)["headGroupSpec"]["template"]["spec"]
        assert head["nodeSelector"] == {"longtail.example.com/pool": "head"}
        assert not head.get("tolerations")
        for name, group in groups(kind).items():
            keys = {one["key"] for one in group["template"]["spec"].get("tolerations", [])}
            assert ("longtail.example.com/spot" in keys) == (f"{name}_worker" in SPOT), f"{kind} {name}"
            assert group["template"]["spec"]["nodeSelector"] == {"longtail.example.com/pool": name}


def test_every_pod_is_probed() -> None:
    for kind in FILES:
        head = cluster_spec(kind)["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert head["readinessProbe"]["httpGet"] == {"path": "/api/gcs_healthz", "port": 8265}
        for group in groups(kind).values():
            assert group["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"] == {"path": "/api/local_raylet_healthz", "port": 52365}
    port = yaml.safe_load(document("RayService")["spec"]["serveConfigV2"])["http_options"]["port"]
    serve = groups("RayService")["serve"]["template"]["spec"]["containers"][0]
    assert serve["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": port}, "no request before the node's proxy routes"
    assert port in {one["containerPort"] for one in serve["ports"]}


def test_names_that_point_somewhere_do() -> None:
    found = documents()
    labels = [template["metadata"]["labels"] for _, template in templates()]
    for where, template in templates():
        pod = template["spec"]
        assert ("PriorityClass", pod["priorityClassName"]) in found, where
        assert where in ("redis", "RayJob submitter") or ("ServiceAccount", pod["serviceAccountName"]) in found, where
    for (kind, name), one in found.items():
        if kind in ("PodDisruptionBudget", "NetworkPolicy", "Service"):
            selector = one["spec"].get("selector", one["spec"].get("podSelector"))
            wanted = selector.get("matchLabels", selector)
            assert any(wanted.items() <= label.items() for label in labels), f"{kind} {name} selects no pod"
    (allowed,) = found["NetworkPolicy", "longtail-redis"]["spec"]["ingress"][0]["from"]
    for where, template in templates():
        if where != "redis":
            assert allowed["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items(), f"{where} cannot reach Redis"


def test_state_outlives_a_head_in_redis_whose_password_is_in_no_file() -> None:
    service, stateful = document("Service"), document("StatefulSet")
    (environment,) = stateful["spec"]["template"]["spec"]["containers"][0]["env"]
    for kind in ("RayCluster", "RayService"):
        options = cluster_spec(kind)["gcsFaultToleranceOptions"]
        assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
        assert options["redisPassword"] == {"valueFrom": environment["valueFrom"]}
        assert "externalStorageNamespace" not in options, "two clusters of one service would share a state during an upgrade"
    assert not [kind for kind, _ in documents() if kind == "Secret"]


def test_ray_is_the_locks() -> None:
    assert {cluster_spec(kind)["rayVersion"] for kind in FILES} == {ray.__version__}


def test_the_job_runs_a_pipeline_with_the_config_that_is_mounted() -> None:
    python, flag, module, *flags = shlex.split(document("RayJob")["spec"]["entrypoint"])
    assert (python, flag) == ("python", "-m")
    assert find_spec(module) is not None
    (option, config) = flags
    assert option == "--config"
    for kind in ("RayJob", "RayService"):
        for template in [cluster_spec(kind)["headGroupSpec"]["template"], *(group["template"] for group in groups(kind).values())]:
            mounts = template["spec"]["containers"][0]["volumeMounts"]
            assert any(Path(mount["mountPath"]) == Path(config).parent for mount in mounts), (
                "the driver is on the head, a replica builds the application anywhere"
            )
    assert AppArgs.model_validate(at(yaml.safe_load(document("RayService")["spec"]["serveConfigV2"]), "applications.0.args")).config == config


def test_the_service_serves_what_serve_apps_config_serves(tmp_path: Path) -> None:
    ours = yaml.safe_load((ROOT / "serve_apps" / "config.yaml").read_text())
    theirs = yaml.safe_load(document("RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(theirs)
    (own,), (served,) = ours["applications"], theirs["applications"]
    assert served["args"].keys() == own["args"].keys()
    assert served["runtime_env"]["env_vars"].keys() == own["runtime_env"]["env_vars"].keys()
    image = re.search(r"PYTHONPATH=(\S+)", (ROOT / "deploy" / "Containerfile").read_text())
    assert image is not None
    assert served["runtime_env"]["env_vars"]["PYTHONPATH"] == image[1], "no working directory is uploaded: the code is the image's"
    differ = {"args", "runtime_env", "deployments"}
    assert {key: value for key, value in served.items() if key not in differ} == {key: value for key, value in own.items() if key not in differ}
    assert theirs["http_options"] == ours["http_options"] | {"host": "0.0.0.0"}
    assert theirs["proxy_location"] == "EveryNode"
    rest = {"applications", "http_options", "proxy_location"}
    assert {key: value for key, value in theirs.items() if key not in rest} == {key: value for key, value in ours.items() if key not in rest}
    assert served["name"] == APP_NAME

    config = small_run.publish(tmp_path / "run")
    from longtail.artifacts import Store

    door: Any = application(served_run(config, Store.open(config.run.uri)))
    assert {one["name"] for one in served["deployments"]} == {door._bound_deployment.name}


def test_an_upgrade_leaves_no_gap() -> None:
    spec = document("RayService")["spec"]
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    assert spec["rayClusterDeletionDelaySeconds"] >= 60, "requests under way on the old cluster end"
    assert spec["excludeHeadPodFromServeSvc"] is True
    assert cluster_spec("RayService")["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no replica on the head"
    assert groups("RayService")["serve"]["minReplicas"] >= 2
    (served,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    assert served["deployments"] == [{"name": "Rankers", "num_replicas": 2}], "the door is not one"
    assert document("RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 30


def test_redis_asks_for_the_secrets_password_keeps_what_it_was_told_and_ends_when_asked(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None or shutil.which("redis-cli") is None:
        pytest.skip("redis-server and redis-cli are not on PATH (Debian: apt install redis-server); the command of redis.yaml's container is not tried")
    shell, flag, script = document("StatefulSet")["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "--dir /data" in script
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    script = script.replace("--dir /data", f"--dir {tmp_path} --port {port}")

    def ask(*words: str, password: str = "") -> str:
        environment = os.environ | ({"REDISCLI_AUTH": password} if password else {})
        return subprocess.run(["redis-cli", "-p", port, *words], env=environment, capture_output=True, text=True, timeout=10).stdout.strip()

    for told in ("OK", "kept"):
        server = subprocess.Popen([shell, flag, script], env=os.environ | {"REDIS_PASSWORD": "a b'c"}, stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 20
            while "NOAUTH" not in ask("ping") and time.monotonic() < end:
                time.sleep(0.1)
            assert "NOAUTH" in ask("get", "state")
            assert ask("set", "state", "kept", password="a b'c") == "OK" if told == "OK" else ask("get", "state", password="a b'c") == told
            assert b"a b'c" not in Path(f"/proc/{server.pid}/cmdline").read_bytes(), "the process list would show the password"
        finally:
            server.terminate()
            assert server.wait(timeout=20) == 0, "SIGTERM reaches Redis itself, which saves and goes"
