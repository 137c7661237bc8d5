"""What holds for pyktls.aio whoever carries the connection: tests for a fixture ``ground``.

The module that takes them over brings the fixture (support/aio.py): tests/kernel with the kernel
as the carrier, tests/unit with OpenSSL and with asyncio's own TLS, tests/freebsd with the other
kernel.
``own_ground`` is for what asyncio's own TLS does otherwise: it is never the carrier there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import io
import os
import random
import socket
import ssl
import struct
import tempfile
import threading
import time
import warnings
from asyncio import sslproto
from typing import Any

import pytest

import pyktls
from pyktls import aio

from . import tls
from .aio import (
    ASYNCIO,
    KERNEL,
    LOOPS,
    TIMEOUT,
    Cut,
    Ground,
    closed,
    in_thread,
    nothing_left,
    plain_client,
    port_of,
    stop,
)
from .probing import open_descriptors

MiB = 1 << 20


@pytest.fixture(params=[tls.TLS_1_2, tls.TLS_1_3], ids=["TLS1.2", "TLS1.3"])
def version(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=LOOPS)
def loop_name(request: pytest.FixtureRequest) -> Any:
    return request.param


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, until the end."""
    try:
        while data := await reader.read(100_000):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


# ---- streams ---------------------------------------------------------------------------------


def test_data_both_ways(ground):
    async def main():
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context) as server:
            reader, writer = await ground.connect(port_of(server), client)
            data = pattern(3 * MiB)

            async def send():
                for begin in range(0, len(data), 70_001):
                    writer.write(data[begin : begin + 70_001])
                    await writer.drain()

            sending = asyncio.create_task(send())
            assert await reader.readexactly(len(data)) == data
            await sending
            await closed(writer)

    ground.run(main)


def test_the_peer_is_an_ordinary_tls_client(ground):
    async def main():
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context) as server:

            def talk():
                with plain_client(port_of(server), client) as sock:
                    sock.sendall(b"some" * 10_000)
                    data = b""
                    while len(data) < 40_000:
                        data += sock.recv(65536)
                    return data

            assert await in_thread(talk) == b"some" * 10_000

    ground.run(main)


def test_what_is_known_of_the_handshake(ground):
    async def main():
        seen = {}
        told = asyncio.Event()
        names = ("peername", "sockname", "cipher", "compression", "peercert", "sslcontext")

        async def serve(reader, writer):
            seen.update({name: writer.get_extra_info(name) for name in names})
            about = writer.get_extra_info("ssl_object")
            seen["alpn"] = about.selected_alpn_protocol()
            told.set()
            await reader.read()
            await closed(writer)

        client, server_context = ground.contexts(client_certificate=True)
        client.set_alpn_protocols(["h2", "http/1.1"])
        server_context.set_alpn_protocols(["http/1.1"])
        async with ground.server(serve, server_context) as server:
            _, writer = await ground.connect(port_of(server), client)
            about = writer.get_extra_info("ssl_object")
            name = "TLSv1.3" if ground.version == tls.TLS_1_3 else "TLSv1.2"
            assert about.version() == name
            assert about.selected_alpn_protocol() == "http/1.1" == await told_of(told, seen, "alpn")
            assert writer.get_extra_info("cipher") == seen["cipher"] == about.cipher()
            assert writer.get_extra_info("cipher")[1] == name
            assert writer.get_extra_info("compression") is None
            assert writer.get_extra_info("sslcontext") is client is about.context
            assert seen["sslcontext"] is server_context
            assert writer.get_extra_info("sockname") == seen["peername"]
            assert writer.get_extra_info("peername") == seen["sockname"]
            assert ("DNS", tls.HOST) in writer.get_extra_info("peercert")["subjectAltName"]
            assert seen["peercert"] == writer.get_extra_info("peercert")
            assert about.getpeercert(True) == ssl.PEM_cert_to_DER_cert(
                tls.certificate().cert_chain_pems[0].bytes().decode()
            )
            assert about.server_side is False
            assert about.server_hostname == tls.HOST
            assert about.session_reused is False
            assert about.pending() == 0
            if ground.version == tls.TLS_1_2:
                assert len(about.get_channel_binding()) == 12
            with pytest.raises(ValueError, match="tls-nothing"):
                about.get_channel_binding("tls-nothing")
            sock = writer.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert writer.get_extra_info("nothing", "default") == "default"
            status = writer.get_extra_info("ktls")
            if not ground.in_transport:
                assert status is None
            elif ground.carrier == KERNEL:
                assert status.tx
                assert status.rx
                assert status.refusal is None
            else:
                assert not status.tx
                assert not status.rx
                assert "refused for the test" in str(status.refusal)
            await closed(writer)

    async def told_of(told, seen, name):
        await told.wait()
        return seen[name]

    ground.run(main)


def test_what_an_sni_callback_sets_is_known(ground):
    async def main():
        told = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            about = writer.get_extra_info("ssl_object")
            told.set_result((about, writer.get_extra_info("sslcontext")))
            await echo(reader, writer)

        client, server_context = ground.contexts()
        other = ground.contexts()[1]

        def chosen(tls_object, name, context):
            assert context is server_context
            tls_object.tenant = name
            tls_object.context = other

        server_context.sni_callback = chosen
        if ground.carrier == KERNEL:
            pyktls.watch(other)
        async with ground.server(serve, server_context) as server:
            _, writer = await ground.connect(port_of(server), client)
            about, sslcontext = await told
            assert about.tenant == tls.HOST
            assert about.context is other
            assert sslcontext is server_context
            await closed(writer)

    ground.run(main)


def test_what_is_known_after_the_end(ground):
    """For instance to a program that writes its log then."""

    def known(writer):
        about = writer.get_extra_info("ssl_object")
        return {
            "cipher": writer.get_extra_info("cipher"),
            "peercert": writer.get_extra_info("peercert"),
            "alpn": about.selected_alpn_protocol(),
            "certificate": about.getpeercert(True),
            "version": about.version(),
        }

    async def main():
        client, server_context = ground.contexts()
        client.set_alpn_protocols(["http/1.1"])
        server_context.set_alpn_protocols(["http/1.1"])
        async with ground.server(echo, server_context) as server:
            reader, writer = await ground.connect(port_of(server), client)
            writer.write(b"x")
            await reader.readexactly(1)
            before = known(writer)
            assert all(before.values())
            await closed(writer)
            await asyncio.sleep(0)
            assert known(writer) == before
            assert writer.get_extra_info("ssl_object").session is not None
            assert writer.get_extra_info("ssl_object").pending() == 0

    ground.run(main)


def test_context_variables(ground):
    """What connection_made sets stays there: neither the caller nor the other callbacks see it."""
    variable = contextvars.ContextVar("variable", default="none")

    class Setting(Recorder):
        def note(self, name):
            self.calls.append(f"{name}: {variable.get()}")
            variable.set(name)

        def connection_made(self, transport):
            self.note("made")
            super().connection_made(transport)

        def data_received(self, data):
            self.note("data")
            super().data_received(data)

        def connection_lost(self, exc):
            self.note("lost")
            super().connection_lost(exc)

    async def main():
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context) as server:
            variable.set("caller")
            _, near = await aio.create_connection(
                Setting, "127.0.0.1", port_of(server), ssl=client, server_hostname=tls.HOST,
                **ground.required,
            )  # fmt: skip
            await near.made.wait()
            near.transport.write(b"data")
            await near.until(4)
            assert variable.get() == "caller"
            near.transport.close()
            await near.lost
            assert "made: caller" in near.calls
            if ground.in_transport:  # asyncio's TLS calls it where its data comes
                assert not any(call.endswith(": made") for call in near.calls)

    ground.run(main)


def test_many_at_once(ground):
    async def main():
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context) as server:

            async def talk(number):
                rng = random.Random(number)  # noqa: S311
                reader, writer = await ground.connect(port_of(server), client)
                for _ in range(3):
                    data = rng.randbytes(rng.randrange(1, 60_000))
                    writer.write(data)
                    await writer.drain()
                    assert await reader.readexactly(len(data)) == data
                await closed(writer)

            await asyncio.gather(*map(talk, range(16)))

    ground.run(main)


# ---- protocols -------------------------------------------------------------------------------


