"""Deliveries through the client: sample files up, jobs, what can be read of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from foundation.errors import RequestError, listing
from serving.client_transport import Transport, decoded, part, strict_json
from serving.delivery_messages import (
    JobDetail,
    JobList,
    JobStarted,
    SampleList,
    SampleTaken,
)

T = TypeVar("T")
MEDIA = {".csv": "text/csv", ".parquet": "application/vnd.apache.parquet"}


class Deliveries:
    """Samples, jobs and reports of the key's tenant; needs the scopes `samples` and `read`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def hand_in(
        self,
        path: str | Path,
        channel: str,
        *,
        name: str | None = None,
        test: bool = False,
        mapping: str | None = None,
        window: int | None = None,
    ) -> SampleTaken:
        """Send a sample file.

        Args:
            name: of the sample set; None: the channel's.
            test: a file to measure on, not to learn from.
            mapping: what the file calls its columns, as JSON, or the id of one given before.
            window: performance window of the labels, days.
        Raises:
            RequestError: a file of another kind. OSError: it cannot be read.
        """
        path = Path(path)
        media = MEDIA.get(path.suffix.lower())
        if media is None:
            raise RequestError(f"{path}: expected a file of {listing(MEDIA)}")
        query = {
            "channel": channel, "name": name, "test": "true" if test else None,
            "mapping": mapping, "window": window,
        }  # fmt: skip
        reply = self._transport.send(
            "POST", "/v1/samples", query, body=path.read_bytes(), media=media
        )
        return decoded(reply, SampleTaken)

    def samples(self) -> SampleList:
        """Sample sets of the tenant, version by version."""
        return self._get("/v1/samples", SampleList)

    def start(self, channel: str, samples: str, test: str | None = None) -> JobStarted:
        """Deliver a channel from samples; the same ones are the same job.

        Args:
            samples, test: NAME@VERSION, as `hand_in` answers.
        """
        body = {"channel": channel, "samples": samples} | ({"test": test} if test else {})
        return self._step("/v1/jobs", JobStarted, strict_json(body))

    def jobs(self, channel: str | None = None) -> JobList:
        """Deliveries, the latest first."""
        return self._get("/v1/jobs", JobList, {"channel": channel})

    def job(self, job: str) -> JobDetail:
        """A delivery with its progress, gates, log and links."""
        return self._get(f"/v1/jobs/{part(job)}", JobDetail)

    def cancel(self, job: str) -> JobDetail:
        """Stop a delivery at its next step."""
        return self._step(f"/v1/jobs/{part(job)}/cancel", JobDetail)

    def retry(self, job: str) -> JobDetail:
        """Go on with a delivery that failed."""
        return self._step(f"/v1/jobs/{part(job)}/retry", JobDetail)

    def report(self, job: str) -> bytes:
        """The report of a delivery, one HTML page."""
        return self._transport.send("GET", f"/v1/jobs/{part(job)}/report").body

    def _get(self, path: str, kind: type[T], query: Mapping[str, str | None] | None = None) -> T:
        return decoded(self._transport.send("GET", path, query), kind)

    def _step(self, path: str, kind: type[T], body: bytes | None = None) -> T:
        return decoded(self._transport.send("POST", path, body=body), kind)
