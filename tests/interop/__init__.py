"""pyktls with the TLS of others: every peer, suite and feature, tried one by one.

* ``peer``: the interface that every peer has, and what runs a program with pipes;
* ``openssl``, ``gnutls``, ``curl``, ``nginx``, ``python_ssl``, ``own``: the peers;
* ``cells``: what is done on a connection, and how it is judged;
* ``table``: `make peers`, which runs all cells and writes docs/peers.md;
* ``test_cells``: the representative part, for `make test`.
"""