class Recorder(asyncio.Protocol):
    """Notes what a transport tells it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.made = asyncio.Event()
        self.eof = asyncio.Event()
        self.transport: Any = None
        self.keep_open = False

    def connection_made(self, transport) -> None:
        self.calls.append("made")
        self.transport = transport
        self.made.set()

    def data_received(self, data) -> None:
        assert isinstance(data, bytes)
        self.data += data

    def eof_received(self) -> bool:
        self.calls.append("eof")
        self.eof.set()
        return self.keep_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc) -> None:
        self.calls.append("lost")
        self.lost.set_result(exc)

    async def until(self, size: int) -> None:
        while len(self.data) < size:
            await asyncio.sleep(0.01)


class BufferedRecorder(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(50_000))  # asyncio's TLS loses data with a bytearray
        self.data = bytearray()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, _: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]

    def connection_lost(self, exc) -> None:
        self.lost.set_result(exc)


@contextlib.asynccontextmanager
async def pair(ground: Ground, factory=Recorder, **keywords):
    """Two protocols that talk to each other: the client's and the server's."""
    client, server_context = ground.contexts()
    protocols = []

    def make():
        protocols.append(factory())
        return protocols[-1]

    server = await aio.create_server(
        make, "127.0.0.1", 0, ssl=server_context, **ground.required, **keywords
    )
    try:
        _, near = await aio.create_connection(
            Recorder, "127.0.0.1", port_of(server), ssl=client, server_hostname=tls.HOST,
            **ground.required, **keywords,
        )  # fmt: skip
        while not protocols or not hasattr(protocols[0], "lost"):
            await asyncio.sleep(0.001)
        far = protocols[0]
        if isinstance(far, Recorder):
            await far.made.wait()
        yield near, far
    finally:
        for one in (near, *protocols):
            if isinstance(one, Recorder) and one.transport is not None:
                one.transport.abort()
                await one.lost
        await stop(server)


def take_little(near: Recorder, far: Recorder) -> None:
    """So that a large file from near to far is not sent at once."""
    far.transport.pause_reading()
    near.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)


def test_the_life_of_a_protocol(own_ground):
    async def main():
        async with pair(own_ground) as (near, far):
            near.transport.write(b"hello")
            await far.until(5)
            far.transport.write(b"world")
            await near.until(5)
            near.transport.close()
            assert near.transport.is_closing()
            assert await near.lost is None
            assert await far.lost is None
            assert near.calls == ["made", "lost"]
            assert far.calls == ["made", "eof", "lost"]
            assert (far.data, near.data) == (b"hello", b"world")

    own_ground.run(main)


def test_a_buffered_protocol(own_ground):
    async def main():
        async with pair(own_ground, BufferedRecorder) as (near, far):
            data = pattern(MiB)
            near.transport.write(data)
            while len(far.data) < len(data):
                await asyncio.sleep(0.01)
            assert far.data == data
            near.transport.close()
            assert await far.lost is None

    own_ground.run(main)


def test_flow_control(own_ground):
    async def main():
        async with pair(own_ground) as (near, far):
            far.transport.pause_reading()
            assert not far.transport.is_reading()
            near.transport.set_write_buffer_limits(high=100_000, low=1_000)
            data = pattern(24 * MiB)
            near.transport.write(data)
            assert near.calls[1:] == ["pause"]
            assert near.transport.get_write_buffer_size() > 100_000
            await asyncio.sleep(0.1)
            assert len(far.data) < len(data)
            far.transport.resume_reading()
            await far.until(len(data))
            assert far.data == data
            assert near.calls[1:] == ["pause", "resume"]
            assert near.transport.get_write_buffer_size() == 0

    own_ground.run(main)


def test_what_is_written_late_is_what_it_was(ground):
    """A buffer that changes after write() is sent as it was."""

    async def main():
        async with pair(ground) as (near, far):
            far.transport.pause_reading()
            block = pattern(16 * MiB)
            near.transport.write(block)
            changing = bytearray(b"before")
            near.transport.write(changing)
            near.transport.write(memoryview(changing))
            near.transport.writelines([changing, b"!", memoryview(b"view")])
            changing[:] = b"after!"
            far.transport.resume_reading()
            tail = b"beforebeforebefore!view"
            await far.until(len(block) + len(tail))
            assert far.data == block + tail

    ground.run(main)


def test_many_pieces_at_once(ground):
    async def main():
        async with pair(ground) as (near, far):
            pieces = [bytes([n % 256]) * (n % 700) for n in range(3000)]
            near.transport.writelines(pieces)
            near.transport.writelines([])
            near.transport.write(b"")
            expected = b"".join(pieces)
            await far.until(len(expected))
            assert far.data == expected

    ground.run(main)


@pytest.mark.parametrize("what", ["text", None, 5, [b"list"]])
def test_only_bytes_are_written(ground, what):
    async def main():
        async with pair(ground) as (near, _):
            with pytest.raises(TypeError):
                near.transport.write(what)

    ground.run(main)


def test_another_protocol_takes_over(ground):
    async def main():
        async with pair(ground) as (near, far):
            other = Recorder()
            far.transport.set_protocol(other)
            assert far.transport.get_protocol() is other
            near.transport.write(b"for the other")
            await other.until(13)
            far.transport.set_protocol(far)
            near.transport.write(b"for the first")
            await far.until(13)
            assert (bytes(other.data), bytes(far.data)) == (b"for the other", b"for the first")

    ground.run(main)


# ---- the end ---------------------------------------------------------------------------------


def test_closing_delivers_everything(ground):
    """Also to one who reads late, and with close_notify at the end."""

    async def main():
        client, server_context = ground.contexts()
        data = pattern(8 * MiB)

        async def serve(_, writer):
            writer.write(data)
            await closed(writer)

        async with ground.server(serve, server_context) as server:

            def fetch():
                with plain_client(port_of(server), client) as sock:
                    sock.suppress_ragged_eofs = False
                    time.sleep(0.3)
                    got = bytearray()
                    while piece := sock.recv(MiB):
                        got += piece
                    return got

            assert await in_thread(fetch) == data

    ground.run(main)


def test_aborting_is_no_end_in_good_order(ground):
    async def main():
        async with pair(ground) as (near, far):
            near.transport.abort()
            assert await near.lost is None
            lost = await far.lost
            if ground.in_transport:
                # The latter if it had not read a session ticket yet.
                assert isinstance(lost, pyktls.TruncationError | ConnectionResetError)
                if isinstance(lost, pyktls.TruncationError):
                    assert isinstance(lost, ssl.SSLEOFError)
                assert "eof" not in far.calls

    ground.run(main)


def test_a_peer_that_takes_nothing_delays_closing_for_so_long(ground):
    async def main():
        async with pair(ground, ssl_shutdown_timeout=0.5) as (near, far):
            far.transport.pause_reading()
            near.transport.write(bytes(64 * MiB))
            begin = time.monotonic()
            near.transport.close()
            lost = await near.lost
            assert isinstance(lost, TimeoutError)
            assert 0.4 < time.monotonic() - begin < 30

    ground.run(main)


def test_writing_after_close_is_ignored(ground):
    async def main():
        async with pair(ground) as (near, far):
            near.transport.write(b"last")
            near.transport.close()
            near.transport.write(b"too late")
            near.transport.close()
            await near.lost
            await far.lost
            assert far.data == b"last"

    ground.run(main)


def test_a_transport_that_nobody_closed(own_ground):
    """It is noticed, and closed in good order."""

    async def main():
        client, server_context = own_ground.contexts()
        ended = asyncio.Event()

        async def serve(reader, writer):
            writer.write(b"hello")
            assert await reader.read() == b"bye"
            ended.set()
            await closed(writer)

        class Greeted(asyncio.Protocol):
            def data_received(self, _):
                greeted.set()

        greeted = asyncio.Event()
        async with own_ground.server(serve, server_context) as server:
            transport, protocol = await aio.create_connection(
                Greeted, "127.0.0.1", port_of(server), ssl=client,
                server_hostname=tls.HOST, **own_ground.required,
            )  # fmt: skip
            await greeted.wait()
            transport.write(b"bye")
            transport.pause_reading()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ResourceWarning)
                del transport, protocol
                gc.collect()
                await asyncio.sleep(0.05)
                gc.collect()
            assert any("unclosed transport" in str(w.message) for w in caught)
            await ended.wait()

    own_ground.run(main)


def test_a_servers_transport_that_nobody_closed(own_ground):
    """The server does not wait for it."""

    held = []

    class Forgetful(asyncio.Protocol):
        def connection_made(self, transport):
            transport.pause_reading()
            held.append(transport)  # nobody else has it

    async def main():
        client, server_context = own_ground.contexts()
        server = await aio.create_server(
            Forgetful, "127.0.0.1", 0, ssl=server_context, **own_ground.required
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            reader, writer = await own_ground.connect(port_of(server), client)
            while not held:
                await asyncio.sleep(0.01)
            held.clear()
            while not any("unclosed transport" in str(w.message) for w in caught):
                gc.collect()
                await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()
        server.close()
        async with asyncio.timeout(20):
            await server.wait_closed()

    own_ground.run(main)


# ---- handshakes ------------------------------------------------------------------------------


def test_a_client_that_says_nothing(ground):
    """It holds up nobody else, and is closed after the handshake timeout."""

    async def main():
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context, ssl_handshake_timeout=2.5) as server:
            with socket.create_connection(("127.0.0.1", port_of(server))) as silent:
                silent.setblocking(False)
                begin = time.monotonic()
                reader, writer = await ground.connect(port_of(server), client)
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                await closed(writer)
                loop = asyncio.get_running_loop()
                assert await loop.sock_recv(silent, 1000) == b""
                assert 2.4 < time.monotonic() - begin < 30
        ground.unexpected.clear()  # in debug mode the loop is told

    ground.run(main)


def test_a_client_that_drips(ground):
    """The timeout is for all of the handshake: no byte begins it anew."""

    async def main():
        _, server_context = ground.contexts()
        async with ground.server(echo, server_context, ssl_handshake_timeout=2.5) as server:
            loop = asyncio.get_running_loop()
            with socket.create_connection(("127.0.0.1", port_of(server))) as slow:
                slow.setblocking(False)
                begin = time.monotonic()
                # Of a ClientHello that is longer than there is time in this test.
                hello = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc".ljust(16389, b"\0")

                async def drip():
                    for byte in hello:
                        await loop.sock_sendall(slow, bytes([byte]))
                        await asyncio.sleep(0.05)

                with pytest.raises(ConnectionError):
                    await drip()
                assert 2.4 < time.monotonic() - begin < 30
        ground.was_told_of(ConnectionAbortedError)

    ground.run(main)


def test_a_server_that_says_nothing(ground):
    async def main():
        client, _ = ground.contexts()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            begin = time.monotonic()
            with pytest.raises(ConnectionAbortedError):
                await ground.connect(silent.getsockname()[1], client, ssl_handshake_timeout=0.5)
            assert 0.4 < time.monotonic() - begin < 30

    ground.run(main)


def test_a_server_that_hangs_up(ground):
    async def main():
        client, _ = ground.contexts()
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def hang_up():
                listener.accept()[0].close()

            gone = asyncio.create_task(in_thread(hang_up))
            with pytest.raises(ConnectionError):
                await ground.connect(listener.getsockname()[1], client)
            await gone

    ground.run(main)


def test_a_certificate_that_is_not_trusted(ground):
    async def main():
        client, server_context = ground.contexts()
        stranger = ssl.create_default_context()
        async with ground.server(echo, server_context) as server:
            with pytest.raises(ssl.SSLCertVerificationError):
                await ground.connect(port_of(server), stranger)
            with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname"):
                await ground.connect(port_of(server), client, server_hostname="other.example")
            reader, writer = await ground.connect(port_of(server), client)
            writer.write(b"still there")
            assert await reader.readexactly(11) == b"still there"
            await closed(writer)
        ground.unexpected.clear()

    ground.run(main)


def test_the_context_that_an_sni_callback_chooses(ground):
    async def main():
        client, server_context = ground.contexts()
        _, chosen = ground.contexts()
        chosen.set_alpn_protocols(["chosen"])
        client.set_alpn_protocols(["chosen"])

        def choose(sock, name, _):
            assert name == tls.HOST
            sock.context = chosen

        server_context.sni_callback = choose
        async with ground.server(echo, server_context) as server:
            reader, writer = await ground.connect(port_of(server), client)
            writer.write(b"data")
            assert await reader.readexactly(4) == b"data"
            await closed(writer)

    ground.run(main)


async def connect_in_vain(ground, server, client):
    """A client of a server that closes each connection, and the end of that server."""
    # It depends on who is faster how the client sees it.
    with contextlib.suppress(ConnectionError, ssl.SSLError, pyktls.HandoffRefused):
        reader, writer = await ground.connect(port_of(server), client)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()
    await stop(server)


def test_a_factory_that_fails(own_ground):
    async def main():
        client, server_context = own_ground.contexts()

        def fail():
            raise RuntimeError("no protocol today")

        server = await aio.create_server(
            fail, "127.0.0.1", 0, ssl=server_context, **own_ground.required
        )
        await connect_in_vain(own_ground, server, client)
        assert all("no protocol" in str(c.get("exception")) for c in own_ground.unexpected)
        own_ground.unexpected.clear()
        async with own_ground.server(echo, server_context) as other:
            with pytest.raises(RuntimeError, match="no protocol"):
                await aio.create_connection(
                    fail, "127.0.0.1", port_of(other), ssl=client, server_hostname=tls.HOST
                )
        own_ground.unexpected.clear()

    own_ground.run(main)


def test_a_protocol_that_does_not_take_the_connection(own_ground):
    """The connection is closed, and the loop is told, not in debug mode only."""

    ends = []

    class Refusing(asyncio.Protocol):
        def connection_made(self, _):
            raise ArithmeticError("not today")

        def connection_lost(self, exc):
            ends.append(exc)

    async def main():
        asyncio.get_running_loop().set_debug(False)
        client, server_context = own_ground.contexts()
        server = await aio.create_server(
            Refusing, "127.0.0.1", 0, ssl=server_context, **own_ground.required
        )
        await connect_in_vain(own_ground, server, client)
        (told,) = own_ground.unexpected
        assert "connection_made" in told["message"]
        assert isinstance(told["exception"], ArithmeticError)
        assert isinstance(told["protocol"], Refusing)
        assert ends == [told["exception"]]
        own_ground.unexpected.clear()

    own_ground.run(main)


# ---- servers ---------------------------------------------------------------------------------


def test_a_server_that_closes_lets_connections_go_on(ground):
    async def main():
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context) as server:
            port = port_of(server)
            assert server.is_serving()
            assert server.get_loop() is asyncio.get_running_loop()
            reader, writer = await ground.connect(port, client)
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            server.close()
            assert not server.is_serving()
            assert not server.sockets
            with pytest.raises(ConnectionRefusedError):
                await ground.connect(port, client)
            writer.write(b"two")
            assert await reader.readexactly(3) == b"two"
            if ground.in_transport:
                waiting = asyncio.create_task(server.wait_closed())
                await asyncio.sleep(0.05)
                assert not waiting.done()
                await closed(writer)
                await waiting
            else:
                await closed(writer)

    ground.run(main)


def test_a_server_that_closes_during_a_handshake(own_ground):
    """The handshake is finished; close_clients() gives it up."""

    async def main():
        client, server_context = own_ground.contexts()
        async with own_ground.server(echo, server_context) as server:
            port = port_of(server)
            with socket.create_connection(("127.0.0.1", port)) as half_way:
                reader, writer = await own_ground.connect(port, client)  # it has been accepted
                server.close()
                await closed(writer)
                del reader

                def shake_hands():
                    half_way.settimeout(20)
                    with client.wrap_socket(half_way, server_hostname=tls.HOST) as sock:
                        sock.sendall(b"late")
                        return sock.recv(100)

                assert await in_thread(shake_hands) == b"late"
        async with own_ground.server(echo, server_context) as server:
            with socket.create_connection(("127.0.0.1", port_of(server))) as silent:
                silent.setblocking(False)
                reader, writer = await own_ground.connect(port_of(server), client)
                writer.write(b"x")
                await reader.readexactly(1)
                server.close()
                server.close_clients()
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.get_running_loop().sock_recv(silent, 100) == b""
                assert await reader.read() == b""
                await closed(writer)
                await server.wait_closed()

    own_ground.run(main)


def test_a_handshake_that_is_given_up_before_it_begins(own_ground):
    async def main():
        _, server_context = own_ground.contexts()
        async with own_ground.server(echo, server_context) as server:
            (listener,) = server._sockets
            with socket.create_connection(("127.0.0.1", port_of(server))) as silent:
                server._accept(listener)
                assert server._handshakes
                server.close_clients()
                silent.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(silent, 100) == b""

    own_ground.run(main)


def test_abort_clients(own_ground):
    async def main():
        client, server_context = own_ground.contexts()
        async with own_ground.server(echo, server_context) as server:
            reader, writer = await own_ground.connect(port_of(server), client)
            writer.write(b"x")
            await reader.readexactly(1)
            server.close()
            server.abort_clients()
            with pytest.raises(ConnectionError):
                await reader.read()
            writer.transport.abort()
            await server.wait_closed()

    own_ground.run(main)


def test_serve_forever(ground):
    async def main():
        client, server_context = ground.contexts()
        server = await aio.start_server(
            echo, "127.0.0.1", 0, ssl=server_context, start_serving=False, **ground.required
        )
        assert not server.is_serving()
        port = port_of(server)
        forever = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert server.is_serving()
        with pytest.raises(RuntimeError):
            await server.serve_forever()
        _, writer = await ground.connect(port, client)
        await closed(writer)
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        assert not server.is_serving()
        with pytest.raises(RuntimeError):
            await server.serve_forever()

    ground.run(main)


def test_an_address_that_is_taken(ground):
    async def main():
        _, server_context = ground.contexts()
        async with ground.server(echo, server_context) as server:
            with pytest.raises(OSError, match="in use"):
                await aio.start_server(
                    echo, "127.0.0.1", port_of(server), ssl=server_context, **ground.required
                )

    ground.run(main)


def test_sockets_that_were_made_before(ground):
    async def main():
        client, server_context = ground.contexts()
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = await aio.start_server(echo, sock=listener, ssl=server_context, **ground.required)
        sock = socket.create_connection(("127.0.0.1", port))
        reader, writer = await aio.open_connection(
            sock=sock, ssl=client, server_hostname=tls.HOST, **ground.required
        )
        writer.write(b"made before")
        assert await reader.readexactly(11) == b"made before"
        # The caller's objects are what they were, as long as the connection and the server are.
        assert listener.getsockname() == sock.getpeername()
        await closed(writer)
        await stop(server)
        await asyncio.sleep(0.05)
        assert listener.fileno() == sock.fileno() == -1

    ground.run(main)


def test_a_socket_whose_handshake_fails_is_closed(own_ground):
    async def main():
        _, server_context = own_ground.contexts()
        async with own_ground.server(echo, server_context) as server:
            sock = socket.create_connection(("127.0.0.1", port_of(server)))
            with pytest.raises(ssl.SSLCertVerificationError):
                await aio.open_connection(
                    sock=sock, ssl=ssl.create_default_context(), server_hostname=tls.HOST
                )
            assert sock.fileno() == -1
        own_ground.unexpected.clear()

    own_ground.run(main)


def test_sockets_that_no_server_takes(own_ground):
    """They stay the caller's."""

    async def main():
        _, server_context = own_ground.contexts()
        with socket.socket() as sock, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            with pytest.raises(ValueError, match="same time"):
                await aio.start_server(echo, "127.0.0.1", 0, sock=sock, ssl=server_context)
            with pytest.raises(ValueError, match=r"[Ss]tream"):
                await aio.start_server(echo, sock=datagrams, ssl=server_context)
            with server_context.wrap_socket(socket.socket(), server_side=True) as secure:
                with pytest.raises(TypeError, match="SSLSocket"):
                    await aio.start_server(echo, sock=secure, ssl=server_context)
                assert secure.fileno() >= 0
            assert sock.fileno() >= 0
            assert datagrams.fileno() >= 0

    own_ground.run(main)


