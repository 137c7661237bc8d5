"""What is the portable engine's own: its callback, its key log, its ledger, and what it refuses.

That its keys and numbers are right is in test_engines.py, and where OpenSSL is hidden in all the
tests that hold for any engine (test_hidden_openssl.py).
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import trustme

import pyktls
from pyktls import Direction
from pyktls.engines import choice, evidence, keylog, moved_bytes, portable
from support import tls
from support.records import APPLICATION_DATA, Opener, Sealer, read_record
from support.systems import linux_only
from support.tls import TLS_1_2, TLS_1_3, Pair

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = linux_only

BOTH = pytest.mark.parametrize(
    "version", [pytest.param(TLS_1_2, id="1.2"), pytest.param(TLS_1_3, id="1.3")]
)
NOT_COUNTED = (
    "the kernel does not count the bytes of this connection (it is no TCP connection, or was not "
    "established when TLS began), so nobody can tell whether OpenSSL holds a part of a record"
)
NOT_SEEN_TO_ITS_END = (
    "an event of the connection was not seen to its end, so its records are not counted"
)
SAME_CONTEXT = (
    "both ends of this connection use the same context, and its key log does not tell them apart: "
    "use a context for each side"
)


def handshaken(version: ssl.TLSVersion = TLS_1_3, **knobs: Any) -> Pair:
    return tls.handshaken(version, engine="portable", **knobs)


def state_of(sock: ssl.SSLSocket) -> portable._State:
    state = portable._state_of(sock)
    assert state is not None
    return state


@contextlib.contextmanager
def refused(text: str) -> Iterator[None]:
    with pytest.raises(pyktls.HandoffRefused, match=f"^{re.escape(text)}$"):
        yield


def in_step(pair: Pair) -> None:
    """Both sessions are right: the next record of either end opens with the other's keys."""
    sessions = pyktls.extract(pair.client), pyktls.extract(pair.server)
    for (sender, receiver), receiving in zip(pair.ends(), sessions[::-1], strict=True):
        sending = sessions[0] if receiving is sessions[1] else sessions[1]
        opener = Opener(receiving.cipher, receiving.rx)
        sender.sendall(b"next")
        while opener.sequence < sending.tx.sequence:
            opener.open(tls.raw_read_record(receiver))
        assert opener.open(tls.raw_read_record(receiver)) == (APPLICATION_DATA, b"next")


# ---- the callback ----------------------------------------------------------------------------


@BOTH
def test_a_message_callback_that_was_there_is_still_called(version: ssl.TLSVersion) -> None:
    client, server = tls.contexts(version, watch=False)
    own: list[tuple[object, ...]] = []
    client._msg_callback = lambda *event: own.append(event)  # type: ignore[attr-defined]
    for context in (client, server):
        pyktls.watch(context, engine="portable")
        pyktls.watch(context)  # does not chain to itself, nor change the engine
        assert pyktls.engine_of(context) == "portable"
    with tls.connect(client, server) as pair:
        in_step(pair)
        assert pair.client in {event[0] for event in own}
        kinds = [(event[1], event[3], event[4]) for event in own]
        hello = ("write", 22, 1)
        assert kinds.count(hello) == 1
        headers = [event for event in own if event[3] == 256]
        state = state_of(pair.client)
        assert sum(
            5 + int.from_bytes(event[5][3:], "big")  # type: ignore[index]
            for event in headers
        ) == (state.read.record_bytes + state.write.record_bytes)


def test_an_exception_in_ones_own_callback_is_raised_as_without_pyktls() -> None:
    client, server = tls.contexts(watch=False)

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    client._msg_callback = fails  # type: ignore[attr-defined]
    pyktls.watch(client, engine="portable")
    with tls.wrap_pair(client, server) as pair, pytest.raises(ZeroDivisionError):
        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)


