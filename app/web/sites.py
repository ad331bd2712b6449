"""The routes of each application, below its name; and of the first one, at the root."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route, Router
from starlette.types import Scope


class Sites(Mount):
    """Routes of the application that the address names; the path "" leads to the first one.

    It matches applications that there are: their names may change while the server runs.
    """

    def __init__(self, path: str, routes: Sequence[BaseRoute]) -> None:
        super().__init__(path, app=Router(routes, redirect_slashes=False))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match an address below the name of an application; add the application to the request's state."""
        return _with_site(scope, *super().matches(scope))


class SlashRedirect(Route):
    """A redirect from an application's name to its page, whose links are relative."""

    def __init__(self, path: str) -> None:
        super().__init__(path, _redirect)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the name of an application."""
        return _with_site(scope, *super().matches(scope))


async def _redirect(request: Request) -> Response:
    """Redirect to the page, by a relative link: the Host header may be anybody's."""
    query = f"?{request.url.query}" if request.url.query else ""
    location = f"{request.path_params['application']}/{query}"
    return Response(None, 308, {"location": location, "cache-control": "no-cache"})


def _with_site(scope: Scope, match: Match, child: Scope) -> tuple[Match, Scope]:
    """Return the match with the application in its state, or none if there is no such application."""
    if match is Match.NONE:
        return match, child
    site = scope["state"]["service"].sites.find(child["path_params"].get("application", ""))
    if site is None:
        return Match.NONE, {}
    return match, {**child, "state": {**scope["state"], "site": site, "pages": site.pages}}
