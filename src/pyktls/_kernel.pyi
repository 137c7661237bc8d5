# ffi and lib of the cffi extension, for type checkers.
#
# lib is written out: every name of csrc/*.cdef.txt, of every system, with C's integers as int and
# its pointers as _Pointer.  tests/unit/test_stubs.py holds it to those files.  ffi is what programs
# use of cffi's FFI.  types-cffi has types for that, but its objects have no fields.

from collections.abc import Callable
from typing import Any, Final, Literal, SupportsIndex, TypeAlias, final, overload, type_check_only

from _typeshed import ReadableBuffer, WriteableBuffer

# What ffi makes: an object of C.  Its attributes are the struct's fields, its items the array's.
_CData: TypeAlias = Any
# What a C function takes for a pointer: such an object, and bytes or a list where it only reads.
_Pointer: TypeAlias = Any
# A type of C: its declaration, or what typeof gives.
_CType: TypeAlias = Any

@final
@type_check_only
class _Buffer:
    # The memory of an object of C.
    def __len__(self) -> int: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> bytes: ...
    def __setitem__(self, index: SupportsIndex | slice, value: ReadableBuffer, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
@type_check_only
class _FFI:
    NULL: Final[_CData]
    CData: Final[type[Any]]
    CType: Final[type[Any]]
    error: Final[type[Exception]]
    errno: int
    def new(self, cdecl: str | _CType, init: object = ...) -> _CData: ...
    def cast(self, cdecl: str | _CType, value: object) -> _CData: ...
    @overload
    def from_buffer(
        self, python_buffer: ReadableBuffer, /, *, require_writable: Literal[False] = ...
    ) -> _CData: ...
    @overload
    def from_buffer(
        self, python_buffer: WriteableBuffer, /, *, require_writable: Literal[True]
    ) -> _CData: ...
    @overload
    def from_buffer(
        self,
        cdecl: str,
        python_buffer: ReadableBuffer,
        require_writable: Literal[False] = ...,
    ) -> _CData: ...
    @overload
    def from_buffer(
        self, cdecl: str, python_buffer: WriteableBuffer, require_writable: Literal[True]
    ) -> _CData: ...
    def buffer(self, cdata: _CData, size: int = ...) -> _Buffer: ...
    def memmove(
        self, dest: _CData | WriteableBuffer, src: _CData | ReadableBuffer, n: int
    ) -> None: ...
    def sizeof(self, cdecl: str | _CType | _CData, /) -> int: ...
    def alignof(self, cdecl: str | _CType | _CData, /) -> int: ...
    def offsetof(self, cdecl: str | _CType, field: str | int, /, *fields: str | int) -> int: ...
    def typeof(self, cdecl: str | _CData, /) -> _CType: ...
    def getctype(self, cdecl: str | _CType, replace_with: str = ...) -> str: ...
    def addressof(self, cdata: _CData, /, *field_or_index: str | int) -> _CData: ...
    def string(self, cdata: _CData, maxlen: int = ...) -> Any: ...
    def unpack(self, cdata: _CData, length: int) -> Any: ...
    def gc(
        self, cdata: _CData, destructor: Callable[[_CData], object], size: int = ...
    ) -> _CData: ...
    def release(self, cdata: _CData, /) -> None: ...

@final
@type_check_only
class _Lib:
    # abi_linux.h
    TCP_ULP: Final[int]
    SOL_TLS: Final[int]
    TLS_TX: Final[int]
    TLS_RX: Final[int]
    TLS_TX_ZEROCOPY_RO: Final[int]
    TLS_RX_EXPECT_NO_PAD: Final[int]
    TLS_TX_MAX_PAYLOAD_LEN: Final[int]
    TLS_SET_RECORD_TYPE: Final[int]
    TLS_GET_RECORD_TYPE: Final[int]
    TLS_1_2_VERSION: Final[int]
    TLS_1_3_VERSION: Final[int]
    TLS_CIPHER_AES_GCM_128: Final[int]
    TLS_CIPHER_AES_GCM_256: Final[int]
    TLS_CIPHER_AES_CCM_128: Final[int]
    TLS_CIPHER_CHACHA20_POLY1305: Final[int]
    TLS_CIPHER_SM4_GCM: Final[int]
    TLS_CIPHER_SM4_CCM: Final[int]
    TLS_CIPHER_ARIA_GCM_128: Final[int]
    TLS_CIPHER_ARIA_GCM_256: Final[int]
    TLS_CONF_BASE: Final[int]
    TLS_CONF_SW: Final[int]
    TLS_CONF_HW: Final[int]
    TLS_CONF_HW_RECORD: Final[int]
    TLS_INFO_VERSION: Final[int]
    TLS_INFO_CIPHER: Final[int]
    TLS_INFO_TXCONF: Final[int]
    TLS_INFO_RXCONF: Final[int]
    TLS_INFO_ZC_RO_TX: Final[int]
    TLS_INFO_RX_NO_PAD: Final[int]
    TLS_INFO_TX_MAX_PAYLOAD_LEN: Final[int]
    INET_DIAG_ULP_INFO: Final[int]
    INET_ULP_INFO_NAME: Final[int]
    INET_ULP_INFO_TLS: Final[int]
    PYKTLS_CRYPTO_INFO_MAX: Final[int]
    # abi_freebsd.h
    TCP_TXTLS_ENABLE: Final[int]
    TCP_TXTLS_MODE: Final[int]
    TCP_RXTLS_ENABLE: Final[int]
    TCP_RXTLS_MODE: Final[int]
    TCP_TLS_MODE_NONE: Final[int]
    TCP_TLS_MODE_SW: Final[int]
    TCP_TLS_MODE_IFNET: Final[int]
    TCP_TLS_MODE_TOE: Final[int]
    TLS_GET_RECORD: Final[int]
    CRYPTO_AES_CBC: Final[int]
    CRYPTO_AES_NIST_GCM_16: Final[int]
    CRYPTO_CHACHA20_POLY1305: Final[int]
    CRYPTO_SHA1_HMAC: Final[int]
    CRYPTO_SHA2_256_HMAC: Final[int]
    CRYPTO_SHA2_384_HMAC: Final[int]
    CRYPTO_AES_128_NIST_GMAC: Final[int]
    CRYPTO_AES_192_NIST_GMAC: Final[int]
    CRYPTO_AES_256_NIST_GMAC: Final[int]
    TLS_MAJOR_VER_ONE: Final[int]
    TLS_MINOR_VER_ZERO: Final[int]
    TLS_MINOR_VER_ONE: Final[int]
    TLS_MINOR_VER_TWO: Final[int]
    TLS_MINOR_VER_THREE: Final[int]
    TLS_RLTYPE_ALERT: Final[int]
    TLS_RLTYPE_HANDSHAKE: Final[int]
    TLS_RLTYPE_APP: Final[int]
    TLS_MAX_MSG_SIZE_V10_2: Final[int]
    TLS_MAX_PARAM_SIZE: Final[int]
    TLS_AEAD_GCM_LEN: Final[int]
    TLS_1_3_GCM_IV_LEN: Final[int]
    TLS_CHACHA20_IV_LEN: Final[int]
    TLS_CBC_IMPLICIT_IV_LEN: Final[int]
    # the two system calls everything here goes through
    def setsockopt(
        self, fd: int, level: int, option: int, value: _Pointer, size: int, /
    ) -> int: ...
    def getsockopt(
        self, fd: int, level: int, option: int, value: _Pointer, size: _Pointer, /
    ) -> int: ...
    # kernel.h
    PYKTLS_LINUX: Final[int]
    PYKTLS_FREEBSD: Final[int]
    PYKTLS_NO_RECORD_TYPE: Final[int]
    def pyktls_system(self) -> int: ...
    def pyktls_recv_record(
        self,
        fd: int,
        buffer: _Pointer,
        size: int,
        flags: int,
        record_type: _Pointer,
        msg_flags: _Pointer,
        /,
    ) -> int: ...
    def pyktls_recv_record_vector(
        self,
        fd: int,
        iov: _Pointer,
        iov_count: int,
        flags: int,
        record_type: _Pointer,
        msg_flags: _Pointer,
        /,
    ) -> int: ...
    def pyktls_send_record(
        self, fd: int, iov: _Pointer, iov_count: int, flags: int, record_type: int, /
    ) -> int: ...
    def pyktls_linux_crypto_info_size(self, cipher_type: int, /) -> int: ...
    def pyktls_linux_pack(
        self,
        out: _Pointer,
        out_size: int,
        version: int,
        cipher_type: int,
        key: _Pointer,
        key_length: int,
        iv: _Pointer,
        rec_seq: int,
        /,
    ) -> int: ...
    def pyktls_linux_unpack(
        self,
        info: _Pointer,
        info_size: int,
        version: _Pointer,
        cipher_type: _Pointer,
        key: _Pointer,
        iv: _Pointer,
        rec_seq: _Pointer,
        /,
    ) -> int: ...
    def pyktls_freebsd_fill(
        self,
        out: _Pointer,
        version: int,
        cipher_algorithm: int,
        key: _Pointer,
        key_length: int,
        iv: _Pointer,
        iv_length: int,
        auth_algorithm: int,
        auth_key: _Pointer,
        auth_key_length: int,
        rec_seq: int,
        /,
    ) -> int: ...
    # openssl_tap.h
    PYKTLS_TAP_OK: Final[int]
    PYKTLS_TAP_NOT_LOADED: Final[int]
    PYKTLS_TAP_NO_SYMBOL: Final[int]
    PYKTLS_TAP_NO_INDEX: Final[int]
    PYKTLS_TAP_NOT_OPEN: Final[int]
    PYKTLS_TAP_REFUSED: Final[int]
    def pyktls_tap_open(self, path: _Pointer, /) -> int: ...
    def pyktls_tap_missing(self) -> _CData: ...
    def pyktls_tap_context_options(self, ssl_ctx: _Pointer, /) -> int: ...
    def pyktls_tap_owned_by(self, ssl: _Pointer, owner: _Pointer, /) -> int: ...
    def pyktls_tap_watch(self, ssl_ctx: _Pointer, /) -> int: ...
    def pyktls_tap_read(self, ssl: _Pointer, out: _Pointer, /) -> int: ...
    PYKTLS_TAP_LOST: Final[int]
    def pyktls_tap_follow(self, ssl: _Pointer, /) -> int: ...
    def pyktls_tap_kept(self, ssl: _Pointer, /) -> int: ...
    def pyktls_tap_take(self, ssl: _Pointer, out: _Pointer, /) -> None: ...
    def pyktls_tap_read_bytes(self, ssl: _Pointer, /) -> int: ...
    def pyktls_tap_leave(self, ssl: _Pointer, /) -> int: ...
    def pyktls_tap_wipe(self, memory: _Pointer, size: int, /) -> None: ...
    # openssl_apart.h
    PYKTLS_APART_OK: Final[int]
    PYKTLS_APART_NOT_OPEN: Final[int]
    PYKTLS_APART_REFUSED: Final[int]
    def pyktls_apart_open(self) -> int: ...
    def pyktls_apart_feed(self, ssl: _Pointer, records: _Pointer, size: int, /) -> int: ...
    def pyktls_apart_seal(
        self,
        aead: _Pointer,
        key: _Pointer,
        nonce: _Pointer,
        additional: _Pointer,
        additional_size: int,
        content: _Pointer,
        size: int,
        out: _Pointer,
        /,
    ) -> int: ...
    # openssl_half.h
    PYKTLS_HALF_OK: Final[int]
    PYKTLS_HALF_NOT_OPEN: Final[int]
    PYKTLS_HALF_FAILED: Final[int]
    PYKTLS_HALF_WANTS_MORE: Final[int]
    PYKTLS_HALF_CLOSED: Final[int]
    PYKTLS_HALF_READS: Final[int]
    PYKTLS_HALF_WRITES: Final[int]
    def pyktls_half_open(self) -> int: ...
    def pyktls_half_begin(self, ssl: _Pointer, direction: int, /) -> int: ...
    def pyktls_half_feed(self, ssl: _Pointer, data: _Pointer, size: int, /) -> int: ...
    def pyktls_half_read(
        self, ssl: _Pointer, out: _Pointer, room: int, peek: int, reason: _Pointer, /
    ) -> int: ...
    def pyktls_half_pending(self, ssl: _Pointer, /) -> int: ...
    def pyktls_half_write(
        self, ssl: _Pointer, data: _Pointer, size: int, reason: _Pointer, /
    ) -> int: ...
    def pyktls_half_close_notify(self, ssl: _Pointer, /) -> int: ...
    def pyktls_half_key_update(self, ssl: _Pointer, request_peer: int, /) -> int: ...
    def pyktls_half_made(self, ssl: _Pointer, /) -> int: ...
    def pyktls_half_take(self, ssl: _Pointer, out: _Pointer, size: int, /) -> int: ...
    # kernel_linux.c
    def pyktls_linux_set_keys(
        self,
        fd: int,
        direction: int,
        version: int,
        cipher_type: int,
        key: _Pointer,
        key_length: int,
        iv: _Pointer,
        rec_seq: int,
        /,
    ) -> int: ...
    # kernel_freebsd.c
    def pyktls_freebsd_set_keys(
        self,
        fd: int,
        option: int,
        version: int,
        cipher_algorithm: int,
        key: _Pointer,
        key_length: int,
        iv: _Pointer,
        iv_length: int,
        auth_algorithm: int,
        auth_key: _Pointer,
        auth_key_length: int,
        rec_seq: int,
        /,
    ) -> int: ...
    def pyktls_freebsd_get_mode(self, fd: int, option: int, /) -> int: ...
    def pyktls_freebsd_set_tx_mode(self, fd: int, mode: int, /) -> int: ...
    def pyktls_freebsd_recv(
        self,
        fd: int,
        buffer: _Pointer,
        size: int,
        flags: int,
        record_type: _Pointer,
        version: _Pointer,
        length: _Pointer,
        msg_flags: _Pointer,
        /,
    ) -> int: ...
    def pyktls_freebsd_sendfile(
        self,
        file: int,
        fd: int,
        offset: int,
        count: int,
        headers: _Pointer,
        header_count: int,
        trailers: _Pointer,
        trailer_count: int,
        flags: int,
        sent: _Pointer,
        /,
    ) -> int: ...
    def getpeername(self, fd: int, address: _Pointer, size: _Pointer, /) -> int: ...
    def pyktls_freebsd_sysctl(self, name: _Pointer, value: _Pointer, size: _Pointer, /) -> int: ...

ffi: Final[_FFI]
lib: Final[_Lib]
