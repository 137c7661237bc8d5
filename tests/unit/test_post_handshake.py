"""What may arrive after the handshake: every branch of the state machine, without any I/O."""

from __future__ import annotations

import itertools
import re
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyktls import Role
from pyktls.errors import ALERT_NAMES, TLSAlert
from pyktls.post_handshake import (
    ALERT,
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    AlertReceived,
    CloseNotifyReceived,
    KeyUpdateReceived,
    PostHandshake,
    SendWarning,
    TicketReceived,
    Violation,
    alert,
    key_update,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

TLS_1_2, TLS_1_3 = 0x0303, 0x0304
CLIENT, SERVER = Role.CLIENT, Role.SERVER
BOTH_ROLES = pytest.mark.parametrize("role", [CLIENT, SERVER])
BOTH_VERSIONS = pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=["1.2", "1.3"])

UNEXPECTED_MESSAGE, ILLEGAL_PARAMETER, DECODE_ERROR = 10, 47, 50
LARGEST_TICKET = 4 + 4 + (1 + 255) + (2 + 0xFFFF) + (2 + 0xFFFE)


def message(kind: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", kind << 24 | len(body)) + body


TICKET = message(4, b"ticket")
UPDATE, UPDATE_REQUESTED = message(24, b"\0"), message(24, b"\1")
HELLO_REQUEST = message(0)
CLIENT_HELLO = message(1, b"\3\3" + bytes(32))


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
        assert received(machine, (ALERT, bytes((level, 0)))) == [CloseNotifyReceived()]

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

    @pytest.mark.parametrize("level", [1, 2])
    def test_user_canceled_of_tls_1_3_ends_nothing(self, level: int) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        assert received(machine, (ALERT, bytes((level, 90))), (ALERT, bytes((level, 0)))) == [
            CloseNotifyReceived()
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
    @pytest.mark.parametrize("payload", [b"", b"\1", b"\1\0\0", b"\1\0\1\0", bytes(16384)])
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
        assert received(machine, (HANDSHAKE, TICKET)) == [TicketReceived(b"ticket")]
        assert received(machine, (HANDSHAKE, TICKET * 3)) == [TicketReceived(b"ticket")] * 3

    def test_largest(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        whole = message(4, bytes(LARGEST_TICKET - 4))
        pieces = [whole[n : n + 16384] for n in range(0, len(whole), 16384)]
        actions = received(machine, *((HANDSHAKE, piece) for piece in pieces))
        assert actions == [TicketReceived(bytes(LARGEST_TICKET - 4))]

    @pytest.mark.parametrize("extra", [5, 1000, 2**24 - 1 - LARGEST_TICKET])
    def test_too_large_is_refused_from_its_header_on(self, extra: int) -> None:
        length = LARGEST_TICKET + extra - 4
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
            TicketReceived(b"ticket"),
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
    @BOTH_ROLES
    def test_certificate_request(self, role: Role) -> None:
        text = "client authentication after the handshake (unexpected_message)"
        machine = PostHandshake(TLS_1_3, role)
        violates(machine, HANDSHAKE, message(13, b"x"), UNEXPECTED_MESSAGE, text)

    @BOTH_VERSIONS
    @BOTH_ROLES
    def test_every_other_handshake_message(self, version: int, role: Role) -> None:
        allowed = {
            (TLS_1_3, CLIENT): {4, 24, 13},
            (TLS_1_3, SERVER): {24, 13},
            (TLS_1_2, CLIENT): {0},
            (TLS_1_2, SERVER): {1},
        }[version, role]
        for kind in set(range(256)) - allowed:
            text = f"handshake message {kind} after the handshake (unexpected_message)"
            # Its header is enough.
            head = bytes((kind, 0, 0xFF, 0xFF))
            violates(PostHandshake(version, role), HANDSHAKE, head, UNEXPECTED_MESSAGE, text)

    @BOTH_VERSIONS
    @BOTH_ROLES
    def test_change_cipher_spec(self, version: int, role: Role) -> None:
        text = "ChangeCipherSpec after the handshake (unexpected_message)"
        machine = PostHandshake(version, role)
        violates(machine, CHANGE_CIPHER_SPEC, b"\1", UNEXPECTED_MESSAGE, text)

    @BOTH_VERSIONS
    @pytest.mark.parametrize("record_type", [0, 19, 24, 25, 255])
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

    def test_data_between_messages_is_fine(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        for _ in range(100):
            received(machine, (HANDSHAKE, TICKET))
            machine.data_arrives()

    def test_what_came_before_a_violation_still_holds(self) -> None:
        machine = PostHandshake(TLS_1_3, CLIENT)
        actions = machine.receive(HANDSHAKE, TICKET + message(2, b"x"))
        assert next(actions) == TicketReceived(b"ticket")
        with pytest.raises(Violation):
            next(actions)


# ---- messages and the records that carry them --------------------------------------------------


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


tickets = st.binary(max_size=40).map(lambda body: message(4, body))
CUTS = st.lists(st.integers(0, 2**16), max_size=20)


@given(st.lists(tickets, min_size=1, max_size=6), CUTS)
def test_tickets_are_the_same_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    records = split(b"".join(messages), cuts)
    machine = PostHandshake(TLS_1_3, CLIENT)
    actions = received(machine, *((HANDSHAKE, record) for record in records))
    assert actions == [TicketReceived(m[4:]) for m in messages]
    machine.data_arrives()  # nothing is left over


@given(
    st.lists(st.tuples(st.lists(tickets, max_size=3), st.booleans(), CUTS), min_size=1, max_size=4),
    st.sampled_from([CLIENT, SERVER]),
)
def test_key_updates_are_the_same_however_they_are_cut(
    flights: list[tuple[list[bytes], bool, list[int]]], role: Role
) -> None:
    # Each flight ends in a KeyUpdate, which ends its record.
    machine = PostHandshake(TLS_1_3, role)
    for before, request, cuts in flights:
        messages = [*(before if role is CLIENT else []), key_update(request=request)]
        records = split(b"".join(messages), cuts)
        actions = received(machine, *((HANDSHAKE, record) for record in records))
        assert actions == [
            *(TicketReceived(m[4:]) for m in messages[:-1]),
            KeyUpdateReceived(answer_wanted=request),
        ]
    machine.data_arrives()


@given(st.integers(1, 5), CUTS, st.sampled_from([CLIENT, SERVER]))
def test_requests_for_renegotiation_are_the_same_however_they_are_cut(
    count: int, cuts: list[int], role: Role
) -> None:
    request = HELLO_REQUEST if role is CLIENT else CLIENT_HELLO
    machine = PostHandshake(TLS_1_2, role)
    records = split(request * count, cuts)
    actions = received(machine, *((HANDSHAKE, record) for record in records))
    assert actions == [SendWarning(100)] * count


@given(
    st.sampled_from([TLS_1_2, TLS_1_3]),
    st.sampled_from([CLIENT, SERVER]),
    st.lists(
        st.tuples(st.sampled_from([ALERT, HANDSHAKE, 20, 99, APPLICATION_DATA]), st.binary()),
        max_size=10,
    ),
)
def test_anything_at_all_gives_actions_or_a_violation(
    version: int, role: Role, records: list[tuple[int, bytes]]
) -> None:
    machine = PostHandshake(version, role)
    try:
        for record_type, payload in records:
            if record_type == APPLICATION_DATA:
                machine.data_arrives()
            else:
                for action in machine.receive(record_type, payload):
                    assert isinstance(
                        action,
                        TicketReceived
                        | KeyUpdateReceived
                        | CloseNotifyReceived
                        | AlertReceived
                        | SendWarning,
                    )
    except Violation as e:
        assert e.description in ALERT_NAMES  # noqa: PT017
        assert str(e).endswith(f"({ALERT_NAMES[e.description]})")  # noqa: PT017
