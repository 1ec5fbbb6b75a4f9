#!/usr/bin/env python3
"""The remote shell of a virtual host: a daemon on it, and the command that MPI's launchers call.

It takes the place of sshd and ssh: what it starts is a child of the host's daemon, and everything
travels over the hosts' network. SEND_ENV has the names of variables that go with the command.
Usage: remote_shell.py serve; remote_shell.py [-x] HOST WORD...
"""

import asyncio
import os
import shlex
import socket
import struct
import sys
import threading

PORT = 22
CONNECT_LIMIT_S = 35.0  # launch names the ranks that are missing after 30 s
HEAD = struct.Struct("!BI")  # channel (0: the exit status, 1, 2: its output), length or status


async def serve() -> None:
    """Run one command a connection, for ever."""
    server = await asyncio.start_server(run, "0.0.0.0", PORT)
    print("ready", flush=True)
    await server.serve_forever()


async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The first line is the command; the rest is its input."""
    pipe = asyncio.subprocess.PIPE
    command = (await reader.readline()).decode().rstrip("\n")
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )

    async def give() -> None:
        while part := await reader.read(1 << 16):
            process.stdin.write(part)
            await process.stdin.drain()
        process.stdin.close()

    async def take(channel: int, stream: asyncio.StreamReader) -> None:
        while part := await stream.read(1 << 16):
            writer.write(HEAD.pack(channel, len(part)) + part)
            await writer.drain()

    giving = asyncio.ensure_future(give())
    both = take(1, process.stdout), take(2, process.stderr)
    await asyncio.gather(*both, return_exceptions=True)  # a caller who is gone is no fault
    giving.cancel()
    writer.write(HEAD.pack(0, await process.wait() & 0xFF))
    writer.close()


def call(host: str, command: str) -> int:
    """Run a command there; its exit status, or 255, as of ssh, if the host is not reached."""
    try:
        link = socket.create_connection((host, PORT), timeout=CONNECT_LIMIT_S)
    except OSError as error:
        print(f"{host}: {error}", file=sys.stderr)
        return 255
    link.settimeout(None)
    link.sendall(command.replace("\n", " ").encode() + b"\n")

    def give() -> None:
        try:
            while part := os.read(0, 1 << 16):
                link.sendall(part)
            link.shutdown(socket.SHUT_WR)
        except OSError:
            return

    threading.Thread(target=give, daemon=True).start()
    stream = link.makefile("rb")
    while len(head := stream.read(HEAD.size)) == HEAD.size:
        channel, length = HEAD.unpack(head)
        if channel == 0:
            return length
        os.write(channel, stream.read(length))
    return 255


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    words = [word for n, word in enumerate(sys.argv[1:]) if n > 1 or not word.startswith("-")]
    named = [name for name in os.environ.get("SEND_ENV", "").split() if name in os.environ]
    sent = "".join(f"export {shlex.quote(f'{n}={os.environ[n]}')}; " for n in named)
    try:
        status = call(words[0], sent + " ".join(words[1:]))
    except OSError:
        status = 255
    sys.stdout.flush()
    os._exit(status)  # its thread may stand in read()


if __name__ == "__main__":
    main()