def test_unix_sockets(ground, tmp_path):
    """No kernel has TLS for them: what carries them is OpenSSL, whoever has the others."""

    async def main():
        client, server_context = ground.contexts()
        listener, sock = (socket.socket(socket.AF_UNIX) for _ in range(2))
        listener.bind(str(tmp_path / "socket"))
        server = await aio.start_server(echo, sock=listener, ssl=server_context)
        sock.connect(str(tmp_path / "socket"))
        reader, writer = await aio.open_connection(sock=sock, ssl=client, server_hostname=tls.HOST)
        data = pattern(200_000)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        status = writer.get_extra_info("ktls")
        if ground.in_transport:
            assert not status.tx
            assert isinstance(status.refusal, pyktls.HandoffRefused | pyktls.Unavailable)
        await closed(writer)
        if ground.in_transport:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(tmp_path / "socket"))
            with pytest.raises((pyktls.HandoffRefused, pyktls.Unavailable)):
                await aio.open_connection(
                    sock=sock, ssl=client, server_hostname=tls.HOST, require=True
                )
        await stop(server)

    ground.run(main)


# ---- arguments -------------------------------------------------------------------------------


def test_arguments_of_the_loops_own_methods(ground):
    async def main():
        client, server_context = ground.contexts()
        async with ground.server(
            echo, server_context, family=socket.AF_INET, reuse_address=True, backlog=7
        ) as server:
            keywords = {"family": socket.AF_INET, "local_addr": ("127.0.0.1", 0)}
            if ground.asyncio_loop:
                keywords |= {"happy_eyeballs_delay": 0.2, "interleave": 1}
            _, writer = await ground.connect(port_of(server), client, **keywords)
            await closed(writer)
            if not ground.asyncio_loop:  # uvloop has not got them
                for name, value in (("happy_eyeballs_delay", 0.2), ("interleave", 1)):
                    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
                        await ground.connect(port_of(server), client, **{name: value})

    ground.run(main)


