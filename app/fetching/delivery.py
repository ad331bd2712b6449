"""A photo with its class, delivered to the owner's address."""

import aiohttp

from app.errors import FetchFailed

SECONDS = 10.0  # for the whole request


async def deliver(url: str, label: str, photo: bytes) -> None:
    """POST a form with the fields `label` and `file`, a JPEG, to `url`.

    Raises FetchFailed unless the answer is a 2xx; redirects are not followed.
    """
    form = aiohttp.FormData()
    form.add_field("label", label)
    form.add_field("file", photo, filename="photo.jpg", content_type="image/jpeg")
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
            session.post(url, data=form, allow_redirects=False) as response,
        ):
            delivered = response.ok and response.status < 300
    except (aiohttp.ClientError, TimeoutError, OSError):
        delivered = False
    if not delivered:
        raise FetchFailed("The photo could not be delivered to the owner of this page; try again later.")
