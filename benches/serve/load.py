"""Load from a process of its own: clients that ask, wait for the answer, and ask again.

It knows nothing of hybridrec and reads no more of an answer than it must, so that one core can
keep a server busy:

    python benches/serve/load.py < plan.json > found.json
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

try:
    import uvloop
except ImportError:
    uvloop = None  # its asyncio will do

NUMBER = "{number}"
"""In a body or a path: takes the number of the request, so that ids can be unique."""
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: *([\d.]+)", re.IGNORECASE)
_DEGRADED = re.compile(rb'"degraded": ?"(\w+)"')
_MOST_ERRORS = 20


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request as it goes over the wire, but for its number."""

    path: str
    body: str | None = None
    method: str = "POST"

    @property
    def numbered(self) -> bool:
        """Whether every request of it is another one."""
        return NUMBER in self.path or (self.body is not None and NUMBER in self.body)

    def raw(self, host: str, key: str | None, number: int = 0) -> bytes:
        """The bytes of one request."""
        told = str(number)
        lines = [f"{self.method} {self.path.replace(NUMBER, told)} HTTP/1.1", f"Host: {host}"]
        if key is not None:
            lines.append(f"Authorization: Bearer {key}")
        body = b""
        if self.body is not None:
            body = self.body.replace(NUMBER, told).encode()
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do to a server.

    Attributes:
        port: of 127.0.0.1.
        calls: taken one after the other, from the first again after the last.
        clients: connections; each has one request under way.
        seconds: to measure for; None until ``count`` are answered.
        count: requests in all; None for as long as ``seconds``.
        warm_up: seconds of the same before that, which are not measured.
        key: an API key.
        patient: a client that was told to come again later does.
        window: seconds that the figures over time go by; 0 leaves them out.
        keep: return the bodies of the answers by number of the request.
        timeout: seconds without an answer that are an error.
    """

    port: int
    calls: Sequence[Call]
    clients: int = 1
    seconds: float | None = None
    count: int | None = None
    warm_up: float = 0.0
    key: str | None = None
    patient: bool = True
    window: float = 0.0
    keep: bool = False
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.count is None):
            raise ValueError("a plan has seconds or a count, and not both")


@dataclass(kw_only=True)
class Found:
    """What came of a plan.

    Attributes:
        seconds: from the first request measured to the last answer.
        cpu: seconds of this process for them, warm-up included.
        sent: answers in all, whatever they were.
        milliseconds: of each answer with status 200, in no order to rely on.
        statuses: answers by status.
        degraded: answers by what they left out for want of time.
        failed: requests without an answer.
        errors: the first of them, and of the answers that are neither 2xx nor 429, in words.
        windows: figures over time: {"from", "answers", "p50", "p99"}.
        bodies: with ``keep``, by number of the request.
    """

    seconds: float = 0.0
    cpu: float = 0.0
    sent: int = 0
    milliseconds: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    degraded: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    windows: list[dict[str, float]] = field(default_factory=list)
    bodies: dict[str, Any] = field(default_factory=dict)

    @property
    def right(self) -> int:
        """Answers with what was asked for."""
        return self.statuses.get("200", 0)


def run(plan: Plan) -> Found:
    """What the process finds that does as ``plan`` says.

    Raises:
        RuntimeError: the process failed; says what it wrote.
    """
    most = (plan.seconds or 3600.0) + plan.warm_up + plan.timeout + 60.0
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(asdict(plan)).encode(),
        capture_output=True,
        timeout=most,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the load ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return Found(**json.loads(done.stdout))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie, by nearest rank; NaN of none."""
    if not values:
        return float("nan")
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


class _Connection(asyncio.Protocol):
    """One connection that is kept, and at most one request on it."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self._transport: Any = None  # uvloop's is not of asyncio's class
        self.since = 0.0

    @property
    def waits(self) -> bool:
        return self._answer is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, raw: bytes) -> asyncio.Future[tuple[int, bytes, bytes]]:
        """Status, head and body of the answer."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self.since = time.perf_counter()
        self._transport.write(raw)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_END)
        if end < 0:
            return
        head = bytes(self._received[: end + 2])
        length = _LENGTH.search(head)
        size = 0 if length is None else int(length[1])
        begin = end + len(_END)
        if len(self._received) < begin + size:
            return
        body = bytes(self._received[begin : begin + size])
        del self._received[: begin + size]
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if length is None:
            answer.set_exception(ValueError("an answer without Content-Length"))
        else:
            answer.set_result((int(head[9:12]), head, body))

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(error or ConnectionResetError("the server closed the connection"))

    def fail(self, error: Exception) -> None:
        """Give up on the answer, and on the connection."""
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
        if self._transport is not None:
            self._transport.close()


