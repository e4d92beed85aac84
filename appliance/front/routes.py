"""The HTTP API's table of addresses: those of all handler groups, in the order in which they are tried."""

from appliance.front.pipeline.route import Route, RouteGroup


def join_routes(*groups: RouteGroup | None) -> list[Route]:
    """Return the addresses of all groups.

    Args:
        groups: In the order in which they are tried: the first address that fits a path is taken, so that a
            group with fixed paths stands before one whose pattern fits them as well. None: the group is
            switched off.
    """
    return [route for group in groups if group is not None for route in group.routes()]
