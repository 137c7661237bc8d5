"""The lab's logic, without a boot: where kernels come from, their names, what errors say."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import boot, guest, keeper, kernels, sources, tools
from lab.__main__ import chosen_environment, parser
from lab.errors import LabError
from support.systems import linux_only

MAIN = "http://mirror.invalid/debian"
SECURITY = "http://mirror.invalid/debian-security"

ONE_LINE = f"""\
# deb http://old.invalid/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://docker.invalid/linux/debian bookworm stable
deb http://pgdg.invalid/pub/repos/apt bookworm-pgdg main
deb-src {MAIN} bookworm main
deb {SECURITY}/ bookworm-security main # security
deb\t[ signed-by=/k.gpg ]  {MAIN}/ bookworm main contrib
"""
DEB822 = f"""\
Types: deb
URIs: http://off.invalid/debian
Suites: trixie
Components: main
Enabled: no

Types: deb deb-src
# a comment in the middle
URIs:
 {MAIN}
Suites: trixie
 trixie-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: {SECURITY}
Suites: trixie-security
Components: main
"""


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PYKTLS_LAB_MIRROR", "PYKTLS_LAB_SECURITY_MIRROR", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYKTLS_LAB_CACHE", str(tmp_path / "cache"))


def etc_apt(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / "sources.list.d").mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", ONE_LINE),
        ("sources.list.d/x.list", ONE_LINE),
        ("sources.list.d/x.sources", DEB822),
    ],
)
def test_mirrors_come_from_the_machines_own_sources(tmp_path: Path, name: str, text: str) -> None:
    found = sources.find_mirrors(etc_apt(tmp_path, name, text))
    assert found == sources.Mirrors(MAIN, SECURITY)


def test_another_distribution_needs_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etc_apt(tmp_path, "sources.list", "deb http://ubuntu.invalid/ubuntu noble main\n")
    with pytest.raises(LabError, match="set PYKTLS_LAB_MIRROR"):
        sources.find_mirrors(tmp_path)
    monkeypatch.setenv("PYKTLS_LAB_MIRROR", MAIN + "/")
    assert sources.find_mirrors(tmp_path) == sources.Mirrors(MAIN, None)


def test_the_release_is_read_from_the_metapackage() -> None:
    depends = (
        "linux-base-amd64 (= 7.3.4-1), linux-image-7.3.4+deb13-amd64 (= 7.3.4-1), "
        "linux-modules-amd64 (= 7.3.4-1)"
    )
    assert kernels.image_dependency(depends) == "7.3.4+deb13-amd64"
    assert kernels.image_dependency("linux-image-6.1.0-56-amd64 (= 6.1.192-2)") == "6.1.0-56-amd64"
    with pytest.raises(LabError):
        kernels.image_dependency("kmod, initramfs-tools")


def test_the_newest_generic_kernel_of_a_series() -> None:
    releases = [
        "7.3.4+deb13-amd64",
        "7.3.12+deb13-amd64",
        "7.3.13+deb13-cloud-amd64",
        "7.3.13+deb13-rt-amd64",
        "7.3.13+deb13-amd64-unsigned",
        "7.3.13+deb13-amd64-dbg",
    ]
    assert kernels.newest_release(releases, "7.3") == "7.3.12+deb13-amd64"
    older = ["6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.117+deb13-amd64", "6.19.1+deb13-amd64"]
    assert kernels.newest_release(older, "6.1") == "6.1.0-56-amd64"
    assert kernels.newest_release([], "7.3") is None


def test_one_release_of_a_series() -> None:
    releases = [
        "6.12.107+deb13-amd64",
        "6.12.107+deb13.1-amd64",
        "6.12.107+deb13-cloud-amd64",
        "6.12.1070+deb13-amd64",
        "6.12.117+deb13-amd64",
    ]
    assert kernels.newest_release(releases, "6.12.107") == "6.12.107+deb13.1-amd64"
    assert kernels.newest_release(releases, "6.12.108") is None


def test_every_name_has_a_suite() -> None:
    assert {kernels.suite_of(name) for name in kernels.NAMES} == {
        "bullseye", "bookworm", "trixie", "trixie-backports",
    }  # fmt: skip
    assert kernels.suite_of("6.12.107") == kernels.suite_of("6.12") == "trixie"


def image(path: Path, release: str = "6.12.1-mine") -> Path:
    """The header of a bzImage, as far as the lab reads it."""
    content = bytearray(0x400)
    content[0x202:0x206] = b"HdrS"
    content[0x20E:0x210] = (0x100).to_bytes(2, "little")
    version = f"{release} (me@here) #1 SMP\0".encode()
    content[0x300 : 0x300 + len(version)] = version
    path.write_bytes(content)
    return path


def test_a_kernel_of_ones_own(tmp_path: Path) -> None:
    path = image(tmp_path / "bzImage")
    with kernels.obtain(str(path)) as kernel:
        assert kernel == kernels.Kernel("bzImage", "6.12.1-mine", path)
    (tmp_path / "text").write_text("not a kernel")
    with (
        pytest.raises(LabError, match="not an x86 kernel image"),
        kernels.obtain(str(tmp_path / "text")),
    ):
        pass
    with pytest.raises(LabError, match=r"6\.12-notls"), kernels.obtain("6.13"):
        pass


def fake_finish(root: Path, release: str, version: str) -> None:
    (root / "info.json").write_text(f'{{"release": "{release}", "package_version": "{version}"}}')


def fake_fetch(series: str, root: Path, _scratch: Path) -> None:
    (root / "boot").mkdir(parents=True)
    image(root / "boot" / f"vmlinuz-{series}.9")
    modules = root / "lib" / "modules" / f"{series}.9" / "kernel"
    modules.mkdir(parents=True)
    for name in ("tls.ko.xz", "tlsx.ko.xz"):
        (modules / name).touch()
    fake_finish(root, f"{series}.9", "1")


def test_the_cache_holds_whole_kernels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_series: str, root: Path, _scratch: Path) -> None:
        root.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt), kernels.obtain("6.12"):
        pass
    assert kernels.cached("6.12") is None

    monkeypatch.setattr(kernels, "_fetch", fake_fetch)
    with kernels.obtain("6.12") as kernel:
        assert kernel.release == "6.12.9"

    monkeypatch.setattr(kernels, "_fetch", interrupted)  # from now on: no fetch
    with kernels.obtain("6.12") as again:
        assert again == kernel
    assert {path.name for path in kernels.cache_root().joinpath("kernels").iterdir()} == {
        "6.12",
        "6.12.lock",
    }


def test_a_failed_fetch_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FETCH_PAUSE", 0)
    scratches = []

    def fails_once(series: str, root: Path, scratch: Path) -> None:
        scratches.append(scratch)
        if len(scratches) == 1:
            root.mkdir()
            raise LabError("the file is gone")
        fake_fetch(series, root, scratch)

    monkeypatch.setattr(kernels, "_fetch", fails_once)
    with kernels.obtain("6.12") as kernel:
        assert kernel.release == "6.12.9"
    assert len(set(scratches)) == 2

    def fails(_series: str, _root: Path, scratch: Path) -> None:
        scratches.append(scratch)
        raise LabError("no archive")

    monkeypatch.setattr(kernels, "_fetch", fails)
    with pytest.raises(LabError, match="no archive"), kernels.obtain("7.3"):
        pass
    assert len(set(scratches)) == 4
    assert kernels.cached("7.3") is None


def test_a_guest_that_does_not_come_up_is_booted_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "require_all", lambda: None)
    monkeypatch.setattr(kernels, "_fetch", fake_fetch)
    outcomes: list[boot.Result | boot.GuestError] = []

    def fake_boot(*_arguments: object, **_options: object) -> boot.Result:
        outcome = outcomes.pop(0)
        if isinstance(outcome, boot.GuestError):
            raise outcome
        return outcome

    monkeypatch.setattr(boot, "_boot", fake_boot)
    done = boot.Result(3, "6.12.9", 1, 1)
    outcomes[:] = [boot.BootError("did not boot"), done]
    assert boot.run("6.12", ["true"]) == 3
    failed = [boot.BootError("did not boot")] * (boot.BOOT_ATTEMPTS - 1)
    outcomes[:] = [*failed, boot.BootError("again"), done]
    with pytest.raises(boot.BootError, match="again"):
        boot.run("6.12", ["true"])
    # The command had begun: it is not run a second time.
    outcomes[:] = [boot.GuestError("died"), done]
    with pytest.raises(boot.GuestError, match="died"):
        boot.run("6.12", ["true"])


def test_notls_is_the_same_kernel_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_fetch", fake_fetch)
    monkeypatch.setattr(kernels, "_finish", fake_finish)
    with kernels.obtain("6.12-notls") as kernel, kernels.obtain("6.12") as base:
        assert kernel.release == base.release
        root, base_root = kernel.image.parent.parent, base.image.parent.parent
        assert {path.name for path in root.rglob("*.ko.xz")} == {"tlsx.ko.xz"}
        assert {path.name for path in base_root.rglob("*.ko.xz")} == {"tlsx.ko.xz", "tls.ko.xz"}


@pytest.mark.parametrize(("uid", "says"), [(0, "--install"), (1000, "sudo apt-get install")])
def test_missing_qemu_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, uid: int, says: str
) -> None:
    def find(program: str) -> str | None:
        return None if program == tools.QEMU else f"/usr/bin/{program}"

    monkeypatch.setattr(tools, "find", find)
    monkeypatch.setattr("os.geteuid", lambda: uid)
    with pytest.raises(LabError) as caught:
        tools.require_all()
    assert "apt-get install --no-install-recommends qemu-system-x86\n" in str(caught.value)
    assert says in str(caught.value)
    assert "virtme-ng" not in str(caught.value)  # that one is there


def test_a_busybox_that_needs_libraries_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    busybox = tmp_path / "busybox"
    monkeypatch.setattr(tools, "search_path", lambda: str(tmp_path))
    busybox.write_bytes(b"\x7fELF static")
    busybox.chmod(0o755)
    assert tools.find("busybox") == str(busybox)
    busybox.write_bytes(b"\x7fELF /lib64/ld-linux-x86-64.so.2")
    assert tools.find("busybox") is None


def test_the_command_gets_a_chosen_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYKTLS_STRICT", "1")
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("MINE", "yes")
    extra = chosen_environment(["MINE", "ABSENT", "SET=a=b", "EMPTY="])
    assert extra == {"MINE": "yes", "SET": "a=b", "EMPTY": ""}
    env = boot.command_environment("6.12", extra)
    assert env["PYKTLS_LAB"] == "6.12"
    assert env["PYKTLS_STRICT"] == "1"
    assert env["CI"] == "true"
    assert env["SET"] == "a=b"
    assert "TOKEN" not in env
    assert env["PATH"].startswith(str(Path(sys.prefix) / "bin"))


def test_the_command_line_keeps_its_dashes() -> None:
    options = parser().parse_args(
        ["run", "--kernel", "6.1", "--kernel", "7.3", "--", "pytest", "-q", "--timeout", "3"]
    )
    assert options.kernel == ["6.1", "7.3"]
    assert options.command == ["pytest", "-q", "--timeout", "3"]
    assert options.timeout is None


def frames(*parts: tuple[bytes, bytes]) -> bytes:
    return b"".join(guest.HEADER.pack(kind, len(data)) + data for kind, data in parts)


def test_output_and_status_survive_any_chunking() -> None:
    stream = frames(
        (guest.READY, b"6.12"), (guest.STDOUT, b"out"), (guest.STDERR, b"err"),
        (guest.STDOUT, b""), (guest.STDOUT, b" more"), (guest.EXIT, b"3"),
    )  # fmt: skip
    for size in (1, 3, 7, len(stream)):
        out, err = io.BytesIO(), io.BytesIO()
        session = boot._Session(out, err, None, None)
        for start in range(0, len(stream), size):
            assert session.status is None
            session._take(stream[start : start + size])
        assert (out.getvalue(), err.getvalue()) == (b"out more", b"err")
        assert (session.release, session.status) == ("6.12", 3)


def test_a_read_in_vain_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """poll(2) said that there is something, and there is nothing."""
    session = boot._Session(io.BytesIO(), io.BytesIO(), None, None)
    port, port_writer = os.pipe()
    console, console_writer = os.pipe()
    os.write(port_writer, frames((guest.EXIT, b"3")))
    read, vain = os.read, iter([True, True])

    def sometimes(fd: int, size: int) -> bytes:
        if next(vain, False):
            raise BlockingIOError
        return read(fd, size)

    monkeypatch.setattr(os, "read", sometimes)
    session._follow(port, console)
    assert session.status == 3
    for fd in (port, port_writer, console, console_writer):
        os.close(fd)


def test_a_failure_shows_the_end_of_the_console_as_plain_text() -> None:
    session = boot._Session(io.BytesIO(), io.BytesIO(), 5, None)
    session.console.write(b"\x1bc\x1b[31mKernel panic\x1b[0m - not sync")
    session.console.write(b"ing\r\n")
    assert "did not boot\n" in str(session._failure())
    assert type(session._failure()) is boot.BootError
    assert "\nKernel panic - not syncing\n" in str(session._failure())
    session._take(frames((guest.READY, b"6.12")))
    assert "died while the command ran" in str(session._failure())
    assert type(session._failure()) is boot.GuestError
    session.deadline = 0
    assert "longer than 5 s" in str(session._failure())


def test_the_kernels_own_complaints_are_counted() -> None:
    console = boot._Console(None)
    console.write(b"[    5.6] virtme-ng-init: WARNING: failed to run ip\n[    6.0] WARNING: CPU: 0")
    console.write(b" PID: 1 at net/tls/tls_sw.c:1\n[    6.1] BUG: kernel NULL pointer\n")
    assert console.complaints == 2


@linux_only  # the lab's host
def test_the_keeper_ends_everything_when_the_lifeline_closes(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # A shell with a child in the background: both must go.
    command = [
        sys.executable,
        keeper.__file__,
        "0",
        str(scratch),
        "sh",
        "-c",
        "sleep 99 & sleep 99",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert process.returncode is None
        process.stdin.close()
        # The pipe ends only when every process that inherited it is gone.
        assert process.stdout.read() == b""
        assert process.wait(10) == 0
    assert not scratch.exists()
