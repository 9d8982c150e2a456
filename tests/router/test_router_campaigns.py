"""The campaigns, small: the router passes them, and a router that is broken on purpose does not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from inference_plane.campaign import fuzz, residency
from inference_plane.campaign.breaks import BREAKS
from inference_plane.campaign.residency import Caller
from inference_plane.checkout import ROOT

CARE = Caller("", "care")


def _silent(what: str) -> None:
    pass


def test_no_prompt_leaves_that_must_not(tmp_path: Path) -> None:
    found = residency.Campaign(2000, 1, _silent).run(tmp_path)
    assert not found.failed, "\n".join(found.problems)
    assert sum(found.outcomes.values()) == 2000
    # Prompts of both kinds were asked, and those that may leave did.
    kinds = {kind for kind, _, _ in found.outcomes}
    assert kinds == {"may leave", "must stay"} and found.left > 50
    assert {status for _, _, status in found.outcomes} >= {200, 400, 401, 403, 404, 429, 500, 503}


@pytest.mark.parametrize("name", BREAKS)
def test_a_router_that_is_broken_on_purpose_is_noticed(tmp_path: Path, name: str) -> None:
    found = residency.Campaign(1000, 1, _silent, name).run(tmp_path)
    assert found.failed and found.problems, found
    if name not in ("two-models", "first-model"):  # few requests name two: their status tells, and one may leave or not
        assert any(problem.startswith("leak: request ") for problem in found.problems), found.problems


def test_mutated_requests_are_read_as_the_engine_reads_them_or_refused(tmp_path: Path) -> None:
    found = fuzz.Fuzz(1000, 7, _silent).run(tmp_path)
    assert not found.failed, "\n".join(found.problems)
    answered = {answer for _, answer in found.outcomes}
    assert answered >= {"200 fleet", "200 bedrock", "400", "404"}, "the mutations show nothing"
    assert found.replies >= 950 and found.at_bedrock > 10


@pytest.mark.parametrize("name", ["no-restricted-route", "no-normalisation"])
def test_mutations_notice_a_router_that_is_broken_on_purpose(tmp_path: Path, name: str) -> None:
    found = fuzz.Fuzz(1500, 7, _silent, name).run(tmp_path)
    assert found.failed["leak"], found


def test_the_command_ends_with_its_verdict() -> None:
    command = [str(ROOT / "scripts" / "campaign"), "residency", "--requests", "400", "--break", "no-restricted-route"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED leak: request " in done.stdout
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "leaks" and int(last[1]) > 0


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"POST / HTTP/1.1\r\nhost: a\r\n", None),
        (b"POST / HTTP/1.1\r\nX-Residency:  region\t\r\n", "region"),
        (b"POST / HTTP/1.1\r\nx-residency: region\r\nx-RESIDENCY: anywhere\r\n", "cluster"),
        (b"POST / HTTP/1.1\r\nx-residency: any\r\n where\r\n", "cluster"),
        (b"POST / HTTP/1.1\r\nx-foo: a\r\n x-residency: cluster\r\n", None),
        (b"POST / HTTP/1.1\r\nx-residency: cluster\r\nconnection: close, X-Residency\r\n", None),
    ],
)
def test_the_oracle_reads_heads_as_the_rfc_has_them(head: bytes, said: str | None) -> None:
    assert fuzz.said(head) == said


@pytest.mark.parametrize(
    ("path", "body", "stays"),
    [
        ("/v1/chat/completions", b'{"model": "triage"}', False),
        ("/v1/chat/completions", b'{"model": "intake", "model": "triage"}', True),
        ("/v1/chat/completions", b'{"model": "triage", "model": "intake"}', True),
        ("/v1/chat/completions", b'{"messages": [{"model": "intake"}], "model": "triage"}', False),
        ("/v1/chat/completions", b'{"\\u006dodel": "intake", "model": "triage"}', True),
        ("//intake//v1/chat/completions", b'{"model": "triage"}', True),
        ("/triage/../intake/v1/chat/completions", b"{}", True),
        ("/intake/%2e%2e/v1/chat/completions", b'{"model": "triage"}', False),
        ("/v1/chat/completions", b"{}", True),
        ("/v1/chat/completions", b'{"model": "intake"', True),
        ("/v1/chat/completions", b'{"model": "triage"', False),
    ],
)
def test_the_oracle_keeps_what_any_reading_keeps(path: str, body: bytes, stays: bool) -> None:
    assert fuzz.stays(path, b"POST / HTTP/1.1\r\n", body, CARE) is stays
