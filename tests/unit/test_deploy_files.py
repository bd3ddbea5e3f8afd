"""What is under `deploy/`, held to what it names: Kubernetes' schemas, volumes, secrets, ports, our own commands and files.

Nothing here was applied to a cluster or built. KubeRay's custom resource definitions are read from the folder that
SLM_RAY_KUBERAY_CRDS names, or from ../shared/kuberay beside the checkout; they are not part of the repository.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from slm_ray.cli.commands import COMMANDS
from slm_ray.config import LoopConfig, load
from slm_ray.ray_environment import SETTINGS
from tools.lock import LOCKS

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy/kuberay"
DOCKER = ROOT / "deploy/docker/Dockerfile"
CRDS = Path(os.environ.get("SLM_RAY_KUBERAY_CRDS") or ROOT.parent / "shared/kuberay")
# Secrets that a person makes, as docs/how-to/kubernetes.md says; the third of them may be left out.
SECRETS = {"slm-ray-token": {"auth_token"}, "slm-ray-redis": {"password"}, "slm-ray-keys": set(), "slm-ray-api-key": {"SLM_RAY_API_KEY"}}  # fmt: skip


def documents() -> list[dict[str, Any]]:
    return [
        one for path in sorted(KUBERAY.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


def kinds(*names: str) -> list[dict[str, Any]]:
    return [one for one in documents() if one["kind"] in names]


RAY = kinds("RayCluster", "RayJob", "RayService")
IDS = [one["kind"] for one in RAY]


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def templates(document: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(document)
    found = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    return found + [one for one in [document["spec"].get("submitterPodTemplate")] if one]


def closed(schema: Any) -> Any:
    """The schema, without room for keys that it does not name: Kubernetes drops those without a word."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    is_object = "properties" in schema and isinstance(schema["properties"], dict) and schema.get("type") == "object"
    if is_object and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner["additionalProperties"] = False
    return inner


@pytest.mark.parametrize("document", RAY, ids=IDS)
def test_a_ray_resource_fits_its_definition(document: dict[str, Any]) -> None:
    path = CRDS / f"ray.io_{document['kind'].lower()}s.yaml"
    if not path.is_file():
        pytest.skip(
            f"no {path.name} in {CRDS}: KubeRay's definitions are not part of the repository; set SLM_RAY_KUBERAY_CRDS"
        )
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)  # a megabyte: 15 times as quick
    (version,) = [one for one in definition["spec"]["versions"] if f"ray.io/{one['name']}" == document["apiVersion"]]
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(schema).validate(document)
    broken = {**document, "spec": {**document["spec"], "rayClusterSpek": {}}}
    with pytest.raises(jsonschema.ValidationError, match="rayClusterSpek"):
        jsonschema.Draft202012Validator(schema).validate(broken)


@pytest.mark.parametrize("document", RAY, ids=IDS)
def test_every_mount_has_its_volume_and_every_claim_and_secret_is_known(document: dict[str, Any]) -> None:
    claims = {one["metadata"]["name"] for one in kinds("PersistentVolumeClaim")}
    maps = {one["metadata"]["name"] for one in kinds("ConfigMap")}
    for template in templates(document):
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes.keys()
            for source in container.get("envFrom", []):
                assert source.get("configMapRef", {}).get("name", next(iter(maps))) in maps
                assert source.get("secretRef", {}).get("name", "slm-ray-keys") in SECRETS


@pytest.mark.parametrize("document", RAY, ids=IDS)
def test_every_cluster_asks_for_a_token_and_keeps_what_its_head_knew(document: dict[str, Any]) -> None:
    cluster = cluster_of(document)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "slm-ray-token"}
    redis = next(one for one in kinds("Service") if one["metadata"]["name"] == "slm-ray-redis")
    address = cluster["gcsFaultToleranceOptions"]["redisAddress"]
    assert address == f"redis://{redis['metadata']['name']}:{redis['spec']['ports'][0]['port']}"
    reference = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    assert reference["key"] in SECRETS[reference["name"]]
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.cuda.lock").read_text(encoding="utf-8"), re.MULTILINE)
    assert cluster["rayVersion"] == locked


@pytest.mark.parametrize("document", RAY, ids=IDS)
def test_workers_have_a_card_and_a_slot_and_nobody_has_more_rights_than_needed(document: dict[str, Any]) -> None:
    for group in cluster_of(document)["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert (
            container["resources"]["limits"]["nvidia.com/gpu"]
            == container["resources"]["requests"]["nvidia.com/gpu"]
            == 1
        )
        assert ast.literal_eval(yaml.safe_load(group["rayStartParams"]["resources"])) == {"slot": 1}
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for template in templates(document):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["metadata"]["labels"] == {
            "app.kubernetes.io/part-of": "slm-ray"
        }  # the network policy goes by it
        for container in template["spec"]["containers"]:
            assert container["image"].startswith("registry.example.internal/slm-ray:")
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert set(container["resources"]) == {"requests", "limits"}


def test_every_pod_has_the_settings_of_every_ray_of_ours() -> None:
    (settings,) = kinds("ConfigMap")
    assert settings["data"] == SETTINGS
    for document in RAY:
        for template in [
            cluster_of(document)["headGroupSpec"]["template"],
            cluster_of(document)["workerGroupSpecs"][0]["template"],
        ]:
            sources = template["spec"]["containers"][0]["envFrom"]
            assert {"configMapRef": {"name": settings["metadata"]["name"]}} in sources


