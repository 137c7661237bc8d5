"""The kernel TLS interface of Linux, as it is.

Each function is one system call, or reads one file; errors are the ``OSError`` of that call.  The
structs can be packed and taken apart on any system.  Sources: ``include/uapi/linux/tls.h``,
``net/tls/`` and ``Documentation/networking/tls.rst`` of Linux 7.3.

A socket is given as anything with ``fileno()``, or as a file descriptor.

================== ===================================================================
abi.py             the numbers
ulp.py             the protocol "tls" on a connection
crypto_info.py     keys, in and out, and the change of keys
options.py         the other options
records.py         records with their types
transfer.py        files and pipes
counters.py        the kernel's counters
sock_diag.py       the kernel's socket diagnostics
trial.py           connections to try things on
defects.py         what some kernels do wrong, tried out before it is offered
probing.py         the answers of ``pyktls.probe``
system.py          the few questions that ``pyktls.install`` asks of each system
================== ===================================================================
"""

from . import defects, sock_diag, system
from .abi import (
    SOL_TLS,
    TCP_ULP,
    TLS_1_2_VERSION,
    TLS_1_3_VERSION,
    TLS_CIPHER_AES_CCM_128,
    TLS_CIPHER_AES_GCM_128,
    TLS_CIPHER_AES_GCM_256,
    TLS_CIPHER_ARIA_GCM_128,
    TLS_CIPHER_ARIA_GCM_256,
    TLS_CIPHER_CHACHA20_POLY1305,
    TLS_CIPHER_SM4_CCM,
    TLS_CIPHER_SM4_GCM,
    TLS_CONF_BASE,
    TLS_CONF_HW,
    TLS_CONF_HW_RECORD,
    TLS_CONF_SW,
    TLS_GET_RECORD_TYPE,
    TLS_RX,
    TLS_RX_EXPECT_NO_PAD,
    TLS_SET_RECORD_TYPE,
    TLS_TX,
    TLS_TX_MAX_PAYLOAD_LEN,
    TLS_TX_ZEROCOPY_RO,
)
from .counters import ErrorCount, TLSStat, TLSStatChange, tls_stat
from .crypto_info import (
    CryptoInfo,
    get_crypto_info,
    get_rec_seq,
    get_version_and_cipher,
    rekey,
    set_crypto_info,
)
from .options import (
    get_rx_expect_no_pad,
    get_tx_max_payload_len,
    get_tx_zerocopy_ro,
    set_rx_expect_no_pad,
    set_tx_max_payload_len,
    set_tx_zerocopy_ro,
)
from .records import Record, flush, recv_record, recv_record_into, send_record
from .transfer import sendfile, splice_from_pipe, splice_to_pipe
from .ulp import get_ulp, set_ulp

__all__ = [
    "SOL_TLS",
    "TCP_ULP",
    "TLS_1_2_VERSION",
    "TLS_1_3_VERSION",
    "TLS_CIPHER_AES_CCM_128",
    "TLS_CIPHER_AES_GCM_128",
    "TLS_CIPHER_AES_GCM_256",
    "TLS_CIPHER_ARIA_GCM_128",
    "TLS_CIPHER_ARIA_GCM_256",
    "TLS_CIPHER_CHACHA20_POLY1305",
    "TLS_CIPHER_SM4_CCM",
    "TLS_CIPHER_SM4_GCM",
    "TLS_CONF_BASE",
    "TLS_CONF_HW",
    "TLS_CONF_HW_RECORD",
    "TLS_CONF_SW",
    "TLS_GET_RECORD_TYPE",
    "TLS_RX",
    "TLS_RX_EXPECT_NO_PAD",
    "TLS_SET_RECORD_TYPE",
    "TLS_TX",
    "TLS_TX_MAX_PAYLOAD_LEN",
    "TLS_TX_ZEROCOPY_RO",
    "CryptoInfo",
    "ErrorCount",
    "Record",
    "TLSStat",
    "TLSStatChange",
    "defects",
    "flush",
    "get_crypto_info",
    "get_rec_seq",
    "get_rx_expect_no_pad",
    "get_tx_max_payload_len",
    "get_tx_zerocopy_ro",
    "get_ulp",
    "get_version_and_cipher",
    "recv_record",
    "recv_record_into",
    "rekey",
    "send_record",
    "sendfile",
    "set_crypto_info",
    "set_rx_expect_no_pad",
    "set_tx_max_payload_len",
    "set_tx_zerocopy_ro",
    "set_ulp",
    "sock_diag",
    "splice_from_pipe",
    "splice_to_pipe",
    "system",
    "tls_stat",
]
