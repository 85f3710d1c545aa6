"""Ten times more than the service can do, for a while: what it answers, and how it is after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from scripts.bench.hosted.load import Client, Seen, arrivals, closed, one
from scripts.bench.hosted.world import World, resident_mb

Figure = Callable[..., None]
TIMES = 10
QUEUE = 16
CLIENTS = 200
RECOVERED = 2.0


def run(world: World, figure: Figure) -> None:
    """Overload by arrivals that do not wait for answers."""
    package = world.package("probe")
    bodies = world.bodies(package, 40)
    with world.service(package, "overload", queue=QUEUE) as service:
        (worker,) = service.workers()
        given = service.port, "/v1/score", service.headers, bodies
        calm = closed(*given, 1, world.seconds)
        usual = calm.ms(50)
        able = closed(*given, 8, world.seconds).rate
        before = resident_mb(worker)
        most, over = [before], threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                most.append(resident_mb(worker))

        watcher = threading.Thread(target=watch)
        watcher.start()
        # Twice: what the first wave makes the process take once is not what grows.
        arrivals(*given, TIMES * able, world.seconds, clients=CLIENTS)
        first = resident_mb(worker)
        seen = arrivals(*given, TIMES * able, 2 * world.seconds, clients=CLIENTS)
        end = time.perf_counter()
        client = Client(service.port, service.headers)
        seconds = 0.0
        while True:
            probe = Seen()
            one(client, "/v1/score", bodies[0], probe)
            seconds = time.perf_counter() - end
            calm_again = bool(probe.statuses[200]) and probe.ms(50) <= RECOVERED * usual
            if calm_again or seconds > 60:
                break
        over.set()
        watcher.join()
        after = closed(*given, 1, world.seconds)
        on = (
            f"probe, {sum(seen.statuses.values())} requests at {TIMES} x {able:.1f}/s, "
            f"queue {QUEUE}, {CLIENTS} connections"
        )
        answered, shed = seen.statuses[200], seen.statuses[429] + seen.statuses[503]
        wrong = sum(seen.statuses.values()) - answered - shed
        figure("answered under overload", answered, "requests", on)
        figure("shed with 429 or 503", shed, "requests", on)
        figure("answered otherwise or not at all", wrong, "requests", on, 0.0)
        figure("refused without Retry-After", seen.hasty, "requests", on, 0.0)
        figure("answered, of what it can do", answered / seen.took / able, "x", on)
        figure("p50 of the answered, from when they were due", seen.ms(50), "ms", on)
        figure("back at twice the usual p50, after its end", seconds, "s", on, 5.0)
        figure("p50 after, times before", after.ms(50) / usual, "x", on)
        figure("memory before", before, "MiB", on)
        figure("memory at most", max(most), "MiB", on)
        figure("memory after", resident_mb(worker), "MiB", on)
        figure("memory at most, over a first wave", max(most) - first, "MiB", on, 16.0)
