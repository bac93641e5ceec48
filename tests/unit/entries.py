"""Entries and spools made up by hypothesis, for tests of what comes after a capture."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from sidecar.archive.entry import Entry, Extent, Kind, Range, Signature

components = st.one_of(
    st.binary(min_size=1, max_size=255).filter(
        lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
    ),
    st.text("abc-é ж", min_size=1, max_size=120).map(str.encode),
)
paths = st.lists(components, min_size=1, max_size=8).map(b"/".join)


@dataclass(frozen=True)
class MadeUp:
    """Entries with the spool that holds their data, and the content of each regular file."""

    entries: tuple[Entry, ...]
    spool: bytes
    contents: dict[bytes, bytes]


@st.composite
def made_up(draw: st.DrawFn, largest: int = 3000) -> MadeUp:
    """Up to twelve entries in the order of an archive."""
    drawn = draw(
        st.lists(
            st.tuples(
                paths, st.sampled_from(["file", "file", "file", "sparse", *map(str, _OTHERS)]), st.integers(0, largest)
            ),
            max_size=12,
            unique_by=lambda one: one[0],
        )
    )
    spool = b""
    entries, contents = [], {}
    for number, (path, kind, length) in enumerate(drawn):
        data = (bytes([number + 1, 100 + number]) * length)[:length]  # so that a byte from another place shows
        extents = None
        if kind in ("file", "sparse"):
            content = data
            if kind == "sparse":
                cut = draw(st.integers(0, length))
                holes = draw(st.tuples(*[st.integers(0, 2000)] * 3))
                extents = tuple(
                    extent
                    for extent in (Extent(holes[0], cut), Extent(holes[0] + cut + holes[1], length - cut))
                    if extent.length
                )
                content = bytes(holes[0]) + data[:cut] + bytes(holes[1]) + data[cut:] + bytes(holes[2])
            contents[path] = content
            cut = draw(st.integers(0, length))  # its data lies in two pieces, the second one first
            second, first = Range(len(spool), length - cut), Range(len(spool) + length - cut, cut)
            whole = cut in (0, length)
            entries.append(
                Entry(
                    path,
                    Kind.FILE,
                    _signature(len(content), number),
                    extents=extents,
                    position=len(spool) if whole else first.position,
                    ranges=() if whole else (first, second),
                )
            )
            spool += data if whole else data[cut:] + data[:cut]
        else:
            link = b"t" * (length % 150 + 1) if kind in (Kind.SYMLINK, Kind.HARD_LINK) else b""
            attributes = ((b"user.number", b"%d" % number),) if length % 2 else ()
            entries.append(Entry(path, Kind(kind), _signature(0, number), link, attributes, (1, number)))
    entries = draw(st.permutations(entries))  # the order of the archive need not be that of the spool
    entries.sort(key=lambda entry: _OTHERS.index(entry.kind) if entry.kind in _OTHERS else -1)
    return MadeUp(tuple(entries), spool, contents)


_OTHERS = [Kind.HARD_LINK, Kind.SYMLINK, Kind.FIFO, Kind.CHARACTER_DEVICE, Kind.DIRECTORY]


def _signature(size: int, number: int) -> Signature:
    return Signature(number, size, 0o600 + number, number, 3_000_000 * number, number * 10**9 + number, number)
