"""The cipher tables against OpenSSL, against the systems' headers, and against themselves."""

from __future__ import annotations

import dataclasses
import re
import shutil
import ssl
import subprocess
from typing import Any

import pytest

from pyktls import ciphers
from pyktls.ciphers import AEADS, SUITES, TLS_1_2, TLS_1_3, CipherSuite

EVERYTHING = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"

# What OpenSSL prints behind "Enc=" and "Mac=" for what Linux or FreeBSD has.  A tag of 8 bytes is
# another word there ("AESCCM8"), so whatever AEAD is listed here has 16.
OPENSSL_ENC = {
    "AES(128) SHA1": "AES_128_CBC_SHA",
    "AES(256) SHA1": "AES_256_CBC_SHA",
    "AES(128) SHA256": "AES_128_CBC_SHA256",
    "AES(256) SHA256": "AES_256_CBC_SHA256",
    "AES(256) SHA384": "AES_256_CBC_SHA384",
    "AESGCM(128)": "AES_128_GCM",
    "AESGCM(256)": "AES_256_GCM",
    "AESCCM(128)": "AES_128_CCM",
    "CHACHA20/POLY1305(256)": "CHACHA20_POLY1305",
    "SM4GCM(128)": "SM4_GCM",
    "SM4CCM(128)": "SM4_CCM",
    "ARIAGCM(128)": "ARIA_128_GCM",
    "ARIAGCM(256)": "ARIA_256_GCM",
}
# For suites that are older than TLS 1.2 it prints the oldest version; TLS 1.2 has them too.
OPENSSL_VERSION = {"SSLv3": TLS_1_2, "TLSv1": TLS_1_2, "TLSv1.2": TLS_1_2, "TLSv1.3": TLS_1_3}

# include/uapi/linux/tls.h: TLS_CIPHER_*, and the TLS_CIPHER_*_{KEY,SALT,IV}_SIZE that go with each.
# ChaCha20-Poly1305 has no salt, all 12 bytes are IV.
LINUX = {
    "AES_128_GCM": (51, 16, 4, 8),
    "AES_256_GCM": (52, 32, 4, 8),
    "AES_128_CCM": (53, 16, 4, 8),
    "CHACHA20_POLY1305": (54, 32, 0, 12),
    "SM4_GCM": (55, 16, 4, 8),
    "SM4_CCM": (56, 16, 4, 8),
    "ARIA_128_GCM": (57, 16, 4, 8),
    "ARIA_256_GCM": (58, 32, 4, 8),
}
LINUX_AEADS = [aead for aead in AEADS if aead.linux is not None]

# sys/opencrypto/cryptodev.h of FreeBSD: CRYPTO_ numbers of the cipher and of the HMAC; the key, and
# the MAC with its key, whose length is that of the hash.
FREEBSD = {
    "AES_128_GCM": (25, 0, 16, 0),
    "AES_256_GCM": (25, 0, 32, 0),
    "CHACHA20_POLY1305": (41, 0, 32, 0),
    "AES_128_CBC_SHA": (11, 7, 16, 20),
    "AES_256_CBC_SHA": (11, 7, 32, 20),
    "AES_128_CBC_SHA256": (11, 18, 16, 32),
    "AES_256_CBC_SHA256": (11, 18, 32, 32),
    "AES_256_CBC_SHA384": (11, 19, 32, 48),
}
FREEBSD_AEADS = [aead for aead in AEADS if aead.freebsd is not None]


def by_name(name: str) -> ciphers.AEAD:
    (aead,) = (aead for aead in AEADS if aead.name == name)
    return aead


