"""Find English that has to be read twice: `python -m tests.english [PATH ...]` prints its lines.

It reads docstrings, comments, messages (strings of four words or more) and names of tests in Python; Markdown
outside code; comments of TOML files and the Makefile; texts and comments of the page.

It counts `what` and `who` in the place of a noun, since the reader learns too late which thing is meant:
not `refuse what is damaged` but `refuse damaged files`, not `for who retries` but `for clients that retry`.
An embedded question counts as well (`says what a file is`). A few are good English, so tests/test_english.py
allows two per 1,000 words, as many as other well-kept projects have. It does not count

- questions: sentences, and titles in quotes, that end in a question mark;
- relative `who`, which follows its noun: `people who use it`.

BANNED and BRITISH list the words and spellings that are refused everywhere.
"""

import ast
import html
import io
import json
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

EVERYTHING = (
    "README.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "Makefile",
    "docs",
    "app",
    "tests",
    "notebook",
    "examples",
)
SUFFIXES = {".py", ".md", ".toml", ".html", ".js", ".css"}
SKIPPED = {
    "node_modules",
    "data",
    "__pycache__",
    "english.py",
    "test_english.py",
}  # these two quote the words

NOMINAL = re.compile(r"\b(what|whatever|who|whoever|whom|whomever)\b", re.I)
# After one of these "who" takes the place of a noun; any other word before it is taken for its noun.
NOT_NOUNS = frozenset(
    """
    a about after again all also and any are as asks at be before being beside but by can comes decide
    decides else except find for from gives has have how if in into is it know knows let lets like
    limits may must names no not of off on only or out over right say says see show shows since so some
    tell tells than that the then there this to told under until up upon used was were when where
    whether which while with without
    """.split()
)
BANNED = re.compile(
    r"\b(?:anew|though|wherever|hears? of|heard of|goes on|going on(?! the\b)|went on)\b"
    r"|\bsa(?:y|ys|id|ying) so\b"
    r"|(?<!there )\b(?:is|are|was|were) no (?!longer|more|less|fewer|better|worse|quicker|slower|larger)\w+",
    re.I,
)
BRITISH = re.compile(
    r"\b(?:colour|behaviour|favour|honour|neighbour|labour|flavour)\w*\b"
    r"|\b(?:centres?|centred|metres?|litres?|grey\w*|licences?|defences?|programmes?|artefacts?)\b"
    r"|\b(?:whilst|amongst|judgements?)\b"
    r"|\b(?:de|un|re)?(?:normal|recogn|initial|optim|serial|organ|summar|quant|real|final|minim|maxim|general"
    r"|special|local|synchron|author|custom|categor|character|priorit|standard|util|visual|token|memor|emphas"
    r"|random|sanit|stabil|anonym|canonical)is(?:e|es|ed|er|ers|ing|ation|ations)\b"
    r"|\b(?:analys|catalys|paralys)(?:e|es|ed|ing)\b"
    r"|\b(?:labell|travell|modell|signall|channell|marshall)(?:ed|ing|er|ers)\b",
    re.I,
)
CODE = re.compile(r"`[^`]*`|https?://\S+")
SENTENCE_END = re.compile(r"[.?!][\"')*_]*(?=\s)|\n\s*\n|\n(?=\s*[-*|#])|:\s*\n\s*\n")


class Text(NamedTuple):
    """A piece of prose and its first line."""

    line: int
    prose: str


class Finding(NamedTuple):
    """A word that stops a reader, in its sentence."""

    path: Path
    line: int
    word: str
    sentence: str


class Report(NamedTuple):
    """The findings of some files, and the number of their words."""

    nominal: list[Finding]
    refused: list[Finding]
    words: int

    @property
    def per_thousand(self) -> float:
        """How many nominal words stand in 1,000 words."""
        return 1000 * len(self.nominal) / max(self.words, 1)


def read(*paths: Path) -> Report:
    """Read files and folders."""
    found: list[Finding] = []
    wrong: list[Finding] = []
    words = 0
    for path in (file for folder in paths for file in _files(folder)):
        for text in _texts(path):
            prose = CODE.sub(lambda code: re.sub(r"\S+", "X", code[0]), text.prose)
            words += len(re.findall(r"[A-Za-z][\w'-]*", prose))
            for line, sentence in _sentences(text.line, prose):
                shown = " ".join(sentence.split())
                found += [Finding(path, line, word, shown) for word in nominal(sentence)]
                wrong += [Finding(path, line, word, shown) for word in refused(sentence)]
    return Report(found, wrong, words)


def nominal(sentence: str) -> list[str]:
    """Return each `what` and `who` that takes the place of a noun."""
    if sentence.rstrip("\"'*_) \n").endswith("?"):
        return []
    return [found[1] for found in NOMINAL.finditer(sentence) if not _asks_or_follows(sentence, found)]


