"""One connection: requests in, responses out, in their order, and nobody waited for without limit.

How this works.  Everything is done in the transport's callbacks: ``requests`` reads what comes and
makes headers, ``site`` decides what the response is, ``sending`` gets it out.

A connection is in one of four states.  READING: it waits for a request, or is in the midst of one.
SENDING: a response is on its way; what comes meanwhile is not looked at.  LINGERING: the last
response is out, and the client has not sent all of its request, or has sent more than that; closing
now would make TCP reset the connection, and the client might lose the response (RFC 9112 section
9.6), so what it sends is thrown away for a while.  CLOSING: the transport is closing.  There is one
deadline at a time.

Requests may come before their turn (pipelining).  Other connections have theirs between two of
them, and nothing more is received until all that has come is used up.  So what is held for one is
never more than the beginning of a header, which h11 limits to ``target`` and ``fields_size`` of the
limits together, and one buffer behind it: 88 KiB.

The buffer that is received into belongs to the whole server: the bytes are taken out of it before
the next connection's callback, so an idle connection holds none.
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import TYPE_CHECKING, Any

from .deadlines import Deadline
from .requests import Ended, RequestProblem, Requests
from .responses import Response, message
from .sending import Outcome, Sender

if TYPE_CHECKING:
    from .service import Service

__all__ = ["Connection"]


class State(enum.Enum):
    """See above."""

    READING = enum.auto()
    SENDING = enum.auto()
    LINGERING = enum.auto()
    CLOSING = enum.auto()


class Connection(asyncio.BufferedProtocol):
    """The protocol of one client."""

    __slots__ = (
        "_begun", "_deadline", "_last", "_limits", "_requests", "_response", "_sender", "_service",
        "_settled", "_state", "_transport", "peer",
    )  # fmt: skip

    _transport: Any
    _sender: Sender

    def __init__(self, service: Service) -> None:
        self._service = service
        self._limits = service.limits
        self._requests = Requests(service.limits)
        self._deadline = Deadline(service.loop, self._too_late)
        self._state = State.READING
        self._begun = False  # something of a request is there
        self._response: Response | None = None
        self._last = False  # nothing comes after this response
        self._settled = False  # when it was stopped, all responses had arrived
        self.peer = "-"

    # ---- the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request."""
        self._transport = transport
        self._sender = Sender(
            self._service.loop, transport, self._deadline, self._limits.send_timeout, self._over
        )
        # So that pause_writing and resume_writing tell whether all is written.
        self._transport.set_write_buffer_limits(high=1, low=0)
        address = transport.get_extra_info("peername")
        if address:
            self.peer = str(address[0])
        if self._service.enter(self):
            self._deadline.set(self._limits.request_timeout)
        else:
            self.abort()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Where to put what comes."""
        return self._service.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Something has come."""
        if self._state is State.LINGERING or self._state is State.CLOSING:
            return
        data = bytes(self._service.buffer[:nbytes])
        if not self._begun:
            # "A server that is expecting to receive and parse a request-line SHOULD ignore at
            # least one empty line (CRLF) received prior to the request-line."
            data = data.removeprefix(b"\r\n")
            if not data:
                return
            self._begun = True
            self._deadline.set(self._limits.request_timeout)
        self._requests.receive(data)
        if self._state is State.READING:
            self._proceed()
        if self._state is State.SENDING and self._requests.pending:
            self._hold_back()

    def eof_received(self) -> bool:
        """The client has nothing more to say; what it has asked for is still sent, if it can be."""
        self._requests.receive(b"")
        if self._state is State.READING:
            self._proceed()
        elif self._state is State.LINGERING:
            self._close()
        return self._sender.half_closes and self._state is not State.CLOSING

    def pause_writing(self) -> None:
        """Not everything that was written is gone."""
        self._sender.pause_writing()

    def resume_writing(self) -> None:
        """Now it is."""
        self._sender.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """It is over, whoever ended it."""
        self._state = State.CLOSING
        self._deadline.cancel()
        self._unsent()
        self._service.leave(self)

    # ---- from a request to its response

    def _proceed(self) -> None:
        """Read what has come up to the end of one request, and respond to that."""
        if self._state is not State.READING:
            return
        if self._transport.is_closing():
            self._close()
            return
        try:
            if self._requests.read():
                self._answer()
            else:
                self._transport.resume_reading()  # all that was here is used up
        except RequestProblem as e:
            self._refuse(e.status)
        except Ended:
            self._close()

    def _answer(self) -> None:
        service, requests = self._service, self._requests
        request = requests.request
        assert request is not None  # noqa: S101  (for mypy)
        if service.is_full(self):
            self._respond(message(503, (b"Retry-After", b"1")), last=True)
            return
        response = service.site.respond(
            request.method, request.target, requests.fields, time.time()
        )
        self._respond(response, last=service.stopping)

    def _hold_back(self) -> None:
        """Receive nothing more until what has come has been looked at."""
        self._sender.late = True
        self._transport.pause_reading()

    def _refuse(self, status: int) -> None:
        """Respond to what is no request that is taken, and end the connection."""
        if self._requests.can_respond:
            self._respond(message(status), last=True)
        else:
            self._close()

    def _respond(self, response: Response, *, last: bool) -> None:
        self._state = State.SENDING
        self._response = response
        requests = self._requests
        if requests.request is not None and requests.request.method == b"HEAD":
            response.leave_out_content()
        header, self._last = requests.header(response, self._service.date(), last=last)
        self._sender.send(header, response)

    # ---- after a response

    def _over(self, outcome: Outcome) -> None:
        """The sender has done what it could."""
        if outcome is Outcome.FAILED:
            self.abort()
        elif outcome is Outcome.SENT:
            self._sent()
        else:
            # The client sees that from Content-Length: nothing is put in the place of the rest.
            self._unsent()
            self._end(more=not self._transport.is_reading())

    def _sent(self) -> None:
        """A response is out: go on, or end."""
        response, self._response = self._response, None
        assert response is not None  # noqa: S101  (for mypy)
        response.close()
        self._log(response.status, response.count)
        if self._last or self._service.stopping:
            self._finish()
            return
        requests = self._requests
        requests.begin_next()
        self._state = State.READING
        self._begun = requests.pending
        if self._begun:
            # The next request is here already; others have their turn before it.
            self._hold_back()
            self._deadline.set(self._limits.request_timeout)
            self._service.loop.call_soon(self._proceed)
        else:
            self._transport.resume_reading()
            self._deadline.set(self._limits.idle_timeout)

    def _unsent(self) -> None:
        """A response that is on its way does not arrive, or not whole."""
        response, self._response = self._response, None
        self._sender.give_up(response)
        if response is not None:
            self._log(response.status, None)

    def _log(self, status: int, sent: int | None) -> None:
        if self._service.log is not None:
            line = bytes(self._requests)
            self._service.log.write(self.peer, line, status, sent, time.time())

    # ---- the end

    def _finish(self) -> None:
        """The last response is out."""
        if self._requests.whole:
            self._end(more=self._requests.pending)
        else:
            self._linger()

    def _end(self, *, more: bool) -> None:
        """Nothing more is sent; whether the client has sent ``more`` than was looked at."""
        # asyncio's own TLS does not read on when it closes, as ours does, but breaks off.
        if more and self._sender.by_asyncio:
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        """Throw away what still comes, for a while."""
        self._state = State.LINGERING
        self._transport.resume_reading()
        self._deadline.set(self._limits.linger_timeout)

    def _close(self) -> None:
        """Close when what was written is out."""
        self._state = State.CLOSING
        self._sender.watch()
        self._deadline.set(self._limits.linger_timeout)
        if not self._transport.is_closing():  # asyncio's forgets its connection the second time
            self._transport.close()

    def stop(self) -> None:
        """End when the response that is on its way is out; at once if there is none."""
        if self._state is State.READING:
            self._settled = self._sender.has_arrived()
            self._end(more=not self._transport.is_reading())

    def cut_off(self) -> bool:
        """End at once; whether that takes a part of a response from the client."""
        arrived = self._settled or self._sender.has_arrived()
        lacking = self._response is not None or not arrived
        self.abort()
        return lacking

    def abort(self) -> None:
        """End at once."""
        self._state = State.CLOSING
        self._sender.give_up(None)
        self._transport.abort()

    def _too_late(self) -> None:
        """The deadline has passed."""
        if self._state is State.READING and self._begun:
            self._refuse(408)
        elif self._state is State.READING or self._state is State.LINGERING:
            self._close()
        elif self._state is State.SENDING:
            if self._sender.is_stuck():
                self.abort()
            else:
                self._deadline.set(self._limits.send_timeout)
        elif self._sender.has_arrived() or self._sender.is_stuck():
            # The transport waits for the client to close, too, which it need not do.
            self.abort()
        else:
            self._deadline.set(self._limits.linger_timeout)
