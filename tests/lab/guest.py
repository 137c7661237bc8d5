"""Runs inside the guest, as root: prepare the machine, run the command, report to the host.

How this works. virtme-ng's init starts this file with the path of a JSON file, the job. A freshly
booted guest has no udev, so the modules are loaded by hand here; without `aesni_intel` and
`ghash_clmulni_intel` the kernel would encrypt with tables, ten times slower. The command's output
goes to the host through a virtio port, in frames: one byte that says what it is, four bytes of
length, the content. One channel keeps everything in order, and the exit status comes last, so the
host knows it has all the output once it has the status.

The file is also imported by the host's side (boot.py) for the frame format. Standard library only.
"""

import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

PORT = "pyktls.lab"
FILES = "pyktls.files"
HEADER = struct.Struct(">cI")
READY = b"R"  # the guest is up; content: kernel release
STDOUT = b"O"
STDERR = b"E"
EXIT = b"X"  # content: the exit status, in decimal

# After the command has ended, background processes may still hold its output open.
# Wait this long for more from them, then finish.
LINGER = 0.5

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def open_port() -> int:
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == PORT:
            return os.open(f"/dev/{entry.name}", os.O_WRONLY)
    raise SystemExit("lab: the port to the host is missing")


def send(port: int, kind: bytes, content: bytes = b"") -> None:
    data = memoryview(HEADER.pack(kind, len(content)) + content)
    while data:
        data = data[os.write(port, data) :]


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def mount_cached(paths: list[str]) -> None:
    """Put a cache under directories that do not change; without it every read asks the host."""
    files = "/run/pyktls-files"
    Path(files).mkdir()
    options = "ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose"
    subprocess.run(["mount", "-t", "9p", "-o", options, FILES, files], check=True)
    for path in paths:
        subprocess.run(["mount", "--bind", files + path, path], check=True)


def prepare(job: dict[str, Any]) -> None:
    loopback_up()
    for path in job["tmpfs"]:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", path], check=True)
    mount_cached(job["cached"])
    # -q: a module that this kernel does not have is no error; the command will find out.
    subprocess.run(["modprobe", "-q", "-a", *job["modules"]], check=False)


def run_command(port: int, job: dict[str, Any]) -> int:
    argv: list[str] = job["command"]
    try:
        process = subprocess.Popen(
            argv,
            cwd=job["cwd"],
            env=job["env"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        send(port, STDERR, f"lab: cannot run {argv[0]}: {error.strerror}\n".encode())
        return 127 if isinstance(error, FileNotFoundError) else 126
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {process.stdout.fileno(): STDOUT, process.stderr.fileno(): STDERR}
    ended = os.pidfd_open(process.pid)
    running = True
    while pipes:
        watched = [*pipes, ended] if running else [*pipes]
        ready = select.select(watched, [], [], None if running else LINGER)[0]
        if not ready:
            break
        for fd in ready:
            if fd == ended:
                running = False
            elif content := os.read(fd, 65536):
                send(port, pipes[fd], content)
            else:
                del pipes[fd]
    status = process.wait()
    return status if status >= 0 else 128 - status  # as a shell says it: 128 + signal


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    # Our own programs (mount, modprobe) need no more than this; the command gets what the job says.
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    port = open_port()
    prepare(job)
    send(port, READY, os.uname().release.encode())
    status = run_command(port, job)
    os.sync()
    send(port, EXIT, str(status).encode())


if __name__ == "__main__":
    main()
