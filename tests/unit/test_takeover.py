"""What is tried, and what is told, where a connection can be switched only in part; and where
OpenSSL is left, without a kernel: that takes all keys here.
"""

from __future__ import annotations

import _ssl
import contextlib
import gc
import os
import re
import ssl
import types
import weakref

import pytest

import pyktls
from pyktls import HandoffRefused, Role, Unavailable, takeover
from pyktls.engines import apart
from pyktls.engines.answers import QUESTIONS, Answers
from pyktls.lowlevel import lib
from pyktls.record_layer import RecordLayer
from pyktls.resumption import OldSession, TicketKeeper
from support import tls
from support.systems import linux_only


def peer(version="TLSv1.3", *, post_handshake_auth=False):
    context = types.SimpleNamespace(post_handshake_auth=post_handshake_auth)
    return types.SimpleNamespace(context=context, version=lambda: version)


PEER = peer()
POST_HANDSHAKE = peer(post_handshake_auth=True)


def dead():
    error = HandoffRefused("dead")
    error.dead = True
    return error


def tried(both, sending, *, alone=True, peer=PEER):
    """(made, refusal, attempts) where each attempt gives that, or raises it."""
    attempts = []

    def attempt(rx):
        attempts.append(rx)
        outcome = both if rx else sending
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return *takeover.as_far_as_possible(peer, attempt, alone=alone), attempts


def test_everything():
    assert tried("both", "sending") == ("both", None, [True])


def test_sending_alone():
    refusal = HandoffRefused("in the middle of a record")
    assert tried(refusal, "sending") == ("sending", refusal, [True, False])
    assert tried(refusal, "sending", alone=False) == (None, refusal, [True])


@pytest.mark.parametrize("possible", [False, True])
def test_a_kernel_that_cannot_receive(monkeypatch, possible):
    monkeypatch.setattr(takeover.system, "ONE_DIRECTION_ALONE", possible)
    refusal = Unavailable("not this cipher")
    expected = ("sending", refusal, [True, False]) if possible else (None, refusal, [True])
    assert tried(refusal, "sending") == expected


def test_neither():
    first, second = HandoffRefused("first"), Unavailable("second")
    assert tried(first, second) == (None, first, [True, False])


def test_a_connection_that_is_dead():
    first, last = HandoffRefused("first"), dead()
    assert tried(last, "sending") == (None, last, [True])
    assert tried(first, last) == (None, last, [True, False])
    assert takeover.is_dead(last)
    assert not takeover.is_dead(first)


def test_a_system_call_that_fails():
    error = OSError(5, "setsockopt: I/O error")
    _, refusal, attempts = tried(error, error)
    assert type(refusal) is HandoffRefused
    assert refusal.__cause__ is error
    assert "setsockopt" in str(refusal)
    assert attempts == [True, False]


def chained():
    """Refusals as they come, with a cause, a context, or both."""

    def within():
        try:
            os.close(-1)
        except OSError as e:
            raise Unavailable("outer") from e

    def behind():
        try:
            within()
        except Unavailable:
            raise HandoffRefused("last")  # noqa: B904

    def both():
        try:
            within()
        except Unavailable as e:
            try:
                int("on the way")
            except ValueError:
                raise HandoffRefused("last") from e

    return [within, behind, both]


@pytest.mark.parametrize("fails", chained(), ids=lambda fails: fails.__name__)
def test_a_refusal_keeps_nothing_alive(fails):
    """A connection has it, and with tracebacks it would have all frames around, and itself."""

    class Anything:
        pass

    def tried_here():
        thing = Anything()
        ended.append(weakref.ref(thing))
        return takeover.as_far_as_possible(PEER, lambda _: fails(), alone=True)

    ended = []
    gc.disable()
    try:
        made, refusal = tried_here()
        assert made is None
        assert isinstance(refusal, HandoffRefused | Unavailable)
        assert ended[0]() is None
    finally:
        gc.enable()
    errors = [refusal]
    while errors:
        error = errors.pop()
        assert error.__traceback__ is None
        errors += [other for other in (error.__cause__, error.__context__) if other is not None]


def test_what_the_caller_deals_with_stays_as_it_was():
    for other in (PEER, POST_HANDSHAKE):
        try:
            os.close(-1)
        except OSError as e:
            error, place = e, e.__traceback__
            _, refusal, _ = tried(HandoffRefused("no"), HandoffRefused("no"), peer=other)
        assert error.__traceback__ is place is not None
        assert refusal.__context__ is None


