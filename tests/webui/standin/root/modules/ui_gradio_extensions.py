"""Putting the host's script, the extensions' scripts and their styles into the page's HTML."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
from modules import scripts, shared
from modules.paths_internal import script_path


def webpath(path: str) -> str:
    """Address of a file, with its time so that a changed one is fetched again."""
    return f"file={Path(path).as_posix()}?{Path(path).stat().st_mtime}"


def _head() -> str:
    files = [str(Path(script_path) / "script.js"), *[file.path for file in scripts.list_scripts("javascript", ".js")]]
    values = {key: value for key, value in shared.opts.data.items() if isinstance(value, (bool, int, float, str, list))}
    own = f'<script type="text/javascript">window.opts = {json.dumps(values)}; window.localization = {{}};</script>\n'
    return own + "".join(f'<script type="text/javascript" src="{webpath(file)}"></script>\n' for file in files)


def _styles() -> str:
    files = scripts.list_files_with_name("style.css")
    return "".join(f'<link rel="stylesheet" property="stylesheet" href="{webpath(file)}">' for file in files)


def allowed_paths() -> list[str]:
    """Folders that gradio may serve files from."""
    from modules import extensions

    return [script_path, shared.data_path, *[extension.path for extension in extensions.active()]]


def reload_javascript() -> None:
    """Make the page's template carry today's scripts and styles."""
    templates = gr.routes.templates
    original = getattr(templates, "standin_original", None) or templates.TemplateResponse
    templates.standin_original = original

    def template_response(*args, **kwargs):
        response = original(*args, **kwargs)
        response.body = response.body.replace(b"</head>", f"{_head()}</head>".encode())
        response.body = response.body.replace(b"</body>", f"{_styles()}</body>".encode())
        response.init_headers()
        return response

    templates.TemplateResponse = template_response
