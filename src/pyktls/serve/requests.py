"""The requests of one connection, read by h11, and the headers of their responses.  No I/O."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import h11

from .responses import reason_of

if TYPE_CHECKING:
    from .limits import Limits
    from .responses import Response

__all__ = ["Ended", "RequestProblem", "Requests", "fields_of"]

# uri-host [ ":" port ], of RFC 9112 section 3.2 and RFC 3986 section 3.2.2; it may be empty.
HOST = re.compile(
    rb"""(?: \[ [0-9A-Fa-f:.]+ \]
          | \[ [vV] [0-9A-Fa-f]+ \. [\w.~!$&'()*+,;=:-]+ \]
          | (?: [\w.~!$&'()*+,;=-] | %[0-9A-Fa-f]{2} )*
         ) (?: : [0-9]* )?""",
    re.VERBOSE,
)


class RequestProblem(Exception):
    """A request that is not carried out; the connection ends with the response."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Ended(Exception):
    """The client sends no more, and has left nothing to be answered."""


class Placeholder:
    """Stands for bytes that h11 shall count and not see: "sendfile" in its documentation."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


class Requests:
    """Bytes in, requests out, one at a time; a response's header is made by ``header``."""

    __slots__ = ("_connection", "_ended", "_limits", "_size", "fields", "request", "whole")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._connection = self._new_connection()
        self._ended = False
        self._size = 0  # of the content so far
        #: The request that is read or answered, and its fields by their lower-case names.
        self.request: h11.Request | None = None
        self.fields: dict[bytes, bytes] = {}
        #: Nothing of it is still to come.
        self.whole = False

    def _new_connection(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, self._limits.target + self._limits.fields_size)

    def receive(self, data: bytes) -> None:
        """Take what has come; nothing for the end."""
        if not data:
            self._ended = True
        self._connection.receive_data(data)

    @property
    def pending(self) -> bool:
        """Whether something has come that was not looked at."""
        return bool(self._connection.trailing_data[0]) or self._ended

    def read(self) -> bool:
        """Whether there is a request to respond to, which is ``request`` then.

        It is ``whole``, or its client waits to be told whether to send the content.  Raises
        RequestProblem where nothing but an error can be responded, and Ended.
        """
        while True:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError as e:
                if self._ended:
                    raise Ended from None
                raise RequestProblem(self._status_of(e)) from None
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return False
            match event:
                case h11.Request():
                    self.request = event
                    self.fields = fields_of(event, self._limits)
                    self._size = 0
                    self._check(int(self.fields.get(b"content-length", 0)))
                    if self._connection.they_are_waiting_for_100_continue:
                        return True
                case h11.Data():
                    self._size += len(event.data)
                    self._check(self._size)
                case h11.EndOfMessage():
                    self.whole = True
                    return True
                case _:
                    raise Ended

    def _check(self, size: int) -> None:
        if size > self._limits.content:
            raise RequestProblem(413)

    def _status_of(self, error: h11.RemoteProtocolError) -> int:
        if error.error_status_hint == 431 and self.request is None:
            # Too much before the empty line.  Of what: has the first line ended?
            line, end, _ = self._connection.trailing_data[0].partition(b"\n")
            if not end or len(line) > self._limits.target:
                return 414
        return error.error_status_hint

    @property
    def can_respond(self) -> bool:
        """Whether nothing of a response has been made yet."""
        return self._connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}

    def header(self, response: Response, date: bytes, *, last: bool) -> tuple[bytes, bool]:
        """The header of ``response``, and whether the connection ends with it.

        It does if ``last`` says so, if the client does, and if the request is not ``whole``.
        """
        fields = [(b"Date", date), *response.fields]
        last = last or not self.whole
        if last:
            fields.append((b"Connection", b"close"))
        status = response.status
        connection = self._connection
        header = connection.send(
            h11.Response(status_code=status, headers=fields, reason=reason_of(status))
        )
        if response.count:
            content = h11.Data(data=Placeholder(response.count))  # type: ignore[arg-type]
            connection.send_with_data_passthrough(content)
        connection.send(h11.EndOfMessage())
        return header, last or connection.our_state is h11.MUST_CLOSE

    def begin_next(self) -> None:
        """The response is out: on to the next request."""
        data = self._connection.trailing_data[0]
        if data.startswith(b"\r\n"):
            # An empty line before it, which h11 takes for the request.
            self._connection = self._new_connection()
            if len(data) > 2:
                self._connection.receive_data(data[2:])
            if self._ended:
                self._connection.receive_data(b"")
        else:
            self._connection.start_next_cycle()
        self.request, self.fields, self.whole = None, {}, False

    def __bytes__(self) -> bytes:
        """The request line, empty if there was none to read: for the log."""
        request = self.request
        if request is None:
            return b""
        return b"%s %s HTTP/%s" % (request.method, request.target, request.http_version)


def fields_of(request: h11.Request, limits: Limits) -> dict[bytes, bytes]:
    """The request's fields by their lower-case names, several of one name put together.

    Raises RequestProblem.  h11 (0.16 or later) has checked the syntax, and that there is one Host.
    """
    version = request.http_version
    if not version.startswith(b"1."):
        raise RequestProblem(505)
    if len(request.target) > limits.target:
        raise RequestProblem(414)
    headers = request.headers
    if len(headers) > limits.fields:
        raise RequestProblem(431)
    size = 0
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        size += len(name) + len(value)
        # "A recipient MAY combine multiple field lines within a field section that have the same
        # field name into one field line" (RFC 9110 section 5.3).  What is no list, such as a date
        # or a range, is then not valid any more, and that is what it should be.
        fields[name] = fields[name] + b", " + value if name in fields else value
    if size > limits.fields_size:
        raise RequestProblem(431)
    if b"transfer-encoding" in fields and (b"content-length" in fields or version == b"1.0"):
        # Two ideas of where the request ends: how requests are smuggled (RFC 9112 section 6.1).
        raise RequestProblem(400)
    # RFC 9112 section 3.2 wants just that.
    if not HOST.fullmatch(fields.get(b"host", b"")):
        raise RequestProblem(400)
    return fields
