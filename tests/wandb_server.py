"""A W&B server on the loopback interface, for tests with the real wandb client. It does the search
of a sweep itself.

It does with sweeps what W&B documents ("Signal handling and sweep runs", "Resume preemptible sweeps
runs") and is known to do (wandb#4237, #9143):
- A run's parameters are handed out as `{name: {"value": value}}`; a nested one is one dict.
- A run that has marked itself as preempting is "preempted" and given out again where its program
  ends with another exit code than 0, or with none; with 0 it has finished.
- That is so for an hour, as the command "resume", with the run's whole configuration and `_wandb`.
- A run that was not marked and ends without an exit code has crashed, and is not given out."""

import contextlib
import gzip
import itertools
import json
import random
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

import yaml

PROJECT = {"id": "project", "name": "tests", "entity": {"id": "entity", "name": "testers"}}
Json = dict[str, Any]


@dataclass
class Run:
    id: str
    name: str = ""
    config: Json = field(default_factory=dict)
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    commit: str | None = None
    summary: Json = field(default_factory=dict)
    history: list[Json] = field(
        default_factory=list
    )  # the rows of wandb-history.jsonl, in their places
    files: set[str] = field(default_factory=set)
    exit_code: int | None = None
    preempting: bool = False
    state: str = "pending"  # running, finished, failed, preempted, crashed
    queued: float | None = None  # since when it waits to be given out again
    started: bool = False  # a sweep's run is there before a program has opened it
    resumed: int = 0  # how often a program has asked to go on with it
    parameters: Json = field(default_factory=dict)  # what a sweep has chosen for it
    agents: list[str] = field(default_factory=list)  # that were given it, the last one has it
    seen: float = 0.0  # when its program last sent something

    @property
    def finished(self) -> bool:
        """Whether its program has said how it ended."""
        return self.exit_code is not None

    def end(self, exit_code: int | None) -> None:
        self.exit_code = exit_code
        if self.preempting and exit_code != 0:
            self.state, self.queued = "preempted", time.monotonic()
        else:
            self.state = {0: "finished", None: "crashed"}.get(exit_code, "failed")


@dataclass
class Sweep:
    id: str
    config: Json
    choices: Iterator[Json]
    runs: dict[str, Run] = field(default_factory=dict)


@dataclass
class Artifact:
    name: str
    type: str
    files: set[str] = field(default_factory=set)
    committed: bool = False


