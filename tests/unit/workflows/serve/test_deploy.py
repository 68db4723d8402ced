"""The documents that Ray Serve is told, and those that are shipped."""

import copy
import socket
from pathlib import Path

import pytest
import yaml
from ray.serve._private import constants
from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema

from cluster.errors import RunBroken, UserError
from tests.unit.workflows.serve.loopback_serve import Cluster, declared, loopback
from workflows.serve.deploy import (
    LEAN,
    OWN,
    Controller,
    beside,
    document,
    draining,
    haproxy_environment,
    runs,
    starting,
    swapped,
    weights_of,
    without,
)
from workflows.serve.settings import ServeSettings
from workflows.settings import SHIPPED, load

MADE = document(ServeSettings(port=8123), {"config": "embedded"}, "/models/a", {"OMP_NUM_THREADS": "1"})
SHIPPED_FILES = sorted((SHIPPED / "serve").glob("*.yaml"))


def shipped(file: Path):
    return yaml.safe_load(file.read_text())


def strictly(content):
    """Serve's schema leaves unknown keys out without a word, so each level is compared with its own."""
    for schema, parts in (
        (ServeDeploySchema, [content]),
        (HTTPOptionsSchema, [content["http_options"]]),
        (ServeApplicationSchema, content["applications"]),
        (DeploymentSchema, [one for app in content["applications"] for one in app.get("deployments", ())]),
    ):
        for part in parts:
            assert set(part) <= set(schema.model_fields), (schema.__name__, set(part))
    return ServeDeploySchema.model_validate(content)


@pytest.mark.parametrize(
    "content", [MADE, *map(shipped, SHIPPED_FILES)], ids=["made", *[f.stem for f in SHIPPED_FILES]]
)
def test_serve_takes_the_document_with_every_key_of_it(content):
    strictly(content)


def test_both_shipped_documents_are_looked_at():
    assert {file.stem for file in SHIPPED_FILES} == {"one_machine", "cluster"}


@pytest.mark.parametrize("file", SHIPPED_FILES, ids=lambda file: file.stem)
def test_the_args_of_a_shipped_document_are_settings_of_ours(file):
    (application,) = shipped(file)["applications"]
    settings = load(application["args"]["config"], application["args"]["overrides"])
    assert settings.serve.host == shipped(file)["http_options"]["host"]
    assert settings.serve.request.seconds < shipped(file)["http_options"]["request_timeout_s"]


@pytest.mark.parametrize("file", SHIPPED_FILES, ids=lambda file: file.stem)
def test_a_shipped_document_makes_serve_as_lean_as_the_command_does(file):
    (application,) = shipped(file)["applications"]
    assert application["runtime_env"]["env_vars"].items() >= LEAN.items()


def test_the_service_begins_with_its_weights_as_version_one():
    assert weights_of(MADE) == {"checkpoint": "/models/a", "version": 1}


def test_a_swap_changes_nothing_but_the_weights():
    before = copy.deepcopy(MADE)
    changed = swapped(MADE, "/models/b")
    assert weights_of(changed) == {"checkpoint": "/models/b", "version": 2}
    weights_of(changed).update(weights_of(before))
    assert changed == before == MADE


def test_draining_shuts_the_doors_and_changes_nothing_else():
    changed = draining(MADE)
    doors = [one for one in changed["applications"][0]["deployments"] if one["name"] == "Ingress"]
    assert [one["user_config"] for one in doors] == [{"draining": True}]
    doors[0]["user_config"] = {"draining": False}
    assert changed == MADE


def test_a_cluster_without_our_service_is_told_in_one_sentence():
    with pytest.raises(UserError, match="mmsearch serve"):
        weights_of({"applications": [{"name": "other", "deployments": [{"name": "Agent", "user_config": {}}]}]})


def test_who_is_awaited_is_told():
    assert starting({"Agent": {"status": "UPDATING"}, "Search": {"status": "HEALTHY"}}) == "waiting for Agent"
    assert starting({}) == "starting"


OPTIONS = dict(MADE["http_options"], root_path="")
IMPERATIVE = {**declared("theirs"), "deployed_app_config": None}


def names(content):
    return [one["name"] for one in content["applications"]]


def details(*applications, **changed):
    return {"http_options": OPTIONS, "applications": {one["name"]: one for one in applications}, **changed}


def ours(status="RUNNING"):
    return {"name": "mmsearch", "status": status, "deployed_app_config": MADE["applications"][0], "deployments": {}}


def test_a_serve_that_runs_nothing_is_told_the_document_as_it_is():
    assert beside(MADE, {"applications": {}, "proxies": {}}) == MADE


def test_what_others_declared_is_in_the_document_and_serves_own_options_stay_theirs():
    found = details(declared("first", args={"a": 1}), declared("second"), IMPERATIVE, target_capacity=50.0)
    told = beside(MADE, found)
    assert names(told) == ["mmsearch", "first", "second"]
    assert told["applications"][1] == declared("first", args={"a": 1})["deployed_app_config"]
    assert told["http_options"] == OPTIONS
    assert told["target_capacity"] == 50.0
    assert "logging_config" not in told
    strictly(told)


