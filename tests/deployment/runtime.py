"""Lambda's runtime interface emulator, the one that sam runs in a container, here on this machine."""

import platform
import socket
import subprocess
import time
from pathlib import Path

import requests
import samcli.local

EMULATORS = {"x86_64": "aws-lambda-rie-x86_64", "aarch64": "aws-lambda-rie-arm64"}


class Function:
    """A program that the emulator runs while a block lasts, with these variables and no others."""

    def __init__(self, program, variables):
        self.program, self.variables = program, variables

    def __enter__(self):
        emulator = Path(samcli.local.__file__).with_name("rapid") / EMULATORS[platform.machine()]
        self.address, runtime_api = free_address(), free_address()
        command = [emulator, "--runtime-interface-emulator-address", self.address, "--runtime-api-address", runtime_api]
        self.process = subprocess.Popen([*command, self.program], env=self.variables)
        return self

    def invoke(self, event):
        """The function's answer to an event; of a failed one, an object with errorType."""
        while not is_open(self.address):
            assert self.process.poll() is None, "the emulator has ended"
            time.sleep(0.02)
        answer = requests.post(f"http://{self.address}/2015-03-31/functions/function/invocations", json=event)
        return answer.json()

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def free_address():
    # The emulator cannot be told to find a free port itself.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return "%s:%d" % listener.getsockname()


def is_open(address):
    host, port = address.split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0
