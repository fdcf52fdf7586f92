"""File systems that can lose power, ext4 and xfs, on loop devices.

`Shut` is shut down through its own ioctl: what its log or its cache still holds does not reach the image. `Volatile`
stands on a disk with a write cache of its own (see `device`), which is cut: of what was not flushed, any sector may be
there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from kimberlite.crypto.master import create_master
from kimberlite.log.options import MIB
from tests.crash.device import Device, mount, unmount

#: FS_IOC_SHUTDOWN of ext4 and XFS_IOC_GOINGDOWN, and how: all flushed first, only the log flushed, nothing.
SHUTDOWN: Final = 0x8004587D
FLUSH, LOG_FLUSH, NO_FLUSH = 0, 1, 2
MAKE: Final = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
#: What a disk writes as a whole. XFS takes a block whose first sector is new for a new one, and does not replay it.
SECTOR: Final = {"ext4": 512, "xfs": 4096}
#: XFS refuses less.
IMAGE_BYTES: Final = 320 * MIB
LOOP_CONTROL: Final = "/dev/loop-control"
LOOP_CONFIGURE, LOOP_GET_FREE = 0x4C0A, 0x4C82
#: It goes with its last user; and it writes past the page cache of the file that it stands on.
AUTOCLEAR, DIRECT = 4, 16
#: unshare(2) and mount(2).
NEW_NAMESPACE, RECURSIVE, PRIVATE = 0x20000, 1 << 14, 1 << 18
#: Seconds in which the writes of a killed process must have landed.
PATIENCE: Final = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


def lacking(*more: str) -> str | None:
    """Why there can be no power cuts here; `more` are devices that are needed too."""
    if os.geteuid() != 0:
        return "not root"
    missing = [device for device in (LOOP_CONTROL, *more) if not Path(device).exists()]
    missing += [make[0] for make in MAKE.values() if shutil.which(make[0]) is None]
    if missing:
        return f"no {' and no '.join(missing)}"
    with tempfile.TemporaryDirectory() as place:
        try:
            mount("powercut", Path(place), "tmpfs", 0, "size=64k")
        except OSError as problem:
            return f"mount is refused: {problem.strerror}"
        unmount(Path(place))
    return None


def isolate() -> None:
    """What this process mounts from now on is seen by nobody else, and goes with it and its children."""
    if _libc.unshare(NEW_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", Path("/"), "none", RECURSIVE | PRIVATE, "")


@contextlib.contextmanager
def loop(image: Path, flags: int) -> Iterator[str]:
    """A loop device on an image, which goes when nobody has it open or mounted any more."""
    control, file = os.open(LOOP_CONTROL, os.O_RDWR), os.open(image, os.O_RDWR)
    try:
        while True:
            name = f"/dev/loop{fcntl.ioctl(control, LOOP_GET_FREE)}"
            device = os.open(name, os.O_RDWR)
            # struct loop_config: descriptor, block size, struct loop_info64 with its flags, reserved.
            config = struct.pack("<II52xI176x64x", file, 0, flags | AUTOCLEAR)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
                break
            except OSError as problem:
                os.close(device)
                if problem.errno != errno.EBUSY:
                    raise
        try:
            yield name
        finally:
            os.close(device)
    finally:
        os.close(file)
        os.close(control)


class Shut:
    """An image of its own, mounted."""

    flags = 0

    def __init__(self, kind: str, place: Path) -> None:
        self.kind = kind
        self.place = place / f"{kind}-{type(self).__name__.lower()}"
        self.path, self.image = self.place / "mounted", self.place / "image"
        self.path.mkdir(parents=True)
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run([*MAKE[kind], str(self.image)], check=True, stdout=subprocess.DEVNULL)
        self.mounted = False
        self.mount()

    @property
    def name(self) -> str:
        return self.place.name

    def mount(self) -> None:
        self._mount(self.image)

    def _mount(self, image: Path) -> None:
        with loop(image, self.flags) as device:
            mount(device, self.path, self.kind, 0, "")
        self.mounted = True

    def cut(self, rng: Random) -> int:
        """The power goes; how many sectors were in a cache, as far as anybody knows."""
        self._shut_down(rng.choice((NO_FLUSH, NO_FLUSH, LOG_FLUSH, FLUSH)))
        return 0

    def arm(self, groups: int) -> bool:
        """Whether the power goes by itself, at the so manieth group that is written from now on."""
        return False

    def _shut_down(self, how: int) -> None:
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(directory)

    def again(self) -> None:
        """After a cut: mounted anew, from what is on the disk."""
        self.unmount()
        self.mount()

    def unmount(self) -> None:
        """The ring of a killed process lets its files go a moment after the process."""
        patient = time.monotonic() + PATIENCE
        while True:
            try:
                unmount(self.path)
                break
            except OSError as problem:
                if problem.errno != errno.EBUSY or time.monotonic() > patient:
                    raise
            time.sleep(0.003)
        self.mounted = False

    def close(self) -> None:
        if self.mounted:
            try:
                self.unmount()
            except OSError:
                unmount(self.path, lazily=True)
        self.image.unlink()


class Volatile(Shut):
    """On a disk with a cache that loses whatever was not flushed, in any order and by sectors."""

    flags = DIRECT
    device: Device | None = None

    def mount(self) -> None:
        self.device = Device(self.image, SECTOR[self.kind])
        self._mount(self.device.path)

    def cut(self, rng: Random) -> int:
        assert self.device is not None
        sectors = self.device.cut(rng.getrandbits(32))
        try:
            self._shut_down(NO_FLUSH)
        except OSError as problem:
            # It has noticed by itself.
            if problem.errno != errno.EIO:
                raise
        return sectors

    def arm(self, groups: int) -> bool:
        assert self.device is not None
        self.device.arm(groups)
        return True

    def unmount(self) -> None:
        super().unmount()
        self._let_go()

    def close(self) -> None:
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        device, self.device = self.device, None
        if device is not None:
            device.close()


@contextlib.contextmanager
def mounts() -> Iterator[list[Shut]]:
    """One of every kind, and beside them a master key; all of it gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="powercut") as place, contextlib.ExitStack() as stack:
        mount("powercut", Path(place), "tmpfs", 0, "mode=700")
        stack.callback(unmount, Path(place), lazily=True)
        made: list[Shut] = []
        for kind in MAKE:
            for disk in (Shut, Volatile) if Path("/dev/fuse").exists() else (Shut,):
                made.append(disk(kind, Path(place)))
                stack.callback(made[-1].close)
        create_master(Path(place) / "key")
        yield made


def write_through(path: Path, data: bytes, *, sync: bool) -> None:
    """Past the page cache into a new file; synced, its name too, or not at all."""
    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        try:
            assert os.write(file, buffer) == len(data)
            if sync:
                os.fsync(file)
        finally:
            os.close(file)
    if sync:
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
