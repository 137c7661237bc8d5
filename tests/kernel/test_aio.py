"""pyktls.aio over connections that the kernel carries."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import select
import socket
import ssl
import threading
import time

import pytest
from aiohttp import web

import pyktls
from pyktls import aio, closing, file_transfer, linux
from pyktls.aio.transport import KTLSTransport
from pyktls.lowlevel import lib
from pyktls.protocol import ALERT, APPLICATION_DATA, FATAL, INTERNAL_ERROR, Direction
from pyktls.running_system import system
from pyktls.ssl_errors import SSLRecordError
from support import tls
from support.aio import (
    KERNEL,
    LOOPS,
    Ground,
    closed,
    in_thread,
    nothing_left,
    plain_client,
    port_of,
    small_buffers,
    stop,
)
from support.aio_suite import *  # noqa: F403
from support.aio_suite import (  # noqa: F401
    MiB,
    Recorder,
    big_file,
    echo,
    pair,
    pattern,
    take_little,
    talk,
)
from support.kernel import Wire, kernel_can_rekey, recv_exactly, recv_to_end
from support.systems import linux_only

NO_KERNEL_HAS = "ECDHE-ECDSA-AES128-CCM8"  # eight bytes of tag


# All of it on asyncio's loop, and with TLS 1.3 on uvloop too; tests/unit and tests/freebsd have the
# rest, without an emulated machine.
GROUNDS = [("asyncio", tls.TLS_1_2), *((name, tls.TLS_1_3) for name in LOOPS)]


@pytest.fixture(params=GROUNDS, ids=lambda value: f"{value[0]}-{value[1].name}")
def ground(request, monkeypatch):
    return Ground(KERNEL, *request.param, monkeypatch)


@pytest.fixture
def own_ground(ground):
    return ground


def wire_client(port: int, context: ssl.SSLContext) -> Wire:
    """A client that can send what no TLS library would; it has made its handshake."""
    pyktls.watch(context)
    tls_sock = plain_client(port, context)
    session = pyktls.extract(tls_sock)
    sock = socket.socket(fileno=tls_sock.detach())
    sock.settimeout(30)
    return Wire(sock, session)


def wait_for_end(wire: Wire) -> None:
    with wire.sock, contextlib.suppress(ConnectionError):
        while wire.sock.recv(65536):
            pass


@pytest.fixture
def ground_1_3(loop_name, monkeypatch):
    return Ground(KERNEL, loop_name, tls.TLS_1_3, monkeypatch)


# ---- who carries it --------------------------------------------------------------------------


def test_the_kernel_has_both_ends(ground):
    async def main():
        async with pair(ground) as (near, far):
            for transport in (near.transport, far.transport):
                assert isinstance(transport, KTLSTransport)
                status = transport.get_extra_info("ktls")
                assert status.tx
                assert status.rx
                assert status.refusal is None
                sock = transport.get_extra_info("socket")
                assert pyktls.status(sock) == status

    ground.run(main)


def test_a_cipher_that_the_kernel_does_not_have(loop_name, monkeypatch):
    """OpenSSL carries it, behind the same transport; with require it is refused."""
    ground = Ground(KERNEL, loop_name, tls.TLS_1_2, monkeypatch)

    async def main():
        client, server_context = ground.contexts(cipher=NO_KERNEL_HAS)
        async with ground.server(echo, server_context, require=False) as server:
            reader, writer = await ground.connect(port_of(server), client, require=False)
            assert isinstance(writer.transport, KTLSTransport)
            status = writer.get_extra_info("ktls")
            assert not status.tx
            assert not status.rx
            assert isinstance(status.refusal, pyktls.Unavailable | pyktls.HandoffRefused)
            writer.write(b"by OpenSSL" * 10_000)
            assert await reader.readexactly(100_000) == b"by OpenSSL" * 10_000
            await closed(writer)
            with pytest.raises((pyktls.Unavailable, pyktls.HandoffRefused)):
                await ground.connect(port_of(server), client, require=True)
        async with ground.server(echo, server_context, require=True) as server:
            reader, writer = await ground.connect(port_of(server), client, require=False)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.transport.abort()
        ground.unexpected.clear()

    ground.run(main)


def test_a_context_of_wrap_context(loop_name, monkeypatch):
    """It is taken as it is, and what it requires is required."""
    ground = Ground(KERNEL, loop_name, tls.TLS_1_2, monkeypatch)

    async def main():
        client, server_context = ground.contexts()
        pyktls.wrap_context(client)
        pyktls.wrap_context(server_context, require=True)
        async with ground.server(echo, server_context) as server:
            reader, writer = await ground.connect(port_of(server), client)
            writer.write(b"wrapped")
            assert await reader.readexactly(7) == b"wrapped"
            await closed(writer)
        client, server_context = ground.contexts(cipher=NO_KERNEL_HAS)
        pyktls.wrap_context(client, require=True)
        async with ground.server(echo, server_context, require=False) as server:
            with pytest.raises((pyktls.Unavailable, pyktls.HandoffRefused)):
                await ground.connect(port_of(server), client, require=False)

    ground.run(main)


def test_client_authentication_after_the_handshake_is_left_to_openssl(ground_1_3):
    async def main():
        client, server_context = ground_1_3.contexts(post_handshake_auth=True)
        async with ground_1_3.server(echo, server_context, require=False) as server:
            reader, writer = await ground_1_3.connect(port_of(server), client, require=False)
            assert "post_handshake_auth" in str(writer.get_extra_info("ktls").refusal)
            writer.write(b"data")
            assert await reader.readexactly(4) == b"data"
            await closed(writer)

    ground_1_3.run(main)


# ---- files -----------------------------------------------------------------------------------


def no_write(*_):
    raise AssertionError("the file was read and written")


WAYS = [("asyncio", "loop"), *((name, "aio") for name in LOOPS)]


@pytest.mark.parametrize(("name", "way"), WAYS)
@pytest.mark.parametrize(("offset", "count"), [(0, None), (77, 4 * MiB + 5), (9 * MiB, None)])
def test_files_go_by_sendfile(name, way, version, monkeypatch, big_file, offset, count):  # noqa: F811
    """Not by reading and writing, neither ours nor that of asyncio's loop."""
    ground = Ground(KERNEL, name, version, monkeypatch)

    async def main():
        send = aio.sendfile if way == "aio" else asyncio.get_running_loop().sendfile
        async with pair(ground) as (near, far):
            data = big_file.read_bytes()[offset:]
            data = data if count is None else data[:count]
            near.transport.write(b"head")
            monkeypatch.setattr(KTLSTransport, "write", no_write)
            with big_file.open("rb") as file:
                assert await send(near.transport, file, offset, count) == len(data)
                assert file.tell() == offset + len(data) if data else True
            monkeypatch.undo()
            near.transport.write(b"tail")
            await far.until(len(data) + 8)
            assert far.data == b"head" + data + b"tail"
            # The transport goes on both ways, on either loop's terms.
            far.transport.write(b"answer")
            await near.until(6)

    ground.run(main)