@pytest.mark.parametrize("back_again", [False, True])
@BOTH
def test_records_that_passed_another_callback_leave_the_ledger_open(
    version: ssl.TLSVersion, back_again: bool
) -> None:
    with handshaken(version, tickets=0) as pair:
        context = pair.client.context
        ours = context._msg_callback  # type: ignore[attr-defined]
        context._msg_callback = lambda *_: None  # type: ignore[attr-defined]
        pair.exchange()
        if back_again:
            context._msg_callback = ours  # type: ignore[attr-defined]
        with pytest.raises(pyktls.HandoffRefused, match=r"^not on a record boundary: "):
            pyktls.extract(pair.client)
        pair.exchange()


def test_what_goes_wrong_inside_is_no_harm_to_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(portable._State, "on_inner_type", fails)
    monkeypatch.setitem(portable._DEALING, 257, fails)
    with handshaken() as pair:
        pair.exchange()
        with refused(NOT_SEEN_TO_ITS_END):
            pyktls.extract(pair.client)
        pair.exchange()


def test_a_signal_handler_that_raises_in_between_gets_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    client, server = tls.contexts(engine="portable")
    with tls.wrap_pair(client, server) as pair:
        monkeypatch.setitem(portable._DEALING, 22, interrupted)
        with pytest.raises(KeyboardInterrupt):
            tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
        assert state_of(pair.client).broken


def test_connections_without_a_socket_are_no_trouble() -> None:
    client, server = tls.contexts(engine="portable")
    buffers = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(*buffers, server_hostname=tls.HOST)
    other = server.wrap_bio(*buffers[::-1], server_side=True)
    for _ in range(3):
        for end in (one, other):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    one.write(b"data")
    assert other.read(4) == b"data"


# ---- the ledger ------------------------------------------------------------------------------


@BOTH
def test_plain_data_before_tls_is_no_part_of_the_ledger(version: ssl.TLSVersion) -> None:
    client, server = tls.contexts(version, engine="portable")
    near, far = tls.tcp_pair()
    near.sendall(b"STARTTLS\r\n")
    far.sendall(b"220 go ahead\r\n")
    assert far.recv(100) == b"STARTTLS\r\n"
    assert near.recv(100) == b"220 go ahead\r\n"
    with Pair(
        client.wrap_socket(near, server_hostname=tls.HOST, do_handshake_on_connect=False),
        server.wrap_socket(far, server_side=True, do_handshake_on_connect=False),
    ) as pair:
        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
        pair.exchange()
        in_step(pair)


@BOTH
def test_the_peers_fin_is_no_byte(version: ssl.TLSVersion) -> None:
    with handshaken(version, tickets=0) as pair:
        pair.exchange()
        before = pyktls.extract(pair.client)
        tls.raw(pair.server).shutdown(socket.SHUT_WR)
        while moved_bytes._ask(pair.client)[0] != moved_bytes._CLOSE_WAIT:  # type: ignore[index]
            os.sched_yield()
        after = pyktls.extract(pair.client)
        assert (before.tx, before.rx) == (after.tx, after.rx)
        pair.client.sendall(b"that way is open")
        assert tls.recv_exactly(pair.server, 16) == b"that way is open"


@pytest.mark.parametrize("size", [1, 3, 4, 5, 6])
@BOTH
def test_bytes_that_openssl_took_after_the_extraction_are_noticed(
    version: ssl.TLSVersion, size: int
) -> None:
    # Less than a header is told to no callback.
    with handshaken(version, tickets=0) as pair:
        session = pyktls.extract(pair.client)
        record = Sealer(session.cipher, session.rx).seal(APPLICATION_DATA, b"late")
        tls.deliver(pair.server, pair.client, record[:size])
        assert not session.has_moved()
        assert tls.read_what_is_there(pair.client) == b""
        assert session.has_moved()
        with pytest.raises(pyktls.HandoffRefused, match=r"^not on a record boundary: "):
            pyktls.extract(pair.client)


