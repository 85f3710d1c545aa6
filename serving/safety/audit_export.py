"""What leaves the decision log: heads to be noted elsewhere, and the lines of one tenant.

An export is a file of lines. The first says whose it is; then the tenant's own lines stand as they
stand in the log, and in the place of every other line its digest:

    {"export":{"tenant":"acme","first":1,"last":3,...,"mark_key":"<64 hex>"}}
    {"seq":1,"time":...,"tenant":"acme",...,"mark":...,"previous":...,"hash":...}
    {"seq":2,"content":"<64 hex>","mark":...,"previous":...,"hash":...}

The tenant can verify that the chain is unbroken, that it holds a head it was given before, and, by
its mark key, that no line of its own was turned into a digest. Of others it learns how many lines
they have, not whose they are.
"""

from __future__ import annotations

import datetime as dt
import hmac
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from foundation.errors import ArtifactError, ConfigError, UserError
from foundation.strict import Strict
from serving.safety.chain import Line, chained, head_of, lines_of, read_line
from serving.safety.hashing import EntityHasher, mark_of

_REDACTED = frozenset(("seq", "content", "mark", "previous", "hash"))


class Head(Strict):
    """The end of a log at a moment; `signature` by the service's secrets, empty without."""

    seq: int
    hash: str
    time: str
    signature: str = ""

    def text(self) -> str:
        """What is signed."""
        return f"{self.seq}:{self.hash}:{self.time}"


class ExportHeader(Strict):
    """First line of an export.

    Attributes:
        since, until: moments asked for, ISO 8601 UTC; empty: without a bound.
        first, last: numbers of the lines.
        algorithm, mark_key: by which the tenant recognizes its own lines.
    """

    tenant: str
    since: str
    until: str
    first: int
    last: int
    algorithm: str
    mark_key: str


@dataclass(frozen=True)
class Export:
    """An export, written or verified: own lines, lines of others, hash of the last line."""

    header: ExportHeader
    own: int
    others: int
    head: str

    def line(self) -> str:
        """One line for people."""
        h = self.header
        return (
            f"export of {h.tenant}: lines {h.first} to {h.last}, {self.own:,} of its own in full, "
            f"{self.others:,} of others by their digests; ends at {self.head}"
        )


def make_head(path: Path, hasher: EntityHasher | None) -> Head:
    """The head of a log, signed where there is a hasher.

    Raises:
        UserError: an empty log. ConfigError: no log. ArtifactError: a broken last line.
    """
    last = head_of(path)
    if last is None:
        raise UserError(f"{path}: the decision log is empty, there is no head to note")
    head = Head(seq=last.seq, hash=last.hash, time=str(last.record.get("time", "")))
    if hasher is None:
        return head
    return msgspec.structs.replace(head, signature=hasher.signature(head.text()))


def noted_head(given: str, hasher: EntityHasher | None) -> str:
    """The hash of a head as it was noted: 64 digits, or a file that `riskfm audit head` wrote.

    Raises:
        ConfigError: neither. ArtifactError: the file's signature is not ours.
    """
    if len(given) == 64 and not set(given) - set("0123456789abcdef"):
        return given
    try:
        head = msgspec.json.decode(Path(given).read_bytes(), type=Head)
    except (OSError, msgspec.MsgspecError) as exc:
        raise ConfigError(
            f"--head {given}: neither 64 hex digits nor a noted head: {exc}"
        ) from None
    if hasher is not None and not hmac.compare_digest(
        hasher.signature(head.text()), head.signature
    ):
        raise ArtifactError(f"{given}: the head is not signed by these secrets")
    return head.hash


