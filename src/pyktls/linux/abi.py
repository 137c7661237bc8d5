"""The numbers of Linux kernel TLS, by their C names.

They are those of ``include/uapi/linux/tls.h``, ``linux/tcp.h`` and ``linux/inet_diag.h`` in Linux
7.3, from our own ``csrc/abi_linux.h``, so they are the same on every system.
"""

from __future__ import annotations

from pyktls._kernel import lib

__all__ = [
    "DIRECTIONS",
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
]

# Options: at level IPPROTO_TCP, and at level SOL_TLS.
TCP_ULP: int = lib.TCP_ULP
SOL_TLS: int = lib.SOL_TLS
TLS_TX: int = lib.TLS_TX
TLS_RX: int = lib.TLS_RX
TLS_TX_ZEROCOPY_RO: int = lib.TLS_TX_ZEROCOPY_RO
TLS_RX_EXPECT_NO_PAD: int = lib.TLS_RX_EXPECT_NO_PAD
TLS_TX_MAX_PAYLOAD_LEN: int = lib.TLS_TX_MAX_PAYLOAD_LEN

# Control messages at level SOL_TLS.
TLS_SET_RECORD_TYPE: int = lib.TLS_SET_RECORD_TYPE
TLS_GET_RECORD_TYPE: int = lib.TLS_GET_RECORD_TYPE

TLS_1_2_VERSION: int = lib.TLS_1_2_VERSION
TLS_1_3_VERSION: int = lib.TLS_1_3_VERSION

# cipher_type
TLS_CIPHER_AES_GCM_128: int = lib.TLS_CIPHER_AES_GCM_128
TLS_CIPHER_AES_GCM_256: int = lib.TLS_CIPHER_AES_GCM_256
TLS_CIPHER_AES_CCM_128: int = lib.TLS_CIPHER_AES_CCM_128
TLS_CIPHER_CHACHA20_POLY1305: int = lib.TLS_CIPHER_CHACHA20_POLY1305
TLS_CIPHER_SM4_GCM: int = lib.TLS_CIPHER_SM4_GCM
TLS_CIPHER_SM4_CCM: int = lib.TLS_CIPHER_SM4_CCM
TLS_CIPHER_ARIA_GCM_128: int = lib.TLS_CIPHER_ARIA_GCM_128
TLS_CIPHER_ARIA_GCM_256: int = lib.TLS_CIPHER_ARIA_GCM_256

# How a direction is done, in the answers of sock_diag.
TLS_CONF_BASE: int = lib.TLS_CONF_BASE
TLS_CONF_SW: int = lib.TLS_CONF_SW
TLS_CONF_HW: int = lib.TLS_CONF_HW
TLS_CONF_HW_RECORD: int = lib.TLS_CONF_HW_RECORD

#: The two options that take keys, with their names.
DIRECTIONS = {TLS_TX: "TLS_TX", TLS_RX: "TLS_RX"}
