"""nginx and HAProxy with the configurations of deploy/proxy, in front of ports of this machine; they wait for a second for a connection, not five."""
import contextlib
import re
import shutil
import socket
import subprocess
import time

import pytest

from process import PATIENCE, ROOT, free_port

PROXIES = ROOT / "deploy/proxy"


def find(program):
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def for_each(ports, pattern, text):
    """Each line of the configuration that names the one replica, once for every port."""
    lines = re.findall(pattern, text, re.M)
    assert lines
    for line in lines:
        text = text.replace(line, "".join(line.replace("local", f"at-{port}").replace("8000", str(port)) for port in ports))
    return text


def nginx(folder, ports, listen):
    text = (PROXIES / "nginx.conf").read_text().replace("listen 8080;", f"listen 127.0.0.1:{listen};").replace("connect_timeout 5s", "connect_timeout 1s")
    (folder / "xgen-model.conf").write_text(for_each(ports, r"^ *server 127\.0\.0\.1:8000 .*\n", text))
    (folder / "nginx.conf").write_text(
        f"pid {folder}/nginx.pid;\ndaemon off;\nworker_processes 2;\nerror_log {folder}/error.log;\nevents {{}}\nhttp {{\n  access_log off;\n" +
        "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")) +
        f"  add_header x-replica $upstream_addr always;\n  include {folder}/xgen-model.conf;\n}}\n")
    return [find("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]


def haproxy(folder, ports, listen):
    text = (PROXIES / "haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{listen}").replace("connect 5s", "connect 1s")
    text = for_each(ports, r"^ *server local 127\.0\.0\.1:8000\n", text) + "  http-response set-header x-replica %b/%s\n"
    (folder / "haproxy.cfg").write_text(text)
    return [find("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]


@contextlib.contextmanager
def proxy(kind, folder, *ports):
    """The URL of the proxy in front of these ports of 127.0.0.1. Its answers say in `x-replica` whom it asked, the one that answered last."""
    listen = free_port()
    with open(folder / f"{kind.__name__}.log", "w+") as log:
        child = subprocess.Popen(kind(folder, ports, listen), stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 10 * PATIENCE
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listen), timeout=1):
                    break
                assert child.poll() is None and time.monotonic() < end, (folder / f"{kind.__name__}.log").read_text()
                time.sleep(0.02)
            yield f"http://127.0.0.1:{listen}"
        finally:
            child.terminate()
            child.wait(20)
