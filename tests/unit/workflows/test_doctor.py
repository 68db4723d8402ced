"""The report and its exit code."""

from __future__ import annotations

import json

import pytest

from cluster import machine
from workflows import doctor
from workflows.doctor import Finding


def test_something_essential_missing_is_exit_code_two_and_names_its_mending(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("ray", "not installed", "missing", "make setup")])
    assert doctor.run() == 2
    printed = capsys.readouterr().out
    assert "make setup" in printed
    assert "Missing: ray." in printed


def test_weakness_alone_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("cores", "1", "weak", "give it two")])
    assert doctor.run() == 0
    assert "Everything essential is here." in capsys.readouterr().out


def test_json_holds_every_finding(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("cores", "2"), Finding("GPU", "none")])
    assert doctor.run(as_json=True) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["cores", "GPU"]


@pytest.mark.parametrize(("gib", "status"), [(16, "ok"), (8, "weak"), (1, "missing")])
def test_memory_is_judged_by_what_a_run_needs(monkeypatch, gib, status):
    monkeypatch.setattr(machine, "memory", lambda: gib << 30)
    assert doctor.memory().status == status


def test_a_missing_compiler_only_weakens(monkeypatch):
    monkeypatch.setenv("PATH", "")
    finding = doctor.compiler()
    assert (finding.status, finding.mend) == ("weak", "apt-get install g++")


def test_a_package_too_old_is_missing(monkeypatch):
    versions = {"torch": "2.13.0+cpu", "ray": "2.9.3", "deepspeed": "0.19.8", "transformers": None}
    monkeypatch.setattr(doctor, "_version", versions.get)
    statuses = {finding.name: finding.status for finding in doctor.packages()}
    assert statuses == {"torch": "ok", "ray": "missing", "deepspeed": "ok", "transformers": "missing"}
