"""Key updates of our own, and both ends of a connection together, without any I/O."""

from __future__ import annotations

import hmac
import itertools
from collections import deque
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyktls import Role
from pyktls.ciphers import find_suite
from pyktls.errors import Error, Unavailable
from pyktls.key_schedule import next_traffic_secret, traffic_keys
from pyktls.post_handshake import KeyUpdateReceived, PostHandshake, State, Violation
from pyktls.protocol import ALERT, APPLICATION_DATA, HANDSHAKE

if TYPE_CHECKING:
    from collections.abc import Callable

TLS_1_2, TLS_1_3 = 0x0303, 0x0304
CLIENT, SERVER = Role.CLIENT, Role.SERVER
UPDATE, UPDATE_REQUESTED = b"\x18\0\0\1\0", b"\x18\0\0\1\1"

SUITE = find_suite(0x1301)
assert SUITE is not None


def receive(machine: PostHandshake, *payloads: bytes) -> None:
    for payload in payloads:
        list(machine.receive(HANDSHAKE, payload))


def send(machine: PostHandshake, message: bytes | None) -> bytes:
    assert message is not None
    machine.key_update_sent()
    return message


@pytest.fixture(params=[CLIENT, SERVER])
def machine(request: pytest.FixtureRequest) -> PostHandshake:
    return PostHandshake(TLS_1_3, request.param, clock=lambda: 0.0)


class TestBegin:
    def test_without_a_request(self, machine: PostHandshake) -> None:
        assert machine.begin_key_update() == UPDATE
        assert (machine.tx_generation, machine.rx_generation) == (0, 0)  # not sent yet
        machine.key_update_sent()
        assert (machine.tx_generation, machine.rx_generation) == (1, 0)
        assert (machine.answer_due, machine.answer_awaited) == (False, False)

    def test_with_a_request(self, machine: PostHandshake) -> None:
        assert machine.begin_key_update(request_peer=True) == UPDATE_REQUESTED
        assert not machine.answer_awaited  # not sent yet
        machine.key_update_sent()
        assert machine.answer_awaited
        # RFC 8446 section 4.6.3: the answer is a KeyUpdate, and is not answered.
        receive(machine, UPDATE)
        assert (machine.answer_awaited, machine.answer_due) == (False, False)
        assert machine.answer() is None
        assert (machine.tx_generation, machine.rx_generation) == (1, 1)

    def test_one_request_at_a_time(self, machine: PostHandshake) -> None:
        send(machine, machine.begin_key_update(request_peer=True))
        for _ in range(3):
            assert send(machine, machine.begin_key_update(request_peer=True)) == UPDATE
            assert machine.answer_awaited
        assert machine.tx_generation == 4
        receive(machine, UPDATE)
        assert send(machine, machine.begin_key_update(request_peer=True)) == UPDATE_REQUESTED

    def test_what_could_not_be_sent_has_not_happened(self, machine: PostHandshake) -> None:
        for _ in range(3):
            assert machine.begin_key_update(request_peer=True) == UPDATE_REQUESTED
            assert (machine.tx_generation, machine.answer_awaited) == (0, False)
        assert machine.begin_key_update() == UPDATE  # the last one counts
        machine.key_update_sent()
        assert (machine.tx_generation, machine.answer_awaited) == (1, False)

    def test_sent_without_begin(self, machine: PostHandshake) -> None:
        text = r"^no KeyUpdate has been begun$"
        with pytest.raises(Error, match=text):
            machine.key_update_sent()
        machine.begin_key_update()
        machine.key_update_sent()
        with pytest.raises(Error, match=text):  # nor may it be told twice
            machine.key_update_sent()
        assert machine.tx_generation == 1

    @pytest.mark.parametrize("role", [CLIENT, SERVER])
    def test_tls_1_2_has_none(self, role: Role) -> None:
        machine = PostHandshake(TLS_1_2, role)
        with pytest.raises(Unavailable, match=r"^TLS 1\.2 has no KeyUpdate$"):
            machine.begin_key_update()
        assert machine.answer() is None
        assert not machine.answer_due


