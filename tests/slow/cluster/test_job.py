"""A run as a submitted job: upload of a working directory, token authentication, the project's door to Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from actors.model.load import check_model_folder
from cluster.storage import Folder
from workflows.grpo import manifest
from workflows.grpo.recorder import training_steps

BIN = Path(sys.executable).parent
CALLS = 20  # until the head must answer; Ray's own client retries within each
SCRIPT = """
import os, ray
from cluster.runtime import RuntimeSettings, connect
with connect(RuntimeSettings(env={"MINE": "2"})) as cluster:
    cluster.require({"CPU": 1})
    look = ray.remote(num_cpus=1)(lambda: [os.environ[k] for k in ("MINE", "JOBS", "VLLM_CPU_OMP_THREADS_BIND")])
    print("RESULT", *ray.get(look.remote()), os.environ["RAY_AUTH_MODE"])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """The address of the job server of a real `ray start --head`, with a token of its own."""
    port, dashboard, agent, client = (free_port() for _ in range(4))
    log = (tmp_path / "head.log").open("w+")
    process = subprocess.Popen(
        [
            BIN / "ray", "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
            f"--ray-client-server-port={client}", "--num-cpus=2", "--object-store-memory=200000000",
        ],
        stdout=log, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    yield f"http://127.0.0.1:{dashboard}"
    process.terminate()
    process.wait(timeout=60)
    log.close()


@pytest.fixture(autouse=True)
def a_token_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("a" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


def submit(head: str, folder: Path, *entrypoint: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Submits once the head answers (Ray's own client retries for a while) and follows the job to its end."""
    command = [
        str(BIN / "ray"), "job", "submit", "--address", head, "--working-dir", str(folder),
        "--runtime-env-json", '{"env_vars": {"JOBS": "1"}}', "--", *entrypoint,
    ]  # fmt: skip
    environment = {**os.environ}
    for _ in range(CALLS - 1):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, env=environment)
        if "Failed to connect to Ray" not in done.stderr:
            return done
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, env=environment)


@pytest.mark.timeout(600)
def test_a_job_joins_its_cluster_and_a_mistake_in_it_is_one_sentence(head: str, tmp_path: Path):
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.py").write_text(SCRIPT)
    joined = submit(head, folder, str(BIN / "python"), "job.py")
    assert "RESULT 2 1 nobind token" in joined.stdout, joined.stdout + joined.stderr
    assert joined.returncode == 0

    refused = submit(head, folder, str(BIN / "mmsearch"), "sft", "run.sede=1")
    assert "mmsearch: There is no key run.sede; did you mean seed?" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert refused.returncode != 0


@pytest.mark.timeout(1500)
def test_grpo_as_a_submitted_job_leaves_its_results_at_an_absolute_path(head: str, tmp_path: Path, prepared):
    run, folder = prepared("submitted"), tmp_path / "work"
    folder.mkdir()
    grpo = {"steps": 2, "groups_per_step": 2, "group_size": 4, "start_check_questions": 0, "probe_every_s": 1.0}
    content = {"extends": "miniature", "run": {"name": "submitted", "storage": str(run)}, "grpo": grpo}
    (folder / "job.yaml").write_text(yaml.safe_dump(content))
    done = submit(head, folder, str(BIN / "mmsearch"), "grpo", "--config", "job.yaml", seconds=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "succeeded" in done.stdout
    facts = manifest.read(Folder(run / "grpo"))
    assert (facts["complete"], facts["step"]) == (True, 2)
    assert [step["step"] for step in training_steps(Folder(run / "grpo"))] == [1, 2]
    check_model_folder(run / "grpo/export")
