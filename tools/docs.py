"""Write the reference of the library: a page per topic of its public names, with search.

hatch run docs     # libs/microgpt/docs/api/index.html
"""

import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import microgpt
import msgspec
import pdoc
from jinja2 import ChoiceLoader, DictLoader, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

OUTPUT = Path(__file__).parents[1] / "libs/microgpt/docs/api"

# Title of a page: its introduction, and its names in their order. Each name is on one page.
TOPICS = {
    "Train, load, use": (
        "All that most programs need: `fit` or `load` returns a `LanguageModel`.",
        "fit load fit_chat LanguageModel History Score",
    ),
    "Documents and conversations": (
        "From files to a `Dataset`, which `fit` and `prepare` take.",
        (
            "read_documents Documents read_conversations Conversations Message read_json_lines "
            "Dataset Batch Batches"
        ),
    ),
    "Tokenizers": (
        "Text to token ids and back, by characters or subwords.",
        "Tokenizer SubwordTokenizer BaseTokenizer",
    ),
    "Training step by step": (
        "What `fit` is made of: options, a trainer that reports each step, validation, processes.",
        "prepare chat_setup TrainConfig Trainer StepReport Validation Best Ranks",
    ),
    "Prompts, replies, sampling": (
        "What `LanguageModel` reads before a text and returns, and how a token is chosen.",
        (
            "SamplingConfig Prompt ChatPrompt build_prompt Turns Reply ChatReply TextStream "
            "TextBatch LiveText PrefixCache ChosenToken StopSignal generate generate_from_prompt"
        ),
    ),
    "A look inside": (
        "What a model computes while it reads a text: `LanguageModel.trace` returns all of it.",
        "Trace",
    ),
    "Directories and snapshots": (
        "Models and unfinished runs on the disk, below `LanguageModel.save` and `load`.",
        (
            "TrainingRecord Origin holds_model check_writable lock_directory Snapshot "
            "write_snapshot read_snapshot restore holds_snapshot remove_snapshots write_file"
        ),
    ),
    "The algorithm": (
        "A GPT and how it learns, in plain Python, as the source is read.",
        "Value draw Drawing ModelConfig GPT InferenceGPT KVCache Adam train_step",
    ),
    "Engines": (
        "The same model three times; the keyword `engine` chooses.",
        "ENGINES unavailable_engines",
    ),
    "Errors": (
        "Every error says what was got, what was expected and what to do.",
        (
            "MicrogptError ChatError CheckpointError ConfigError ContextLengthError DataError "
            "EngineError NonFiniteLossError RankLostError SamplingError ShapeError TokenError"
        ),
    ),
}

# A module of such a name cannot be installed: pdoc would take type hints from it.
PAGES = {title: "microgpt-" + re.sub(r"\W+", "-", title.lower()) for title in TOPICS}
PAGE_OF = {name: PAGES[title] for title, (_, names) in TOPICS.items() for name in names.split()}
VALUES = {  # what has no docstring of its own
    "ENGINES": "Values of `engine`: `auto` is the fastest that runs here, `scalar` the definition.",
    "Message": 'One turn of a conversation: `{"role": "user" or "assistant", "content": text}`.',
    "ChatPrompt": "Another name of `Prompt`.",
    "ChatReply": "Another name of `Reply`.",
}

# A name with the module that it is from, in text, in highlighted code, and in quotes of JSON.
DOT = r'(?:\.|</span><span class=\\?"o\\?">\.</span><span class=\\?"n\\?">)'
WITH_MODULE = re.compile(rf"\bmicrogpt{DOT}(?:[a-z_]+{DOT})+(?P<name>\w+)")
IN_CODE = re.compile(r"(?<=<code>)(?P<name>\w+)(?P<member>\.\w+)?(?=</code>)")