def test_arguments_that_are_refused(ground):
    async def main():
        client, server_context = ground.contexts()
        for error, keywords in (
            (ValueError, {"ssl": client}),  # no name to check
            (ValueError, {"server_hostname": "x"}),
            (ValueError, {"ssl_handshake_timeout": 1.0}),
            (ValueError, {"ssl_shutdown_timeout": 1.0}),
            (ValueError, {"ssl": client, "server_hostname": "x", "ssl_handshake_timeout": 0}),
            (ValueError, {"ssl": client, "server_hostname": "x", "ssl_shutdown_timeout": -1.0}),
            (TypeError, {"ssl": client, "server_hostname": "x", "ssl_shutdown_timeout": "1"}),
            (TypeError, {"ssl": "context", "server_hostname": "x"}),
            (TypeError, {"ssl": client, "server_hostname": 5}),
            (ValueError, {"ssl": client, "server_hostname": "x" * 70}),
            (ValueError, {"ssl": client, "server_hostname": "x\0y"}),
            (ValueError, {"require": True}),
        ):
            with socket.socket() as sock, pytest.raises(error):
                await aio.open_connection(sock=sock, **keywords)
        for error, keywords in (
            (TypeError, {"ssl": True}),
            (TypeError, {"ssl": "context"}),
            (ValueError, {"ssl_handshake_timeout": 1.0}),
            (ValueError, {"ssl_shutdown_timeout": 1.0}),
            (ValueError, {"ssl": server_context, "ssl_handshake_timeout": -1}),
            (ValueError, {"require": True}),
        ):
            with pytest.raises(error):
                await aio.start_server(echo, "127.0.0.1", 0, **keywords)
        with pytest.raises(pyktls.InvalidType, match="asyncio transport, not NoneType"):
            await aio.start_tls(None, asyncio.Protocol(), client, server_hostname="x")

    ground.run(main)


def test_nobody_listens(ground):
    async def main():
        client, _ = ground.contexts()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
            with pytest.raises(ConnectionRefusedError):
                await ground.connect(port, client)

    ground.run(main)


def test_without_tls_it_is_asyncios(ground):
    async def main():
        server = await aio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await aio.open_connection("127.0.0.1", port_of(server))
        writer.write(b"plain")
        assert await reader.readexactly(5) == b"plain"
        assert writer.get_extra_info("sslcontext") is None
        await closed(writer)
        await stop(server)

    ground.run(main)


# ---- files -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def big_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("aio") / "big"
    path.write_bytes(pattern(9 * MiB, 7))
    return path


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, None), (1, None), (100_001, 5 * MiB), (9 * MiB - 5, 100), (9 * MiB, None), (0, 1)],
)
def test_sendfile(ground, big_file, offset, count):
    async def main():
        async with pair(ground) as (near, far):
            near.transport.write(b"header")
            data = big_file.read_bytes()[offset:]
            data = data if count is None else data[:count]
            with big_file.open("rb") as file:
                sent = await aio.sendfile(near.transport, file, offset, count)
                assert sent == len(data)
                if sent:
                    assert file.tell() == offset + sent
            near.transport.write(b"trailer")
            await far.until(len(data) + 13)
            assert far.data == b"header" + data + b"trailer"
            assert near.transport.is_reading()

    ground.run(main)


def test_sendfile_by_a_stream_writer(ground, big_file):
    async def main():
        data = big_file.read_bytes()

        async def serve(_, writer):
            with big_file.open("rb") as file:
                assert await aio.sendfile(writer, file) == len(data)
            await closed(writer)

        client, server_context = ground.contexts()
        async with ground.server(serve, server_context) as server:
            reader, writer = await ground.connect(port_of(server), client)
            assert await reader.read() == data
            await closed(writer)

    ground.run(main)


def test_an_object_that_is_no_real_file(ground):
    async def main():
        async with pair(ground) as (near, far):
            data = pattern(2 * MiB)
            assert await aio.sendfile(near.transport, io.BytesIO(data), 5) == len(data) - 5
            assert await aio.sendfile(near.transport, io.BytesIO(b"end"), 0, 2) == 2
            await far.until(len(data) - 3)
            assert far.data == data[5:] + b"en"
            if ground.in_transport:
                with pytest.raises(RuntimeError, match="fallback"):
                    await aio.sendfile(near.transport, io.BytesIO(b"x"), fallback=False)

    ground.run(main)


def test_a_file_that_becomes_shorter(ground):
    async def main():
        async with pair(ground) as (near, far):
            with tempfile.TemporaryFile() as file:
                file.write(bytes(10_000))
                file.flush()
                assert await aio.sendfile(near.transport, file, 4_000, 1 << 40) == 6_000
                await far.until(6_000)
                os.ftruncate(file.fileno(), 0)
                assert await aio.sendfile(near.transport, file) == 0
            near.transport.write(b"on")
            await far.until(6_002)

    ground.run(main)


def test_sendfile_to_one_who_goes_away(ground, big_file):
    async def main():
        async with pair(ground) as (near, far):
            take_little(near, far)
            with big_file.open("rb") as file:
                sending = asyncio.create_task(aio.sendfile(near.transport, file))
                await asyncio.sleep(0.1)
                assert not sending.done()
                far.transport.abort()
                with pytest.raises((OSError, RuntimeError)):
                    await sending

    ground.run(main)


def test_closing_ends_a_file(ground, big_file):
    async def main():
        async with pair(ground, ssl_shutdown_timeout=1.0) as (near, far):
            take_little(near, far)
            with big_file.open("rb") as file:
                sending = asyncio.create_task(aio.sendfile(near.transport, file))
                await asyncio.sleep(0.1)
                near.transport.close()
                with pytest.raises((OSError, RuntimeError)):
                    await sending
            await near.lost

    ground.run(main)


def test_a_file_that_is_given_up(own_ground, big_file):
    """Cancelled, it leaves a beginning of the file, and the connection usable."""

    async def main():
        async with pair(own_ground) as (near, far):
            take_little(near, far)
            data = big_file.read_bytes()
            with big_file.open("rb") as file:
                sending = asyncio.create_task(aio.sendfile(near.transport, file))
                await asyncio.sleep(0.1)
                assert not sending.done()
                sending.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sending
                sent = file.tell()
            far.transport.resume_reading()
            near.transport.write(b"END")
            near.transport.close()
            await near.lost
            await far.lost
            assert far.data.endswith(b"END")
            body = bytes(far.data[:-3])
            assert body == data[: len(body)]
            assert len(body) == sent

    own_ground.run(main)