class _Load:
    """The clients of a plan and what they have seen."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._raw: list[bytes | None] = [None] * len(plan.calls)
        self._numbers: Iterator[int] = iter(itertools.count())
        self._connections: list[_Connection] = []
        self._found = Found()
        self._begin = self._end = float("inf")
        self._last = 0.0
        self._statuses: Counter[int] = Counter()
        self._degraded: Counter[str] = Counter()
        self._windows: dict[int, list[float]] = {}

    async def run(self) -> Found:
        plan, found = self._plan, self._found
        self._connections = [await self._connected() for _ in range(plan.clients)]
        cpu = time.process_time()
        self._begin = self._last = time.perf_counter() + plan.warm_up
        if plan.seconds is not None:
            self._end = self._begin + plan.seconds
        watch = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._client(place) for place in range(plan.clients)))
        watch.cancel()
        found.cpu = time.process_time() - cpu
        found.seconds = self._last - self._begin
        found.statuses = {str(status): n for status, n in sorted(self._statuses.items())}
        found.degraded = dict(self._degraded)
        found.sent = sum(self._statuses.values())
        found.windows = [
            {
                "from": number * plan.window,
                "answers": len(taken),
                "p50": round(percentile(taken, 0.50), 3),
                "p99": round(percentile(taken, 0.99), 3),
            }
            for number, taken in sorted(self._windows.items())
        ]
        return found

    async def _connected(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._plan.port)
        return connection

    async def _reconnect(self, place: int) -> None:
        """Try until the plan ends: a server may be on its way back."""
        while time.perf_counter() < self._end:
            try:
                self._connections[place] = await self._connected()
                return
            except OSError:
                await asyncio.sleep(0.5)

    async def _client(self, place: int) -> None:
        plan = self._plan
        while time.perf_counter() < self._end:
            number = next(self._numbers)
            if plan.count is not None and number >= plan.count:
                return
            began = time.perf_counter()
            try:
                status, head, body = await self._connections[place].ask(self._raw_of(number))
            except (OSError, ValueError, TimeoutError) as error:
                self._fails(f"{type(error).__name__}: {error}")
                self._connections[place].fail(error)
                await self._reconnect(place)
                continue
            ended = time.perf_counter()
            # Those that end while it is measured, whenever they began: to leave out what was under
            # way would make slow answers fewer than they are.
            if ended >= self._begin and (plan.count is not None or ended <= self._end):
                self._saw(number, status, body, began, ended)
            again = _RETRY.search(head) if status in (429, 503) else None
            if again is not None and plan.patient:
                await asyncio.sleep(float(again[1]))

    def _raw_of(self, number: int) -> bytes:
        place = number % len(self._plan.calls)
        made = self._raw[place]
        if made is None:
            call = self._plan.calls[place]
            made = call.raw(f"127.0.0.1:{self._plan.port}", self._plan.key, number)
            if not call.numbered:
                self._raw[place] = made
        return made

    def _saw(self, number: int, status: int, body: bytes, began: float, ended: float) -> None:
        found, plan = self._found, self._plan
        self._last = max(self._last, ended)
        self._statuses[status] += 1
        if plan.keep:
            found.bodies[str(number)] = json.loads(body)
        if status != 200:
            if status != 429:
                self._complain(f"{status}: {body[:300].decode(errors='replace')}")
            return
        taken = round(1000 * (ended - began), 3)
        if plan.window:
            window = int((ended - self._begin) / plan.window)
            self._windows.setdefault(window, []).append(taken)
        else:
            found.milliseconds.append(taken)
        if (less := _DEGRADED.search(body)) is not None:
            self._degraded[less[1].decode()] += 1

    def _fails(self, what: str) -> None:
        self._found.failed += 1
        self._complain(what)

    def _complain(self, what: str) -> None:
        if len(self._found.errors) < _MOST_ERRORS:
            self._found.errors.append(what)

    async def _watch(self) -> None:
        """Give up on what takes too long; one look a second costs less than a timer a request."""
        while True:
            await asyncio.sleep(1.0)
            late = time.perf_counter() - self._plan.timeout
            for connection in self._connections:
                if connection.waits and connection.since < late:
                    connection.fail(TimeoutError(f"no answer in {self._plan.timeout:g} s"))


def main() -> None:
    told = json.load(sys.stdin)
    plan = Plan(**{**told, "calls": [Call(**call) for call in told["calls"]]})
    start = asyncio.run if uvloop is None else uvloop.run
    json.dump(asdict(start(_Load(plan).run())), sys.stdout)


if __name__ == "__main__":
    main()
