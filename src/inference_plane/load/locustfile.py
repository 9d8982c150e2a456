"""What locust runs: an open loop. `locust -f locustfile.py --headless --host URL --load-run FILE`, by `scripts/load`.

Requests go out when the plan says, whatever became of those before. A user is a place for one request under way: it
takes the next of the plan, waits for its moment, sends it and reads the answer to its end. Where all places are taken,
the next request goes out late; how late is in its sample. The shape starts all users at once and ends the run after the
last answer.
"""

from __future__ import annotations

import dataclasses
import json
import ssl
import time
from pathlib import Path
from typing import Any

import gevent
import gevent.event
from geventhttpclient import HTTPClient
from locust import LoadTestShape, User, constant, events, task
from locust.env import Environment

from inference_plane.load import answers, plan, profiles
from inference_plane.load.samples import ANSWERED, CANCELLED, FAILED, Sample

#: How often the loop's own lateness is looked at, or more seldom, so that so many looks last for the run.
LOOK, LOOKS = 0.05, 20000
#: Statuses after which a client may come again.
BUSY = (429, 503)


class Run:
    """One run: the plan, and what is known of it so far."""

    def __init__(self, file: Path, host: str) -> None:
        said: dict[str, Any] = json.loads(file.read_text())
        profile = profiles.load(said["profile"]).scaled(said["time_scale"], said["rate_scale"])
        self.profile = dataclasses.replace(profile, seed=said["seed"], users=said["users"])
        self.models, self.tokens = said["models"], said["tokens"]
        self.planned = plan.planned(self.profile)
        self.folder = file.parent
        self.client = _client(host, self.profile, said["ca_file"])
        self.path = said["path"]
        self.beginning: float | None = None
        self.begun = gevent.event.Event()
        self.ended = [gevent.event.Event() for _ in self.planned]
        self.texts: dict[int, list[dict[str, str]]] = {}
        self.last_turn: dict[int, int] = {}
        self.before = self._turns()
        self.busy = self.most = self.done = 0
        self.lags: list[float] = []
        self._next = 0
        self._samples = open(self.folder / "samples.jsonl", "w", buffering=1)

    def _turns(self) -> dict[int, int]:
        """The number of the turn before, of each request that has one."""
        last: dict[int, int] = {}
        before = {}
        for each in self.planned:
            if each.conversation in last:
                before[each.number] = last[each.conversation]
            last[each.conversation] = each.number
        self.last_turn = last
        return before

    def begin(self) -> None:
        """All users are there: the plan's time begins, with a little for everybody to get into place."""
        gevent.sleep(0.5)
        self.beginning = time.perf_counter()
        (self.folder / "began").write_text(str(time.time()))
        gevent.spawn(self._watch)
        self.begun.set()

    def now(self) -> float:
        assert self.beginning is not None
        return time.perf_counter() - self.beginning

    def take(self) -> plan.Planned | None:
        """The next request of the plan."""
        if self._next == len(self.planned):
            return None
        self._next += 1
        return self.planned[self._next - 1]

    def finish(self, sample: Sample) -> None:
        self._samples.write(sample.line() + "\n")
        self.done += 1
        self.ended[sample.number].set()

    @property
    def over(self) -> bool:
        return self.done == len(self.planned)

    def _watch(self) -> None:
        look = max(LOOK, self.profile.seconds / LOOKS)
        while not self.over:
            before = time.perf_counter()
            gevent.sleep(look)
            self.lags.append(time.perf_counter() - before - look)

    def close(self, environment: Environment) -> None:
        """Says how the generator did, and what was never sent."""
        for each in self.planned[self._next :]:
            self._samples.write(_sample(each).line() + "\n")
        self._samples.close()
        stats = {
            name: {
                "count": entry.num_requests,
                "median_ms": entry.median_response_time,
                "p99_ms": entry.get_response_time_percentile(0.99),
                "mean_ms": entry.avg_response_time,
            }
            for (name, kind), entry in environment.stats.entries.items()
            if kind == "METRIC" and entry.num_requests
        }
        said = {
            "users": self.profile.users,
            "busy": self.most,
            "lags": self.lags,
            "cpu": time.process_time(),
            "stats": stats,
        }
        (self.folder / "generator.json").write_text(json.dumps(said))


def _client(host: str, profile: profiles.Profile, ca_file: str | None) -> HTTPClient:
    return HTTPClient.from_url(
        host,
        concurrency=2 * profile.users,
        connection_timeout=min(10.0, profile.timeout),
        network_timeout=profile.timeout,
        block_size=65536,
        ssl_context_factory=lambda **_: ssl.create_default_context(cafile=ca_file),
    )


def _sample(each: plan.Planned) -> Sample:
    return Sample(
        number=each.number,
        phase=each.phase,
        request=each.kind,
        model=each.model,
        tenant=each.tenant,
        residency=each.residency,
        restricted=each.restricted,
        stream=each.stream,
        turn=each.turn,
        due=each.due,
    )


run: Run


