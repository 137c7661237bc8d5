"""pyktls serve: one connection over a transport that does what it is told.

What depends on the order of callbacks is tested here, where nobody is faster; with real transports
in test_serve_server.py.
"""

from __future__ import annotations

import asyncio
import io
import socket
import types

import pytest

from pyktls.serve import Limits
from pyktls.serve.access_log import AccessLog
from pyktls.serve.connection import Connection
from pyktls.serve.deadlines import Deadline
from pyktls.serve.responses import Response
from pyktls.serve.sending import Outcome, Sender
from pyktls.serve.service import BUFFER_SIZE, Service
from pyktls.serve.site import Site
from support.serving import get

SMALL = get("/small.txt")


class Transport:
    """As asyncio's own TLS has them, but it takes and gives what the test says."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.written = bytearray()
        self.writes = 0
        self.reading = True
        self.closing = False
        self.fails = False  # the next write

    def get_extra_info(self, name):
        return {"peername": ("127.0.0.1", 1), "socket": self.near}.get(name)

    def set_write_buffer_limits(self, high, low):
        pass

    def is_reading(self):
        return self.reading

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return self.closing

    def write(self, data):
        if self.fails:
            self.closing = True
        if not self.closing:
            self.written += data
            self.writes += 1

    def close(self):
        assert not self.closing  # asyncio's forgets its connection at the second time
        self.closing = True

    def abort(self):
        self.closing = True

    def discard(self):
        self.near.close()
        self.far.close()


class Served:
    """A connection, its transport, and what has become of them."""

    def __init__(self, root) -> None:
        self.log = io.StringIO()
        self.service = Service(Site(root), Limits(), AccessLog(self.log))
        self.transport = Transport()
        self.connection = Connection(self.service)
        self.connection.connection_made(self.transport)

    def receive(self, data):
        self.service.buffer[: len(data)] = data
        self.connection.buffer_updated(len(data))

    async def until_quiet(self):
        for _ in range(100):
            await asyncio.sleep(0)

    def answered(self):
        return self.transport.written.count(b"HTTP/1.1 200 ")

    def logged(self):
        """The sizes."""
        return [line.rsplit(" ", 1)[1] for line in self.log.getvalue().splitlines()]

    def held(self):
        return len(self.connection._requests._connection.trailing_data[0])

    def end(self):
        self.connection.connection_lost(None)
        self.service.site.close()
        self.transport.discard()


def served(test):
    """Run a coroutine function as a test, with a connection to a server of one small file."""

    def run(tmp_path, **values):
        (tmp_path / "small.txt").write_bytes(b"0123456789")

        async def main():
            errors = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: errors.append(context))
            one = Served(tmp_path)
            try:
                await test(one, **values)
            finally:
                one.end()
            assert errors == []

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@served
async def test_what_is_held_of_requests_before_their_turn_is_bounded(one):
    """The client sends as fast as anything is received."""
    limits = one.service.limits
    count = 5 * BUFFER_SIZE // (2 * len(SMALL))
    requests = memoryview(SMALL * count)
    most = 0
    for _ in range(2 * count):
        before = one.transport.writes
        if one.transport.reading:
            one.receive(requests[:BUFFER_SIZE])
            requests = requests[BUFFER_SIZE:]
        most = max(most, one.held())
        await asyncio.sleep(0)
        # Others have their turn, too.
        assert one.transport.writes - before <= 2
    assert BUFFER_SIZE // 2 < most <= limits.target + limits.fields_size + BUFFER_SIZE
    assert one.answered() == count


@served
async def test_a_request_behind_others_that_is_not_whole_is_received_to_its_end(one):
    for size in range(1, len(SMALL)):
        before = one.answered()
        one.receive(SMALL * 2 + SMALL[:size])
        assert not one.transport.reading
        await one.until_quiet()
        assert one.transport.reading
        one.receive(SMALL[size:])
        assert one.answered() == before + 3


@served
async def test_empty_lines_between_requests(one):
    """As in front of one that nobody has to wait for; more than one is too much."""
    one.receive(SMALL + b"\r\n" + SMALL + b"\r\n")
    await one.until_quiet()
    assert one.logged() == ["10", "10"]
    assert one.transport.reading
    one.receive(b"\r\n" + SMALL + b"\r\n" + SMALL[:5])
    await one.until_quiet()
    one.receive(SMALL[5:] + b"\r\n")
    one.connection.eof_received()
    await one.until_quiet()
    assert one.logged() == ["10"] * 4
    assert one.transport.closing


@served
async def test_more_than_one_empty_line_is_no_request(one):
    one.receive(SMALL + b"\r\n\r\n" + SMALL)
    await one.until_quiet()
    assert b"HTTP/1.1 400 " in one.transport.written
    assert one.answered() == 1


@served
async def test_requests_that_are_here_at_the_end_are_answered(one):
    """Where a transport that reads on brings both at once."""
    one.connection._sender.half_closes = True
    one.receive(SMALL * 5)
    assert one.answered() == 1
    assert one.connection.eof_received() is True
    await one.until_quiet()
    assert one.answered() == 5
    assert one.logged() == ["10"] * 5
    assert one.transport.closing


@served
async def test_requests_that_are_here_at_the_end_are_given_up_where_nothing_can_be_sent(one):
    one.receive(SMALL * 5)
    assert one.connection.eof_received() is False
    one.transport.close()
    answered = one.answered()
    await one.until_quiet()
    assert one.answered() == answered < 5
    assert one.logged() == ["10"] * answered


@pytest.mark.parametrize("half_closes", [False, True])
def test_the_end_while_a_response_is_on_its_way(tmp_path, half_closes):
    """Where the transport closes in any case it is not asked to stay: it would log a warning."""

    @served
    async def run(one):
        one.connection._sender.half_closes = half_closes
        one.connection.pause_writing()
        one.receive(SMALL)
        assert one.connection.eof_received() is half_closes
        one.connection.resume_writing()
        await one.until_quiet()
        assert one.logged() == ["10"]
        assert one.transport.closing

    run(tmp_path)


@served
async def test_a_write_that_fails_is_not_logged_as_sent(one):
    one.receive(SMALL)
    one.transport.fails = True
    one.receive(SMALL * 2)
    one.connection.connection_lost(None)
    await one.until_quiet()
    assert one.logged() == ["10", "-"]


@pytest.mark.parametrize("count", [0, 10])
def test_nothing_is_written_to_a_transport_that_is_closing(count):
    """asyncio's take it without a word."""
    outcomes = []
    loop = types.SimpleNamespace(time=lambda: 0.0)
    transport = Transport()
    sender = Sender(loop, transport, Deadline(loop, lambda: None), 1.0, outcomes.append)
    sender.send(b"header", Response(200, body=bytes(count), count=count))
    assert outcomes == [Outcome.SENT]
    transport.close()
    transport.write = lambda data: pytest.fail(f"it is written to: {data!r}")
    sender.send(b"header", Response(200, body=bytes(count), count=count))
    assert outcomes == [Outcome.SENT, Outcome.FAILED]
    transport.discard()


@served
async def test_what_is_unread_when_asyncios_own_tls_closes_is_read_before(one):
    """It would break off: the client might lose the response."""
    one.receive(get("/small.txt", "Connection: close") + SMALL)
    assert one.answered() == 1
    assert not one.transport.closing
    assert one.transport.reading
    one.receive(bytes(BUFFER_SIZE))
    assert not one.transport.closing
    one.connection.eof_received()
    assert one.transport.closing
    assert one.logged() == ["10"]


@served
async def test_the_end_after_the_last_request_is_at_once(one):
    one.receive(get("/small.txt", "Connection: close"))
    assert one.transport.closing


@served
async def test_a_stop_reads_what_is_unread(one):
    one.receive(SMALL * 2)
    one.connection.stop()
    assert one.transport.reading
    assert not one.transport.closing
    await one.until_quiet()
    assert one.logged() == ["10"]
    one.connection.eof_received()
    assert one.transport.closing