def openssl_rows(*arguments: str) -> list[dict[str, str]]:
    """``openssl ciphers -V -stdname``, each line as id, name, openssl_name, version, enc, mac."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl command; ssl.SSLContext.get_ciphers() is compared in any case")
    version = subprocess.run([program, "version"], check=True, capture_output=True, text=True)
    if not version.stdout.startswith("OpenSSL "):
        pytest.skip(f"the openssl command is {version.stdout.split()[0]}")
    listing = subprocess.run(
        [program, "ciphers", "-V", "-stdname", *arguments, EVERYTHING],
        check=True,
        capture_output=True,
        text=True,
    )
    pattern = re.compile(
        r"\s*(?P<id>0x\w\w,0x\w\w) - (?P<name>\S+)\s+- (?P<openssl_name>\S+)\s+(?P<version>\S+)"
        r"\s.*Enc=(?P<enc>\S+)\s+Mac=(?P<mac>\S+)"
    )
    rows = []
    for line in listing.stdout.splitlines():
        match = pattern.match(line)
        assert match, line
        rows.append(match.groupdict())
    return rows


def assert_agrees(
    iana_id: int, openssl_name: str, version: str, enc: str, mac: str
) -> CipherSuite | None:
    """One line of an OpenSSL listing against the table.  Returns our row, if there is to be one."""
    suite = ciphers.find_suite(iana_id)
    if mac != "AEAD":
        enc = f"{enc} {mac}"
    if enc not in OPENSSL_ENC:
        assert suite is None, f"{openssl_name} uses {enc}, which no kernel here has"
        assert ciphers.find_suite_by_openssl_name(openssl_name) is None
        return None
    assert suite is not None, f"{openssl_name} (0x{iana_id:04X}) is missing"
    assert suite.openssl_name == openssl_name
    assert suite.version == OPENSSL_VERSION[version]
    assert suite.aead.name == OPENSSL_ENC[enc]
    return suite


class TestAgainstOpenSSL:
    def test_every_suite_of_this_python(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers(EVERYTHING)
        listed: list[dict[str, Any]] = context.get_ciphers()  # type: ignore[assignment]
        found = []
        for row in listed:
            enc = re.search(r"Enc=(\S+)\s+Mac=(\S+)", row["description"])
            assert enc, row
            suite = assert_agrees(
                row["id"] & 0xFFFF, row["name"], row["description"].split()[1], enc[1], enc[2]
            )
            if suite is not None:
                assert row["aead"] == (suite.aead.mac_key_length == 0)
                found.append(suite)
        # Any OpenSSL that is of use has these.
        assert {0x1301, 0x1302, 0xC02F, 0xC030} <= {suite.iana_id for suite in found}

    def test_every_suite_of_the_openssl_command_and_its_iana_name(self) -> None:
        found = 0
        for row in openssl_rows():
            iana_id = int(row["id"].replace(",0x", ""), 16)
            suite = assert_agrees(
                iana_id, row["openssl_name"], row["version"], row["enc"], row["mac"]
            )
            if suite is not None:
                assert suite.name == row["name"]
                found += 1
        assert found > 20

    def test_ccm_of_tls_1_3(self) -> None:
        # Not in OpenSSL's default list.
        rows = openssl_rows("-ciphersuites", "TLS_AES_128_CCM_SHA256:TLS_AES_128_CCM_8_SHA256")
        rows = [row for row in rows if row["version"] == "TLSv1.3"]
        assert [row["id"] for row in rows] == ["0x13,0x04", "0x13,0x05"]
        full, short = (
            assert_agrees(0x1300 + n, row["openssl_name"], "TLSv1.3", row["enc"], row["mac"])
            for n, row in zip((4, 5), rows, strict=True)
        )
        assert full is not None
        assert full.name == "TLS_AES_128_CCM_SHA256"
        assert short is None

    @pytest.mark.parametrize("suite", ciphers.suites(version=TLS_1_3), ids=lambda s: s.name)
    def test_tls_1_3_suites_of_pyopenssl(self, suite: CipherSuite) -> None:
        # pyOpenSSL carries an OpenSSL of its own, often a newer one: 4.0 has SM4.
        openssl = pytest.importorskip("OpenSSL.SSL", reason="pyOpenSSL is not installed")
        context = openssl.Context(openssl.TLS_METHOD)
        try:
            context.set_tls13_ciphersuites(suite.openssl_name.encode())
        except openssl.Error:
            assert "SM4" in suite.openssl_name, "OpenSSL does not know the name"
            pytest.skip("this OpenSSL has no SM4 suites")
        assert suite.openssl_name in openssl.Connection(context, None).get_cipher_list()


class TestAgainstLinux:
    def test_all_ciphers_of_the_header_are_here(self) -> None:
        assert {aead.name for aead in LINUX_AEADS} == set(LINUX)

    @pytest.mark.parametrize("aead", LINUX_AEADS, ids=lambda aead: aead.name)
    def test_type_and_lengths(self, aead: ciphers.AEAD) -> None:
        cipher_type, key, salt, iv = LINUX[aead.name]
        assert aead.linux is not None
        assert aead.linux.cipher_type == cipher_type
        assert aead.key_length == key
        assert aead.tag_length == 16
        assert salt + iv == ciphers.NONCE_LENGTH
        if salt:
            assert (aead.implicit_iv_length, aead.explicit_nonce_length) == (salt, iv)
        else:
            assert (aead.implicit_iv_length, aead.explicit_nonce_length) == (iv, 0)

    def test_releases(self) -> None:
        assert {aead.name: aead.linux.since for aead in AEADS if aead.linux} == {
            "AES_128_GCM": "4.13",
            "AES_256_GCM": "5.1",
            "AES_128_CCM": "5.2",
            "CHACHA20_POLY1305": "5.11",
            "SM4_GCM": "5.16",
            "SM4_CCM": "5.16",
            "ARIA_128_GCM": "6.1",
            "ARIA_256_GCM": "6.1",
        }

    @pytest.mark.parametrize("aead", LINUX_AEADS, ids=lambda aead: aead.name)
    def test_found_by_type(self, aead: ciphers.AEAD) -> None:
        assert aead.linux is not None
        assert ciphers.aead_by_linux_type(aead.linux.cipher_type) is aead

    @pytest.mark.parametrize("cipher_type", [-1, 0, 50, 59, 0xFFFF])
    def test_unknown_types(self, cipher_type: int) -> None:
        assert ciphers.aead_by_linux_type(cipher_type) is None


class TestAgainstFreeBSD:
    def test_all_ciphers_of_the_kernel_are_here(self) -> None:
        assert {aead.name for aead in FREEBSD_AEADS} == set(FREEBSD)

    @pytest.mark.parametrize("aead", FREEBSD_AEADS, ids=lambda aead: aead.name)
    def test_numbers_and_lengths(self, aead: ciphers.AEAD) -> None:
        algorithm, auth_algorithm, key, mac = FREEBSD[aead.name]
        assert aead.freebsd is not None
        assert (aead.freebsd.algorithm, aead.freebsd.auth_algorithm) == (algorithm, auth_algorithm)
        assert (aead.key_length, aead.mac_key_length) == (key, mac)
        assert aead.tag_length == (mac or 16)
        if mac:  # RFC 5246 section 6.2.3.2: a block of IV is sent
            assert (aead.implicit_iv_length, aead.explicit_nonce_length) == (0, 16)

    def test_releases(self) -> None:
        gcm, cbc = "13.0 (receiving TLS 1.3: 14.0)", "13.0 (receiving: 14.0)"
        assert {aead.name: aead.freebsd.since for aead in AEADS if aead.freebsd} == {
            "AES_128_GCM": gcm,
            "AES_256_GCM": gcm,
            "CHACHA20_POLY1305": "14.0",
            "AES_128_CBC_SHA": cbc,
            "AES_256_CBC_SHA": cbc,
            "AES_128_CBC_SHA256": cbc,
            "AES_256_CBC_SHA256": cbc,
            "AES_256_CBC_SHA384": cbc,
        }


class TestLimits:
    def test_gcm(self) -> None:
        # RFC 8446 section 5.5, which also says "about 24 million".
        limit = by_name("AES_128_GCM").confidentiality_limit
        assert limit == 23_726_566
        assert limit**2 <= 2**49 < (limit + 1) ** 2
        for name in ("AES_256_GCM", "SM4_GCM", "ARIA_128_GCM", "ARIA_256_GCM"):
            assert by_name(name).confidentiality_limit == limit

    def test_ccm(self) -> None:
        # RFC 9147 section 4.5.3.
        assert by_name("AES_128_CCM").confidentiality_limit == 2**23
        assert by_name("SM4_CCM").confidentiality_limit == 2**23

    def test_chacha20_poly1305(self) -> None:
        assert by_name("CHACHA20_POLY1305").confidentiality_limit is None


class TestTables:
    @pytest.mark.parametrize("field", ["iana_id", "name", "openssl_name"])
    def test_nothing_is_there_twice(self, field: str) -> None:
        values = [getattr(suite, field) for suite in SUITES]
        assert len(values) == len(set(values)) == 100

    @pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
    def test_row_is_consistent(self, suite: CipherSuite) -> None:
        assert 0 < suite.iana_id <= 0xFFFF
        assert suite.aead in AEADS
        # The name says which AEAD and which hash: TLS_[kx_WITH_]aead[_hash].
        body = suite.name.removeprefix("TLS_").rpartition("WITH_")[2]
        assert ("_WITH_" in suite.name) == (suite.version == TLS_1_2)
        assert body.startswith(suite.aead.name)
        rest = body.removeprefix(suite.aead.name).removeprefix("_").lower()
        if suite.aead.mac_key_length:
            # The name's hash is the MAC's; TLS 1.2 derives with SHA-256 at least (RFC 5246
            # section 5), and with SHA-384 where the name says so.
            assert rest == ""
            assert suite.hash == ("sha384" if body.endswith("_SHA384") else "sha256")
        else:
            assert rest == suite.hash or (rest == "" and suite.aead.name == "AES_128_CCM")
            if rest == "":
                assert suite.hash == "sha256"
        assert suite.hash_length == {"sha256": 32, "sha384": 48, "sm3": 32}[suite.hash]

    @pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
    def test_found_by_id_and_name(self, suite: CipherSuite) -> None:
        assert ciphers.find_suite(suite.iana_id) is suite
        assert ciphers.find_suite_by_openssl_name(suite.openssl_name) is suite

    @pytest.mark.parametrize(
        "iana_id",
        [
            0x1305,  # TLS_AES_128_CCM_8_SHA256
            0xC0AE,  # TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8
            0xC0AD,  # TLS_ECDHE_ECDSA_WITH_AES_256_CCM
            0xC012,  # TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA
            0xC073,  # TLS_ECDHE_ECDSA_WITH_CAMELLIA_256_CBC_SHA384
            0xD001,  # TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256
            0x00FF,  # TLS_EMPTY_RENEGOTIATION_INFO_SCSV
            0x03001301,  # OpenSSL's own id, not reduced to two bytes
            0,
            -1,
        ],
    )
    def test_unknown_ids(self, iana_id: int) -> None:
        assert ciphers.find_suite(iana_id) is None

    @pytest.mark.parametrize("name", ["", "NULL-SHA256", "TLS_RSA_WITH_AES_128_GCM_SHA256"])
    def test_unknown_names(self, name: str) -> None:
        assert ciphers.find_suite_by_openssl_name(name) is None

    def test_versions(self) -> None:
        def names(version: int) -> set[str]:
            return {suite.aead.name for suite in ciphers.suites(version=version)}

        everything = {aead.name for aead in AEADS}
        # RFC 6209 is older than TLS 1.3, RFC 8998 newer; TLS 1.3 has no CBC.
        cbc = {name for name in everything if "_CBC_" in name}
        assert everything - names(TLS_1_3) == {"ARIA_128_GCM", "ARIA_256_GCM"} | cbc
        assert everything - names(TLS_1_2) == {"SM4_GCM", "SM4_CCM"}

    def test_counts(self) -> None:
        counts = {aead.name: len(ciphers.suites(version=TLS_1_2, aead=aead)) for aead in AEADS}
        assert counts == {
            "AES_128_GCM": 9,
            "AES_256_GCM": 9,
            "AES_128_CCM": 5,
            "CHACHA20_POLY1305": 7,
            "SM4_GCM": 0,
            "SM4_CCM": 0,
            "ARIA_128_GCM": 8,
            "ARIA_256_GCM": 8,
            "AES_128_CBC_SHA": 14,
            "AES_256_CBC_SHA": 14,
            "AES_128_CBC_SHA256": 10,
            "AES_256_CBC_SHA256": 4,
            "AES_256_CBC_SHA384": 6,
        }  # fmt: skip

    def test_filter(self) -> None:
        assert ciphers.suites() == SUITES
        chacha = by_name("CHACHA20_POLY1305")
        assert [suite.iana_id for suite in ciphers.suites(version=TLS_1_3, aead=chacha)] == [0x1303]
        assert len(ciphers.suites(aead=chacha)) == 8
        assert ciphers.suites(version=0x0302) == ()

    def test_rows_cannot_be_changed(self) -> None:
        for row, field in (
            (SUITES[0], "hash"),
            (AEADS[0], "key_length"),
            (AEADS[0].linux, "since"),
        ):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(row, field, None)
            assert not hasattr(row, "__dict__")

    def test_rows_can_be_dict_keys(self) -> None:
        assert len(set(SUITES)) == len(SUITES)
        assert len(set(AEADS)) == len(AEADS)

    def test_all_names_exist(self) -> None:
        for name in ciphers.__all__:
            assert hasattr(ciphers, name)