# Linux makes what is possible of 1; FreeBSD takes it, and then has no room for an alert.
SMALL = 1 if lib.pyktls_system() == lib.PYKTLS_LINUX else 8192


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_files_with_a_small_send_buffer(name, way, version, monkeypatch, big_file):  # noqa: F811
    """Linux before 6.5 stops here for good, if a call goes beyond the end of a record."""
    ground = Ground(KERNEL, name, version, monkeypatch)

    async def main():
        send = aio.sendfile if way == "aio" else asyncio.get_running_loop().sendfile
        async with pair(ground) as (near, far):
            sock = near.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            near.transport.write(b"head")
            with big_file.open("rb") as file:
                assert await send(near.transport, file, 3, 500_000) == 500_000
            near.transport.write(b"tail")
            await far.until(500_008)
            assert far.data == b"head" + big_file.read_bytes()[3:500_003] + b"tail"

    ground.run(main)


@pytest.fixture
def asyncio_ground(version, monkeypatch):
    return Ground(KERNEL, "asyncio", version, monkeypatch)


def test_the_loops_sendfile_of_what_is_no_file(asyncio_ground):
    async def main():
        async with pair(asyncio_ground) as (near, far):
            data = pattern(MiB)
            sent = await asyncio.get_running_loop().sendfile(near.transport, io.BytesIO(data))
            assert sent == len(data)
            await far.until(len(data))
            assert far.data == data

    asyncio_ground.run(main)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_closing_while_the_loop_sends_a_file(asyncio_ground, big_file, how):  # noqa: F811
    """loop.sendfile waits for the socket: it is woken up and told."""

    async def main():
        async with pair(asyncio_ground, ssl_shutdown_timeout=0.7) as (near, far):
            take_little(near, far)
            with big_file.open("rb") as file:
                loop = asyncio.get_running_loop()
                sending = asyncio.create_task(loop.sendfile(near.transport, file))
                await asyncio.sleep(0.2)
                assert not sending.done()
                getattr(near.transport, how)()
                with pytest.raises((OSError, RuntimeError)):
                    async with asyncio.timeout(20):
                        await sending
            await near.lost

    asyncio_ground.run(main)