def test_the_counts_hold_while_the_peer_is_sending() -> None:
    with handshaken(tickets=0) as pair:
        stop = threading.Event()

        def send() -> None:
            pair.server.settimeout(tls.TIMEOUT)
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    pair.server.sendall(b"x" * 1000)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            received = 0
            for _ in range(200):
                received += len(pair.client.recv(1000))
                if not pair.client.pending():
                    assert pyktls.extract(pair.client).rx.sequence * 1000 == received
        finally:
            stop.set()
            pair.client.close()
            thread.join()
        assert received >= 100_000


def test_a_kernel_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved_bytes, "_COUNTS_AT", 10_000)
    moved_bytes.counts_here.cache_clear()
    try:
        reason = "this kernel does not count a connection's bytes (TCP_INFO of Linux 4.1 and later)"
        assert portable.why_not() == reason
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        text = f"the portable engine does not work here: {reason}"
        with pytest.raises(pyktls.Unavailable, match=f"^{re.escape(text)}$"):
            pyktls.watch(context, engine="portable")
        assert pyktls.engine_of(context) is None
        assert context._msg_callback is None  # type: ignore[attr-defined]
        assert context.keylog_filename is None
    finally:
        moved_bytes.counts_here.cache_clear()


def test_a_socket_that_the_kernel_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with handshaken() as pair:
        with monkeypatch.context() as patch:
            patch.setattr(portable, "moved_bytes", lambda _sock: None)
            with refused(NOT_COUNTED):
                pyktls.extract(pair.client)
        pyktls.extract(pair.client)


def test_nothing_to_count() -> None:
    one, other = socket.socketpair()
    for sock in (one, other, socket.socket(), socket.socket(type=socket.SOCK_DGRAM)):
        with sock:
            assert moved_bytes.moved_bytes(sock) is None
        assert moved_bytes.moved_bytes(sock) is None  # closed


def test_moved_bytes_follow_the_reader_and_the_writer() -> None:
    near, far = tls.tcp_pair()
    with near, far:
        written, read = moved_bytes.moved_bytes(near) or (0, 0)
        far_written, far_read = moved_bytes.moved_bytes(far) or (0, 0)
        near.sendall(b"x" * 1000)
        tls.wait_for_bytes(far, 1000)
        assert moved_bytes.moved_bytes(near) == (written + 1000, read)
        assert moved_bytes.moved_bytes(far) == (far_written, far_read)
        assert len(far.recv(300)) == 300
        assert moved_bytes.moved_bytes(far) == (far_written, far_read + 300)


# ---- the key log -----------------------------------------------------------------------------


def log_of(context: ssl.SSLContext) -> keylog.KeyLog:
    return choice.key_log_of(context)


def contents(context: ssl.SSLContext) -> bytes:
    log = log_of(context)
    return os.pread(log._fd, os.fstat(log._fd).st_size, 0)


@BOTH
def test_no_secret_stays_in_the_file(version: ssl.TLSVersion) -> None:
    with handshaken(version) as pair:
        for sock in (pair.client, pair.server):
            pyktls.extract(sock).wipe()
            text = contents(sock.context)
            assert len(text) > 200
            # After CPython's comment zeros alone.
            assert text.startswith(b"#")
            assert set(text.partition(b"\n")[2]) == {0}
        pair.exchange()


def test_what_the_connection_holds_is_wiped_with_it() -> None:
    pair = handshaken()
    pyktls.extract(pair.client)
    state = state_of(pair.client)
    secrets = [state.read.secret, state.write.secret]
    assert all(any(secret) for secret in secrets)
    del state
    pair.close()
    del pair
    gc.collect()
    assert not any(any(secret) for secret in secrets)


def test_an_old_traffic_secret_is_wiped_by_the_next() -> None:
    with handshaken(tickets=0) as pair:
        pyktls.extract(pair.client)
        old = state_of(pair.client).write.secret
        tls.send_key_update(pair.client, request=False)
        pyktls.extract(pair.client)
        assert not any(old)
        assert any(state_of(pair.client).write.secret)


