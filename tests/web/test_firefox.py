"""The page in Debian's Firefox: what Chromium's tests show, once more where the two may differ."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.browser import SAMPLES, VIEWPORTS
from tests.conftest import ROOT, SECONDS, ServerProcess

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
SCRIPT = ROOT / "tests" / "firefox.mjs"

pytestmark = pytest.mark.slow


def test_the_page_works_in_firefox(demo: ServerProcess, tmp_path: Path) -> None:
    if not (FIREFOX and (SCRIPT.parent / "node_modules" / "puppeteer-core").exists()):
        pytest.skip("there is no Firefox here, or no puppeteer-core (npm install in tests/)")
    photos = [str(SAMPLES / f"{name}.jpg") for name in ("shoes", "hat")]
    command = ["node", str(SCRIPT), FIREFOX, demo.url, str(tmp_path), *photos]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout)
    assert seen["screens"] == {
        f"{width}x{height}": {"fits": True, "actions": True, "bar": True}
        for width, height in VIEWPORTS.values()
    }
    assert (seen["result"], seen["reloaded"], seen["several"]) == ("shoes", "shoes", ["shoes", "hat"])
    assert seen["confidence"].endswith("%") and seen["heat"] > 0
    assert seen["messages"] == []
