"""A handshake daemon for NFS over TLS (RFC 9289): the kernel's NFS, the handshake in Python.

How this works.  The kernel's NFS client and server own their TCP connections.  When one is to have
TLS, the kernel lends its socket to a daemon in user space, which makes the handshake on it, gives
the keys to the kernel, and says how it went.  Then it closes its descriptor; the data it never
sees.  This is such a daemon, in the place of Linux's tlshd:

* ``upcall.py`` is how the kernel asks and is answered (Linux: generic netlink, "handshake");
* ``policy.py`` decides: which certificate is shown, whom to believe, how long it may take.
  There is nothing of Linux in it;
* ``handshake.py`` makes the handshakes, many at once, and switches each socket to kernel TLS;
* ``keyring.py`` reads and makes keys of the kernel's keyrings (pre-shared keys, certificates);
* ``privileges.py`` gives up what the daemon does not need;
* ``daemon.py`` puts them together, and ``__main__.py`` starts it: ``python -m nfs_tls --help``.

docs/nfs.md tells how to set up two machines, docs/nfs-story.md who does what, and why.
"""