def test_a_refusal_leaves_no_secret_in_the_traceback() -> None:
    with handshaken() as pair:
        secret = pyktls.extract(pair.client).tx.secret
        assert secret is not None
        pair.server.sendall(b"0123456789")
        assert pair.client.recv(1) == b"0"
        with pytest.raises(pyktls.HandoffRefused) as caught:
            pyktls.extract(pair.client)
        frame = caught.value.__traceback__
        seen = 0
        while frame is not None:
            for value in frame.tb_frame.f_locals.values():
                assert secret.hex() not in repr(value)
                if isinstance(value, evidence.Evidence):
                    seen += 1
                    assert not value.write.secret
                    assert not value.master
            frame = frame.tb_next
        assert seen


def test_the_file_does_not_grow_in_memory() -> None:
    client, server = tls.contexts(engine="portable", tickets=0)
    for _ in range(200):
        with tls.connect(client, server) as pair:
            pyktls.extract(pair.client).wipe()
    stat = os.fstat(log_of(client)._fd)
    assert stat.st_size > 2 * keylog._PAGES_AT_ONCE
    assert stat.st_blocks * 512 <= 2 * keylog._PAGES_AT_ONCE


def test_lines_of_connections_that_nobody_watches_are_dropped() -> None:
    client, server = tls.contexts(watch=False)
    with tls.wrap_pair(client, server) as pair:
        pyktls.watch(client, engine="portable")  # too late for this one
        tls.together(pair.client.do_handshake, pair.server.do_handshake, pair)
        with refused(evidence.NOT_WATCHED):
            pyktls.extract(pair.client)
        log = log_of(client)
        assert log.harvest()
        assert set(contents(client).partition(b"\n")[2]) == {0}
        assert not log._secrets


@BOTH
def test_a_log_of_ones_own_gets_its_lines(version: ssl.TLSVersion, tmp_path: Path) -> None:
    client, server = tls.contexts(version, watch=False)
    for context, name in ((client, "client"), (server, "server")):
        context.keylog_filename = str(tmp_path / name)
    pyktls.watch(client, engine="portable")
    with tls.connect(client, server) as pair:
        pair.exchange()
        pyktls.extract(pair.client)
    logs = [(tmp_path / name).read_text().splitlines() for name in ("client", "server")]
    # The same lines in the order of each side; the comment is there once.
    assert sorted(logs[0]) == sorted(logs[1])
    assert len(logs[0]) >= 2
    assert [line[0] for line in logs[0]].count("#") == 1


def test_lines_that_nobody_asked_for_are_copied_on_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    client, server = tls.contexts(watch=False)
    client.keylog_filename = str(path)
    pyktls.watch(client, engine="portable")
    pair = tls.connect(client, server)
    pair.close()
    del pair, client
    gc.collect()
    assert "SERVER_TRAFFIC_SECRET_0" in path.read_text()


def test_a_log_of_ones_own_that_is_switched_off_stays_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    client, server = tls.contexts(watch=False)
    client.keylog_filename = str(path)
    pyktls.watch(client, engine="portable")
    tls.connect(client, server).close()  # whose lines nobody has asked for yet
    client.keylog_filename = None
    pyktls.watch(client, engine="portable")
    before = path.read_text()
    assert before.count("SERVER_TRAFFIC_SECRET_0") == 1
    with tls.connect(client, server) as pair:
        pyktls.extract(pair.client).wipe()
    assert path.read_text() == before


@tls.needs_native
def test_connections_that_another_engine_watches_leave_no_secret_either(tmp_path: Path) -> None:
    """One MemoryBIOHandshake has the context log for good, also what the native engine reads."""
    path = tmp_path / "log"
    client, server = tls.contexts(watch=False)
    client.keylog_filename = str(path)
    pyktls.watch(client, engine="membio")
    pyktls.watch(client, engine="native")
    for number in range(1, 4):
        with tls.connect(client, server) as pair:
            pyktls.extract(pair.client).wipe()
            assert set(contents(client).partition(b"\n")[2]) == {0}
            assert path.read_text().count("SERVER_TRAFFIC_SECRET_0") == number


