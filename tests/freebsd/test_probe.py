"""pyktls.probe on FreeBSD: gates open and shut, and kernels that can do less."""

from __future__ import annotations

import errno
import gc
from typing import TYPE_CHECKING, Any

import pytest

import pyktls
from pyktls import Cause, Direction, KernelSupport
from pyktls import freebsd as system
from pyktls.ciphers import AEADS, TLS_1_2, TLS_1_3
from pyktls.freebsd import TLSEnable
from pyktls.kernel_support import FEATURES, OPTIONS, VERSIONS
from support import tls
from support.probing import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

TX, RX = Direction.TX, Direction.RX
OPTION = {TX: system.TCP_TXTLS_ENABLE, RX: system.TCP_RXTLS_ENABLE}


@pytest.fixture(autouse=True)
def _leaves_nothing() -> Iterator[None]:
    gc.collect()  # what a test before left to the collector
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def probe() -> KernelSupport:
    found = pyktls.probe(refresh=True)
    assert found.system == "FreeBSD"
    assert max(map(len, str(found).splitlines())) <= 80
    assert list(found.options) == list(OPTIONS)
    assert list(found.features) == list(FEATURES)
    assert len(found.ciphers) == len(VERSIONS) * len(AEADS) * len(Direction)
    answers = (
        *(found.tls, found.module.autoload),
        *(
            a
            for part in (found.ciphers, found.options, found.features, found.rekey)
            for a in part.values()
        ),
    )
    for answer in answers:
        assert answer.reason
        assert answer.yes is (answer.code is Cause.YES)
        assert answer.yes is (answer.remedy is None)
    return found


def trial(version: int, aead: pyktls.AEAD, direction: Direction) -> int | None:
    """The errno with which the kernel refuses it, None if it takes it: without the probe's code."""
    if aead.freebsd is None or (aead.mac_key_length and version == TLS_1_3):
        return -1
    chacha = aead.freebsd.algorithm == system.CRYPTO_CHACHA20_POLY1305
    iv = 0 if aead.mac_key_length else 12 if chacha or version == TLS_1_3 else 4
    info = TLSEnable(
        version,
        aead.freebsd.algorithm,
        key=bytes(aead.key_length),
        iv=bytes(iv),
        rec_seq=0,
        auth_algorithm=aead.freebsd.auth_algorithm,
        auth_key=bytes(aead.mac_key_length),
    )
    near, far = tls.tcp_pair()
    with near, far:
        try:
            system.set_tls_enable(near, OPTION[direction], info)
        except OSError as e:
            return e.errno
    return None


def test_every_answer_is_what_a_trial_gives() -> None:
    found = probe()
    assert found
    for (version, name, direction), answer in found.ciphers.items():
        aead = next(a for a in AEADS if a.name == name)
        number = trial(version, aead, direction)
        assert answer.yes is (number is None), (version, name, direction)
        if number == -1:
            assert answer.code in (Cause.NOT_IN_SYSTEM, Cause.VERSION_UNSUPPORTED)
        else:
            assert answer.errno == number


def test_a_kernel_that_does_all() -> None:
    found = probe()
    assert found.tls.reason.endswith("came out encrypted, and decrypted")
    assert found.supports(TLS_1_3, "CHACHA20_POLY1305")
    assert found.supports(TLS_1_2, "AES_256_CBC_SHA384")
    assert found.answer(TLS_1_3, "AES_128_CBC_SHA", TX).code is Cause.VERSION_UNSUPPORTED
    assert found.answer(TLS_1_3, "SM4_GCM", TX).code is Cause.NOT_IN_SYSTEM
    assert found.answer(TLS_1_3, "SM4_GCM", TX).remedy
    assert found.features["sendfile"]
    assert found.features["counters"]
    assert found.features["key_readback"].errno == errno.ENOPROTOOPT
    for direction in Direction:
        assert found.rekey[direction].code is Cause.NOT_IN_SYSTEM
        assert found.rekey[direction].errno == errno.EALREADY
        assert found.rekey[direction].reason == system.NO_REKEY
    for name in (*OPTIONS, "msg_eor", "key_readback", "splice_to_pipe", "sock_diag"):
        assert {**found.options, **found.features}[name].code is Cause.NOT_IN_SYSTEM
    assert found.features["msg_eor"].errno == errno.EINVAL
    assert found.module.state == "built-in"
    assert found.settings == system.gates()
    assert found.settings["kern.ipc.tls.enable"] == 1


def test_a_yes_is_remembered_until_a_gate_moves(fake: Any) -> None:
    first = probe()
    calls = fake.sysctls["kern.ipc.tls.stats.enable_calls"]
    assert pyktls.probe() is first
    assert fake.sysctls["kern.ipc.tls.stats.enable_calls"] == calls
    fake.set_sysctl("kern.ipc.tls.enable", 0)
    assert not pyktls.probe()
    fake.set_sysctl("kern.ipc.tls.enable", 1)
    assert pyktls.probe()


def test_the_gate_is_shut(fake: Any) -> None:
    fake.set_sysctl("kern.ipc.tls.enable", 0)
    found = probe()
    assert not found
    assert (found.tls.code, found.tls.errno) == (Cause.GATE_CLOSED, errno.EOPNOTSUPP)
    assert found.tls.remedy == "an administrator can open it with `sysctl kern.ipc.tls.enable=1`"
    assert found.features["sendfile"] == found.tls
    assert found.rekey[TX] == found.tls
    assert found.settings["kern.ipc.tls.enable"] == 0
    assert found.answer(TLS_1_2, "SM4_GCM", RX).code is Cause.NOT_IN_SYSTEM
    assert "no kernel TLS" in str(found)


def test_receiving_is_forbidden(fake: Any) -> None:
    fake.set_sysctl("kern.ipc.tls.rx_enable", 0)
    found = probe()
    assert found
    assert found.tls.reason.endswith("came out encrypted")
    for version in VERSIONS:
        assert found.supports(version, "AES_128_GCM", TX)
        answer = found.answer(version, "AES_128_GCM", RX)
        assert answer.code is Cause.GATE_CLOSED
        assert "kern.ipc.tls.rx_enable=1" in (answer.remedy or "")
    assert found.features["sendfile"]
    assert found.rekey[TX].code is Cause.NOT_IN_SYSTEM
    assert found.rekey[RX].code is Cause.NOT_TRIED


def test_cbc_is_forbidden(fake: Any) -> None:
    fake.set_sysctl("kern.ipc.tls.cbc_enable", 0)
    found = probe()
    answer = found.answer(TLS_1_2, "AES_128_CBC_SHA", TX)
    assert answer.code is Cause.GATE_CLOSED
    assert "kern.ipc.tls.cbc_enable=1" in (answer.remedy or "")
    assert found.supports(TLS_1_2, "AES_128_GCM")


def test_sending_needs_mapped_pages(fake: Any) -> None:
    fake.set_sysctl("kern.ipc.mb_use_ext_pgs", 0)
    found = probe()
    assert found.tls.reason == "the kernel takes keys for receiving"
    answer = found.answer(TLS_1_3, "AES_128_GCM", TX)
    assert (answer.code, answer.errno) == (Cause.GATE_CLOSED, errno.ENXIO)
    assert "kern.ipc.mb_use_ext_pgs" in (answer.remedy or "")
    assert found.supports(TLS_1_3, "AES_128_GCM", RX)
    assert not found.features["sendfile"]


def test_13_0(fake: Any) -> None:
    fake.release = 13
    found = probe()
    assert found
    assert found.supports(TLS_1_3, "AES_128_GCM", TX)
    answer = found.answer(TLS_1_3, "AES_128_GCM", RX)
    assert (answer.code, answer.errno) == (Cause.TOO_OLD, errno.EOPNOTSUPP)
    assert "14.0" in (answer.remedy or "")
    assert found.supports(TLS_1_2, "AES_128_GCM")
    assert found.answer(TLS_1_2, "CHACHA20_POLY1305", TX).code is Cause.TOO_OLD
    assert found.supports(TLS_1_2, "AES_128_CBC_SHA", TX)
    assert not found.supports(TLS_1_2, "AES_128_CBC_SHA", RX)


def test_a_kernel_without_kern_tls(fake: Any) -> None:
    fake.kern_tls = False
    found = probe()
    assert (found.tls.code, found.tls.errno) == (Cause.NOT_BUILT, errno.ENOPROTOOPT)
    assert "options KERN_TLS" in (found.tls.remedy or "")
    assert found.module.state == "not-built"
    assert pyktls.probe() is found
    fake.kern_tls = True
    assert pyktls.probe()


def test_capability_mode(fake: Any) -> None:
    fake.capability_mode = True
    found = probe()
    assert found
    assert set(found.settings.values()) == {None}
    assert found.privileges.container is None


def test_a_kernel_that_pretends(fake: Any) -> None:
    fake.broken_promise = True
    found = probe()
    assert found.tls.code is Cause.PRETENDED
    assert "denied having them" in found.tls.reason
    assert not any(found.ciphers.values())


def test_a_kernel_that_sends_plain_text(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del fake
    monkeypatch.setattr(system, "send_record", lambda sock, data, _: sock.send(data))
    found = probe()
    assert found.tls.code is Cause.PRETENDED
    assert "sends plain text" in found.tls.reason
    assert not any(found.ciphers.values())


def test_refusing_a_cipher_is_the_same_code(fake: Any) -> None:
    fake.release = 13
    aead = AEADS[0]
    assert system.cipher_refusal(TLS_1_3, aead, [TX]) is None
    error = system.cipher_refusal(TLS_1_3, aead, [TX, RX])
    assert error is not None
    assert error.errno == probe().answer(TLS_1_3, aead, RX).errno
