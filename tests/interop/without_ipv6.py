"""Run a command as on a kernel booted with ipv6.disable=1: a seccomp filter refuses every IPv6 socket."""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

# include/uapi/linux/{prctl,seccomp,bpf_common}.h
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER, FIRST_ARGUMENT = 0, 16  # offsets in struct seccomp_data, little endian
SOCKET_CALL = {"x86_64": 41, "aarch64": 198}[platform.machine()]

PROGRAM = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (LOAD_WORD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 3, SOCKET_CALL),
        (LOAD_WORD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 0, 1, socket.AF_INET6),
        (RETURN, 0, 0, ERRNO | errno.EAFNOSUPPORT),
        (RETURN, 0, 0, ALLOW),
    )
)


class Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


if __name__ == "__main__":
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert (
        libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(PROGRAM) // 8, PROGRAM)), 0, 0) == 0
    )
    os.execvp(sys.argv[1], sys.argv[1:])
