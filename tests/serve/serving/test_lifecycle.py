"""The program from start to end: signals, workers that die, models that change."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import microgpt
import pytest
from faults import needs_linux
from microgpt_serve.serving.limits import Limits
from serve.service import Server, running

GENERATE = "/microgpt/v1/generate"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def pids_of_workers(server: Server) -> list[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return [int(pid) for pid in children.read_text(encoding="utf-8").split()]


def seconds_to_end(server: Server) -> float:
    """Send SIGTERM; return how long it takes to exit with status 0."""
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    return time.monotonic() - start


# ---------------------------------------------------------------- the same texts


def test_the_same_seed_gives_the_same_text_everywhere(names_dir: Path) -> None:
    seeds = list(range(40))
    bodies = [{"seed": seed, "num_samples": 1 + 9 * (seed % 2)} for seed in seeds]

    async def ask_all(url: str) -> list[str]:
        async with httpx2.AsyncClient(base_url=url, timeout=30, verify=False) as client:
            answers = await asyncio.gather(*(client.post(GENERATE, json=body) for body in bodies))
            return [answer.json()["samples"][0] for answer in answers]

    def ask_alone(url: str) -> list[str]:
        with httpx2.Client(base_url=url, verify=False) as client:
            return [client.post(GENERATE, json=body).json()["samples"][0] for body in bodies]

    with running(names_dir) as one:
        alone, under_load = ask_alone(one.url), asyncio.run(ask_all(one.url))
    with running(names_dir, workers=2, threads=1) as two:
        shared = asyncio.run(ask_all(two.url))
    command = [sys.executable, "-m", "microgpt_cli", "generate", "--model-dir", str(names_dir)]
    options = ["--num-samples", str(len(seeds)), "--seed", "0"]
    printed = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    by_command = re.findall(r"^sample +\d+: (.*)$", printed.stdout, re.MULTILINE)
    assert alone == under_load == shared == by_command
    assert len(set(alone)) > 5


# ---------------------------------------------------------------- SIGTERM


@dataclass
class Outcome:
    """How a stream ended."""

    text: str = ""
    is_done: bool = False
    error: str | None = None
    problem: str | None = None


async def read_stream(
    client: httpx2.AsyncClient, seed: int, n_tokens: int, started: asyncio.Event
) -> Outcome:
    outcome = Outcome()
    body = {"messages": HELLO, "stream": True, "seed": seed, "max_tokens": n_tokens}
    try:
        async with client.stream("POST", CHAT, json=body) as response:
            if response.status_code != 200:
                outcome.problem = f"status {response.status_code}"
                return outcome
            async for line in response.aiter_lines():
                started.set()
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    outcome.is_done = True
                elif data:
                    event = json.loads(data)
                    if "error" in event:
                        outcome.error = event["error"]["code"]
                    else:
                        outcome.text += event["choices"][0]["delta"].get("content", "")
    except httpx2.HTTPError as error:
        outcome.problem = repr(error)
    return outcome


async def end_with_open_streams(
    server: Server, n_streams: int, n_tokens: int
) -> tuple[list[Outcome], float]:
    """Open streams, send SIGTERM once each has begun, and read them to their ends."""
    limits = httpx2.Limits(max_connections=n_streams)
    async with httpx2.AsyncClient(
        base_url=server.url, timeout=30, limits=limits, verify=False
    ) as client:
        started = [asyncio.Event() for _ in range(n_streams)]
        tasks = [
            asyncio.create_task(read_stream(client, i, n_tokens, started[i]))
            for i in range(n_streams)
        ]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in started)), 30)
        begin = time.monotonic()
        assert not all(task.done() for task in tasks)
        server.terminate()
        outcomes = await asyncio.gather(*tasks)
        status = await asyncio.to_thread(server.process.wait, 30)
        assert status == 0
        return list(outcomes), time.monotonic() - begin


def check_no_reply_lost(
    outcomes: list[Outcome], n_tokens: int, model: microgpt.LanguageModel
) -> int:
    """Raise unless each stream is whole or ends with an error event; count the whole ones."""
    for seed, outcome in enumerate(outcomes):
        assert outcome.problem is None, outcome
        assert outcome.is_done != (outcome.error == "shutting_down"), outcome
        if outcome.is_done and seed % 10 == 0:  # all would take too long
            messages: list[microgpt.Message] = [{"role": "user", "content": "hello"}]
            reply = model.chat(messages, seed=seed, max_tokens=n_tokens)
            assert outcome.text == reply.content
    return sum(outcome.is_done for outcome in outcomes)


def test_streams_finish_within_the_grace_period(slow_dir: Path) -> None:
    with running(slow_dir, workers=2, grace_period=60, threads=50) as server:
        outcomes, _ = asyncio.run(end_with_open_streams(server, 50, 15))
    assert check_no_reply_lost(outcomes, 15, microgpt.load(slow_dir)) == 50


def test_streams_longer_than_the_grace_period_end_with_an_error(slow_dir: Path) -> None:
    with running(slow_dir, workers=2, grace_period=1, threads=50) as server:
        outcomes, seconds = asyncio.run(end_with_open_streams(server, 50, 200))
    assert check_no_reply_lost(outcomes, 200, microgpt.load(slow_dir)) < 50
    assert seconds < 1 + 1


@pytest.mark.long
def test_no_reply_is_lost_twenty_times_out_of_twenty(slow_dir: Path) -> None:
    model = microgpt.load(slow_dir)
    for _ in range(20):
        with running(slow_dir, workers=2, grace_period=2, threads=50) as server:
            outcomes, seconds = asyncio.run(end_with_open_streams(server, 50, 200))
        check_no_reply_lost(outcomes, 200, model)
        assert seconds < 2 + 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_service_ends_at_once(names_dir: Path, number: int) -> None:
    with running(names_dir) as server, httpx2.Client(base_url=server.url, verify=False) as client:
        assert client.get("/readyz").status_code == 200  # and keeps its connection
        start = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        assert time.monotonic() - start < 2


def test_a_request_in_flight_is_answered_and_nobody_new_gets_in(slow_dir: Path) -> None:
    async def scenario(server: Server) -> None:
        async with (
            httpx2.AsyncClient(base_url=server.url, timeout=30, verify=False) as client,
            httpx2.AsyncClient(base_url=server.url, timeout=30, verify=False) as other,
        ):
            body = {"messages": HELLO, "max_tokens": 200}
            answer = asyncio.create_task(client.post("/microgpt/v1/chat", json=body))
            await server.until_metrics(microgpt_in_flight=1)
            assert (await other.get("/readyz")).status_code == 200
            server.terminate()
            server.wait_for_log("draining")
            with pytest.raises(httpx2.ConnectError):
                await asyncio.to_thread(httpx2.get, f"{server.url}/livez", verify=False)
            assert len((await answer).json()["content"]) == 200

    with running(slow_dir) as server:
        asyncio.run(scenario(server))
        assert server.process.wait(30) == 0


def test_a_stalled_upload_does_not_hold_up_the_end(names_dir: Path) -> None:
    with running(names_dir, grace_period=1) as server:

        async def scenario() -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = "POST /microgpt/v1/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            writer.write(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
            await writer.drain()
            await asyncio.sleep(0.2)
            assert await asyncio.to_thread(seconds_to_end, server) < 1 + 1
            writer.close()

        asyncio.run(scenario())


# ---------------------------------------------------------------- SIGHUP


def copy_model(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        shutil.copy(file, target)


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_swaps_the_model_and_a_bad_one_is_not_taken(
    names_dir: Path, tmp_path: Path, workers: int
) -> None:
    served = tmp_path / "served"
    copy_model(names_dir, served)
    other = microgpt.fit(["xxxx", "yyyy"], steps=200)
    with running(served, workers=workers) as server:

        def sample() -> str:
            return str(
                httpx2.post(server.url + GENERATE, json={}, verify=False).json()["samples"][0]
            )

        before = sample()
        (served / "meta.json").write_text("{}")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("cannot reload the model, keeping the old one", workers)
        assert {sample() for _ in range(4)} == {before}
        assert httpx2.get(f"{server.url}/readyz", verify=False).status_code == 200
        other.save(served)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("model reloaded", workers)
        assert {sample() for _ in range(4)} == set(other.generate(1))
        assert before not in other.generate(1)


def test_the_last_of_many_sighups_counts(slow_dir: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    copy_model(slow_dir, served)
    with running(served) as server:
        for _ in range(100):  # while the first is obeyed, which takes a while
            server.process.send_signal(signal.SIGHUP)
        time.sleep(0.05)
        microgpt.fit(["xxxx", "yyyy"], steps=10).save(served)
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while httpx2.get(f"{server.url}/microgpt/v1/model", verify=False).json()["is_chat"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_reply_in_flight_keeps_its_model(slow_dir: Path, tmp_path: Path) -> None:
    served = tmp_path / "served"
    copy_model(slow_dir, served)
    expected = microgpt.load(slow_dir).chat([{"role": "user", "content": "hello"}], max_tokens=300)

    async def scenario(server: Server) -> None:
        async with httpx2.AsyncClient(base_url=server.url, timeout=30, verify=False) as client:
            body = {"messages": HELLO, "max_tokens": 300}
            answer = asyncio.create_task(client.post("/microgpt/v1/chat", json=body))
            await server.until_metrics(microgpt_in_flight=1)
            microgpt.fit(["xxxx", "yyyy"], steps=10).save(served)
            server.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(server.wait_for_log, "model reloaded")
            assert not answer.done()
            assert (await client.get("/microgpt/v1/model")).json()["is_chat"] is False
            assert (await answer).json()["content"] == expected.content

    with running(served) as server:
        asyncio.run(scenario(server))


def save_writer(directory: Path, letter: str) -> None:
    """Save a model of three letters that writes one of them only."""
    microgpt.fit(["aby", *[letter * 15] * 20], steps=150, n_embd=8, n_head=2).save(directory)


async def ask_for_letters(
    client: httpx2.AsyncClient, model: str, seed: int
) -> tuple[str, str, str]:
    """Return the requested and the reported model, and the letters of its texts."""
    body = {"model": model, "max_tokens": 40, "temperature": 0}
    if seed % 3 == 2:
        response = await client.post(GENERATE, json={**body, "num_samples": 3})
        return model, model, "".join(set("".join(response.json()["samples"])))
    body |= {"n": 3, "stream": seed % 3 == 1}
    lines = (await client.post("/v1/completions", json=body)).text.split("\n\n")
    data = [line.removeprefix("data: ") for line in lines if line and "[DONE]" not in line]
    answers = list(map(json.loads, data))
    texts = "".join(choice["text"] for answer in answers for choice in answer["choices"])
    (reported,) = {answer["model"] for answer in answers}
    return model, reported, "".join(set(texts))


@pytest.mark.parametrize("n_reloads", [3, pytest.param(60, marks=pytest.mark.long)])
def test_no_answer_is_of_a_wrong_model(tmp_path: Path, n_reloads: int) -> None:
    for name in "ab":
        save_writer(tmp_path / "served" / name, name)
    for letter in "by":
        save_writer(tmp_path / letter, letter)

    async def scenario(client: httpx2.AsyncClient, server: Server) -> None:
        answers: list[tuple[str, str, str]] = []
        is_over = False

        async def ask(first: int) -> None:
            seed = first
            while not is_over:
                answers.append(await ask_for_letters(client, "ab"[seed % 2], seed))
                seed += 1

        async def wait_for_answers() -> None:
            enough = len(answers) + 4 * len(clients)
            while len(answers) < enough:
                assert not any(client.done() for client in clients)
                await asyncio.sleep(0.01)

        clients = [asyncio.create_task(ask(i)) for i in range(8)]
        await wait_for_answers()
        for i in range(n_reloads):
            copy_model(tmp_path / "yb"[i % 2], tmp_path / "served" / "b")
            server.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(server.wait_for_log, "model reloaded model=b", i + 1)
            await wait_for_answers()
        is_over = True
        await asyncio.gather(*clients)
        await client.aclose()
        seen = set(answers)
        assert seen == {("a", "a", "a"), ("b", "b", "b"), ("b", "b", "y")}

    with running(tmp_path / "served") as server:
        client = httpx2.AsyncClient(base_url=server.url, timeout=30, verify=False)
        asyncio.run(scenario(client, server))
        assert "Traceback" not in server.log


# ---------------------------------------------------------------- signals at any moment


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_signal_comes_too_early_or_too_late(names_dir: Path, workers: str) -> None:
    environment = {"MODEL_DIR": str(names_dir), "PORT": "0", "WORKERS": workers}
    with subprocess.Popen(
        [sys.executable, "-m", "microgpt_serve"],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        log = process.stderr.readline()
        assert "listens" in log, log
        is_ready = threading.Event()

        def read() -> None:
            nonlocal log
            for line in process.stderr or ():
                log += line
                if " ready " in line:
                    is_ready.set()

        reader = threading.Thread(target=read)
        reader.start()
        while process.poll() is None and not is_ready.wait(0.01):
            process.send_signal(signal.SIGHUP)
        number = signal.SIGTERM
        while process.poll() is None:  # every millisecond until nobody is left to be told
            process.send_signal(number)
            number = signal.SIGHUP if number == signal.SIGTERM else signal.SIGTERM
            time.sleep(0.001)
        reader.join()
    assert process.returncode == 0, log
    assert "died" not in log
    assert "Traceback" not in log


# ---------------------------------------------------------------- workers


@needs_linux
def test_a_worker_that_dies_is_replaced_by_one_with_the_same_default(
    names_dir: Path, tmp_path: Path
) -> None:
    copy_model(names_dir, tmp_path / "names")
    with running(tmp_path, Limits(short_life_seconds=0.0), workers=2) as server:
        copy_model(names_dir, tmp_path / "anew")
        first = set(pids_of_workers(server))
        assert len(first) == 2
        victim = first.pop()
        subprocess.run(["/bin/kill", "-KILL", str(victim)], check=True)
        server.wait_for_log("worker died, starting another status=-9")
        server.wait_until_ready(4)
        loaded = re.findall(r" ready .*model=(\w+)", server.log)
        assert loaded == ["names", "names", *["names", "anew"]]  # the default first
        now = set(pids_of_workers(server))
        assert len(now) == 2
        assert first < now
        assert victim not in now
        assert httpx2.post(server.url + GENERATE, json={}, verify=False).status_code == 200
        assert server.metric("microgpt_in_flight") == 0


@needs_linux
def test_a_worker_that_cannot_be_replaced_leaves_the_others_serving(
    names_dir: Path, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    copy_model(names_dir, served)
    with running(served, Limits(restart_seconds=0.1), workers=2) as server:
        (served / "meta.json").write_text("{}")
        victim = pids_of_workers(server)[0]
        subprocess.run(["/bin/kill", "-KILL", str(victim)], check=True)
        server.wait_for_log("worker died, starting another status=3")
        assert (
            httpx2.post(server.url + GENERATE, json={}, timeout=10, verify=False).status_code == 200
        )
        copy_model(names_dir, served)
        server.wait_until_ready(3)
        assert len(pids_of_workers(server)) == 2


@needs_linux
def test_a_worker_that_does_not_stop_is_killed(names_dir: Path) -> None:
    with running(names_dir, Limits(kill_seconds=0.2), workers=2, grace_period=0.1) as server:
        victim = pids_of_workers(server)[0]
        os.kill(victim, signal.SIGSTOP)
        assert seconds_to_end(server) < 3
        assert "killing a worker that did not stop" in server.log
        with pytest.raises(ProcessLookupError):
            os.kill(victim, 0)


@needs_linux
def test_workers_end_if_their_supervisor_is_killed(names_dir: Path) -> None:
    with running(names_dir, workers=2) as server:
        workers = pids_of_workers(server)
        url = server.url
        server.process.kill()
        server.process.wait()
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                time.sleep(0.05)
                try:
                    httpx2.get(f"{url}/livez", verify=False)
                except httpx2.TransportError:  # one may get in just before the end
                    break
            else:
                raise AssertionError(server.log)
        finally:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert "Traceback" not in server.log


def test_each_worker_reports_the_metrics_of_all(names_dir: Path) -> None:
    with running(names_dir, workers=2) as server:
        for _ in range(30):
            httpx2.post(server.url + GENERATE, json={}, verify=False)
        seen = {server.metric("microgpt_completion_tokens_total") for _ in range(6)}
        assert len(seen) == 1
        requests = httpx2.get(f"{server.url}/metrics", verify=False).text
        line = f'microgpt_requests_total{{method="POST",route="{GENERATE}",status="200"}} 30.0'
        assert line in requests
