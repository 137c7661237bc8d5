"""How many records may go out under one key, and when to look.  No I/O.

An AEAD keeps its promises only up to some number of records per key.  The kernel does not count
with that in mind: it encrypts until the sequence number wraps, and then repeats nonces.  So the
sender counts.

What the limits are
===================

=====================  ============  ==============================================================
algorithm              hard limit    where from
=====================  ============  ==============================================================
AES-GCM                2^24.5        RFC 8446 5.5, for full-size records; RFC 9325 4.4 recommends
                                     the same for TLS 1.2
AES-CCM                2^23          RFC 9147 4.5.3 (DTLS 1.3).  TLS 1.3 has no number of its own
                                     for CCM, nor has TLS 1.2; record size, construction and the
                                     bound are the same, so this one is taken over
ChaCha20-Poly1305      2^64 - 2^32   RFC 8446 5.5: the sequence numbers end first, and they may not
                                     wrap (RFC 8446 5.3, RFC 5246 6.1)
SM4-GCM, SM4-CCM       as AES        RFC 8998 has no number.  The bounds of GCM and CCM come from
                                     the 128-bit block, which SM4 has too
ARIA-GCM               as AES-GCM    RFC 6209 has no number; the same reasoning
AES-CBC with HMAC      2^24.5        RFC 9325 4.4 speaks of AEADs only, and no RFC has a number.
                                     Blocks of 128 bits collide as they do in GCM, so GCM's is taken
=====================  ============  ==============================================================

The numbers themselves are in ciphers.AEADS.  A record that is not full counts as a full one: the
RFCs' numbers are for full records, so this errs towards changing keys early.

For ChaCha20-Poly1305 the last 2^32 numbers are given away: then an unsigned 64-bit counter that has
not reached the limit cannot wrap by adding one call's records to it.

How it is used
==============

``soft`` is three quarters of ``hard``.  From there on keys should be changed, where they can be; at
``hard`` sending is refused.  The quarter between them, 97 GB of full AES-GCM records, is there for
a change of keys that has to wait, and for calls that send a lot at once.

What is exact is the kernel's sequence number, and asking for it costs a system call.  So what is
counted on the way is an upper bound, and only if that reaches ``check_at`` is the kernel asked::

    wanted = budget.bound(nbytes, pieces)
    budget.estimate += wanted
    if budget.estimate >= budget.check_at:
        decision = budget.reached(sequence_from_kernel(), wanted)

``estimate`` and ``check_at`` are plain integers below 2^64, so compiled code can keep both in C
variables, and put back what ``reached`` corrects.  The records of one connection's other direction
are the peer's to count; this can be used for them too, to ask it for a KeyUpdate in time.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from .errors import InvalidValue

if TYPE_CHECKING:
    from .ciphers import AEAD

__all__ = ["Decision", "RecordBudget", "record_limits"]

_LARGEST_RECORD = 2**14  # RFC 8446 section 5.1, RFC 5246 section 6.2.1
# The least that can be negotiated (RFC 8449 section 4), and the least that Linux cuts to.
_SMALLEST_RECORD = 64
_END_OF_SEQUENCE = 2**64 - 2**32
# The steps from soft to hard in which a change of keys that did not come is called for again.
_REMINDERS = 16


class Decision(enum.Enum):
    """What to do before the next records are sent."""

    CONTINUE = "continue"
    REKEY = "rekey"  # change keys, or if that is not possible now, continue
    REFUSE = "refuse"  # send nothing more under these keys


def record_limits(aead: AEAD) -> tuple[int, int]:
    """Return ``(soft, hard)``, in records under one key of ``aead``."""
    hard = _END_OF_SEQUENCE if aead.confidentiality_limit is None else aead.confidentiality_limit
    return hard - hard // 4, hard


class RecordBudget:
    """The records that may still be sent under one key.

    ``aead`` is the algorithm; ``sequence`` the number of the next record, which is the number of
    those sent before, since each key begins at 0 (RFC 8446 section 5.3; RFC 5246 section 6.1).
    ``can_rekey`` tells whether keys can be changed at all: in TLS 1.2 and on some kernels they
    cannot, and then REKEY is never said.  ``record_size`` is the most bytes of data that the
    sender puts into a record.

    Attributes, all ints, in records: ``soft`` and ``hard``, the limits; ``estimate``, which the
    sender adds to; ``check_at``, the estimate at which to call ``reached``.

    Raises InvalidValue if ``sequence`` is not from 0 to 2^64 - 1, or ``record_size`` not from 64
    to 16384.
    """

    __slots__ = ("_can_rekey", "check_at", "estimate", "hard", "record_size", "soft")

    def __init__(
        self,
        aead: AEAD,
        sequence: int = 0,
        *,
        can_rekey: bool = True,
        record_size: int = _LARGEST_RECORD,
    ) -> None:
        if not _SMALLEST_RECORD <= record_size <= _LARGEST_RECORD:
            raise InvalidValue(f"record_size must be from 64 to 16384, not {record_size}")
        self.soft, self.hard = record_limits(aead)
        self.record_size = record_size
        self._can_rekey = can_rekey
        self.estimate = 0
        self.check_at = 0
        self.reached(sequence)

    def bound(self, nbytes: int, pieces: int = 1) -> int:
        """Return the most records that one call with ``nbytes`` bytes can take, at least 1.

        ``pieces`` is the number of separate pieces of memory: buffers of a sendmsg, pages of a
        sendfile or splice.  A record is closed early when the kernel's list of pieces is full; a
        list holds several, so each piece can be blamed for one record at most.  Several calls that
        fill one record (MSG_MORE) are counted as one record each.
        """
        return max(1, -(-nbytes // self.record_size)) + pieces - 1

    def reached(self, exact_sequence: int, wanted: int = 0) -> Decision:
        """Decide by the exact number, once the estimate has reached ``check_at``.

        ``exact_sequence`` is the number of the next record as the kernel has it, before the call
        that is about to be made, and one more if MSG_MORE keeps a record open, which has taken no
        number yet; ``wanted`` is the bound for that call.  Corrects ``estimate`` to
        the sum of both, and sets ``check_at`` anew.

        REFUSE is for the call: what is wanted would go beyond ``hard``.  A smaller call may still
        be possible, nothing at all is when ``exact_sequence`` is ``hard``; a change of keys still
        helps.  After REKEY the next call of this method is due a sixteenth of the way from
        ``soft`` to ``hard`` later.

        Raises InvalidValue if ``exact_sequence`` is not from 0 to 2^64 - 1, or ``wanted`` negative.
        """
        if not 0 <= exact_sequence < 2**64:
            raise InvalidValue(f"a sequence number is from 0 to 2**64 - 1, not {exact_sequence}")
        if wanted < 0:
            raise InvalidValue(f"wanted must not be negative, is {wanted}")
        self.estimate = exact_sequence + wanted
        if self.estimate > self.hard:
            # What is refused is not sent, and from now on each call comes here.  Never beyond
            # hard, lest a counter in C wraps when something is added to it.
            self.estimate = self.check_at = min(exact_sequence, self.hard)
            return Decision.REFUSE
        if self._can_rekey and self.estimate >= self.soft:
            self.check_at = min(self.hard, self.estimate + (self.hard - self.soft) // _REMINDERS)
            return Decision.REKEY
        self.check_at = self.soft if self._can_rekey else self.hard
        return Decision.CONTINUE

    def rekeyed(self) -> None:
        """Begin anew under new keys, whose first record has the number 0."""
        self.reached(0)
