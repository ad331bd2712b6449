"""Links as people share them, made into links that download; and the pages that come instead of a file.

Pure: text in, text out. A link of no provider in the table, or one that downloads already, stays as it is.
"""

import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Final
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlencode, urljoin, urlsplit

from app.errors import DownloadError, NotTheFile, plain

PUBLIC: Final = "share it with everybody who has the link; it must download in a private browser window"


def is_url(location: str) -> bool:
    """Tell whether a location is a link; everything else is a path."""
    return location.lower().startswith(("http://", "https://"))


def host(url: str) -> str:
    """Return the host of a link and its port: the only part for messages, since the rest may be secret."""
    return plain(urlsplit(url).netloc.rpartition("@")[2])


def direct(url: str) -> str:
    """Return the link that downloads the file which `url` shares. Raises DownloadError for a folder's."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname)
    except ValueError:  # half an IPv6 address, for one
        named = False
    if not named:
        shown = plain(url.partition("?")[0].rpartition("@")[2])
        raise DownloadError(f"{shown} is not a valid link; one like https://host/stage-2.pth was expected.")
    for hosts, provider, folder, rewrite in PROVIDERS:
        if re.fullmatch(hosts, parts.netloc.lower()):
            if re.match(folder, parts.path):
                raise DownloadError(
                    f"The link leads to a folder of {provider}; a link to the file itself was expected. Open "
                    "the folder, choose the file, and copy the link of that."
                )
            return rewrite(parts)
    return url


# --- the providers ------------------------------------------------------------------------------------------


def _with(parts: SplitResult, **parameters: str) -> str:
    """Return the same link over https, with parameters set."""
    kept = [(name, value) for name, value in parse_qsl(parts.query, True) if name not in parameters]
    query = urlencode(kept + list(parameters.items()))
    return parts._replace(scheme="https", query=query, fragment="").geturl()


def _dropbox(parts: SplitResult) -> str:
    query = parse_qs(parts.query)
    is_file = re.match(r"/(s|scl/fi|sh|scl/fo)/", parts.path)
    # the key of the link (rlkey) stays with it; raw=1 downloads too
    if not is_file or query.get("dl") == ["1"] or query.get("raw") == ["1"]:
        return parts.geturl()
    return _with(parts, dl="1")


def _drive(parts: SplitResult) -> str:
    query = dict(parse_qsl(parts.query))
    if parts.path == "/uc" and query.get("export") == "download":
        return parts.geturl()
    in_path = re.search(r"/file(?:/u/\d+)?/d/([^/]+)", parts.path)
    in_query = re.search(r"(^|/)(open|uc)$", parts.path) and query.get("id")
    number = in_path[1] if in_path else in_query
    if not number:
        return parts.geturl()
    key = {"resourcekey": query["resourcekey"]} if "resourcekey" in query else {}  # of files older than 2021
    return f"https://drive.google.com/uc?{urlencode({'export': 'download', 'id': number, **key})}"


def _onedrive(parts: SplitResult) -> str:
    if parts.path in ("", "/", "/redir", "/embed"):
        query = {name.lower(): value for name, value in parse_qsl(parts.query)}
        names = ("cid", "resid", "authkey")
        kept = {name: query[name] for name in names if name in query}
        if "resid" not in kept and "id" in query:
            kept["resid"] = query["id"]
        if "resid" in kept:
            return f"https://onedrive.live.com/download?{urlencode(kept)}"
    return parts.geturl()


def _onedrive_short(parts: SplitResult) -> str:
    if re.match(r"/\w/c/", parts.path):  # since 2024
        return _with(parts, download="1")
    # learn.microsoft.com/onedrive/developer/rest-api/api/shares_get: the link itself, in URL-safe base64
    token = base64.urlsafe_b64encode(parts.geturl().encode()).decode().rstrip("=")
    return "/".join((f"https://api.onedrive.com/v1.0/shares/u!{token}", "root", "content"))


def _sharepoint(parts: SplitResult) -> str:
    return _with(parts, download="1") if re.match(r"/:\w:/", parts.path) else parts.geturl()


def _part(pattern: str, replacement: str) -> Callable[[SplitResult], str]:
    """Replace a part of the path: the page of a file becomes its download."""

    def rewrite(parts: SplitResult) -> str:
        path, found = re.subn(pattern, replacement, parts.path, count=1)
        return parts._replace(scheme="https", path=path, fragment="").geturl() if found else parts.geturl()

    return rewrite


NO_FILE = r"(?!.*\.[^/.]+/?$)"  # the last part of a path has no ending: a folder within a shared folder
PROVIDERS: Final = (  # hosts, the provider's name, the paths of its folders, how the rest is rewritten
    (r"(www\.)?dropbox\.com", "Dropbox", rf"/(home|(sh|scl/fo)/{NO_FILE})", _dropbox),
    (r"(drive|docs)\.google\.com", "Google Drive", r".*/(folders|folderview|my-drive|shared-with-me)(/|$)",
     _drive),
    (r"onedrive\.live\.com", "OneDrive", r"(?!)", _onedrive),
    (r"1drv\.ms", "OneDrive", r"/f/", _onedrive_short),
    (r"[\w-]+\.sharepoint\.com", "SharePoint", r"/:f:/", _sharepoint),
    # github.com/.../raw/ answers with the file where raw.githubusercontent.com has a git-lfs pointer only
    (r"(www\.)?github\.com", "GitHub", r"/[^/]+/[^/]+/tree/",
     _part(r"^(/[^/]+/[^/]+)/blob/", r"\1/raw/")),
    (r"gitlab\.com", "GitLab", r"/.*/-/tree/", _part(r"/-/blob/", "/-/raw/")),
    # there the file is behind resolve/, and its git-lfs pointer behind raw/
    (r"(www\.)?(huggingface\.co|hf\.co)", "Hugging Face", r"(/datasets|/spaces)?/[^/]+/[^/]+/tree/",
     _part(r"^((?:/datasets|/spaces)?/[^/]+/[^/]+)/(?:blob|raw)/", r"\1/resolve/")),
)  # fmt: skip

# --- the pages ----------------------------------------------------------------------------------------------

DRIVE_HOSTS: Final = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
SIGN_IN_HOSTS: Final = r"accounts\.google\.com|login\..*"
NAMED_PAGES: Final = (  # a pattern for the title, its meaning, the remedy
    (r"quota exceeded", "too many people downloaded the file lately", "wait a day, or keep it elsewhere"),
    (r"sign.?in|log.?in", "it asks to sign in", PUBLIC),
    (r"not found|404|deleted|no longer", "the file is not there", "copy the link again"),
    (r"access denied|permission|request access", "the file is not public", PUBLIC),
)
ANY_PAGE: Final = "a page that shows the file is not the file", "use the link of its download button"


class _Page(HTMLParser):
    """The title of a page, and its forms: the action and the hidden fields of each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.title = ""
        self.forms: list[tuple[str, dict[str, str]]] = []
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_title = tag == "title"
        if tag == "form":
            self.forms.append((values.get("action", ""), {}))
        elif tag == "input" and self.forms and values.get("type") == "hidden" and values.get("name"):
            self.forms[-1][1][values["name"]] = values.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        self.title += data if self._in_title else ""


def is_page(content_type: str, start: bytes) -> bool:
    """Tell whether an answer of this type with this start is a web page."""
    return "html" in content_type.lower() and start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")


def behind_page(url: str, text: str) -> str:
    """Return the link in the form of Google Drive's page for files too large for a virus scan.

    Raises DownloadError for any other page, by its name.
    """
    page = _Page(text)
    for action, fields in page.forms:
        target = urlsplit(urljoin(url, action))
        if host(url) in DRIVE_HOSTS and target.netloc in DRIVE_HOSTS and {"id", "confirm"} <= fields.keys():
            return _with(target._replace(scheme="https"), **fields)
    title = plain(page.title, 100)
    known = "sign in" if re.fullmatch(SIGN_IN_HOSTS, host(url)) else title  # in any language
    meaning, remedy = next(
        (rest for pattern, *rest in NAMED_PAGES if re.search(pattern, known, re.IGNORECASE)), ANY_PAGE
    )
    raise NotTheFile(f"{host(url)} answered with a web page ('{title}'): {meaning}; {remedy}.")
