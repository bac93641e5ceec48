"""What a restore does to a volume, in a container that has that volume and nothing else: unpack beside, then exchange.

    VOLUME/.volume-backup-restore/stream    a FIFO, until somebody sends through it, or on standard input
                                  new/      what arrives; the volume is as it was
                                  complete  all of it has, and is on disk
                                  leaving   from here on the restore goes through, whoever dies
                                  old/      what was there, moved away entry by entry
                                  arriving  all of it is in old/; what is in new/ moves to where it belongs
                                  merging   instead of these two, where only some files were asked for: what is in new/
                                            moves to where it belongs, and all else stays
    VOLUME/.volume-backup-restored/         the name of all that when it has become rubbish

Everything that is new is on disk before `leaving` is. Each step is a rename on one file system, and `settle` takes up
the work wherever it was left: so a volume is as it was, or restored, or says which of the two it is going to be.
GNU tar unpacks, as it would on a bare host: names with `..` and symlinks that lead out are its to refuse.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import select
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from sidecar.durable import replace_file, sync_directory
from sidecar.errors import NoRoom, RestoreFailed

STAGING = ".volume-backup-restore"
DONE = ".volume-backup-restored"
STREAM = "stream"
_TAR = ("tar", "--numeric-owner", "-xpf", "-")
_ATTRIBUTES = ("--acls", "--xattrs", "--xattrs-include=*")
# What it is told once all is unpacked. If nothing comes any more, whoever would have said it has died.
GO, LEAVE = b"exchange\n", b"leave it\n"

_NEW, _OLD, _BEFORE, _COMPLETE = "new", "old", "before", "complete"
_LEAVING, _ARRIVING, _MERGING = "leaving", "arriving", "merging"
_PIECE = 1024 * 1024
_WRITE_OUT = 256 * _PIECE
_SLACK = 4096  # what a file may take on disk beyond its bytes in the archive: it has 512 of header there, and is padded
_TRIFLE = 16 * _PIECE  # left on the disk at all events
_LAST_WORDS = 20  # lines


class Word(StrEnum):
    """What the container says, one JSON object a line: `{"word": ..., "error": ..., "hint": ...}`."""

    READY = "ready"  # there is room; send
    UNPACKED = "unpacked"  # all is on disk, beside what was there
    EXCHANGED = "exchanged"
    AS_IT_WAS = "as_it_was"
    CLEAN = "clean"
    FAILED = "failed"


Say = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Expected:
    """What will arrive: bytes of the tar stream, and entries in it; merge: they are not all that the volume held.

    new: the volume was made for it a moment ago. reserve: the share of the disk that has to stay free; besides: bytes
    of it that others will need. plain: no entry has extended attributes; setting each file's ACL to what its mode says
    took a third of the time for 60,000 small files.
    """

    length: int
    files: int
    merge: bool = False
    reserve: float = 0.0
    besides: int = 0
    new: bool = False
    plain: bool = False


def restore_into(root: str, expected: Expected, source: int, say: Say) -> None:
    """Take a tar stream from the descriptor `source`, then `GO`: with it the volume at `root` is exchanged.

    The stream may come through the FIFO instead, by one who sees the volume as well: what goes through the engine is
    copied four times on its way, which took a third of a restore's processor time. It is gone once somebody has begun.
    `LEAVE`, or the end of the stream before it is whole, leaves the volume as it was. If nothing follows the whole
    stream, what has arrived stays beside it for `settle`: whether that had been decided, the sidecar's journal says.
    Raises NoRoom, RestoreFailed.
    """
    with _alone(root):
        _settle(root)
        if expected.new:
            _require_empty(root)
        _require_room(root, expected)
        try:
            fifo = _prepare(root)
            say(Word.READY)
            with _incoming(root, fifo, source) as stream:
                _unpack(root, expected, stream)
            _note(os.path.join(root, STAGING, _COMPLETE), {"merge": int(expected.merge)})
            say(Word.UNPACKED)
            answer = _rest(source, len(GO))
            if answer == GO:
                _exchange(root, merge=expected.merge)
                say(Word.EXCHANGED)
            elif answer:
                _settle(root)
                say(Word.AS_IT_WAS)
        except Exception:
            if _settle(root) is not Word.EXCHANGED:
                raise
            say(Word.EXCHANGED)
    # Stay until the other end is closed, when whoever uses the volume runs again: one that nobody has is unmounted by
    # its driver, and a tmpfs would take with it what has just been restored (tried).
    _rest(source, 1)


def settle(root: str, say: Say, *, go: bool = False) -> None:
    """Take up a restore that was cut off, and say what became of it.

    go: it had been decided to exchange all volumes of a set, so what is complete is exchanged, and none is left behind.
    `EXCHANGED`: the exchange had begun, and is finished. `AS_IT_WAS`: it had not, and what had arrived is removed.
    `CLEAN`: there was nothing to do, because it had ended, or never begun.

    Waits for whoever is still at work on this volume. Raises RestoreFailed.
    """
    with _alone(root):
        say(_settle(root, go=go))


def is_unsettled(root: str) -> bool:
    """Whether a restore has left something in a volume."""
    return any(os.path.lexists(os.path.join(root, ours)) for ours in (STAGING, DONE))


def _settle(root: str, *, go: bool = False) -> Word:
    staging = os.path.join(root, STAGING)
    complete = _noted(os.path.join(staging, _COMPLETE))
    if os.path.lexists(os.path.join(staging, _LEAVING)) or os.path.lexists(os.path.join(staging, _ARRIVING)):
        _go_on(root)
        return Word.EXCHANGED
    if os.path.lexists(os.path.join(staging, _MERGING)):
        _merge(root)
        return Word.EXCHANGED
    if os.path.lexists(os.path.join(root, DONE)):
        _finish(root)
        return Word.EXCHANGED
    if go and complete:
        _exchange(root, merge=bool(complete.get("merge")))
        return Word.EXCHANGED
    if not os.path.lexists(staging):
        return Word.CLEAN
    # The root's time is what it was before our directory came, unless someone else has touched it since.
    noted = _noted(os.path.join(staging, _BEFORE))
    is_ours = noted.get("since_ns") == os.stat(root).st_mtime_ns
    _remove(staging)
    if is_ours:
        os.utime(root, ns=(noted["mtime_ns"], noted["mtime_ns"]))
    return Word.AS_IT_WAS


@contextmanager
def _alone(root: str) -> Iterator[None]:
    """One at a time on a volume, whichever containers they are in; the kernel frees the lock with its holder."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP):  # NFS locks no directory
                raise
        yield
    finally:
        os.close(directory)