def _asks_or_follows(sentence: str, found: re.Match[str]) -> bool:
    """Whether a word asks within quotes, or is a relative `who`."""
    if re.match(r"[^\"]*\?\"", sentence[found.start() :]):
        return True
    before = re.search(r"([\w'-]+)[,\s*_]*$", sentence[: found.start()])
    return found[1].lower() in ("who", "whom") and before is not None and before[1].lower() not in NOT_NOUNS


def refused(sentence: str) -> list[str]:
    """Return each word and spelling that the house does not use."""
    return [found[0] for rule in (BANNED, BRITISH) for found in rule.finditer(sentence)]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        file
        for file in path.rglob("*")
        if (file.suffix in SUFFIXES or (file.suffix == ".json" and file.parent.name == "view"))
        and not SKIPPED & set(file.relative_to(path).parts)
    )


def _sentences(line: int, text: str) -> Iterator[tuple[int, str]]:
    """Yield each sentence with its first line."""
    start = 0
    for end in [*(found.end() for found in SENTENCE_END.finditer(text)), len(text)]:
        sentence = text[start:end]
        if sentence.strip():
            lead = len(sentence) - len(sentence.lstrip())
            yield line + text.count("\n", 0, start + lead), sentence
        start = end


def _texts(path: Path) -> Iterator[Text]:
    return READERS.get(path.suffix, _hash_comments)(path.read_text())


def _python(source: str) -> Iterator[Text]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield Text(node.body[0].lineno, docstring)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield Text(node.lineno, node.name.removeprefix("test_").replace("_", " "))
        yield from _messages(node)
    yield from _python_comments(source)


def _messages(node: ast.AST) -> Iterator[Text]:
    """Yield the strings right below a node that are sentences: four words or more, no docstring."""
    if isinstance(node, ast.Expr | ast.JoinedStr):
        return
    for child in ast.iter_child_nodes(node):
        text = ""
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            text = child.value
        elif isinstance(child, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "X" for part in child.values
            )
        if len(re.findall(r"\b[a-z]+ (?=[a-z])", text)) >= 3:
            yield Text(getattr(child, "lineno", 1), text)


def _python_comments(source: str) -> Iterator[Text]:
    """Yield comments; those on successive lines of their own are one text."""
    pending: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        words = token.string.lstrip("#! ")
        if token.type != tokenize.COMMENT or re.match(r"noqa|type:|pragma|fmt:", words):
            continue
        follows = (
            pending and token.start[0] == pending[-1][0] + 1 and not token.line[: token.start[1]].strip()
        )
        if pending and not follows:
            yield Text(pending[0][0], "\n".join(words for _, words in pending))
            pending = []
        pending.append((token.start[0], words))
    if pending:
        yield Text(pending[0][0], "\n".join(words for _, words in pending))


def _markdown(source: str) -> Iterator[Text]:
    blocks = re.compile(r"```.*?```|<!--.*?-->", re.S)
    source = blocks.sub(lambda found: "\n" * found[0].count("\n"), source)
    yield Text(1, re.sub(r"\]\([^)]*\)", "]", source))


def _hash_comments(source: str) -> Iterator[Text]:
    for number, line in enumerate(source.splitlines(), 1):
        found = re.search(r"(?:^|\s)#+ (.*)", line)
        if found:
            yield Text(number, found[1])


def _json(source: str) -> Iterator[Text]:
    pending = [json.loads(source)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            pending.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, str) and " " in value:
            at = source.find(json.dumps(value, ensure_ascii=False)[1:-1])
            yield Text(source.count("\n", 0, max(at, 0)) + 1, value)


def _html(source: str) -> Iterator[Text]:
    blocks = re.compile(r"<(script|style|pre)\b.*?</\1>|<!--.*?-->", re.S)
    source = blocks.sub(lambda found: "\n" * found[0].count("\n"), source)
    source = re.sub(r"<code>.*?</code>", "X", source, flags=re.S)
    yield Text(1, html.unescape(re.sub(r"</?(?:p|li|td|th|h\d|dt|dd|tr|label|button)\b[^>]*>", ". ", source)))


def _script(source: str) -> Iterator[Text]:
    for found in re.finditer(r"/\*[\s\S]*?\*/|(?:^|(?<=\s))//[^\n]*", source):
        yield Text(source.count("\n", 0, found.start()) + 1, found[0].strip("/* "))


READERS: dict[str, Callable[[str], Iterator[Text]]] = {
    ".py": _python, ".md": _markdown, ".json": _json, ".html": _html, ".js": _script, ".css": _script
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Print the findings and their count; 1 if there are too many."""
    report = read(*(Path(argument) for argument in arguments or EVERYTHING))
    for finding in [*report.nominal, *report.refused]:
        print(f"{finding.path}:{finding.line}: {finding.word!r} in: {finding.sentence}")
    print(
        f"{len(report.nominal)} nominal what/who in {report.words} words: {report.per_thousand:.1f} per 1,000"
    )
    print(f"{len(report.refused)} words and spellings that the house does not use")
    return int(report.per_thousand > 2 or bool(report.refused))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
