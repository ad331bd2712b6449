"""Share links become direct ones; the pages that come instead of a file are known by name."""

import hashlib
import json
import os
import ssl
import subprocess
import sys
from typing import NamedTuple

import pytest
import trustme

from app.errors import DownloadError
from app.fetching.links import behind_page, direct, is_page
from tests.conftest import ROOT, SECONDS, V1_CHECKPOINT
from tests.http_server import Handler, send, serving

DROPBOX = "https://www.dropbox.com"
DRIVE = "https://drive.google.com/uc?export=download&id=1AbC_d-9"
ONEDRIVE = "https://onedrive.live.com"
SHAREPOINT = "https://uni-my.sharepoint.com"
HUB = "https://huggingface.co"


@pytest.mark.fault("M04")
@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        (f"{DROPBOX}/s/abc/x.pth?dl=0", f"{DROPBOX}/s/abc/x.pth?dl=1"),
        (f"{DROPBOX}/s/abc/x.pth", f"{DROPBOX}/s/abc/x.pth?dl=1"),
        ("http://dropbox.com/s/abc/x.pth#here", "https://dropbox.com/s/abc/x.pth?dl=1"),
        (f"{DROPBOX}/scl/fi/i/x.pth?rlkey=K&st=S&dl=0", f"{DROPBOX}/scl/fi/i/x.pth?rlkey=K&st=S&dl=1"),
        (f"{DROPBOX}/scl/fo/i/h/x.pth?rlkey=K", f"{DROPBOX}/scl/fo/i/h/x.pth?rlkey=K&dl=1"),
        (f"{DROPBOX}/sh/i/h/x.pth?dl=0", f"{DROPBOX}/sh/i/h/x.pth?dl=1"),
        ("https://drive.google.com/file/d/1AbC_d-9/view?usp=sharing", DRIVE),
        ("https://drive.google.com/file/d/1AbC_d-9", DRIVE),
        ("https://drive.google.com/file/u/0/d/1AbC_d-9/edit", DRIVE),
        ("https://drive.google.com/a/uni.example/file/d/1AbC_d-9/preview", DRIVE),
        ("https://drive.google.com/file/d/1AbC_d-9/view?resourcekey=0-xY", f"{DRIVE}&resourcekey=0-xY"),
        ("https://drive.google.com/open?id=1AbC_d-9&authuser=1", DRIVE),
        ("https://drive.google.com/uc?id=1AbC_d-9", DRIVE),
        ("https://drive.google.com/u/1/uc?id=1AbC_d-9&export=download", DRIVE),
        ("https://docs.google.com/uc?export=view&id=1AbC_d-9", DRIVE),
        (f"{ONEDRIVE}/embed?cid=A&resid=A%211&authkey=K", f"{ONEDRIVE}/download?cid=A&resid=A%211&authkey=K"),
        (f"{ONEDRIVE}/?authkey=%21K&id=B%2112&cid=C", f"{ONEDRIVE}/download?cid=C&authkey=%21K&resid=B%2112"),
        ("https://1drv.ms/u/c/aa/bb?e=x", "https://1drv.ms/u/c/aa/bb?e=x&download=1"),
        (f"{SHAREPOINT}/:u:/g/personal/x/Eabc?e=1", f"{SHAREPOINT}/:u:/g/personal/x/Eabc?e=1&download=1"),
        ("https://github.com/o/r/blob/main/a%20b/x.pth", "https://github.com/o/r/raw/main/a%20b/x.pth"),
        (f"{HUB}/o/r/blob/main/x.pth", f"{HUB}/o/r/resolve/main/x.pth"),
        (f"{HUB}/spaces/o/r/raw/main/x.pth", f"{HUB}/spaces/o/r/resolve/main/x.pth"),
        ("https://gitlab.com/g/s/p/-/blob/main/x.pth", "https://gitlab.com/g/s/p/-/raw/main/x.pth"),
        # the example of learn.microsoft.com/onedrive/developer/rest-api/api/shares_get is made this way
        (
            "https://1drv.ms/u/s!AbC?e=x",
            "https://api.onedrive.com/v1.0/shares/u!aHR0cHM6Ly8xZHJ2Lm1zL3UvcyFBYkM_ZT14/root/content",
        ),
    ],
)  # fmt: skip
def test_a_share_link_becomes_a_direct_one_and_stays_it(shared: str, expected: str) -> None:
    assert direct(shared) == expected
    assert direct(expected) == expected


