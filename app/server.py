"""`create_app` for hosts that run the ASGI application themselves: docs/deploy.md names this module."""

from app.web.app import create_app

__all__ = ["create_app"]
