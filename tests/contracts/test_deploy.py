"""The deployment examples name only what exists: variables, commands, options, probes, packages."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import pytest
import yaml

from serving.metrics import Metrics
from serving.routes.catalogue import OPERATIONS
from serving.settings import PREFIX, SECRETS, Settings, load_settings
from serving.settings_check import unknown_variables
from tests.contracts.test_docs import find, options, shell_lines
from tests.contracts.tree import ROOT

DEPLOY = ROOT / "docs" / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
OURS = ("service", "delivery", "worker")
RUNNING = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
OPEN = {o.path for o in OPERATIONS if not o.scope and o.method == "GET"}


def containers() -> Iterator[dict[str, Any]]:
    """Every container of the Kubernetes example."""
    for document in KUBERNETES:
        spec = document["spec"]
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield from spec["template"]["spec"]["containers"]


def pods() -> Iterator[dict[str, Any]]:
    """Every pod's specification."""
    for document in KUBERNETES:
        spec = document["spec"]
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield spec["template"]["spec"]


def commands() -> Iterator[list[str]]:
    """The words after `riskfm` of every command in the examples."""
    for name in OURS:
        yield COMPOSE["services"][name]["command"]
    for each in containers():
        if each.get("command") == ["sh", "-c"]:
            yield shlex.split(each["args"][0])[1:]
        else:
            yield each["args"]
    for body in re.findall(r"^CMD (\[.*?\])$", CONTAINERFILE, re.M | re.S):
        yield json.loads(body.replace("\\\n", ""))


def variables() -> dict[str, list[tuple[str, str]]]:
    """Name and value of every variable by the place that sets it."""
    found = {
        name: [(k, str(v)) for k, v in service.get("environment", {}).items()]
        for name, service in COMPOSE["services"].items()
    }
    for each in containers():
        found[f"pod {each['name']}"] = [(v["name"], str(v["value"])) for v in each["env"]]
    pairs = re.findall(r"\b(RISKFM_\w+)=(\S+)", CONTAINERFILE)
    found["Containerfile"] = pairs
    return found


def test_commands_and_options_exist() -> None:
    every = list(commands())
    assert {words[0] for words in every} == {"serve", "worker", "daily"}
    assert len(every) == 9
    for words in every:
        name, command = find(words)
        given = {word for word in words if word.startswith("--")}
        assert given <= options(command), f"riskfm {name}: {given - options(command)}"


@pytest.mark.parametrize("place", sorted(variables()))
def test_variables_are_settings_with_possible_values(place: str, tmp_path: Any) -> None:
    mine = {k: v for k, v in variables()[place] if k.startswith(PREFIX)}
    assert unknown_variables(list(mine)) == []
    secret = {f"{PREFIX}{name.upper()}_FILE" for name in SECRETS}
    settings = load_settings(None, {k: v for k, v in mine.items() if k not in secret})
    if place in ("service", "delivery", "pod service", "pod delivery"):
        assert settings.behind_tls and settings.environment == "production"
        assert settings.log_format == "json" and settings.drain_seconds > 0
        assert secret | {"RISKFM_MASTER_KEY_FILE"} <= set(mine)


def test_every_variable_named_in_the_page_exists() -> None:
    named = set(re.findall(r"RISKFM_[A-Z_]+[A-Z]", RUNNING))
    assert len(named) > 10
    assert unknown_variables(sorted(named)) == []
    for name in re.findall(r"`(drain_\w+|grace_\w+|behind_tls|metrics_tenants)`", RUNNING):
        assert name in Settings.__struct_fields__


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    lines = Metrics().text().decode().splitlines()
    made = {line.split()[2] for line in lines if line.startswith("# TYPE riskfm_")}
    made = {name for name in made if not name.endswith("_created")}
    named = set(re.findall(r"`(riskfm_\w+)", RUNNING))
    assert named <= made, named - made
    assert made - named == {"riskfm_score"}


def test_probes_are_open_routes() -> None:
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    paths = [each[p]["httpGet"]["path"] for each in containers() for p in probes if p in each]
    assert len(paths) == 6
    paths += re.findall(r"3000(/v1/[a-z/]+)|health_uri (/v1/[a-z/]+)", CONTAINERFILE)[0][:1]
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    paths += [p for pair in re.findall(r"3000(/v1/[a-z/]+)|uri (/v1/[a-z/]+)", text) for p in pair]
    assert set(filter(None, paths)) == {"/v1/health/ready", "/v1/health/live"}
    assert set(filter(None, paths)) <= OPEN
    for path in re.findall(r"`(?:GET )?(/v1/[a-z/.]+)`", RUNNING):
        assert path in {o.path for o in OPERATIONS}, path