class TestAnswer:
    @pytest.mark.parametrize("requests", [1, 2, 10])
    def test_one_for_several(self, machine: PostHandshake, requests: int) -> None:
        # RFC 8446 section 4.6.3.
        assert machine.answer() is None
        receive(machine, *[UPDATE_REQUESTED] * requests)
        assert machine.answer_due
        assert send(machine, machine.answer()) == UPDATE
        assert not machine.answer_due
        assert machine.answer() is None
        assert (machine.tx_generation, machine.rx_generation) == (1, requests)

    def test_stays_due_until_it_is_sent(self, machine: PostHandshake) -> None:
        receive(machine, UPDATE_REQUESTED, UPDATE)
        for _ in range(3):
            assert machine.answer_due
            assert machine.answer() == UPDATE
        machine.key_update_sent()
        assert not machine.answer_due

    def test_an_update_of_our_own_is_one(self, machine: PostHandshake) -> None:
        receive(machine, UPDATE_REQUESTED)
        # And then it does not ask: RFC 8446 section 4.6.3 wants update_not_requested.
        assert send(machine, machine.begin_key_update(request_peer=True)) == UPDATE
        assert (machine.answer_due, machine.answer_awaited) == (False, False)

    def test_requests_that_cross_are_both_answered(self, machine: PostHandshake) -> None:
        send(machine, machine.begin_key_update(request_peer=True))
        receive(machine, UPDATE_REQUESTED)
        assert send(machine, machine.answer()) == UPDATE
        receive(machine, UPDATE)
        assert (machine.tx_generation, machine.rx_generation) == (2, 2)
        assert (machine.answer_due, machine.answer_awaited) == (False, False)

    def test_a_request_read_while_we_send_is_answered(self, machine: PostHandshake) -> None:
        # Another thread reads between our sending and our saying so.
        for begin in (machine.begin_key_update, machine.answer):
            assert begin() == UPDATE
            receive(machine, UPDATE_REQUESTED)
            machine.key_update_sent()
            assert machine.answer_due

    def test_an_answer_read_before_we_say_that_we_asked_counts(
        self, machine: PostHandshake
    ) -> None:
        assert machine.begin_key_update(request_peer=True) == UPDATE_REQUESTED
        receive(machine, UPDATE)
        machine.key_update_sent()
        assert not machine.answer_awaited

    def test_is_due_to_a_peer_that_only_listens(self, machine: PostHandshake) -> None:
        # RFC 8446 section 6.1: close_notify ends one direction.
        receive(machine, UPDATE_REQUESTED)
        list(machine.receive(ALERT, b"\1\0"))
        assert machine.state is State.CLOSED
        assert machine.answer_due
        assert send(machine, machine.answer()) == UPDATE
        # It cannot be asked any more: it sends nothing.
        assert send(machine, machine.begin_key_update(request_peer=True)) == UPDATE
        assert not machine.answer_awaited

    @pytest.mark.parametrize(
        ("record", "state"), [((ALERT, b"\2\x28"), "aborted"), ((99, b""), "violated")]
    )
    def test_nothing_is_due_at_the_end(
        self, machine: PostHandshake, record: tuple[int, bytes], state: str
    ) -> None:
        receive(machine, UPDATE_REQUESTED)
        actions = machine.receive(*record)
        if state == "violated":
            with pytest.raises(Violation):
                next(actions)
        assert not machine.answer_due
        assert machine.answer() is None
        text = f"^the keys of a connection that is {state} cannot be changed$"
        for request in (False, True):
            with pytest.raises(Error, match=text):
                machine.begin_key_update(request_peer=request)

    def test_it_moves_to_another_process(self, machine: PostHandshake) -> None:
        send(machine, machine.begin_key_update(request_peer=True))
        again = PostHandshake.restore(machine.export())
        assert (again.answer_awaited, again.answer_due, again.tx_generation) == (True, False, 1)
        receive(again, UPDATE_REQUESTED)
        again = PostHandshake.restore(again.export())
        assert (again.answer_awaited, again.answer_due, again.rx_generation) == (False, True, 1)
        assert send(again, again.answer()) == UPDATE
        again = PostHandshake.restore(again.export())
        assert (again.answer_awaited, again.answer_due, again.tx_generation) == (False, False, 2)

    def test_repr(self, machine: PostHandshake) -> None:
        receive(machine, UPDATE)
        assert repr(machine).endswith(" tx_generation=0 rx_generation=1>")


# ---- two of them -------------------------------------------------------------------------------


class End:
    """One end: the machine, keys that move as the key schedule has them, and what it did when."""

    def __init__(self, role: Role, secrets: dict[Role, bytes], clock: Callable[[], float]) -> None:
        self.role = role
        self.clock = clock
        self.machine = PostHandshake(TLS_1_3, role, clock=clock)
        other = SERVER if role is CLIENT else CLIENT
        self.tx, self.rx = bytearray(secrets[role]), bytearray(secrets[other])
        self.outbox: deque[tuple[int, bytes, bytes]] = deque()
        self.begun: bytes | None = None  # a KeyUpdate that has not been sent yet
        self.unsaid = False  # one that has been, without the machine's knowing
        self.requested = self.asked = self.answers = 0
        # Positions in the order of all that happens.
        self.last_request = self.last_update = 0

    def emit(self, record_type: int, payload: bytes) -> None:
        """Send a record; its tag stands for the AEAD's: it proves the key."""
        key, _ = traffic_keys(SUITE, self.tx)
        self.outbox.append((record_type, payload, hmac.digest(key, payload, "sha256")))

    def emit_update(self, message: bytes, cuts: list[int]) -> None:
        for start, end in itertools.pairwise(sorted({0, len(message), *cuts})):
            self.emit(HANDSHAKE, message[start:end])
        self.tx = next_traffic_secret(SUITE, self.tx)
        self.asked += message == UPDATE_REQUESTED


