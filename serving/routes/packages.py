"""Routes about the packages that answer."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from foundation.schema import Field
from serving.messages import PackageDetail, PackageList, PackageSummary, TableShape
from serving.routes.call import Call, answer
from serving.routes.operation import Operation
from serving.scorer import Loaded, Scorer


async def packages(call: Call) -> Response:
    """Every package of the service."""
    scorer = call.runtime.packages()
    every = [_summary(loaded, scorer) for loaded in scorer.packages.values()]
    return answer(PackageList(every, scorer.default))


async def package(call: Call) -> Response:
    """One package, with what a request to it may contain."""
    scorer = call.runtime.packages()
    loaded = scorer.pick(call.path("id"))
    call.package = loaded.id
    manifest, schema = loaded.package.manifest, loaded.package.schema
    detail = PackageDetail(
        **msgspec.structs.asdict(_summary(loaded, scorer)),
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


def _summary(loaded: Loaded, scorer: Scorer) -> PackageSummary:
    manifest = loaded.package.manifest
    return PackageSummary(
        id=loaded.id,
        name=str(manifest.get("name", "")),
        channel=str(manifest.get("channel", "")),
        digest=str(manifest["digest"]),
        recipe=str(manifest.get("recipe", "")),
        created_at=str(manifest.get("created_at", "")),
        default=loaded.id == scorer.default,
    )


def _kinds(fields: dict[str, Field]) -> dict[str, str]:
    return {name: spec.kind for name, spec in fields.items()}


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/packages",
        name="packages",
        scope="read",
        summary="The packages this service answers with.",
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
)