def test_an_application_that_ends_is_not_deployed_again():
    assert names(beside(MADE, details({**declared("going"), "status": "DELETING"}))) == ["mmsearch"]
    assert names(beside(MADE, details(ours("DELETING")))) == ["mmsearch"]


@pytest.mark.parametrize("status", ["RUNNING", "DEPLOYING", "UNHEALTHY", "DEPLOY_FAILED"])
def test_a_second_service_on_a_cluster_is_refused_with_what_to_do(status):
    with pytest.raises(UserError, match=r"mmsearch serve update.*Ctrl-C"):
        beside(MADE, details(ours(status)))


@pytest.mark.parametrize("changed", [{"host": "0.0.0.0"}, {"port": 8000}])
def test_a_serve_that_listens_elsewhere_for_others_is_told_with_the_settings_for_it(changed):
    there = OPTIONS | changed
    with pytest.raises(UserError, match=f"serve.host={there['host']} serve.port={there['port']}"):
        beside(MADE, details(declared("other"), http_options=there))


def test_what_is_left_without_the_service_is_everybody_elses():
    assert names(without(details(ours(), declared("other"))) or {}) == ["other"]
    assert names(without(details(ours(), IMPERATIVE)) or {}) == []
    assert without(details(ours())) is None
    assert without({"applications": {}}) is None


def test_weights_run_when_serve_has_told_these_to_all_agents():
    weights = {"checkpoint": "/models/b", "version": 2}

    def said(status="HEALTHY", config=weights):
        agent = {"status": status, "deployment_config": {"user_config": config}}
        return details({**ours(), "deployments": {"Agent": agent}})

    assert runs(said(), weights)
    assert not runs(said("UPDATING"), weights)
    assert not runs(said(config=weights | {"version": 1}), weights)
    assert not runs(details(ours()), weights)


def test_a_swap_and_draining_leave_others_running_and_the_end_leaves_them_alone():
    with loopback(Cluster({"other": declared("other")}, OPTIONS)) as cluster:
        controller = Controller(cluster.url)
        controller.deploy(beside(MADE, controller.details()))
        assert sorted(cluster.applications) == ["mmsearch", "other"]
        controller.deploy(draining(swapped(controller.deployed(), "/models/b")))
        assert sorted(cluster.applications) == ["mmsearch", "other"]
        assert weights_of(controller.deployed())["version"] == 2
        controller.end(5.0)
        assert list(cluster.applications) == ["other"]
        assert not [one for one in cluster.asked if one.startswith("DELETE")]


def test_serve_ends_with_a_service_that_had_it_for_itself():
    with loopback(Cluster()) as cluster:
        controller = Controller(cluster.url)
        controller.deploy(beside(MADE, controller.details()))
        controller.end(5.0)
        assert cluster.applications == {}
        assert "DELETE /api/serve/applications/" in cluster.asked


def test_a_service_that_does_not_end_is_told_at_the_deadline():
    class Stays(Cluster):
        def deploy(self, content):
            pass

    with (
        loopback(Stays({"mmsearch": ours(), "other": declared("other")}, OPTIONS)) as cluster,
        pytest.raises(RunBroken, match="did not end within 3 s"),
    ):
        Controller(cluster.url).end(3.0, now=iter([0.0, 3.0]).__next__)


def test_a_dashboard_that_is_gone_is_told_in_words():
    with loopback(Cluster()) as cluster:
        controller = Controller(cluster.url)
    for call in (controller.details, lambda: controller.deploy(MADE), lambda: controller.end(1.0)):
        with pytest.raises(RunBroken):
            call()
    with pytest.raises(UserError, match="does not answer"):
        Controller(cluster.url)


def test_two_services_behind_haproxy_share_neither_files_nor_ports():
    ports = iter(range(9000, 9100))
    one, other = (haproxy_environment(folder, lambda: next(ports)) for folder in ("/tmp/one", "/tmp/other"))
    assert [name for name in one if one[name] == other[name]] == ["RAY_SERVE_ENABLE_HA_PROXY"]


def test_every_variable_of_haproxys_is_one_that_ray_reads():
    known = (Path(constants.__file__)).read_text()
    assert [name for name in OWN | haproxy_environment("/tmp/one", lambda: 1) if f'"{name}"' not in known] == []


def test_a_dashboard_that_never_answers_is_told_and_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(UserError, match="does not answer"):
        Controller(f"http://127.0.0.1:{mute.getsockname()[1]}", answer_s=0.2)


def test_a_serve_that_never_ends_is_told_and_not_waited_for():
    with loopback(Cluster()) as running:
        running.deploy(MADE)
        running.ends = False
        with pytest.raises(RunBroken, match="could not be stopped"):
            Controller(running.url, answer_s=0.2).end(0.2)
        running.stuck.set()
