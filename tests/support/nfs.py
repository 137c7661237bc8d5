"""The kernel's NFS server and client in a guest of the lab, and the daemons for their handshakes.

``Server`` exports directories that are in memory; ``mount`` is mount(2) itself, in a child that can
be killed; ``Daemon`` is ours and ``Tlshd`` Debian's.  All of them can be put into a network
namespace of their own (``Net``), which is another machine to the kernel's upcall.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pyktls

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
NFSD = pathlib.Path("/proc/fs/nfsd")
PORT = 2049
# Seconds: the emulated machine is slow, and CI's is slower.
PATIENCE = 180.0
CLONE_NEWNET = 0x40000000
MNT_DETACH, MNT_FORCE = 2, 1

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def run(*command: str | os.PathLike[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def wait_for(what: Any, patience: float = PATIENCE) -> Any:
    """Wait until ``what()`` is true, and return that."""
    end = time.monotonic() + patience
    while not (found := what()):
        assert time.monotonic() < end, f"in vain for {patience} s: {what}"
        time.sleep(0.05)
    return found


# ---- network namespaces --------------------------------------------------------------------------


class Net:
    """A network namespace; the one that everything starts in is ``Net()``."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY) if fd is None else fd

    @classmethod
    def new(cls) -> Self:
        """Another one, with its loopback up."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            call("unshare", CLONE_NEWNET)
            made = cls()
            run("ip", "link", "set", "lo", "up")
        finally:
            call("setns", before, CLONE_NEWNET)
            os.close(before)
        return made

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts, is in it meanwhile."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            call("setns", self._fd, CLONE_NEWNET)
            yield
        finally:
            call("setns", before, CLONE_NEWNET)
            os.close(before)

    def join(self, other: Net, here: str, there: str) -> None:
        """A cable between the two, with an address at each end."""
        names = f"veth{self._fd}", f"veth{other._fd}"
        with self.entered():
            run("ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1])
            path = f"/proc/{os.getpid()}/fd/{other._fd}"
            run("ip", "link", "set", names[1], "netns", path)
            run("ip", "address", "add", f"{here}/24", "dev", names[0])
            run("ip", "link", "set", names[0], "up")
        with other.entered():
            run("ip", "address", "add", f"{there}/24", "dev", names[1])
            run("ip", "link", "set", names[1], "up")

    def close(self) -> None:
        os.close(self._fd)


# ---- processes -----------------------------------------------------------------------------------


class Process:
    """A program that goes on until it is told to end; what it says is kept."""

    def __init__(self, command: list[str], place: pathlib.Path, name: str, **env: str) -> None:
        self.name = name
        self.log = place / f"{name}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **env},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def lines(self, word: str) -> list[str]:
        return [line for line in self.said().splitlines() if word in line]

    def wait_for_line(self, word: str, count: int = 1) -> list[str]:
        def there() -> list[str]:
            found = self.lines(word)
            assert self.process.poll() is None, f"{self.name} has ended: {self.said()}"
            return found if len(found) >= count else []

        found: list[str] = wait_for(there)
        return found

    def status(self) -> str:
        return pathlib.Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")

    def open_files(self) -> int:
        return len(list(pathlib.Path(f"/proc/{self.pid}/fd").iterdir()))

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """SIGTERM, and its exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Daemon(Process):
    """Ours, with a configuration made of ``sides``: dictionaries for [client] and [server]."""

    def __init__(
        self, place: pathlib.Path, name: str = "nfs_tls", *options: str, **sides: dict[str, Any]
    ) -> None:
        self.config = place / f"{name}.toml"
        self.configure(**sides)
        command = [sys.executable, "-W", "error", "-m", "nfs_tls", "--config", str(self.config)]
        super().__init__([*command, *options], place, name, PYTHONPATH=str(ROOT / "examples"))
        self.wait_for_line("ready")

    def configure(self, **sides: dict[str, Any]) -> None:
        self.config.write_text(toml(sides))

    def reload(self, **sides: dict[str, Any]) -> None:
        self.configure(**sides)
        before = len(self.lines("reload"))
        self.signal(signal.SIGHUP)
        self.wait_for_line("reload", before + 1)


