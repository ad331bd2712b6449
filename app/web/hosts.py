"""What a host says of itself: the page's address, and the sites that frame the page."""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from app.settings import Settings

# Variables in which hosts tell an application its public name, by their documentation
HOSTS: Final = {
    "SPACE_HOST": "https://{}",  # Hugging Face Spaces
    "VERCEL_PROJECT_PRODUCTION_URL": "https://{}",
    "RENDER_EXTERNAL_URL": "{}",
    "RAILWAY_PUBLIC_DOMAIN": "https://{}",
    "FLY_APP_NAME": "https://{}.fly.dev",
}
ADDRESS: Final = re.compile(r"https://[A-Za-z0-9.-]+")


def public_address(settings: Settings, environment: Mapping[str, str]) -> str:
    """The page's address without a slash at the end: `public_url`, else as the host says, else empty.

    Never from a request: its Host header may be anybody's.
    """
    if settings.public_url:
        return settings.public_url.rstrip("/")
    for variable, form in HOSTS.items():
        address = form.format(environment.get(variable, "")).rstrip("/")
        if environment.get(variable) and ADDRESS.fullmatch(address):
            return address
    return ""


def path_prefix(settings: Settings) -> str:
    """Return the path below which a proxy shows the server, by `public_url`: "" or such as "/classify"."""
    return urlsplit(settings.public_url).path.rstrip("/")


def frame_origins(settings: Settings, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The sites that may show the page in a frame: a Space is only ever shown within Hugging Face's page."""
    own = ("https://huggingface.co",) if environment.get("SPACE_HOST") else ()
    return settings.frame_origins or own