def export_tenant(
    path: Path,
    hasher: EntityHasher,
    tenant: str,
    since: str,
    until: str,
    out: Path,
) -> Export:
    """Write the lines of a tenant, with what it takes to verify them; the chain is verified first.

    Args:
        since, until: from the first line at or after `since` to the last before `until`, ISO 8601
            UTC or empty; whole days are dates.
    Raises:
        ArtifactError: the chain is broken. UserError: no line of the tenant, or no moment.
    """
    bounds = moment(since), moment(until)
    first = last = own = 0
    for _, line in lines_of(path):
        time = str(line.record.get("time", ""))
        if time >= bounds[0] and (not bounds[1] or time < bounds[1]):
            first, last = first or line.seq, line.seq
            own += line.record.get("tenant") == tenant
    if not own:
        raise UserError(f"{path}: no line of tenant '{tenant}' in that time; nothing is written")
    header = ExportHeader(
        tenant=tenant, since=bounds[0], until=bounds[1], first=first, last=last,
        algorithm=hasher.algorithm, mark_key=hasher.mark_key(tenant).hex(),
    )  # fmt: skip
    own, count, head = 0, 0, ""
    partial = out.with_name(f".{out.name}.{os.getpid()}.part")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode({"export": header}) + b"\n")
        for _, line in lines_of(path):
            if first <= line.seq <= last:
                mine = line.record.get("tenant") == tenant
                file.write(line.text if mine else _redacted(line))
                own, count, head = own + mine, count + 1, line.hash
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, out)
    return Export(header, own, count - own, head)


def verify_export(path: Path, head: str | None = None) -> Export:
    """Verify an export as its tenant can, with nothing else at hand.

    Args:
        head: a hash noted before; some line must end at it.
    Raises:
        ArtifactError: names the first line that is wrong. ConfigError: no export.
    """
    try:
        with open(path, "rb") as file:
            header = msgspec.json.decode(file.readline(), type=dict[str, ExportHeader])["export"]
            key = bytes.fromhex(header.mark_key)
            seq, previous, own, noted = header.first - 1, "", 0, head is None
            for number, text in enumerate(file, start=2):
                where = f"{path}, line {number}"
                record, found = _member(text, where)
                seq += 1
                if found.seq != seq or (previous and found.previous != previous):
                    raise ArtifactError(f"{where}: does not follow the line before it")
                mine = hmac.compare_digest(mark_of(header.algorithm, key, seq), found.mark)
                if mine and record is None:
                    raise ArtifactError(f"{where}: a line of {header.tenant} was withheld")
                if record is not None and (not mine or record.get("tenant") != header.tenant):
                    raise ArtifactError(f"{where}: is not a line of {header.tenant}")
                previous, own, noted = found.hash, own + mine, noted or found.hash == head
    except OSError as exc:
        raise ConfigError(f"{path}: no readable export ({type(exc).__name__})") from None
    except (msgspec.MsgspecError, KeyError, ValueError) as exc:
        raise ConfigError(f"{path}: not an export of a decision log: {exc}") from None
    if seq != header.last:
        raise ArtifactError(f"{path}: ends at line {seq}, not at line {header.last}")
    if not noted:
        raise ArtifactError(f"{path}: ends at line {seq}, without the head noted")
    return Export(header, own, seq - header.first + 1 - own, previous)


def moment(text: str) -> str:
    """A moment or a day as lines write it, in UTC; empty stays empty.

    Raises:
        UserError: it is neither.
    """
    if not text:
        return ""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"'{text}' is no moment; write 2026-01-31 or 2026-01-31T08:00:00Z"
        ) from None
    found = found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
    return found.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _redacted(line: Line) -> bytes:
    record = {
        "seq": line.seq, "content": line.content, "mark": line.mark, "previous": line.previous,
        "hash": line.hash,
    }  # fmt: skip
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _member(text: bytes, where: str) -> tuple[dict[str, Any] | None, Line]:
    """A line of an export: its record (None where it stands by its digest), and the line."""
    try:
        found = json.loads(text)
    except ValueError:
        raise ArtifactError(f"{where}: not a line of an export") from None
    if not isinstance(found, dict) or found.keys() != _REDACTED:
        line = read_line(text, where)
        return line.record, line
    line = Line(text=text, record={}, **found)
    if chained(line.seq, line.mark, line.previous, line.content) != line.hash:
        raise ArtifactError(f"{where}: was changed after it was written")
    return None, line
