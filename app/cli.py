"""The command line: the arguments of each command, which is a module of app/commands; `serve` is here."""

import argparse
import importlib
import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from app.catalog import Catalog
from app.errors import SettingsError, StartupError, plain
from app.logs import open_standard_streams
from app.settings import DEMO
from app.settings_file import find_settings, load_catalog

TARGETS = ("onnx", "cpp", "node", "web")  # of an export; onnx is the model alone


def main(arguments: list[str] | None = None, program: str = "python -m app") -> int:
    """Run one command of `program`. Return 0, or another exit code after one sentence on standard error."""
    open_standard_streams()
    options = _parser(program).parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    warnings.filterwarnings("ignore", module="PIL")  # about metadata that it ignores
    for name in ("python_multipart", "app.web.protocol"):  # our own line reports a bad request
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return _run(options)
    except StartupError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(options: argparse.Namespace) -> int:
    """Import the module of the command, and run it."""
    if options.command == "serve":
        return _serve(options)
    if options.command == "cluster":
        return _cluster(options)
    if options.command in ("check", "export", "now", "predict"):  # they print answers, not a log
        logging.getLogger().setLevel(logging.WARNING)
    code: int = importlib.import_module(f"app.commands.{options.command}").run(options)
    return code


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="Put a fastai image classifier online.")
    parser.set_defaults(program=program)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the page and POST /analyze")
    serve.add_argument(
        "model",
        nargs="?",
        default="",
        metavar="FILE-or-LINK",
        help="a checkpoint, in place of the settings file; an export needs no settings",
    )

    now = commands.add_parser("now", help="put it online with Vercel")
    now.add_argument("--prod", action="store_true", help="deploy to the link that everybody can open")
    now.add_argument("--name", default="", help="name of the project and its link (default: the folder's)")
    now.add_argument("--static", action="store_true", help="a page that answers in the browser, not a server")
    now.add_argument("--dry-run", action="store_true", help="list the files without sending them")
    now.add_argument("vercel", nargs="*", metavar="-- OPTION", help="an option of `vercel deploy`")

    predict = commands.add_parser("predict", help="classify photos, as the server does")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument(
        "--json", action="store_true", help="print one JSON object a line, as POST /analyze answers"
    )

    check = commands.add_parser("check", help="evaluate the model on a folder of labeled photos")
    check.add_argument("folder", type=Path, metavar="FOLDER", help="with one sub-folder for each class")
    check.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the worst mistakes as pictures"
    )

    fetch = commands.add_parser("fetch", help="download the model, and make sure that it can be served")
    inspect = commands.add_parser("inspect", help="describe a checkpoint, and print settings that serve it")
    inspect.add_argument("file", metavar="FILE-or-URL")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")

    graph = commands.add_parser("graph", help="export the graph of an architecture (needs requirements.txt)")
    graph.add_argument("architecture", metavar="ARCHITECTURE", help="fastai's name for it, such as resnet101")

    export = commands.add_parser("export", help="write a folder that answers without Python")
    export.add_argument("folder", type=Path, metavar="DIR", help="new, empty, or of an earlier export")
    export.add_argument(
        "--to",
        nargs="+",
        choices=TARGETS,
        default=TARGETS[:3],
        help="programs around the model (default: onnx cpp node)",
    )
    export.add_argument("--half", action="store_true", help="keep the weights as float16: half the size")

    cluster = _add_cluster(commands)
    for command in (serve, cluster[0]):
        command.add_argument(
            "--host", default="127.0.0.1", help="0.0.0.0 for all addresses (default: %(default)s)"
        )
        command.add_argument(
            "--port", type=_port, default=os.environ.get("PORT", "8080"), help="default: $PORT or 8080"
        )
    for command in (serve, now, predict, check, fetch, export, *cluster):
        command.add_argument(
            "--settings",
            type=Path,
            default=find_settings(),
            metavar="FILE",
            help="default: settings.toml in the working directory, or else the demo's",
        )
    serve.set_defaults(settings=None)  # beside a model it is read only if it is named
    return parser


def _port(text: str) -> int:
    """Return the number of a port; 0 is any that is free. Raises ArgumentTypeError."""
    if not (text.isdecimal() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{plain(text)!r} is not a port, a number from 0 to 65535")
    return int(text)


def _add_cluster(commands: Any) -> list[argparse.ArgumentParser]:
    """Add the commands for several machines; return those that read the settings."""
    cluster = commands.add_parser(
        "cluster", help="serve on several machines (needs requirements-cluster.txt)"
    )
    cluster.add_argument("--join", default="", metavar="HOST", help="join the cluster whose head is there")
    cluster.add_argument(
        "--node", default="127.0.0.1", metavar="ADDRESS", help="this machine's, by which the others reach it"
    )
    cluster.add_argument("--node-port", type=_port, default=6379, help="of the head (default: %(default)s)")
    cluster.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the token of the cluster: each machine needs the same",
    )
    apply = commands.add_parser("apply", help="bring the cluster to the state of the settings file")
    status = commands.add_parser("status", help="show the applications and replicas of the cluster")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    stop = commands.add_parser("stop", help="end the node of this machine after its last request")
    for command in (cluster, apply, status, stop):
        command.add_argument("--folder", type=Path, metavar="DIR", help="of the node, for tokens and logs")
    return [cluster, apply]


def _cluster(options: argparse.Namespace) -> int:
    from app.cluster.member import member
    from app.web.process import serve

    with member(options, partial(load_catalog, options.settings)) as links:
        serve(links.table.catalog, links.read, options.host, options.port, links.fleet)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from app.commands.lan import show_address
    from app.web.process import serve

    read = partial(_catalog, options)
    catalog = read()
    if Path(catalog.settings.model_url) == DEMO:
        logging.info("this is the demo; to serve your own file: %s serve FILE-or-LINK", options.program)
    show_address(options.host, options.port)
    serve(catalog, read, options.host, options.port)
    return 0


def _catalog(options: argparse.Namespace) -> Catalog:
    """Return the model that is named on the command line, or else all that the settings file has."""
    if not options.model:
        return load_catalog(options.settings or find_settings())
    named = {name: text for name, text in os.environ.items() if name != "APP_MODEL_URL_FILE"}
    named["APP_MODEL_URL"] = options.model
    catalog = load_catalog(options.settings or Path(os.devnull), named)
    if catalog.applications:
        raise SettingsError(
            f"{options.settings} has [applications], which name their models: leave {options.model} out."
        )
    return catalog