needs_uvloop = pytest.mark.skipif("uvloop" not in LOOPS, reason="uvloop is not installed")


@needs_uvloop
def test_uvloop_has_no_sendfile_of_its_own(version, monkeypatch, big_file):  # noqa: F811
    """So programs that call it fall back, as aiohttp does; pyktls.aio.sendfile is the way."""
    ground = Ground(KERNEL, "uvloop", version, monkeypatch)

    async def main():
        async with pair(ground) as (near, _):
            with big_file.open("rb") as file, pytest.raises(NotImplementedError):
                await asyncio.get_running_loop().sendfile(near.transport, file)

    ground.run(main)


@pytest.mark.parametrize("name", LOOPS)
def test_files_of_aiohttp(name, monkeypatch, tmp_path):
    """They go by sendfile(2) on asyncio's loop; uvloop has none, and there aiohttp reads them."""
    ground = Ground(KERNEL, name, tls.TLS_1_3, monkeypatch)
    content = pattern(3 * MiB)
    (tmp_path / "file").write_bytes(content)
    ways = set()

    def note(owner, method, way):
        real = getattr(owner, method)

        def noting(*arguments):
            ways.add(way)
            return real(*arguments)

        monkeypatch.setattr(owner, method, noting)

    note(KTLSTransport, "_descriptor_for_file", "sendfile")
    note(web.FileResponse, "_sendfile_fallback", "read and written")

    async def main():
        client, server_context = ground.contexts()
        app = web.Application()
        app.router.add_static("/files", tmp_path)
        runner = web.AppRunner(app)
        await runner.setup()
        server = await aio.create_server(
            runner.server, "127.0.0.1", 0, ssl=server_context, **ground.required
        )

        def fetch():
            with plain_client(port_of(server), client) as sock:
                sock.sendall(
                    b"GET /files/file HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                head, _, body = recv_to_end(sock).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert body == content

        await in_thread(fetch)
        server.close()
        await runner.cleanup()
        await server.wait_closed()

    ground.run(main)
    assert ways == {"read and written" if name == "uvloop" else "sendfile"}


# ---- a KTLSSocket in a transport of the loop's own -------------------------------------------


@contextlib.asynccontextmanager
async def in_the_loops_transport():
    """A protocol over a KTLSSocket whose transport is the loop's own, and the SSLSocket opposite.

    The first thing that comes from there is a session ticket.
    """
    with tls.handshaken(tls.TLS_1_3, tickets=2) as ends:
        ends.server.settimeout(30)
        ends.server.suppress_ragged_eofs = False
        sock = pyktls.offload(ends.client)
        sock.setblocking(False)
        _, near = await asyncio.get_running_loop().create_connection(Recorder, sock=sock)
        try:
            yield near, ends.server
        finally:
            near.transport.abort()
            await near.lost


@needs_uvloop
@linux_only
def test_uvloops_own_transport_fails_at_a_ticket(monkeypatch):
    """It reads past the object: to read(2) a record that is no data is an error."""
    ground = Ground(KERNEL, "uvloop", tls.TLS_1_3, monkeypatch)

    async def main():
        async with in_the_loops_transport() as (near, peer):
            peer.sendall(b"data")
            lost = await near.lost
            assert isinstance(lost, OSError)
            assert lost.errno == errno.EIO
            assert not near.data

    ground.run(main)


def test_asyncios_own_transport_takes_a_ktls_socket(monkeypatch):
    ground = Ground(KERNEL, "asyncio", tls.TLS_1_3, monkeypatch)

    async def main():
        async with in_the_loops_transport() as (near, peer):
            peer.sendall(b"data")
            await near.until(4)
            near.transport.write(b"answer")
            assert await in_thread(recv_exactly, peer, 6) == b"answer"
            near.transport.close()
            assert await near.lost is None
            assert await in_thread(peer.recv, 1) == b""  # and not a ragged end
            assert near.data == b"data"

    ground.run(main)


def test_closing_a_ktls_socket_blocks_asyncios_loop(monkeypatch):
    """Until everything is sent; pyktls.aio has its own way for that."""
    ground = Ground(KERNEL, "asyncio", tls.TLS_1_3, monkeypatch)
    begun = threading.Event()

    def close(layer, seconds):
        begun.set()
        real(layer, seconds)

    real = closing.close
    monkeypatch.setattr(closing, "close", close)

    async def main():
        loop = asyncio.get_running_loop()
        turns = 0

        def count():
            nonlocal turns
            turns += 1
            counting[0] = loop.call_soon(count)

        async with in_the_loops_transport() as (near, peer):
            small_buffers(near.transport.get_extra_info("socket"))
            sock = near.transport._sock
            data = pattern(16 * MiB)
            sent = 0
            while select.select([], [sock], [], 0.5)[1]:
                with contextlib.suppress(BlockingIOError):
                    sent += sock.send(data[sent : sent + 16384])

            def take():
                assert begun.wait(30)
                before = turns
                time.sleep(0.3)
                stood_still = turns == before
                return stood_still, recv_to_end(peer)

            counting = [loop.call_soon(count)]
            taking = asyncio.create_task(in_thread(take))
            near.transport.close()
            await near.lost
            counting[0].cancel()
            stood_still, got = await taking
            assert stood_still
            assert got == data[:sent]

    ground.run(main)


def test_nothing_is_written_into_a_file(own_ground, big_file):  # noqa: F811
    async def main():
        async with pair(own_ground) as (near, far):
            take_little(near, far)
            with big_file.open("rb") as file:
                sending = asyncio.create_task(aio.sendfile(near.transport, file))
                await asyncio.sleep(0.1)
                for write in (near.transport.write, lambda data: near.transport.writelines([data])):
                    with pytest.raises(RuntimeError, match="sendfile"):
                        write(b"x")
                with pytest.raises(RuntimeError, match="another file"):
                    await aio.sendfile(near.transport, file)
                with pytest.raises(RuntimeError, match="sendfile"):
                    near.transport.write(b"x")  # still
                far.transport.resume_reading()
                assert await sending == 9 * MiB

    own_ground.run(main)


def test_what_comes_while_a_file_is_sent_waits(own_ground, big_file, monkeypatch):  # noqa: F811
    """And does not keep the loop busy: it looks away at the latest when something has come."""
    looks = 0
    real = KTLSTransport._read_ready

    def look(transport):
        nonlocal looks
        looks += 1
        real(transport)

    monkeypatch.setattr(KTLSTransport, "_read_ready", look)

    async def main():
        nonlocal looks
        async with pair(own_ground) as (near, far):
            for number in range(1, 4):
                take_little(near, far)
                with big_file.open("rb") as file:
                    sending = asyncio.create_task(aio.sendfile(near.transport, file))
                    await asyncio.sleep(0.1)
                    assert not near.transport.is_reading()
                    looks = 0
                    for _ in range(3):
                        far.transport.write(b"question")
                        await asyncio.sleep(0.1)
                    assert looks <= 1
                    assert len(near.data) == 24 * (number - 1)
                    far.transport.resume_reading()
                    assert await sending == 9 * MiB
                assert near.transport.is_reading()
                await near.until(24 * number)
            assert near.data == b"question" * 9

    own_ground.run(main)


def test_a_small_file_changes_nothing_at_the_loop(monkeypatch, tmp_path):
    """Where there is room for all of it, and nothing comes, the loop watches on as it did."""
    ground = Ground(KERNEL, "asyncio", tls.TLS_1_3, monkeypatch)
    path = tmp_path / "small"
    path.write_bytes(b"small")

    async def main():
        loop = asyncio.get_running_loop()
        asked = []

        def note(name):
            real = getattr(loop, name)

            def noting(fd, *arguments):
                asked.append((name, fd))
                return real(fd, *arguments)

            monkeypatch.setattr(loop, name, noting)

        async with pair(ground) as (near, far):
            for direction in ("reader", "writer"):
                note(f"add_{direction}")
                note(f"remove_{direction}")
            with path.open("rb") as file:
                for number in range(1, 4):
                    assert await aio.sendfile(near.transport, file) == 5
                    await far.until(5 * number)
            assert asked == []
            far.transport.write(b"thanks")
            await near.until(6)
            near.transport.close()
            await near.lost
            assert asked  # it is the right loop

    ground.run(main)


def test_what_fails_at_once_leaves_the_file_where_it_was(monkeypatch, tmp_path):
    ground = Ground(KERNEL, "asyncio", tls.TLS_1_3, monkeypatch)
    path = tmp_path / "small"
    path.write_bytes(b"small")

    def fail(*_):
        raise pyktls.RecordError("for the test")

    async def main():
        async with pair(ground) as (near, far):
            with path.open("rb") as file:
                assert await aio.sendfile(near.transport, file) == 5
                with monkeypatch.context() as patch:
                    patch.setattr(file_transfer, "send_some_pages", fail)
                    with pytest.raises(SSLRecordError, match="for the test") as caught:
                        await aio.sendfile(near.transport, file, 2)
                assert isinstance(caught.value.__cause__, pyktls.RecordError)
                assert file.tell() == 2
                assert near.transport.is_reading()
                assert await aio.sendfile(near.transport, file, 3, 1) == 1
                assert file.tell() == 4
            await far.until(6)
            assert far.data == b"smalll"

    ground.run(main)


def test_a_file_leaves_a_paused_transport_paused(own_ground, big_file):  # noqa: F811
    async def main():
        async with pair(own_ground) as (near, far):
            near.transport.pause_reading()
            far.transport.write(b"question")
            with big_file.open("rb") as file:
                assert await aio.sendfile(near.transport, file) == 9 * MiB
                assert file.tell() == 9 * MiB
            assert not near.transport.is_reading()
            await asyncio.sleep(0.1)
            assert near.data == b""
            near.transport.resume_reading()
            await near.until(8)

    own_ground.run(main)


# ---- pieces ----------------------------------------------------------------------------------


def test_pieces_are_gathered_into_records(ground):
    """writelines is one call of the kernel, which makes as few records of it as there can be."""

    async def main():
        client, server_context = ground.contexts()

        async def serve(reader, writer):
            assert await reader.readexactly(2) == b"go"
            writer.writelines([b"%05d" % number for number in range(500)])
            writer.writelines([bytes([number]) * 200 for number in range(200)])
            await closed(writer)

        async with ground.server(serve, server_context) as server:

            def fetch():
                wire = wire_client(port_of(server), client)
                wire.send_data(b"go")
                records = []
                with wire.sock:
                    while True:
                        record_type, payload = wire.recv()
                        if record_type == ALERT:
                            return records
                        if record_type == APPLICATION_DATA:  # else a session ticket
                            records.append(payload)

            records = await in_thread(fetch)
            assert [len(record) for record in records] == [2500, 16384, 16384, 7232]
            expected = [*(b"%05d" % n for n in range(500)), *(bytes([n]) * 200 for n in range(200))]
            assert b"".join(records) == b"".join(expected)

    ground.run(main)


def test_pieces_that_have_to_wait_are_gathered_too(ground):
    async def main():
        async with pair(ground) as (near, far):
            take_little(near, far)
            block, pieces = pattern(4 * MiB), [b"%04d" % number for number in range(1000)]
            end = near.transport._end
            calls = []

            def send_gathered(given, real=end.send_gathered):
                sent = real(given)
                calls.append((len(given), sent))
                return sent

            end.send_gathered = send_gathered
            near.transport.write(block)
            near.transport.writelines(pieces)
            assert not calls
            far.transport.resume_reading()
            await far.until(len(block) + 4000)
            assert far.data == block + b"".join(pieces)
            # As many at once as there may be, once the block is out.
            assert calls[0][0] == 512
            assert calls[-1][0] <= 489
            left = len(block)
            behind = 0
            for _, sent in calls:
                behind += left <= 0
                left -= sent
            assert behind <= 2

    ground.run(main)


# ---- what comes after the handshake ----------------------------------------------------------


def test_half_a_connection(ground_1_3):
    """RFC 8446 section 6.1: one direction ends, the other goes on."""

    async def main():
        async with pair(ground_1_3) as (near, far):
            far.keep_open = True
            assert near.transport.can_write_eof()
            near.transport.write(b"the question")
            near.transport.write_eof()
            near.transport.write_eof()
            for write in (near.transport.write, lambda data: near.transport.writelines([data])):
                with pytest.raises(RuntimeError, match="write_eof"):
                    write(b"more")
            await far.eof.wait()
            assert far.data == b"the question"
            data = pattern(5 * MiB)
            far.transport.write(data)
            far.transport.close()
            await near.until(len(data))
            assert near.data == data
            assert await near.lost is None
            assert await far.lost is None

    ground_1_3.run(main)


def test_no_half_with_tls_1_2(loop_name, monkeypatch):
    ground = Ground(KERNEL, loop_name, tls.TLS_1_2, monkeypatch)

    async def main():
        async with pair(ground) as (near, far):
            far.keep_open = True
            assert not near.transport.can_write_eof()
            with pytest.raises(NotImplementedError):
                near.transport.write_eof()
            near.transport.close()
            await near.lost
            assert await far.lost is None  # whatever eof_received said

    ground.run(main)


def assert_cannot_follow(error):
    """What a KeyUpdate is where the kernel cannot change keys: before Linux 6.14, and FreeBSD."""
    assert type(error) is SSLRecordError
    assert str(error).startswith(
        "the peer changed its keys (KeyUpdate), and this kernel cannot follow: " + system.NO_REKEY
    )


@pytest.mark.parametrize("request_ours", [False, True])
def test_key_updates_under_load(ground_1_3, request_ours):
    """The peer changes its keys again and again, with data before and after, both ways.

    A kernel that cannot follow ends the connection with an error, and loses nothing before it.
    """
    rounds, size = 12, 150_000

    async def follow():
        client, server_context = ground_1_3.contexts()
        async with ground_1_3.server(echo, server_context) as server:

            def talk():
                with plain_client(port_of(server), client) as sock:
                    received = 0
                    for number in range(rounds):
                        sock.sendall(bytes([number]) * size)
                        tls.send_key_update(sock, request=request_ours)
                        sock.sendall(bytes([number]) * 10)
                        while received < (size + 10) * (number + 1):
                            piece = sock.recv(65536)
                            assert piece, "an end too early"
                            assert set(piece) <= {number}
                            received += len(piece)
                    return received

            assert await in_thread(talk) == rounds * (size + 10)

    class Answering(Recorder):
        def data_received(self, data) -> None:
            super().data_received(data)
            if len(self.data) == size:
                self.transport.write(self.data)

    async def end():
        client, server_context = ground_1_3.contexts()
        protocols = []

        def make():
            protocols.append(Answering())
            return protocols[-1]

        question, more = pattern(size), pattern(2 * MiB, 2)

        def talk():
            with plain_client(port_of(server), client) as sock:
                sock.sendall(question)
                assert recv_exactly(sock, len(question)) == question
                sock.sendall(more)
                tls.send_key_update(sock, request=request_ours)
                with pytest.raises(ssl.SSLError, match="alert internal error"):
                    sock.recv(1)

        server = await aio.create_server(
            make, "127.0.0.1", 0, ssl=server_context, **ground_1_3.required
        )
        await in_thread(talk)
        (far,) = protocols
        assert_cannot_follow(await far.lost)
        assert far.data == question + more
        assert "eof" not in far.calls
        await stop(server)

    ground_1_3.run(follow if kernel_can_rekey() else end)


def test_changing_keys_while_a_file_is_sent(ground_1_3, big_file, tmp_path):  # noqa: F811
    """The peer asks for new keys in the midst of it; it has its answer when the file is out.

    Where the kernel cannot change them the file comes to its end all the same, and then the error.
    """
    data = big_file.read_bytes()
    log = tmp_path / "keys"

    async def main():
        loop = asyncio.get_running_loop()
        client, server_context = ground_1_3.contexts()
        client.keylog_filename = str(log)
        file_is_there = asyncio.Event()
        served = loop.create_future()

        async def send(reader, writer):
            assert await reader.readexactly(2) == b"go"
            take = writer.get_extra_info("socket").setsockopt
            take(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # so that it is not out at once
            with big_file.open("rb") as file:
                if kernel_can_rekey():
                    await aio.sendfile(writer, file)
                    await aio.sendfile(writer, file)
                    assert await reader.readexactly(2) == b"on"
                    await aio.sendfile(writer, file, 0, MiB)
                    await closed(writer)
                    return
                writer.transport.pause_reading()
                await aio.sendfile(writer, file)
                await file_is_there.wait()
                writer.transport.resume_reading()
                with pytest.raises(ConnectionError) as caught:
                    await reader.read()
                assert_cannot_follow(caught.value)

        async def serve(reader, writer):
            try:
                await send(reader, writer)
            except BaseException as e:
                served.set_exception(e)
                raise
            served.set_result(None)

        async with ground_1_3.server(serve, server_context) as server:

            def fetch():
                with plain_client(port_of(server), client) as sock:
                    sock.sendall(b"go")
                    got = bytearray(sock.recv(100_000))
                    tls.send_key_update(sock, request=True)
                    if kernel_can_rekey():
                        sock.sendall(b"on")
                        got += recv_to_end(sock)
                        assert got == data + data + data[:MiB]
                        assert b"SERVER_TRAFFIC_SECRET_N" in log.read_bytes()
                        return
                    got += recv_exactly(sock, len(data) - len(got))
                    assert got == data
                    loop.call_soon_threadsafe(file_is_there.set)
                    with pytest.raises(ssl.SSLError, match="alert internal error"):
                        sock.recv(1)

            await in_thread(fetch)
            await served

    ground_1_3.run(main)


class Trials:
    """Has the kernel's ciphers be unknown, and notes which thread tries them out."""

    def __init__(self, monkeypatch, *, refuses=False):
        self.threads = []
        self.refuses = refuses
        self.real = linux.system.try_cipher
        monkeypatch.setattr(linux.system, "try_cipher", self)
        monkeypatch.setattr(linux.system, "_accepted", set())
        monkeypatch.setattr(linux.system, "_refused", {})
        monkeypatch.setattr(linux.system, "_rekeys", {})

    def __call__(self, *arguments):
        self.threads.append(threading.get_ident())
        if self.refuses:
            return dict.fromkeys(Direction, OSError(errno.ENOENT, "refused for the test"))
        return self.real(*arguments)


@linux_only
@pytest.mark.parametrize("refuses", [False, True])
def test_a_new_cipher_is_tried_out_beside_the_loop(ground, monkeypatch, refuses):
    """It makes connections, and the kernel may look for modules."""
    ground.warm_up()
    trials = Trials(monkeypatch, refuses=refuses)

    async def main():
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context, require=False) as server:
            reader, writer = await ground.connect(port_of(server), client, require=False)
            status = writer.get_extra_info("ktls")
            assert (bool(status.tx), bool(status.rx)) == (not refuses, not refuses)
            assert isinstance(status.refusal, pyktls.Unavailable) is refuses
            writer.write(b"data")
            assert await reader.readexactly(4) == b"data"
            await closed(writer)

    ground.run(main)
    assert trials.threads
    assert threading.get_ident() not in trials.threads
    if not refuses:
        seen = len(trials.threads)
        ground.run(main)
        assert len(trials.threads) == seen


class Forgotten(set):
    """Keeps nothing, so that either end finds the cipher new, whichever is faster."""

    def add(self, _) -> None:
        pass


@linux_only
def test_cancelling_while_a_cipher_is_tried_out(ground, monkeypatch):
    trials = Trials(monkeypatch)
    monkeypatch.setattr(linux.system, "_accepted", Forgotten())

    async def scenario(cut):
        client, server_context = ground.contexts()
        async with ground.server(echo, server_context) as server:
            async with nothing_left():
                made = await cut(ground.connect(port_of(server), client))
                if made is not None:
                    await closed(made[1])
            await talk(ground, port_of(server), client)
        # Of handshakes that were cut off, or just over.
        ground.was_told_of(ConnectionError, ssl.SSLError, pyktls.HandoffRefused)

    places = ground.at_every_suspension(scenario)
    assert "_try_cipher" in places
    assert trials.threads


def test_a_fatal_alert(ground):
    async def main():
        lost = asyncio.get_running_loop().create_future()

        class Watch(Recorder):
            def connection_lost(self, exc):
                super().connection_lost(exc)
                lost.set_result(exc)

        client, server_context = ground.contexts()
        server = await aio.create_server(
            Watch, "127.0.0.1", 0, ssl=server_context, **ground.required
        )

        def be_rude():
            wire = wire_client(port_of(server), client)
            wire.send(ALERT, bytes((FATAL, INTERNAL_ERROR)))
            wait_for_end(wire)

        await in_thread(be_rude)
        error = await lost
        assert isinstance(error, pyktls.TLSAlert)
        assert error.name == "internal_error"
        assert isinstance(error, ssl.SSLError)
        assert error.reason == "TLSV1_ALERT_INTERNAL_ERROR"  # as OpenSSL names it
        await stop(server)

    ground.run(main)


def test_a_peer_that_is_gone_without_a_word(ground):
    async def main():
        async with pair(ground) as (near, far):
            near.transport.abort()
            await near.lost
            # The latter if it had not read a session ticket yet.
            assert isinstance(await far.lost, pyktls.TruncationError | ConnectionResetError)
            assert "eof" not in far.calls

    ground.run(main)


def test_a_part_of_a_record_keeps_nobody_busy(ground):
    """Linux before 6.5 says all the time that there is something to read."""

    async def main():
        client, server_context = ground.contexts()
        calls = 0

        async def serve(reader, writer):
            assert await reader.readexactly(2) == b"on"
            await closed(writer)

        read_ready = KTLSTransport._read_ready

        def counting(self):
            nonlocal calls
            calls += 1
            read_ready(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KTLSTransport, "_read_ready", counting)
            async with ground.server(serve, server_context, ssl_shutdown_timeout=2.0) as server:
                wire = await in_thread(wire_client, port_of(server), client)
                record = wire.seal(APPLICATION_DATA, b"on")
                wire.sock.sendall(record[:-3])
                await asyncio.sleep(0.2)
                calls = 0
                await asyncio.sleep(1.0)
                assert calls < 150
                wire.sock.sendall(record[-3:])
                await in_thread(wait_for_end, wire)

    ground.run(main)


# ---- many ------------------------------------------------------------------------------------


def test_servers_with_many_files_at_once(ground, big_file):  # noqa: F811
    async def main():
        data = big_file.read_bytes()
        client, server_context = ground.contexts()

        async def serve(reader, writer):
            with big_file.open("rb") as file:
                while line := await reader.readline():
                    offset, count = map(int, line.split())
                    await aio.sendfile(writer, file, offset, count)
            await closed(writer)

        async with ground.server(serve, server_context) as server:

            async def fetch(number):
                reader, writer = await ground.connect(port_of(server), client)
                for step in range(3):
                    offset, count = 1000 * number + step, 200_000 + 77 * number
                    writer.write(f"{offset} {count}\n".encode())
                    assert await reader.readexactly(count) == data[offset : offset + count]
                await closed(writer)

            await asyncio.gather(*map(fetch, range(20)))

    ground.run(main)
