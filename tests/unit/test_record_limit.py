"""How many records a key may protect: the numbers, and the counting, against a simulated kernel."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyktls.ciphers import AEADS
from pyktls.errors import InvalidValue
from pyktls.record_limit import Decision, RecordBudget, record_limits

BY_NAME = {aead.name: aead for aead in AEADS}
AES, CCM, CHACHA = BY_NAME["AES_128_GCM"], BY_NAME["AES_128_CCM"], BY_NAME["CHACHA20_POLY1305"]
GCM_HARD = 23_726_566  # 2**24.5, rounded down
CONTINUE, REKEY, REFUSE = Decision.CONTINUE, Decision.REKEY, Decision.REFUSE


def test_numbers_of_every_algorithm() -> None:
    # The table in the module's docstring, which gives the sources.
    hard = {name: record_limits(aead)[1] for name, aead in BY_NAME.items()}
    assert hard.pop("CHACHA20_POLY1305") == 2**64 - 2**32
    assert hard.pop("AES_128_CCM") == hard.pop("SM4_CCM") == 2**23
    assert set(hard.values()) == {GCM_HARD}
    assert {"AES_128_GCM", "AES_256_GCM", "SM4_GCM", "ARIA_128_GCM", "AES_128_CBC_SHA"} <= set(hard)
    assert math.floor(2**24.5) == GCM_HARD


@pytest.mark.parametrize("aead", AEADS, ids=lambda aead: aead.name)
def test_soft_leaves_room_for_the_largest_call(aead) -> None:
    soft, hard = record_limits(aead)
    assert type(soft) is type(hard) is int
    assert 0 < soft < hard < 2**64
    assert hard - soft == hard // 4
    # 2 GiB, the most that a system call takes, in 1024 buffers, the most that it takes.
    budget = RecordBudget(aead)
    assert (budget.soft, budget.hard, budget.estimate, budget.check_at) == (soft, hard, 0, soft)
    assert budget.bound(2**31, 1024) < hard - soft
    # And a counter of 64 bits does not wrap by it.
    assert hard + budget.bound(2**31, 1024) < 2**64


@pytest.mark.parametrize(
    ("nbytes", "pieces", "size", "expected"),
    [
        (0, 1, 16384, 1),
        (1, 1, 16384, 1),
        (16384, 1, 16384, 1),
        (16385, 1, 16384, 2),
        (50_000, 1, 16384, 4),
        (50_000, 7, 16384, 10),
        (1024, 1024, 16384, 1024),
        (512, 1, 512, 1),
        (513, 1, 512, 2),
        (65, 2, 64, 3),
    ],
)
def test_bound_of_one_call(nbytes: int, pieces: int, size: int, expected: int) -> None:
    assert RecordBudget(AES, record_size=size).bound(nbytes, pieces) == expected


def test_soft_and_hard() -> None:
    budget = RecordBudget(AES)
    soft, hard = budget.soft, budget.hard
    for exact, wanted, decision in (
        (0, 0, CONTINUE),
        (soft - 1, 0, CONTINUE),
        (soft - 2, 1, CONTINUE),
        (soft - 1, 1, REKEY),
        (soft, 0, REKEY),
        (hard - 1, 1, REKEY),
        (hard, 0, REKEY),
        (hard - 1, 2, REFUSE),
        (hard, 1, REFUSE),
        (hard + 1, 0, REFUSE),
        (2**64 - 1, 0, REFUSE),
        (2**64 - 1, 100_000, REFUSE),
    ):
        assert budget.reached(exact, wanted) is decision
        # Corrected, and what is refused is not counted.
        assert budget.estimate == (min(exact, hard) if decision is REFUSE else exact + wanted)
        assert (
            budget.check_at
            == {
                CONTINUE: soft,
                REKEY: min(hard, exact + wanted + (hard - soft) // 16),
                REFUSE: min(exact, hard),
            }[decision]
        )


def test_where_keys_cannot_be_changed_only_hard_counts() -> None:
    budget = RecordBudget(AES, can_rekey=False)
    assert budget.check_at == budget.hard
    assert budget.reached(budget.soft, 1) is CONTINUE
    assert budget.reached(budget.hard - 1, 1) is CONTINUE
    assert budget.check_at == budget.hard
    assert budget.reached(budget.hard - 1, 2) is REFUSE
    assert budget.reached(budget.hard, 1) is REFUSE


def test_a_change_of_keys_begins_anew() -> None:
    budget = RecordBudget(AES)
    assert budget.reached(budget.hard, 1) is REFUSE
    budget.rekeyed()
    assert (budget.estimate, budget.check_at) == (0, budget.soft)
    fixed = RecordBudget(AES, can_rekey=False)
    fixed.rekeyed()
    assert fixed.check_at == fixed.hard


@pytest.mark.parametrize("sequence", [0, 1, 1000, 2**24])
def test_what_was_sent_before_the_switch_counts(sequence: int) -> None:
    budget = RecordBudget(AES, sequence)
    assert (budget.estimate, budget.check_at) == (sequence, budget.soft)


def test_beginning_beyond_a_limit() -> None:
    budget = RecordBudget(CCM, 2**23 - 1)
    assert budget.estimate == 2**23 - 1
    assert budget.estimate + 1 >= budget.check_at
    for sequence in (2**23 + 1, 2**64 - 1):
        over = RecordBudget(CCM, sequence)
        # Every call asks; and adding to it in C wraps nothing.
        assert over.estimate == over.check_at == 2**23
        assert over.reached(sequence, 1) is REFUSE


def test_chacha20_has_the_whole_sequence_less_what_keeps_c_from_wrapping() -> None:
    budget = RecordBudget(CHACHA, 2**63)
    assert budget.reached(2**63, 131_072) is CONTINUE
    assert budget.reached(2**64 - 2**32, 1) is REFUSE


@pytest.mark.parametrize("sequence", [-1, 2**64])
def test_sequence_numbers_have_64_bits(sequence: int) -> None:
    with pytest.raises(InvalidValue, match="sequence number"):
        RecordBudget(AES, sequence)
    with pytest.raises(InvalidValue, match="sequence number"):
        RecordBudget(AES).reached(sequence)


def test_wanted_is_not_negative() -> None:
    with pytest.raises(InvalidValue, match="wanted"):
        RecordBudget(AES).reached(5, -1)


@pytest.mark.parametrize("size", [63, 16385, 0, -1])
def test_record_sizes(size: int) -> None:
    with pytest.raises(InvalidValue, match="record_size"):
        RecordBudget(AES, record_size=size)


# ---- against a kernel --------------------------------------------------------------------------


class Kernel:
    """Cuts what it gets into records as Linux does, with a short list of pieces per record."""

    def __init__(self, size: int, sequence: int, pieces_per_record: int) -> None:
        self.size = size
        self.sequence = sequence
        self.pieces_per_record = pieces_per_record
        self.open = 0  # bytes in the record that MSG_MORE keeps open
        self.pieces = 0
        self.asked = 0

    def send(self, pieces: list[int], *, more: bool) -> None:
        for piece in pieces:
            left = piece
            while left:
                taken = min(left, self.size - self.open)
                self.open += taken
                left -= taken
                self.pieces += 1
                if self.open == self.size or self.pieces == self.pieces_per_record:
                    self.flush()
        if not more:
            self.flush()

    def flush(self) -> None:
        if self.open:
            self.sequence += 1
        self.open = self.pieces = 0

    def exact(self) -> int:
        self.asked += 1
        return self.sequence


class Small:
    """A budget whose limits are within reach of a test."""

    def __new__(cls, hard: int, sequence: int, **options) -> RecordBudget:
        budget = RecordBudget(AES, **options)
        budget.hard, budget.soft = hard, hard - hard // 4
        budget.reached(sequence)
        return budget


CALLS = st.lists(
    st.tuples(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.booleans()), max_size=80
)


@given(
    CALLS,
    st.integers(20, 300),
    st.integers(0, 20),
    st.sampled_from([64, 100, 512]),
    st.booleans(),
    st.booleans(),
    st.integers(2, 5),
)
def test_no_key_protects_more_than_hard(
    calls: list[tuple[list[int], bool]],
    hard: int,
    sequence: int,
    size: int,
    can_rekey: bool,
    rekeys: bool,
    pieces_per_record: int,
) -> None:
    budget = Small(hard, sequence, can_rekey=can_rekey, record_size=size)
    kernel = Kernel(size, sequence, pieces_per_record)
    for pieces, more in calls:
        wanted = budget.bound(sum(pieces), len(pieces))
        budget.estimate += wanted
        if budget.estimate >= budget.check_at:
            before = kernel.exact()
            # A record that is kept open will take a number too.
            before += kernel.open > 0
            decision = budget.reached(before, wanted)
            if decision is REFUSE:
                assert before + wanted > hard
                continue
            assert before + wanted <= hard
            assert (decision is REKEY) == (can_rekey and before + wanted >= budget.soft)
            if decision is REKEY and rekeys:
                kernel.flush()
                kernel.sequence = 0
                budget.rekeyed()
                budget.estimate += wanted
        kernel.send(pieces, more=more)
        # The estimate is an upper bound at every moment, with the open record counted.
        assert kernel.sequence + (kernel.open > 0) <= budget.estimate <= hard


def test_the_kernel_is_asked_seldom() -> None:
    """A long transfer: once at the soft limit, and then at each sixteenth of what is left."""
    budget = Small(16_000, 0)
    kernel = Kernel(16384, 0, 17)
    decisions = []
    for _ in range(15_999):
        wanted = budget.bound(16384)
        budget.estimate += wanted
        if budget.estimate >= budget.check_at:
            decisions.append(budget.reached(kernel.exact(), wanted))
        kernel.send([16384], more=False)
    assert decisions == [REKEY] * 16
    assert kernel.sequence == 15_999


def test_an_estimate_that_is_far_too_high_is_corrected() -> None:
    budget = Small(16_000, 0)
    kernel = Kernel(16384, 0, 17)
    for _ in range(1000):  # 100 small pieces fit into 6 records, and are bounded by 100
        wanted = budget.bound(100, 100)
        budget.estimate += wanted
        if budget.estimate >= budget.check_at:
            assert budget.reached(kernel.exact(), wanted) is CONTINUE
        kernel.send([1] * 100, more=False)
    assert kernel.sequence == 6000
    assert 8 <= kernel.asked <= 20
