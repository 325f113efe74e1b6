"""nginx's connections."""

from generator import colours
from generator.signals import Query, Signal, rate

CONNECTIONS = Signal(
    title="Connections by state",
    description=(
        "Open client connections: nginx is reading a request, writing a response, or waiting for "
        "the next one (keep-alive). Mostly waiting is normal. If writing grows while the request "
        "rate does not, the upstream is slow."
    ),
    unit="short",
    queries=tuple(Query(f"sum(nginx_connections_{state})", state) for state in colours.CONNECTIONS),
    colours=colours.CONNECTIONS,
)

ACCEPTED = rate("nginx_connections_accepted")
HANDLED = rate("nginx_connections_handled")

DROPPED = Signal(
    title="Connections accepted and dropped",
    description=(
        "New client connections per second, and those that nginx dropped because it was at its "
        "limit (accepted minus handled). Dropped is 0 in a healthy stack: if it is not, raise "
        "worker_connections or find the client that opens so many."
    ),
    unit="suffix:connections/s",
    queries=(Query(ACCEPTED, "accepted"), Query(f"{ACCEPTED} - {HANDLED}", "dropped")),
    colours={"accepted": colours.NEUTRAL, "dropped": colours.BAD},
)
