"""Where it was measured: kernel, processor, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import ssl
from pathlib import Path

import pyktls

from .ends import COUNTED

#: What decides how fast AES-GCM and X25519 are.
FLAGS = (
    *("aes", "vaes", "pclmulqdq", "vpclmulqdq", "avx", "avx2", "avx512f", "adx", "bmi2", "sha_ni"),
    *("asimd", "pmull", "sha2"),
)


def describe() -> dict[str, str]:
    counted = COUNTED in os.environ
    flags = cpu_flags()
    found = {
        "kernel": f"Linux {platform.release()}",
        "processor": f"{cpu_model()}, {os.cpu_count()} in use",
        "flags": " ".join(flag for flag in FLAGS if flag in flags),
        "without": " ".join(flag for flag in FLAGS[:10] if flag not in flags and "aes" in flags),
        "clock": "counts instructions" if counted else "time",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "OpenSSL": name_and_number(ssl.OPENSSL_VERSION),
        "pyktls": pyktls.__version__,
    }
    for package in ("aiofastnet",):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {name: value for name, value in found.items() if value}


def name_and_number(openssl: str) -> str:
    """Of what OpenSSL says of itself: not when it came out, and with which library it is."""
    return " ".join(openssl.split()[:2])


def cpu_flags() -> set[str]:
    return set(_cpu_info("flags").split() or _cpu_info("Features").split())


def cpu_model() -> str:
    return _cpu_info("model name") or platform.machine()


def _cpu_info(wanted: str) -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == wanted:
            return value.strip()
    return ""
