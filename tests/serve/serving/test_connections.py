"""Clients that are slow, greedy, many or gone, and requests that take too long."""

import asyncio
import json
import random
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from faults import needs_linux
from microgpt_serve.serving.limits import Limits
from serve.service import Server, running

GENERATE = "/microgpt/v1/generate"
NATIVE_CHAT = "/microgpt/v1/chat"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
MIB = 1 << 20
HEAD = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def quick(names_dir: Path) -> Iterator[Server]:
    with running(names_dir) as server:
        yield server


@pytest.fixture(scope="module")
def slow(slow_dir: Path) -> Iterator[Server]:
    with running(slow_dir, threads=2, max_queue=3) as server:
        yield server


# ---------------------------------------------------------------- slow clients


async def seconds_until_dropped(port: int, first: bytes, drip: bytes) -> tuple[float, bytes]:
    """Send `first`, then `drip` ten times a second; return how long that works, and the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = time.monotonic()

    async def send() -> None:
        writer.write(first)
        while True:
            await asyncio.sleep(0.1)
            writer.write(drip)
            await writer.drain()

    sending = asyncio.create_task(send())
    answer = b""
    try:
        async with asyncio.timeout(15):
            while piece := await reader.read(1000):
                answer += piece
    except ConnectionError:
        pass
    finally:
        sending.cancel()
        writer.close()
    return time.monotonic() - start, answer


def test_slow_headers_and_bodies_are_dropped_while_others_are_served(names_dir: Path) -> None:
    slow_clients = {
        "nothing at all": (b"", b""),
        "half a line": (b"POST /micro", b""),
        "headers that drip": (HEAD.encode(), b"X-A: b\r\n"),
        "a body that never comes": (f"{HEAD}Content-Length: 100\r\n\r\n".encode(), b""),
        "a body that drips": (f"{HEAD}Content-Length: 100\r\n\r\n".encode(), b" "),
        "chunks that drip": (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode(), b"1\r\n \r\n"),
        "a body nobody reads": (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", b""),
        "one to a GET": (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n", b" "),
    }

    async def scenario(server: Server) -> list[tuple[float, bytes]]:
        tasks = [
            asyncio.create_task(seconds_until_dropped(server.port, *sent))
            for sent in slow_clients.values()
            for _ in range(5)
        ]
        async with httpx2.AsyncClient(base_url=server.url, verify=False) as client:
            for _ in range(20):
                start = time.monotonic()
                assert (await client.post(GENERATE, json={})).status_code == 200
                assert time.monotonic() - start < 1
        return await asyncio.gather(*tasks)

    limits = Limits(header_seconds=1.0, body_seconds=1.5)
    with running(names_dir, limits) as server:
        results = asyncio.run(scenario(server))
    for i, name in enumerate(slow_clients):
        for seconds, answer in results[5 * i : 5 * i + 5]:
            assert seconds < 3, name
            if "body that" in name or "chunks" in name:
                assert answer.startswith(b"HTTP/1.1 408"), name


# ---------------------------------------------------------------- large bodies


def test_bodies_above_1_mib_are_too_large_however_they_come(quick: Server) -> None:
    url, headers = quick.url + GENERATE, {"Content-Type": "application/json"}

    def pieces(n_bytes: int) -> Iterator[bytes]:
        yield b'{"prompt": ""' + b" " * 100
        for _ in range(n_bytes // 65_536):
            yield b" " * 65_536
        yield b"}"

    body = b"{" + b" " * (MIB - 2) + b"}"
    assert httpx2.post(url, content=body, headers=headers, verify=False).status_code == 200
    for path in (GENERATE, CHAT):
        too_large = httpx2.post(
            quick.url + path, content=body + b" ", headers=headers, verify=False
        )
        assert too_large.status_code == 413
    assert "more than 1048576 bytes" in str(too_large.json()["error"]["message"])
    assert (
        httpx2.post(url, content=pieces(MIB - 65_536), headers=headers, verify=False).status_code
        == 200
    )
    assert httpx2.post(url, content=pieces(MIB), headers=headers, verify=False).status_code == 413


def test_a_body_that_says_it_is_huge_is_refused_at_once(quick: Server) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), 5) as client:
        client.sendall(f"{HEAD}Content-Length: 10000000000\r\n\r\n{{".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD.replace(GENERATE, "/x"), 404),
        (HEAD.replace("/json", "/xml"), 415),
        (HEAD + "Content-Encoding: gzip\r\n", 415),
    ],
)
def test_an_answer_that_waits_for_no_body_says_that_the_connection_ends(
    quick: Server, head: str, status: int
) -> None:
    """Otherwise a client sends its next request into a closed connection, and gets no answer."""
    with socket.create_connection(("127.0.0.1", quick.port), 10) as client:
        client.sendall(f"{head}Content-Length: 2\r\n\r\n".encode())
        answer = client.recv(10_000)
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert b"connection: close" in answer.lower()
    read = httpx2.post(quick.url + GENERATE, json=[], verify=False)
    assert (read.status_code, "connection" in read.headers) == (400, False)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    ],
)
def test_bytes_that_are_no_http_do_no_harm(quick: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), 10) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        try:
            answer = client.recv(1000)
        except ConnectionResetError:
            answer = b""
    assert not answer.startswith(b"HTTP/1.1 2")
    assert not answer.startswith(b"HTTP/1.1 5")
    assert httpx2.get(f"{quick.url}/livez", verify=False).status_code == 200
    assert "Traceback" not in quick.log


@pytest.mark.parametrize("path", [GENERATE, "/livez", "/x"])
def test_request_whose_end_is_ambiguous_is_the_last_of_its_connection(
    quick: Server, path: str
) -> None:
    head = HEAD.replace(GENERATE, path)
    hidden = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    ambiguous = f"{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
    with socket.create_connection(("127.0.0.1", quick.port), 10) as client:
        client.sendall(ambiguous.encode())
        answer = b""
        while piece := client.recv(10_000):  # until the server closes the connection
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"expected Content-Length or Transfer-Encoding, not both" in answer


# ---------------------------------------------------------------- too many, too long


@needs_linux
def test_without_file_descriptors_it_logs_little_and_recovers(names_dir: Path) -> None:
    with running(names_dir, Limits(header_seconds=2.0)) as server:
        n_open = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (n_open + 4,) * 2)
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            server.wait_for_log("cannot accept connections error='Too many open files'")
            time.sleep(1.5)
            assert server.log.count("cannot accept connections") <= 3
        assert "Traceback" not in server.log
        assert httpx2.get(f"{server.url}/livez", timeout=10, verify=False).status_code == 200


def test_a_full_queue_turns_requests_away_and_shows_in_readiness(slow: Server) -> None:
    async def scenario() -> None:
        async with httpx2.AsyncClient(base_url=slow.url, timeout=30, verify=False) as client:
            body = {"messages": HELLO}
            asking = [asyncio.create_task(client.post(NATIVE_CHAT, json=body)) for _ in range(5)]
            await slow.until_metrics(microgpt_in_flight=2, microgpt_queued=3)
            ready = await client.get("/readyz")
            assert (ready.status_code, ready.text) == (503, "busy")
            rejected = slow.metric("microgpt_rejected_total")
            for path, stream in ((NATIVE_CHAT, False), (CHAT, False), (CHAT, True)):
                answer = await client.post(path, json={**body, "stream": stream})
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "busy"
            assert slow.metric("microgpt_rejected_total") == rejected + 3
            for task in asking:
                task.cancel()
            await slow.until_metrics(microgpt_in_flight=0, microgpt_queued=0)
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(scenario())


def test_requests_and_their_work_end_at_the_deadline(slow_dir: Path) -> None:
    with running(slow_dir, threads=1, request_timeout=0.3) as server:

        async def scenario() -> None:
            async with httpx2.AsyncClient(base_url=server.url, timeout=30, verify=False) as client:
                start = time.monotonic()
                asking = [client.post(NATIVE_CHAT, json={"messages": HELLO}) for _ in range(3)]
                answers = await asyncio.gather(*asking)
                assert time.monotonic() - start < 1.5
                for answer in answers:  # one of them was in work, two were waiting
                    assert answer.status_code == 503
                    assert answer.json() == {"error": "the request took longer than 0.3 seconds"}
                    assert "retry-after" in answer.headers
                await server.until_metrics(microgpt_in_flight=0, microgpt_queued=0)
                body = {"messages": HELLO, "max_tokens": 1}
                assert (await client.post(NATIVE_CHAT, json=body)).status_code == 200

        asyncio.run(scenario())


# ---------------------------------------------------------------- clients that leave


async def leave_after(port: int, body: bytes, path: str, seconds: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = HEAD.replace(GENERATE, path)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(1000):
                pass
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("path", "stream"), [(NATIVE_CHAT, b"false"), (CHAT, b"false"), (CHAT, b"true")]
)
def test_a_disconnect_cancels_the_generation(slow: Server, path: str, stream: bytes) -> None:
    body = b'{"messages": [{"role": "user", "content": "hello"}], "stream": ' + stream + b"}"

    async def scenario() -> None:
        asking = asyncio.create_task(leave_after(slow.port, body, path, 60))
        await slow.until_metrics(microgpt_in_flight=1)
        asking.cancel()
        start = time.monotonic()
        await slow.until_metrics(microgpt_in_flight=0, microgpt_queued=0)
        assert time.monotonic() - start < 1  # a whole reply takes three times as long

    asyncio.run(scenario())


async def leave_at_random(server: Server, n_clients: int, seed: int = 7) -> None:
    rng = random.Random(seed)
    together = asyncio.Semaphore(20)

    async def one() -> None:
        async with together:
            path = rng.choice([NATIVE_CHAT, CHAT, GENERATE, "/v1/completions"])
            stream = rng.choice([b"true", b"false"]) if path.startswith("/v1") else b"false"
            message = b'"messages": [{"role": "user", "content": "hello"}]'
            body = b"{" + message + b', "num_samples": 9, "stream": ' + stream + b"}"
            await leave_after(server.port, body, path, rng.expovariate(50))

    await asyncio.gather(*(one() for _ in range(n_clients)))


async def check_that_all_is_over(server: Server, *, is_json: bool = False) -> None:
    await server.until_metrics(
        microgpt_in_flight=0,
        microgpt_queued=0,
        microgpt_batch_size=0,
        microgpt_tokens_per_second=0,
    )
    log = server.log
    assert "Traceback" not in log
    assert {type(json.loads(line)) for line in log.splitlines() if is_json} <= {dict}


async def leave_and_check(server: Server, n_clients: int) -> None:
    await leave_at_random(server, n_clients)
    await check_that_all_is_over(server)
    assert server.metric("microgpt_requests_total") >= n_clients / 2


def test_random_disconnects_leave_gauges_at_zero(chat_dir: Path) -> None:
    with running(chat_dir, threads=2, max_queue=3) as server:
        asyncio.run(leave_and_check(server, 100))


@pytest.mark.long
def test_1000_random_disconnects_leave_gauges_at_zero(slow_dir: Path) -> None:
    with running(slow_dir, threads=2, max_queue=3) as server:
        asyncio.run(leave_and_check(server, 1000))


# ---------------------------------------------------------------- for long


def kib_in_use(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0])


async def ask(server: Server, requests: list[bytes], n_requests: int) -> None:
    """Send requests over 16 connections at a time, every answer read to its end."""

    port = server.port  # found in the log once, which grows

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for i in range(n_requests // 16):
            if i % 500 == 499:  # the server takes 1000 over one connection
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(requests[i % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            assert int(head[9:12]) in {200, 400, 404, 503}
            if b"chunked" in head:
                await reader.readuntil(b"0\r\n\r\n")
            else:
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
        writer.close()

    await asyncio.gather(*(one() for _ in range(16)))


def mixed_requests() -> list[bytes]:
    def post(path: str, body: bytes) -> bytes:
        head = HEAD.replace(GENERATE, path)
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    hello = b'"messages": [{"role": "user", "content": "hello"}]'
    return [
        post(GENERATE, b'{"num_samples": 1}'),
        post(GENERATE, b'{"num_samples": 9}'),
        post(GENERATE, b'{"num_samples": -1}'),
        post(NATIVE_CHAT, b"{" + hello + b"}"),
        post(CHAT, b"{" + hello + b', "stream": true, "max_tokens": 5}'),
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
    ]


@needs_linux
@pytest.mark.long
def test_100000_requests_leave_no_memory_behind(chat_dir: Path) -> None:
    with running(chat_dir, prefix_mb=1) as server:
        asyncio.run(ask(server, mixed_requests(), 10_000))
        before = kib_in_use(server)
        asyncio.run(ask(server, mixed_requests(), 90_000))
        grown = kib_in_use(server) - before
    print(f"{grown} KiB more after 100,000 requests than after 10,000")  # noqa: T201 - hatch run long -s
    assert grown <= 2 * 1024


@needs_linux
@pytest.mark.long
def test_two_minutes_of_load_and_disconnects_leave_nothing_behind(chat_dir: Path) -> None:
    async def load(seconds: float) -> None:
        end, seed = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            seed += 1
            await asyncio.gather(
                ask(server, mixed_requests(), 1600), leave_at_random(server, 300, seed)
            )
        await check_that_all_is_over(server, is_json=True)

    with running(chat_dir, prefix_mb=1, log_format="json") as server:
        asyncio.run(load(20))
        before = kib_in_use(server)
        asyncio.run(load(100))
        grown = kib_in_use(server) - before
    print(f"{grown} KiB more after two minutes than after 20 s")  # noqa: T201 - hatch run long -s
    assert grown <= 2 * 1024
