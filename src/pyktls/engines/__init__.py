"""Ways to read a session out of a TLS library.

Each engine module has ``why_not()`` (None, or the reason why it cannot be used here), ``watch``
and ``extract``; all give the same ``Session``.
"""
