"""The network cards, and whether they do TLS: asked with ethtool's ioctl, which changes nothing.

The kernel names what a card can do ("features") in a list of strings, and gives as many bits
(include/uapi/linux/ethtool.h; Documentation/networking/tls-offload.rst has those of TLS).
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FEATURES", "Card", "read_cards"]

#: What a card may do of TLS, by the kernel's names.
FEATURES = {
    "tls-hw-tx-offload": "encrypts",
    "tls-hw-rx-offload": "decrypts",
    "tls-hw-record": "does all of TLS and TCP",
}

_SIOCETHTOOL = 0x8946
_GDRVINFO, _GSTRINGS, _GSSET_INFO, _GFEATURES = 0x03, 0x1B, 0x37, 0x3A
_ETH_SS_FEATURES = 4
_STRING = 32  # ETH_GSTRING_LEN
_DRVINFO = 196


@dataclass(frozen=True, slots=True)
class Card:
    """One interface.

    ``features`` has for each name of ``FEATURES`` that the kernel knows ``"on"``, ``"off"``, or
    ``"fixed"`` (off, and nothing can switch it on).  It is None where the kernel does not tell, and
    ``driver`` then too.
    """

    name: str
    driver: str | None
    features: dict[str, str] | None


def read_cards() -> tuple[Card, ...] | None:
    """The interfaces of this network namespace, None on a system that has no ethtool."""
    try:
        import fcntl  # noqa: PLC0415  (with the rest of what is Linux's)

        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except (ImportError, OSError):
        return None
    with sock:

        def ask(interface: str, request: array.array[int]) -> None:
            address, _ = request.buffer_info()
            # struct ifreq: 16 bytes of name, a union of 24 bytes that begins with a pointer.
            fcntl.ioctl(
                sock, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode()[:15], address)
            )

        names = [name for _, name in socket.if_nameindex()]
        return tuple(_card(name, ask) for name in names)


def _card(name: str, ask: Callable[[str, array.array[int]], None]) -> Card:
    driver = features = None
    # EOPNOTSUPP: it has no ethtool_ops.
    with contextlib.suppress(OSError):
        info = array.array("B", struct.pack(f"=I{_DRVINFO - 4}x", _GDRVINFO))
        ask(name, info)
        driver = _text(info.tobytes()[4:36])
    with contextlib.suppress(OSError):
        features = _features(name, ask)
    return Card(name, driver, features)


def _features(name: str, ask: Callable[[str, array.array[int]], None]) -> dict[str, str]:
    # struct ethtool_sset_info: cmd, reserved, sset_mask (u64), data[].
    sizes = array.array("B", struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _ETH_SS_FEATURES, 0))
    ask(name, sizes)
    count: int = struct.unpack_from("=I", sizes, 16)[0]
    strings = array.array(
        "B", struct.pack(f"=III{count * _STRING}x", _GSTRINGS, _ETH_SS_FEATURES, count)
    )
    ask(name, strings)
    names = strings.tobytes()[12:]
    # struct ethtool_gfeatures: cmd, size, and for each 32 features four words: available,
    # requested, active, never_changed.
    blocks = (count + 31) // 32
    bits = array.array("B", struct.pack(f"=II{blocks * 16}x", _GFEATURES, blocks))
    ask(name, bits)
    found = {}
    for number in range(count):
        feature = _text(names[number * _STRING : (number + 1) * _STRING])
        if feature in FEATURES:
            words = struct.unpack_from("=4I", bits, 8 + number // 32 * 16)
            available, _, active, never_changed = (word >> number % 32 & 1 for word in words)
            changeable = available and not never_changed
            found[feature] = "on" if active else "off" if changeable else "fixed"
    return found


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("ascii", "replace")