@contextlib.contextmanager
def running(
    place: pathlib.Path, name: str = "nfs_tls", *options: str, **sides: dict[str, Any]
) -> Iterator[Daemon]:
    """A daemon of ours, as ``watched``."""
    made = Daemon(place, name, *options, **sides)
    with watched(made):
        yield made


@contextlib.contextmanager
def watched(process: Process) -> Iterator[None]:
    """When the block is over nothing is left behind the daemon, and it ends well."""
    try:
        process.wait_for_line("ready")
        idle = process.open_files()
        yield
        nothing_left(process, idle)
    finally:
        print(process.said())
        assert process.end() == 0


def nothing_left(process: Process, idle: int) -> None:
    """Wait until the daemon has as many descriptors as before, and no socket kernel TLS."""
    wait_for(lambda: process.open_files() == idle)
    wait_for(lambda: kernel_tls() == (0, 0))


def kernel_tls() -> tuple[int, int]:
    """How many sockets of this network namespace send, and receive, by kernel TLS."""
    found = pyktls.linux.tls_stat()
    return found.curr_tx_sw, found.curr_rx_sw


def toml(tables: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        for option, value in table.items():
            if isinstance(value, bool):
                lines.append(f"{option} = {str(value).lower()}")
            elif isinstance(value, list | int | float):
                lines.append(f"{option} = {value!r}")
            else:
                lines.append(f'{option} = "{value}"')
    return "\n".join(lines) + "\n"


class Tlshd(Process):
    """Debian's, with a configuration of the same dictionaries."""

    def __init__(
        self, programs: Any, place: pathlib.Path, name: str = "tlshd", **sides: dict[str, Any]
    ) -> None:
        config = place / f"{name}.conf"
        lines = ["[debug]", "loglevel=1", "tls=0", "nl=0", "[authenticate]", "keyrings=.nfs"]
        for side, table in sides.items():
            lines.append(f"[authenticate.{side}]")
            given = {"x509.truststore": "ca", "x509.certificate": "certificate",
                     "x509.private_key": "key"}  # fmt: skip
            lines += [f"{word}={table[key]}" for word, key in given.items() if key in table]
        config.write_text("\n".join(lines) + "\n")
        command = programs.command("usr/sbin/tlshd", "-s", "-c", str(config))
        super().__init__(command, place, name)
        self.wait_for_line("Built from ktls-utils")


# ---- the server ----------------------------------------------------------------------------------


class Server:
    """nfsd in the present network namespace, with rpc.mountd and nfsdcld of Debian beside it."""

    def __init__(self, programs: Any, place: pathlib.Path, threads: int = 8) -> None:
        self.programs = programs
        self.place = place
        self.export_root = place / "export"
        self.running: list[Process] = []
        self._prepare_files()
        for kind, path in (("nfsd", NFSD), ("rpc_pipefs", pathlib.Path("/run/rpc_pipefs"))):
            path.mkdir(exist_ok=True)
            call("mount", kind.encode(), os.fsencode(path), kind.encode(), 0, None)
        self.export_root.mkdir()
        call("mount", b"tmpfs", os.fsencode(self.export_root), b"tmpfs", 0, b"size=700m")
        for name, *arguments in (("nfsdcld", "-F", "-p", "/run/rpc_pipefs"),
                                 ("rpc.mountd", "-F", "-N", "3")):  # fmt: skip
            command = programs.command(f"usr/sbin/{name}", *arguments)
            self.running.append(Process(command, place, name))
        for name in ("nfsv4leasetime", "nfsv4gracetime"):
            (NFSD / name).write_text("10\n")
        (NFSD / "versions").write_text("-3 +4 +4.1 +4.2\n")
        with socket.create_server(("", PORT)) as listener:
            (NFSD / "portlist").write_text(f"{listener.fileno()}\n")
        (NFSD / "threads").write_text(f"{threads}\n")
        # Nobody has anything to reclaim: where nfsdcld knows of no client that has ended already.
        with contextlib.suppress(OSError):
            (NFSD / "v4_end_grace").write_text("Y\n")
        wait_for(lambda: (NFSD / "v4_end_grace").read_text().strip() == "Y")

    def _prepare_files(self) -> None:
        """What programs of nfs-utils want of a system; the guest's /etc and /var are its own."""
        for path in ("nfs", "nfs/nfsdcld", "nfs/sm", "nfs/rpc_pipefs"):
            pathlib.Path("/var/lib", path).mkdir(exist_ok=True, parents=True)
        for name in ("etab", "rmtab"):
            pathlib.Path("/var/lib/nfs", name).touch()
        etc = pathlib.Path("/etc")
        (etc / "exports").write_text("")
        for name in ("netconfig", "services", "protocols", "nfs.conf"):
            if not (etc / name).exists() and (self.programs.root / "etc" / name).exists():
                (etc / name).write_bytes((self.programs.root / "etc" / name).read_bytes())

    def export(self, xprtsec: str) -> None:
        """Export the root of version 4 to everybody, for those kinds of transport alone."""
        options = f"rw,fsid=0,no_root_squash,insecure,no_subtree_check,xprtsec={xprtsec}"
        run(*self.programs.command("usr/sbin/exportfs", "-ua"))
        run(*self.programs.command("usr/sbin/exportfs", "-o", options, f"*:{self.export_root}"))
        run(*self.programs.command("usr/sbin/exportfs", "-f"))

    def close(self) -> None:
        (NFSD / "threads").write_text("0\n")
        run(*self.programs.command("usr/sbin/exportfs", "-ua"))
        run(*self.programs.command("usr/sbin/exportfs", "-f"))
        for process in self.running:
            process.end()
        for path in (self.export_root, NFSD, "/run/rpc_pipefs"):
            call("umount2", os.fsencode(path), MNT_DETACH)


# ---- the client ----------------------------------------------------------------------------------


@dataclass
class Mounting:
    """mount(2) in a child of its own, that may take long."""

    target: pathlib.Path
    pid: int

    def wait(self, patience: float = PATIENCE) -> int:
        """Its errno, 0 if it is mounted.  The child is killed if it takes longer: ETIME."""
        fd = os.pidfd_open(self.pid)
        try:
            late = not select.select([fd], [], [], patience)[0]
            if late:
                os.kill(self.pid, signal.SIGKILL)
        finally:
            os.close(fd)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return errno.ETIME if late else status


def begin_mount(
    target: pathlib.Path, xprtsec: str, host: str = "localhost", *, address: str = "127.0.0.1",
    options: str = "", own: str = "127.0.0.1",
) -> Mounting:  # fmt: skip
    target.mkdir(exist_ok=True)
    data = f"addr={address},clientaddr={own},vers=4.2,proto=tcp,xprtsec={xprtsec}"
    data += f",{options}" if options else ",soft,timeo=50,retrans=1"
    arguments = [f"{host}:/".encode(), os.fsencode(target), b"nfs4", 0, data.encode()]
    pid = os.fork()
    if pid == 0:
        code = errno.EIO
        try:
            code = ctypes.get_errno() if _libc.mount(*arguments) else 0
        finally:
            os._exit(code)
    return Mounting(target, pid)


def mount(target: pathlib.Path, xprtsec: str, *arguments: Any, **more: Any) -> int:
    return begin_mount(target, xprtsec, *arguments, **more).wait()


def umount(target: pathlib.Path) -> None:
    call("umount2", os.fsencode(target), 0)


@contextlib.contextmanager
def mounted(target: pathlib.Path, xprtsec: str, *arguments: Any, **more: Any) -> Iterator[None]:
    found = mount(target, xprtsec, *arguments, **more)
    assert found == 0, os.strerror(found)
    try:
        yield
    finally:
        umount(target)


class StallingOnce:
    """A server in front of nfsd: it agrees on TLS and says no more, to its first client.

    The connections that come after it go to nfsd, ``port`` is where this one listens.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            first = self._accept()
            with contextlib.suppress(OSError):
                agree_on_tls(first)
            while True:
                near = self._accept()
                far = socket.create_connection(("127.0.0.1", PORT))
                self._open.append(far)
                for pair in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._relay, args=pair))
                    self._threads[-1].start()

    def _accept(self) -> socket.socket:
        sock = self._listener.accept()[0]
        self._open.append(sock)
        return sock

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._open):
            sock.close()


# ---- what goes over the wire ---------------------------------------------------------------------


class Capture:
    """Everything that passes an interface while the block runs, as packets(7) tells it."""

    def __init__(self, interface: str = "lo") -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._sock.bind((interface, 3))
        self._sock.settimeout(0.2)
        self.packets: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._ending = False

    def _read(self) -> None:
        while True:
            try:
                packet, (_, _, kind, *_) = self._sock.recvfrom(1 << 17)
            except TimeoutError:
                if self._ending:
                    return
                continue
            if kind != socket.PACKET_OUTGOING:  # on loopback each one is seen twice
                self.packets.append(packet)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join()
        self._sock.close()

    def streams(self, *, to_server: bool) -> list[bytes]:
        """What was sent over each connection in that direction, in order."""
        connections: dict[int, dict[int, bytes]] = {}
        firsts: dict[int, int] = {}
        for packet in self.packets:
            if packet[12:14] != b"\x08\x00" or packet[23] != socket.IPPROTO_TCP:
                continue
            ip = packet[14:]
            total = struct.unpack_from("!H", ip, 2)[0]  # 0 in a packet that is larger than 64 KiB
            tcp = ip[(ip[0] & 15) * 4 : total or None]
            source, to, sequence = struct.unpack_from("!HHI", tcp)
            if (to if to_server else source) != PORT:
                continue
            client = source if to_server else to
            if tcp[13] & 2:  # SYN
                assert client not in firsts, "a port was used twice"
                firsts[client] = sequence + 1 & 0xFFFFFFFF
                connections[client] = {}
                continue
            data = tcp[(tcp[12] >> 4) * 4 :]
            if data:
                parts = connections[client]
                offset = sequence - firsts[client] & 0xFFFFFFFF
                parts[offset] = max(parts.get(offset, b""), data, key=len)
        return [_joined(parts) for parts in connections.values()]


def _joined(parts: dict[int, bytes]) -> bytes:
    whole = bytearray()
    for offset, data in sorted(parts.items()):
        assert offset <= len(whole), f"a gap at {len(whole)}: the capture lost packets"
        if offset + len(data) > len(whole):
            whole[offset:] = data
    return bytes(whole)


def records(stream: bytes) -> list[tuple[int, int]]:
    """Type and length of each TLS record behind the call (or reply) that agrees on TLS."""
    (mark,) = struct.unpack_from("!I", stream)
    assert mark >> 31, "RPC's record mark is expected: RFC 5531 section 11"
    place = 4 + (mark & 0x7FFFFFFF)
    found = []
    while place < len(stream):
        kind, version, length = struct.unpack_from("!BHH", stream, place)
        assert version in {0x0301, 0x0303}, f"no TLS record at {place}: {stream[place:][:8].hex()}"
        found.append((kind, length))
        place += 5 + length
    assert place == len(stream), "the last record is not whole"
    return found


# ---- a client of RPC by hand -----------------------------------------------------------------


def rpc_call(xid: int, flavor: int = 0) -> bytes:
    """A call of NFS version 4's NULL procedure (RFC 5531); flavor 7 is AUTH_TLS (RFC 9289)."""
    body = struct.pack("!6I", xid, 0, 2, 100003, 4, 0)
    body += struct.pack("!4I", flavor, 0, 0, 0)
    return struct.pack("!I", 0x80000000 | len(body)) + body


def starttls(sock: socket.socket, xid: int = 1) -> bytes:
    """Ask the server for TLS (RFC 9289 section 4.1); the verifier of its answer."""
    sock.sendall(rpc_call(xid, flavor=7))
    reply = receive_reply(sock)
    _, _, _, _, length = struct.unpack_from("!5I", reply)
    return reply[20 : 20 + length]


def agree_on_tls(sock: socket.socket) -> None:
    """A server's answer to ``starttls``."""
    xid = receive_reply(sock)[:4]
    body = xid + struct.pack("!4I", 1, 0, 0, 8) + b"STARTTLS" + struct.pack("!I", 0)
    sock.sendall(struct.pack("!I", 0x80000000 | len(body)) + body)


def receive_reply(sock: socket.socket) -> bytes:
    head = receive(sock, 4)
    return receive(sock, struct.unpack("!I", head)[0] & 0x7FFFFFFF)


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionResetError(f"the end after {len(data)} of {count} bytes")
        data += part
    return data