def test_a_log_of_ones_own_that_cannot_be_opened(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.keylog_filename = str(place / "log")
    shutil.rmtree(place)
    with pytest.raises(
        pyktls.HandoffRefused,
        match=r"^the context's keylog_filename cannot be opened to be continued \(.*\): set it ",
    ):
        pyktls.watch(context, engine="portable")
    assert pyktls.engine_of(context) is None
    assert context.keylog_filename == str(place / "log")


def test_watching_again_takes_a_log_that_was_set_later(tmp_path: Path) -> None:
    path = tmp_path / "log"
    client, server = tls.contexts(engine="portable")
    client.keylog_filename = str(path)
    with (
        tls.connect(client, server) as pair,
        refused(
            "the traffic secrets were not seen: another keylog callback replaced the one of pyktls "
            "(set keylog_filename before pyktls.watch, not after)"
        ),
    ):
        pyktls.extract(pair.client)
    pyktls.watch(client)
    with tls.connect(client, server) as pair:
        in_step(pair)
    assert path.read_text().count("SERVER_TRAFFIC_SECRET_0") == 2


@pytest.mark.parametrize("what", ["no memfd", "no /proc"])
def test_a_temporary_file_where_there_is_no_name_for_memory(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if what == "no memfd":
        monkeypatch.delattr(os, "memfd_create")
    else:
        make = os.memfd_create
        monkeypatch.setattr(os, "memfd_create", lambda name: os.dup2(make(name), 987))
        monkeypatch.setattr(keylog, "PROC", str(tmp_path / "nothing"))
    client, server = tls.contexts(watch=False)
    for context in (client, server):
        pyktls.watch(context, engine="portable")
        assert str(context.keylog_filename).startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # it has no name any more
    with tls.connect(client, server) as pair:
        in_step(pair)
        assert set(contents(client).partition(b"\n")[2]) == {0}


def test_a_file_of_which_no_page_can_be_given_back_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("mmap.MADV_REMOVE")
    monkeypatch.setattr(keylog, "_LONGEST_FILE", 20_000)
    monkeypatch.setattr(keylog, "_PAGES_AT_ONCE", 4096)
    client, server = tls.contexts(engine="portable", tickets=0)
    sizes = []
    for _ in range(60):
        with tls.connect(client, server) as pair:
            in_step(pair)
        sizes.append(os.fstat(log_of(client)._fd).st_size)
    assert max(sizes) < 30_000
    assert sizes != sorted(sizes)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_lost_line_is_noticed(who: str) -> None:
    # Without it the old key would be taken for the new one.
    with handshaken(tickets=0) as pair:
        sock = pair.client if who == "client" else pair.server
        pyktls.extract(sock)
        tls.send_key_update(sock, request=False)
        os.ftruncate(log_of(sock.context)._fd, 0)
        with refused("a traffic secret was not seen: its line in the key log was lost"):
            pyktls.extract(sock)
        pair.exchange()


def test_one_context_for_both_ends() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS)
    tls.authority().configure_trust(context)
    tls.certificate().configure_cert(context)
    pyktls.watch(context, engine="portable")
    with tls.connect(context, context) as pair:
        for sock in (pair.client, pair.server):
            with refused(SAME_CONTEXT):
                pyktls.extract(sock)
        pair.exchange()


def test_harvesting_from_within_is_noticed() -> None:
    with handshaken() as pair:
        log = log_of(pair.client.context)
        log._busy = True  # as a signal handler finds it
        assert not log.harvest()
        pair.client.sendall(b"a record")
        log._busy = False
        with refused(NOT_SEEN_TO_ITS_END):
            pyktls.extract(pair.client)


def test_lines_that_are_none() -> None:
    with handshaken(tickets=0) as pair:
        before = pyktls.extract(pair.client)
        log = log_of(pair.client.context)
        random = state_of(pair.client).hellos.client_random.hex()
        odd = (
            b"\n",
            b"CLIENT_TRAFFIC_SECRET_0\n",
            b"CLIENT_TRAFFIC_SECRET_0 \n",
            f"CLIENT_TRAFFIC_SECRET_0 {random}\n".encode(),
            f"EXPORTER_SECRET {random} {'ab' * 48}\n".encode(),
            f"CLIENT_TRAFFIC_SECRET_0 {'0' * 64} {'ab' * 48}\n".encode(),
            b"x" * 40_000 + b"\n",
            b" " * 300 + b"\n",
            f"CLIENT_TRAFFIC_SECRET_0 {'xyz' * 20} {'ab' * 48}\n".encode(),
            b"the beginning of a li",
        )
        with Path(log.path).open("ab", buffering=0) as file:
            file.writelines(odd)
            after = pyktls.extract(pair.client)
            assert (before.tx, before.rx) == (after.tx, after.rx)
            file.write(b"ne, and its end\n")
        in_step(pair)


FORK = """
    import os, sys, warnings
    sys.path[:0] = {path!r}
    warnings.simplefilter("ignore")
    import pyktls
    from pyktls.engines import choice
    from support import tls
    client, server = tls.contexts(watch=False, tickets=0)
    for context in (client, server):
        for engine in {engines!r}:
            pyktls.watch(context, engine=engine)

    def check(pair):
        one, other = pyktls.extract(pair.client), pyktls.extract(pair.server)
        assert (one.tx, one.rx) == (other.rx, other.tx), (one, other)
        assert one.tx.key == other.rx.key and one.rx.key == other.tx.key
        return bytes(one.tx.key)

    old = tls.connect(client, server)   # nobody has asked for its lines yet
    log = choice.key_log_of(client)
    before = log.path, os.fstat(log._fd).st_ino
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        assert os.fstat(log._fd).st_ino != before[1]
        assert client.keylog_filename == log.path
        key = check(old)
        for _ in range(3):
            with tls.connect(client, server) as pair:
                pair.exchange()
                check(pair)
        os.write(writer, key)
        os._exit(0)
    for _ in range(3):
        with tls.connect(client, server) as pair:
            pair.exchange()
            check(pair)
    assert (log.path, os.fstat(log._fd).st_ino) == before
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    key = check(old)
    assert os.read(reader, 100) == key
    print("fine", pyktls.extract(old.client).engine)
"""


def forked(engines: tuple[str, ...]) -> str:
    path = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK).format(path=path, engines=engines)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_child_process_has_a_log_of_its_own() -> None:
    assert forked(("portable",)) == "fine portable"


