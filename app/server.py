"""`create_app` under the name that docs/deploy.md gives to hosts that run an ASGI application themselves."""

from app.web.app import create_app

__all__ = ["create_app"]