def needed_on_disk(length: int, files: int) -> int:
    """How many bytes so many entries may take, whose tar stream is so long."""
    return length + _SLACK * files


def _require_empty(root: str) -> None:
    """A volume that was just made holds something only if its driver leads to it, or somebody has begun to use it."""
    if found := [name for name in os.listdir(root) if name != "lost+found"]:
        raise RestoreFailed(
            f"it was made anew, and holds {found[0]!r} and {len(found) - 1} more already, of which there is no backup: "
            "its driver leads to where data are, or somebody has begun to use it",
            hint="if they may be replaced, create the volume as it was and restore again, which backs them up first; "
            "or restore without --with-driver",
        )


def _require_room(root: str, expected: Expected) -> None:
    disk = os.statvfs(root)
    needed = needed_on_disk(expected.length, expected.files) + _TRIFLE + expected.besides
    free = disk.f_bavail * disk.f_frsize - int(expected.reserve * disk.f_blocks * disk.f_frsize)
    hint = "free space on its disk; or `guard release` the volume, remove it, if it is worth nothing, and restore"
    if needed > free and expected.reserve:
        raise NoRoom(
            f"the disk has {max(free, 0)} bytes free beyond the {expected.reserve:.0%} of it that are left to the "
            f"applications, and {needed} are needed",
            hint="free space on it",
        )
    if needed > free:
        raise NoRoom(
            f"the volume's disk has {free} bytes free, and {needed} are needed beside what the volume holds now",
            hint=f"{hint} it anew",
        )
    if disk.f_files and expected.files + 1 > disk.f_favail:
        raise NoRoom(
            f"the volume's disk has {disk.f_favail} inodes free, and {expected.files + 1} are needed",
            hint=f"{hint} it anew",
        )


