"""What is refused before Ray is even started, and what a container really has."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys

import pytest

from cluster import machine
from cluster.errors import UserError
from cluster.runtime import Cluster, RuntimeSettings, check_start, environment, shortage

GIB = 1 << 30


@pytest.fixture(autouse=True)
def a_small_machine(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "gpus", lambda: ())
    monkeypatch.setattr(machine, "shm_free", lambda: 2 * GIB)
    monkeypatch.setattr(machine, "disk_free", lambda path: 10 * GIB)


def refusal(settings: RuntimeSettings) -> str:
    with pytest.raises(UserError) as caught:
        check_start(settings)
    return caught.value.message


def test_by_default_a_cluster_has_the_machines_cores():
    assert check_start(RuntimeSettings()) == 2


def test_more_logical_cpus_than_cores_are_refused_unless_told():
    message = refusal(RuntimeSettings(num_cpus=3))
    assert "cluster.num_cpus is 3 and this machine has 2" in message
    assert check_start(RuntimeSettings(num_cpus=3, oversubscribe=True)) == 3


def test_a_gpu_that_is_not_there_is_refused():
    assert "cluster.num_gpus is 1 and this machine has 0" in refusal(RuntimeSettings(num_gpus=1))


def test_a_small_shm_is_told_before_ray_falls_back_to_disk(monkeypatch):
    monkeypatch.setattr(machine, "shm_free", lambda: 64 << 20)
    message = refusal(RuntimeSettings(object_store_mib=512))
    assert "/dev/shm has 64 MiB free and cluster.object_store_mib is 512" in message


def test_a_full_disk_is_told(monkeypatch):
    monkeypatch.setattr(machine, "disk_free", lambda path: 100 << 20)
    assert "less than 1 GiB free" in refusal(RuntimeSettings())


def test_a_taken_dashboard_port_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"Port {port} is taken" in refusal(RuntimeSettings(dashboard_port=port))


def test_shortage_names_what_is_missing_and_what_there_is():
    assert shortage({"CPU": 2}, {"CPU": 2.0}) == ""
    assert shortage({"CPU": 4, "GPU": 1}, {"CPU": 2}) == "4 CPU (the cluster has 2), 1 GPU (the cluster has 0)"


def test_the_shells_variables_win_over_defaults_and_the_settings_over_both(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    environ = environment(RuntimeSettings(threads=2, env={"MINE": "1"}))
    assert (environ["OMP_NUM_THREADS"], environ["VLLM_NO_USAGE_STATS"], environ["MINE"]) == ("7", "1", "1")
    assert environment(RuntimeSettings(env={"OMP_NUM_THREADS": "3"}))["OMP_NUM_THREADS"] == "3"


def test_variables_of_a_submitted_job_are_not_set_twice(monkeypatch):
    from cluster.runtime import _job_variables

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": {"A": "1"}}}))
    assert _job_variables() == {"A"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {}}))
    assert _job_variables() == set()


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"CPU": 16.0}, "4 of the cluster's 16 CPU are free"),
        ({"CPU": 16.0, "GPU": 8.0}, "4 of the cluster's 16 CPU and 1 of the cluster's 8 GPU are free"),
        ({}, "4 of the cluster's 0 CPU are free"),
    ],
)
async def test_what_is_free_is_told_when_actors_wait_in_vain(there, told, monkeypatch):
    monkeypatch.setattr(Cluster, "resources", there)
    monkeypatch.setattr(Cluster, "free", {"CPU": 4.0, "GPU": 1.0})
    with pytest.raises(UserError, match=f"GRPO did not start within 0.01 s: {told};"):
        async with Cluster(started=False, settings=RuntimeSettings()).starting("GRPO", 0.01):
            await asyncio.sleep(5)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000"}, 2.0),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_cgroups_of_both_versions_bound_the_cores(tmp_path, files, cores):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert machine.cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", "1073741824", GIB),
        ("memory.max", "max", None),
        ("memory/memory.limit_in_bytes", "9223372036854771712", None),
        ("memory/memory.limit_in_bytes", "1073741824", GIB),
    ],
)
def test_cgroups_of_both_versions_bound_the_memory(tmp_path, name, text, limit):
    (tmp_path / "memory").mkdir()
    (tmp_path / name).write_text(text + "\n")
    assert machine.memory_limit(tmp_path) == limit


@pytest.mark.parametrize("first", ["", "import ray; "], ids=["before Ray is imported", "after it"])
def test_a_token_is_shown_whenever_ray_was_imported(tmp_path, first):
    """In a process of its own: Ray reads its environment at its import."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("a" * 64)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    look = "from ray._raylet import AuthenticationMode as Mode, get_authentication_mode; "
    look += "print(get_authentication_mode() == Mode.TOKEN)"
    done = subprocess.run(
        [sys.executable, "-c", f"{first}from cluster.runtime import authenticate; authenticate(); {look}"],
        env=environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr
