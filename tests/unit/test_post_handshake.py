"""What may arrive after the handshake: every branch of the state machine, without any I/O."""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import re
import struct
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from pyktls import Role
from pyktls.errors import ALERT_NAMES, HandoffRefused, InvalidValue, TLSAlert
from pyktls.post_handshake import (
    AlertReceived,
    CloseNotifyReceived,
    KeyUpdateReceived,
    PostHandshake,
    SendWarning,
    State,
    TicketReceived,
    Violation,
    alert,
    key_update,
)
from pyktls.protocol import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TLS_1_2, TLS_1_3 = 0x0303, 0x0304
CLIENT, SERVER = Role.CLIENT, Role.SERVER
BOTH_ROLES = pytest.mark.parametrize("role", [CLIENT, SERVER])
BOTH_VERSIONS = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])

UNEXPECTED_MESSAGE, ILLEGAL_PARAMETER, DECODE_ERROR = 10, 47, 50
LARGEST_TICKET = 4 + 4 + (1 + 255) + (2 + 0xFFFF) + (2 + 0xFFFE)


def message(kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", kind << 24 | len(body)) + body


def ticket(
    value: bytes = b"ticket",
    *,
    lifetime: int = 7200,
    nonce: bytes = b"\0",
    extensions: Iterable[tuple[int, bytes]] = (),
) -> bytes:
    """The body of a NewSessionTicket (RFC 8446 section 4.6.1)."""
    block = b"".join(struct.pack(">HH", kind, len(data)) + data for kind, data in extensions)
    return b"".join(
        (
            struct.pack(">IIB", lifetime, 0x01020304, len(nonce)) + nonce,
            struct.pack(">H", len(value)) + value,
            struct.pack(">H", len(block)) + block,
        )
    )


TICKET_BODY = ticket()
TICKET = message(4, TICKET_BODY)
UPDATE, UPDATE_REQUESTED = message(24, b"\0"), message(24, b"\1")
HELLO_REQUEST = message(0)
CLIENT_HELLO = message(1, b"\3\3" + bytes(32))


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def received(machine: PostHandshake, *records: tuple[int, bytes]) -> list[object]:
    return [action for record in records for action in machine.receive(*record)]


def violates(
    machine: PostHandshake, record_type: int, payload: bytes, alert_sent: int, text: str
) -> None:
    with pytest.raises(Violation, match=f"^{re.escape(text)}$") as caught:
        list(machine.receive(record_type, payload))
    assert caught.value.description == alert_sent


class TestAlerts:
    @BOTH_VERSIONS
    @BOTH_ROLES
    @pytest.mark.parametrize("level", [0, 1, 2, 255])
    def test_close_notify_whatever_its_level(self, version: int, role: Role, level: int) -> None:
        machine = PostHandshake(version, role)
        expected = [CloseNotifyReceived(both_directions=version == TLS_1_2)]
        assert received(machine, (ALERT, bytes((level, 0)))) == expected
        assert machine.state is State.CLOSED

    @BOTH_ROLES
    @pytest.mark.parametrize("description", sorted({*ALERT_NAMES, 1, 77, 255} - {0, 90}))
    @pytest.mark.parametrize("level", [1, 2, 0, 99])
    def test_any_other_ends_tls_1_3_whatever_its_level(
        self, role: Role, level: int, description: int
    ) -> None:
        # RFC 8446 section 6.
        machine = PostHandshake(TLS_1_3, role)
        expected = [AlertReceived(level, description)]
        assert received(machine, (ALERT, bytes((level, description)))) == expected
        assert machine.state is State.ABORTED

    @pytest.mark.parametrize("level", [1, 2])
    def test_user_canceled_of_tls_1_3_ends_nothing(self, level: int) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        assert received(machine, (ALERT, bytes((level, 90))), (ALERT, bytes((level, 0)))) == [
            CloseNotifyReceived(both_directions=False)
        ]

    @BOTH_ROLES
    @pytest.mark.parametrize("description", sorted({*ALERT_NAMES, 1, 77, 255} - {0}))
    def test_level_decides_in_tls_1_2(self, role: Role, description: int) -> None:
        # RFC 5246 section 7.2.
        for level in (2, 0, 3, 255):
            machine = PostHandshake(TLS_1_2, role)
            expected = [AlertReceived(level, description)]
            assert received(machine, (ALERT, bytes((level, description)))) == expected
        assert received(PostHandshake(TLS_1_2, role), (ALERT, bytes((1, description)))) == []

    @BOTH_VERSIONS
    def test_empty(self, version: int) -> None:
        # RFC 8446 section 5.4.
        machine = PostHandshake(version, CLIENT)
        text = "an empty alert record (unexpected_message)"
        violates(machine, ALERT, b"", UNEXPECTED_MESSAGE, text)

    @BOTH_VERSIONS
    @pytest.mark.parametrize("payload", [b"\1", b"\1\0\0", b"\1\0\1\0", bytes(16384)])
    def test_wrong_length(self, version: int, payload: bytes) -> None:
        violates(
            PostHandshake(version, CLIENT),
            ALERT,
            payload,
            DECODE_ERROR,
            f"an alert of {len(payload)} bytes (decode_error)",
        )

    @pytest.mark.parametrize(("version", "warning"), [(TLS_1_2, 100), (TLS_1_3, 90)])
    def test_flood_of_warnings(self, version: int, warning: int) -> None:
        machine = PostHandshake(version, CLIENT)
        record = ALERT, bytes((1, warning))
        for _ in range(3):
            assert received(machine, *[record] * 5) == []
            machine.data_arrives()  # data in between: not a flood
            assert machine.quiet
        assert received(machine, *[record] * 5) == []
        text = "too many warning alerts in a row (unexpected_message)"
        violates(machine, *record, UNEXPECTED_MESSAGE, text)

    def test_bytes_of_an_alert(self) -> None:
        assert alert(2, 20) == b"\x02\x14"
        assert alert(1, 0) == b"\x01\x00"

    def test_names(self) -> None:
        # RFC 8446 section 6 and appendix B.2; RFC 5246 section 7.2 for those it dropped.
        assert {
            number: name for number, name in ALERT_NAMES.items() if number in RFC_8446_ALERTS
        } == RFC_8446_ALERTS
        assert set(ALERT_NAMES) - set(RFC_8446_ALERTS) == {21, 30, 41, 60, 100, 111, 114}
        for number, name in ALERT_NAMES.items():
            error = TLSAlert(2, number)
            assert str(error) == f"the peer sent the fatal alert {name} ({number})"
            assert (error.level, error.description, error.name) == (2, number, name)
        assert str(TLSAlert(1, 3)) == "the peer sent the warning alert unknown(3) (3)"
        assert str(TLSAlert(7, 3)) == "the peer sent the level 7 alert unknown(3) (3)"
        assert AlertReceived(2, 80).name == "internal_error"
        assert AlertReceived(2, 254).name == "unknown(254)"

    def test_no_renegotiation_that_comes_to_us(self) -> None:
        # RFC 5246 section 7.2.2: a warning.  We never ask, so there is nothing to give up.
        machine = PostHandshake(TLS_1_2, CLIENT)
        assert received(machine, (ALERT, b"\1\x64")) == []
        assert machine.state is State.OPEN
        assert received(machine, (ALERT, b"\2\x64")) == [AlertReceived(2, 100)]


RFC_8446_ALERTS = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}


class TestTickets:
    def test_client_takes_them(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        assert received(machine, (HANDSHAKE, TICKET)) == [TicketReceived(TICKET_BODY)]
        assert received(machine, (HANDSHAKE, TICKET * 3)) == [TicketReceived(TICKET_BODY)] * 3

    def test_largest(self) -> None:
        # 4 bytes of the extensions' 65534 are the head of the only one.
        body = ticket(b"t" * 0xFFFF, nonce=b"n" * 255, extensions=[(0xFFFF, bytes(0xFFFE - 4))])
        assert len(body) == LARGEST_TICKET
        machine = PostHandshake(TLS_1_3, CLIENT)
        whole = message(4, body)
        pieces = [whole[n : n + 16384] for n in range(0, len(whole), 16384)]
        actions = received(machine, *((HANDSHAKE, piece) for piece in pieces))
        assert actions == [TicketReceived(body)]

    @pytest.mark.parametrize(
        "body",
        [
            ticket(b"t", nonce=b"", lifetime=0),
            ticket(nonce=b"n" * 255),
            ticket(lifetime=604_800),
            ticket(extensions=[(42, bytes(4))]),
            ticket(extensions=[(0x1234, b""), (42, b"\xff" * 4), (0x1235, bytes(300))]),
        ],
    )
    def test_what_is_right(self, body: bytes) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        assert received(machine, (HANDSHAKE, message(4, body))) == [TicketReceived(body)]

    @pytest.mark.parametrize("length", range(len(TICKET_BODY)))
    def test_cut_short(self, length: int) -> None:
        text = "a NewSessionTicket whose lengths do not fit (decode_error)"
        body = message(4, TICKET_BODY[:length])
        violates(PostHandshake(TLS_1_3, CLIENT), HANDSHAKE, body, DECODE_ERROR, text)

    @pytest.mark.parametrize("extra", [1, 2, 100])
    def test_more_behind_its_end(self, extra: int) -> None:
        text = f"a NewSessionTicket with {extra} bytes behind its end (decode_error)"
        body = message(4, TICKET_BODY + bytes(extra))
        violates(PostHandshake(TLS_1_3, CLIENT), HANDSHAKE, body, DECODE_ERROR, text)

    @pytest.mark.parametrize(
        "body",
        [
            ticket(b""),
            ticket()[:-2] + b"\0\1\0",  # no room for an extension's head
            ticket()[:-2] + b"\0\3\0\0\0",
            ticket()[:-2] + b"\0\4\x12\x34\0\1",  # an extension that leaves the list
            ticket()[:-2] + b"\0\5\x12\x34\0\0\0",  # half an extension behind a whole one
            ticket()[:-2] + b"\xff\xff" + b"\x12\x34\xff\xfb" + bytes(0xFFFB),
        ],
    )
    def test_lengths_out_of_range(self, body: bytes) -> None:
        text = "a NewSessionTicket whose lengths do not fit (decode_error)"
        machine = PostHandshake(TLS_1_3, CLIENT)
        records = [message(4, body)[n : n + 16384] for n in range(0, len(body) + 4, 16384)]
        assert received(machine, *((HANDSHAKE, record) for record in records[:-1])) == []
        violates(machine, HANDSHAKE, records[-1], DECODE_ERROR, text)

    @pytest.mark.parametrize("length", [0, 3, 5])
    def test_early_data_is_four_bytes(self, length: int) -> None:
        text = f"an early_data extension of {length} bytes (decode_error)"
        body = message(4, ticket(extensions=[(42, bytes(length))]))
        violates(PostHandshake(TLS_1_3, CLIENT), HANDSHAKE, body, DECODE_ERROR, text)

    @pytest.mark.parametrize("kind", [42, 0x1234])
    def test_an_extension_twice(self, kind: int) -> None:
        text = "a NewSessionTicket with an extension twice (illegal_parameter)"
        body = message(4, ticket(extensions=[(kind, bytes(4)), (1, b""), (kind, b"abcd")]))
        violates(PostHandshake(TLS_1_3, CLIENT), HANDSHAKE, body, ILLEGAL_PARAMETER, text)

    @pytest.mark.parametrize("lifetime", [604_801, 2**32 - 1])
    def test_lives_too_long(self, lifetime: int) -> None:
        text = f"a NewSessionTicket for {lifetime} seconds (illegal_parameter)"
        body = message(4, ticket(lifetime=lifetime))
        violates(PostHandshake(TLS_1_3, CLIENT), HANDSHAKE, body, ILLEGAL_PARAMETER, text)

    def test_syntax_goes_before_values(self) -> None:
        text = "a NewSessionTicket with 1 bytes behind its end (decode_error)"
        body = message(4, ticket(lifetime=2**32 - 1) + b"\0")
        violates(PostHandshake(TLS_1_3, CLIENT), HANDSHAKE, body, DECODE_ERROR, text)

    def test_flood(self) -> None:
        clock = Clock()
        machine = PostHandshake(TLS_1_3, CLIENT, clock=clock)
        for _ in range(3):
            for _ in range(256):
                assert received(machine, (HANDSHAKE, TICKET)) == [TicketReceived(TICKET_BODY)]
                machine.data_arrives()  # makes no difference
            clock.now += 60.0
        received(machine, (HANDSHAKE, TICKET))
        clock.now += 59.9
        assert len(received(machine, (HANDSHAKE, TICKET * 255))) == 255
        text = "too many session tickets in a short time (unexpected_message)"
        violates(machine, HANDSHAKE, TICKET, UNEXPECTED_MESSAGE, text)

    @pytest.mark.parametrize("extra", [1, 1000, 2**24 - 1 - LARGEST_TICKET])
    def test_too_large_is_refused_from_its_header_on(self, extra: int) -> None:
        length = LARGEST_TICKET + extra
        violates(
            PostHandshake(TLS_1_3, CLIENT),
            HANDSHAKE,
            struct.pack(">I", 4 << 24 | length),
            DECODE_ERROR,
            f"a handshake message of {length} bytes (decode_error)",
        )

    def test_body_is_not_shown(self) -> None:
        assert repr(TicketReceived(b"secret")) == "<TicketReceived 6 bytes>"

    @pytest.mark.parametrize(
        ("version", "role"), [(TLS_1_3, SERVER), (TLS_1_2, SERVER), (TLS_1_2, CLIENT)]
    )
    def test_nobody_else_takes_them(self, version: int, role: Role) -> None:
        # TLS 1.2 sends its ticket within the handshake (RFC 5077 section 3.3).
        text = "handshake message 4 after the handshake (unexpected_message)"
        violates(PostHandshake(version, role), HANDSHAKE, TICKET, UNEXPECTED_MESSAGE, text)


class TestKeyUpdate:
    @BOTH_ROLES
    def test_both_kinds(self, role: Role) -> None:
        machine = PostHandshake(TLS_1_3, role)
        assert received(machine, (HANDSHAKE, UPDATE)) == [KeyUpdateReceived(answer_wanted=False)]
        assert received(machine, (HANDSHAKE, UPDATE_REQUESTED)) == [
            KeyUpdateReceived(answer_wanted=True)
        ]

    def test_after_a_ticket_in_the_same_record(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        assert received(machine, (HANDSHAKE, TICKET + UPDATE)) == [
            TicketReceived(TICKET_BODY),
            KeyUpdateReceived(answer_wanted=False),
        ]

    @BOTH_ROLES
    @pytest.mark.parametrize("behind", [UPDATE, b"\x18", b"\x04\0"])
    def test_nothing_may_follow_it_in_its_record(self, role: Role, behind: bytes) -> None:
        # RFC 8446 section 5.1: what follows would be under other keys.
        text = "data after a KeyUpdate in the same record (unexpected_message)"
        violates(PostHandshake(TLS_1_3, role), HANDSHAKE, UPDATE + behind, UNEXPECTED_MESSAGE, text)

    @pytest.mark.parametrize("value", [2, 3, 255])
    def test_unknown_request(self, value: int) -> None:
        violates(
            PostHandshake(TLS_1_3, CLIENT),
            HANDSHAKE,
            message(24, bytes((value,))),
            ILLEGAL_PARAMETER,
            f"a KeyUpdate that asks for {value} (illegal_parameter)",
        )

    @pytest.mark.parametrize("body", [b"", b"\0\0", bytes(100)])
    def test_wrong_length(self, body: bytes) -> None:
        violates(
            PostHandshake(TLS_1_3, CLIENT),
            HANDSHAKE,
            message(24, body),
            DECODE_ERROR,
            f"a KeyUpdate of {len(body)} bytes (decode_error)",
        )

    @BOTH_ROLES
    def test_is_followed_in_mid_stream(self, role: Role) -> None:
        machine = PostHandshake(TLS_1_3, role)
        for generation in range(1, 20):
            machine.data_arrives()
            assert received(machine, (HANDSHAKE, UPDATE)) == [KeyUpdateReceived(False)]
            assert (machine.rx_generation, machine.tx_generation) == (generation, 0)
            assert machine.quiet

    @BOTH_ROLES
    @pytest.mark.parametrize("update", [UPDATE, UPDATE_REQUESTED])
    @pytest.mark.parametrize("most", [None, 1, 7])
    def test_flood(self, role: Role, update: bytes, most: int | None) -> None:
        clock = Clock()
        machine = (
            PostHandshake(TLS_1_3, role, clock=clock)
            if most is None
            else PostHandshake(TLS_1_3, role, clock=clock, most_key_updates=most)
        )
        most = most or 100
        for _ in range(3):
            for _ in range(most):
                assert len(received(machine, (HANDSHAKE, update))) == 1
                machine.data_arrives()  # makes no difference
            clock.now += 1.0
        for _ in range(most):
            received(machine, (HANDSHAKE, update))
            clock.now += 0.99 / most
        generation = machine.rx_generation
        text = "too many KeyUpdates in a short time (unexpected_message)"
        violates(machine, HANDSHAKE, update, UNEXPECTED_MESSAGE, text)
        assert machine.rx_generation == generation == 4 * most
        assert not machine.answer_due

    def test_a_clock_that_was_set_back_ends_no_connection(self) -> None:
        clock = Clock()
        machine = PostHandshake(TLS_1_3, CLIENT, clock=clock, most_key_updates=1)
        for _ in range(10):
            received(machine, (HANDSHAKE, UPDATE))
            clock.now -= 5.0

    def test_the_clock_that_counts_by_itself(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT, most_key_updates=2)
        assert outcome(machine, [(HANDSHAKE, UPDATE)] * 100_000)[1] is not None
        assert machine.rx_generation >= 2
        machine = PostHandshake(TLS_1_3, CLIENT, most_key_updates=1)
        received(machine, (HANDSHAKE, UPDATE))
        time.sleep(1.01)
        received(machine, (HANDSHAKE, UPDATE))

    @BOTH_ROLES
    def test_unknown_in_tls_1_2(self, role: Role) -> None:
        text = "handshake message 24 after the handshake (unexpected_message)"
        violates(PostHandshake(TLS_1_2, role), HANDSHAKE, UPDATE, UNEXPECTED_MESSAGE, text)

    def test_bytes_of_a_key_update(self) -> None:
        assert key_update(request=False) == UPDATE == b"\x18\0\0\1\0"
        assert key_update(request=True) == UPDATE_REQUESTED == b"\x18\0\0\1\1"


class TestRenegotiation:
    @pytest.mark.parametrize(
        ("role", "request_"), [(CLIENT, HELLO_REQUEST), (SERVER, CLIENT_HELLO)]
    )
    def test_declined(self, role: Role, request_: bytes) -> None:
        machine = PostHandshake(TLS_1_2, role)
        assert received(machine, (HANDSHAKE, request_)) == [SendWarning(100)]

    @pytest.mark.parametrize(
        ("role", "request_"), [(CLIENT, HELLO_REQUEST), (SERVER, CLIENT_HELLO)]
    )
    def test_flood(self, role: Role, request_: bytes) -> None:
        machine = PostHandshake(TLS_1_2, role)
        for _ in range(3):
            assert received(machine, *[(HANDSHAKE, request_)] * 5) == [SendWarning(100)] * 5
            machine.data_arrives()
        assert received(machine, (HANDSHAKE, request_ * 5)) == [SendWarning(100)] * 5
        text = "too many requests for renegotiation (unexpected_message)"
        violates(machine, HANDSHAKE, request_, UNEXPECTED_MESSAGE, text)

    @pytest.mark.parametrize("length", [1, 100, 2**24 - 1])
    def test_a_hello_request_is_empty(self, length: int) -> None:
        # RFC 5246 section 7.4.1.1.
        text = f"a HelloRequest of {length} bytes (decode_error)"
        head = length.to_bytes(4, "big")
        violates(PostHandshake(TLS_1_2, CLIENT), HANDSHAKE, head, DECODE_ERROR, text)

    def test_flood_counts_alerts_and_requests_together(self) -> None:
        machine = PostHandshake(TLS_1_2, CLIENT)
        received(machine, *[(HANDSHAKE, HELLO_REQUEST), (ALERT, b"\1\x64")] * 2)
        assert received(machine, (HANDSHAKE, HELLO_REQUEST)) == [SendWarning(100)]
        text = "too many warning alerts in a row (unexpected_message)"
        violates(machine, ALERT, b"\1\x64", UNEXPECTED_MESSAGE, text)

    def test_of_the_wrong_side(self) -> None:
        for role, request_ in ((SERVER, HELLO_REQUEST), (CLIENT, CLIENT_HELLO)):
            text = f"handshake message {request_[0]} after the handshake (unexpected_message)"
            violates(PostHandshake(TLS_1_2, role), HANDSHAKE, request_, UNEXPECTED_MESSAGE, text)

    @BOTH_ROLES
    @pytest.mark.parametrize("request_", [HELLO_REQUEST, CLIENT_HELLO])
    def test_is_not_in_tls_1_3(self, role: Role, request_: bytes) -> None:
        text = f"handshake message {request_[0]} after the handshake (unexpected_message)"
        violates(PostHandshake(TLS_1_3, role), HANDSHAKE, request_, UNEXPECTED_MESSAGE, text)


class TestOtherRecords:
    @pytest.mark.parametrize(
        ("offered", "reason"),
        [
            (False, "which was not offered"),
            (
                True,
                (
                    "which post_handshake_auth offered, but which needs the private key and the "
                    "transcript that stayed in the TLS library"
                ),
            ),
        ],
    )
    def test_certificate_request(self, offered: bool, reason: str) -> None:
        text = f"client authentication after the handshake, {reason} (unexpected_message)"
        for payload in (message(13, b"x"), b"\x0d"):  # the first byte is enough
            machine = PostHandshake(TLS_1_3, CLIENT, post_handshake_auth=offered)
            violates(machine, HANDSHAKE, payload, UNEXPECTED_MESSAGE, text)

    @BOTH_VERSIONS
    @BOTH_ROLES
    def test_every_other_handshake_message(self, version: int, role: Role) -> None:
        allowed = {
            (TLS_1_3, CLIENT): {4, 24, 13},
            (TLS_1_3, SERVER): {24},
            (TLS_1_2, CLIENT): {0},
            (TLS_1_2, SERVER): {1},
        }[version, role]
        for kind in set(range(256)) - allowed:
            text = f"handshake message {kind} after the handshake (unexpected_message)"
            # Its header is enough.
            for head in (bytes((kind, 0, 0xFF, 0xFF)), bytes((kind,))):
                violates(PostHandshake(version, role), HANDSHAKE, head, UNEXPECTED_MESSAGE, text)

    @BOTH_VERSIONS
    @BOTH_ROLES
    def test_change_cipher_spec(self, version: int, role: Role) -> None:
        text = "ChangeCipherSpec after the handshake (unexpected_message)"
        machine = PostHandshake(version, role)
        violates(machine, CHANGE_CIPHER_SPEC, b"\1", UNEXPECTED_MESSAGE, text)

    @BOTH_VERSIONS
    @pytest.mark.parametrize("record_type", [0, 19, 24, 25, 255, 256, -1])
    def test_unknown_type(self, version: int, record_type: int) -> None:
        text = f"a record of unknown type {record_type} (unexpected_message)"
        violates(PostHandshake(version, CLIENT), record_type, b"?", UNEXPECTED_MESSAGE, text)

    @BOTH_VERSIONS
    def test_empty_handshake_record(self, version: int) -> None:
        text = "an empty handshake record (unexpected_message)"
        machine = PostHandshake(version, CLIENT)
        violates(machine, HANDSHAKE, b"", UNEXPECTED_MESSAGE, text)

    @pytest.mark.parametrize(
        "between", [(ALERT, b"\1\0"), (CHANGE_CIPHER_SPEC, b"\1"), (99, b""), None]
    )
    @pytest.mark.parametrize("begun", [1, 3, 4, 9])
    def test_nothing_comes_within_a_message(
        self, between: tuple[int, bytes] | None, begun: int
    ) -> None:
        # RFC 8446 section 5.1.
        machine = PostHandshake(TLS_1_3, CLIENT)
        assert received(machine, (HANDSHAKE, TICKET[:begun])) == []
        text = "another record within a handshake message (unexpected_message)"
        if between is None:
            with pytest.raises(Violation, match=f"^{re.escape(text)}$") as caught:
                machine.data_arrives()
            assert caught.value.description == UNEXPECTED_MESSAGE
        else:
            violates(machine, *between, UNEXPECTED_MESSAGE, text)

    @pytest.mark.parametrize("between", [(ALERT, b"\1\x5a"), (APPLICATION_DATA, b"x"), None])
    def test_in_tls_1_2_other_records_may(self, between: tuple[int, bytes] | None) -> None:
        # RFC 5246 section 6.2.1.
        machine = PostHandshake(TLS_1_2, SERVER)
        for piece in (CLIENT_HELLO[:2], CLIENT_HELLO[2:20]):
            assert received(machine, (HANDSHAKE, piece)) == []
            if between:
                assert received(machine, between) == []
            else:
                machine.data_arrives()
                machine.empty_data_arrives()
        assert received(machine, (HANDSHAKE, CLIENT_HELLO[20:])) == [SendWarning(100)]

    @BOTH_VERSIONS
    @pytest.mark.parametrize(
        "record_type", [HANDSHAKE, ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, 99]
    )
    def test_longer_than_any_record(self, version: int, record_type: int) -> None:
        text = "a record of 16385 bytes (record_overflow)"
        machine = PostHandshake(version, CLIENT)
        violates(machine, record_type, bytes(16385), 22, text)
        assert received(PostHandshake(version, CLIENT), (APPLICATION_DATA, bytes(16384))) == []

    @BOTH_VERSIONS
    @pytest.mark.parametrize("through", ["method", "record"])
    def test_flood_of_empty_records(self, version: int, through: str) -> None:
        def empty() -> None:
            if through == "method":
                machine.empty_data_arrives()
            else:
                assert received(machine, (APPLICATION_DATA, b"")) == []

        machine = PostHandshake(version, CLIENT)
        for _ in range(3):
            for _ in range(32):
                empty()
                assert not machine.quiet
            machine.data_arrives()
            assert machine.quiet
        for _ in range(32):
            empty()
        text = "^too many empty records in a row \\(unexpected_message\\)$"
        with pytest.raises(Violation, match=text) as caught:
            empty()
        assert caught.value.description == UNEXPECTED_MESSAGE

    def test_empty_records_do_not_end_a_row_of_warnings(self) -> None:
        machine = PostHandshake(TLS_1_2, CLIENT)
        for _ in range(5):
            received(machine, (ALERT, b"\1\x5a"), (APPLICATION_DATA, b""))
        text = "too many warning alerts in a row (unexpected_message)"
        violates(machine, ALERT, b"\1\x5a", UNEXPECTED_MESSAGE, text)

    @pytest.mark.parametrize("begun", [1, 4])
    def test_an_empty_record_within_a_message(self, begun: int) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        received(machine, (HANDSHAKE, TICKET[:begun]))
        with pytest.raises(Violation, match="another record within a handshake message"):
            machine.empty_data_arrives()

    def test_data_between_messages_is_fine(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        for _ in range(100):
            received(machine, (HANDSHAKE, TICKET))
            machine.data_arrives()

    def test_what_came_before_a_violation_still_holds(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        actions = machine.receive(HANDSHAKE, TICKET + message(2, b"x"))
        assert next(actions) == TicketReceived(TICKET_BODY)
        with pytest.raises(Violation):
            next(actions)


# ---- what happens after the end ----------------------------------------------------------------


def everything() -> Iterator[tuple[int, bytes]]:
    """Records of every kind, right and wrong."""
    yield ALERT, b"\1\0"
    yield ALERT, b"\2\x28"
    yield ALERT, b"\1\x64"
    yield ALERT, b"?"
    for payload in (TICKET, UPDATE, UPDATE_REQUESTED, HELLO_REQUEST, CLIENT_HELLO, TICKET[:3], b""):
        yield HANDSHAKE, payload
    for record_type in (CHANGE_CIPHER_SPEC, APPLICATION_DATA, 0, 99):
        yield record_type, b"\1"
    yield APPLICATION_DATA, b""
    yield APPLICATION_DATA, bytes(16385)


class TestAfterTheEnd:
    @BOTH_VERSIONS
    @BOTH_ROLES
    @pytest.mark.parametrize(
        ("payload", "state"), [(b"\1\0", State.CLOSED), (b"\2\x28", State.ABORTED)]
    )
    def test_after_an_alert_everything_is_ignored(
        self, version: int, role: Role, payload: bytes, state: State
    ) -> None:
        # RFC 8446 sections 6.1 and 6.2.
        machine = PostHandshake(version, role)
        assert machine.quiet
        assert not machine.closed
        assert len(received(machine, (ALERT, payload))) == 1
        for _ in range(40):
            assert received(machine, *everything()) == []
            machine.data_arrives()
            machine.empty_data_arrives()
        assert machine.state is state
        assert machine.closed
        assert not machine.quiet
        assert (machine.rx_generation, machine.answer_due) == (0, False)

    @BOTH_VERSIONS
    @BOTH_ROLES
    def test_after_a_violation_it_is_raised_again(self, version: int, role: Role) -> None:
        machine = PostHandshake(version, role)
        text = "a record of unknown type 99 (unexpected_message)"
        violates(machine, 99, b"", UNEXPECTED_MESSAGE, text)
        assert machine.state is State.VIOLATED
        assert machine.closed
        assert not machine.quiet
        for record_type, payload in everything():
            violates(machine, record_type, payload, UNEXPECTED_MESSAGE, text)
        for method in (machine.data_arrives, machine.empty_data_arrives):
            with pytest.raises(Violation, match=re.escape(text)):
                method()

    def test_a_violation_by_data_stays_too(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        received(machine, (HANDSHAKE, TICKET[:5]))
        text = "another record within a handshake message (unexpected_message)"
        with pytest.raises(Violation, match=re.escape(text)):
            machine.data_arrives()
        assert machine.state is State.VIOLATED
        violates(machine, HANDSHAKE, TICKET[5:], UNEXPECTED_MESSAGE, text)

    def test_each_is_raised_as_a_new_object(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        caught = []
        for _ in range(3):
            with pytest.raises(Violation) as info:
                list(machine.receive(99, b""))
            caught.append(info.value)
        assert len(set(map(id, caught))) == 3
        assert len(set(map(str, caught))) == 1

    def test_a_record_is_taken_in_even_if_nobody_looks(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        machine.receive(HANDSHAKE, TICKET[:5])
        machine.receive(HANDSHAKE, TICKET[5:] + UPDATE)
        assert machine.quiet
        assert machine.rx_generation == 1
        machine.receive(99, b"")
        assert machine.state is State.VIOLATED

    def test_a_violation_can_be_pickled(self) -> None:
        error = Violation(50, "because")
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert type(again) is Violation
        assert (str(again), again.description, again.reason) == (str(error), 50, "because")
        assert str(error) == "because (decode_error)"


class TestQuiet:
    """It is True exactly when data_arrives() would change nothing."""

    @BOTH_VERSIONS
    def test_within_a_message(self, version: int) -> None:
        whole = TICKET if version == TLS_1_3 else CLIENT_HELLO
        machine = PostHandshake(version, CLIENT if version == TLS_1_3 else SERVER)
        for byte in whole[:-1]:
            assert received(machine, (HANDSHAKE, bytes((byte,)))) == []
            assert machine.quiet == (version == TLS_1_2)
        assert len(received(machine, (HANDSHAKE, whole[-1:]))) == 1
        assert machine.quiet == (version == TLS_1_3)  # a refusal in TLS 1.2 is counted in a row
        machine.data_arrives()
        assert machine.quiet

    @BOTH_VERSIONS
    @pytest.mark.parametrize("record", [(ALERT, b"\1\x5a"), (APPLICATION_DATA, b"")])
    def test_in_a_row(self, version: int, record: tuple[int, bytes]) -> None:
        machine = PostHandshake(version, CLIENT)
        received(machine, record)
        assert not machine.quiet
        received(machine, (APPLICATION_DATA, b"x"))
        assert machine.quiet


# ---- moving it ---------------------------------------------------------------------------------


def moved(machine: PostHandshake, clock: Clock | None = None) -> PostHandshake:
    return PostHandshake.restore(json.loads(json.dumps(machine.export())), clock=clock or Clock())


class TestMoving:
    def test_what_it_looks_like(self) -> None:
        clock = Clock()
        machine = PostHandshake(TLS_1_3, CLIENT, post_handshake_auth=True, clock=clock)
        received(machine, (HANDSHAKE, TICKET + UPDATE_REQUESTED))
        clock.now += 0.25
        received(machine, (ALERT, b"\1\x5a"), (APPLICATION_DATA, b""), (HANDSHAKE, TICKET[:6]))
        assert machine.export() == {
            "format": 1,
            "version": 0x0304,
            "role": "client",
            "post_handshake_auth": True,
            "closed": False,
            "partial": TICKET[:6].hex(),
            "warnings": 1,
            "empty_records": 1,
            "rx_generation": 1,
            "tx_generation": 0,
            "answer_due": True,
            "answer_awaited": False,
            "most_key_updates": 100,
            "key_updates": 1,
            "key_updates_age": 0.25,
            "tickets": 1,
            "tickets_age": 0.25,
        }
        assert moved(machine).export() == machine.export()

    def test_windows_go_on_with_another_clock(self) -> None:
        clock = Clock()
        machine = PostHandshake(TLS_1_3, CLIENT, clock=clock, most_key_updates=3)
        received(machine, *[(HANDSHAKE, UPDATE)] * 3)
        clock.now += 0.6
        other = Clock()
        other.now = 5.0
        for elapsed, refused in ((0.3, True), (0.5, False)):
            again = moved(machine, other)
            other.now += elapsed
            if refused:
                text = "too many KeyUpdates in a short time (unexpected_message)"
                violates(again, HANDSHAKE, UPDATE, UNEXPECTED_MESSAGE, text)
            else:
                assert len(received(again, (HANDSHAKE, UPDATE))) == 1

    def test_offers_and_limits_are_kept(self) -> None:
        machine = moved(PostHandshake(TLS_1_3, CLIENT, post_handshake_auth=True))
        with pytest.raises(Violation, match="which post_handshake_auth offered"):
            received(machine, (HANDSHAKE, message(13)))

    @BOTH_VERSIONS
    def test_closed_stays_closed(self, version: int) -> None:
        machine = PostHandshake(version, SERVER)
        received(machine, (ALERT, b"\1\0"))
        again = moved(machine)
        assert again.state is State.CLOSED
        assert received(again, *everything()) == []
        assert not again.quiet

    @pytest.mark.parametrize("record", [(ALERT, b"\2\x28"), (99, b"")])
    def test_what_has_failed_goes_nowhere(self, record: tuple[int, bytes]) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        with contextlib.suppress(Violation):
            received(machine, record)
        with pytest.raises(HandoffRefused, match="nothing to go on with"):
            machine.export()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format", 0),
            ("format", 2),
            ("version", 0x0302),
            ("version", 0x0305),
            ("version", "TLSv1.3"),
            ("role", "nobody"),
            ("role", None),
            ("post_handshake_auth", 1),
            ("closed", 0),
            ("partial", "0"),
            ("partial", "xx"),
            ("partial", b"04"),
            ("partial", "0b"),  # no message of this type
            ("partial", TICKET.hex()),  # nothing partial
            ("partial", (TICKET + TICKET[:1]).hex()),
            ("partial", (UPDATE + TICKET[:1]).hex()),
            ("warnings", -1),
            ("warnings", 6),
            ("warnings", 1.0),
            ("warnings", True),
            ("empty_records", 33),
            ("rx_generation", -1),
            ("tx_generation", "0"),
            ("answer_due", None),
            ("answer_awaited", 0),
            ("most_key_updates", None),
            ("key_updates", 101),
            ("key_updates_age", -0.5),
            ("key_updates_age", float("nan")),
            ("tickets", 257),
            ("tickets_age", float("inf")),
            ("tickets_age", None),
        ],
    )
    def test_anything_else_is_refused(self, name: str, value: object) -> None:
        exported = PostHandshake(TLS_1_3, CLIENT).export()
        PostHandshake.restore(exported)
        assert name in exported
        with pytest.raises(InvalidValue, match=name):
            PostHandshake.restore({**exported, name: value})

    def test_names_are_all_needed_and_no_others(self) -> None:
        exported = PostHandshake(TLS_1_3, CLIENT).export()
        for name in exported:
            fewer = {k: v for k, v in exported.items() if k != name}
            with pytest.raises(InvalidValue, match=f": {name}$"):
                PostHandshake.restore(fewer)
        with pytest.raises(InvalidValue, match=r": more$"):
            PostHandshake.restore({**exported, "more": 1})

    def test_closed_within_a_message_is_refused(self) -> None:
        exported = PostHandshake(TLS_1_3, CLIENT).export()
        with pytest.raises(InvalidValue, match="partial"):
            PostHandshake.restore({**exported, "closed": True, "partial": "04"})


# ---- properties --------------------------------------------------------------------------------
#
# A peer's output is a list of flights.  Each is of one record type, and a flight of handshake
# messages may be cut into records anywhere; KeyUpdates end one, as they end their record.

Flight = tuple[int, bytes]

tickets = st.builds(ticket, st.binary(min_size=1, max_size=40), nonce=st.binary(max_size=9)).map(
    lambda body: message(4, body)
)
hello_requests = st.just(HELLO_REQUEST)
client_hellos = st.binary(max_size=40).map(lambda body: message(1, body))
noise = st.one_of(
    st.builds(message, st.integers(0, 255), st.binary(max_size=8)),
    st.binary(min_size=1, max_size=8),
)
updates = st.sampled_from([UPDATE, UPDATE_REQUESTED])


def flights(version: int, role: Role, *, wrong: bool) -> st.SearchStrategy[Flight]:
    if version == TLS_1_3:
        good = tickets if role is CLIENT else st.just(b"")
        last = st.one_of(st.just(b""), updates)
    else:
        good = hello_requests if role is CLIENT else client_hellos
        last = st.just(b"")
    messages = st.lists(st.one_of(good, noise) if wrong else good, max_size=4)
    handshake = st.tuples(messages, last).map(lambda x: (HANDSHAKE, b"".join(x[0]) + x[1]))
    choices = [
        handshake,
        handshake,
        st.just((APPLICATION_DATA, b"data")),
        st.just((APPLICATION_DATA, b"")),
        st.sampled_from([(ALERT, b"\1\x5a"), (ALERT, b"\1\0"), (ALERT, b"\2\x28")]),
    ]
    if wrong:
        choices.append(st.tuples(st.integers(0, 255), st.binary(max_size=8)))
    return st.one_of(choices).filter(lambda f: f[0] != HANDSHAKE or f[1] != b"")


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def outcome(machine: PostHandshake, records: Iterable[Flight]) -> tuple[list[object], str | None]:
    """The actions, and the violation that ended them."""
    actions: list[object] = []
    try:
        for record in records:
            for action in machine.receive(*record):
                actions.append(action)  # noqa: PERF402  (an iterator that raises at its end)
    except Violation as e:
        return actions, str(e)
    return actions, None


VERSIONS = st.sampled_from([TLS_1_2, TLS_1_3])
ROLES = st.sampled_from([CLIENT, SERVER])
CUTS = st.lists(st.integers(0, 2**16), max_size=20)


@given(st.data(), VERSIONS, ROLES, st.booleans())
def test_cutting_changes_nothing(
    data: st.DataObject, version: int, role: Role, wrong: bool
) -> None:
    whole = data.draw(st.lists(flights(version, role, wrong=wrong), max_size=8))
    # The message that a flight leaves half done goes on in the next one: then the flights are one,
    # and cutting them would put a KeyUpdate in mid-record, or take it out of there.
    cut: list[Flight] = []
    for record_type, payload in whole:
        if record_type == HANDSHAKE:
            cut += [(HANDSHAKE, piece) for piece in split(payload, data.draw(CUTS))]
        else:
            cut.append((record_type, payload))
    one, many = PostHandshake(version, role), PostHandshake(version, role)
    expected = outcome(one, whole)
    assume(expected[1] is None or "after a KeyUpdate" not in expected[1])
    assert outcome(many, cut) == expected
    assert many.state is one.state
    assert many.quiet == one.quiet
    assert (many.rx_generation, many.answer_due) == (one.rx_generation, one.answer_due)
    if not wrong:
        event(f"{version:#x} {one.state}, {len(expected[0])} actions")


@given(st.data(), VERSIONS, ROLES, st.booleans())
def test_moving_changes_nothing(data: st.DataObject, version: int, role: Role, wrong: bool) -> None:
    """To another process, in between any two records."""
    records = data.draw(st.lists(flights(version, role, wrong=wrong), max_size=8))
    stays = PostHandshake(version, role, clock=Clock())
    moves = PostHandshake(version, role, clock=Clock())
    for record in records:
        assert outcome(moves, [record]) == outcome(stays, [record])
        assert (moves.state, moves.quiet) == (stays.state, stays.quiet)
        if stays.state in {State.ABORTED, State.VIOLATED}:
            return
        moves = moved(moves)
        assert moves.export() == stays.export()


@given(VERSIONS, ROLES, st.data())
def test_right_messages_give_their_actions(version: int, role: Role, data: st.DataObject) -> None:
    """What is in each flight is what comes out, in order."""
    sent = data.draw(st.lists(flights(version, role, wrong=False), max_size=8))
    expected: list[object] = []
    in_a_row = 0
    for record_type, payload in sent:
        if record_type == APPLICATION_DATA and payload:
            in_a_row = 0
        elif record_type == HANDSHAKE:
            while payload:
                size = 4 + int.from_bytes(payload[1:4], "big")
                first, payload = payload[:size], payload[size:]  # noqa: PLW2901
                if first[0] == 4:
                    expected.append(TicketReceived(first[4:]))
                elif first[0] == 24:
                    expected.append(KeyUpdateReceived(first[4] == 1))
                else:
                    in_a_row += 1
                    expected.append(SendWarning(100))
        elif (record_type, payload) == (ALERT, b"\1\x5a"):
            in_a_row += 1
        elif record_type == ALERT:
            expected.append(
                AlertReceived(2, 40)
                if payload[1]
                else CloseNotifyReceived(both_directions=version == TLS_1_2)
            )
            break
        assume(in_a_row <= 5)
    assert outcome(PostHandshake(version, role), sent) == (expected, None)


@given(
    VERSIONS,
    ROLES,
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([ALERT, HANDSHAKE, APPLICATION_DATA]), st.integers(0, 255)),
            st.one_of(st.binary(), st.sampled_from([TICKET, UPDATE, HELLO_REQUEST, CLIENT_HELLO])),
        ),
        max_size=10,
    ),
)
def test_anything_at_all_gives_actions_or_a_violation(
    version: int, role: Role, records: list[tuple[int, bytes]]
) -> None:
    machine = PostHandshake(version, role)
    kinds = TicketReceived | KeyUpdateReceived | CloseNotifyReceived | AlertReceived | SendWarning
    violation = None
    for record in records:
        was_closed = machine.closed
        actions, now = outcome(machine, [record])
        assert all(isinstance(action, kinds) for action in actions)
        if was_closed:
            assert actions == []
            assert now == violation
        elif now is None:
            ends = [isinstance(a, CloseNotifyReceived | AlertReceived) for a in actions]
            assert ends == [False] * (len(actions) - 1) + [machine.closed] * bool(actions)
        else:
            assert machine.state is State.VIOLATED
            assert now.endswith(tuple(f"({name})" for name in ALERT_NAMES.values()))
            violation = now


@given(st.binary(max_size=60))
def test_any_body_of_a_ticket_is_read_or_refused(body: bytes) -> None:
    actions, violation = outcome(PostHandshake(TLS_1_3, CLIENT), [(HANDSHAKE, message(4, body))])
    assert (actions == [TicketReceived(body)]) == (violation is None)


@given(
    st.binary(min_size=1, max_size=60),
    st.integers(0, 604_800),
    st.binary(max_size=60),
    st.dictionaries(st.integers(0, 2**16 - 1).filter(lambda n: n != 42), st.binary(max_size=20)),
)
def test_any_ticket_is_taken(
    value: bytes, lifetime: int, nonce: bytes, extensions: dict[int, bytes]
) -> None:
    body = ticket(value, lifetime=lifetime, nonce=nonce, extensions=extensions.items())
    machine = PostHandshake(TLS_1_3, CLIENT)
    assert received(machine, (HANDSHAKE, message(4, body))) == [TicketReceived(body)]
