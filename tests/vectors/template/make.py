#!/usr/bin/env python3
"""Makes the vectors of the chat template interpreter from Jinja itself.

    make.py                 writes cases.json and renders.json beside this file
    make.py --extra OUT DIR writes OUT, renders of every *.jinja below DIR (templates whose licence
                            does not let us keep them here), for TEMPLATE_EXTRA of the unit test

The reference is jinja2 3.1.6 set up by transformers' _compile_jinja_template, rendered with the
variables that apply_chat_template passes. Needs: pip install transformers jinja2.
"""
import json
import pathlib
import sys
from datetime import datetime, timezone

import jinja2
from transformers.utils.chat_template_utils import _cached_compile_jinja_template

HERE = pathlib.Path(__file__).parent
NOW = 1718454645  # 2024-06-15 12:30:45 UTC


def strftime_now(form):
    return datetime.fromtimestamp(NOW, timezone.utc).strftime(form)


def render(source, variables):
    """{"text": ...} or {"error": "syntax" | "raise" | "other"}; raise carries the message."""
    try:
        template = _cached_compile_jinja_template(source)
    except (jinja2.TemplateSyntaxError, SyntaxError, RecursionError):
        return {"error": "syntax"}
    try:
        return {"text": template.render(strftime_now=strftime_now, **variables)}
    except Exception as e:
        if type(e) is jinja2.exceptions.TemplateError:
            return {"error": "raise", "message": str(e)}
        return {"error": "other"}


def conversation_variables(c, generate):
    return {
        "bos_token": "<s>",
        "eos_token": "</s>",
        **c.get("kwargs", {}),
        "messages": c["messages"],
        "tools": c.get("tools"),
        "documents": c.get("documents"),
        "add_generation_prompt": generate,
    }


def renders(templates):
    conversations = json.loads((HERE / "conversations.json").read_text())
    out = []
    for path in templates:
        source = path.read_text()
        for c in conversations:
            for generate in (False, True):
                result = render(source, conversation_variables(c, generate))
                out.append({"template": str(path.resolve()) if path.parent != HERE else path.name,
                            "conversation": c["name"], "generate": generate, **result})
    return out


def write(path, rows):
    lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    path.write_text("[\n" + lines + "\n]\n")
    errors = sum("error" in r for r in rows)
    print(f"{path.name}: {len(rows)} vectors, {errors} of them errors")


def main():
    if sys.argv[1:2] == ["--extra"]:
        write(pathlib.Path(sys.argv[2]), renders(sorted(pathlib.Path(sys.argv[3]).rglob("*.jinja"))))
        return
    from cases import CASES, VARIABLES

    rows = [{"source": s, **render(s, VARIABLES)} for s in CASES]
    write(HERE / "cases.json", rows)
    (HERE / "variables.json").write_text(json.dumps(VARIABLES, ensure_ascii=False, indent=1) + "\n")
    write(HERE / "renders.json", renders(sorted(HERE.glob("*.jinja"))))


if __name__ == "__main__":
    main()