@pytest.mark.parametrize("how", ["cancel", "abort"])
def test_a_file_that_is_closed_while_it_is_sent(own_ground, big_file, how):
    """That nobody can set its position any more does not hold the transport."""

    async def main():
        async with pair(own_ground) as (near, far):
            take_little(near, far)
            file = big_file.open("rb")
            sending = asyncio.create_task(aio.sendfile(near.transport, file))
            await asyncio.sleep(0.1)
            assert not sending.done()
            if how == "cancel":
                sending.cancel()
            else:
                near.transport.abort()
            file.close()
            with pytest.raises((asyncio.CancelledError, OSError)):
                await sending
            if how == "cancel":
                far.transport.resume_reading()
                near.transport.write(b"END")
                near.transport.close()
                assert await far.lost is None
                assert far.data.endswith(b"END")
            await near.lost

    own_ground.run(main)


@pytest.mark.parametrize("cancellations", [1, 2])
def test_a_read_that_is_given_up(own_ground, cancellations):
    """It is awaited, for it would move the file's position; the second time it is not."""
    begun, go_on, read = threading.Event(), threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def read(self, size=-1, /):
            begun.set()
            go_on.wait(TIMEOUT)
            try:
                return super().read(size)
            finally:
                read.set()

    async def main():
        async with pair(own_ground) as (near, far):
            file = Slow(pattern(50_000))
            sending = asyncio.create_task(aio.sendfile(near.transport, file, 7))
            await in_thread(begun.wait, TIMEOUT)
            for _ in range(cancellations):
                assert not sending.done()
                sending.cancel()
                for _ in range(10):
                    await asyncio.sleep(0)
            assert sending.done() == (cancellations == 2)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert await in_thread(read.wait, TIMEOUT)
            assert file.tell() == (7 if cancellations == 1 else 50_000)
            near.transport.write(b"END")
            await far.until(3)
            assert far.data == b"END"
            far.transport.write(b"pong")
            await near.until(4)

    own_ground.run(main)


def test_a_read_that_fails_when_it_is_given_up(own_ground):
    """Whoever cancels it is not told; nor is the loop."""
    begun, go_on = threading.Event(), threading.Event()

    class Broken(io.BytesIO):
        def read(self, _=-1, /):
            begun.set()
            go_on.wait(TIMEOUT)
            raise OSError("no disk")

    async def main():
        async with pair(own_ground) as (near, _):
            sending = asyncio.create_task(aio.sendfile(near.transport, Broken(b"data")))
            await in_thread(begun.wait, TIMEOUT)
            sending.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await sending
            del sending
            with pytest.raises(OSError, match="no disk"):
                await aio.sendfile(near.transport, Broken(b"data"))

    own_ground.run(main)


def test_a_file_behind_much_data_is_read_no_faster_than_it_is_sent(own_ground):
    """Though the protocol was told to pause before, and is not told again."""

    async def main():
        async with pair(own_ground) as (near, far):
            sizes = []

            class Watched(io.BytesIO):
                def read(self, size=-1, /):
                    sizes.append(near.transport.get_write_buffer_size())
                    return super().read(size)

            take_little(near, far)
            header, data = bytes(8 * MiB), pattern(3 * MiB)
            near.transport.write(header)
            assert near.calls[-1] == "pause"
            sending = asyncio.create_task(aio.sendfile(near.transport, Watched(data)))
            while not sizes:
                await asyncio.sleep(0.001)
            far.transport.resume_reading()
            assert await sending == len(data)
            _, high = near.transport.get_write_buffer_limits()
            assert max(sizes[1:]) <= high + 256 * 1024
            await far.until(len(header) + len(data))
            assert far.data == header + data
            while near.calls[-1] != "resume":
                await asyncio.sleep(0.001)

    own_ground.run(main)


def test_a_file_without_a_position(own_ground, big_file):
    class Pages:
        def __init__(self, file) -> None:
            self.fileno = file.fileno
            self.read = file.read

    async def main():
        async with pair(own_ground) as (near, far):
            with big_file.open("rb") as file:
                assert await aio.sendfile(near.transport, Pages(file)) == 9 * MiB
            near.transport.write(b"END")
            await far.until(9 * MiB + 3)
            assert far.data == big_file.read_bytes() + b"END"

    own_ground.run(main)


def test_what_comes_while_a_file_is_sent(own_ground, big_file):
    """It waits until the protocol can answer it, and the peer's end until the file is out."""

    class Answering(Recorder):
        def data_received(self, data) -> None:
            super().data_received(data)
            self.transport.write(b"pong")

    async def main():
        async with pair(own_ground, Answering) as (near, far):
            ends = near.transport.can_write_eof()
            assert ends is (own_ground.carrier == KERNEL and own_ground.version == tls.TLS_1_3)
            if not ends:
                with pytest.raises(NotImplementedError):
                    near.transport.write_eof()
            take_little(far, near)
            with big_file.open("rb") as file:
                sending = asyncio.create_task(aio.sendfile(far.transport, file))
                await asyncio.sleep(0.1)
                near.transport.write(b"ping")
                if ends:
                    near.transport.write_eof()
                await asyncio.sleep(0.1)
                assert not sending.done()
                near.transport.resume_reading()
                assert await sending == 9 * MiB
            await near.until(9 * MiB + 4)
            assert near.data == big_file.read_bytes() + b"pong"
            if ends:
                assert await far.lost is None
            else:
                assert far.transport.is_reading()

    own_ground.run(main)


def test_arguments_of_sendfile(ground, big_file):
    async def main():
        async with pair(ground) as (near, _):
            with big_file.open("rb") as file:
                for error, arguments in (
                    (ValueError, (file, -1)),
                    (ValueError, (file, 0, 0)),
                    (ValueError, (file, 0, -1)),
                    (TypeError, (file, "1")),
                    (TypeError, (file, 0, 1.5)),
                    (TypeError, (object(),)),
                ):
                    with pytest.raises(error):
                        await aio.sendfile(near.transport, *arguments)
            with (
                big_file.open("r", encoding="latin-1") as text,
                pytest.raises(ValueError, match="binary"),
            ):
                await aio.sendfile(near.transport, text)
            with pytest.raises(ValueError, match="closed"):
                await aio.sendfile(near.transport, file)
            with pytest.raises(TypeError):
                await aio.sendfile(object(), file)
            near.transport.close()
            with big_file.open("rb") as file, pytest.raises(RuntimeError, match="closing"):
                await aio.sendfile(near.transport, file)

    ground.run(main)


# ---- cancellation ----------------------------------------------------------------------------


def test_cancelling_a_client_at_every_step(own_ground):
    """Whatever it waits for: nothing is left behind, and the server serves on."""

    async def main():
        client, server_context = own_ground.contexts()
        async with own_ground.server(echo, server_context) as server:
            finished = False
            steps = 0
            while not finished:
                task = asyncio.create_task(own_ground.connect(port_of(server), client))
                for _ in range(steps):
                    await asyncio.sleep(0)
                    if steps > 12:  # by then it waits for the peer
                        await asyncio.sleep(0.002)
                task.cancel()
                try:
                    _, writer = await task
                except asyncio.CancelledError:
                    pass
                else:
                    finished = True
                    await closed(writer)
                steps += 1
                assert steps < 500
            assert steps > 3
            reader, writer = await own_ground.connect(port_of(server), client)
            writer.write(b"on")
            assert await reader.readexactly(2) == b"on"
            await closed(writer)
        own_ground.unexpected.clear()  # of handshakes that were cut off

    own_ground.run(main)


def test_cancelling_a_server_that_waits(own_ground):
    async def main():
        client, server_context = own_ground.contexts()
        async with own_ground.server(echo, server_context) as server:
            _, writer = await own_ground.connect(port_of(server), client)
            server.close()
            waiting = asyncio.create_task(server.wait_closed())
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await closed(writer)

    own_ground.run(main)


async def talk(ground, port, client):
    """Show that the loop, and a server that echoes, are as they were."""
    reader, writer = await ground.connect(port, client)
    writer.write(b"on")
    assert await reader.readexactly(2) == b"on"
    await closed(writer)


@pytest.mark.parametrize("given", [False, True])
def test_cancelling_a_client_at_every_suspension(ground, given):
    async def scenario(cut):
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context) as server:
            port = port_of(server)
            async with nothing_left():
                if given:
                    where = {"sock": socket.create_connection(("127.0.0.1", port))}
                else:
                    where = {"host": "127.0.0.1", "port": port}
                made = await cut(
                    aio.open_connection(
                        ssl=client, server_hostname=tls.HOST, **where, **ground.required
                    )
                )
                if made is not None:
                    await closed(made[1])
            await talk(ground, port, client)
        # Of handshakes that were cut off, or just over.
        ground.was_told_of(ConnectionError, ssl.SSLError, pyktls.HandoffRefused)

    places = ground.at_every_suspension(scenario)
    if ground.in_transport:
        assert "_shake_hands" in places
        assert given or "_connect" in places