LIST = """
<ul>
{% for title, page in pages.items() %}
    <li><a href="{{ page }}.html">{{ title }}</a></li>
{% endfor %}
</ul>
"""
TEMPLATES = {
    "module.html.jinja2": """
{% extends "default/module.html.jinja2" %}
{% block title %}{{ titles[module.modulename] }} | microgpt{% endblock %}
{% block module_list_link %}
    <a class="pdoc-button module-list-button" href="index.html">All names</a>
{% endblock %}
{% block nav_submodules %}<h2>Pages</h2>LIST{% endblock %}
{% block nav_members %}<h2>On this page</h2>{{ nav_members(module.members.values()) }}{% endblock %}
{% defaultmacro module_name() %}
    <h1 class="modulename">{{ titles[module.modulename] }}</h1>
{% enddefaultmacro %}
""".replace("LIST", LIST),
    "index.html.jinja2": """
{% set root_module_name = false %}
{% extends "default/index.html.jinja2" %}
{% block title %}microgpt{% endblock %}
{% block nav %}<h2>Pages</h2>LIST{% endblock %}
{% block content %}
    <header class="pdoc"><input type="search" placeholder="Search" aria-label="search"></header>
    <main class="pdoc">
        <h1>microgpt</h1>
        {% for page, module in all_modules.items() %}
            <h2><a href="{{ page }}.html">{{ titles[page] }}</a></h2>
            {{ module.docstring | to_html | safe }}
            <ul>
            {% for member in module.members.values() %}
                <li>
                    <a href="{{ page }}.html#{{ member.name }}"><code>{{ member.name }}</code></a>:
                    {{ member.docstring.partition("\n")[0] | to_html | striptags }}
                </li>
            {% endfor %}
            </ul>
        {% endfor %}
    </main>
    {% include "search.html.jinja2" %}
{% endblock %}
""".replace("LIST", LIST),
}


def page(title: str) -> pdoc.doc.Module:
    """Return the page of a topic as a module that holds its names."""
    introduction, names = TOPICS[title]
    module = ModuleType(PAGES[title], introduction)
    vars(module).update(
        {name: getattr(microgpt, name) for name in names.split()}, __all__=names.split()
    )
    described = pdoc.doc.Module(module)
    for member in described.members.values():
        member.fullname = f"microgpt.{member.name}"
        if member.name in VALUES:
            member.docstring = VALUES[member.name]
        if isinstance(member, pdoc.doc.Class):
            member.own_members += inherited(member)
            if issubclass(member.obj, msgspec.Struct):
                describe_fields(member)
            for each in member.own_members:
                each.fullname = f"microgpt.{each.qualname}"
    return described


def inherited(described: pdoc.doc.Class) -> list[pdoc.doc.Doc[Any]]:
    """Return the members that base classes of this library define."""
    bases = described.inherited_members.items()
    return [each for (module, _), found in bases if module.startswith("microgpt") for each in found]


def describe_fields(described: pdoc.doc.Class) -> None:
    """Give the fields of a Struct their plain type, their default and their description."""
    types = get_type_hints(described.obj)
    for field in msgspec.structs.fields(described.obj):
        shown = described.members[field.name]
        assert isinstance(shown, pdoc.doc.Variable)
        shown.annotation = types[field.name]
        if field.default is not msgspec.NODEFAULT:
            shown.default_value = field.default
        for meta in getattr(field.type, "__metadata__", ()):
            shown.docstring = meta.description or ""


@pass_context
def linkify(context: Context, code: str, namespace: str = "", *, shorten: bool = True) -> Markup:
    """Link names of other pages too, and write names without the modules that they are from."""

    def link(match: re.Match[str]) -> str:
        name = match["name"]
        target = name + (match.groupdict().get("member") or "")
        if name not in PAGE_OF:
            return target
        return f'<a href="{PAGE_OF[name]}.html#{target}">{target}</a>'

    linked = pdoc.render_helpers.linkify(context, code, namespace, shorten)
    return Markup(IN_CODE.sub(link, WITH_MODULE.sub(link, linked)))  # noqa: S704 - pdoc escaped it


def write(output: Path) -> None:
    """Write the pages, an index and the index of the search."""
    pdoc.render.configure(docformat="google", show_source=True)
    environment = pdoc.render.env
    assert environment.loader is not None
    environment.loader = ChoiceLoader([DictLoader(TEMPLATES), environment.loader])
    environment.filters["linkify"] = linkify
    environment.globals |= {
        "pages": PAGES,
        "titles": {page: title for title, page in PAGES.items()},
    }
    pages = {PAGES[title]: page(title) for title in TOPICS}
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    files = {f"{each}.html": pdoc.render.html_module(of, pages) for each, of in pages.items()}
    files["index.html"] = pdoc.render.html_index(pages)
    files["search.js"] = WITH_MODULE.sub(r"\g<name>", pdoc.render.search_index(pages))
    for name, content in files.items():
        (output / name).write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(OUTPUT)