class Client(User):
    """A place for one request under way."""

    wait_time = constant(0)

    @task
    def send(self) -> None:
        run.begun.wait()
        each = run.take()
        if each is None:
            gevent.sleep(3600)  # the shape ends the run
            return
        sample = _sample(each)
        if (left := sample.due - run.now()) > 0:
            gevent.sleep(left)
        before = run.before.get(each.number)
        if before is not None and not run.ended[before].is_set():
            run.ended[before].wait()
            sample.due = run.now()  # nobody asks on before the answer is there
        run.busy += 1
        run.most = max(run.most, run.busy)
        try:
            self._ask(each, sample)
        finally:
            run.busy -= 1
            run.finish(sample)
            self._tell(sample)

    def _ask(self, each: plan.Planned, sample: Sample) -> None:
        messages = [
            *run.texts.get(each.conversation, []),
            {"role": "user", "content": plan.prompt(each, run.profile.seed)},
        ]
        body = json.dumps(_body(each, run.models.get(each.model, each.model), messages)).encode()
        # By which a model with `affinity: session` finds the engine that has the conversation's beginning.
        headers = {"content-type": "application/json", "x-session-id": f"{run.profile.seed}-{each.conversation}"}
        if token := run.tokens.get(each.tenant) or run.tokens.get(""):
            headers["authorization"] = f"Bearer {token}"
        if each.residency:
            headers["x-residency"] = each.residency
        sample.sent = run.now()
        started = time.perf_counter()
        leaving = gevent.Timeout.start_new(each.cancel_after) if each.cancel_after is not None else None
        limit = gevent.Timeout.start_new(run.profile.timeout)
        try:
            text = self._tries(sample, body, headers, started)
            sample.outcome = ANSWERED
            if each.number != run.last_turn[each.conversation]:
                run.texts[each.conversation] = [*messages, {"role": "assistant", "content": text}]
        except gevent.Timeout as gone:
            sample.outcome, sample.error = (CANCELLED, "") if gone is leaving else (FAILED, "timeout")
        except answers.Refused as refused:
            sample.outcome, sample.error = FAILED, refused.kind
        except Exception as error:  # noqa: BLE001  whatever a socket or a parser says, the request has failed
            sample.outcome = FAILED
            sample.error = "cut stream" if sample.status == 200 else f"connection: {type(error).__name__}"
        finally:
            for timeout in (leaving, limit):
                if timeout is not None:
                    timeout.close()
            sample.total = time.perf_counter() - started
            if each.number == run.last_turn[each.conversation]:
                run.texts.pop(each.conversation, None)

    def _tries(self, sample: Sample, body: bytes, headers: dict[str, str], started: float) -> str:
        """Asks until it is answered, refused for good, or the profile's client gives up."""
        for left in range(run.profile.retries, -1, -1):
            response = run.client.request("POST", run.path, body=body, headers=headers)
            try:
                _headers(sample, response)
                if response.status_code == 200:
                    return _answer(sample, response, started)
                after = answers.retry_after(response.get("retry-after"))
                response.read()
            finally:
                response.release()
            if sample.status in BUSY:
                sample.refusals += 1
                sample.silent += after is None
                if left and after is not None and after <= run.profile.retry_at_most:
                    sample.waits.append(after)
                    gevent.sleep(after)
                    continue
            break
        raise answers.Refused(f"http {sample.status}")

    def _tell(self, sample: Sample) -> None:
        """Locust's own figures, in milliseconds."""
        fire = self.environment.events.request.fire
        error = RuntimeError(sample.error) if sample.outcome == FAILED else None
        fire(
            request_type="POST",
            name=sample.request,
            response_time=(sample.total or 0) * 1e3,
            response_length=sample.completion_tokens or 0,
            exception=error,
            context={},
        )
        for name, value in (("ttft", sample.first), ("tpot", sample.tpot), ("e2e", sample.total)):
            if value is not None and sample.outcome == ANSWERED:
                fire(
                    request_type="METRIC",
                    name=name,
                    response_time=value * 1e3,
                    response_length=0,
                    exception=None,
                    context={},
                )


def _body(each: plan.Planned, model: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": each.output, "stream": each.stream}
    if each.stream:
        body["stream_options"] = {"include_usage": True}
    if each.ignore_eos:
        body["ignore_eos"] = True
    return body


def _headers(sample: Sample, response: Any) -> None:
    sample.status = response.status_code
    sample.backend = response.get("x-inference-backend", "") or ""
    sample.version = response.get("x-inference-model-version", "") or ""
    sample.reason = response.get("x-plane-reason", "") or ""
    sample.request_id = response.get("x-request-id", "") or ""
    attempts = response.get("x-envoy-attempt-count")
    sample.attempts = int(attempts) if attempts else None


def _answer(sample: Sample, response: Any, started: float) -> str:
    if not (response.get("content-type") or "").startswith("text/event-stream"):
        return answers.whole(sample, response.read())
    stream = answers.Stream(sample)
    # By lines: whoever reads by size waits until so much is there, and measures that.
    while line := response.readline(b"\n"):
        stream.line(line, time.perf_counter() - started)
    stream.end()
    return stream.text


class Shape(LoadTestShape):
    """All users at once, until the last answer."""

    def tick(self) -> tuple[int, float] | None:
        return None if run.over else (run.profile.users, run.profile.users)


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--load-run", required=True, type=Path, help="what scripts/load wrote of the run")


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    global run
    run = Run(environment.parsed_options.load_run, environment.host or "")


@events.spawning_complete.add_listener
def _spawned(user_count: int, **_: Any) -> None:
    if not run.begun.is_set() and user_count >= run.profile.users:
        gevent.spawn(run.begin)


@events.quitting.add_listener
def _quitting(environment: Environment, **_: Any) -> None:
    run.close(environment)
    environment.process_exit_code = 0  # the profile's thresholds judge, not a share of failures
