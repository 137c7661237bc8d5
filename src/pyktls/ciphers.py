"""What is known about ciphers, in one place.

Two tables: ``AEADS``, the algorithms that protect records, and ``SUITES``, the cipher suites that
a handshake can end with.  Everything else in the library (which struct the kernel wants, how many
bytes to derive, when a key is used up) is read from here, so a new suite is one new row.

A suite is listed if Linux or FreeBSD can carry it *and* some OpenSSL can negotiate it.  What is
therefore missing, on purpose:

* CCM_8 (RFC 6655 section 4): Linux knows only tags of 16 bytes, FreeBSD no CCM.
* AES-256-CCM, and CBC with another cipher than AES: neither has them.
* ECDHE-PSK with AES-GCM or AES-CCM (RFC 8442), static (EC)DH: OpenSSL does not implement them.
* ARIA and SM4 where no RFC defines the suite: ARIA is TLS 1.2 only (RFC 6209), SM4 is TLS 1.3
  only (RFC 8998).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "AEAD",
    "AEADS",
    "HASH_LENGTHS",
    "NONCE_LENGTH",
    "SUITES",
    "TLS_1_2",
    "TLS_1_3",
    "CipherSuite",
    "FreeBSDCipher",
    "LinuxCipher",
    "aead_by_linux_type",
    "find_suite",
    "find_suite_by_openssl_name",
    "suites",
]

TLS_1_2 = 0x0303
TLS_1_3 = 0x0304

# Every AEAD here takes a nonce of 12 bytes (RFC 5116 section 5, RFC 8439 section 2.8).  It is also
# the length of the IV in TLS 1.3, which is never below 8 (RFC 8446 section 5.3).
NONCE_LENGTH = 12

# Bytes that each hash puts out.  The names are hashlib's.
HASH_LENGTHS = {"sha256": 32, "sha384": 48, "sm3": 32}


@dataclass(frozen=True, slots=True)
class LinuxCipher:
    """How Linux names a cipher (``include/uapi/linux/tls.h``).

    ``since`` is the upstream release that brought the cipher.  It is for texts that people read.
    Distributions backport, and kernels are built without ciphers: what a kernel can do is found
    by trying, never by comparing releases.
    """

    cipher_type: int
    since: str


@dataclass(frozen=True, slots=True)
class FreeBSDCipher:
    """How FreeBSD names a cipher (``sys/opencrypto/cryptodev.h``).

    ``auth_algorithm`` is the HMAC that goes with AES-CBC, 0 for an AEAD.  ``since`` is as in
    ``LinuxCipher``; where receiving came later, the release follows in brackets.
    """

    algorithm: int
    auth_algorithm: int
    since: str


@dataclass(frozen=True, slots=True)
class AEAD:
    """An algorithm that protects records.  All lengths are in bytes.

    ``implicit_iv_length`` is the part of the nonce that TLS 1.2 takes from the key block,
    ``explicit_nonce_length`` the part that it sends with each record.  TLS 1.3 sends none, and
    derives all 12.

    AES-CBC with HMAC is no AEAD, and stands here all the same, as the pair of both: it has a
    ``mac_key_length``, its tag is the MAC, and TLS 1.2 sends all of its IV.

    ``linux`` and ``freebsd`` are None where that system has no such cipher.

    ``confidentiality_limit`` is the number of full-size records that one key may protect, or None
    where the 64-bit sequence number runs out first.
    """

    name: str
    key_length: int
    tag_length: int
    implicit_iv_length: int
    explicit_nonce_length: int
    confidentiality_limit: int | None
    mac_key_length: int = 0
    linux: LinuxCipher | None = None
    freebsd: FreeBSDCipher | None = None


@dataclass(frozen=True, slots=True)
class CipherSuite:
    """One cipher suite of one protocol version.

    ``iana_id`` is the two-byte number on the wire, ``name`` IANA's name for it, ``openssl_name``
    what ``ssl.SSLSocket.cipher()`` calls it.  ``version`` is ``TLS_1_2`` or ``TLS_1_3``.
    ``hash`` is the hash of the key derivation, by hashlib's name.
    """

    iana_id: int
    name: str
    openssl_name: str
    version: int
    aead: AEAD
    hash: str

    @property
    def hash_length(self) -> int:
        """Bytes in the hash, which are the bytes in a TLS 1.3 traffic secret."""
        return HASH_LENGTHS[self.hash]


# How many records one key may protect.
#
# RFC 8446 section 5.5 gives AES-GCM 2^24.5 full-size records, and says that ChaCha20-Poly1305 meets
# the end of the sequence numbers first.  It is silent on CCM; RFC 9147 section 4.5.3 fills the gap
# for the same margin.  (The numbers of RFC 9001 section 6.6 rest on other assumptions.)
# SM4 and ARIA are block ciphers of 128 bits like AES, and the bounds come from block size and mode,
# so they get AES's numbers: no RFC states any.  For TLS 1.2, RFC 9325 section 4.4 recommends the
# same number for AES-GCM, and has none for the rest.  AES-CBC with a random IV in each record meets
# the same collisions of 128-bit blocks.
_GCM_LIMIT = int(2**24.5)
_CCM_LIMIT = 2**23
_NO_LIMIT = None

# TLS 1.2 builds the nonce from 4 derived bytes and 8 sent ones for GCM (RFC 5288 section 3) and
# for CCM (RFC 6655 section 3); for ChaCha20-Poly1305 it derives all 12 (RFC 7905 section 2).
# No TLS 1.2 suite uses SM4: its rows say what Linux does if asked.
#
# Name, key, tag, implicit IV, explicit nonce, limit, MAC key if any; below one line per system.
_AES_128_GCM = AEAD(
    "AES_128_GCM", 16, 16, 4, 8, _GCM_LIMIT,
    linux=LinuxCipher(51, "4.13"),
    freebsd=FreeBSDCipher(25, 0, "13.0 (receiving TLS 1.3: 14.0)"),
)  # fmt: skip
_AES_256_GCM = AEAD(
    "AES_256_GCM", 32, 16, 4, 8, _GCM_LIMIT,
    linux=LinuxCipher(52, "5.1"),
    freebsd=FreeBSDCipher(25, 0, "13.0 (receiving TLS 1.3: 14.0)"),
)  # fmt: skip
_AES_128_CCM = AEAD(
    "AES_128_CCM", 16, 16, 4, 8, _CCM_LIMIT,
    linux=LinuxCipher(53, "5.2"),
)  # fmt: skip
_CHACHA20_POLY1305 = AEAD(
    "CHACHA20_POLY1305", 32, 16, 12, 0, _NO_LIMIT,
    linux=LinuxCipher(54, "5.11"),
    freebsd=FreeBSDCipher(41, 0, "14.0"),
)  # fmt: skip
_SM4_GCM = AEAD(
    "SM4_GCM", 16, 16, 4, 8, _GCM_LIMIT,
    linux=LinuxCipher(55, "5.16"),
)  # fmt: skip
_SM4_CCM = AEAD(
    "SM4_CCM", 16, 16, 4, 8, _CCM_LIMIT,
    linux=LinuxCipher(56, "5.16"),
)  # fmt: skip
_ARIA_128_GCM = AEAD(
    "ARIA_128_GCM", 16, 16, 4, 8, _GCM_LIMIT,
    linux=LinuxCipher(57, "6.1"),
)  # fmt: skip
_ARIA_256_GCM = AEAD(
    "ARIA_256_GCM", 32, 16, 4, 8, _GCM_LIMIT,
    linux=LinuxCipher(58, "6.1"),
)  # fmt: skip
# RFC 5246 section 6.2.3.2: the IV is sent; the MAC keys have the length of the hash.
_AES_128_CBC_SHA = AEAD(
    "AES_128_CBC_SHA", 16, 20, 0, 16, _GCM_LIMIT, 20,
    freebsd=FreeBSDCipher(11, 7, "13.0 (receiving: 14.0)"),
)  # fmt: skip
_AES_256_CBC_SHA = AEAD(
    "AES_256_CBC_SHA", 32, 20, 0, 16, _GCM_LIMIT, 20,
    freebsd=FreeBSDCipher(11, 7, "13.0 (receiving: 14.0)"),
)  # fmt: skip
_AES_128_CBC_SHA256 = AEAD(
    "AES_128_CBC_SHA256", 16, 32, 0, 16, _GCM_LIMIT, 32,
    freebsd=FreeBSDCipher(11, 18, "13.0 (receiving: 14.0)"),
)  # fmt: skip
_AES_256_CBC_SHA256 = AEAD(
    "AES_256_CBC_SHA256", 32, 32, 0, 16, _GCM_LIMIT, 32,
    freebsd=FreeBSDCipher(11, 18, "13.0 (receiving: 14.0)"),
)  # fmt: skip
_AES_256_CBC_SHA384 = AEAD(
    "AES_256_CBC_SHA384", 32, 48, 0, 16, _GCM_LIMIT, 48,
    freebsd=FreeBSDCipher(11, 19, "13.0 (receiving: 14.0)"),
)  # fmt: skip

AEADS: tuple[AEAD, ...] = (
    _AES_128_GCM,
    _AES_256_GCM,
    _AES_128_CCM,
    _CHACHA20_POLY1305,
    _SM4_GCM,
    _SM4_CCM,
    _ARIA_128_GCM,
    _ARIA_256_GCM,
    _AES_128_CBC_SHA,
    _AES_256_CBC_SHA,
    _AES_128_CBC_SHA256,
    _AES_256_CBC_SHA256,
    _AES_256_CBC_SHA384,
)


# TLS 1.3: number, name (OpenSSL uses the same), AEAD, hash.
_TLS_1_3_SUITES: tuple[tuple[int, str, AEAD, str], ...] = (
    # RFC 8446 appendix B.4.
    (0x1301, "TLS_AES_128_GCM_SHA256", _AES_128_GCM, "sha256"),
    (0x1302, "TLS_AES_256_GCM_SHA384", _AES_256_GCM, "sha384"),
    (0x1303, "TLS_CHACHA20_POLY1305_SHA256", _CHACHA20_POLY1305, "sha256"),
    (0x1304, "TLS_AES_128_CCM_SHA256", _AES_128_CCM, "sha256"),
    # RFC 8998 section 2.  OpenSSL 4.0 has them, 3.0 does not.
    (0x00C6, "TLS_SM4_GCM_SM3", _SM4_GCM, "sm3"),
    (0x00C7, "TLS_SM4_CCM_SM3", _SM4_CCM, "sm3"),
)

# TLS 1.2, by AEAD: number, IANA's name, OpenSSL's name.
_TLS_1_2_SUITES: dict[AEAD, tuple[tuple[int, str, str], ...]] = {
    _AES_128_GCM: (
        # RFC 5289 section 3.2.
        (0xC02B, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (0xC02F, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"),
        # RFC 5288 section 3.
        (0x009C, "TLS_RSA_WITH_AES_128_GCM_SHA256", "AES128-GCM-SHA256"),
        (0x009E, "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256", "DHE-RSA-AES128-GCM-SHA256"),
        (0x00A2, "TLS_DHE_DSS_WITH_AES_128_GCM_SHA256", "DHE-DSS-AES128-GCM-SHA256"),
        (0x00A6, "TLS_DH_anon_WITH_AES_128_GCM_SHA256", "ADH-AES128-GCM-SHA256"),
        # RFC 5487 section 2.
        (0x00A8, "TLS_PSK_WITH_AES_128_GCM_SHA256", "PSK-AES128-GCM-SHA256"),
        (0x00AA, "TLS_DHE_PSK_WITH_AES_128_GCM_SHA256", "DHE-PSK-AES128-GCM-SHA256"),
        (0x00AC, "TLS_RSA_PSK_WITH_AES_128_GCM_SHA256", "RSA-PSK-AES128-GCM-SHA256"),
    ),
    _AES_256_GCM: (
        # RFC 5289 section 3.2.
        (0xC02C, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"),
        (0xC030, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
        # RFC 5288 section 3.
        (0x009D, "TLS_RSA_WITH_AES_256_GCM_SHA384", "AES256-GCM-SHA384"),
        (0x009F, "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384", "DHE-RSA-AES256-GCM-SHA384"),
        (0x00A3, "TLS_DHE_DSS_WITH_AES_256_GCM_SHA384", "DHE-DSS-AES256-GCM-SHA384"),
        (0x00A7, "TLS_DH_anon_WITH_AES_256_GCM_SHA384", "ADH-AES256-GCM-SHA384"),
        # RFC 5487 section 2.
        (0x00A9, "TLS_PSK_WITH_AES_256_GCM_SHA384", "PSK-AES256-GCM-SHA384"),
        (0x00AB, "TLS_DHE_PSK_WITH_AES_256_GCM_SHA384", "DHE-PSK-AES256-GCM-SHA384"),
        (0x00AD, "TLS_RSA_PSK_WITH_AES_256_GCM_SHA384", "RSA-PSK-AES256-GCM-SHA384"),
    ),
    _AES_128_CCM: (
        # RFC 6655 sections 3 and 4.
        (0xC09C, "TLS_RSA_WITH_AES_128_CCM", "AES128-CCM"),
        (0xC09E, "TLS_DHE_RSA_WITH_AES_128_CCM", "DHE-RSA-AES128-CCM"),
        (0xC0A4, "TLS_PSK_WITH_AES_128_CCM", "PSK-AES128-CCM"),
        (0xC0A6, "TLS_DHE_PSK_WITH_AES_128_CCM", "DHE-PSK-AES128-CCM"),
        # RFC 7251 section 2.
        (0xC0AC, "TLS_ECDHE_ECDSA_WITH_AES_128_CCM", "ECDHE-ECDSA-AES128-CCM"),
    ),
    _CHACHA20_POLY1305: (
        # RFC 7905 section 3.
        (0xCCA8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
        (0xCCA9, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        (0xCCAA, "TLS_DHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "DHE-RSA-CHACHA20-POLY1305"),
        (0xCCAB, "TLS_PSK_WITH_CHACHA20_POLY1305_SHA256", "PSK-CHACHA20-POLY1305"),
        (0xCCAC, "TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-PSK-CHACHA20-POLY1305"),
        (0xCCAD, "TLS_DHE_PSK_WITH_CHACHA20_POLY1305_SHA256", "DHE-PSK-CHACHA20-POLY1305"),
        (0xCCAE, "TLS_RSA_PSK_WITH_CHACHA20_POLY1305_SHA256", "RSA-PSK-CHACHA20-POLY1305"),
    ),
    _ARIA_128_GCM: (
        # RFC 6209 section 2.
        (0xC050, "TLS_RSA_WITH_ARIA_128_GCM_SHA256", "ARIA128-GCM-SHA256"),
        (0xC052, "TLS_DHE_RSA_WITH_ARIA_128_GCM_SHA256", "DHE-RSA-ARIA128-GCM-SHA256"),
        (0xC056, "TLS_DHE_DSS_WITH_ARIA_128_GCM_SHA256", "DHE-DSS-ARIA128-GCM-SHA256"),
        (0xC05C, "TLS_ECDHE_ECDSA_WITH_ARIA_128_GCM_SHA256", "ECDHE-ECDSA-ARIA128-GCM-SHA256"),
        # Not a slip: OpenSSL leaves "RSA" out of this name.
        (0xC060, "TLS_ECDHE_RSA_WITH_ARIA_128_GCM_SHA256", "ECDHE-ARIA128-GCM-SHA256"),
        (0xC06A, "TLS_PSK_WITH_ARIA_128_GCM_SHA256", "PSK-ARIA128-GCM-SHA256"),
        (0xC06C, "TLS_DHE_PSK_WITH_ARIA_128_GCM_SHA256", "DHE-PSK-ARIA128-GCM-SHA256"),
        (0xC06E, "TLS_RSA_PSK_WITH_ARIA_128_GCM_SHA256", "RSA-PSK-ARIA128-GCM-SHA256"),
    ),
    _ARIA_256_GCM: (
        # RFC 6209 section 2.
        (0xC051, "TLS_RSA_WITH_ARIA_256_GCM_SHA384", "ARIA256-GCM-SHA384"),
        (0xC053, "TLS_DHE_RSA_WITH_ARIA_256_GCM_SHA384", "DHE-RSA-ARIA256-GCM-SHA384"),
        (0xC057, "TLS_DHE_DSS_WITH_ARIA_256_GCM_SHA384", "DHE-DSS-ARIA256-GCM-SHA384"),
        (0xC05D, "TLS_ECDHE_ECDSA_WITH_ARIA_256_GCM_SHA384", "ECDHE-ECDSA-ARIA256-GCM-SHA384"),
        # Not a slip: OpenSSL leaves "RSA" out of this name.
        (0xC061, "TLS_ECDHE_RSA_WITH_ARIA_256_GCM_SHA384", "ECDHE-ARIA256-GCM-SHA384"),
        (0xC06B, "TLS_PSK_WITH_ARIA_256_GCM_SHA384", "PSK-ARIA256-GCM-SHA384"),
        (0xC06D, "TLS_DHE_PSK_WITH_ARIA_256_GCM_SHA384", "DHE-PSK-ARIA256-GCM-SHA384"),
        (0xC06F, "TLS_RSA_PSK_WITH_ARIA_256_GCM_SHA384", "RSA-PSK-ARIA256-GCM-SHA384"),
    ),
    # AES-CBC: those that end in _SHA are older than TLS 1.2, which has them too.
    _AES_128_CBC_SHA: (
        # RFC 5246 appendix A.5.
        (0x002F, "TLS_RSA_WITH_AES_128_CBC_SHA", "AES128-SHA"),
        (0x0032, "TLS_DHE_DSS_WITH_AES_128_CBC_SHA", "DHE-DSS-AES128-SHA"),
        (0x0033, "TLS_DHE_RSA_WITH_AES_128_CBC_SHA", "DHE-RSA-AES128-SHA"),
        (0x0034, "TLS_DH_anon_WITH_AES_128_CBC_SHA", "ADH-AES128-SHA"),
        # RFC 8422 section 6.
        (0xC009, "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "ECDHE-ECDSA-AES128-SHA"),
        (0xC013, "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "ECDHE-RSA-AES128-SHA"),
        (0xC018, "TLS_ECDH_anon_WITH_AES_128_CBC_SHA", "AECDH-AES128-SHA"),
        # RFC 4279 section 2.
        (0x008C, "TLS_PSK_WITH_AES_128_CBC_SHA", "PSK-AES128-CBC-SHA"),
        (0x0090, "TLS_DHE_PSK_WITH_AES_128_CBC_SHA", "DHE-PSK-AES128-CBC-SHA"),
        (0x0094, "TLS_RSA_PSK_WITH_AES_128_CBC_SHA", "RSA-PSK-AES128-CBC-SHA"),
        # RFC 5489 section 3.
        (0xC035, "TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA", "ECDHE-PSK-AES128-CBC-SHA"),
        # RFC 5054 section 2.7.
        (0xC01D, "TLS_SRP_SHA_WITH_AES_128_CBC_SHA", "SRP-AES-128-CBC-SHA"),
        (0xC01E, "TLS_SRP_SHA_RSA_WITH_AES_128_CBC_SHA", "SRP-RSA-AES-128-CBC-SHA"),
        (0xC01F, "TLS_SRP_SHA_DSS_WITH_AES_128_CBC_SHA", "SRP-DSS-AES-128-CBC-SHA"),
    ),
    _AES_256_CBC_SHA: (
        # RFC 5246 appendix A.5.
        (0x0035, "TLS_RSA_WITH_AES_256_CBC_SHA", "AES256-SHA"),
        (0x0038, "TLS_DHE_DSS_WITH_AES_256_CBC_SHA", "DHE-DSS-AES256-SHA"),
        (0x0039, "TLS_DHE_RSA_WITH_AES_256_CBC_SHA", "DHE-RSA-AES256-SHA"),
        (0x003A, "TLS_DH_anon_WITH_AES_256_CBC_SHA", "ADH-AES256-SHA"),
        # RFC 8422 section 6.
        (0xC00A, "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", "ECDHE-ECDSA-AES256-SHA"),
        (0xC014, "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", "ECDHE-RSA-AES256-SHA"),
        (0xC019, "TLS_ECDH_anon_WITH_AES_256_CBC_SHA", "AECDH-AES256-SHA"),
        # RFC 4279 section 2.
        (0x008D, "TLS_PSK_WITH_AES_256_CBC_SHA", "PSK-AES256-CBC-SHA"),
        (0x0091, "TLS_DHE_PSK_WITH_AES_256_CBC_SHA", "DHE-PSK-AES256-CBC-SHA"),
        (0x0095, "TLS_RSA_PSK_WITH_AES_256_CBC_SHA", "RSA-PSK-AES256-CBC-SHA"),
        # RFC 5489 section 3.
        (0xC036, "TLS_ECDHE_PSK_WITH_AES_256_CBC_SHA", "ECDHE-PSK-AES256-CBC-SHA"),
        # RFC 5054 section 2.7.
        (0xC020, "TLS_SRP_SHA_WITH_AES_256_CBC_SHA", "SRP-AES-256-CBC-SHA"),
        (0xC021, "TLS_SRP_SHA_RSA_WITH_AES_256_CBC_SHA", "SRP-RSA-AES-256-CBC-SHA"),
        (0xC022, "TLS_SRP_SHA_DSS_WITH_AES_256_CBC_SHA", "SRP-DSS-AES-256-CBC-SHA"),
    ),
    _AES_128_CBC_SHA256: (
        # RFC 5246 appendix A.5.
        (0x003C, "TLS_RSA_WITH_AES_128_CBC_SHA256", "AES128-SHA256"),
        (0x0040, "TLS_DHE_DSS_WITH_AES_128_CBC_SHA256", "DHE-DSS-AES128-SHA256"),
        (0x0067, "TLS_DHE_RSA_WITH_AES_128_CBC_SHA256", "DHE-RSA-AES128-SHA256"),
        (0x006C, "TLS_DH_anon_WITH_AES_128_CBC_SHA256", "ADH-AES128-SHA256"),
        # RFC 5289 section 3.1.
        (0xC023, "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", "ECDHE-ECDSA-AES128-SHA256"),
        (0xC027, "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", "ECDHE-RSA-AES128-SHA256"),
        # RFC 5487 section 3.
        (0x00AE, "TLS_PSK_WITH_AES_128_CBC_SHA256", "PSK-AES128-CBC-SHA256"),
        (0x00B2, "TLS_DHE_PSK_WITH_AES_128_CBC_SHA256", "DHE-PSK-AES128-CBC-SHA256"),
        (0x00B6, "TLS_RSA_PSK_WITH_AES_128_CBC_SHA256", "RSA-PSK-AES128-CBC-SHA256"),
        # RFC 5489 section 3.
        (0xC037, "TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256", "ECDHE-PSK-AES128-CBC-SHA256"),
    ),
    _AES_256_CBC_SHA256: (
        # RFC 5246 appendix A.5.
        (0x003D, "TLS_RSA_WITH_AES_256_CBC_SHA256", "AES256-SHA256"),
        (0x006A, "TLS_DHE_DSS_WITH_AES_256_CBC_SHA256", "DHE-DSS-AES256-SHA256"),
        (0x006B, "TLS_DHE_RSA_WITH_AES_256_CBC_SHA256", "DHE-RSA-AES256-SHA256"),
        (0x006D, "TLS_DH_anon_WITH_AES_256_CBC_SHA256", "ADH-AES256-SHA256"),
    ),
    _AES_256_CBC_SHA384: (
        # RFC 5289 section 3.1.
        (0xC024, "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384", "ECDHE-ECDSA-AES256-SHA384"),
        (0xC028, "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384", "ECDHE-RSA-AES256-SHA384"),
        # RFC 5487 section 3.
        (0x00AF, "TLS_PSK_WITH_AES_256_CBC_SHA384", "PSK-AES256-CBC-SHA384"),
        (0x00B3, "TLS_DHE_PSK_WITH_AES_256_CBC_SHA384", "DHE-PSK-AES256-CBC-SHA384"),
        (0x00B7, "TLS_RSA_PSK_WITH_AES_256_CBC_SHA384", "RSA-PSK-AES256-CBC-SHA384"),
        # RFC 5489 section 3.
        (0xC038, "TLS_ECDHE_PSK_WITH_AES_256_CBC_SHA384", "ECDHE-PSK-AES256-CBC-SHA384"),
    ),
}


def _tls_1_2_hash(name: str) -> str:
    # The name ends in the hash.  Where it does not (CCM), or in one that is the MAC's alone (_SHA),
    # it is SHA-256, which TLS 1.2 takes when a suite names none (RFC 5246 section 5).
    return "sha384" if name.endswith("_SHA384") else "sha256"


SUITES: tuple[CipherSuite, ...] = (
    *(
        CipherSuite(iana_id, name, name, TLS_1_3, aead, hash_name)
        for iana_id, name, aead, hash_name in _TLS_1_3_SUITES
    ),
    *(
        CipherSuite(iana_id, name, openssl_name, TLS_1_2, aead, _tls_1_2_hash(name))
        for aead, rows in _TLS_1_2_SUITES.items()
        for iana_id, name, openssl_name in rows
    ),
)

_BY_ID = {suite.iana_id: suite for suite in SUITES}
_BY_OPENSSL_NAME = {suite.openssl_name: suite for suite in SUITES}
_BY_LINUX_TYPE = {aead.linux.cipher_type: aead for aead in AEADS if aead.linux is not None}


def find_suite(iana_id: int) -> CipherSuite | None:
    """Return the suite with this two-byte IANA number, or None if it is not known here.

    OpenSSL's own ids (``SSL_CIPHER_get_id``, ``ssl.SSLContext.get_ciphers()[n]["id"]``) carry this
    number in their low 16 bits.
    """
    return _BY_ID.get(iana_id)


def find_suite_by_openssl_name(openssl_name: str) -> CipherSuite | None:
    """Return the suite that OpenSSL calls by this name, or None if it is not known here."""
    return _BY_OPENSSL_NAME.get(openssl_name)


def aead_by_linux_type(cipher_type: int) -> AEAD | None:
    """Return the AEAD with this ``cipher_type`` of a Linux crypto_info, or None."""
    return _BY_LINUX_TYPE.get(cipher_type)


def suites(*, version: int | None = None, aead: AEAD | None = None) -> tuple[CipherSuite, ...]:
    """Return all known suites, or those of one protocol version, of one AEAD, or of both."""
    return tuple(
        suite
        for suite in SUITES
        if (version is None or suite.version == version) and (aead is None or suite.aead == aead)
    )