@pytest.mark.parametrize("given", [False, True])
def test_cancelling_a_new_server_at_every_suspension(ground, given):
    async def scenario(cut):
        client, server_context = ground.contexts()
        async with nothing_left():
            listener = socket.create_server(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            if given:
                where = {"sock": listener}
            else:
                listener.close()
                where = {"host": "127.0.0.1", "port": port}
            server = await cut(
                aio.start_server(echo, ssl=server_context, **where, **ground.required)
            )
            if server is not None:
                await stop(server)
            listener.close()  # where it was cancelled before it had it
        server = await aio.start_server(
            echo, "127.0.0.1", port, ssl=server_context, **ground.required
        )
        await talk(ground, port, client)
        await stop(server)

    places = ground.at_every_suspension(scenario)
    if ground.in_transport:
        assert "Server.start_serving" in places
        assert given or "_bind" in places


class Echo(asyncio.Protocol):
    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data) -> None:
        self.transport.write(data)


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("way", ["writer", "transport"])
def test_cancelling_start_tls_at_every_suspension(ground, side, way):
    """With much that is still to be sent, which the peer takes before it begins with TLS."""
    much = bytes(3 * MiB)

    async def turn(reader, writer, keywords):
        if way == "writer":
            await writer.start_tls(**keywords)
            return writer
        keywords["server_side"] = side == "server"
        protocol = writer.transport.get_protocol()
        made = await aio.start_tls(writer.transport, protocol, **keywords)
        return aio.StreamWriter(made, protocol, reader, asyncio.get_running_loop())

    async def upgrade(call, reader, writer, keywords):
        """The part of the side that is cancelled."""
        plain = writer.transport
        plain.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        writer.write(much)
        secure = await call(turn(reader, writer, {**keywords, **ground.required}))
        if secure is None:
            if not plain.is_closing():  # nothing has begun: as with asyncio, it is as it was
                assert "StreamWriter.drain" in call.places
                writer.close()
                # Where all had been sent, the peer's ClientHello may be there by now.
                hello = await reader.read()
                assert hello[:1] == (b"\x16" if hello and side == "server" else b"")
            else:
                assert await reader.read() == b""
        else:
            secure.write(b"on")
            assert await reader.readexactly(2) == b"on"
            secure.transport.abort()

    async def take_part(sock, client, server_context):
        """The part of the other side, with asyncio's own TLS."""
        loop = asyncio.get_running_loop()
        left = len(much)
        while left:
            piece = await loop.sock_recv(sock, min(left, MiB))
            if not piece:
                sock.close()
                return
            left -= len(piece)
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # of one that was cancelled
            if side == "client":
                await loop.connect_accepted_socket(Echo, sock, ssl=server_context)
            else:
                await loop.create_connection(Echo, sock=sock, ssl=client, server_hostname=tls.HOST)

    async def plainly(call):
        return await call

    async def scenario(cut):
        loop = asyncio.get_running_loop()
        client, server_context = ground.contexts()
        done = None

        async def serve(reader, writer):
            try:
                await upgrade(call, reader, writer, {"sslcontext": server_context})
            except BaseException as e:
                done.set_exception(e)
                raise
            done.set_result(None)

        server = await aio.start_server(serve, "127.0.0.1", 0)
        for call in (cut, plainly):
            async with nothing_left():
                if side == "server":
                    done = loop.create_future()
                    sock = socket.create_connection(("127.0.0.1", port_of(server)))
                    sock.setblocking(False)
                    await take_part(sock, client, server_context)
                    await done
                else:
                    with socket.create_server(("127.0.0.1", 0)) as listener:
                        reader, writer = await aio.open_connection(*listener.getsockname())
                        sock, _ = listener.accept()
                    sock.setblocking(False)
                    part = loop.create_task(take_part(sock, client, server_context))
                    keywords = {"sslcontext": client, "server_hostname": tls.HOST}
                    await upgrade(call, reader, writer, keywords)
                    await part
        await stop(server)

    places = ground.at_every_suspension(scenario)
    assert ("StreamWriter.drain" if way == "writer" else "_until_empty") in places
    if ground.in_transport:
        assert "_shake_hands" in places


@pytest.mark.parametrize("kind", ["file", "object"])
def test_cancelling_sendfile_at_every_suspension(own_ground, kind):
    """It leaves a beginning of the file, its position behind that, and the connection usable."""
    header, data = bytes(2 * MiB), pattern(600_000)

    async def scenario(cut):
        async with pair(own_ground) as (near, far):
            take_little(near, far)
            far.transport.resume_reading()
            with tempfile.TemporaryFile() if kind == "file" else io.BytesIO() as file:
                file.write(data)
                near.transport.write(header)
                sent = await cut(aio.sendfile(near.transport, file, 5, 550_000))
                if sent is None:
                    sent = file.tell() - 5
                else:
                    assert sent == 550_000
                near.transport.write(b"END")
                await far.until(len(header) + sent + 3)
                assert far.data == header + data[5 : 5 + sent] + b"END"
                assert file.tell() == 5 + sent
                near.transport.write(b"and ")
                assert await aio.sendfile(near.transport, file, 0, 100_000) == 100_000
                far.transport.write(b"pong")
                await near.until(4)
                await far.until(len(header) + sent + 100_007)
                assert far.data[-100_004:] == b"and " + data[:100_000]

    places = own_ground.at_every_suspension(scenario)
    expected = "KTLSTransport.send_pages" if kind == "file" else "_read_and_write"
    assert own_ground.carrier != KERNEL or expected in places
    if expected == "_read_and_write" or own_ground.carrier != KERNEL:
        assert "_Pace.until_ready" in places


@pytest.mark.parametrize("way", ["start_serving", "serve_forever", "wait_closed", "async with"])
def test_cancelling_a_servers_methods_at_every_suspension(own_ground, way):
    """The server can be closed then, and its connections go on as long as they want."""

    async def scenario(cut):
        client, server_context = own_ground.contexts()
        async with nothing_left():
            server = await aio.start_server(
                echo, "127.0.0.1", 0, ssl=server_context, start_serving=way != "start_serving",
                **own_ground.required,
            )  # fmt: skip

            async def call():
                if way == "async with":
                    async with server:
                        return
                try:
                    await getattr(server, way)()
                except asyncio.CancelledError:
                    if cut.happened or way != "serve_forever":  # which ends in no other way
                        raise

            if way == "start_serving":
                await cut(server.start_serving())
            reader, writer = await own_ground.connect(port_of(server), client)
            if way != "start_serving":
                waiting = asyncio.create_task(cut(call()))
                await cut.began_to_wait.wait()
            server.close()
            writer.write(b"on")
            assert await reader.readexactly(2) == b"on"
            await closed(writer)
            if way != "start_serving":
                await waiting
            await stop(server)

    places = own_ground.at_every_suspension(scenario)
    assert {"async with": "Server.__aexit__"}.get(way, f"Server.{way}") in places


# ---- contexts that are not what ssl made them -------------------------------------------------


class Checked(ssl.SSLObject):
    """Takes no peer's certificate, whatever OpenSSL says."""

    def do_handshake(self) -> None:
        super().do_handshake()
        raise ssl.SSLCertVerificationError("not this peer")


class Checking(ssl.SSLContext):
    def wrap_bio(self, incoming, outgoing, server_side=False, server_hostname=None, session=None):
        return Checked._create(
            incoming, outgoing, server_side=server_side, server_hostname=server_hostname,
            session=session, context=self,
        )  # fmt: skip


@functools.wraps(ssl.SSLContext.wrap_bio)
def checking_wrap_bio(self, *arguments, **keywords):
    return Checking.wrap_bio(self, *arguments, **keywords)


@functools.wraps(ssl.SSLObject.do_handshake)
def checking_handshake(_):
    raise ssl.SSLCertVerificationError("not this peer")


@pytest.mark.parametrize("by", ["class", "method", "patch", "instance", "handshake"])
def test_what_checks_the_peer_in_the_contexts_name_is_not_passed_by(own_ground, monkeypatch, by):
    """truststore's contexts are such; asyncio's own TLS asks it."""

    async def main():
        client, server_context = own_ground.contexts()
        async with own_ground.server(echo, server_context) as server:
            match by:
                case "class":
                    client.sslobject_class = Checked
                case "method":
                    client.__class__ = Checking
                case "patch":
                    monkeypatch.setattr(ssl.SSLContext, "wrap_bio", checking_wrap_bio)
                case "instance":
                    client.wrap_bio = functools.partial(checking_wrap_bio, client)
                case "handshake":
                    monkeypatch.setattr(ssl.SSLObject, "do_handshake", checking_handshake)
            with pytest.raises(ssl.SSLCertVerificationError, match="not this peer"):
                await own_ground.connect(port_of(server), client, require=False)
            plain = await asyncio.open_connection("127.0.0.1", port_of(server))
            with pytest.raises(pyktls.HandoffRefused, match=r"makes the context's connections"):
                await aio.start_tls(
                    plain[1].transport,
                    plain[1].transport.get_protocol(),
                    client,
                    server_hostname=tls.HOST,
                    require=True,
                )
        own_ground.was_told_of(ConnectionError, ssl.SSLError)  # of the server's ends

    own_ground.run(main)


# ---- TLS later on ----------------------------------------------------------------------------


class Upgrading(Recorder):
    """A server's protocol that goes over to TLS when it reads STARTTLS."""

    def __init__(self, context, required, later) -> None:
        super().__init__()
        self.context = context
        self.required = required
        self.later = later
        self.upgrade: asyncio.Task[None] | None = None

    def data_received(self, data) -> None:
        super().data_received(data)
        if self.upgrade is None and self.data.endswith(b"STARTTLS\n"):
            self.transport.write(self.later)
            self.data.clear()
            self.upgrade = asyncio.create_task(self.turn())

    async def turn(self) -> None:
        self.transport = await aio.start_tls(
            self.transport, self, self.context, server_side=True, **self.required
        )
        await self.until(6)
        self.transport.write(self.data.upper())


