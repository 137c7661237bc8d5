"""sendfile(2) of pyktls.linux on a small send buffer, with the steps seen, on plain TCP."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from pyktls.linux import transfer
from support import tls
from support.kernel import TIMEOUT, Background, pattern, recv_exactly
from support.systems import linux_only

pytestmark = linux_only
SIZE = 100_000


@pytest.mark.parametrize(
    ("release", "singly"),
    [
        ("4.19.0", True),
        ("5.15.0-91-generic", True),
        ("6.1.0-56-amd64", True),
        ("6.4.16", True),
        ("6.5.0", False),
        ("6.12.107+deb13", False),
        ("7.3", False),
        ("10.0.1", False),
        ("weird", False),
    ],
)
def test_which_kernels_give_pages_singly(release, singly):
    assert transfer._gives_pages_singly(release) is singly


@pytest.fixture
def steps(monkeypatch):
    """What sendfile(2) is asked for, and what it sent."""
    made = []
    real = os.sendfile

    def sendfile(sock, file, offset, count):
        sent = real(sock, file, offset, count)
        made.append((offset, count, sent))
        return sent

    monkeypatch.setattr(os, "sendfile", sendfile)
    return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pattern(SIZE))
    with path.open("rb") as opened:
        yield opened


@pytest.fixture(params=[1, 30_000])
def ends(request):
    near, far = tls.tcp_pair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, request.param)
        far.settimeout(TIMEOUT)
        yield near, far


def test_a_file_that_is_closed_is_told_with_the_call(file, ends):
    near, _ = ends
    number = os.dup(file.fileno())
    os.close(number)
    sent, error = transfer.sendfile(near, number)
    assert (sent, error.errno) == (0, errno.EBADF)
    assert str(error) == f"[Errno {errno.EBADF}] fstat: {os.strerror(errno.EBADF)}"


@pytest.mark.parametrize("offset", [0, 1, 4095, 16383, 16384, 50_000])
def test_no_call_goes_beyond_a_record(monkeypatch, steps, file, ends, offset):
    monkeypatch.setattr(transfer, "_PAGES_SINGLY", True)
    near, far = ends
    near.settimeout(None)
    sending = Background(transfer.sendfile, near, file, offset)
    assert recv_exactly(far, SIZE - offset) == pattern(SIZE)[offset:]
    assert sending.result() == (SIZE - offset, None)
    first = steps[0][1]
    assert offset + first == min(offset - offset % 4096 + 4096, SIZE)  # a page
    expected = offset
    for begin, count, sent in steps:
        assert begin == expected
        assert begin // 16384 == (begin + count - 1) // 16384
        expected += sent


def test_one_call_alone_ends_with_a_record(monkeypatch, steps, file, ends):
    monkeypatch.setattr(transfer, "_PAGES_SINGLY", True)
    near, _ = ends
    for count in (0, 50_000):
        transfer.sendfile_once(near.fileno(), file.fileno(), 16380, count)
        assert steps.pop()[:2] == (16380, 4)
    transfer.sendfile_once(near.fileno(), file.fileno(), 16384, 5)
    assert steps.pop()[:2] == (16384, 5)


@pytest.mark.parametrize("singly", [False, True])
def test_other_kernels_and_larger_buffers_are_asked_for_all(monkeypatch, steps, file, singly):
    monkeypatch.setattr(transfer, "_PAGES_SINGLY", singly)
    near, far = tls.tcp_pair()
    with near, far:
        near.settimeout(None)  # so that it waits for room, where one call does not take all
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768 if singly else 1)
        assert transfer.sendfile_may_stall(near.fileno()) is False
        sending = Background(transfer.sendfile, near, file)
        assert recv_exactly(far, SIZE) == pattern(SIZE)
        assert sending.result() == (SIZE, None)
        assert steps[0][:2] == (0, SIZE)


def test_a_descriptor_that_is_no_socket_is_sendfiles_matter(monkeypatch, file):
    monkeypatch.setattr(transfer, "_PAGES_SINGLY", True)
    with open(os.devnull, "rb") as null:  # noqa: PTH123
        assert transfer.sendfile_may_stall(null.fileno()) is False
        sent, error = transfer.sendfile_once(null.fileno(), file.fileno())
    assert sent == 0
    assert str(error) == "[Errno 9] sendfile: Bad file descriptor"


@pytest.mark.parametrize("corked", [0, 1])
def test_pushing_sends_what_tcp_holds_back_and_leaves_the_cork(corked):
    near, far = tls.tcp_pair()
    with near, far:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, corked)
        near.send(b"held", 0 if corked else socket.MSG_MORE)
        far.settimeout(0.02)  # Linux holds it for 200 ms
        with pytest.raises(TimeoutError):
            far.recv(4)
        transfer._push(near.fileno())
        assert far.recv(4) == b"held"
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == corked
