#!/usr/bin/env python3
"""Goldens of the Jinja engine, made by jinja2 as transformers sets it up.

Usage: chat_templates.py SHARED_DATA_DIR OUTPUT_DIR

Writes
  contexts.json   [{name, context}]: the inputs of the chat templates
  rendered.json   {template: {context index: text | {"raise": message} | {"error": type and message}}}
                  for every template under SHARED_DATA_DIR; equal texts are stored once, in "texts"
  language.json   [{template, context?, text | raise | error}]: small templates, one language feature each
Needs: transformers, jinja2.
"""

import datetime
import json
import pathlib
import sys

import jinja2
from transformers.utils import chat_template_utils

from chat_template_language import CASES, CONTEXT


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, 13, 5, 9)


chat_template_utils.datetime = FixedClock


def render(source, context):
    """The text, {"raise": message} of raise_exception, or {"error": "Type: message"}."""
    try:
        template = chat_template_utils._compile_jinja_template(source)
        return template.render(**context)
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            return {"raise": str(error)}
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:  # noqa: BLE001: whatever Python raises is the golden
        return {"error": f"{type(error).__name__}: {error}"}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's name"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": ["integer", "null"], "minimum": 0.5},
            },
            "required": ["city"],
        },
        "return": {"type": "string", "description": "A sentence"},
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find \"things\" <quickly> & well.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "filters": {
                    "type": "object",
                    "properties": {"tags": {"type": "array", "items": {"type": "string"}}},
                    "required": ["tags"],
                },
            },
            "required": [],
        },
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "서울", "unit": "celsius", "days": 2}},
}
CALL_TEXT = {
    "id": "call00002",
    "type": "function",
    "function": {"name": "search", "arguments": "{\"query\": \"x\"}"},
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


TOOL_TURN = [
    user("Weather in Seoul?"),
    assistant("", tool_calls=[CALL]),
    {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "{\"temp\": 21.5}"},
    assistant("It is 21.5 degrees."),
    user("Thanks"),
]


def contexts():
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

    def make(messages, generate=True, tools=None, **more):
        return {
            "messages": messages, "tools": tools, "documents": None, "add_generation_prompt": generate, **tokens, **more,
        }

    multi = [system("Be brief."), user("Hi"), assistant("Hello!"), user("  What is 2+2? \n")]
    return {
        "user": make([user("Hello, world")]),
        "user, no generation prompt": make([user("Hello, world")], False),
        "multi-turn": make(multi),
        "ends with assistant": make([*multi, assistant("4")], False),
        "unicode": make([system("너는 조수다.\n\n규칙: <답>"), user("안녕하세요? \U0001f600\t'\"&"), assistant("네…\n"), user("é")]),
        "empty content": make([user(""), assistant(""), user("x")]),
        "roles out of order": make([user("a"), user("b"), assistant("c"), assistant("d")]),
        "starts with assistant": make([assistant("a"), user("b")]),
        "developer": make([{"role": "developer", "content": "Obey."}, user("b")]),
        "tools": make([system("Use tools."), user("Weather?")], True, [WEATHER, SEARCH]),
        "tool calls": make(TOOL_TURN, True, [WEATHER]),
        "tool calls, no tools": make(TOOL_TURN[:3]),
        "tool call text arguments": make(
            [user("find"), assistant(None, tool_calls=[CALL_TEXT]),
             {"role": "tool", "tool_call_id": "call00002", "content": "none"}], True, [SEARCH]),
        "reasoning": make(
            [user("q"), assistant("a", reasoning_content="because", thinking="because"), user("q2"),
             assistant("<think>\nhm\n</think>\n\nb"), user("q3")], True, enable_thinking=True, thinking=True),
        "no thinking": make([user("q")], True, enable_thinking=False, thinking=False, reasoning_effort="low"),
        "content parts": make(
            [{"role": "system", "content": parts("S1")}, {"role": "user", "content": parts("one", "두")},
             {"role": "assistant", "content": parts("three")},
             {"role": "user", "content": [{"type": "image"}, *parts("What?")]}]),
        "no messages": make([]),
        "dates and names": make(
            [{"role": "user", "content": "q", "name": "bob"}], True, date_string="05 May 2025",
            builtin_tools=["brave_search"], model_identity="You are X.", keep_past_thinking=True),
    }


def templates(root):
    """Name -> source, in a fixed order."""
    out = {}
    for path in sorted((root / "chat-templates").rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix in (".jinja", ".jinja2"):
            out[name] = path.read_bytes().decode("utf-8")
        elif path.name == "templates.jsonl":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
                for key, source in json.loads(line).items():
                    out[f"{name}#{number}/{key}"] = source
    for folder in ("chat-templates", "tokenizers"):
        for path in sorted((root / folder).rglob("*.json")):
            if path.name not in ("tokenizer_config.json", "chat_template.json"):
                continue
            source = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            name = path.relative_to(root).as_posix()
            if isinstance(source, str):
                out[name] = source
            elif isinstance(source, list):
                for entry in source:
                    out[f"{name}#{entry['name']}"] = entry["template"]
    return out


def dump(path, value, indent=None):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent, separators=(",", ":")) + "\n", encoding="utf-8")


def main():
    root, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    inputs = contexts()
    dump(output / "contexts.json", [{"name": name, "context": context} for name, context in inputs.items()])
    texts, rendered = {}, {}
    for name, source in templates(root).items():
        rendered[name] = []
        for context in inputs.values():
            result = render(source, json.loads(json.dumps(context)))
            rendered[name].append(texts.setdefault(result, len(texts)) if isinstance(result, str) else result)
    dump(output / "rendered.json", {"texts": list(texts), "templates": rendered}, 0)
    language = []
    for case in CASES:
        source, context = case if isinstance(case, tuple) else (case, None)
        result = render(source, json.loads(json.dumps(CONTEXT if context is None else context)))
        if isinstance(result, str) and " at 0x" in result:
            continue  # CPython prints an address; no template can depend on it
        entry = {"template": source}
        if context is not None:
            entry["context"] = context
        entry.update({"text": result} if isinstance(result, str) else result)
        language.append(entry)
    dump(output / "language.json", {"context": CONTEXT, "cases": language}, 0)
    count = sum(len(results) for results in rendered.values())
    print(f"{len(rendered)} templates x {len(inputs)} contexts = {count}; {len(language)} language cases")


if __name__ == "__main__":
    main()
