"""Lambda's runtime interface emulator, the one that sam runs in a container, here on this machine."""

import platform
import subprocess
import tempfile
import time
from pathlib import Path

import requests
import samcli.local

from ports import free_port, listens

EMULATORS = {"x86_64": "aws-lambda-rie-x86_64", "aarch64": "aws-lambda-rie-arm64"}


class Function:
    """A program that the emulator runs while a block lasts, with these variables and no others.

    `printed` has its lines afterwards.
    """

    def __init__(self, program, variables):
        self.program, self.variables = program, variables

    def __enter__(self):
        emulator = Path(samcli.local.__file__).with_name("rapid") / EMULATORS[platform.machine()]
        self.port = free_port()
        places = {"runtime-interface-emulator": self.port, "runtime-api": free_port()}
        command = [emulator, *(f"--{place}-address=127.0.0.1:{port}" for place, port in places.items())]
        self.output = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*command, self.program], env=self.variables, stdout=self.output)
        return self

    def invoke(self, event):
        """The function's answer to an event; of a failed one, an object with errorType."""
        while not listens(self.port):
            assert self.process.poll() is None, "the emulator has ended"
            time.sleep(0.02)
        answer = requests.post(f"http://127.0.0.1:{self.port}/2015-03-31/functions/function/invocations", json=event)
        return answer.json()

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.output.seek(0)
        self.printed = self.output.read().splitlines()
