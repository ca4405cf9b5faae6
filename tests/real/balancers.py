"""Load balancers that tests start: HAProxy and nginx, each with a configuration."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from real.tools import Process, Start, program


def start_haproxy(text: str, folder: Path, start: Start) -> Process:
    file = folder / "haproxy.cfg"
    file.write_text(text)
    return start(program("haproxy"), "-db", "-f", str(file))


def start_nginx(text: str, folder: Path, start: Start) -> Process:
    module = stream_module()
    load = f"load_module {module};" if module else ""
    ours = f"{load} daemon off; master_process off; pid {folder}/pid;"
    file = folder / "nginx.conf"
    file.write_text(f"{ours}\n{text}")
    words = ["-p", str(folder), "-e", "stderr", "-c", str(file)]
    return start(program("nginx"), *words)


def stream_module() -> str | None:
    """The path of nginx's stream module, "" if it is built in, None without it."""
    shown = subprocess.run([program("nginx"), "-V"], capture_output=True, text=True)
    if re.search(r"--with-stream(\s|$)", shown.stderr):
        return ""
    folder = re.search(r"--modules-path=(\S+)", shown.stderr)
    path = Path(folder[1] if folder else "") / "ngx_stream_module.so"
    return str(path) if path.is_file() else None
