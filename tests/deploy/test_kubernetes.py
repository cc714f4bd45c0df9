"""The manifests, judged by the schemas of Kubernetes, and what they have to say together."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdserve.deploy import container, kubernetes
from pdserve.deploy.bundle import Bundle
from pdserve.errors import UsageError
from pdserve.pipelines import SERVICES
from tests.extras import import_or_skip
from tests.running import pdserve

VERSIONS = ("1.27", "1.34")


def plain(**given: Any) -> Bundle:
    entry = SERVICES["classification"]
    return Bundle("pdserve-tiny", entry, entry.settings(given, {}), {"model": (None, "tiny")})


def two_models() -> Bundle:
    entry = SERVICES["detection"]
    return Bundle("pdserve-two", entry, entry.settings({}, {}), {"detector": (None, "tiny_detector")})


EACH = {
    "plain": plain(),
    "gpu": plain(devices=("gpu:0", "gpu:1")),
    "low port": replace(plain(http_port=80), options=("--http-port", "80")),
    "no grpc": plain(rpc_port=None),
    "secrets": replace(plain(), secrets={"--api-key": "keys.txt", "--tls-cert": "tls.crt"}),
    "odd words": replace(
        plain(),
        options=('a: "b" #', "$(HOME)", "new\nline", "{{x}}", "ünï"),
        environment={"A": "yes: no\n$(B)"},
    ),
    "a detector": two_models(),
}


def read(made: Bundle, image: str | None = None) -> dict[str, Any]:
    """The manifests by name, parsed."""
    texts = kubernetes.texts(made, image)
    return {Path(name).stem: yaml.safe_load(text) for name, text in texts.items() if name.endswith(".yaml")}


def pod_of(manifests: Mapping[str, Any]) -> tuple[Any, Any]:
    spec = manifests["deployment"]["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


@pytest.mark.full
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("made", EACH.values(), ids=EACH)
def test_kubernetes_takes_them(made: Bundle, version: str) -> None:
    """Strictly: a field that no schema knows is an error."""
    validator = import_or_skip("kubernetes_validate", "check")
    for name, manifest in read(made).items():
        if name != "servingruntime":
            validator.validate(manifest, version, strict=True)
    broken = read(made)["deployment"]
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, version, strict=True)


@pytest.mark.full
def test_kserve_takes_its_runtime() -> None:
    """By the fields of ServingRuntimeSpec (kserve, servingruntime_types.go); its containers are a pod's."""
    validator = import_or_skip("kubernetes_validate", "check")
    manifest = read(plain())["servingruntime"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    spec = manifest["spec"]
    known = {
        "supportedModelFormats",
        "multiModel",
        "protocolVersions",
        "containers",
        "annotations",
        "volumes",
    }
    assert set(spec) <= known
    for each in spec["supportedModelFormats"]:
        assert set(each) <= {"name", "version", "autoSelect", "priority"}
        assert isinstance(each["version"], str)
        assert each["priority"] >= 1
    assert set(spec["protocolVersions"]) <= {"v1", "v2", "grpc-v1", "grpc-v2"}
    assert [each["name"] for each in spec["containers"]] == ["kserve-container"]
    pod = {"containers": spec["containers"], "volumes": spec["volumes"]}
    as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
    validator.validate(as_pod, VERSIONS[-1], strict=True)


def test_kserve_gives_the_model_and_the_port() -> None:
    runtime = read(plain())["servingruntime"]["spec"]["containers"][0]
    args = runtime["args"]
    assert args[:4] == ["serve", "classification", "--model", "/mnt/models"]
    assert args[args.index("--http-port") + 1] == "8080" == str(runtime["ports"][0]["containerPort"])
    assert "servingruntime" not in read(two_models())  # of which no model is the one


def test_a_pod_runs_the_command_as_it_was_given() -> None:
    _, pod = pod_of(read(EACH["odd words"]))
    # Kubernetes replaces $(NAME), and takes $$( for $(.
    assert [word.replace("$$(", "$(") for word in pod["args"]] == list(container.command(EACH["odd words"]))
    assert pod["env"] == [{"name": "A", "value": "yes: no\n$$(B)"}]


def test_every_port_that_is_named_is_there() -> None:
    for made in EACH.values():
        manifests = read(made)
        _, pod = pod_of(manifests)
        names = {each["name"]: each["containerPort"] for each in pod["ports"]}
        assert names == container.ports(made)
        probes = [pod[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
        assert {each["port"] for each in probes} <= set(names)
        assert {each["targetPort"] for each in manifests["service"]["spec"]["ports"]} <= set(names)
        for rule in manifests["networkpolicy"]["spec"]["ingress"]:
            assert {each["port"] for each in rule["ports"]} <= set(names)
        # Nobody but who scrapes reaches the metrics, which ask for no key.
        assert "metrics" not in str(manifests["service"]["spec"]["ports"])


def test_selectors_find_the_pods() -> None:
    manifests = read(plain())
    labels = manifests["deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        manifests["deployment"]["spec"]["selector"]["matchLabels"],
        manifests["service"]["spec"]["selector"],
        manifests["poddisruptionbudget"]["spec"]["selector"]["matchLabels"],
        manifests["networkpolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    assert manifests["horizontalpodautoscaler"]["spec"]["scaleTargetRef"]["name"] == "pdserve-tiny"


def test_a_pod_may_do_little() -> None:
    spec, pod = pod_of(read(plain()))
    assert pod["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]


def test_a_pod_that_goes_has_the_time_of_its_grace() -> None:
    spec, pod = pod_of(read(plain(grace_s=60)))
    assert pod["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert spec["terminationGracePeriodSeconds"] >= 5 + 60 + 2


def test_tls_secrets_and_gpus() -> None:
    spec, pod = pod_of(read(EACH["secrets"]))
    assert pod["startupProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert {"name": "secrets", "secret": {"secretName": "pdserve-tiny"}} in spec["volumes"]
    mounted = next(each for each in pod["volumeMounts"] if each["name"] == "secrets")
    assert f"{mounted['mountPath']}/keys.txt" in pod["args"]
    assert pod_of(read(EACH["gpu"]))[1]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod_of(read(EACH["low port"]))[1]["securityContext"]["capabilities"]["add"] == ["NET_BIND_SERVICE"]


def test_an_autoscaler_asks_for_a_metric_that_there_is() -> None:
    from pdserve.services.telemetry.metrics import Metrics

    metric = read(plain())["horizontalpodautoscaler"]["spec"]["metrics"][0]["pods"]
    assert f"# TYPE {metric['metric']['name']} gauge" in Metrics().exposition()[0].decode()
    assert metric["target"]["averageValue"] == "16"  # a sixteenth of --max-queue-size


def test_without_http_nothing_could_ask_for_health() -> None:
    made = plain()
    server = made.settings.server.model_copy(update={"http_port": None})
    with pytest.raises(UsageError, match="--http-port"):
        kubernetes.texts(replace(made, settings=replace(made.settings, server=server)))


@pytest.mark.full
def test_the_command_writes_them(tiny_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifests"
    words = (
        "--out",
        str(out),
        "--model",
        "tiny",
        "--image",
        "registry.example/tiny:3",
        "--name",
        "cats",
        "--json",
    )
    done = pdserve(tiny_home, "export", "kubernetes", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"path": str(out), "service": "classification"}
    spec = yaml.safe_load((out / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    assert spec["containers"][0]["image"] == "registry.example/tiny:3"
    assert not (out / "home").exists()  # the image has the models
