"""How the service is started for a run, and how the weights of one that runs are swapped, or taken back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from actors.model.load import local_model
from actors.model.tiny import save_tiny
from cluster.errors import RunBroken, UserError
from tests.unit.actors.model.small import QWEN2_5
from tests.unit.workflows.serve.loopback_serve import Cluster, Replica, declared, loopback
from workflows import cli
from workflows.cli_serve import SERVED, of_run
from workflows.serve import run as command
from workflows.serve.deploy import Controller, document, swapped, weights_of
from workflows.serve.run import RECORD, Swap, checkpoint_address, cpus, service_url, shown_host, update
from workflows.serve.settings import ServeSettings
from workflows.settings import load


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """a and b have one shape, other another; broken is none."""
    root = tmp_path_factory.mktemp("models")
    for name, size in (("a", QWEN2_5), ("b", QWEN2_5), ("other", replace(QWEN2_5, mlp=64))):
        save_tiny(["who founded it?"] * 3, root / name, size=size)
    return root


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "LOOK_S", 0.001)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tmp_path):
    return load(None, [f"run.storage={tmp_path / 'run'}", "serve.ready_timeout_s=5"])


@pytest.fixture
def cluster(models):
    """A service that runs model a, beside somebody else's application."""
    with loopback(Cluster({"other": declared("other")})) as running:
        made = document(ServeSettings(port=running.port), {"config": "embedded"}, str(models / "a"), {})
        made["applications"].append(declared("other")["deployed_app_config"])
        running.deploy(made)
        yield running


def record(settings, cluster, **changed):
    settings.run.folder.write_json(RECORD, {"url": cluster.url, "dashboard": cluster.url, "model": "a", **changed})


def served(cluster):
    return weights_of(Controller(cluster.url).deployed())


# --- update -------------------------------------------------------------------------------------------------


def test_new_weights_run_on_every_agent_and_others_stay(settings, cluster, models, capsys):
    cluster.agents = [Replica(), Replica()]
    record(settings, cluster)
    update(settings, str(models / "b"))
    assert [one.version for one in cluster.agents] == [2, 2]
    assert served(cluster) == {"checkpoint": str(models / "b"), "version": 2}
    assert f"version 2 runs everywhere: {models / 'b'}" in capsys.readouterr().out
    assert sorted(cluster.applications) == ["mmsearch", "other"]


def test_refused_weights_are_taken_back_and_the_next_update_is_none_the_worse(settings, cluster, models, capsys):
    cluster.agents = [Replica(), Replica(cannot=frozenset([str(models / "b")]))]
    record(settings, cluster)
    with pytest.raises(RunBroken, match=r"refused version 2.* run on, as version 3"):
        update(settings, str(models / "b"))
    assert served(cluster) == {"checkpoint": str(models / "a"), "version": 3}
    assert [one.version for one in cluster.agents] == [3, 3]
    update(settings, str(models / "a"))
    assert "version 4 runs everywhere" in capsys.readouterr().out


def test_an_old_refusal_does_not_spoil_a_good_update(settings, cluster, models):
    class Lags(Replica):
        looks = 0

        def reconfigure(self, weights):
            pass

        def standing(self):  # it loads for three looks
            self.looks += 1
            if self.looks == 3:
                self.version, self.refused = 2, None
            return super().standing()

    cluster.agents = [Lags(refused=1)]
    record(settings, cluster)
    update(settings, str(models / "b"))
    assert cluster.agents[0].looks >= 3


def test_weights_before_that_are_refused_too_are_told(settings, cluster, models):
    cluster.agents = [Replica(cannot=frozenset([str(models / "a"), str(models / "b")]))]
    record(settings, cluster)
    with pytest.raises(RunBroken, match=r"version 3, .* was refused too"):
        update(settings, str(models / "b"))


def test_weights_that_never_run_are_told_at_the_deadline(settings, cluster, models):
    class Stuck(Replica):
        def reconfigure(self, weights):
            pass

    cluster.agents = [Stuck()]
    record(settings, cluster)
    hasty = replace(settings, serve=replace(settings.serve, ready_timeout_s=0.05))
    with pytest.raises(RunBroken, match=r"Version 2 did not run everywhere within 0\.05 s"):
        update(hasty, str(models / "b"))


def test_a_model_of_another_shape_is_refused_before_anything_is_deployed(settings, cluster, models):
    record(settings, cluster)
    with pytest.raises(UserError, match="start the service anew"):
        update(settings, str(models / "other"))
    assert cluster.told == []


