"""The table of faults: what each bad input and each failure gets, and the tests that show it.

`@pytest.mark.fault("U01", "U02")` on a test says which rows it shows. `python -m tests.faults` writes
docs/faults.md anew; a test keeps it so.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = TESTS.parent / "docs" / "faults.md"

HEAD = """# Faults

The answer to each bad input and each failure, and the tests that show it. This table is generated from the
tests by `python -m tests.faults`, and a test compares it. The tests work on the real thing: a server process,
raw sockets, files, signals.

While a fault happens, `GET /healthz` still answers, and a good request beside it gets its answer. A 4xx
is one line in the log, without a traceback; nothing of an upload is stored.
"""

# id -> what comes in, and what it gets
FAULTS = {
    "Uploads": {
        "U01": ("an empty file", "400 `empty-file`"),
        "U02": ("a form without a chosen file", "400 `no-file`"),
        "U03": ("a field of another name", "200 where there is exactly one file"),
        "U04": ("a text field called file", "400 `no-file`"),
        "U05": ("several files", "400 `too-many-files`"),
        "U06": ("a raw body", "`image/*` 200, else 415 `unsupported-media-type`"),
        "U07": ("a boundary that is missing, too long or another", "400 `malformed-multipart`"),
        "U08": ("malformed part headers, no closing boundary", "400 `malformed-multipart`"),
        "U09": ("100,000 parts", "400 `too-many-parts`, closed, in half a second of CPU time"),
        "U10": ("a text field of 5 MB", "400 `field-too-large`"),
        "U11": ("a declared length over the limit", "413 before the body is read"),
        "U12": ("an endless chunked body", "413 at the limit; memory stays"),
        "U13": ("a client that leaves in the middle", "one line `client-disconnect`"),
        "U14": ("a stalled body", "408 `request-timeout` after 10 s"),
        "U15": ("half a header, or silence", "408 `request-timeout` after 10 s"),
        "U16": ("40 slow connections", "everybody else is served as before"),
        "U17": ("endless or very many headers, a long URL", "431 `header-too-large`, 414 `uri-too-long`"),
        "U18": ("text, HTML, PDF or ZIP called .jpg", "415"),
        "U19": ("a wrong extension or content type", "200: the bytes decide"),
        "U20": ("a cut off picture", "422 `truncated-image`"),
        "U21": ("damaged pixels", "422 `corrupt-image`"),
        "U22": ("any error of Pillow", "415 or 422"),
        "U23": ("SVG, EPS, WMF, PSD, PDF, FLI, DDS, BLP", "415; no other program is ever started"),
        "U24": ("animations and several pages", "200: the first frame"),
        "U25": ("a bomb below Pillow's own limit", "422 `image-too-large` before it is decoded"),
        "U26": ("decompression bombs", "422 `image-too-large`"),
        "U27": ("a large ordinary photo", "200"),
        "U28": ("1 x 1, 1 x 20000, 940 x 2", "200"),
        "U29": ("every mode of Pillow", "200; the pixels of `convert('RGB')`"),
        "U30": ("EXIF orientation 0 to 8 and garbage", "200; 1 to 8 upright, the rest as stored"),
        "U31": ("corrupt EXIF data", "200, ignored"),
        "U32": ("ICC profiles, broken and large ones", "200, ignored"),
        "U33": ("HEIC, HEIF", "415 `format-not-allowed`, with the way out"),
        "U34": ("AVIF; JPEG XL, JPEG 2000, QOI", "200; 415 `format-not-allowed`"),
        "U35": ("polyglots, scripts in metadata", "by the pixels alone: 200 or 415; never stored or echoed"),
        "U36": ("naughty file names", "200; never a path, never echoed"),
        "U37": ("further fields, unicode field names", "200, ignored"),
    },
    "HTTP": {
        "H01": ("HEAD, OPTIONS, PUT, FOO", "200 without a body; 204; 405 with Allow; 400"),
        "H02": ("three pipelined requests", "three answers in order"),
        "H03": ("smuggling: both lengths, folded lines, bad chunks, bare LF", "400 `bad-request`, closed"),
        "H04": ("Expect: 100-continue with too large a length", "413 without 100"),
        "H05": ("an error in a browser", "a page; problem+json for all others"),
        "H06": ("forged log lines", "one line, escaped"),
        "H07": ("a garbage Host, an absolute target", "200 or 400; no link is built from Host"),
        "H20": ("tiny chunks, parts and headers without number", "no stall of the event loop over 20 ms"),
        "H21": ("clients that do not read their answers", "they alone lose their connections, in 20 s"),
        "H22": ("one client's slow uploads, however many", "they give way: others are served"),
        "H23": ("every documented request, over a real connection", "as documented, HEAD too"),
        "H24": ("half-closed requests; photos in other wrappings", "served, or the cause is named"),
    },
    "Image by URL": {
        "S01": ("private, loopback, metadata addresses", "422 `url-not-allowed`, one answer; nothing sent"),
        "S02": ("decimal, octal, hexadecimal, short, mapped addresses", "422 `url-not-allowed`"),
        "S03": ("hosts in other scripts' digits and dots", "422 `url-not-allowed`"),
        "S04": ("user names, backslashes, tabs in links", "422 `url-not-allowed`"),
        "S05": ("DNS rebinding", "422: the address connected to is the one that was judged"),
        "S06": ("redirects inwards, to other schemes, in rings", "422 `url-not-allowed`, 502 `fetch-failed`"),
        "S07": ("file:, ftp:, gopher:, data:, no scheme", "422 `url-not-allowed`"),
        "S08": ("404, refused connections, unknown hosts", "502 `fetch-failed`, nothing of it echoed"),
        "S09": ("slow or endless answers", "504 `fetch-timeout`; 422 `image-too-large`"),
        "S10": ("compressed answers", "identity is asked for; 502 `fetch-failed`"),
        "S11": ("a link to a web page", "415 `not-an-image`"),
        "S12": ("the server's own address", "422 `url-not-allowed`"),
        "S13": ("a proxy in the environment", "ignored"),
    },
    "The model file": {
        "M01": ("404, 403, 401, 410", "one sentence, exit code 1"),
        "M02": ("a web page instead of the file", "Drive's form is followed; else one sentence"),
        "M03": ("a git-LFS pointer, XML, JSON, nothing, zeros", "one sentence; the file is not kept"),
        "M04": ("share links", "rewritten to the direct form"),
        "M05": ("another sha256", "refused, never loaded"),
        "M06": ("a connection that breaks", "resumed"),
        "M07": ("a host that ignores Range", "from the start, not doubled"),
        "M08": ("a file that changes between two pieces", "from the start"),
        "M09": ("500, 503, 429, then the file", "tried again when the host says"),
        "M10": ("redirects in circles, or from https to http", "one sentence, exit code 1"),
        "M11": ("a slow host", "503 `model-loading` meanwhile; a stalled one is given up"),
        "M12": ("a full disk, a read-only folder", "a temporary folder, or one sentence"),
        "M13": ("two processes on one folder", "both serve; no half file"),
        "M14": ("an end in the middle of a download", "no half file under the final name"),
        "M15": ("an endless file", "stopped at the limit"),
        "M16": ("malicious pickles", "refused by name; nothing is run"),
        "M17": ("any error of a damaged file", "one sentence"),
        "M18": ("a class list of another length, names twice or empty", "one sentence with both numbers"),
        "M19": ("an unsorted class list", "a warning; a proof finds it out"),
        "M20": ("another architecture, prefixes, half precision, CUDA", "recognized, or one sentence"),
        "M30": (
            "a file that asks for more memory or time than its size explains",
            "one sentence; pickles get 25 times their size and 32 MB, ONNX files 8 times and 1 GB",
        ),
        "M31": ("an export that names code", "never run; `inspect` and the log list them"),
        "M32": ("hostile names, titles and phrases", "300 characters on one line, no control characters"),
        "M21": ("NaN or infinite weights or outputs", "refused at the start; 500 `bad-output`"),
    },
    "Load": {
        "L01": ("several times the capacity", "200, 95 % in 4 s, or 503 with Retry-After; none is lost"),
        "L02": ("a client that leaves while it waits", "dropped before it is computed"),
        "L03": ("waiting past the deadline", "503, not computed"),
        "L04": ("after the flood", "quick again within 5 s; a second flood adds less than 64 MB"),
        "L05": ("health during the flood", "99 % within 100 ms, not counting waits for a core"),
        "L06": ("a poisonous picture in a batch", "only that request fails"),
        "L07": ("one client's flood; a forged X-Forwarded-For", "429 `rate-limited`; it is not believed"),
    },
    "The process": {
        "P01": ("SIGTERM with requests under way", "all are answered and announce the close; exit code 0"),
        "P02": ("a second SIGTERM or SIGINT", "the end, at once"),
        "P03": ("kill -9, out of memory", "the host starts it again; it is ready in about a second"),
        "P04": ("read-only files, any user, no HOME, $PORT", "starts"),
        "P05": ("the clock jumps", "every deadline is monotonic"),
        "P06": ("stdout and stderr closed, or full", "keeps serving"),
        "P07": ("64 file descriptors", "refuses the surplus, recovers"),
        "P20": ("after a flood", "resident memory is back within 20 MB"),
    },
}  # fmt: skip

# Rows without a test, and why
NOT_TESTED = {
    "P03": "there is one process; when it is killed, its requests are lost, and its host starts it again",
    "P05": "no test may set its machine's clock; all deadlines are of time.monotonic",
}


def shown_by() -> dict[str, list[str]]:
    """The tests by the ids in their markers: "web/app: a sentence"."""
    shown: dict[str, list[str]] = {}
    for path in sorted([*TESTS.glob("test_*.py"), *TESTS.glob("*/test_*.py")]):
        name = path.relative_to(TESTS).as_posix().removesuffix(".py").replace("test_", "")
        for test in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                for row in _marked(test):
                    sentence = test.name.removeprefix("test_").replace("_", " ")
                    shown.setdefault(row, []).append(f"{name}: {sentence}")
    return shown


def _marked(test: ast.FunctionDef) -> Iterator[str]:
    """The ids of the markers on a test or on its parameters, each once."""
    calls = (node for decorator in test.decorator_list for node in ast.walk(decorator))
    marks = [
        call for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".fault")
    ]
    yield from dict.fromkeys(ast.literal_eval(row) for mark in marks for row in mark.args)


def document() -> str:
    """docs/faults.md as it must be."""
    shown = shown_by()
    lines = [HEAD]
    for title, rows in FAULTS.items():
        lines += [f"## {title}\n", "| row | input or fault | answer | shown by |", "|---|---|---|---|"]
        for row, (fault, result) in rows.items():
            tests = "<br>".join(shown.get(row, [])) or f"not tested: {NOT_TESTED.get(row, 'no test yet')}"
            lines.append(f"| {row} | {fault} | {result} | {tests} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), "utf-8")
