"""pyktls.probe on a kernel without TLS: what it says, and what it asks the second time."""

from __future__ import annotations

import errno
import gzip
import os
import pathlib
import subprocess
import time

import pytest

import pyktls
from pyktls import Cause, Direction, linux
from pyktls.ciphers import AEADS, TLS_1_2, TLS_1_3
from support.probing import FILTER, check_every_no, in_child, in_fork


def config_tls():
    """CONFIG_TLS as grep would find it; None if nothing tells."""
    for path, opener in (
        ("/proc/config.gz", gzip.open),
        (f"/boot/config-{os.uname().release}", open),
    ):
        try:
            with opener(path, "rt") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        return next((line[-1] for line in lines if line.startswith("CONFIG_TLS=")), "n")
    return None


def module_file():
    done = subprocess.run(["modinfo", "-n", "tls"], capture_output=True, text=True, check=False)
    path = pathlib.Path(done.stdout.strip())
    return path if done.returncode == 0 and path.is_file() else None


@pytest.fixture(scope="module")
def found():
    return pyktls.probe(refresh=True)


def test_there_is_none(found):
    assert not found
    assert not found.tls
    assert found.tls.errno == errno.ENOENT
    assert found.system == "Linux"
    assert found.release == os.uname().release


def test_why(found):
    config = config_tls()
    assert module_file() is None, "this machine has the module after all"
    assert found.module.config == config
    if config == "n":
        assert found.tls.code is Cause.NOT_BUILT
        assert found.module.state == "not-built"
        assert found.tls.remedy == "another kernel: this one is built without CONFIG_TLS"
    elif config == "m":
        assert found.tls.code is Cause.NO_MODULE
        assert found.module.state == "missing"
        assert "linux-modules-extra" in found.tls.remedy
    else:
        assert found.tls.code is Cause.NO_MODULE
        assert found.module.state == "unknown"
        assert found.tls.remedy == linux.ulp.NO_TLS_REMEDY
    assert found.module.path is None


def test_every_no_says_why_and_what_would_help(found):
    check_every_no(found.as_dict())


def test_everything_that_stands_on_it_says_the_same(found):
    for aead in AEADS:
        for version in (TLS_1_2, TLS_1_3):
            assert not found.supports(version, aead)
            for direction in Direction:
                answer = found.answer(version, aead, direction)
                if aead.linux is None:
                    assert answer.code is Cause.NOT_IN_SYSTEM
                else:
                    assert answer == found.tls
    for part in (found.rekey, found.options, found.features):
        assert set(part.values()) == {found.tls}


def test_it_is_asked_again_and_that_is_cheap(found):
    begin = time.monotonic()
    for _ in range(10):
        assert pyktls.probe() is found
    each = (time.monotonic() - begin) / 10
    print(f"no TLS, asked again: {each * 1e6:.0f} us; the first time: {found.seconds * 1e3:.1f} ms")
    # As root the kernel starts modprobe(8) each time, if it has modules.
    assert each < 5


def test_the_errors_of_the_others_are_as_before():
    assert linux.system.cipher_refusal(TLS_1_3, AEADS[0]) is None
    near, far = pyktls.socket_calls.loopback_pair()
    with near, far, pytest.raises(pyktls.Unavailable) as caught:
        linux.system.attach(near.fileno())
    assert caught.value.remedy == linux.ulp.NO_TLS_REMEDY


def test_without_privileges():
    child = in_child(prefix=("setpriv", "--bounding-set=-net_admin"))
    assert not child.tls["yes"]
    assert child.support["privileges"]["net_admin"] is False
    assert child.support["module"]["autoload"]["code"] in ("privilege", "not-built")
    assert child.same


def test_in_a_user_namespace():
    child = in_child(prefix=("unshare", "--user", "--map-root-user"))
    assert not child.tls["yes"]
    assert child.support["privileges"]["net_admin"] is True
    assert child.support["privileges"]["initial_user_namespace"] is False
    assert child.support["module"]["autoload"]["code"] in ("privilege", "not-built")
    if child.code == "no-module":
        assert child.tls["remedy"].startswith("on the host, outside of the container")


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["setsockopt", "getsockopt", "socket"])
def test_under_a_filter(call, number):
    """What is forbidden is said to be forbidden, not to be absent."""
    other = in_fork(FILTER.format(call, number, None))
    assert (other.code, other.tls["errno"]) == ("blocked", number)
    assert "seccomp" in other.tls["remedy"]


def test_without_proc():
    mount = 'mount -t tmpfs none /proc && exec "$@"'
    other = in_child(prefix=("unshare", "--mount", "sh", "-c", mount, "sh"))
    assert (other.code, other.support["module"]["state"]) == ("no-module", "unknown")
    assert other.support["module"]["autoload"]["remedy"] == (
        "have /proc mounted where this process runs"
    )


def test_unprivileged():
    other = in_child(prefix=("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"))
    assert not other.tls["yes"]
    assert other.support["module"]["autoload"]["code"] in ("privilege", "not-built")


def test_as_text(found):
    text = str(found)
    assert text.startswith(f"Linux {os.uname().release}: no kernel TLS\n")
    assert "-> " in text
