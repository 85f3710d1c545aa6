"""Routes about what answers: a tenant's packages, channels and releases."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from foundation.errors import listing, nearest
from foundation.schema import Field
from serving.messages import ApiError, PackageDetail, PackageList, PackageSummary, TableShape
from serving.models.loaded import Loaded, announce
from serving.models.messages import (
    ChannelDetail,
    ChannelList,
    ChannelSummary,
    ReleaseAnswer,
    ReleaseList,
)
from serving.models.table import Channel, Tenant
from serving.routes.call import Call, answer
from serving.routes.operation import Operation


async def packages(call: Call) -> Response:
    """The packages a request of the tenant may name."""
    tenant = _tenant(call)
    every = [_summary(loaded, tenant) for loaded in tenant.packages.values()]
    return answer(PackageList(every, tenant.default))


async def package(call: Call) -> Response:
    """One package, with what a request to it may contain."""
    tenant = _tenant(call)
    loaded = tenant.pick(None, call.path("id"), "")
    call.package = loaded.id
    manifest, schema = loaded.manifest, loaded.model.schema
    detail = PackageDetail(
        **msgspec.structs.asdict(_summary(loaded, tenant)),
        sources={
            name: TableShape(_kinds(source.fields), schema.zone(name), source.delay)
            for name, source in schema.sources.items()
        },
        profile=TableShape(_kinds(schema.profile_fields), schema.time_zone),
        context=TableShape(_kinds(schema.context), schema.time_zone),
        label=manifest.get("label"),
        points=manifest.get("points"),
        bands=manifest.get("bands"),
        metrics=manifest.get("metrics"),
    )
    return answer(detail)


async def channels(call: Call) -> Response:
    """Every channel of the tenant."""
    tenant = _tenant(call)
    every = [
        ChannelSummary(name, True, c.champion.release, c.champion.id, c.champion.digest, c.percent)
        for name, c in tenant.channels.items()
    ]
    every += [ChannelSummary(name, False) for name in tenant.pending]
    return answer(ChannelList(sorted(every, key=lambda each: each.channel), tenant.only))


async def channel(call: Call) -> Response:
    """One channel with its releases."""
    tenant, name = _tenant(call), call.path("channel")
    found = tenant.channels.get(name)
    failed = [r for r in _failures(call) if r.channel == name]
    if found is None and name not in tenant.pending:
        known = sorted({*tenant.channels, *tenant.pending})
        raise ApiError(
            404,
            f"no such channel{nearest(name, known)}; channels: {listing(known) or 'none'}",
            "channel",
        )
    manifest = {} if found is None else found.champion.manifest
    live = [] if found is None else _releases(name, found)
    return answer(
        ChannelDetail(
            name, found is not None, manifest.get("points"), manifest.get("bands"), live + failed
        )
    )


async def releases(call: Call) -> Response:
    """Every release of the tenant that answers, or could not be loaded."""
    tenant = _tenant(call)
    every = [r for name, c in sorted(tenant.channels.items()) for r in _releases(name, c)]
    return answer(ReleaseList(every + _failures(call)))


def _tenant(call: Call) -> Tenant:
    """What the caller's own tenant may see."""
    return call.runtime.deployments.tenant(call.tenant)


def _failures(call: Call) -> list[ReleaseAnswer]:
    return [
        ReleaseAnswer(
            release=each.release,
            channel=each.channel,
            stage=each.stage,
            live=False,
            failure=each.reason,
            failed_at=each.at,
        )
        for each in call.runtime.deployments.failures(call.tenant)
    ]


def _releases(name: str, found: Channel) -> list[ReleaseAnswer]:
    rolled = found.percent / 100 if found.rollout is not None else 0.0
    shares = {id(found.champion): 1.0 - rolled, id(found.rollout): rolled}
    shares |= {id(loaded): share for loaded, share in found.champion.shadows}
    return [
        ReleaseAnswer(
            release=loaded.release,
            channel=name,
            stage=loaded.stage,
            live=True,
            live_since=loaded.since,
            package=loaded.id,
            digest=loaded.digest,
            backbone=loaded.backbone,
            share=shares[id(loaded)],
            flags=list(announce(loaded)),
        )
        for loaded in found.releases
    ]


def _summary(loaded: Loaded, tenant: Tenant) -> PackageSummary:
    manifest = loaded.manifest
    return PackageSummary(
        id=loaded.id,
        name=str(manifest.get("name", "")),
        channel=loaded.channel,
        digest=loaded.digest,
        recipe=str(manifest.get("recipe", "")),
        created_at=str(manifest.get("created_at", "")),
        default=loaded.id == tenant.default,
    )


def _kinds(fields: dict[str, Field]) -> dict[str, str]:
    return {name: spec.kind for name, spec in fields.items()}


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/packages",
        name="packages",
        scope="read",
        summary="The packages a request may name.",
        answer=PackageList,
        handler=packages,
    ),
    Operation(
        method="GET",
        path="/v1/packages/{id}",
        name="package",
        scope="read",
        summary="One package: the fields it reads, its bands and its measured quality.",
        answer=PackageDetail,
        handler=package,
    ),
    Operation(
        method="GET",
        path="/v1/channels",
        name="channels",
        scope="read",
        summary="The channels a request may name, and what answers for them.",
        answer=ChannelList,
        handler=channels,
    ),
    Operation(
        method="GET",
        path="/v1/channels/{channel}",
        name="channel",
        scope="read",
        summary="One channel: its points, its bands, its releases.",
        answer=ChannelDetail,
        handler=channel,
    ),
    Operation(
        method="GET",
        path="/v1/releases",
        name="releases",
        scope="read",
        summary="Releases that answer, since when, and those that could not be loaded.",
        answer=ReleaseList,
        handler=releases,
    ),
)
