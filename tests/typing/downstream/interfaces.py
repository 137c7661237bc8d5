"""The kernels' interfaces, and the compiled layer under them."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import pyktls
from pyktls.lowlevel import ffi, lib

if TYPE_CHECKING:
    import socket


def linux(sock: socket.socket) -> int:
    info = assert_type(
        pyktls.linux.get_crypto_info(sock, pyktls.linux.TLS_TX), pyktls.linux.CryptoInfo
    )
    pyktls.linux.set_crypto_info(sock.fileno(), pyktls.linux.TLS_TX, info)
    record = assert_type(pyktls.linux.recv_record(sock, 16384), pyktls.linux.Record)
    assert_type(record.data, bytes)
    assert_type(record.record_type, int | None)
    assert_type(pyktls.linux.get_tx_zerocopy_ro(sock), bool)
    change = pyktls.linux.tls_stat() - pyktls.linux.tls_stat()
    assert_type(change, pyktls.linux.TLSStatChange)
    return pyktls.linux.splice_to_pipe(sock, 5, 100)


def freebsd(sock: socket.socket) -> bytes:
    record = assert_type(pyktls.freebsd.recv_record(sock, 16384), pyktls.freebsd.Record)
    assert_type(pyktls.freebsd.get_mode(sock, pyktls.freebsd.TCP_TXTLS_MODE), int)
    return record.data


def by_hand(sock: socket.socket, key: bytes) -> int:
    info = ffi.new("struct tls12_crypto_info_aes_gcm_128 *")
    info.info.version, info.key = lib.TLS_1_3_VERSION, key
    assert_type(ffi.sizeof(info[0]), int)
    assert_type(ffi.buffer(info)[:4], bytes)
    assert_type(lib.TLS_TX, int)
    if lib.setsockopt(sock.fileno(), lib.SOL_TLS, lib.TLS_TX, info, ffi.sizeof(info[0])) < 0:
        raise OSError(ffi.errno, "setsockopt")
    return ffi.errno
