"""Ways to read a session out of a TLS library.

``native`` and ``portable`` watch the connections of an ``ssl.SSLContext``; each has ``why_not()``
(None, or the reason why it cannot be used here), ``watch`` and ``extract``.  ``membio`` makes the
handshake itself.  ``choice`` decides between them.  All give the same ``Session``.
"""
