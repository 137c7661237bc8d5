"""The selftest's ``tls``: the change of keys (TLS 1.3, Linux 6.14).

Where there is none, in TLS 1.2 and on older kernels, the refusal is shown, and that it changes
nothing.  The selftest leaves most of these scenarios at once in TLS 1.2.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time

import pytest

from pyktls import InvalidValue, linux
from pyktls.ciphers import TLS_1_2, TLS_1_3
from support.kernel import Background, kernel_can_rekey
from support.selftest import (
    BY_NAME,
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    MOMENT,
    PATIENCE,
    TAKEN_1_3,
    Relay,
    assert_nothing_to_read,
    fails,
    keys,
    pipe,
    readable,
    splice_one,
    take,
    take_record,
    tcp_pair,
)


def new_keys(variant, which=1):
    """The next keys: they begin with record 0."""
    return keys(variant, which, rec_seq=0)


def refused_in_tls_1_2(pair) -> bool:
    """In TLS 1.2, after showing that there is no change of keys; False in TLS 1.3."""
    if pair.variant.version == TLS_1_3:
        return False
    for sock, direction in ((pair.near, linux.TLS_TX), (pair.far, linux.TLS_RX)):
        with pytest.raises(InvalidValue, match=r"^TLS 1\.2 changes no keys without a handshake$"):
            linux.rekey(sock, direction, new_keys(pair.variant))
        # Nor would the kernel.
        with fails(errno.EBUSY):
            linux.set_crypto_info(sock, direction, new_keys(pair.variant))
        assert (
            linux.get_crypto_info(sock, direction).pack()[4:] != new_keys(pair.variant).pack()[4:]
        )
    pair.send(b"old keys")
    assert take(pair.far, 8) == b"old keys"
    return True


def change_sending_keys(pair, which=1):
    pair.send_key_update()
    linux.rekey(pair.near, linux.TLS_TX, new_keys(pair.variant, which))


def change_receiving_keys(pair, which=1):
    """Read the KeyUpdate, and follow it."""
    assert take_record(pair.far) == (KEY_UPDATE, HANDSHAKE)
    assert_keys_are_due(pair)
    linux.rekey(pair.far, linux.TLS_RX, new_keys(pair.variant, which))


def assert_keys_are_due(pair):
    """Nothing is read any more, and nothing is there to poll, until the new keys are here."""
    for flags in (0, socket.MSG_PEEK, socket.MSG_DONTWAIT):
        with fails(errno.EKEYEXPIRED, "recvmsg"):
            linux.recv_record(pair.far, 100, flags)
    assert not readable(pair.far)


def test_rekey(pair):
    """Data, a KeyUpdate, data under the new keys; and once more."""
    if refused_in_tls_1_2(pair):
        return
    pair.send(b"old keys")
    assert take(pair.far, 8) == b"old keys"
    counters = linux.tls_stat()
    for which in (1, 2):
        change_sending_keys(pair, which)
        assert linux.get_rec_seq(pair.near, linux.TLS_TX) == 0
        pair.send(b"new keys")
        change_receiving_keys(pair, which)
        assert take(pair.far, 8) == b"new keys"
        assert linux.get_rec_seq(pair.far, linux.TLS_RX) == 1
    assert_nothing_to_read(pair.far)
    changes = {name: value - counters[name] for name, value in linux.tls_stat().items()}
    assert {name: changes[name] for name in changes if "Rekey" in name} == {
        "TlsTxRekeyOk": 2,
        "TlsTxRekeyError": 0,
        "TlsRxRekeyOk": 2,
        "TlsRxRekeyError": 0,
        "TlsRxRekeyReceived": 2,
    }


def test_rekey_fail(pair):
    """Another version or cipher is refused, and the old keys stay."""
    variant = pair.variant
    if refused_in_tls_1_2(pair):
        return
    change_sending_keys(pair)
    change_receiving_keys(pair)
    other_version = linux.CryptoInfo(
        TLS_1_2, variant.cipher_type, key=keys(variant).key, salt=keys(variant).salt,
        iv=keys(variant).iv, rec_seq=0,
    )  # fmt: skip
    chacha = BY_NAME["13_chacha"]
    other_cipher = BY_NAME["13_aes_gcm"] if variant == chacha else chacha
    for info in (other_version, new_keys(other_cipher)):
        for sock, direction in ((pair.near, linux.TLS_TX), (pair.far, linux.TLS_RX)):
            with fails(errno.EINVAL):
                linux.set_crypto_info(sock, direction, info)
            assert linux.get_crypto_info(sock, direction).pack()[:4] == keys(variant).pack()[:4]
        pair.send(b"the keys from before")
        assert take(pair.far, 20) == b"the keys from before"


def test_rekey_peek(pair):
    """A look at the KeyUpdate already asks for the new keys; it can still be read after them."""
    if refused_in_tls_1_2(pair):
        return
    pair.send(b"old keys")
    change_sending_keys(pair)
    pair.send(b"new keys")
    assert take_record(pair.far, 8, socket.MSG_PEEK) == (b"old keys", DATA)
    assert take(pair.far, 8) == b"old keys"
    for size in (len(KEY_UPDATE), 1):
        record = take_record(pair.far, size, socket.MSG_PEEK)
        assert record == (KEY_UPDATE[:size], HANDSHAKE)
    change_receiving_keys(pair)
    assert take_record(pair.far, 8, socket.MSG_PEEK) == (b"new keys", DATA)
    assert take(pair.far, 8) == b"new keys"


def test_splice_rekey(pair):
    """A splice stops at the KeyUpdate, is refused until there are new keys, and goes on."""
    if refused_in_tls_1_2(pair):
        return
    pair.send(b"old keys")
    change_sending_keys(pair)
    pair.send(b"new keys")
    with pipe() as (out, into):
        assert splice_one(pair.far, into, 100) == 8
        assert readable(pair.far, PATIENCE)
        with fails(errno.EINVAL, "splice"):
            linux.splice_to_pipe(pair.far, into, 100)
        assert take_record(pair.far) == (KEY_UPDATE, HANDSHAKE)
        for _ in range(2):
            with fails(errno.EKEYEXPIRED, "splice"):
                linux.splice_to_pipe(pair.far, into, 100)
        linux.rekey(pair.far, linux.TLS_RX, new_keys(pair.variant))
        assert splice_one(pair.far, into, 100) == 8
        assert os.read(out, 100) == b"old keysnew keys"


def test_rekey_peek_splice(pair):
    """A look under the new keys, then a splice of the same data."""
    if refused_in_tls_1_2(pair):
        return
    change_sending_keys(pair)
    pair.send(b"new keys")
    change_receiving_keys(pair)
    assert take_record(pair.far, 8, socket.MSG_PEEK | socket.MSG_WAITALL) == (b"new keys", DATA)
    with pipe() as (out, into):
        assert splice_one(pair.far, into, 100) == 8
        assert os.read(out, 100) == b"new keys"


def test_rekey_getsockopt(pair):
    """What is read back are the keys that are used: the first ones, then the new ones."""
    ends = ((pair.near, linux.TLS_TX), (pair.far, linux.TLS_RX))
    for sock, direction in ends:
        assert linux.get_crypto_info(sock, direction) == keys(pair.variant)
    if refused_in_tls_1_2(pair):
        return
    change_sending_keys(pair)
    assert linux.get_crypto_info(*ends[0]) == new_keys(pair.variant)
    assert linux.get_crypto_info(*ends[1]) == keys(pair.variant)
    change_receiving_keys(pair)
    for sock, direction in ends:
        assert linux.get_crypto_info(sock, direction) == new_keys(pair.variant)


@pytest.fixture
def sleeper(pair):
    """Starts a thread that sleeps in poll(2) on ``far``; its result is what poll said."""

    def start():
        poll = select.poll()
        poll.register(pair.far, select.POLLIN)
        thread = Background(poll.poll, PATIENCE * 1000)
        time.sleep(MOMENT)
        assert not thread.done()
        return thread

    return start


def test_rekey_poll_pending(pair, sleeper):
    """A poll that sleeps while data waits for its keys is woken by the keys."""
    if refused_in_tls_1_2(pair):
        return
    change_sending_keys(pair)
    pair.send(b"new keys")
    assert take_record(pair.far) == (KEY_UPDATE, HANDSHAKE)
    asleep = sleeper()
    linux.rekey(pair.far, linux.TLS_RX, new_keys(pair.variant))
    assert asleep.result() == [(pair.far.fileno(), select.POLLIN)]
    assert take(pair.far, 8) == b"new keys"


def test_rekey_poll_delay(pair, sleeper):
    """A poll that sleeps across the change of keys is woken by the first data under them."""
    if refused_in_tls_1_2(pair):
        return
    change_sending_keys(pair)
    assert take_record(pair.far) == (KEY_UPDATE, HANDSHAKE)
    asleep = sleeper()
    linux.rekey(pair.far, linux.TLS_RX, new_keys(pair.variant))
    time.sleep(MOMENT)
    assert not asleep.done()  # the keys alone are nothing to read
    pair.send(b"new keys")
    assert asleep.result() == [(pair.far.fileno(), select.POLLIN)]
    assert take(pair.far, 8) == b"new keys"


# ---- what the selftest does not ask: kernels that cannot --------------------------------------


@pytest.mark.parametrize("variant", TAKEN_1_3, ids=lambda variant: variant.name)
def test_what_follows_a_key_update(relay):
    """EKEYEXPIRED until the new keys are there; before 6.14 EBUSY for them, and then EBADMSG.

    So a kernel without rekey delivers the KeyUpdate and cannot go on: why pyktls ends a connection
    there.
    """
    near, tap = tcp_pair()
    with near, tap:
        linux.set_ulp(near)
        linux.set_crypto_info(near, linux.TLS_TX, new_keys(relay.variant))
        other = Relay(relay.variant, near, tap, relay.source, relay.far)
        relay.forward(relay.record(KEY_UPDATE, HANDSHAKE), other.record(b"new keys"))
    assert take_record(relay.far) == (KEY_UPDATE, HANDSHAKE)
    if kernel_can_rekey():
        assert_keys_are_due(relay)
        linux.set_crypto_info(relay.far, linux.TLS_RX, new_keys(relay.variant))
        assert take(relay.far, 8) == b"new keys"
        return
    for sock, direction in ((relay.near, linux.TLS_TX), (relay.far, linux.TLS_RX)):
        with fails(errno.EBUSY):
            linux.set_crypto_info(sock, direction, new_keys(relay.variant))
    for _ in range(2):
        with fails(errno.EBADMSG, "recvmsg"):
            linux.recv_record(relay.far, 100)