def test_plans_that_only_openssl_can_carry_out():
    made, refusal, attempts = tried("both", "sending", peer=POST_HANDSHAKE)
    assert (made, attempts) == (None, [])
    assert "post_handshake_auth" in str(refusal)
    earlier = peer("TLSv1.2", post_handshake_auth=True)
    assert tried("both", "sending", peer=earlier) == ("both", None, [True])


# ---- OpenSSL, once the kernel has the connection -----------------------------------------------


@pytest.fixture
def taken(monkeypatch):
    """``taken(sock, **directions)`` is the record layer of a connection whose keys nobody took."""
    monkeypatch.setattr(takeover, "install_fd", lambda *_, **__: None)

    def take(source, **directions):
        session = takeover.extract_checked(source, **directions)
        return takeover.take_over(source, session, RecordLayer, **directions)

    return take


def openssl_objects():
    """OpenSSL's side of every connection of a socket in this process."""
    gc.collect()
    # By the type: an object of another library may not let itself be asked.
    found = [thing for thing in gc.get_objects() if type(thing) is _ssl._SSLSocket]
    return [thing for thing in found if thing.owner is not None]


def asked(thing, name):
    """What it says, or the error."""
    try:
        answer = getattr(thing, name)
        return answer() if callable(answer) else answer
    except Exception as e:  # noqa: BLE001
        return type(e), str(e)


@pytest.fixture
def hidden(monkeypatch):
    monkeypatch.setattr(apart, "works", lambda: False)


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("role", list(Role), ids=str)
@pytest.mark.parametrize("version", [tls.TLS_1_2, tls.TLS_1_3], ids=["1.2", "1.3"])
def test_an_openssl_that_keeps_the_socket_is_not_kept(taken, role, version):
    with tls.handshaken(version) as pair:
        pair.exchange()
        own, peer = pair.ends()[0 if role is Role.CLIENT else 1]
        before = len(openssl_objects())
        own.send(b"the last of it")
        layer = taken(own)
        assert type(own._sslobj) is Answers
        remaining = openssl_objects()
        assert len(remaining) == before - 1
        assert all(thing.owner is not own for thing in remaining)
        del remaining
        assert tls.recv_exactly(peer, 14) == b"the last of it"
        peer.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):  # nor has it said goodbye
            peer.recv(1)
        session = layer.tickets.session if layer.tickets else None
        assert isinstance(session, ssl.SSLSession) == (role is Role.CLIENT)
        layer.forget()


