"""The manifests as `kubectl apply --kustomize` would send them: what Kubernetes knows of them, and what we promise."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.daemon_process import run_cli
from tests.needs import need

from imageopsd.daemon import START_LIMIT, STOP_MARGIN
from imageopsd.model.durations import Seconds

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "deploy" / "kubernetes"
OLDEST = {"worker": "1.25.0", "run-once": "1.29.0", "sidecar": "1.29.0"}
"""By overlay, the first Kubernetes it is for, or the oldest we have schemas of. Native sidecars are on since 1.29, and
a podFailurePolicy may do without onPodConditions."""
NEWEST = "1.37.0"
FOREIGN = {"PodMonitor", "PrometheusRule", "ScaledJob"}
"""Kinds of operators, which Kubernetes has no schema for."""

Manifest = dict[str, Any]


@pytest.fixture(scope="module", params=sorted(OLDEST))
def overlay(request: pytest.FixtureRequest) -> tuple[str, list[Manifest]]:
    name: str = request.param
    return name, rendered(HERE / "overlays" / name)


def rendered(directory: Path) -> list[Manifest]:
    """Needs the kustomize of kubectl 1.21 or newer, which knows components."""
    need(shutil.which("kubectl"), "kubectl is not installed")
    version = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, timeout=60).stdout
    known = re.search(r"Kustomize Version: v([0-9]+)\.", version)
    need(known and int(known[1]) >= 4, "kubectl is too old to know kustomize components")
    done = subprocess.run(
        ["kubectl", "kustomize", str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def pods(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if manifest["kind"] in ("StatefulSet", "Deployment", "Job"):
            yield manifest["spec"]["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def daemons(manifests: list[Manifest]) -> list[tuple[Manifest, Manifest]]:
    """Pods and the container in them that runs the daemon."""
    return [(pod, c) for pod in pods(manifests) for c in containers(pod) if c.get("args", [""])[0] == "serve"]


@pytest.mark.parametrize("newest", [False, True], ids=["oldest", "newest"])
def test_kubernetes_knows_every_field(overlay: tuple[str, list[Manifest]], newest: bool) -> None:
    need(find_spec("kubernetes_validate"), "kubernetes-validate is not installed")
    validate = import_module("kubernetes_validate")
    name, manifests = overlay
    for manifest in manifests:
        if manifest["kind"] not in FOREIGN:
            validate.validate(manifest, NEWEST if newest else OLDEST[name], strict=True)


def test_every_pod_may_run_where_the_rules_are_restricted(overlay: tuple[str, list[Manifest]]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a little more."""
    for pod in pods(overlay[1]):
        assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert "cpu" not in container["resources"]["limits"]  # throttling slows a probe, too
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_a_drain_has_the_time_it_may_take(overlay: tuple[str, list[Manifest]]) -> None:
    for pod, container in daemons(overlay[1]):
        drain = settings(overlay[1], container)["worker.drain_timeout"]
        assert pod["terminationGracePeriodSeconds"] >= Seconds.parse(drain) + STOP_MARGIN


def test_probes_ask_what_they_are_there_for(overlay: tuple[str, list[Manifest]]) -> None:
    for _, container in daemons(overlay[1]):
        startup, liveness = container["startupProbe"], container["livenessProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= START_LIMIT
        assert question(startup) in ("/startupz", "healthcheck")
        assert question(liveness) in ("/livez", "healthcheck")
        assert liveness["terminationGracePeriodSeconds"] < 60  # of what hangs nothing can be hoped for
        if "readinessProbe" in container:
            assert question(container["readinessProbe"]) == "/readyz"


def question(probe: Manifest) -> str:
    return probe["httpGet"]["path"] if "httpGet" in probe else " ".join(probe["exec"]["command"][1:])


def test_a_container_that_is_probed_from_outside_listens_there_with_tokens(overlay: tuple[str, list[Manifest]]) -> None:
    for pod, container in daemons(overlay[1]):
        shown = settings(overlay[1], container)
        loopback = shown["server.listen"].startswith("127.")
        assert loopback == ("exec" in container["livenessProbe"])
        if not loopback:
            assert shown["server.listen"].endswith(f":{container['ports'][0]['containerPort']}")
            mount = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == "tokens")
            assert shown["server.tokens_file"] == f"{mount}/tokens.toml"
            (volume,) = [v for v in pod["volumes"] if v["name"] == "tokens"]
            assert volume["secret"]["defaultMode"] & 0o022 == 0  # or the daemon refuses the file