@tls.needs_native
def test_a_child_process_keeps_the_native_engine_in_front_of_the_log() -> None:
    assert forked(("native", "membio")) == "fine native"


# ---- refusals --------------------------------------------------------------------------------


def test_kernel_tls_that_openssl_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kernel:
        @staticmethod
        def directions(_fd: int) -> Iterator[Direction]:
            yield Direction.TX

    with handshaken() as pair:
        with monkeypatch.context() as patch:
            patch.setattr(portable, "system", Kernel)
            with refused(
                "OpenSSL has itself switched this connection to kernel TLS (OP_ENABLE_KTLS)"
            ):
                pyktls.extract(pair.client)
        pyktls.extract(pair.client)


@BOTH
def test_a_fatal_alert(version: ssl.TLSVersion) -> None:
    with handshaken(version, tickets=0) as pair:
        tls.deliver(pair.server, pair.client, b"\x17\x03\x03\x00\x20" + b"x" * 32)
        with pytest.raises(ssl.SSLError):
            pair.client.recv(1)
        with refused("a fatal alert has been sent: the connection is dead"):
            pyktls.extract(pair.client)
        with pytest.raises(ssl.SSLError):
            pair.server.recv(1)
        with refused("a fatal alert has been received: the connection is dead"):
            pyktls.extract(pair.server)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("early_data", True, "the connection began with early data"),
        ("compression", 1, "the connection uses TLS compression"),
        (
            "max_fragment",
            1024,
            (
                "the handshake limited records to 1024 bytes (max_fragment_length), which the "
                "kernel would not keep to"
            ),
        ),
    ],
)
def test_what_the_hellos_agreed_on(field: str, value: object, text: str) -> None:
    # test_hellos.py shows that they are read right.
    with handshaken() as pair:
        setattr(state_of(pair.client).hellos, field, value)
        with refused(text):
            pyktls.extract(pair.client)
        pyktls.extract(pair.server)