def _prepare(root: str) -> int | None:
    """Make the staging directory; the reading end of its FIFO, or None on a file system that has none."""
    staging = os.path.join(root, STAGING)
    before_ns = os.stat(root).st_mtime_ns
    os.mkdir(staging, mode=0o700)
    new = os.path.join(staging, _NEW)
    os.mkdir(new, mode=0o700)
    # Whatever the volume's root would have its files inherit: they get what they had.
    for attribute in ("system.posix_acl_default", "system.posix_acl_access"):
        with suppress(OSError):
            os.removexattr(new, attribute)
    with open(os.path.join(staging, _BEFORE), "w", encoding="ascii") as note:
        json.dump({"mtime_ns": before_ns, "since_ns": os.stat(root).st_mtime_ns}, note)
    try:
        os.mkfifo(os.path.join(staging, STREAM), 0o600)
        return os.open(os.path.join(staging, STREAM), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


@contextmanager
def _incoming(root: str, fifo: int | None, source: int) -> Iterator[int]:
    """The FIFO or `source`, whichever has something to say first; the end of `source` is the end of it all."""
    if fifo is None:
        yield source
        return
    try:
        ready, _, _ = select.select([source, fifo], [], [])
        os.unlink(os.path.join(root, STAGING, STREAM))
        os.set_blocking(fifo, True)
        yield source if source in ready else fifo
    finally:
        os.close(fifo)


def _unpack(root: str, expected: Expected, source: int) -> None:
    """From `source` into the staging directory, and onto the disk."""
    directory = os.path.join(root, STAGING, _NEW)
    tar = subprocess.Popen(  # noqa: S603 - no argument of it comes from outside
        _TAR if expected.plain else (*_TAR, *_ATTRIBUTES),
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert tar.stdin is not None
    assert tar.stderr is not None
    words: deque[str] = deque(maxlen=_LAST_WORDS)
    listener = threading.Thread(target=_listen, args=(tar.stderr, words), daemon=True)
    listener.start()
    with _writer(directory) as write_out:
        try:
            arrived = _pass_on(source, tar.stdin.fileno(), expected.length, write_out)
            with suppress(BrokenPipeError):
                tar.stdin.close()
            code = tar.wait()
        finally:
            tar.kill()
            tar.wait()
        listener.join()
        if arrived != expected.length and code == 0:
            raise RestoreFailed(f"the stream ended after {arrived} of {expected.length} bytes", hint="restore again")
        if code:
            raise RestoreFailed(
                f"tar ended with {code}: {'; '.join(words) or 'it gave no reason'}",
                hint="the volume is as it was; see whether its disk is full or damaged",
            )
    for ours in (STAGING, DONE):
        if os.path.lexists(os.path.join(directory, ours)):
            raise RestoreFailed(f"the archive holds {ours}, which no archive of ours does", hint="verify the set")
    _sync(directory)


def _listen(stream: IO[bytes], words: deque[str]) -> None:
    for line in stream:
        words.append(line.decode(errors="backslashreplace").strip()[:500])


@contextmanager
def _writer(directory: str) -> Iterator[Callable[[int], None]]:
    """What puts on the disk what has arrived while more arrives; it is told how many bytes have.

    By itself a machine with much memory begins when a tenth of that is full, and all is waited for at the end.
    """
    under_way: list[Future[None]] = []
    begun = 0
    with ThreadPoolExecutor(1) as thread:

        def write_out(done: int) -> None:
            nonlocal begun
            if done - begun >= _WRITE_OUT and all(future.done() for future in under_way):
                under_way.append(thread.submit(_sync, directory))
                begun = done

        yield write_out
    for future in under_way:
        future.result()  # the kernel tells of a write that has failed only once


def _pass_on(source: int, target: int, length: int, tell: Callable[[int], None]) -> int:
    """Move bytes from pipe to pipe inside the kernel; how many there were until one of them was closed.

    tell: told how many there are by now.
    """
    with suppress(OSError):  # more than the user may have
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, _PIECE)
    done = 0
    while done < length:
        try:
            moved = os.splice(source, target, min(_PIECE, length - done))
        except BrokenPipeError:  # tar has ended, and says why
            break
        if moved == 0:
            break
        done += moved
        tell(done)
    return done


def _rest(source: int, length: int) -> bytes:
    """Up to `length` bytes, fewer only at the end."""
    data = b""
    while len(data) < length and (more := os.read(source, length - len(data))):
        data += more
    return data


def _exchange(root: str, *, merge: bool) -> None:
    staging = os.path.join(root, STAGING)
    new = os.path.join(staging, _NEW)
    os.makedirs(os.path.join(staging, _OLD), mode=0o700, exist_ok=True)
    if merge:
        os.close(os.open(os.path.join(staging, _MERGING), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(staging)
        sync_directory(root)
        _merge(root)
        return
    # Moving what is in it changes its time, and it has to be known again after a crash.
    _note(os.path.join(staging, _LEAVING), {"mtime_ns": os.stat(new).st_mtime_ns})
    sync_directory(root)
    _go_on(root)


def _go_on(root: str) -> None:
    """From wherever it was left, to the end."""
    staging = os.path.join(root, STAGING)
    new, old = os.path.join(staging, _NEW), os.path.join(staging, _OLD)
    leaving, arriving = os.path.join(staging, _LEAVING), os.path.join(staging, _ARRIVING)
    if os.path.lexists(leaving):
        try:
            _move_all(root, old)
        except OSError as error:
            _move_all(old, root)
            os.unlink(leaving)
            sync_directory(root)
            raise RestoreFailed(
                f"{os.fsdecode(error.filename)!r} cannot be moved away: {error.strerror}; the volume is as it was",
                hint="is it immutable (chattr -i) or a mount point inside the volume?",
            ) from error
        sync_directory(old)
        sync_directory(root)
        os.rename(leaving, arriving)
        sync_directory(staging)
    if os.path.isdir(new):
        _move_all(new, root)
        _be_like(root, new)
        sync_directory(root)
        os.rmdir(new)
    with suppress(FileNotFoundError):
        _remove(old)
    sync_directory(staging)
    os.rename(staging, os.path.join(root, DONE))
    sync_directory(root)
    _finish(root)


def _merge(root: str) -> None:
    """Move everything of new/ to where it belongs. A file replaces a file; what is of another kind makes way."""
    staging = os.fsencode(os.path.join(root, STAGING))
    new, old = os.path.join(staging, _NEW.encode()), os.path.join(staging, _OLD.encode())
    pending = [(new, os.fsencode(root))]  # os.walk calls itself for each level
    while pending:
        directory, target = pending.pop()
        for name in os.listdir(directory):
            source, destination = os.path.join(directory, name), os.path.join(target, name)
            if _is_directory(source) and _is_directory(destination):
                pending.append((source, destination))
                continue
            if os.path.lexists(destination) and (_is_directory(source) or _is_directory(destination)):
                os.rename(destination, os.path.join(old, b"%d" % len(os.listdir(old))))
            os.rename(source, destination)
        sync_directory(target)
    os.rename(staging, os.path.join(os.fsencode(root), DONE.encode()))
    sync_directory(root)
    _finish(root)


def _remove(directory: str) -> None:
    """All of it, however deep: shutil.rmtree calls itself for each level (Python 3.11: RecursionError at 1,200, tried).

    What a directory holds is moved up, or deleted, before it is. Nothing is followed, whoever puts a symlink there.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    top = os.open(directory, flags)
    moved, ours = 0, secrets.token_hex(8)
    try:
        while names := os.listdir(top):
            for name in names:
                if _unlinked(name, top):
                    continue
                below = os.open(name, flags, dir_fd=top)
                try:
                    for each in os.listdir(below):
                        if not _unlinked(each, below):
                            os.rename(each, f"{ours}-{moved}", src_dir_fd=below, dst_dir_fd=top)
                            moved += 1
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(directory)


def _unlinked(name: str, directory: int) -> bool:
    """Delete it, unless it is a directory; whether it is deleted."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _is_directory(path: bytes) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _finish(root: str) -> None:
    done = os.path.join(root, DONE)
    mtime_ns = _noted(os.path.join(done, _ARRIVING)).get("mtime_ns")
    _remove(done)
    if mtime_ns is not None:
        os.utime(root, ns=(mtime_ns, mtime_ns))
    sync_directory(root)


def _note(path: str, what: dict[str, int]) -> None:
    """Put a note on disk, whole or not at all."""
    replace_file(Path(path), json.dumps(what).encode())


def _noted(path: str) -> dict[str, int]:
    """What a note says; nothing where it was not written to its end."""
    try:
        with open(path, encoding="ascii") as note:
            return {str(name): int(number) for name, number in json.load(note).items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def _move_all(source: str, target: str) -> None:
    for name in os.listdir(os.fsencode(source)):
        if name != STAGING.encode():
            os.rename(os.path.join(os.fsencode(source), name), os.path.join(os.fsencode(target), name))


def _be_like(directory: str, model: str) -> None:
    """Owner, extended attributes (ACLs among them) and mode, in this order: each takes away of those behind it."""
    wanted = os.stat(model)
    os.chown(directory, wanted.st_uid, wanted.st_gid)
    attributes = {name: os.getxattr(model, name) for name in _attributes(model)}
    for name in _attributes(directory):
        if name not in attributes:
            os.removexattr(directory, name)
    for name, value in attributes.items():
        os.setxattr(directory, name, value)
    os.chmod(directory, wanted.st_mode & 0o7777)


def _attributes(path: str) -> list[str]:
    """The names of those that a restore is about; a security module's own label is not."""
    try:
        return [name for name in os.listxattr(path) if name != "security.selinux"]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def _sync(directory: str) -> None:
    """Everything on its file system (syncfs(2), which Python does not offer)."""
    subprocess.run(["sync", "--file-system", directory], check=True)  # noqa: S603, S607 - coreutils', in our image
