"""A program that splices, on a kernel that loses data when it is asked to."""

from __future__ import annotations

from kernel.test_examples import (  # noqa: F401  (fixtures and tests, by their names)
    data,
    pems,
    proxied,
    proxies,
    test_proxy_carries_data_both_ways,
    test_proxy_splices_where_the_kernel_can,
)


def test_proxy_says_that_it_does_not_splice(proxied):  # noqa: F811  (a fixture)
    """The other direction has no such defect."""
    copied = "by recv and send, not by splice: this kernel loses data when the pipe is full; it is"
    assert proxied.said[0].startswith(f"up: {copied} mended in Linux 7.2")
    if proxied.tls:
        assert proxied.said[1].startswith(f"down: {copied} mended in Linux 7.2")
    else:
        assert proxied.said[1] == "down: by splice"