def test_a_service_that_was_not_recorded_is_found_by_its_dashboard(settings, cluster, models, capsys):
    update(settings, str(models / "b"), dashboard=cluster.url)
    assert "version 2 runs everywhere" in capsys.readouterr().out


def test_weights_that_ran_on_another_machine_are_not_compared_here(settings, cluster, models, capsys):
    cluster.deploy(swapped(Controller(cluster.url).deployed(), "/on/another/machine"))
    update(settings, str(models / "b"), dashboard=cluster.url)
    assert "version 3 runs everywhere" in capsys.readouterr().out


def test_where_the_service_itself_is_out_of_reach_serves_word_is_taken_and_said(settings, cluster, models, capsys):
    cluster.answers = False
    update(settings, str(models / "b"), dashboard=cluster.url)
    assert served(cluster)["version"] == 2
    said = capsys.readouterr().out
    assert "version 2 was told to every agent" in said
    assert "runs everywhere" not in said


def test_serves_word_is_not_taken_while_it_still_tells(cluster, models):
    cluster.answers = False
    cluster.applications["mmsearch"]["deployments"]["Agent"]["status"] = "UPDATING"
    weights = weights_of(Controller(cluster.url).deployed())
    with pytest.raises(RunBroken):
        command._until_version(Controller(cluster.url), cluster.url, weights, 0.1)
    cluster.applications["mmsearch"]["deployments"]["Agent"]["status"] = "HEALTHY"
    assert command._until_version(Controller(cluster.url), cluster.url, weights, 5.0) is Swap.TOLD


def test_without_a_record_and_a_dashboard_it_is_said_how_to_name_the_service(settings, models):
    with pytest.raises(UserError, match=r"mmsearch serve.*run\.storage=.*--dashboard"):
        update(settings, str(models / "b"))


@pytest.mark.parametrize(
    ("options", "dashboard", "url"),
    [
        ({"host": "0.0.0.0", "port": 8001}, "http://head.example:8265", "http://head.example:8001"),
        ({"host": "::", "port": 8001}, "https://[::1]:8265", "http://[::1]:8001"),
        ({"host": "127.0.0.1", "port": 8001}, "http://head.example:8265", "http://127.0.0.1:8001"),
        ({"host": "10.0.0.7"}, "http://head.example:8265", "http://10.0.0.7:8000"),
        (None, "http://head.example:8265", "http://head.example:8000"),
    ],
)
def test_a_deployed_service_answers_where_its_document_says(options, dashboard, url):
    assert service_url({"http_options": options} if options else {}, dashboard) == url


# --- looks at a service -------------------------------------------------------------------------------------


def test_it_is_idle_when_doors_are_shut_and_nobody_is_inside(monkeypatch):
    looks = 0

    def look(url):
        nonlocal looks
        looks += 1
        return {
            "draining": looks > 1,
            "requests": int(looks < 3),
            "replicas": [{"episodes": int(looks < 4), "version": 1, "refused": None}],
        }

    monkeypatch.setattr(command, "_ready", look)
    command._until_idle("http://nowhere", 5.0)
    assert looks == 4


def test_a_service_that_stays_busy_is_given_its_time_and_no_more(cluster):
    cluster.draining, cluster.requests = True, 1
    command._until_idle(cluster.url, 0.05)
    assert cluster.asked.count("GET /readyz") > 1


@pytest.mark.parametrize("answer", [[], {"replicas": 1}, {"replicas": [1]}, {"replicas": [{"version": 1}]}, "ready"])
def test_what_another_server_says_is_no_word_of_the_services(cluster, answer):
    assert command._ready(cluster.url) == cluster.ready
    cluster.hand = lambda *_: answer
    assert command._ready(cluster.url) == {}


# --- what is served -----------------------------------------------------------------------------------------


def test_a_checkpoints_address_is_absolute_checked_and_carries_the_bounds_of_pictures(settings, models, monkeypatch):
    monkeypatch.chdir(models)
    assert checkpoint_address(settings, "a") == str(models / "a")
    bounded = replace(settings, pictures=replace(settings.pictures, max_pixels=50176))
    address = checkpoint_address(bounded, "a")
    assert address == f"{models / 'a'}#max_pixels=50176"
    assert local_model(address) != models / "a"  # a folder whose own files have the bounds
    (models / "none").mkdir()
    with pytest.raises(UserError, match="There is no model at"):
        checkpoint_address(settings, "none")