@pytest.mark.parametrize("answer", [b"go ahead\n", bytes(12 * MiB) + b"go ahead\n"])
def test_starttls(ground, answer):
    async def main():
        loop = asyncio.get_running_loop()
        client, server_context = ground.contexts()
        protocols = []

        def make():
            protocols.append(Upgrading(server_context, ground.required, answer))
            return protocols[-1]

        server = await loop.create_server(make, "127.0.0.1", 0)
        transport, near = await loop.create_connection(Recorder, "127.0.0.1", port_of(server))
        transport.write(b"STARTTLS\n")
        await near.until(len(answer))
        assert near.data == answer
        secure = await aio.start_tls(
            transport, near, client, server_hostname=tls.HOST, **ground.required
        )
        near.transport = secure
        assert near.calls == ["made"]
        secure.write(b"secret")
        await near.until(len(answer) + 6)
        assert near.data[len(answer) :] == b"SECRET"
        assert secure.get_extra_info("cipher") is not None
        if ground.carrier == KERNEL:
            assert secure.get_extra_info("ktls").tx
        secure.close()
        assert await near.lost is None
        await protocols[0].lost
        await stop(server)

    ground.run(main)


def test_starttls_of_streams(ground):
    async def main():
        client, server_context = ground.contexts()

        async def serve(reader, writer):
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"go ahead\n")
            await writer.start_tls(server_context, **ground.required)
            assert writer.get_extra_info("cipher")
            await echo(reader, writer)

        server = await aio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await aio.open_connection("127.0.0.1", port_of(server))
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go ahead\n"
        await writer.start_tls(client, server_hostname=tls.HOST, **ground.required)
        assert writer.get_extra_info("ssl_object").version().startswith("TLSv1.")
        data = pattern(MiB)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        await closed(writer)
        await stop(server)

    ground.run(main)


class FirstTLS(asyncio.StreamReaderProtocol):
    """Streams that are made when TLS is there, on a connection that began without."""

    def __init__(self, context, required, serve) -> None:
        super().__init__(asyncio.StreamReader(), serve)
        self.keywords = {"sslcontext": context, "server_side": True, **required}
        self.upgrade: asyncio.Task[None] | None = None

    def connection_made(self, transport) -> None:
        transport.pause_reading()
        self.upgrade = asyncio.create_task(self.turn(transport))

    async def turn(self, transport) -> None:
        super().connection_made(await aio.start_tls(transport, self, **self.keywords))


def test_start_tls_before_there_are_streams(ground):
    async def main():
        loop = asyncio.get_running_loop()
        client, server_context = ground.contexts()

        def make():
            return FirstTLS(server_context, ground.required, echo)

        server = await loop.create_server(make, "127.0.0.1", 0)
        transport, near = await loop.create_connection(Recorder, "127.0.0.1", port_of(server))
        near.transport = await aio.start_tls(
            transport, near, client, server_hostname=tls.HOST, **ground.required
        )
        data = pattern(MiB)
        near.transport.write(data)
        await near.until(len(data))
        assert near.data == data
        near.transport.close()
        assert await near.lost is None
        await stop(server)

    ground.run(main)


def test_starttls_of_streams_that_nobody_reads(ground):
    """The reader's limit holds for what comes over TLS, too."""

    async def main():
        client, server_context = ground.contexts()
        upgraded = asyncio.get_running_loop().create_future()
        read_on = asyncio.Event()
        data = pattern(24 * MiB)

        async def serve(reader, writer):
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"go ahead\n")
            await writer.start_tls(server_context, **ground.required)
            upgraded.set_result(reader)
            await read_on.wait()
            assert await reader.readexactly(len(data)) == data
            writer.write(b"thanks")
            await closed(writer)

        server = await aio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await aio.open_connection("127.0.0.1", port_of(server))
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go ahead\n"
        await writer.start_tls(client, server_hostname=tls.HOST, **ground.required)
        far_reader = await upgraded

        async def send():
            for begin in range(0, len(data), 100_000):
                writer.write(data[begin : begin + 100_000])
                await writer.drain()

        sending = asyncio.create_task(send())
        await asyncio.sleep(0.5)
        assert not sending.done()
        assert len(far_reader._buffer) < 2 * MiB
        read_on.set()
        await sending
        assert await reader.readexactly(6) == b"thanks"
        await closed(writer)
        await stop(server)

    ground.run(main)


@pytest.mark.parametrize("side", ["server", "client"])
def test_starttls_of_streams_after_more_than_was_read(ground, side):
    """Anybody on the way can have sent it: CVE-2011-0411."""
    more = b"DELETE everything\n"

    async def upgrade(reader, writer, context, **keywords):
        with pytest.raises(pyktls.HandoffRefused, match="18 bytes"):
            await writer.start_tls(context, **keywords)
        with pytest.raises(pyktls.HandoffRefused, match="18 bytes"):
            await reader.readline()
        assert writer.is_closing()

    async def main():
        client, server_context = ground.contexts()
        served = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            assert await reader.readline() == b"STARTTLS\n"
            if side == "server":
                await upgrade(reader, writer, server_context)
            else:
                writer.write(b"go ahead\n" + more)
                assert await reader.read() == b""
                await closed(writer)
            served.set_result(None)

        server = await aio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await aio.open_connection("127.0.0.1", port_of(server))
        if side == "server":
            writer.write(b"STARTTLS\n" + more)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            await closed(writer)
        else:
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go ahead\n"
            await upgrade(reader, writer, client, server_hostname=tls.HOST)
        await served
        await stop(server)

    ground.run(main)


def test_starttls_on_a_connection_that_is_lost(ground):
    """The protocol is told once."""

    async def main():
        loop = asyncio.get_running_loop()
        client, _ = ground.contexts()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            transport, near = await loop.create_connection(Recorder, *listener.getsockname())
            listener.accept()[0].close()
            assert await near.lost is None
            for _ in range(2):
                with pytest.raises(ConnectionResetError, match="before TLS"):
                    await aio.start_tls(transport, near, client, server_hostname=tls.HOST)
            assert near.calls == ["made", "eof", "lost"]
            transport, near = await loop.create_connection(Recorder, *listener.getsockname())
            peer, _ = listener.accept()
            with peer:
                transport.close()
                with pytest.raises(ConnectionResetError, match="before TLS"):
                    await aio.start_tls(transport, near, client, server_hostname=tls.HOST)
                assert await near.lost is None
            assert near.calls == ["made", "lost"]

    ground.run(main)


@pytest.mark.parametrize("how", ["close", "abort", "reset"])
def test_starttls_on_a_connection_that_is_lost_while_it_waits(ground, how):
    async def main():
        loop = asyncio.get_running_loop()
        client, _ = ground.contexts()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            transport, near = await loop.create_connection(Recorder, *listener.getsockname())
            peer, _ = listener.accept()
            transport.write(bytes(64 * MiB))
            turning = asyncio.create_task(
                aio.start_tls(transport, near, client, server_hostname=tls.HOST)
            )
            await asyncio.sleep(0.1)
            assert not turning.done()
            if how == "reset":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
            else:
                getattr(transport, how)()
                peer.close()
            with pytest.raises(ConnectionError):
                await turning
            await near.lost
            assert near.calls.count("lost") == 1

    ground.run(main)


def test_starttls_that_fails(ground):
    async def main():
        loop = asyncio.get_running_loop()
        _, server_context = ground.contexts()
        stranger = ssl.create_default_context()
        protocols = []

        def make():
            protocols.append(Upgrading(server_context, ground.required, b"go\n"))
            return protocols[-1]

        server = await loop.create_server(make, "127.0.0.1", 0)
        transport, near = await loop.create_connection(Recorder, "127.0.0.1", port_of(server))
        transport.write(b"STARTTLS\n")
        await near.until(3)
        with pytest.raises(ssl.SSLCertVerificationError):
            await aio.start_tls(transport, near, stranger, server_hostname=tls.HOST)
        await near.lost
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await protocols[0].upgrade
        await protocols[0].lost
        await stop(server)
        ground.unexpected.clear()

    ground.run(main)


@pytest.mark.parametrize("how", ["cancelled", "too late", "eof", "reset"])
def test_starttls_whose_handshake_comes_to_nothing(ground, how):
    """The protocol is told at once, and once."""

    async def main():
        loop = asyncio.get_running_loop()
        client, _ = ground.contexts()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with nothing_left():
                transport, near = await loop.create_connection(Recorder, *listener.getsockname())
                peer, _ = listener.accept()
                with peer:
                    peer.setblocking(False)
                    turning = asyncio.create_task(
                        aio.start_tls(
                            transport, near, client, server_hostname=tls.HOST,
                            ssl_handshake_timeout=0.5 if how == "too late" else TIMEOUT,
                        )
                    )  # fmt: skip
                    assert await loop.sock_recv(peer, 10_000)  # ClientHello
                    assert near.calls == ["made"]
                    if how == "cancelled":
                        turning.cancel()
                    elif how == "reset":
                        linger = struct.pack("ii", 1, 0)
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    if how in ("eof", "reset"):
                        peer.close()
                    with pytest.raises(
                        {
                            "cancelled": asyncio.CancelledError,
                            "too late": ConnectionAbortedError,
                        }.get(how, ConnectionError)
                    ) as caught:
                        await turning
                    assert near.calls == ["made", "lost"]
                    told = near.lost.result()
                    assert told is None if how == "cancelled" else told is caught.value
                    if how in ("cancelled", "too late"):
                        with contextlib.suppress(ConnectionError):
                            assert await loop.sock_recv(peer, 1) == b""
            for _ in range(5):
                await asyncio.sleep(0)
            assert near.calls == ["made", "lost"]

    ground.run(main)