@pytest.mark.parametrize("role", list(Role), ids=str)
@pytest.mark.parametrize("version", [tls.TLS_1_2, tls.TLS_1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("certificate", [False, True])
def test_what_it_would_have_answered(role, version, certificate):
    with tls.handshaken(version, client_certificate=certificate) as pair:
        pair.exchange()
        own, _ = pair.ends()[0 if role is Role.CLIENT else 1]
        sslobj = own._sslobj
        answers = Answers(sslobj)
        for name in QUESTIONS:
            if hasattr(sslobj, name):
                assert asked(answers, name) == asked(sslobj, name), name
            else:
                with pytest.raises(AttributeError, match="OpenSSL's object is gone"):
                    getattr(answers, name)
        for binary in (False, True, 0, 1):
            assert answers.getpeercert(binary) == sslobj.getpeercert(binary)
        assert answers.get_channel_binding("tls-unique") == sslobj.get_channel_binding("tls-unique")
        for thing in (answers, sslobj):
            with pytest.raises(ValueError, match="'other' channel binding type not implemented"):
                thing.get_channel_binding("other")
        assert answers.context is own.context
        assert answers.session == sslobj.session
        with pytest.raises(ValueError, match=r"^Cannot set session (after|for) ") as caught:
            sslobj.session = own.session
        with pytest.raises(ValueError, match=f"^{re.escape(str(caught.value))}$"):
            answers.session = own.session
        if role is Role.CLIENT or version == tls.TLS_1_2:  # else OpenSSL would begin to do it
            errors = []
            for thing in (answers, sslobj):
                with pytest.raises(ssl.SSLError) as caught:
                    thing.verify_client_post_handshake()
                errors.append((caught.value.library, caught.value.reason))
            assert errors[0] == errors[1]


def test_what_its_callers_do_with_an_answer_changes_no_other():
    with tls.handshaken() as pair:
        answers = Answers(pair.client._sslobj)
        answers.getpeercert().clear()
        assert answers.getpeercert() == pair.client.getpeercert() != {}
        answers = Answers(pair.server._sslobj)
        answers.shared_ciphers().clear()
        assert answers.shared_ciphers() == pair.server.shared_ciphers() != []


def test_a_question_that_this_openssl_cannot_answer():
    class Object:
        context = session = None
        server_side = True

        def getpeercert(self, _=False):
            return None

        def get_channel_binding(self, _="tls-unique"):
            return None

        def group(self):
            raise NotImplementedError("it takes OpenSSL 3.2")

    answers = Answers(Object())
    assert answers.server_side is True
    for _ in range(2):
        with pytest.raises(NotImplementedError, match=r"it takes OpenSSL 3\.2"):
            answers.group()


class NoMemory:
    """The compiled functions, where OpenSSL has no memory for BIOs."""

    def __getattr__(self, name):
        return getattr(lib, name)

    def pyktls_half_begin(self, *_):
        return lib.PYKTLS_HALF_FAILED


@tls.needs_native
@pytest.mark.parametrize("engine", ["native", pytest.param("portable", marks=linux_only)])
def test_without_memory_to_let_go_of_the_socket_the_connection_is_dead(taken, monkeypatch, engine):
    with tls.handshaken(engine=engine) as pair:
        monkeypatch.setattr(apart, "lib", NoMemory())
        sslobj = pair.client._sslobj
        with pytest.raises(HandoffRefused, match="no memory to let go of the socket") as caught:
            taken(pair.client)
        assert takeover.is_dead(caught.value)
        for call in (lambda: sslobj.write(b"to nobody"), sslobj.shutdown):
            with contextlib.suppress(OSError):
                call()
        pair.server.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            pair.server.recv(1)


@tls.needs_native
@pytest.mark.parametrize("tx", [True, False])
def test_nor_does_it_write_where_it_cannot_go_on_with_one_direction(taken, monkeypatch, tx):
    with tls.handshaken() as pair:
        sslobj = pair.client._sslobj
        monkeypatch.setattr(apart.half, "lib", NoMemory())
        with pytest.raises(HandoffRefused, match="no memory to go on with one") as caught:
            taken(pair.client, tx=tx, rx=not tx)
        assert takeover.is_dead(caught.value)
        with pytest.raises(ssl.SSLError):
            sslobj.write(b"to nobody")
        pair.server.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            pair.server.recv(1)


# ---- by the socket or by memory ----------------------------------------------------------------


@contextlib.contextmanager
def handshaken_by(way, **knobs):
    """A client with a handshake behind it: an ssl.SSLSocket, or one over memory."""
    client, server = tls.contexts(**knobs)
    near, far = tls.tcp_pair()
    names = {"server_hostname": tls.HOST}
    with (
        near,
        server.wrap_socket(far, server_side=True, do_handshake_on_connect=False) as peer,
        contextlib.ExitStack() as stack,
    ):
        if way == "socket":
            source = client.wrap_socket(near, do_handshake_on_connect=False, **names)
            own = stack.enter_context(source)
        else:
            source, own = pyktls.MemoryBIOHandshake(near, client, **names), near
        tls.together(source.do_handshake, peer.do_handshake, tls.Pair(own, peer))
        yield source


@pytest.mark.parametrize("way", [pytest.param("socket", marks=tls.needs_native), "memory"])
def test_tickets_that_come_later_are_kept_for_openssl(taken, way):
    with handshaken_by(way) as source:
        layer = taken(source)
        assert type(layer.tickets) is TicketKeeper
        assert layer.tickets._usable
        layer.forget()


@pytest.mark.usefixtures("hidden")
def test_tickets_that_nobody_could_bring_to_openssl_are_not_kept(taken):
    with handshaken_by("socket") as source:
        layer = taken(source)
        before = layer.tickets.session
        layer.tickets.add(b"ticket")
        assert layer.tickets.session is before
        layer.tickets.wipe()
        assert type(layer.tickets) is OldSession
        layer.forget()


@pytest.mark.parametrize("offered", [False, True])
@pytest.mark.parametrize("way", ["socket", "memory"])
def test_whether_client_authentication_was_offered_is_known(taken, offered, way):
    with handshaken_by(way, post_handshake_auth=offered) as source:
        layer = taken(source)
        assert layer.post.export()["post_handshake_auth"] is offered
        layer.forget()
