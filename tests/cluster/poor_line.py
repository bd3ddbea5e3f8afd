"""A line between two network interfaces that is late and loses packets: a relay in this process.

Packets are read and sent as the kernel has them, larger than a frame and without a checksum where the sender leaves both to
its card: the header that a virtual machine's card would get (`virtio_net_hdr`) goes with each of them.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

_PACKET, _VNET_HEADER, _IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h, which Python does not name
_RCVBUFFORCE = 33
_EVERYTHING = 3  # ETH_P_ALL
_LARGEST = 1 << 17


@contextlib.contextmanager
def relayed(
    within: Callable[[Callable[[], socket.socket]], socket.socket], one: str, other: str, *, delay_s: float, lost_share: float
) -> Iterator[None]:  # fmt: skip
    """Meanwhile what arrives at one of two interfaces leaves by the other. `within` makes a socket where they are."""
    with within(lambda: _opened(one)) as near, within(lambda: _opened(other)) as far:
        ended = threading.Event()
        thread = threading.Thread(target=_carry, args=(near, far, delay_s, lost_share, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _opened(interface: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(_PACKET, _VNET_HEADER, 1)
    opened.setsockopt(_PACKET, _IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 24)
    opened.bind((interface, _EVERYTHING))
    opened.setblocking(False)
    return opened


def _carry(near: socket.socket, far: socket.socket, delay_s: float, lost_share: float, ended: threading.Event) -> None:
    chance = random.Random(42)
    behind = {near: far, far: near}
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()
    while not ended.is_set():
        until_due = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
        for source in select.select([near, far], [], [], min(until_due, 0.1))[0]:
            with contextlib.suppress(OSError):
                packet = source.recv(_LARGEST)
                if chance.random() >= lost_share:
                    waiting.append((time.monotonic() + delay_s, behind[source], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, sink, packet = waiting.popleft()
            with contextlib.suppress(OSError):  # a card that is gone or full loses what it is given
                sink.send(packet)