@pytest.mark.parametrize("kind", [Recorder, BufferedRecorder])
def test_starttls_with_data_behind_the_handshake(ground, kind):
    """What comes together with the last message of the handshake is delivered."""
    data = pattern(120_000)

    class Server(kind):
        def connection_made(self, transport) -> None:
            self.transport = transport
            servers.append(self)

    servers: list[Any] = []

    async def main():
        loop = asyncio.get_running_loop()
        client, server_context = ground.contexts()
        server = await loop.create_server(Server, "127.0.0.1", 0)
        async with nothing_left():
            with socket.create_connection(("127.0.0.1", port_of(server))) as sock:
                sock.setblocking(False)
                while not servers:
                    await asyncio.sleep(0.001)
                (far,) = servers
                call = Cut(0, late=False)
                turning = asyncio.create_task(
                    call(
                        aio.start_tls(
                            far.transport, far, server_context, server_side=True, **ground.required
                        )
                    )
                )
                await call.began_to_wait.wait()
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                peer = client.wrap_bio(incoming, outgoing, server_hostname=tls.HOST)
                while True:
                    try:
                        peer.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        await loop.sock_sendall(sock, outgoing.read())
                        incoming.write(await loop.sock_recv(sock, 100_000))
                peer.write(data[:100])
                await loop.sock_sendall(sock, outgoing.read())  # with Finished, if it is TLS 1.3
                secure = await turning
                peer.write(data[100:])
                await loop.sock_sendall(sock, outgoing.read())
                while len(far.data) < len(data):
                    await asyncio.sleep(0.01)
                assert far.data == data
                assert secure.get_protocol() is far
                secure.abort()
                await far.lost
        server.close()

    ground.run(main)


def test_starttls_wants_a_context(ground):
    async def main():
        async with pair(ground) as (near, _):
            with pytest.raises(TypeError):
                await aio.start_tls(near.transport, near, None)  # type: ignore[arg-type]

    ground.run(main)


class Tunnel(asyncio.Transport):
    """Carries what it is given in a way of its own, and says over which socket."""

    def __init__(self, carrier) -> None:
        super().__init__()
        self.carrier = carrier
        self.written = b""

    def get_extra_info(self, name, default=None):
        return self.carrier.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self.carrier.is_closing()

    def write(self, data) -> None:
        self.written += data


def test_starttls_takes_no_socket_from_beneath_another_transport(ground):
    async def main():
        client, _ = ground.contexts()
        loop = asyncio.get_running_loop()
        far = Recorder()
        server = await loop.create_server(lambda: far, "127.0.0.1", 0)
        plain, near = await loop.create_connection(Recorder, "127.0.0.1", port_of(server))
        with pytest.raises(pyktls.InvalidType, match="made by the loop"):
            await aio.start_tls(Tunnel(plain), near, client, server_hostname=tls.HOST)
        plain.write(b"on")  # it is as it was
        await far.made.wait()
        await far.until(2)
        assert far.data == b"on"
        plain.close()
        await near.lost
        await far.lost
        await stop(server)

    ground.run(main)


# ---- TLS within TLS --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 8 * MiB])
def test_tls_within_tls(ground, size):
    """As behind an HTTPS proxy: the outer one is the kernel's, the inner one asyncio's own.

    What was written before comes first, all of it.
    """

    async def main():
        inner_client, inner_server = ground.contexts()
        data = pattern(MiB)
        async with pair(ground) as (near, far):
            far.transport.write(bytes(size))
            turning = asyncio.create_task(
                aio.start_tls(far.transport, far, inner_server, server_side=True)
            )
            await near.until(size)
            near.transport = await aio.start_tls(
                near.transport, near, inner_client, server_hostname=tls.HOST
            )
            far.transport = await turning
            near.transport.write(data)
            await far.until(len(data))
            assert far.data == data
            far.transport.write(data[::-1])
            await near.until(size + len(data))
            assert near.data == bytes(size) + data[::-1]
            made = near.transport
            assert made.get_extra_info("sslcontext") is inner_client
            assert made.get_extra_info("ssl_object").context is inner_client
            assert made.get_extra_info("peername") == far.transport.get_extra_info("sockname")
            assert made.get_extra_info("ktls") is None  # what is within is in no kernel
            if ground.carrier == KERNEL:
                assert pyktls.status(made.get_extra_info("socket")).tx  # the outer one is
            made.close()
            assert await near.lost is None
            assert await far.lost is None

    ground.run(main)


def test_tls_within_tls_of_streams(ground):
    async def main():
        client, server_context = ground.contexts()
        inner_client, inner_server = ground.contexts()

        async def serve(reader, writer):
            assert await reader.readline() == b"CONNECT\n"
            writer.write(b"go ahead\n")
            await writer.start_tls(inner_server)
            await echo(reader, writer)

        async with ground.server(serve, server_context) as server:
            reader, writer = await ground.connect(port_of(server), client)
            writer.write(b"CONNECT\n")
            assert await reader.readline() == b"go ahead\n"
            await writer.start_tls(inner_client, server_hostname=tls.HOST)
            assert writer.get_extra_info("sslcontext") is inner_client
            data = pattern(MiB)
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            await closed(writer)

    ground.run(main)


def test_tls_within_tls_by_the_loop(ground):
    """asyncio's own start_tls, as clients call it that know nothing of pyktls."""

    async def main():
        loop = asyncio.get_running_loop()
        inner_client, inner_server = ground.contexts()
        async with pair(ground) as (near, far):
            if not ground.asyncio_loop and ground.in_transport:  # uvloop knows only its own
                with pytest.raises(TypeError, match="KTLSTransport"):
                    await loop.start_tls(
                        near.transport, near, inner_client, server_hostname=tls.HOST
                    )
                return
            turning = asyncio.create_task(
                loop.start_tls(far.transport, far, inner_server, server_side=True)
            )
            near.transport = await loop.start_tls(
                near.transport, near, inner_client, server_hostname=tls.HOST
            )
            far.transport = await turning
            near.transport.write(b"within")
            await far.until(6)
            assert far.data == b"within"
            near.transport.close()
            assert await near.lost is None
            assert await far.lost is None

    ground.run(main)


def test_tls_within_tls_is_in_no_kernel(ground):
    async def main():
        client, _ = ground.contexts()
        async with pair(ground) as (near, far):
            with pytest.raises(pyktls.HandoffRefused, match="over TLS already"):
                await aio.start_tls(
                    near.transport, near, client, server_hostname=tls.HOST, require=True
                )
            assert isinstance(await near.lost, pyktls.HandoffRefused)
            await far.lost

    ground.run(main)


# Of CPython before 3.12.2: a TLS within asyncio's own cannot report how its handshake failed.
ABORTS_BADLY = len(inspect.signature(sslproto.SSLProtocol._abort).parameters) == 1


def test_a_handshake_within_tls_that_fails(ground):
    """It is told on both sides, and the outer connection is over."""

    async def main():
        _, inner_server = ground.contexts()
        stranger = ssl.create_default_context()  # which does not know who signed it
        error, others = ssl.SSLCertVerificationError, (ssl.SSLError, ConnectionError)
        aborts_badly = ground.carrier == ASYNCIO and ground.asyncio_loop and ABORTS_BADLY
        if aborts_badly:
            error, others = TypeError, (TypeError,)
        async with pair(ground) as (near, far):
            turning = asyncio.create_task(
                aio.start_tls(far.transport, far, inner_server, server_side=True)
            )
            with pytest.raises(error):
                await aio.start_tls(near.transport, near, stranger, server_hostname=tls.HOST)
            with pytest.raises(others):
                await turning
            assert isinstance(await near.lost, error)
            assert isinstance(await far.lost, others)
        if aborts_badly:
            ground.was_told_of(TypeError)

    ground.run(main)


# ---- when descriptors run out ----------------------------------------------------------------


def test_accepting_when_descriptors_run_out(own_ground, monkeypatch):
    """It rests for a moment, tells the loop, and goes on."""
    from pyktls.aio import serving  # noqa: PLC0415

    monkeypatch.setattr(serving, "_ACCEPT_RETRY_DELAY", 0.1)

    async def main():
        import resource  # noqa: PLC0415

        client, server_context = own_ground.contexts()
        async with own_ground.server(echo, server_context) as server:
            used = max(open_descriptors()) + 1
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            sock = socket.create_connection(("127.0.0.1", port_of(server)))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
            try:
                fillers = []
                with contextlib.suppress(OSError):
                    while True:
                        fillers.append(os.dup(0))
                await asyncio.sleep(0.3)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for fd in fillers:
                    os.close(fd)
            assert any("out of system resource" in c["message"] for c in own_ground.unexpected)
            own_ground.unexpected.clear()

            def talk():
                sock.settimeout(20)
                with client.wrap_socket(sock, server_hostname=tls.HOST) as secure:
                    secure.sendall(b"late")
                    return secure.recv(10)

            assert await in_thread(talk) == b"late"

    own_ground.run(main)
