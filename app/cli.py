"""The command line: serve, now, predict, check, fetch, graph. Thin: each command says what it does and calls
what does it.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import msgspec

from app.errors import RequestError, StartupError
from app.logs import open_standard_streams
from app.progress import progress_bar
from app.settings import DEMO, SETTINGS_FILE, load_settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, or another with one sentence on standard error."""
    open_standard_streams()
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    warnings.filterwarnings("ignore", module="PIL")  # of metadata that it then ignores
    for name in ("python_multipart", "app.web.protocol"):  # a bad request is one line, ours
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code: int = options.run(options)
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except (
        BrokenPipeError
    ):  # whoever reads us has seen enough, `| head` for one; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app", description="Put a fastai image classifier online."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the page and POST /analyze")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for all addresses (default: %(default)s)")
    serve.add_argument(
        "--port", type=int, default=os.environ.get("PORT", "8080"), help="default: $PORT or 8080"
    )
    serve.set_defaults(run=_serve)

    now = commands.add_parser("now", help="put it online with Vercel")
    now.add_argument("--prod", action="store_true", help="under the link that everybody can open")
    now.add_argument("--name", default="", help="of the project, and so of the link (default: this folder's)")
    now.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    now.add_argument("vercel", nargs="*", metavar="-- OPTION", help="handed on to `vercel deploy`")
    now.set_defaults(run=_now)

    predict = commands.add_parser("predict", help="say what is on photos, as the server would")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument(
        "--json", action="store_true", help="one JSON object a line, as POST /analyze answers"
    )
    predict.set_defaults(run=_predict)

    check = commands.add_parser("check", help="how good is what is served? ask a labelled folder")
    check.add_argument("folder", type=Path, metavar="FOLDER", help="with one sub-folder a class")
    check.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the worst mistakes as pictures"
    )
    check.add_argument(
        "--against", type=Path, metavar="FILE", help="compare with probabilities that a notebook saved"
    )
    check.set_defaults(run=_check)

    fetch = commands.add_parser("fetch", help="download what is served, and see that it can be served")
    fetch.set_defaults(run=_fetch)
    inspect = commands.add_parser("inspect", help="what is in a checkpoint, and which settings serve it")
    inspect.add_argument("file", metavar="FILE-or-URL")
    inspect.add_argument("--json", action="store_true", help="the same for programs, as one JSON object")
    inspect.set_defaults(run=_inspect)

    graph = commands.add_parser("graph", help="export the graph of an architecture (needs requirements.txt)")
    graph.add_argument("architecture", metavar="ARCHITECTURE", help="fastai's name for it, such as resnet101")
    graph.set_defaults(run=_graph)

    for command in (serve, now, predict, check, fetch):
        command.add_argument("--settings", type=Path, default=SETTINGS_FILE, metavar="FILE")
    return parser


def _serve(options: argparse.Namespace) -> int:
    from app.web.process import serve

    settings = load_settings(options.settings)
    if Path(settings.model_url) == DEMO:
        logging.info("this is the demo: edit model_url and classes in %s to serve your own", options.settings)
    serve(settings, options.host, options.port)
    return 0


def _now(options: argparse.Namespace) -> int:
    from app.commands.now import now

    logging.getLogger().setLevel(logging.WARNING)
    now(
        options.settings,
        name=options.name,
        production=options.prod,
        dry_run=options.dry_run,
        arguments=options.vercel,
        say=partial(print, flush=True),  # in its place among what Vercel's command line says
        report=_show_progress,
    )
    return 0


def _predict(options: argparse.Namespace) -> int:
    from app.metrics import Metrics
    from app.serving.opening import open_predictor

    logging.getLogger().setLevel(logging.WARNING)

    async def run() -> int:
        predictor = await open_predictor(load_settings(options.settings), _show_progress, Metrics())
        _show_progress("", None)
        failed = 0
        for path in options.images:
            try:
                prediction = await predictor.predict(path.read_bytes())
            except (RequestError, OSError) as error:
                failed = 1
                print(f"{path}: {error}", file=sys.stderr)
                continue
            if options.json:
                print(json.dumps({"file": str(path), **msgspec.to_builtins(prediction)}))
            else:
                print(f"{path}: {prediction.result} ({prediction.confidence:.1%})")
        await predictor.close()
        return failed

    return asyncio.run(run())


def _check(options: argparse.Namespace) -> int:
    from app.commands import check
    from app.metrics import Metrics
    from app.serving.opening import open_predictor

    logging.getLogger().setLevel(logging.WARNING)
    settings = load_settings(options.settings)

    def left_out(path: Path, error: Exception) -> None:
        print(f"{path} is left out: {error}", file=sys.stderr)

    async def run() -> check.Evaluation:
        predictor = await open_predictor(settings, _show_progress, Metrics())
        try:
            if predictor.multi_label:
                raise StartupError("check needs one right class a photo; multi_label has several.")
            return await check.evaluate(options.folder, predictor, _show_progress, left_out)
        finally:
            await predictor.close()

    result = asyncio.run(run())
    print(check.as_text(result))
    if options.against:
        print(f"\n{check.against(result, options.folder, options.against)}")
    if options.html:
        options.html.write_text(check.as_page(result), "utf-8")
        print(f"\n{options.html} shows the worst mistakes")
    return 0


def _show_progress(
    phase: str, percent: int | None, received: int | None = None, total: int | None = None
) -> None:
    """Long work shows progress, where somebody looks at it; an empty phase wipes it away."""
    if not sys.stderr.isatty():
        return
    print(f"\r\x1b[K{progress_bar(phase, percent, received)}", end="", file=sys.stderr, flush=True)


def _fetch(options: argparse.Namespace) -> int:
    from app.commands.now import opened

    card = opened(load_settings(options.settings), _show_progress)
    print(f"{card.architecture}, {card.bytes:,} bytes, sha256 {card.sha256}: ready to be served")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from app.serving.opening import inspect_file
    from app.serving.resolve import as_text

    report = asyncio.run(inspect_file(options.file, _show_progress))
    _show_progress("", None)
    print(json.dumps(msgspec.to_builtins(report)) if options.json else as_text(report))
    return 0 if report.served else 1


def _graph(options: argparse.Namespace) -> int:
    from app.graphs.export import export_graph
    from app.graphs.graph import FOLDER
    from app.graphs.quantize import quantize_graph

    path = export_graph(options.architecture, FOLDER)
    ends = [".json", *([".int8.onnx", ".ranges.onnx"] if quantize_graph(path) else [])]
    print(
        f"{path}, {', '.join(path.with_suffix(end).name for end in ends)}: deploy them with the application"
    )
    return 0