@pytest.mark.fault("M04")
@pytest.mark.parametrize(
    "link",
    [
        f"{DROPBOX}/s/abc/x.pth?raw=1",
        "https://dl.dropboxusercontent.com/s/abc/x.pth",
        "https://docs.google.com/uc?export=download&confirm=t&id=1AbC",
        "https://drive.usercontent.google.com/download?id=1AbC&export=download&confirm=t",
        "https://www.googleapis.com/drive/v3/files/1AbC?alt=media&key=K",
        f"{SHAREPOINT}/personal/x/_layouts/15/download.aspx?share=E",
        "https://github.com/o/r/releases/download/v1/x.pth",
        "https://raw.githubusercontent.com/o/r/main/x.pth",
        f"{HUB}/datasets/o/r/resolve/main/x.pth?download=true",
        "https://dropbox.com.example/s/abc/x.pth?dl=0",
        "https://example.org/blob/x.pth?a=b+c%20d&dl=0#e",
        "HTTP://127.0.0.1:8000/x.pth",
    ],
)
def test_a_link_that_downloads_already_and_one_of_another_host_stay_as_they_are(link: str) -> None:
    assert direct(link) == link


@pytest.mark.fault("M04")
@pytest.mark.parametrize(
    ("link", "provider"),
    [
        (f"{DROPBOX}/sh/abc/AAA?dl=0", "Dropbox"),
        (f"{DROPBOX}/sh/abc/AAA/models", "Dropbox"),
        (f"{DROPBOX}/scl/fo/abc/h?rlkey=K&dl=1", "Dropbox"),
        ("https://drive.google.com/drive/folders/1AbC?usp=sharing", "Google Drive"),
        ("https://drive.google.com/drive/u/0/folders/1AbC", "Google Drive"),
        ("https://drive.google.com/folderview?id=1AbC", "Google Drive"),
        ("https://1drv.ms/f/s!AbC", "OneDrive"),
        (f"{SHAREPOINT}/:f:/g/personal/x/Eabc", "SharePoint"),
        ("https://github.com/o/r/tree/main/models", "GitHub"),
        ("https://gitlab.com/g/p/-/tree/main", "GitLab"),
        (f"{HUB}/o/r/tree/main", "Hugging Face"),
    ],
)
def test_the_link_of_a_folder_is_refused_by_name(link: str, provider: str) -> None:
    with pytest.raises(DownloadError, match=f"a folder of {provider}; a link to the file itself"):
        direct(link)


@pytest.mark.parametrize("link", ["https://", "https://[bad/x.pth?key=secret", "http:///x.pth"])
def test_what_is_no_link_is_named_without_its_secrets(link: str) -> None:
    with pytest.raises(DownloadError, match=r"is not a valid link; one like https://host") as caught:
        direct(link)
    assert "secret" not in str(caught.value)


# --- pages --------------------------------------------------------------------------------------------------

FORM = (
    "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title><style>p {{}}</style></head>"
    '<body><form action="/search"><input type="hidden" name="q" value="1"></form>'
    '<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway">'
    '<input type="hidden" name="id" value="1AbC"><input type="hidden" name="export" value="download">'
    '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="a&amp;b=c">'
    "</form></body></html>"
)
CONFIRMED = "https://drive.usercontent.google.com/download?id=1AbC&export=download&confirm=t&uuid=a%26b%3Dc"


@pytest.mark.fault("M02")
@pytest.mark.parametrize(
    "action",
    [
        "https://drive.usercontent.google.com/download",
        "http://drive.usercontent.google.com/download",
        "/download",
    ],
)
def test_the_form_of_a_file_that_is_too_large_to_scan_leads_to_it(action: str) -> None:
    page = "https://drive.usercontent.google.com/download?id=1AbC"
    assert behind_page(page, FORM.format(action=action)) == CONFIRMED


