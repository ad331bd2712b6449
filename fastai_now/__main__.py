"""The command `fastai-now`, which is also `python -m fastai_now`."""

import sys
from pathlib import Path


def main() -> int:
    """Run the command line of the application, and return its exit code."""
    # Installed, the application is inside this package: other projects have an `app` of their own, such as a
    # Gradio demo in the working directory. In a checkout it is beside this package.
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here if (here / "app").is_dir() else here.parent))
    from app import cli

    return cli.main(program="fastai-now")


if __name__ == "__main__":
    sys.exit(main())
