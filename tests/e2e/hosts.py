"""Names of a test's own: an /etc/hosts that only the processes see that are started with it."""
import os
import subprocess

import pytest


class Hosts:
    """`command` begins the command line of such a process. Nothing but the file says which names there are."""

    def __init__(self, folder):
        self.file = folder / "hosts"
        services = folder / "nsswitch.conf"
        services.write_text("hosts: files\n")
        script = 'mount --bind "$0" /etc/hosts && mount --bind "$1" /etc/nsswitch.conf && shift && exec "$@"'
        self.command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, self.file, services]
        self.set("probe.test", "127.0.0.1")
        try:
            probe = subprocess.run([*self.command, "getent", "hosts", "probe.test"], capture_output=True, text=True)
            fault = "" if probe.returncode == 0 else probe.stderr.strip() or "its names are not found"
        except FileNotFoundError as error:
            fault = str(error)
        if fault:
            pytest.skip(f"an /etc/hosts for one process alone is not possible here: {fault}")

    def set(self, name, *addresses):
        """All that are known from now on. The mounted file stays the same one, and is never half written."""
        text = "".join(f"{each} {name}\n" for each in addresses).ljust(4000, "\n")
        file = os.open(self.file, os.O_WRONLY | os.O_CREAT)
        os.pwrite(file, text.encode(), 0)
        os.close(file)
