"""/v1/samples: sample files up, reviewed at once, kept as versions of the tenant's sample sets."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta
from starlette.responses import Response

from serving.delivery_messages import (
    LabelBalance,
    RowsLeftOut,
    SampleList,
    SampleTaken,
    SampleVersionShown,
    StoreCoverage,
)
from serving.messages import ApiError
from serving.routes.call import Call, answer
from serving.routes.delivery import channel_config, deliveries, maker, permit, slowly
from serving.routes.operation import Operation, Parameter
from serving.uploads import ENDINGS, Taken, Upload

LONGEST_WINDOW = 3650
_Window = Annotated[int, Meta(ge=1, le=LONGEST_WINDOW)]


async def take(call: Call) -> Response:
    """Review a sample file and keep what can be used."""
    channel, test = call.query("channel"), call.query("test", "false")
    if channel is None:
        raise ApiError(422, "say which channel the samples are of", "channel")
    if test not in ("true", "false"):
        raise ApiError(422, "expected true or false", "test")
    who, found = maker(call), deliveries(call)
    config = await channel_config(call, channel)
    await permit(call, "hand_in", channel)
    window = call.number("window", 0, 1, LONGEST_WINDOW)
    data = await call.body(call.runtime.settings.max_batch_bytes, tuple(ENDINGS))
    upload = Upload(
        tenant=call.tenant,
        channel=channel,
        name=call.query("name") or "",
        test=test == "true",
        data=data,
        ending=ENDINGS[call.media_type],
        mapping=call.query("mapping"),
        window_days=window or None,
        by=who,
    )
    taken = await slowly(call, lambda: found.uploads.take(upload, config))
    return answer(_taken(upload, taken), 201)


async def samples(call: Call) -> Response:
    """Versions of the tenant's sample sets."""
    found, who = deliveries(call), call.principal
    every = await slowly(call, lambda: found.uploads.all(who.tenant))
    people = call.runtime.front.people
    seen: dict[str, bool] = {}
    shown = []
    for version, channel, test in every:
        if channel not in seen:
            seen[channel] = not who.person or await slowly(
                call, people.allowed, who.person, who.tenant, "read", channel or "*"
            )
        if seen[channel]:
            facts = {k: version.facts[k] for k in ("rows", "customers", "labels", "bads")}
            shown.append(
                SampleVersionShown(
                    sample=f"{version.name}@{version.number}",
                    digest=version.digest,
                    added_at=version.added_at,
                    channel=channel,
                    test=test,
                    first=version.facts["first"],
                    last=version.facts["last"],
                    **facts,
                )
            )
    return answer(SampleList(shown))


def _taken(upload: Upload, taken: Taken) -> SampleTaken:
    numbers: dict[str, Any] = taken.numbers
    basis, cover, version = numbers["basis"], numbers["coverage"], taken.version
    names = ("bad_rate", "bad_rate_low", "bad_rate_high")
    rates = {name: basis[name] if basis["n"] else None for name in names}
    return SampleTaken(
        sample=f"{version.name}@{version.number}",
        digest=version.digest,
        new=taken.new,
        channel=upload.channel,
        test=upload.test,
        read=numbers["rows"],
        kept=numbers["kept"],
        left_out=[RowsLeftOut(d["reason"], d["n"], d["rows"]) for d in numbers["dropped"]],
        customers=numbers["customers"],
        first=version.facts["first"],
        last=version.facts["last"],
        balance=LabelBalance(basis["n"], basis["n_bad"], basis["n_unknown"], **rates),
        store=None if cover is None else StoreCoverage(
            cover["customers_unknown"], cover["no_event"], cover["median_events"]
        ),
        mapping=taken.mapping,
        notes=numbers["notes"],
        mind=[sentence.replace("--window DAYS", "the parameter window")
              for sentence in numbers["verdict"]],
    )  # fmt: skip


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/samples",
        name="takeSamples",
        scope="samples",
        summary="Hand a sample file in: entity_id, as_of, label, ... as CSV or Parquet.",
        answer=SampleTaken,
        handler=take,
        request="a sample file",
        media=tuple(ENDINGS),
        status=201,
        errors=(404,),
        parameters=(
            Parameter(name="channel", description="Channel the samples are of.", required=True),
            Parameter(
                name="name",
                description="Sample set to add to; the channel's name if left out, with -test "
                "behind for a test file.",
            ),
            Parameter(name="test", description="A file to measure on, not to learn from.",
                      kind=bool),
            Parameter(
                name="mapping",
                description='What the file calls its columns, as JSON such as {"columns": '
                '{"entity_id": "customer_no"}, "labels": {"bad": 1}}; or the id of one given '
                "before.",
            ),
            Parameter(
                name="window",
                description="Performance window of the labels in days; younger rows are left out.",
                kind=_Window,
            ),
        ),
        largest="max_batch_bytes",
    ),
    Operation(
        method="GET",
        path="/v1/samples",
        name="samples",
        scope="read",
        summary="Versions of the sample sets that were handed in.",
        answer=SampleList,
        handler=samples,
        errors=(404,),
    ),
)  # fmt: skip
