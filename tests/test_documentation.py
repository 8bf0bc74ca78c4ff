"""What README.md, CONTRIBUTING.md and the pages of docs/ name exists: paths, links, commands, settings, code."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

import minigpt4
from minigpt4.__main__ import COMMANDS
from minigpt4.common.config import OLD_PRECISIONS, REMOVED_KEYS
from minigpt4.common.schema import Config

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
PAGES += [ROOT / "benchmarks" / "RESULTS.md", ROOT / "recipes" / "tiny" / "README.md"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(minigpt4/[\w/]+\.py)`, `([\w.]+)`", CONTRIBUTING)
NAMED += [("minigpt4/evaluation/caption.py", "METRICS"), ("minigpt4/evaluation/caption.py", "_compute")]

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
INLINE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TRACKED = r"minigpt4|tests|benchmarks|recipes|dataset|docs|prompts|notebooks|examples|\w+_configs|eval_scripts"
REPOSITORY_PATH = re.compile(
    rf"(?<![\w./-])((?:{TRACKED})/[\w./-]*\w/?|(?:train|demo|prepare_flickr30k)\.py)(?![\w*{{<])"
)
PLACEHOLDER = re.compile(r"NAME|ARCH_TYPE")
SECTIONS = "model|run|datasets|evaluation|curation|serving|paths"
SETTING = re.compile(rf"(?<![\w./-])((?:{SECTIONS})\.[\w.]+?)(?==|\.?(?![\w.]))")
FLAG = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")
OTHER_TOOLS = {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--max-restarts"}
OTHER_TOOLS |= {"--standalone", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--index-url", "--logdir"}
OTHER_TOOLS |= {"--constraint", "--editable", "--local-dir", "--exclude", "--repo-type", "--create-dirs", "--help"}
OTHER_TOOLS |= {"--model", "--model_args", "--include_path", "--tasks", "--log_samples", "--output_path"}
OTHER_TOOLS |= {"--config", "--work-dir"}
"""Switches of torchrun, Slurm, pip, hf, curl, TensorBoard, lmms-eval and VLMEvalKit."""
PYTHON = {"model.describe", "model.stream", "model.chat"}
"""What looks like a setting and is a method."""
SECTIONS_WITH_A_CLASS = {"EvaluationConfig.generation", "DescribeConfig.generation"}
SECTIONS_WITH_A_CLASS |= {f"CurationConfig.{name}" for name in ("describe", "refine", "filter")}
"""Settings that are described by the class of their values."""
REFERENCE = runpy.run_path(str(DOCS / "make_reference.py"))


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def codes(page: Path) -> tuple[str, ...]:
    """Everything that a page sets as code: fenced and indented blocks, and spans within lines."""
    text = text_of(page)
    fenced = [match[3] for match in FENCE.finditer(text)]
    rest = FENCE.sub("", text)
    return (*fenced, *INDENTED.findall(rest), *(match[1] for match in INLINE.findall(INDENTED.sub("", rest))))


def found_in_code(pattern: re.Pattern[str]) -> list[tuple[Path, str]]:
    """(page, what the pattern's first group found), each once."""
    return sorted({(page, name) for page in PAGES for code in codes(page) for name in pattern.findall(code)})


def named(items: list[tuple[Path, str]]) -> list[str]:
    return [f"{page.name}: {name}" for page, name in items]


def test_every_path_exists() -> None:
    paths = [item for item in found_in_code(REPOSITORY_PATH) if not PLACEHOLDER.search(item[1])]
    assert len(paths) > 80
    assert named([item for item in paths if not (ROOT / item[1]).exists()]) == []


def test_every_module_can_be_run() -> None:
    modules = found_in_code(re.compile(r"-m ((?:minigpt4|benchmarks|recipes)[\w.]*\w)"))
    assert len(modules) > 3
    places = {name: ROOT / name.replace(".", "/") for _, name in modules}
    mains = {name: at / "__main__.py" if at.is_dir() else at.with_suffix(".py") for name, at in places.items()}
    assert [name for name, main in mains.items() if not main.exists()] == []


def test_every_command_exists() -> None:
    commands = found_in_code(re.compile(r"(?<![\w./-])(?<!from )minigpt4 ([a-z][\w-]*)"))
    assert named([item for item in commands if item[1] not in COMMANDS]) == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named_targets = found_in_code(re.compile(r"(?:^|\s)make ([a-z]+)\b"))
    assert named([item for item in named_targets if item[1] not in targets]) == []


def test_every_switch_is_one_of_a_command() -> None:
    folders = ("minigpt4", "dataset", "eval_scripts", "benchmarks", "recipes", "examples", "tests", "docs")
    scripts = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    known = {flag for path in scripts for flag in re.findall(r'"(--[a-z][\w-]*)"', text_of(path))}
    flags = found_in_code(FLAG)
    assert len(flags) > 30
    assert named([item for item in flags if item[1] not in known | OTHER_TOOLS]) == []


def test_every_setting_exists() -> None:
    settings = [(page, name) for page, name in found_in_code(SETTING) if name not in PYTHON]
    assert len(settings) > 40
    known = REFERENCE["json_schema"]()
    assert (
        named(
            [
                item
                for item in settings
                if item[1] not in {*REMOVED_KEYS, *OLD_PRECISIONS} and not is_known(item[1], known)
            ]
        )
        == []
    )


def is_known(key: str, known: dict) -> bool:
    """Whether the JSON Schema has a dotted key; any name is a dataset's."""
    here = known
    for part in key.split("."):
        here = known["$defs"][here["allOf"][0]["$ref"].rsplit("/", 1)[1]] if "allOf" in here else here
        further = here.get("additionalProperties")
        here = here.get("properties", {}).get(part, further if isinstance(further, dict) else None)
        if here is None:
            return further is True
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = INDENTED.sub("", FENCE.sub("", text_of(page)))
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {link}"


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts and mkdocs give the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_site_and_the_readme_lead_to_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = {path.name for path in DOCS.glob("*.md")}
    assert {name for name in leaves(site) if "/" not in name} >= pages
    assert {name for name in pages if f"(docs/{name})" in text_of(ROOT / "README.md")} == pages


def leaves(tree: object) -> Iterator[str]:
    """The texts in nested lists and mappings."""
    if isinstance(tree, str):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from leaves(child)


def test_every_python_example_imports_what_exists() -> None:
    examples = [match[3] for page in PAGES for match in FENCE.finditer(text_of(page)) if match[2] == "python"]
    nodes = [node for text in examples for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in nodes if node.module == "minigpt4" for alias in node.names}
    assert names and names <= set(minigpt4.__all__)


def test_every_message_explained_is_one_of_the_program() -> None:
    page = text_of(DOCS / "troubleshooting.md")
    explained = re.findall(r"^\| `([^`]*)`", page, re.MULTILINE)
    assert len(explained) > 25
    said = [text for path in [*ROOT.glob("*.py"), *(ROOT / "minigpt4").rglob("*.py")] for text in literals(path)]
    parts = [part.strip(" ;,()") for message in explained for part in message.split("...")]
    assert [part for part in parts if part and not any(part in text for text in said)] == []


def literals(path: Path) -> Iterator[str]:
    """The texts in a Python file; an f-string without what is formatted into it."""
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)


def test_the_reference_is_fresh() -> None:
    for path, text in REFERENCE["files"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run python docs/make_reference.py"


def test_every_setting_has_a_meaning() -> None:
    meanings = REFERENCE["MEANINGS"]
    sections = [section.__name__ for section in REFERENCE["sections"](Config, "")]
    silent = {f"{name}.{field}" for name in sections for field, meaning in meanings[name].items() if not meaning}
    assert silent <= SECTIONS_WITH_A_CLASS


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_name_is_defined_where_it_is_said_to_be(path: str, name: str) -> None:
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if part in names_of(node)]
        assert found, f"{path} has no {name}"
        body = getattr(found[0], "body", [])


def names_of(node: ast.stmt) -> list[str]:
    """Names that a statement of a module or class defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]


def test_every_package_is_in_the_tour() -> None:
    packages = {path.parent.name for path in (ROOT / "minigpt4").glob("*/__init__.py")}
    assert packages == {name for name in packages if f"`minigpt4/{name}/`" in CONTRIBUTING}
    assert len(NAMED) > 5