def test_what_the_pods_mount_is_there(overlay: tuple[str, list[Manifest]]) -> None:
    manifests = overlay[1]
    maps = {m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap"}
    claims = {m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    for manifest in manifests:
        if manifest["kind"] not in ("StatefulSet", "Deployment", "Job"):
            continue
        pod = manifest["spec"]["template"]["spec"]
        templates = {claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])}
        volumes = pod.get("volumes", [])
        assert {v["configMap"]["name"] for v in volumes if "configMap" in v} <= maps
        assert {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v} <= claims
        for container in containers(pod):
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= {v["name"] for v in volumes} | templates
        assert pod["serviceAccountName"] in {m["metadata"]["name"] for m in manifests if m["kind"] == "ServiceAccount"}


def settings(manifests: list[Manifest], container: Manifest) -> dict[str, str]:
    """What the daemon of a container would run with, by its own word; its files are those of the base's config map."""
    (config,) = [m for m in manifests if m["kind"] == "ConfigMap" and "imageopsd.toml" in m["data"]]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment.pop("IMAGEOPSD_CONFIG") == "/etc/imageopsd/imageopsd.toml"
    assert config["data"]["imageopsd.toml"] == (HERE / "base" / "imageopsd.toml").read_text()
    ended = run_cli("config", "show", "--config", HERE / "base" / "imageopsd.toml", environment=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    shown: dict[str, str] = {}
    section = ""
    for line in ended.stdout.splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        elif line:
            key, _, value = line.partition(" = ")
            shown[section + key] = value.strip('"')
    return shown


def test_the_worker_is_scraped_guarded_and_evicted_one_by_one() -> None:
    manifests = {m["kind"]: m for m in rendered(HERE / "overlays" / "worker")}
    labels = manifests["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for kind, selector in [
        ("PodMonitor", manifests["PodMonitor"]["spec"]["selector"]["matchLabels"]),
        ("NetworkPolicy", manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]),
        ("PodDisruptionBudget", manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
        ("Service", manifests["Service"]["spec"]["selector"]),
    ]:
        assert selector.items() <= labels.items(), kind
    ports = {port["name"] for port in manifests["StatefulSet"]["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in manifests["PodMonitor"]["spec"]["podMetricsEndpoints"]} == ports
    assert manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert manifests["StatefulSet"]["spec"]["serviceName"] == manifests["Service"]["metadata"]["name"]


def test_a_worker_that_is_not_ready_can_still_be_asked_for_its_records() -> None:
    """Nobody else has them, and whoever frees a full disk deletes by that very name."""
    (service,) = [m for m in rendered(HERE / "overlays" / "worker") if m["kind"] == "Service"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_no_pod_is_let_out_to_the_metadata_service_of_a_cloud() -> None:
    (policy,) = [m for m in rendered(HERE / "overlays" / "worker") if m["kind"] == "NetworkPolicy"]
    blocks = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert "169.254.0.0/16" in next(block for block in blocks if block["cidr"] == "0.0.0.0/0")["except"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_batch_runs_to_its_end_on_the_simulated_backend(tmp_path: Path) -> None:
    """The commands of the job's containers, in their order, on one directory."""
    (job,) = [m for m in rendered(HERE / "overlays" / "run-once") if m["kind"] == "Job"]
    pod = job["spec"]["template"]["spec"]
    submit, serve = pod["initContainers"][0]["args"], pod["containers"][0]["args"]
    here = ["--data-dir", tmp_path, "--set", "backend=simulated", "--set", "backends.simulated.duration=0s"]
    file = HERE / "overlays" / "run-once" / Path(submit[-1]).name
    assert run_cli(*submit[:-1], file, *here).returncode == 0
    assert run_cli(*serve[:-1], "100ms", *here, "--listen", "127.0.0.1:0").returncode == 0
    assert run_cli(*submit[:-1], file, *here).returncode == 0  # a second pod, after the first was lost
    ended = run_cli(*serve[:-1], "100ms", *here, "--listen", "127.0.0.1:0")
    assert ended.returncode == 0
    assert "operation accepted" not in ended.stdout


def test_the_example_for_keda_runs_the_same_pod_as_the_batch() -> None:
    scaled = yaml.safe_load((HERE / "examples" / "scaled-job.yaml").read_text())
    (job,) = [m for m in rendered(HERE / "overlays" / "run-once") if m["kind"] == "Job"]
    ours, theirs = scaled["spec"]["jobTargetRef"]["template"]["spec"], job["spec"]["template"]["spec"]
    assert scaled["kind"] == "ScaledJob"
    assert ours["securityContext"] == theirs["securityContext"]
    for name in ("securityContext", "livenessProbe", "startupProbe", "args", "env"):
        assert ours["containers"][0][name] == theirs["containers"][0][name], name
    assert scaled["spec"]["maxReplicaCount"] == 1  # one volume, one daemon
    assert scaled["spec"]["rollout"]["strategy"] == "gradual"  # an edit must not kill what runs
