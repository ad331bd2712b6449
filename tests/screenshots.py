"""`make screenshots`: each state of the page, as phones and desktops show it, in docs/screenshots/."""

import io

from PIL import Image

from tests.browser import ROOT, STATES, chromium, new_page
from tests.conftest import servers

FOLDER = ROOT / "docs" / "screenshots"
VIEWS = (("phone", "light"), ("phone", "dark"), ("desktop", "light"), ("desktop", "dark"))


def main() -> None:
    """Start the demo, bring the page into each state, keep what is seen."""
    FOLDER.mkdir(exist_ok=True)
    with servers() as start, chromium() as browser:
        server = start()
        server.wait_for("ready after")
        for viewport, scheme in VIEWS:
            for name, reach in STATES.items():
                page = new_page(browser, viewport, scheme)
                reach(page, server.url)
                picture = Image.open(io.BytesIO(page.screenshot()))
                picture.save(FOLDER / f"{name}-{viewport}-{scheme}.webp", quality=80, method=6)
                page.unroute_all(behavior="ignoreErrors")
                page.context.close()


if __name__ == "__main__":
    main()