@pytest.mark.fault("M02")
@pytest.mark.parametrize(
    ("url", "text", "message"),
    [
        ("https://drive.google.com/uc", FORM.format(action="https://evil.example/download"), "scan warning"),
        ("https://evil.example/uc", FORM.format(action="https://drive.google.com/download"), "scan warning"),
        ("https://drive.google.com/uc", "<title>Google Drive -\n Quota exceeded</title>", "too many people"),
        ("https://accounts.google.com/v3/signin", "<title>Anmelden</title>", "asks to sign in; share it"),
        ("https://www.dropbox.com/scl/fi/i/x", "<title>Sign in - Dropbox</title>", "asks to sign in"),
        ("https://example.org/x", "<title>Page not found</title>", "the file is not there"),
        ("https://example.org/x", "<html><p>Hello", r"a web page \(''\): a page that shows the file is not"),
    ],
)  # fmt: skip
def test_a_page_is_named_for_what_it_is(url: str, text: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        behind_page(url, text)


def test_a_page_is_known_by_its_type_and_its_first_bytes() -> None:
    assert is_page("text/html", b"\xef\xbb\xbf\r\n <!doctype html>")
    assert not is_page("text/html", b"\x80\x02\x8a\nl\xfc")  # a host that says so of every file
    assert not is_page("application/octet-stream", b"<?xml")  # left to whoever knows checkpoints


# --- the real thing: TLS, redirects, forms ------------------------------------------------------------------

CONTENT = V1_CHECKPOINT.read_bytes()
LINKS = {
    "drive": "https://drive.google.com/file/d/1AbC/view?usp=sharing",
    "dropbox": "https://www.dropbox.com/scl/fi/i/x.pth?rlkey=secret&dl=0",
    "downgraded": "https://downgraded.example/x.pth",
    "untrusted": "https://untrusted.example/x.pth",
    "page": "https://page.example/x.pth",
    "forms": "https://drive.google.com/uc?export=download&id=forms",
    "http": "http://plain.example/x.pth",
}
PAGES = {  # what each host answers, by its path: a body, or where to go on
    "drive.google.com/uc?export=download&id=1AbC": "https://drive.usercontent.google.com/download?id=1AbC",
    "drive.usercontent.google.com/download?id=1AbC": FORM.format(action=CONFIRMED.partition("?")[0]).encode(),
    CONFIRMED.partition("//")[2]: CONTENT,
    "www.dropbox.com/scl/fi/i/x.pth?rlkey=secret&dl=1": "https://dl.dropboxusercontent.com/cd/x?dl=1",
    "dl.dropboxusercontent.com/cd/x?dl=1": CONTENT,
    "downgraded.example/x.pth": "http://downgraded.example/y.pth",
    "page.example/x.pth": b"<html><title>My files</title>" + b"<p>" * 5_000_000,
    "drive.google.com/uc?export=download&id=forms": FORM.format(action="/x").encode(),
    "drive.google.com/x?id=1AbC&export=download&confirm=t&uuid=a%26b%3Dc": FORM.format(action="/x").encode(),
}  # fmt: skip


class Fetched(NamedTuple):
    """What came of the links, by name; all that the hosts were asked; what was logged."""

    results: dict[str, dict[str, str]]
    asked: list[str]
    log: str


@pytest.fixture(scope="module")
def fetched(
    tmp_path_factory: pytest.TempPathFactory,
) -> Fetched:
    """All links fetched once, by a process for which every host is one server."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    names = {address.partition("/")[0] for address in PAGES}
    authority.issue_cert(*names).configure_cert(tls)
    asked = []

    def answer(handler: Handler) -> None:
        address = f"{handler.headers['Host']}{handler.path}"
        asked.append(address)
        found = PAGES[address]
        if isinstance(found, str):
            send(handler, b"", 303, headers={"Location": found})
        else:
            kind = "text/html; charset=utf-8" if found.startswith(b"<") else "application/octet-stream"
            send(handler, found, headers={"Content-Type": kind})

    with serving(answer, tls) as (url, _):
        run = subprocess.run(
            [sys.executable, "-m", "tests.everywhere", url.rpartition(":")[2], str(folder), *LINKS.values()],
            cwd=ROOT,
            env={**os.environ, "SSL_CERT_FILE": str(folder / "ca.pem")},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    results = [json.loads(line) for line in run.stdout.splitlines()]
    return Fetched(dict(zip(LINKS, results, strict=True)), asked, run.stderr)


@pytest.mark.fault("M02", "M04")
@pytest.mark.parametrize("name", ["drive", "dropbox"])
def test_a_share_link_gives_the_file(fetched: Fetched, name: str) -> None:
    assert fetched.results[name] == {"sha256": hashlib.sha256(CONTENT).hexdigest()}


@pytest.mark.fault("M10")
def test_a_redirect_from_https_to_http_is_refused_before_it_is_followed(
    fetched: Fetched,
) -> None:
    results, asked, _ = fetched
    assert "downgraded.example redirects from https to http" in results["downgraded"]["error"]
    assert [address for address in asked if address.startswith("downgraded")] == ["downgraded.example/x.pth"]


def test_a_certificate_of_another_host_is_refused_at_once(
    fetched: Fetched,
) -> None:
    results, asked, _ = fetched
    assert "untrusted.example has no valid certificate" in results["untrusted"]["error"]
    assert not [address for address in asked if address.startswith("untrusted")]


@pytest.mark.fault("M02")
def test_a_page_is_refused_and_a_form_is_followed_once(
    fetched: Fetched,
) -> None:
    results, asked, _ = fetched
    assert "page.example answered with a web page ('My files')" in results["page"]["error"]
    assert "drive.google.com shows one page after another" in results["forms"]["error"]
    assert len([address for address in asked if address.startswith("drive.google.com/x?")]) == 1


def test_plain_http_is_warned_of_and_the_log_keeps_secrets(
    fetched: Fetched,
) -> None:
    assert "plain.example is asked over http" in fetched.log
    assert "secret" not in fetched.log + json.dumps(fetched.results)