def test_a_renegotiation_that_came_to_nothing() -> None:
    # The hello's randoms are new, the keys the old ones: nothing fits together any more.
    with handshaken(TLS_1_2) as pair:
        pyktls.extract(pair.client)
        master = state_of(pair.client).master
        assert any(master)
        hello = bytes((1, 0, 0, 40)) + b"\x03\x03" + bytes(range(32)) + bytes(6)
        pair.client.context._msg_callback(pair.client, "write", 0x303, 22, 1, hello)  # type: ignore[attr-defined]
        assert not any(master)
        with refused(
            "the traffic secrets were not seen: the context was not watched when the handshake "
            "began"
        ):
            pyktls.extract(pair.client)
        pair.exchange()


# ---- with the openssl program ----------------------------------------------------------------


class Program:
    """``openssl s_server`` or ``s_client``; a context manager."""

    def __init__(self, *arguments: str, listening: bool = False) -> None:
        openssl = shutil.which("openssl")
        assert openssl is not None, "this test needs the openssl program"
        self.process = subprocess.Popen(
            [openssl, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.listening = listening

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        while self.listening and b"ACCEPT" not in self.process.stdout.readline():
            assert self.process.poll() is None, "openssl s_server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def command(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def wait_for(self, text: bytes) -> None:
        assert self.process.stdout is not None
        seen = b""
        while text not in seen:
            byte = self.process.stdout.read(1)
            assert byte, seen
            seen += byte


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def to_s_server(
    version: ssl.TLSVersion, tmp_path: Path, engine: str
) -> Iterator[tuple[ssl.SSLSocket, Program]]:
    pem = tmp_path / "server.pem"
    pem.write_bytes(tls.certificate(trustme.KeyType.RSA).private_key_and_cert_chain_pem.bytes())
    client, _ = tls.contexts(version, watch=False)
    pyktls.watch(client, engine=engine)
    port = free_port()
    number = "-tls1_3" if version == TLS_1_3 else "-tls1_2"
    arguments = ["s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(pem), number]
    with Program(*arguments, listening=True) as program:
        tcp = socket.create_connection(("127.0.0.1", port), tls.TIMEOUT)
        with client.wrap_socket(tcp, server_hostname=tls.HOST) as sock:
            yield sock, program


ENGINES = pytest.mark.parametrize(
    "engine", ["portable", pytest.param("native", marks=tls.needs_native)]
)


def read_on(sock: ssl.SSLSocket, text: bytes) -> None:
    """Have OpenSSL deal with all that comes before a line."""
    seen = b""
    while not seen.endswith(text):
        seen += sock.recv(1)


def command(sock: ssl.SSLSocket, program: Program, text: bytes) -> None:
    """Have the program do something that puts a record on the wire, by itself in one read."""
    before = tls.unread_bytes(sock)
    program.command(text)
    tls.wait_for_bytes(sock, before + 1)


def reads_ours_and_opens_theirs(sock: ssl.SSLSocket, program: Program) -> None:
    session = pyktls.extract(sock)
    program.command(b"from openssl\n")
    record = Opener(session.cipher, session.rx).open(tls.raw_read_record(sock))
    assert record == (APPLICATION_DATA, b"from openssl\n")
    tls.raw(sock).sendall(Sealer(session.cipher, session.tx).seal(APPLICATION_DATA, b"from us\n"))
    program.wait_for(b"from us\n")


@ENGINES
@pytest.mark.parametrize("update", [b"K\n", b"k\n"], ids=["requested", "not requested"])
def test_key_update_of_the_openssl_program(update: bytes, tmp_path: Path, engine: str) -> None:
    with to_s_server(TLS_1_3, tmp_path, engine) as (sock, program):
        program.command(b"line\n")
        read_on(sock, b"line\n")
        for _ in range(2):
            command(sock, program, update)
            program.command(b"line\n")
            read_on(sock, b"line\n")
            if update == b"K\n":
                with refused(
                    "the peer asked for a KeyUpdate that is not sent yet: send some data first"
                ):
                    pyktls.extract(sock)
            sock.sendall(b"answered\n")
            program.wait_for(b"answered\n")
        assert pyktls.extract(sock).rx.sequence == 1
        reads_ours_and_opens_theirs(sock, program)


@ENGINES
def test_renegotiation(tmp_path: Path, engine: str) -> None:
    # The server asks for it; the new keys and numbers are as right as the first ones.
    with to_s_server(TLS_1_2, tmp_path, engine) as (sock, program):
        first = pyktls.extract(sock)
        binding = sock.get_channel_binding()
        command(sock, program, b"r\n")
        deadline = time.monotonic() + tls.TIMEOUT
        while sock.version() is None or sock.get_channel_binding() == binding:
            assert time.monotonic() < deadline
            assert tls.read_what_is_there(sock) == b""
        program.command(b"line\n")
        read_on(sock, b"line\n")
        second = pyktls.extract(sock)
        assert first.tx.key != second.tx.key
        assert second.tx.sequence == 1
        reads_ours_and_opens_theirs(sock, program)


@ENGINES
def test_key_update_of_an_openssl_client(engine: str) -> None:
    _, server = tls.contexts(watch=False)
    pyktls.watch(server, engine=engine)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(tls.TIMEOUT)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with Program("s_client", "-connect", address, "-servername", tls.HOST) as program:
            tcp, _ = listener.accept()
            tcp.settimeout(tls.TIMEOUT)
            with server.wrap_socket(tcp, server_side=True) as sock:
                command(sock, program, b"K\n")
                program.command(b"line\n")
                read_on(sock, b"line\n")
                sock.sendall(b"answered\n")
                program.wait_for(b"answered\n")
                assert pyktls.extract(sock).tx.sequence == 1
                reads_ours_and_opens_theirs(sock, program)


# ---- many at once ----------------------------------------------------------------------------


@BOTH
def test_many_connections_of_one_context_with_key_updates(version: ssl.TLSVersion) -> None:
    client, server = tls.contexts(version, engine="portable")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for n in range(6):
                with tls.connect(client, server) as pair:
                    for _ in range(n):
                        if version == TLS_1_3:
                            tls.send_key_update(pair.client, request=True)
                        pair.exchange()
                        pair.exchange()
                    in_step(pair)
        except BaseException as e:  # noqa: BLE001
            failures.append(e)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_records_read_whole(tmp_path: Path) -> None:
    """The program's records as the tests' own layer sees them, from the number that was counted."""
    with to_s_server(TLS_1_3, tmp_path, "portable") as (sock, program):
        session = pyktls.extract(sock)
        opener = Opener(session.cipher, session.rx)
        program.command(b"a line\n")

        def recv(size: int) -> bytes:
            return tls.raw_recv_exactly(sock, size)

        kinds = []
        while APPLICATION_DATA not in kinds:
            kind, data = opener.open(read_record(recv))
            kinds.append(kind)
        assert data == b"a line\n"