def test_the_fewest_replicas_of_all_three_decide_how_many_cpus_must_be_free():
    few = ServeSettings(agents=2, agent_cpus=1.5, search_replicas=3, search_cpus=0.2, ingresses=2, ingress_cpus=0.5)
    assert cpus(few) == pytest.approx(2 * 1.5 + 3 * 0.2 + 2 * 0.5)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("::1", "[::1]"),
        ("10.0.0.7", "10.0.0.7"),
        ("localhost", "localhost"),
    ],
)
def test_a_host_is_shown_as_it_stands_in_an_address(host, shown):
    assert shown_host(host) == shown


# --- which run is served ------------------------------------------------------------------------------------


def a_run(folder, *parts):
    for part in ("sft/export", *parts):
        (folder / part).mkdir(parents=True)
    return folder


def test_the_run_whose_weights_are_served_is_also_searched_and_gives_its_name(tmp_path, capsys):
    demo = a_run(tmp_path / "runs" / "demo: 1", "world", "dataset")
    found = load(None, of_run(None, ["run.seed=3"], "runs/demo: 1", SERVED))
    assert (found.run.storage, found.run.name, found.run.seed) == (str(demo), "demo: 1", 3)
    assert found.search.text[0].kwargs == {"folder": str(demo / "world")}
    assert capsys.readouterr().err.count("\n") == 1


def test_it_may_be_named_in_the_settings_and_keeps_a_name_that_was_given(tmp_path):
    a_run(tmp_path / "runs" / "demo", "dataset")
    found = load(None, of_run(None, ["serve.checkpoint=runs/demo", "run.name=mine"], None, SERVED))
    assert (found.run.storage, found.run.name) == (str(tmp_path / "runs" / "demo"), "mine")


def test_a_run_of_its_own_stays_and_it_is_said_what_comes_from_where(tmp_path, capsys):
    demo, own = a_run(tmp_path / "runs" / "demo", "world"), a_run(tmp_path / "runs" / "embedded", "world")
    assert of_run(None, None, "runs/demo", SERVED) == []
    said = capsys.readouterr().err
    assert str(demo) in said
    assert str(own) in said


@pytest.mark.parametrize("checkpoint", [None, "rl", "runs/nowhere", "runs/model", "runs/embedded", "runs/bare"])
def test_what_is_no_other_run_with_something_to_search_changes_nothing(tmp_path, checkpoint, capsys):
    a_run(tmp_path / "runs" / "model", "world")
    (tmp_path / "runs" / "model" / "config.json").write_text("{}")
    a_run(tmp_path / "runs" / "bare")
    a_run(tmp_path / "runs" / "embedded")
    assert of_run(None, ["run.seed=3"], checkpoint, SERVED) == ["run.seed=3"]
    assert capsys.readouterr().err == ""


def test_a_folder_that_was_given_for_the_run_stays_the_runs(tmp_path):
    a_run(tmp_path / "runs" / "demo", "world")
    words = [f"run.storage={tmp_path / 'fresh'}"]
    assert of_run(None, words, "runs/demo", SERVED) == words


def test_an_update_by_another_runs_folder_finds_the_service_of_that_run(tmp_path):
    demo = a_run(tmp_path / "runs" / "demo", "serve")
    assert of_run(None, None, "runs/demo", [RECORD]) == []
    (demo / RECORD).write_text("{}")
    assert f"run.storage={json.dumps(str(demo))}" in of_run(None, None, "runs/demo", [RECORD])


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "anybody", "", "-" * 2, "x" * 65])
def test_a_key_for_a_name_that_settings_refuse_is_refused_in_a_sentence(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", ["mmsearch", "serve", "key", "--", name])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    assert left.value.code == 2
    assert out == ""
    assert err.startswith("mmsearch: name is ")
    assert err.count("\n") == 1


def test_what_is_printed_for_a_key_is_taken_by_the_settings(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mmsearch", "serve", "key", "ada"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    sha256 = capsys.readouterr().out.split("sha256: ")[1].strip()
    assert load(None, [f"serve.keys=[{{name: ada, sha256: {sha256}}}]"]).serve.keys[0].name == "ada"


def test_haproxy_is_refused_where_a_cluster_is_joined(settings, models):
    joined = replace(
        settings,
        cluster=replace(settings.cluster, address="127.0.0.1:6379"),
        serve=replace(settings.serve, haproxy=True),
    )
    with pytest.raises(UserError, match=r"in the environment of each `ray start`"):
        command.run(joined, str(models / "a"))
