"""The web application: its routes as one list, and the order of its layers.

Nothing here or beneath imports torch: models answer in processes of their own (`chat`), and so does training (`runs`).
"""

from __future__ import annotations

import threading

from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp

from afina import __version__
from afina.core.paths import Home
from afina.web import api, errors, live, login, openai, pages, reference
from afina.web.access import Access
from afina.web.compress import Compress
from afina.web.lifespan import UntilStopped, lifespan
from afina.web.security import Guard
from afina.web.settings import ServerSettings
from afina.web.static import StaticFiles

ROUTERS = (api.router, openai.router, live.router, reference.router, login.router, pages.router)


class Application(FastAPI):
    """FastAPI with the guard around everything, error pages included."""

    def build_middleware_stack(self) -> ASGIApp:
        """The guard outside, then compression, then FastAPI's own."""
        inside = UntilStopped(super().build_middleware_stack(), self.state.stop)
        return Guard(Compress(inside), self.state.access, self.state.settings)


def create_app(home: Home, settings: ServerSettings | None = None) -> FastAPI:
    """The application for one home folder; nothing is started before its lifespan begins.

    `app.state` holds home, settings, access, static and stop from the beginning, hub and chat during the lifespan.
    """
    app = Application(
        title="Afina",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.home = home.create()
    app.state.settings = settings or ServerSettings()
    app.state.access = Access(home, app.state.settings.token)
    app.state.static = StaticFiles()
    app.state.stop = threading.Event()
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.router.routes.append(Route("/static/{version}/{name:path}", app.state.static.serve, name="static"))
    return app