def test_there_is_time_to_stop() -> None:
    service = dict(variables()["pod service"])
    needed = float(service["RISKFM_DRAIN_SECONDS"]) + float(service["RISKFM_GRACE_SECONDS"])
    assert KUBERNETES[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > needed
    for name in ("service", "delivery"):
        composed = COMPOSE["services"][name]
        seconds = [
            float(composed["environment"][f"RISKFM_{n}_SECONDS"]) for n in ("DRAIN", "GRACE")
        ]
        assert float(composed["stop_grace_period"].rstrip("s")) > sum(seconds)


def test_nothing_runs_as_root_or_writes_its_root() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        mounted = {volume["name"] for volume in pod["volumes"]} | {"state"}
        for each in pod["containers"]:
            assert each["securityContext"]["readOnlyRootFilesystem"]
            assert not each["securityContext"]["allowPrivilegeEscalation"]
            assert {mount["name"] for mount in each["volumeMounts"]} <= mounted
    for name in OURS:
        assert COMPOSE["services"][name]["read_only"]
        assert COMPOSE["services"][name]["cap_drop"] == ["ALL"]
    users = re.findall(r"^(?:FROM .* AS (\w+)|USER (\d+))", CONTAINERFILE, re.M)
    last = {}
    for stage, user in users:
        current = stage or current  # noqa: F821 - a stage comes first
        last[current] = user or last.get(current, "")
    assert last["service"] == last["worker"] == "10001"


def test_secrets_and_volumes_that_are_used_are_declared() -> None:
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        for name, value in service.get("environment", {}).items():
            if name.endswith("_FILE"):
                assert value.removeprefix("/run/secrets/") in service["secrets"], name
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        assert set(service["networks"]) <= set(COMPOSE["networks"])
    text = (DEPLOY / "compose.yaml").read_text() + (DEPLOY / "kubernetes.yaml").read_text()
    assert not re.search(r"(?i)password: *\w|://\w+:\w+@", text)


def changes() -> set[str]:
    """Paths of everything that changes the workspace."""
    modules = {f"serving.routes.{name}" for name in ("samples", "delivery", "approvals")}
    found = {o.path for o in OPERATIONS if o.handler.__module__ in modules and o.method != "GET"}
    assert {"/v1/samples", "/v1/jobs"} < found
    return {re.sub(r"{\w+}", "x", path) for path in found}


def test_the_proxy_sends_what_writes_to_who_may_write() -> None:
    proxy = COMPOSE["configs"]["proxy"]["content"]
    (words,) = re.findall(r"@delivery path (.*)", proxy)
    assert "handle @delivery {\n    reverse_proxy delivery:3000" in proxy
    for path in changes():
        assert any(fnmatch(path, pattern) for pattern in words.split()), path
    for path in ("/v1/score", "/v1/score/batch", "/v1/events"):
        assert not any(fnmatch(path, pattern) for pattern in words.split())
    mounts = {name: COMPOSE["services"][name]["volumes"] for name in OURS}
    assert "workspace:/data/workspace:ro" in mounts["service"]
    for name in ("delivery", "worker"):
        assert "workspace:/data/workspace" in mounts[name]
        assert any(volume.startswith("stores:/data/stores") for volume in mounts[name])


def test_the_ingress_sends_what_writes_to_who_may_write() -> None:
    (ingress,) = [d for d in KUBERNETES if d["kind"] == "Ingress"]
    backend = {
        path["path"]: path["backend"]["service"]["name"]
        for path in ingress["spec"]["rules"][0]["http"]["paths"]
    }
    selected = {
        d["metadata"]["name"]: d["spec"]["selector"]["app"]
        for d in KUBERNETES if d["kind"] == "Service"
    }  # fmt: skip
    sets = {
        d["spec"]["template"]["metadata"]["labels"]["app"]: d["spec"]["template"]["spec"]
        for d in KUBERNETES if d["kind"] == "StatefulSet"
    }  # fmt: skip

    def pod(path: str) -> dict[str, Any]:
        longest = max((p for p in backend if path.startswith(p)), key=len)
        found: dict[str, Any] = sets[selected[backend[longest]]]
        return found

    def read_only(spec: dict[str, Any], name: str) -> bool:
        (mount,) = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == name]
        (volume,) = [v for v in spec["volumes"] if v["name"] == name]
        claim = volume["persistentVolumeClaim"]
        assert claim["claimName"] in claims
        return bool(mount.get("readOnly") or claim.get("readOnly"))

    claims = {d["metadata"]["name"] for d in KUBERNETES if d["kind"] == "PersistentVolumeClaim"}
    for path in changes():
        assert not read_only(pod(path), "workspace"), path
        assert read_only(pod(path), "stores")
    for path in ("/v1/score", "/v1/score/batch", "/v1/events"):
        assert read_only(pod(path), "workspace")
    (policy,) = [d for d in KUBERNETES if d["kind"] == "NetworkPolicy"]
    assert set(policy["spec"]["podSelector"]["matchExpressions"][0]["values"]) == set(sets)


def test_the_image_has_what_scoring_needs_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    bento = yaml.safe_load((DEPLOY / "bentofile.yaml").read_text(encoding="utf-8"))
    wanted = [*project["dependencies"], *extras["postgres"], *extras["valkey"], *extras["tracing"]]
    assert bento["python"]["packages"] == wanted
    module, name = bento["service"].split(":")
    assert f"\n{name} = " in (ROOT / (module.replace(".", "/") + ".py")).read_text()
    for line in re.findall(r"whl\)\[(.*?)\]", CONTAINERFILE):
        assert set(line.split(",")) <= set(extras)
    service = CONTAINERFILE.partition("AS service")[2].partition("AS worker")[0]
    assert "train" not in service
    for source in re.findall(r"^COPY (?!--)(.*)$", CONTAINERFILE, re.M):
        assert all((ROOT / word).exists() for word in source.split()[:-1]), source


def test_commands_of_the_page_exist() -> None:
    run = [words for words in shell_lines(RUNNING) if words[0] == "riskfm"]
    assert run
    for words in run:
        _, command = find(words[1:])
        given = {w.split("=")[0] for w in words if re.match(r"--?[a-z]", w)}
        assert given <= options(command), words
        for word in words:
            assert not word.startswith("configs/") or (ROOT / word).exists()