class WandbServer:
    """`with WandbServer() as server:` and programs that have `server.environment` send their runs
    to it.

    An artifact can be logged, but not fetched: `artifact.wait()` fails. System metrics and console
    output are left out."""

    DEAD_AFTER = 300.0  # seconds without a sign from an agent (one every 5 s) and its program
    GIVEN_FOR = 3600.0  # seconds for which a preempted run is given out again

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.operations: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()  # those that got an empty answer
        self.stop_when: Callable[[Run], bool] = lambda run: (
            False
        )  # asked for a sweep's run at its agent's heartbeats
        self.fail = False  # answer 500
        self.hang = False  # do not answer
        self._agents: dict[str, tuple[Sweep, float]] = {}  # and when it was last heard of
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self})
        )
        self._http.block_on_close = False  # a client may hold its connection
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.environment = {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "0123456789" * 4,
            "WANDB_MODE": "online",
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CONSOLE": "off",
            "WANDB_X_DISABLE_STATS": "true",
            "WANDB_X_DISABLE_MACHINE_INFO": "true",
            "WANDB_X_SAVE_REQUIREMENTS": "false",
            # whole seconds; it is 15 where it is less than 1
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        }

    def __enter__(self) -> "WandbServer":
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, body: bytes) -> Json | None:
        """What a request is answered; None is a failure of the server."""
        while self.hang and not self._closed.wait(0.1):
            pass
        if self.fail or self._closed.is_set():
            return None
        parts = [unquote(part) for part in path.split("?")[0].strip("/").split("/")]
        with self._lock:
            if parts == ["graphql"]:
                return {"data": self._graphql(**json.loads(body))}
            if parts[-1] == "file_stream":
                self._file_stream(self.runs[parts[-2]], json.loads(body))
            elif method == "PUT" and parts[0] == "upload":
                {"runs": self.runs, "artifacts": self.artifacts}[parts[1]][parts[2]].files.add(
                    "/".join(parts[3:])
                )
            return {}

    def _graphql(self, query: str, variables: Json | None = None, **_: str) -> Json:
        name, first_field = re.search(r"(?:query|mutation)\s+(\w+)[^{]*\{\s*(\w+)", query).groups()
        self.operations[name] += 1
        if operation := getattr(self, f"_{name}", None):
            return operation(variables or {})
        self.unknown[name] += 1
        return {first_field: None}

    def _upload(self, *parts: str) -> str:
        return "/".join((self.url, "upload", *(quote(part) for part in parts)))

    # Runs

    def _Viewer(self, _: Json) -> Json:
        return {
            "viewer": {
                "id": "viewer",
                "entity": "testers",
                "username": "testers",
                "email": "",
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def _ServerFeaturesQuery(self, _: Json) -> Json:
        return {"serverInfo": {"features": []}}

    def _UpsertBucket(self, told: Json) -> Json:
        run = self.runs.setdefault(told["name"], Run(told["name"]))
        inserted, run.started = not run.started, True
        if run.state != "running":  # else it only tells more of itself
            run.state, run.exit_code, run.preempting, run.queued = "running", None, False, None
        names = {
            "name": "displayName",
            "group": "groupName",
            "job_type": "jobType",
            "tags": "tags",
            "commit": "commit",
        }
        for ours, theirs in names.items():
            if told.get(theirs) is not None:
                setattr(run, ours, told[theirs])
        if told.get("config"):
            run.config = {
                key: entry["value"]
                for key, entry in json.loads(told["config"]).items()
                if key != "_wandb"
            }
        if told.get("summaryMetrics"):
            run.summary.update(json.loads(told["summaryMetrics"]))
        sweep = next((sweep.id for sweep in self.sweeps.values() if run.id in sweep.runs), None)
        return {
            "upsertBucket": {
                "bucket": {**self._bucket(run), "sweepName": sweep, "project": PROJECT},
                "inserted": inserted,
            }
        }

    def _RunResumeStatus(self, asked: Json) -> Json:
        run = self.runs.get(asked["name"])
        if run and run.started:
            run.resumed += 1
        return {"model": {**PROJECT, "bucket": self._bucket(run) if run else None}}

    def _bucket(self, run: Run) -> Json:
        config = {key: {"value": value} for key, value in (run.config or run.parameters).items()}
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.name,
            "description": None,
            "notes": None,
            "tags": run.tags,
            "config": json.dumps(config),
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "wandbConfig": json.dumps({"t": {}} if run.started else {}),
        }  # without "t" the client takes it for a new run

    def _file_stream(self, run: Run, sent: Json) -> None:
        if chunk := sent.get("files", {}).get(
            "wandb-history.jsonl"
        ):  # sent again where an answer was lost, hence by its offset
            run.history[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = map(
                json.loads, chunk["content"]
            )
        if chunk := sent.get("files", {}).get("wandb-summary.json"):
            run.summary = json.loads(chunk["content"][-1])
        run.seen = time.monotonic()
        run.preempting |= sent.get("preempting", False)
        if sent.get("complete"):
            run.end(sent.get("exitcode", 0))

    def _CreateRunFiles(self, asked: Json) -> Json:
        files = [
            {"name": name, "uploadUrl": self._upload("runs", asked["run"], name)}
            for name in asked["files"]
        ]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    # Artifacts: an artifact, its manifest and its files have the same id

    def _CreateArtifact(self, asked: Json) -> Json:
        given, id = asked["input"], secrets.token_hex(8)
        self.artifacts[id] = Artifact(given["artifactCollectionName"], given["artifactTypeName"])
        return {
            "createArtifact": {
                "artifact": {
                    "id": id,
                    "state": "PENDING",
                    "artifactSequence": {"latestArtifact": None},
                }
            }
        }

    def _CreateArtifactManifest(self, asked: Json) -> Json:
        id = asked["artifactID"]
        file = {
            "id": id,
            "uploadUrl": self._upload("artifacts", id, asked["name"]),
            "uploadHeaders": [],
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": id, "file": file}}}

    def _CreateArtifactFiles(self, asked: Json) -> Json:
        nodes = [
            {
                "storagePath": spec["name"],
                "uploadUrl": self._upload("artifacts", spec["artifactID"], spec["name"]),
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": spec["artifactID"]},
            }
            for spec in asked["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, asked: Json) -> Json:
        self.artifacts[asked["artifactID"]].committed = True
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": ""}}}

    # Sweeps

    def _UpsertSweep(self, told: Json) -> Json:
        id, config = secrets.token_hex(4), yaml.safe_load(told["config"])
        self.sweeps[id] = Sweep(id, config, itertools.islice(search(config), config.get("run_cap")))
        return {
            "upsertSweep": {
                "sweep": {"name": id, "project": PROJECT},
                "configValidationWarnings": [],
            }
        }

    def _SweepWithRuns(self, asked: Json) -> Json:
        sweep = self.sweeps[asked["sweep"]]
        told = {
            "id": sweep.id,
            "name": sweep.id,
            "state": "RUNNING",
            "config": yaml.safe_dump(sweep.config),
            "runs": {"edges": []},
        }
        return {"project": {"sweep": told}}

    def _CreateAgent(self, asked: Json) -> Json:
        id = secrets.token_hex(8)
        self._agents[id] = self.sweeps[asked["sweep"]], time.monotonic()
        return {"createAgent": {"agent": {"id": id}}}

    def _Heartbeat(self, told: Json) -> Json:
        agent, running = told["id"], json.loads(told["runState"])
        sweep, _ = self._agents[agent]
        self._agents[agent] = sweep, time.monotonic()
        for run in sweep.runs.values():
            if run.state in ("pending", "running") and self._has_lost(run, agent, running):
                run.end(None)
        commands = [
            {"type": "stop", "run_id": id} for id in running if self.stop_when(sweep.runs[id])
        ]
        if not running:
            if command := self._next(sweep, agent):
                commands = [{"program": sweep.config.get("program"), **command}]
            elif not any(run.state in ("pending", "running") for run in sweep.runs.values()):
                commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": agent}, "commands": json.dumps(commands)}}

    def _has_lost(self, run: Run, agent: str, running: Json) -> bool:
        """Whether a run has no program left: its agent does not name it, or is silent, too."""
        last = run.agents[-1]
        silent = time.monotonic() - max(run.seen, self._agents[last][1]) > self.DEAD_AFTER
        return silent or (last == agent and run.id not in running)

    def _next(self, sweep: Sweep, agent: str) -> Json | None:
        """One that was preempted or, if there is none, a new one."""
        for run in sweep.runs.values():
            if run.queued is not None and time.monotonic() - run.queued < self.GIVEN_FOR:
                run.queued, run.state = None, "pending"
                run.agents.append(agent)
                whole = {**run.config, "_wandb": {"cli_version": "0", "t": {"3": [13]}}}
                return {"type": "resume", "run_id": run.id, "args": _args(whole)}
        if (parameters := next(sweep.choices, None)) is None:
            return None
        run = Run(secrets.token_hex(4), parameters=parameters, agents=[agent])
        self.runs[run.id] = sweep.runs[run.id] = run
        return {"type": "run", "run_id": run.id, "args": _args(parameters)}


def _args(values: Json) -> Json:
    return {name: {"value": value} for name, value in values.items()}


def search(config: Json) -> Iterator[Json]:
    """The parameters of a sweep's runs: grid is all combinations in order, random goes on for ever
    from a fixed seed."""
    if config["method"] == "grid":
        yield from _grid(config["parameters"])
    chosen = random.Random(0)
    while config["method"] == "random":
        yield {name: _draw(chosen, parameter) for name, parameter in config["parameters"].items()}


def _grid(parameters: Json) -> Iterator[Json]:
    options = [
        list(_grid(one["parameters"]))
        if "parameters" in one
        else one.get("values", [one.get("value")])
        for one in parameters.values()
    ]
    for values in itertools.product(*options):
        yield dict(zip(parameters, values, strict=True))


def _draw(chosen: random.Random, parameter: Json) -> Any:
    if "parameters" in parameter:
        return {name: _draw(chosen, inner) for name, inner in parameter["parameters"].items()}
    if "min" in parameter:
        whole = isinstance(parameter["min"], int) and isinstance(parameter["max"], int)
        return (chosen.randint if whole else chosen.uniform)(parameter["min"], parameter["max"])
    return chosen.choice(parameter.get("values", [parameter.get("value")]))


class _Handler(BaseHTTPRequestHandler):
    owner: WandbServer
    protocol_version = "HTTP/1.1"  # clients keep their connections

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients are killed
            super().handle()

    def _respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = self.owner.answer(self.command, self.path, body)
        content = json.dumps(answer).encode()
        self.send_response(200 if answer is not None else 500)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _respond

    def log_message(self, *_: object) -> None:
        pass