def test_the_loop_is_started_with_settings_that_exist() -> None:
    (job,) = kinds("RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    folder, job_file, settings = words[1], words[4], words[5]
    assert words[:4] == ["cd", folder, "&&", "python"] and words[6::2] == ["--set"] * (len(words[6::2]))
    container = cluster_of(job)["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert container["workingDir"] == folder and f"WORKDIR {folder}" in DOCKER.read_text(encoding="utf-8")
    assert Path(job_file).stem in COMMANDS
    # Ray starts a job that asks for resources on any node; on the head are the LLM's key and the endpoint's port.
    assert not {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & job["spec"].keys()
    assert {"secretRef": {"name": "slm-ray-keys", "optional": True}} in container["envFrom"]
    config = load(LoopConfig, ROOT / settings, words[7::2])
    shared = [
        config.run_dir,
        config.serving.adapters_dir,
        config.serving.base,
        *(str(one.source) for one in config.tracks),
    ]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert all(path.startswith("/shared/") for path in shared) and "/shared" in mounts
    assert (ROOT / config.serving.config).is_file()


def test_the_endpoint_is_that_of_the_serve_file() -> None:
    (service,) = kinds("RayService")
    deployed = yaml.safe_load(service["spec"]["serveConfigV2"])
    shipped = yaml.safe_load((ROOT / "serve_configs/rtx3090_llama31_8b.yaml").read_text(encoding="utf-8"))
    (ours,), (theirs,) = deployed["applications"], shipped["applications"]
    module, function = ours["import_path"].split(":")
    source = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    assert function in {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
    places = {"base": "/shared/bases/Llama-3.1-8B-Instruct", "adapters_dir": "/shared/adapters"}
    assert ours == {**theirs, "args": {**theirs["args"], **places}}
    assert deployed["http_options"] == {"host": "0.0.0.0", "port": 8000}
    (model,) = ours["args"]["llm_configs"]
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    grows = service["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling", False)
    cards = workers["maxReplicas" if grows else "replicas"]
    # the ingresses let in what so many engines carry, so that each needs a card
    assert model["deployment_config"]["autoscaling_config"]["max_replicas"] <= cards
    assert not [
        name for name in service["spec"] if name.endswith("UnhealthySecondThreshold")
    ]  # KubeRay reads them no more
    for template in templates(service):  # whoever reaches it needs a key
        assert {"secretRef": {"name": "slm-ray-api-key"}} in template["spec"]["containers"][0]["envFrom"]


def test_the_network_policy_names_pods_and_ports_that_exist() -> None:
    policies = {one["metadata"]["name"]: one for one in kinds("NetworkPolicy")}
    ports = {port["containerPort"] for one in RAY for template in templates(one) for port in template["spec"]["containers"][0].get("ports", [])}  # fmt: skip
    opened = {port["port"] for rule in policies["slm-ray"]["spec"]["ingress"] for port in rule.get("ports", [])}
    assert opened == {8265, 8000, 8080} and opened <= ports | {8080}  # the metrics' port is named by KubeRay
    (redis,) = kinds("StatefulSet")
    labels = redis["spec"]["template"]["metadata"]["labels"]
    assert (
        policies["slm-ray-redis"]["spec"]["podSelector"]["matchLabels"]
        == labels
        == redis["spec"]["selector"]["matchLabels"]
    )
    container = redis["spec"]["template"]["spec"]["containers"][0]
    assert container["ports"][0]["containerPort"] == policies["slm-ray-redis"]["spec"]["ingress"][0]["ports"][0]["port"]
    (service,) = kinds("Service")
    assert (
        service["spec"]["selector"] == labels
        and service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    )


def test_no_secret_is_in_a_file_and_the_documents_make_every_one() -> None:
    assert not kinds("Secret")
    text = (ROOT / "docs/how-to/kubernetes.md").read_text(encoding="utf-8")
    for name, keys in SECRETS.items():
        assert f"secret generic {name}" in text
        for key in keys:
            assert f"={key}" in text or f"{key}=" in text, f"{name} lacks {key}"
    for path in sorted(KUBERAY.glob("*.yaml")):
        assert path.name in text


def stages() -> Iterator[tuple[str, list[str]]]:
    """Every stage of the Dockerfile with its instructions, continued lines in one."""
    name = ""
    lines: list[str] = []
    for line in DOCKER.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            if name:
                yield name, lines
            name, lines = line.split(" AS ")[1], []
        elif line and not line.startswith("#"):
            lines.append(line)
    yield name, lines


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_installs_its_lock_by_hash_and_copies_what_exists(target: str) -> None:
    lines = dict(stages())[target]
    lock = {"cpu": "requirements.lock", "cuda": "requirements.cuda.lock"}[target]
    installs = [line for line in lines if "pip install" in line]
    assert f"--require-hashes --no-deps -r {lock}" in installs[0]
    assert all("--no-deps" in line for line in installs)
    let_in = (DOCKER.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    copied = [source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in let_in, f"{source} does not reach the build"
    assert {"slm_ray", "jobs", "serve_configs", "pyproject.toml", lock} <= set(copied)
    assert lines.index(next(line for line in lines if line.startswith("USER"))) > lines.index(installs[-1])
    assert "RUN" in " ".join(dict(stages())["system"]) and 'CMD ["slm-ray", "--help"]' in lines
    assert 'slm-ray = "slm_ray.cli.app:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("lock", [lock.name for lock in LOCKS])
def test_every_package_of_a_lock_has_a_hash(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(pins) > 10
    assert not [line for line in pins if not re.fullmatch(r"[\w.-]+==\S+(\s+--hash=sha256:[0-9a-f]{64})+\s*", line)]


def test_hosts_of_the_cluster_install_by_hash_too() -> None:
    commands = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))["setup_commands"]
    installs = [part for command in commands for part in re.split(r"&&", command) if "pip install" in part]
    assert any("--require-hashes --no-deps -r requirements.cuda.lock" in part for part in installs)
    assert all("--require-hashes" in part or "-e ." in part for part in installs)