CUTS = st.lists(st.integers(1, 4), max_size=3)
ENDS = st.sampled_from([CLIENT, SERVER])
SECRETS = st.binary(min_size=32, max_size=32)


class BothEnds(RuleBasedStateMachine):
    """Two ends with a wire between them that delivers late, but in order.

    At each end one thread reads and another one writes, so reading comes in between any two steps
    of writing: beginning a KeyUpdate, sending it, telling the machine.
    """

    @initialize(client=SECRETS, server=SECRETS)
    def connect(self, client: bytes, server: bytes) -> None:
        self.now = 0.0
        self.events = 0
        secrets = {CLIENT: client, SERVER: server}
        self.ends = {role: End(role, secrets, lambda: self.now) for role in secrets}

    def peer(self, role: Role) -> End:
        return self.ends[SERVER if role is CLIENT else CLIENT]

    def event(self) -> int:
        self.events += 1
        return self.events

    @rule(role=ENDS, request=st.booleans())
    def begin(self, role: Role, request: bool) -> None:
        """Also in the place of one that was begun before, and could not be sent."""
        end = self.ends[role]
        if end.unsaid:
            return
        may_ask = not end.machine.answer_due and not end.machine.answer_awaited
        end.begun = end.machine.begin_key_update(request_peer=request)
        assert end.begun == (UPDATE_REQUESTED if request and may_ask else UPDATE)

    @rule(role=ENDS, cuts=CUTS)
    def send_what_was_begun(self, role: Role, cuts: list[int]) -> None:
        end = self.ends[role]
        if end.begun is not None:
            end.last_update = self.event()
            end.emit_update(end.begun, cuts)
            end.begun, end.unsaid = None, True

    @rule(role=ENDS)
    def say_so(self, role: Role) -> None:
        end = self.ends[role]
        if end.unsaid:
            end.machine.key_update_sent()
            end.unsaid = False

    @rule(role=ENDS, payload=st.binary(max_size=8), cuts=CUTS)
    def send_data(self, role: Role, payload: bytes, cuts: list[int]) -> None:
        end = self.ends[role]
        if end.unsaid:
            return
        end.begun = None
        self.answer(end, cuts)
        # RFC 8446 section 4.6.3: whatever was asked is answered before the next data.
        assert end.last_request <= end.last_update
        end.emit(APPLICATION_DATA, payload)

    def answer(self, end: End, cuts: list[int]) -> None:
        message = end.machine.answer()
        assert (message is not None) == end.machine.answer_due
        if message is not None:
            assert message == UPDATE
            end.answers += 1
            end.last_update = self.event()
            end.emit_update(message, cuts)
            end.machine.key_update_sent()
        assert not end.machine.answer_due

    @rule(role=ENDS, count=st.integers(1, 10))
    def deliver(self, role: Role, count: int) -> None:
        """Records that ``role`` has sent arrive."""
        sender, end = self.ends[role], self.peer(role)
        for _ in range(min(count, len(sender.outbox))):
            self.now += 1.1  # never a flood
            record_type, payload, tag = sender.outbox.popleft()
            key, _ = traffic_keys(SUITE, end.rx)
            assert hmac.digest(key, payload, "sha256") == tag, "the ends disagree about a key"
            if record_type == APPLICATION_DATA and payload and end.machine.quiet:
                continue  # the fast path
            if end.machine._empty_records == 32:
                end.machine.data_arrives()
            for action in end.machine.receive(record_type, payload):
                assert isinstance(action, KeyUpdateReceived)
                assert action.answer_wanted == payload.endswith(b"\1")
                end.rx = next_traffic_secret(SUITE, end.rx)
                assert not end.machine.answer_awaited
                if action.answer_wanted:
                    end.requested += 1
                    end.last_request = self.event()
                    assert end.machine.answer_due

    @rule(role=ENDS)
    def move(self, role: Role) -> None:
        end = self.ends[role]
        if not end.unsaid:
            end.begun = None
            end.machine = PostHandshake.restore(end.machine.export(), clock=end.clock)

    @invariant()
    def what_has_arrived_agrees(self) -> None:
        for role, end in getattr(self, "ends", {}).items():
            if not end.outbox:
                peer = self.peer(role)
                assert peer.machine.rx_generation == end.machine.tx_generation + end.unsaid
                assert peer.rx == end.tx
                assert peer.requested == end.asked
            assert end.answers <= end.requested

    def teardown(self) -> None:
        if not hasattr(self, "ends"):
            return
        # Two rounds at most, and all is answered: an answer is not answered.
        for _ in range(2):
            for role, end in self.ends.items():
                self.say_so(role)
                self.answer(end, [])
                self.deliver(role, len(end.outbox))
        self.what_has_arrived_agrees()
        for end in self.ends.values():
            assert not end.outbox
            assert not end.machine.answer_due
            assert not end.machine.answer_awaited


TestBothEnds = BothEnds.TestCase
TestBothEnds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
