"""What is tried, and what is told, where a connection can be switched only in part."""

from __future__ import annotations

import gc
import os
import types
import weakref

import pytest

from pyktls import HandoffRefused, Unavailable, takeover


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
