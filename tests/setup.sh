#!/bin/sh
# Makes .venv with pyktls built and installed in it, and gets what that needs.
#
#   tests/setup.sh [EXTRA,...]      extras of pyproject.toml; default: lab
#
# With `lint` among them also what checks the C files: clang, clang-tidy, cppcheck, valgrind.  The
# word `c` instead of extras is for these alone, the word `pythons` for debootstrap, `wheels` for that
# and an emulator; they make no virtual environment.
#
# On Debian and Ubuntu missing system packages are installed with apt-get, as root or through sudo.
# Where nothing is missing, nothing is installed and root is not needed.  PYTHON names the
# interpreter to use (3.11 or later), PYKTLS_VENV another place for the virtual environment.
set -eu
cd "$(dirname "$0")/.."
extras=${1:-lab}
python=${PYTHON:-python3}
venv=${PYKTLS_VENV:-.venv}

missing=""
need() { # PACKAGE COMMAND...: the package is missing if the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
own_kernel_has_tls() {
    # The module may be there and not loaded: root can load it.
    [ -e /proc/net/tls_stat ] || { [ "$(id -u)" = 0 ] && modprobe tls; }
}

if ! command -v "$python" >/dev/null; then
    missing="python3 python3-dev python3-venv"
else
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "pyktls needs Python 3.11 or later; $python is $("$python" -V 2>&1). Set PYTHON." >&2
        exit 1
    }
    need python3-venv "$python" -c 'import ensurepip, venv'
    need python3-dev "$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
fi
need gcc command -v gcc
need libc6-dev test -e /usr/include/stdio.h
need openssl command -v openssl
if [ "$extras" != docs ] && ! own_kernel_has_tls 2>/dev/null; then
    need qemu-system-x86 command -v qemu-system-x86_64
    need kmod sh -c 'PATH=$PATH:/usr/sbin:/sbin command -v depmod'
    need busybox-static command -v busybox
    need file command -v file
fi
# The peers of tests/interop.
case ",$extras," in *,test,*)
    need curl command -v curl
    need gnutls-bin command -v gnutls-cli
    need nginx sh -c 'PATH=$PATH:/usr/sbin:/sbin command -v nginx'
    ;;
esac
case ",$extras," in *,lint,* | ,c,)
    need clang command -v clang
    need libclang-rt-dev sh -c \
        'echo "int main(void){}" | clang -fsanitize=address,undefined -x c -o /dev/null -'
    need clang-tidy command -v clang-tidy
    need cppcheck command -v cppcheck
    need valgrind command -v valgrind
    ;;
esac

case $extras in pythons | wheels)
    need debootstrap sh -c 'PATH=$PATH:/usr/sbin:/sbin command -v debootstrap'
    ;;
esac
if [ "$extras" = wheels ]; then
    need qemu-user-static command -v qemu-aarch64-static
fi

if [ -n "$missing" ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! command -v sudo >/dev/null; }; then
        echo "missing, and not to be installed from here (Debian's package names):$missing" >&2
        exit 1
    fi
    echo "installing:$missing"
    $sudo apt-get -q -o DPkg::Lock::Timeout=600 update
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 \
        install --no-install-recommends $missing
    case $missing in *nginx*)
        # The tests start their own; nobody asked for a web server that runs.
        [ ! -d /run/systemd/system ] || $sudo systemctl --quiet disable --now nginx
        ;;
    esac
fi

case $extras in c | pythons | wheels) exit 0 ;; esac
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -e ".[$extras]"
