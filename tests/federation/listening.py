"""Sockets at which a process and all that it has started listen, as Linux tells."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

LISTENS = "0A"


def listening(root: int) -> Iterator[tuple[int, str, str, int]]:
    """Yield the number and the name of each process that listens, the address and the port."""
    owners = {inode: pid for pid in _tree(root) for inode in _sockets(pid)}
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if inode in owners and (state == LISTENS or kind.startswith("udp")):
                host, port = local.split(":")
                yield owners[inode], _stat(owners[inode])[0], _address(host), int(port, 16)


def _tree(root: int) -> set[int]:
    parents = {int(path.name): _stat(int(path.name))[1] for path in Path("/proc").glob("[0-9]*")}
    found: set[int] = set()
    new = {root}
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new} - found
    return found


def _stat(pid: int) -> tuple[str, int]:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:  # it has ended
        return "", 0
    return name, int(rest.split()[1])


def _sockets(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):  # it is closed already
            kind, _, inode = str(path.readlink()).partition(":")
            if kind == "socket":
                yield inode.strip("[]")


def _address(text: str) -> str:
    words = [bytes.fromhex(text[k : k + 8])[::-1] for k in range(0, len(text), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    found = ip_address(socket.inet_ntop(family, b"".join(words)))
    return str(getattr(found, "ipv4_mapped", None) or found)
