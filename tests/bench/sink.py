"""An S3 server that only reads: what is sent in parts is counted and thrown away, so that it costs next to nothing.

The parts' bytes are not even copied out of the kernel (MSG_TRUNC). Objects that are put whole (owner.json, manifests,
indexes) are kept, because the client reads them again. Signatures and checksums are believed; the client's own checksum
of the whole is said back to it, as a server does that has computed the same. Usage: python3 sink.py PORT
"""

from __future__ import annotations

import email.utils
import hashlib
import http.server
import itertools
import re
import socket
import sys
import threading
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

SLICE = 1024 * 1024
NOWHERE = bytearray(SLICE)  # the kernel leaves it as it is


class Sink:
    """What is there: bodies of small objects, sizes of all, lengths of the parts of uploads under way."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.checksums: dict[str, str] = {}
        self.uploads: dict[str, dict[int, int]] = {}
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()


SINK = Sink()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection, kept open from one request to the next."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        key, query = self._asked()
        length = int(self.headers["Content-Length"])
        if "partNumber" in query:
            self._throw_away(length)
            with SINK.lock:
                SINK.uploads[query["uploadId"]][int(query["partNumber"])] = length
            self._answer(headers={"ETag": f'"{query["partNumber"]}"'} | self._checksum())
            return
        body = self.rfile.read(length)
        with SINK.lock:
            if self.headers["If-None-Match"] and key in SINK.sizes:
                self._refuse(412, "PreconditionFailed")
                return
            SINK.bodies[key] = body
            SINK.sizes[key] = length
            SINK.checksums[key] = self.headers["x-amz-checksum-crc32"] or ""
        self._answer(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'} | self._checksum())

    def do_POST(self) -> None:
        key, query = self._asked()
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        if "uploads" in query:
            upload = str(next(SINK.numbers))
            SINK.uploads[upload] = {}
            full = {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "FULL_OBJECT"}
            said = f"<Key>{escape(key)}</Key><UploadId>{upload}</UploadId>"
            self._answer(f"<InitiateMultipartUploadResult>{said}</InitiateMultipartUploadResult>", full)
            return
        with SINK.lock:
            parts = SINK.uploads.pop(query["uploadId"])
            SINK.sizes[key] = sum(parts[int(number)] for number in re.findall(r"<PartNumber>(\d+)<", body))
            SINK.checksums[key] = crc32 = self.headers["x-amz-checksum-crc32"] or ""
        said = f'<ETag>"{query["uploadId"]}"</ETag><ChecksumCRC32>{crc32}</ChecksumCRC32>'
        said += "<ChecksumType>FULL_OBJECT</ChecksumType>"
        self._answer(f"<CompleteMultipartUploadResult>{said}</CompleteMultipartUploadResult>")

    def do_HEAD(self) -> None:
        key, _ = self._asked()
        if not key:  # of any bucket
            self._answer()
            return
        if key not in SINK.sizes:
            self._refuse(404, "NoSuchKey")
            return
        checksum = {"x-amz-checksum-crc32": SINK.checksums[key], "x-amz-checksum-type": "FULL_OBJECT"}
        self._answer(length=SINK.sizes[key], headers={"ETag": '"sunk"', **(checksum if SINK.checksums[key] else {})})

    def do_GET(self) -> None:
        key, query = self._asked()
        if key in SINK.bodies:
            self._answer(SINK.bodies[key], {"ETag": f'"{hashlib.md5(SINK.bodies[key]).hexdigest()}"'})
        elif key:
            self._refuse(404, "NoSuchKey")
        elif "uploads" in query:
            self._answer("<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>")
        else:
            found = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{size}</Size><ETag>sunk</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for name, size in sorted(SINK.sizes.items())
                if name.startswith(query.get("prefix", ""))
            )
            self._answer(f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>")

    def do_DELETE(self) -> None:
        key, query = self._asked()
        SINK.uploads.pop(query.get("uploadId", ""), None)
        for kept in (SINK.bodies, SINK.sizes, SINK.checksums):
            kept.pop(key, None)  # type: ignore[attr-defined]
        self._answer(status=204)

    def _asked(self) -> tuple[str, dict[str, str]]:
        """The key, without its bucket, and the query."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        return unquote(url.path).lstrip("/").partition("/")[2], query

    def _throw_away(self, length: int) -> None:
        # What came along with the headers lies in the reader's buffer; the rest never leaves the kernel.
        length -= len(self.rfile.read(min(length, len(self.rfile.peek(1)))))  # type: ignore[attr-defined]
        while length:
            got = self.connection.recv_into(NOWHERE, min(length, SLICE), socket.MSG_TRUNC)
            if not got:
                raise ConnectionError("the client has gone")
            length -= got

    def _checksum(self) -> dict[str, str]:
        crc32 = self.headers["x-amz-checksum-crc32"]
        return {"x-amz-checksum-crc32": crc32, "x-amz-checksum-type": "FULL_OBJECT"} if crc32 else {}

    def _refuse(self, status: int, code: str) -> None:
        self._answer(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status=status)

    def _answer(
        self,
        body: str | bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        status: int = 200,
        length: int | None = None,
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(data) if length is None else length))
        self.send_header("Last-Modified", email.utils.formatdate(usegmt=True))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """It is not to spend its time on that."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
